"""Placement of one layer, its copies given: constrained assignment.

Sets: experts e = 1..E, GPUs g = 1..G. Parameters: w_e tokens; c_e copies; n_g least and N_g most
copies that g hosts. Variables: x[e,g] = 1 if g hosts a copy of e; T the largest GPU load.

    minimise  T
    hosted      sum_g x[e,g] = c_e                      for all e
    capacity    n_g <= sum_e x[e,g] <= N_g              for all g
    load        sum_e (w_e / c_e) x[e,g] <= T           for all g
    order       x of the heaviest expert falls over GPUs of equal capacity

GPUs with fewer slots come first, as in `joint`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from craftopt.errors import InfeasibleError
from craftopt.loads import FloatArray, IntArray
from craftopt.plan import Copies
from craftopt_formulations._hosting import Placed, arranged, capacities
from craftopt_formulations._solvers import Model, new_model


@dataclass(frozen=True, eq=False)
class PlacementModel:
    """The model and its flags x."""

    model: Model
    hosts: dict[tuple[int, int], Any]
    shape: tuple[int, int]
    unit: float

    def solve(self, *, work: float | None = None, seconds: float | None = None) -> Placed:
        """Solve, and read the copies off the solution."""
        run = self.model.solve(work=work, seconds=seconds)
        copies = None
        if run.objective is not None:
            copies = np.zeros(self.shape, dtype=np.uint8)
            for (e, g), x in self.hosts.items():
                copies[e, g] = self.model.value(x) > 0.5
        return Placed.of(run, self.unit, copies=copies)


def build(
    tokens: FloatArray,
    counts: IntArray,
    gpus: int,
    *,
    spread: int | None = 1,
    hint: Copies | None = None,
    bound: float = 0.0,
    solver: str = "cp-sat",
) -> PlacementModel:
    """Build the program.

    Parameters
    ----------
    tokens : float64 [experts]
    counts : int64 [experts]
        Copies of every expert, 1..gpus.
    gpus, spread, hint, bound, solver
        As in `joint.build`.

    Raises
    ------
    InfeasibleError
        An expert with no copy, or with more than there are GPUs.

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt_formulations import placement
    >>> placed = placement.build(np.array([8.0, 5, 4, 3]), np.array([2, 1, 1, 1]), gpus=2).solve()
    >>> placed.objective, placed.copies.sum(axis=0).tolist()
    (11.0, [2, 3])
    """
    if counts.min() < 1 or counts.max() > gpus:
        raise InfeasibleError(
            f"counts holds {counts.min()}..{counts.max()}; every expert needs 1..{gpus} copies"
        )
    model = new_model(solver, "placement")
    experts = tokens.size
    shares = model.shares(tokens[np.newaxis], int(counts.max()))
    share = [shares.values[0][e][counts[e] - 1] for e in range(experts)]
    hosts = {(e, g): model.flag(f"x_{e}_{g}") for e in range(experts) for g in range(gpus)}
    largest = model.number("T", *shares.range(0, gpus, bound))
    for e in range(experts):
        hosted = model.total(hosts[e, g] for g in range(gpus))
        model.add(f"hosted_{e}", hosted == int(counts[e]))
    slots = capacities(int(counts.sum()), gpus, spread)
    heaviest = int(tokens.argmax())
    for g in range(gpus):
        if slots is not None:
            filled = model.total(hosts[e, g] for e in range(experts))
            model.add(f"capacity_{g}", filled == int(slots[g]))
        load = model.total(share[e] * hosts[e, g] for e in range(experts) if share[e])
        model.add(f"load_{g}", load <= largest)
        if g and (slots is None or slots[g] == slots[g - 1]):
            model.add(f"order_{g}", hosts[heaviest, g] <= hosts[heaviest, g - 1])
    if hint is not None:
        start = arranged(hint, heaviest, by_slots=spread is not None)
        for (e, g), x in hosts.items():
            model.hint(x, start[e, g])
    model.minimise(largest)
    return PlacementModel(model, hosts, (experts, gpus), shares.unit)
