"""Allocation of replicas over layers: the multiple-choice knapsack, and what goes beyond it.

Sets: layers l = 1..L, choices k = 0..K (r = step k extra copies), resources n, tied pairs (l, m).
Parameters: b[l,k] benefit; B budget; u[n,l,k] what a choice uses of a resource, U_n its limit.
Variables: y[l,k] = 1 if layer l gets choice k.

    maximise  sum_{l,k} b[l,k] y[l,k]
    one_choice  sum_k y[l,k] = 1                        for all l
    budget      sum_{l,k} step k y[l,k] <= B
    resource    sum_{l,k} u[n,l,k] y[l,k] <= U_n        for all n
    tied        y[l,k] = y[m,k]                         for all tied (l, m), k

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

# Benefits are whole numbers for CP-SAT: so many steps to the largest.
_STEPS = 2**40


@dataclass(frozen=True, eq=False)
class Allocation(Run):
    """What a solver makes of it.

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
    if (usage is None) != (limits is None) or (
        usage is not None and limits is not None and usage.shape != (limits.size, layers, choices)
    ):
        raise InputError(
            "usage and limits go together: pass usage [resources, layers, choices] = "
            f"[., {layers}, {choices}] and limits [resources]"
        )
    model = new_model(solver, "allocation")
    allowed = np.isfinite(benefit)
    if most is not None:
        allowed &= step * np.arange(choices) <= most[:, np.newaxis]
    chosen = {
        (layer, k): model.flag(f"y_{layer}_{k}") for layer, k in np.argwhere(allowed).tolist()
    }
    unit = 1.0
    gain = {key: float(benefit[key]) for key in chosen}
    if isinstance(model, CpModel):  # whole numbers, rounded up: the bound stays one
        unit = _STEPS / (max(map(abs, gain.values()), default=0.0) or 1.0)
        gain = {key: int(np.ceil(value * unit)) for key, value in gain.items()}
    for layer in range(layers):
        of_layer = [y for (at, _), y in chosen.items() if at == layer]
        model.add(f"one_choice_{layer}", model.total(of_layer) == 1)
    spent = model.total(step * k * y for (_, k), y in chosen.items())
    model.add("budget", spent <= budget)
    if usage is not None and limits is not None:
        for n in range(limits.size):
            used = model.total(int(usage[n, layer, k]) * y for (layer, k), y in chosen.items())
            model.add(f"resource_{n}", used <= int(limits[n]))
    for first, second in tied:
        for k in range(choices):
            model.add(
                f"tied_{first}_{second}_{k}",
                model.total([chosen.get((first, k), 0)]) == chosen.get((second, k), 0),
            )
    model.minimise(-model.total(gain[key] * y for key, y in chosen.items()))
    return AllocationModel(model, chosen, benefit, step, unit)
