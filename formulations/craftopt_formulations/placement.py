"""Placement of one layer, its copies given: constrained assignment.

Sets: experts e in E, GPUs g in G. Parameters: t[e] tokens; c[e] copies; s[g] slots of g, all
filled. Variables: x[e,g] = 1 if g hosts a copy of e; T the largest GPU load.

    minimise  T
    hosted      sum_g x[e,g] = c[e]                     for all e
    capacity    sum_e x[e,g] = s[g]                     for all g, if slots are even
    load        sum_e (t[e] / c[e]) x[e,g] <= T         for all g
    order       x[h,g] <= x[h,g-1]                      for all g with the slots of g - 1

GPUs with fewer slots come first, and h is the heaviest expert, as in `joint`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from craftopt.errors import InfeasibleError
from craftopt.loads import FloatArray, IntArray
from craftopt.plan import Copies
from craftopt_formulations._hosting import Placed, arranged, slot_counts, twins
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
    each, total = model.add_each, model.total
    E, G, c = range(tokens.size), range(gpus), counts.tolist()
    s, h = slot_counts(sum(c), gpus, spread), int(tokens.argmax())
    x = {(e, g): model.flag(f"x_{e}_{g}") for e in E for g in G}
    shares = model.shares(tokens[np.newaxis], max(c))
    t = shares.values[0]  # t[e, c]: tokens of one of c copies
    T = model.number("T", *shares.range(0, gpus, bound))

    model.minimise(T)
    each("hosted", {e: total(x[e, g] for g in G) == c[e] for e in E})
    each("capacity", {g: total(x[e, g] for e in E) == s[g] for g in s})
    each("load", {g: total(t[e, c[e]] * x[e, g] for e in E) <= T for g in G})
    each("order", {g: x[h, g] <= x[h, g - 1] for g in twins(gpus, s)})

    if hint is not None:
        start = arranged(hint, h, by_slots=spread is not None)
        for (e, g), flag in x.items():
            model.hint(flag, start[e, g])
    return PlacementModel(model, x, (tokens.size, gpus), shares.unit)
