"""Replication of one layer: which experts get the extra copies.

Sets: experts e in E, numbers of copies c in C = 1..most_copies. Parameters: t[e] tokens; n copies
at most, |E| plus the replicas. Variables: y[e,c] = 1 if e has c copies; T the heaviest copy.

    minimise  T
    one_count   sum_c y[e,c] = 1                        for all e
    copies      sum_{e,c} c y[e,c] <= n
    heaviest    sum_c (t[e] / c) y[e,c] <= T            for all e

This is min T s.t. sum_e max(1, ceil(t[e] / T)) <= n. Greedy replication, always copying the
expert with the heaviest copies, solves it for every n in one pass
(`craftopt.bounds.max_copy_load`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from craftopt.loads import FloatArray, IntArray
from craftopt_formulations._solvers import Model, Run, new_model


@dataclass(frozen=True, eq=False)
class Replication(Run):
    """Copies that a solver found: ``counts``, int64 [experts], or None."""

    counts: IntArray | None = None


@dataclass(frozen=True, eq=False)
class ReplicationModel:
    """The model and its flags y."""

    model: Model
    chosen: dict[tuple[int, int], Any]
    experts: int
    unit: float

    def solve(self, *, work: float | None = None, seconds: float | None = None) -> Replication:
        """Solve, and read the counts off the solution."""
        run = self.model.solve(work=work, seconds=seconds)
        counts = None
        if run.objective is not None:
            counts = np.zeros(self.experts, dtype=np.int64)
            for (e, c), y in self.chosen.items():
                counts[e] += c * (self.model.value(y) > 0.5)
        return Replication.of(run, self.unit, counts=counts)


def build(
    tokens: FloatArray, replicas: int, most_copies: int, *, solver: str = "cp-sat"
) -> ReplicationModel:
    """Build the program.

    Parameters
    ----------
    tokens : float64 [experts]
    replicas : int
        Most extra copies.
    most_copies : int
        Most copies of an expert.
    solver : {"cp-sat", "cbc", "highs", "scip"}

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt_formulations import replication
    >>> found = replication.build(np.array([9.0, 4, 1]), replicas=2, most_copies=4).solve()
    >>> found.objective, found.counts.tolist()
    (4.0, [3, 1, 1])
    """
    model = new_model(solver, "replication")
    add, each, total = model.add, model.add_each, model.total
    E, C = range(tokens.size), range(1, most_copies + 1)
    y = {(e, c): model.flag(f"y_{e}_{c}") for e in E for c in C}
    shares = model.shares(tokens[np.newaxis], most_copies)
    t = shares.values[0]  # t[e, c]: tokens of one of c copies
    T = model.number("T", 0, max(t[e, 1] for e in E))

    model.minimise(T)
    each("one_count", {e: total(y[e, c] for c in C) == 1 for e in E})
    add("copies", total(c * y[e, c] for e, c in y) <= tokens.size + replicas)
    each("heaviest", {e: total(t[e, c] * y[e, c] for c in C) <= T for e in E})
    return ReplicationModel(model, y, tokens.size, shares.unit)
