"""The multiple-choice knapsack: one choice of replicas per layer, within a budget.

Kept by hand: dynamic programming is exact and takes milliseconds, solvers ten times as long.
"""

from __future__ import annotations

import numpy as np

from craftopt.errors import InputError
from craftopt.jit import njit
from craftopt.loads import FloatArray, IntArray


def allocate(costs: FloatArray, budget: int, step: int = 1) -> tuple[IntArray, float]:
    """Choose the replicas of every layer that minimise the summed cost, exactly.

    (min,+) dynamic programming over layers: ``V[l][b] = min_k V[l-1][b-k] + costs[l, k]``.
    To maximise benefits, pass them negated.

    Parameters
    ----------
    costs : float64 [layers, choices]
        Cost of layer l with ``step * k`` replicas; ``inf`` forbids a choice.
    budget : int
        Most replicas over all layers.
    step : int
        Replicas that one choice is worth.

    Returns
    -------
    replicas : int64 [layers]
        Replicas of every layer; the fewest among equally good choices of a layer.
    cost : float
        Their summed cost; ``inf`` (and zeros) where no allocation exists.

    Raises
    ------
    InputError
        Costs that are no table, hold NaN or -inf, or a budget below 0.

    References
    ----------
    Kellerer, Pferschy, Pisinger: Knapsack Problems (2004), section 11.5.

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt.knapsack import allocate
    >>> replicas, cost = allocate(np.array([[9.0, 5.0, 1.0], [9.0, 3.0, 2.0]]), budget=3)
    >>> replicas.tolist(), cost
    ([2, 1], 4.0)
    """
    table = np.ascontiguousarray(costs, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise InputError(f"costs has shape {table.shape}; pass [layers, choices], none of them 0")
    if np.isnan(table).any() or np.isneginf(table).any():
        raise InputError("costs holds NaN or -inf; pass numbers, or inf to forbid a choice")
    if budget < 0 or step < 1:
        raise InputError(f"budget={budget}, step={step}; pass at least 0 and 1")
    units = min(budget // step, table.shape[0] * (table.shape[1] - 1))
    # Up to its cheapest choice: more replicas than that never help a layer.
    useful = table.argmin(axis=1) + 1
    choices, cost = _solve(table, useful, units)
    return choices * step, float(cost)


def interpolate(grid: IntArray, costs: FloatArray, step: int = 1) -> FloatArray:
    """Fill a table between the numbers of replicas that were measured.

    Straight in the square root of the replicas: between two points every further replica gains
    less, so that a knapsack does not end on the points themselves.

    Parameters
    ----------
    grid : int64 [points]
        Increasing, from 0.
    costs : float64 [..., points]
    step : int
        Replicas that one choice is worth; the grid is of its multiples.

    Returns
    -------
    float64 [..., choices]
        Costs of 0, step, 2 step, ..., ``grid[-1]`` replicas.

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt.knapsack import interpolate
    >>> interpolate(np.array([0, 1, 4]), np.array([9.0, 4.0, 1.0])).round(2).tolist()
    [9.0, 4.0, 2.76, 1.8, 1.0]
    """
    every = np.arange(0, grid[-1] + 1, step)
    left = np.searchsorted(grid, every, side="right") - 1
    right = np.minimum(left + 1, grid.size - 1)
    start = np.sqrt(grid)[left]
    part = (np.sqrt(every) - start) / np.where(left < right, np.sqrt(grid)[right] - start, 1.0)
    table: FloatArray = costs[..., left] * (1.0 - part) + costs[..., right] * part
    return table


@njit()
def _solve(costs: FloatArray, counts: IntArray, units: int) -> tuple[IntArray, float]:
    layers = costs.shape[0]
    best = np.zeros(units + 1)
    fresh = np.empty(units + 1)
    choice = np.zeros((layers, units + 1), dtype=np.int32)
    reach = 0  # beyond it, the layers so far cannot spend more: values stay as at reach
    for layer in range(layers):
        before = reach
        reach = min(units, reach + counts[layer] - 1)
        for spent in range(reach + 1):
            fresh[spent] = np.inf
        for k in range(min(counts[layer], reach + 1)):
            cost = costs[layer, k]
            if cost == np.inf:
                continue
            for spent in range(k, reach + 1):
                value = best[min(spent - k, before)] + cost
                if value < fresh[spent]:
                    fresh[spent] = value
                    choice[layer, spent] = k
        best, fresh = fresh, best
    replicas = np.zeros(layers, dtype=np.int64)
    cost = best[reach]
    if cost == np.inf:
        return replicas, cost
    left = reach
    # Walk back, layer by layer, with the reach that each layer had.
    reaches = np.empty(layers + 1, dtype=np.int64)
    reaches[0] = 0
    for layer in range(layers):
        reaches[layer + 1] = min(units, reaches[layer] + counts[layer] - 1)
    for layer in range(layers - 1, -1, -1):
        replicas[layer] = choice[layer, left]
        left = min(left - replicas[layer], reaches[layer])
    return replicas, cost
