"""Balancedness as the objective of a linear program: gains below a staircase and its chords.

Sets: cells j, a window and layer with tokens each; points p_0 < p_1 < ... in the range of its
largest load T[j]. Parameters: m[j] mean GPU load. Variables: q[j,i] = 1 if T[j] >= p_i; v[j] the
gain.

    maximise    sum_j v[j]
    above       T[j] >= p_i                                     where q[j,i] = 1
    below       T[j] < p_i                                      where q[j,i] = 0
    stair       v[j] <= m[j] / p_i                              where q[j,i] = 1
    chord       v[j] <= the chord of m[j] / T from p_i to p_{i+1}   where T[j] is between them

Balancedness, sum_j m[j] / T[j], is convex in T, which a linear program cannot maximise. Staircase
and chords lie above the true gain, so that the optimum is a bound; it is exact at the points.
Points are added where the optimum lies, until bound and plan meet.
"""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass
from typing import Any

from craftopt.plan import Copies
from craftopt_formulations._shares import Shares
from craftopt_formulations._solvers import CpModel

# A gain of 1 in whole numbers, and what the slope of a chord is multiplied by.
GAIN, _SLOPE = 2**36, 2**20
_LARGEST = 2**60
# Points at which a gain is exact from the start, as multiples of the mean load.
_POINTS = (1.0, 1.02, 1.05, 1.1, 1.2, 1.35, 1.6, 2.0, 3.0, 5.0)


@dataclass(frozen=True, eq=False)
class Cell:
    """A window and layer with tokens: the variable T, and loads in the unit of the model.

    ``row``: the window of ``shares``; ``mean``: mean GPU load.
    """

    largest: Any
    shares: Shares
    row: int
    gpus: int
    mean: float

    def load(self, copies: Copies) -> int:
        """Compute the largest GPU load of a placement."""
        return int(max(self.shares.loads(self.row, copies)))

    def gain(self, load: int) -> int:
        """Compute m / T, rounded up."""
        return math.ceil(GAIN * self.mean / load * (1.0 + 1e-14))


class Gains:
    """Flags and constraints that keep every gain at or above m / T, exactly so at points."""

    def __init__(self, model: CpModel, cells: dict[tuple[int, int], Cell]) -> None:
        self.model, self.cells = model, cells
        self.gains: dict[tuple[int, int], Any] = {}
        # By cell, rising: a point, and the flag of T >= point; None where it always is.
        self.points: dict[tuple[int, int], list[tuple[int, Any]]] = {}
        for key, cell in cells.items():
            least, most = cell.shares.range(cell.row, cell.gpus)
            first = math.ceil(least)
            self.gains[key] = model.count("v_{}_{}".format(*key), 0, cell.gain(first))
            self.points[key] = [(first, None)]
            for factor in _POINTS:
                if first < factor * cell.mean < most:
                    self.add(key, math.ceil(factor * cell.mean))
        model.minimise(-model.total(self.gains.values()))

    def add(self, key: tuple[int, int], point: int) -> bool:
        """Make a gain exact at a point; return whether it was not before."""
        points, cell = self.points[key], self.cells[key]
        at = bisect.bisect_right(points, point, key=lambda entry: entry[0])
        if points[max(at - 1, 0)][0] >= point:
            return False
        name = "{}_{}_{}".format(point, *key)
        q, v, largest = self.model.flag(f"q_{name}"), self.gains[key], cell.largest
        self.model.implies([q], f"above_{name}", largest >= point)
        self.model.implies([~q], f"below_{name}", largest <= point - 1)
        self.model.implies([q], f"stair_{name}", v <= cell.gain(point))
        points.insert(at, (point, q))
        for left, right in itertools.pairwise(points[at - 1 : at + 2]):
            self._add_chord(key, left, right)
        return True

    def _add_chord(
        self, key: tuple[int, int], left: tuple[int, Any], right: tuple[int, Any]
    ) -> None:
        cell, v = self.cells[key], self.gains[key]
        fall = cell.mean / left[0] - cell.mean / right[0]
        slope = math.floor(GAIN * _SLOPE * fall / (right[0] - left[0]) * (1.0 - 1e-12))
        if slope < 1 or slope * cell.shares.range(cell.row, 1)[1] > _LARGEST:
            return  # the staircase is as good
        between = [~right[1]] if left[1] is None else [left[1], ~right[1]]
        top = _SLOPE * cell.gain(left[0]) + slope * left[0]
        name = "chord_{}_{}_{}_{}".format(left[0], right[0], *key)
        self.model.implies(between, name, _SLOPE * v + slope * cell.largest <= top)

    def add_loads(self, copies: Copies) -> bool:
        """Make gains exact at the loads of a plan; return whether any was not before."""
        fresh = [self.add(key, cell.load(copies[key[1]])) for key, cell in self.cells.items()]
        return any(fresh)
