"""Replication of one layer: which experts get the extra copies.

Sets: experts e = 1..E, copies c = 1..C. Parameters: w_e tokens, r extra copies at most.
Variables: y[e,c] = 1 if e has c copies; T the heaviest copy.

    minimise  T
    one_count   sum_c y[e,c] = 1                        for all e
    copies      sum_{e,c} c y[e,c] <= E + r
    heaviest    sum_c (w_e / c) y[e,c] <= T             for all e

This is min T s.t. sum_e max(1, ceil(w_e / T)) <= E + r. Greedy replication, always copying the
expert with the heaviest copies, solves it for every r in one pass
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
    """What a solver makes of it; ``counts``: copies, int64 [experts], or None."""

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
    experts, counts = tokens.size, range(1, most_copies + 1)
    shares = model.shares(tokens[np.newaxis], most_copies)
    chosen = {(e, c): model.flag(f"y_{e}_{c}") for e in range(experts) for c in counts}
    largest = model.number("T", 0, max(row[0] for row in shares.values[0]))
    for e in range(experts):
        model.add(f"one_count_{e}", model.total(chosen[e, c] for c in counts) == 1)
        copy = model.total(shares.values[0][e][c - 1] * chosen[e, c] for c in counts)
        model.add(f"heaviest_{e}", copy <= largest)
    copies = model.total(c * y for (_, c), y in chosen.items())
    model.add("copies", copies <= experts + replicas)
    model.minimise(largest)
    return ReplicationModel(model, chosen, experts, shares.unit)
