"""Copies that all windows of one layer share: the least cost that any choice of copies allows.

Sets: windows w = 1..W, experts e = 1..E, steps k = 2..C (an expert's k-th copy), and the levels
j of a window: loads t_we/(k-1) above F_w = max(m_w, max_e t_we/C), ascending. Parameters: cost
phi_w of a largest load (the load itself, or -m_w over it), its rise[w,j] from the level before
(from F_w at the first), r extra copies at most. Variables: have[e,k] = 1 if e has k copies or
more; below[w,j] = 1 if the largest load of w stays below level j.

    minimise  sum_w phi_w(F_w) + sum_{w,j} rise[w,j] (1 - below[w,j])
    chain     have[e,k] <= have[e,k-1]             for all e, k > 2
    need      below[w,j] <= have[e,k]              for level j = t_we/(k-1) of w
    upward    below[w,j-1] <= below[w,j]           for all w, j but the first
    copies    sum_{e,k} have[e,k] <= r

With a price on `have` in place of the last constraint this is a maximum closure, whose matrix is
totally unimodular: a minimum cut solves it, for all r at once
(`craftopt.bounds.common_copies_curve`): its curve over r is the convex envelope of this program's
optima. What is lost by that, this program says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from craftopt.loads import FloatArray, IntArray
from craftopt.objective import OBJECTIVES, ObjectiveName
from craftopt_formulations._solvers import Model, Run, new_model

# Costs are rounded down to whole parts of the largest one: never more than the truth.
_PARTS = 10**7


@dataclass(frozen=True, eq=False)
class CommonCopies(Run):
    """Copies that a solver found: ``counts``, int64 [experts], or None."""

    counts: IntArray | None = None


@dataclass(frozen=True, eq=False)
class CommonCopiesModel:
    """The model and its flags `have`; costs are ``base`` and whole numbers of units."""

    model: Model
    have: dict[tuple[int, int], Any]
    experts: int
    base: float
    unit: float

    def solve(self, *, work: float | None = None, seconds: float | None = None) -> CommonCopies:
        """Solve, and read the counts off the solution."""
        run = self.model.solve(work=work, seconds=seconds)
        counts = None
        if run.objective is not None:
            counts = np.ones(self.experts, dtype=np.int64)
            for (e, _), flag in self.have.items():
                counts[e] += self.model.value(flag) > 0.5
        objective, bound = (
            None if value is None else self.base + value * self.unit
            for value in (run.objective, run.bound)
        )
        return CommonCopies(run.status, objective, bound, run.solver, run.seconds, run.work, counts)


def build(
    tokens: FloatArray,
    gpus: int,
    replicas: int,
    most_copies: int,
    objective: ObjectiveName = "time",
    *,
    solver: str = "cp-sat",
) -> CommonCopiesModel:
    """Build the program.

    Parameters
    ----------
    tokens : float64 [windows, experts]
    gpus : int
    replicas : int
        Most extra copies.
    most_copies : int
        Most copies of an expert.
    objective : {"time", "balancedness"}
        What a layer costs: see `formulations/README.md`. Rounded down to 1e-7 of what it spans.
    solver : {"cp-sat", "cbc", "highs", "scip"}

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt_formulations import common_copies
    >>> tokens = np.array([[8.0, 1.0, 1.0], [1.0, 8.0, 1.0]])
    >>> found = common_copies.build(tokens, gpus=2, replicas=1, most_copies=2).solve()
    >>> round(found.objective, 5), int(found.counts.sum())
    (13.0, 4)
    """
    base, levels = _levels(tokens, gpus, most_copies, objective)
    unit = max((window[-1][0] for window in levels if window), default=0.0) / _PARTS or 1.0
    model = new_model(solver, "common_copies")
    add, each, total = model.add, model.add_each, model.total
    level = {(w, j): found for w, window in enumerate(levels) for j, found in enumerate(window)}
    steps = sorted({(e, k) for _, e, k in level.values()})
    have = {(e, k): model.flag(f"have_{e}_{k}") for e, k in steps}
    below = {(w, j): model.flag(f"below_{w}_{j}") for w, j in level}
    upto = {key: int(above / unit) for key, (above, _, _) in level.items()}
    rise = {(w, j): cost - upto.get((w, j - 1), 0) for (w, j), cost in upto.items()}

    model.minimise(total([*(-rise[key] * below[key] for key in level), sum(rise.values())]))
    each("chain", {(e, k): have[e, k] <= have[e, k - 1] for e, k in have if k > 2})
    each("need", {key: below[key] <= have[e, k] for key, (_, e, k) in level.items()})
    each("upward", {(w, j): below[w, j - 1] <= below[w, j] for w, j in level if j})
    if have:
        add("copies", total(have.values()) <= replicas)
    return CommonCopiesModel(model, have, tokens.shape[1], base, unit)


def _levels(
    tokens: FloatArray, gpus: int, copies_limit: int, objective: ObjectiveName
) -> tuple[float, list[list[tuple[float, int, int]]]]:
    """List every window's levels, ascending: cost above F_w, the expert and step they need."""
    maximised = OBJECTIVES[objective].maximised
    base = 0.0
    levels = []
    for counts in tokens.tolist():
        mean = sum(counts) / gpus

        def cost(load: float, mean: float = mean) -> float:
            if not maximised:
                return load
            return -mean / load if load > 0 else -1.0

        floor = max(mean, max(counts) / copies_limit)
        base += cost(floor)
        levels.append(
            sorted(
                (cost(count / copies) - cost(floor), e, copies + 1)
                for e, count in enumerate(counts)
                for copies in range(1, copies_limit)
                if count / copies > floor
            )
        )
    return base, levels
