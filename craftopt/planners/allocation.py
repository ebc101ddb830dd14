"""Allocation over layers: dynamic programming on bounds, then on what placement reached."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from craftopt.bounds import layer_costs
from craftopt.knapsack import allocate
from craftopt.loads import BoolArray, FloatArray, IntArray
from craftopt.problem import Problem

Measure = Callable[[IntArray, IntArray], FloatArray]

# Choices of replicas beyond the last one where any bound still gains.
BEYOND = 8
# Sums that differ by less, relative, are equal.
ROUNDING = 1e-13


def allocation_bounds(problem: Problem) -> FloatArray:
    """Bound the cost of ``replica_step * k`` replicas in every layer, float64 [layers, choices].

    For a problem of one window; with some choices beyond those where a bound still gains, since
    placement may fall short of the bounds, and with those that fill all slots of the rule
    ``uniform``; choices between are ``inf``.
    """
    bounds = layer_costs(problem)
    step, count = problem.replica_step, bounds.shape[1]
    beyond = problem.layer_replicas_limit // step + 1 - count
    table = np.pad(bounds, ((0, 0), (0, min(beyond, BEYOND))), mode="edge")
    filled = problem.uniform_choices // step
    filled = filled[filled >= table.shape[1]]
    if filled.size:
        width = int(filled[-1]) + 1 - table.shape[1]
        table = np.pad(table, ((0, 0), (0, width)), constant_values=np.inf)
        table[:, filled] = bounds[:, -1:]
    return table


class MeasuredAllocation:
    """Choose every layer's replicas, measuring only the choices that could matter.

    The table holds lower bounds for choices that are not measured. The knapsack's choice is
    measured, the values are put back, and the knapsack is solved again, until it picks measured
    choices only: then no other allocation is better, measured or not. So budget that the bounds
    see no use for is spent where placement fell short of them. What was measured for one budget
    serves the next.

    Parameters
    ----------
    bounds : float64 [layers, choices]
        Lower bound on the cost of ``step * k`` replicas in a layer.
    step : int
    measure : callable
        ``measure(layers, choices) -> costs`` places several layers at once.
    tolerance : float
        Stop this close to what any allocation could reach, relative to the summed cost.
    least : int
        Placements to spend before the tolerance counts: small problems are solved to the end,
        so that more budget never gives a worse allocation.
    work : int
        Most placements to measure; the first allocation is always measured.
    """

    def __init__(
        self,
        bounds: FloatArray,
        step: int,
        measure: Measure,
        *,
        tolerance: float,
        least: int,
        work: int,
    ) -> None:
        self._table = bounds.copy()
        self._measured: BoolArray = np.zeros(bounds.shape, dtype=np.bool_)
        self._step = step
        self._measure = measure
        self._tolerance = tolerance
        self._least = least
        self._work = work
        self.spent = 0

    def solve(self, budget: int, cutoff: float = np.inf) -> tuple[IntArray, float, bool]:
        """Allocate a budget.

        Stops once no allocation can cost ``cutoff`` or less: ``cost`` is a bound above it then.

        Returns
        -------
        replicas : int64 [layers]
        cost : float
            What placement reached, summed over the layers.
        stopped : bool
            Whether the work ran out before the tolerance was met.
        """
        layers = np.arange(self._table.shape[0])
        while True:
            replicas, floor = allocate(self._table, budget, self._step)
            choice = replicas // self._step
            unknown = layers[~self._measured[layers, choice]]
            if not unknown.size or floor > cutoff:
                return replicas, floor, False
            known = np.where(self._measured, self._table, np.inf)
            best, cost = allocate(known, budget, self._step)
            tolerance = self._tolerance if self.spent >= self._least else ROUNDING
            if cost - floor <= tolerance * abs(floor) and self.spent >= self._least / 10:
                return best, cost, False
            if cost < np.inf and self.spent + unknown.size > self._work:
                return best, cost, True
            self.measure(unknown, choice[unknown])

    def measure_known(self, replicas: IntArray) -> None:
        """Measure some replicas of every layer, where they are in the table; -1 is not."""
        choices = replicas // self._step
        known = np.flatnonzero((choices >= 0) & (choices < self._table.shape[1]))
        if known.size:
            self.measure(known, choices[known])

    def measure(self, layers: IntArray, choices: IntArray) -> None:
        """Put what placement reaches with some choices into the table."""
        self._table[layers, choices] = self._measure(layers, choices)
        self._measured[layers, choices] = True
        self.spent += layers.size
