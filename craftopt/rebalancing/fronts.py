"""Fronts: what every layer gains by every number of moves, and which moves the plan makes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from craftopt.knapsack import allocate
from craftopt.loads import FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.planners.layers import Layers
from craftopt.problem import Problem
from craftopt.result import Options
from craftopt.search.fronts import measure_front, trace_front
from craftopt.search.kernels import Rules
from craftopt.windows import in_mean_loads, shrink

# Annealing steps of a layer, and of one with few copies, where more are cheap.
STEPS, STEPS_SMALL, SMALL = 120_000, 400_000, 100
# Windows searched on, evenly spread over all; all count when placements are compared.
MOST_WINDOWS = 64
# Most moves of one layer: a multiple of the average, and some more.
MOVES_FACTOR, MOVES_EXTRA = 4, 16


@dataclass(frozen=True, eq=False)
class Fronts:
    """Hold every layer's best placement for every number of moves.

    Parameters
    ----------
    costs : float64 [layers, most + 1]
        Part of the objective, to be minimised: the sum over windows of the largest GPU load, or
        minus that of the balancedness; ``inf`` where there is no placement.
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
        result = np.zeros((moves.size, experts, self.items[0].shape[1]), dtype=np.uint8)
        for layer, chosen in enumerate(moves):
            items = self.items[layer][chosen]
            gpu, slot = np.nonzero(items >= 0)
            result[layer, items[gpu, slot], gpu] = 1
        return result


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
    frame = Layers(problem, options)
    previous = problem.previous_copies > 0
    loads = problem.loads
    slots = start.sum(axis=1, dtype=np.int64)
    rules = Rules(problem.group_nodes, int(slots.min()), int(slots.max()), problem.copies_limit)
    mean = loads.tokens.sum(axis=2) / problem.gpus
    chosen = np.unique(np.linspace(0, loads.windows - 1, min(loads.windows, MOST_WINDOWS)).round())
    sample = chosen.astype(np.int64)
    scaled, sampled = in_mean_loads(loads.tokens[sample], problem.gpus)
    # [layers, experts, windows]
    searched = shrink(scaled).transpose(1, 2, 0)
    counts = problem.goal.window_weights(sampled)
    moved = ((start > 0) & ~previous).sum(axis=(1, 2))
    spread = MOVES_FACTOR * -(-most // loads.layers) + MOVES_EXTRA
    limit = np.minimum(np.maximum(min(spread, most), moved), start.sum(axis=(1, 2)))

    def trace(layer: int) -> tuple[FloatArray, npt.NDArray[np.int16]]:
        on = np.flatnonzero(counts[:, layer])
        small = bool(start[layer].sum() <= SMALL)
        default = STEPS_SMALL if small else STEPS
        steps = default if options.work_limit is None else options.work_limit
        met, items = trace_front(
            np.ascontiguousarray(searched[layer][:, on]),
            counts[on, layer] / max(counts[on, layer].sum(), 1e-300),
            previous[layer],
            start[layer],
            rules,
            int(limit[layer]),
            steps if on.size else 0,
            frame.seed(layer),
            # Over several windows, the smooth surrogate searches large layers better and fits
            # unseen windows more.
            small or on.size == 1,
        )
        tokens = np.ascontiguousarray(loads.tokens[:, layer])
        return measure_front(tokens, mean[:, layer], met, items, problem.goal.maximised), items

    found = frame.each(trace, loads.layers)
    costs = np.full((loads.layers, int(limit.max()) + 1), np.inf)
    for layer, (measured, _) in enumerate(found):
        costs[layer, : measured.size] = measured
    return Fronts(costs, [items for _, items in found])
