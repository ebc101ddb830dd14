"""Fronts: what every layer gains by every number of moves, and which moves the plan makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from craftopt.knapsack import allocate
from craftopt.loads import BoolArray, FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.planners.joint import JointSearch
from craftopt.planners.layers import Layers
from craftopt.problem import Problem
from craftopt.result import Options
from craftopt.search.fronts import measure_front, trace_front
from craftopt.search.kernels import Rules
from craftopt.windows import in_mean_loads, shrink

# Annealing steps of a layer, and where more are cheap or (with traffic) needed.
STEPS, STEPS_SMALL, SMALL = 120_000, 400_000, 100
# Windows searched on, evenly spread over all; all count when placements are compared.
MOST_WINDOWS = 64
# Placements of a layer's front that are measured where this takes long: with traffic, or for
# another dispatch than even.
MEASURED = 32
# Most moves of one layer: a multiple of the average, and some more.
MOVES_FACTOR, MOVES_EXTRA = 4, 16


# Costs and items of a layer, as `Fronts` has them.
Front = tuple[FloatArray, npt.NDArray[np.int16]]


@dataclass(frozen=True, eq=False)
class Fronts:
    """Hold every layer's best placement for every number of moves.

    Parameters
    ----------
    costs : float64 [layers, most + 1]
        Part of the objective, to be minimised: the sum over windows of the largest GPU load, with
        the price of traffic, or minus that of the balancedness; ``inf`` without a placement.
    items : list of int16 [most + 1, gpus, slots]
        Per layer: the experts of every GPU, -1 = no slot.
    """

    costs: FloatArray
    items: list[npt.NDArray[np.int16]]

    def choose(self, most: int, price: float = 0.0) -> IntArray:
        """Choose the moves of every layer, exactly, by the knapsack.

        Parameters
        ----------
        most : int
            Most moves in all; no fewer than the start makes.
        price : float
            What one move costs, in the unit of `costs`.

        Returns
        -------
        int64 [layers]
        """
        return allocate(self.costs + price * np.arange(self.costs.shape[1]), most)[0]

    def copies(self, moves: IntArray, experts: int) -> Copies:
        """Return a choice's copies, uint8 [layers, experts, gpus]."""
        layers = zip(self.items, moves, strict=True)
        return np.stack([_copies(items[chosen], experts) for items, chosen in layers])


def _trace_joint(
    search: JointSearch,
    start: Copies,
    previous: BoolArray,
    limit: IntArray,
    trace: Callable[[int], Front],
    layer: int,
) -> Front:
    """Measure a layer's front for balance in the problem's objective, and add to it by annealing.

    Parameters
    ----------
    search : JointSearch
    start : uint8 [layers, experts, gpus]
    previous : bool [layers, experts, gpus]
    limit : int64 [layers]
        Most moves.
    trace : callable
        Traces the front for balance.
    layer : int
    """
    balanced, items = trace(layer)
    met = np.flatnonzero(np.isfinite(balanced))
    few = np.unique(np.linspace(0, met.size - 1, min(met.size, MEASURED)).round()).astype(np.int64)
    candidates = [_copies(items[moves], start.shape[1]) for moves in met[few]]
    steps = search.steps(STEPS_SMALL)
    if balanced.size > 1 and steps:
        candidates += search.near(layer, start[layer], previous[layer].copy(), steps)
    costs = np.full(balanced.size, np.inf)
    for copies in candidates:
        moves = int(((copies > 0) & ~previous[layer]).sum())
        if moves > limit[layer]:
            continue
        cost = search.cost(layer, copies)
        if cost < costs[moves]:
            costs[moves] = cost
            gpu, expert = np.nonzero(copies.T)
            filled = np.bincount(gpu, minlength=copies.shape[1])
            items[moves] = -1
            items[moves, gpu, np.arange(gpu.size) - (np.cumsum(filled) - filled)[gpu]] = expert
    return costs, items


def _copies(items: npt.NDArray[np.int16], experts: int) -> Copies:
    """Turn the experts of every GPU, -1 = no slot, into copies [experts, gpus]."""
    result = np.zeros((experts, items.shape[0]), dtype=np.uint8)
    gpu, slot = np.nonzero(items >= 0)
    result[items[gpu, slot], gpu] = 1
    return result


@dataclass(frozen=True, eq=False)
class _Balance:
    """Traces fronts for balance alone.

    Parameters
    ----------
    frame : Layers
    searched : float64 [layers, experts, windows]
    counts : float64 [windows, layers]
        What the windows count.
    start, previous : uint8 and bool [layers, experts, gpus]
    limit : int64 [layers]
        Most moves.
    """

    frame: Layers
    searched: FloatArray
    counts: FloatArray
    start: Copies
    previous: BoolArray
    limit: IntArray

    def trace(self, layer: int) -> Front:
        """Trace the front of one layer."""
        problem, start = self.frame.problem, self.start
        slots = start.sum(axis=1, dtype=np.int64)
        rules = Rules(problem.group_nodes, int(slots.min()), int(slots.max()), problem.copies_limit)
        on = np.flatnonzero(self.counts[:, layer])
        weight = self.counts[on, layer]
        small = bool(start[layer].sum() <= SMALL)
        given = self.frame.options.work_limit
        steps = (STEPS_SMALL if small else STEPS) if given is None else given
        met, items = trace_front(
            np.ascontiguousarray(self.searched[layer][:, on]),
            weight / max(weight.sum(), 1e-300),
            self.previous[layer],
            start[layer],
            rules,
            int(self.limit[layer]),
            steps if on.size else 0,
            self.frame.seed(layer),
            # Over several windows, the smooth surrogate searches large layers better and fits
            # unseen windows more.
            small or on.size == 1,
        )
        tokens = np.ascontiguousarray(problem.loads.tokens[:, layer])
        mean = tokens.sum(axis=1) / problem.gpus
        return measure_front(tokens, mean, met, items, problem.goal.maximised), items


def trace_fronts(problem: Problem, start: Copies, most: int, options: Options) -> Fronts:
    """Trace the fronts of all layers, from a start that keeps the rules.

    Parameters
    ----------
    problem : Problem
        With the previous plan.
    start : uint8 [layers, experts, gpus]
    most : int
        Most moves in all.
    options : Options
        ``work_limit``: annealing steps of a layer.
    """
    loads, previous = problem.loads, problem.previous_copies > 0
    chosen = np.unique(np.linspace(0, loads.windows - 1, min(loads.windows, MOST_WINDOWS)).round())
    scaled, sampled = in_mean_loads(loads.tokens[chosen.astype(np.int64)], problem.gpus)
    moved = ((start > 0) & ~previous).sum(axis=(1, 2))
    spread = MOVES_FACTOR * -(-most // loads.layers) + MOVES_EXTRA
    limit = np.minimum(np.maximum(min(spread, most), moved), start.sum(axis=(1, 2)))
    frame = Layers(problem, options)
    searched = shrink(scaled).transpose(1, 2, 0)
    counts = problem.goal.window_weights(sampled)
    trace = _Balance(frame, searched, counts, start, previous, limit).trace
    if not problem.balance_alone:
        search = JointSearch(problem, options, start)
        trace = partial(_trace_joint, search, start, previous, limit, trace)
    found = frame.each(trace, range(loads.layers))
    costs = np.full((loads.layers, int(limit.max()) + 1), np.inf)
    for layer, (measured, _) in enumerate(found):
        costs[layer, : measured.size] = measured
    return Fronts(costs, [items for _, items in found])
