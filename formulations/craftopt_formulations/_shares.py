"""What one copy carries, in the numbers of a model: exact, or rounded down for CP-SAT."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from craftopt.loads import FloatArray
from craftopt.plan import Copies

# Loads are whole numbers for CP-SAT: exact where they stay below this, else rounded down to it.
_LARGEST = 2**42


@dataclass(frozen=True)
class Shares:
    """Tokens of one copy, t_e / c, for every expert e and number of copies c.

    Parameters
    ----------
    values : list of dict of numbers, [windows], keys (e, c)
        In the unit of a model; rounded down where they are whole numbers.
    totals : list of numbers, [windows]
        A lower bound on what the GPUs carry together.
    unit : float
        One token in the unit of the model.
    slack : int
        Most that rounding takes off a GPU's load; 0 where it takes nothing.
    """

    values: list[dict[tuple[int, int], Any]]
    totals: list[Any]
    unit: float
    slack: int

    def range(self, window: int, gpus: int, bound: float = 0.0) -> tuple[float, float]:
        """Return the least and the most that the largest GPU load of a window can be."""
        mean = self.totals[window] / gpus
        most = sum(share for (_, copies), share in self.values[window].items() if copies == 1)
        return min(max(mean, self.floor(bound, 1)), most), most

    def floor(self, bound: float, windows: int) -> float:
        """Return what is left of a bound in tokens, over some windows, after rounding."""
        return math.floor(bound * self.unit * (1.0 - 1e-12)) - self.slack * windows

    def loads(self, window: int, copies: Copies) -> list[Any]:
        """Compute the GPU loads of a placement, uint8 [experts, gpus]."""
        loads = [0] * copies.shape[1]
        for e, row in enumerate(copies.tolist()):
            share = self.values[window][e, sum(row)]
            for g, hosted in enumerate(row):
                loads[g] += share * hosted
        return loads


def whole_shares(tokens: FloatArray, most_copies: int) -> Shares:
    """Divide tokens [windows, experts] in whole numbers: exactly, or rounded down."""
    whole, unit, exact = whole_tokens(tokens, most_copies)
    experts = tokens.shape[1]
    lost = 0 if exact else most_copies * experts
    values = [
        {(e, c): load // c for e, load in enumerate(window) for c in range(1, most_copies + 1)}
        for window in whole
    ]
    totals = [max(0, sum(window) - lost) for window in whole]
    return Shares(values, totals, unit, 0 if exact else experts)


def real_shares(tokens: FloatArray, most_copies: int) -> Shares:
    """Divide tokens [windows, experts], in units of the mean: solvers like numbers near 1."""
    scale = float(tokens.sum()) / tokens.size or 1.0
    values = [
        {(e, c): load / scale / c for e, load in enumerate(row) for c in range(1, most_copies + 1)}
        for row in tokens.tolist()
    ]
    totals = (tokens.sum(axis=1) / scale * (1.0 - 1e-12)).tolist()
    return Shares(values, totals, 1.0 / scale, 0)


def whole_tokens(tokens: FloatArray, most_copies: int) -> tuple[list[list[int]], float, bool]:
    """Scale tokens to whole numbers that every number of copies divides, or round them down.

    Returns
    -------
    whole : list of list of int, [windows][experts]
    unit : float
        Whole numbers per token.
    exact : bool
        Whether nothing was rounded, nor will be when a load is divided by copies.
    """
    largest = float(tokens.sum(axis=1).max())
    multiple = math.lcm(*range(1, most_copies + 1))
    if largest * multiple <= _LARGEST and np.array_equal(tokens, np.floor(tokens)):
        rows = [[int(load) * multiple for load in window] for window in tokens.tolist()]
        shared = {load // c for row in rows for load in row for c in range(1, most_copies + 1)}
        common = math.gcd(*shared) or 1
        return [[load // common for load in row] for row in rows], multiple / common, True
    # Powers of two, so that scaling itself rounds nothing.
    exponent = math.floor(math.log2(_LARGEST / largest)) if largest > 0 else 0
    unit = math.ldexp(1.0, exponent) if exponent < 1000 else math.ldexp(1.0, 1000)
    return [[math.floor(load * unit) for load in row] for row in tokens.tolist()], unit, False
