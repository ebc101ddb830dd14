"""Allocation of replicas over layers: the multiple-choice knapsack, and what goes beyond it.

Sets: layers i in L, choices k in K (choice k is worth ``step`` k replicas), resources n, tied
pairs (i, j). Parameters: b[i,k] benefit; B budget; u[n,i,k] what a choice uses of a resource,
U[n] its limit. Variables: y[i,k] = 1 if layer i gets choice k.

    maximise  sum_{i,k} b[i,k] y[i,k]
    one_choice  sum_k y[i,k] = 1                        for all i
    budget      sum_{i,k} step k y[i,k] <= B
    resource    sum_{i,k} u[n,i,k] y[i,k] <= U[n]       for all n
    tied        y[i,k] = y[j,k]                         for all tied (i, j), k

The first two constraints are what `craftopt.knapsack.allocate` solves by dynamic programming, far
faster. Resources say what it cannot: a budget per node (u: copies of a choice that the node
hosts), bytes where experts of layers differ in size (u: bytes), a cap on one layer (benefit -inf
beyond it, here ``most``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from craftopt.errors import InputError
from craftopt.loads import FloatArray, IntArray
from craftopt_formulations._solvers import CpModel, Model, Run, new_model

# Benefits are whole numbers for CP-SAT: steps up to the largest.
_STEPS = 2**40


@dataclass(frozen=True, eq=False)
class Allocation(Run):
    """An allocation that a solver found.

    ``replicas``: extra copies, int64 [layers], or None; ``objective``: summed benefit;
    ``bound``: no allocation has more.
    """

    replicas: IntArray | None = None


@dataclass(frozen=True, eq=False)
class AllocationModel:
    """The model and its flags y."""

    model: Model
    chosen: dict[tuple[int, int], Any]
    benefit: FloatArray
    step: int
    unit: float

    def solve(self, *, work: float | None = None, seconds: float | None = None) -> Allocation:
        """Solve, and read the choices off the solution."""
        run = self.model.solve(work=work, seconds=seconds)
        replicas = objective = None
        if run.objective is not None:
            choice = np.zeros(self.benefit.shape[0], dtype=np.int64)
            for (layer, k), y in self.chosen.items():
                if self.model.value(y) > 0.5:
                    choice[layer] = k
            replicas = choice * self.step
            objective = float(self.benefit[np.arange(choice.size), choice].sum())
        bound = None if run.bound is None else -run.bound / self.unit
        return Allocation(run.status, objective, bound, run.solver, run.seconds, run.work, replicas)


def build(
    benefit: FloatArray,
    budget: int,
    *,
    step: int = 1,
    most: IntArray | None = None,
    tied: Sequence[tuple[int, int]] = (),
    usage: IntArray | None = None,
    limits: IntArray | None = None,
    solver: str = "cbc",
) -> AllocationModel:
    """Build the program.

    Parameters
    ----------
    benefit : float64 [layers, choices]
        Benefit of ``step * k`` replicas in a layer; -inf forbids a choice.
    budget : int
        Most replicas over all layers.
    step : int
        Replicas that one choice is worth.
    most : int64 [layers], optional
        Most replicas of every layer.
    tied : sequence of (layer, layer)
        Layers that must have the same choice.
    usage : int64 [resources, layers, choices], optional
        What a choice uses of further resources.
    limits : int64 [resources], optional
    solver : {"cp-sat", "cbc", "highs", "scip"}

    Raises
    ------
    InputError
        Arrays that do not fit each other, benefits that are NaN or inf.

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt_formulations import allocation
    >>> benefit = np.array([[0.0, 4, 8], [0, 6, 7]])
    >>> found = allocation.build(benefit, budget=3).solve()
    >>> found.objective, found.replicas.tolist()
    (14.0, [2, 1])
    >>> allocation.build(benefit, budget=3, tied=[(0, 1)]).solve().replicas.tolist()
    [1, 1]
    """
    layers, choices = benefit.shape
    if np.isnan(benefit).any() or np.isposinf(benefit).any():
        raise InputError("benefit holds NaN or inf; pass numbers, or -inf to forbid a choice")
    if usage is None and limits is None:
        usage, limits = np.zeros((0, layers, choices), dtype=np.int64), np.zeros(0, dtype=np.int64)
    if usage is None or limits is None or usage.shape != (limits.size, layers, choices):
        raise InputError(
            "usage and limits go together: pass usage [resources, layers, choices] = "
            f"[., {layers}, {choices}] and limits [resources]"
        )
    model = new_model(solver, "allocation")
    add, each, total = model.add, model.add_each, model.total
    allowed = np.isfinite(benefit)
    if most is not None:
        allowed &= step * np.arange(choices) <= most[:, np.newaxis]
    y = {(i, k): model.flag(f"y_{i}_{k}") for i, k in np.argwhere(allowed).tolist()}
    b, unit = {key: float(benefit[key]) for key in y}, 1.0
    if isinstance(model, CpModel):  # whole numbers, rounded up: the bound holds
        unit = _STEPS / (max(map(abs, b.values()), default=0.0) or 1.0)
        b = {key: int(np.ceil(value * unit)) for key, value in b.items()}
    L, K, u, U = range(layers), range(choices), usage.tolist(), limits.tolist()

    def have(i: int, k: int) -> Any:
        return total([y.get((i, k), 0)])

    model.minimise(-total(b[i, k] * y[i, k] for i, k in y))
    each("one_choice", {i: total(have(i, k) for k in K) == 1 for i in L})
    add("budget", total(step * k * y[i, k] for i, k in y) <= budget)
    each("resource", {n: total(u[n][i][k] * y[i, k] for i, k in y) <= U[n] for n in range(len(U))})
    each("tied", {(i, j, k): have(i, k) == have(j, k) for i, j in tied for k in K})
    return AllocationModel(model, y, benefit, step, unit)
