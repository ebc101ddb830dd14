"""The cardinality bound: heavy copies need companions, and light copies are few.

Where every GPU hosts at least ``q = (E + r) // G`` copies of a layer (slot rules ``even`` and
``uniform``), a heavy copy shares its GPU with q - 1 others. A price per copy says what that
costs: if all GPU loads are below T, then for every price from 0 to T/q

    sum_e max(0, t_e - c_e (T - (q - 1) price))  <=  sum_e max(0, price c_e - t_e),

with equality only where both sides are 0. The left side is what heavy experts lack beside
companions that weigh the price, the right side is what lighter companions save. T is impossible
if one price breaks this for all numbers of copies c_e > t_e/T that sum to E + r. The least such
sum has a closed form: the extra copies beyond the least c_e go where they help most.

The proof is in ``formulations/README.md``; it holds with duplicates too. Without replicas this is
scheduling on parallel machines with a cardinality constraint.

References
----------
Dell'Amico, Iori, Martello, Monaci: Lower bounds and heuristic algorithms for the k_i-partitioning
problem, European Journal of Operational Research 171 (2006).
"""

from __future__ import annotations

import numpy as np

from craftopt.heap import sort
from craftopt.jit import inner, njit
from craftopt.loads import FloatArray, IntArray

# Prices tried first, spread over the light experts; then all between the best one's neighbours.
_COARSE = 24
# Margin by which a load must be refuted, relative, per copy and GPU: more than rounding adds to
# the sums, so that rounding proves nothing.
_ROUNDING = 3e-15
# The impossible and the possible load are brought this close, relative.
_CLOSE = 1e-11


@njit()
def cardinality_bound(
    tokens: FloatArray, replicas: int, gpus: int, copies_limit: int, floor: float
) -> tuple[float, float]:
    """Raise a lower bound on the largest GPU load of a layer in one window.

    Parameters
    ----------
    tokens : float64 [experts]
    replicas : int
        Extra copies that the layer has: exactly that many, spread evenly over the GPUs.
    gpus, copies_limit : int
    floor : float
        A known lower bound, at least the mean load and the heaviest copy's
        (`max_copy_load`).

    Returns
    -------
    load : float
        No placement has all GPU loads below it; ``floor`` where the bound proves no more.
    price : float
        The price that proves it, 0 where none does.

    Examples
    --------
    Two experts of 60 cannot both be alone, as three GPUs host seven experts:

    >>> import numpy as np
    >>> from craftopt.bounds import cardinality_bound
    >>> load, price = cardinality_bound(np.array([60.0, 60, 20, 20, 20, 20, 20]), 0, 3, 3, 220 / 3)
    >>> round(load, 6), price
    (80.0, 20.0)
    """
    copies = tokens.size + replicas
    slots = copies // gpus
    if slots < 2 or floor <= 0.0:
        return floor, 0.0
    margin = _ROUNDING * copies * gpus
    gains = np.empty(copies * slots + tokens.size)
    prices, count = np.empty(tokens.size), 0
    for expert in range(tokens.size):
        prices[expert] = tokens[expert] / max(1.0, np.ceil(tokens[expert] / floor))
        count += 1 if prices[expert] <= floor / slots else 0
    sort(prices)
    load, price = floor, 0.0
    stride = max(1, count // _COARSE)
    first, last = 0, count
    for pace in (stride, 1):
        most, best = -np.inf, int(first)
        for index in range(first, last, pace):
            if index > first and prices[index] == prices[index - pace]:
                continue
            trial = prices[index]
            least = load * (1.0 + 2.0 * margin)
            excess = _excess(tokens, copies, copies_limit, slots, least, trial, margin, gains)
            if excess > 0.0:
                load = _raise(tokens, copies, copies_limit, slots, least, trial, margin, gains)
                price = trial
                most, best = 0.0, index
            elif excess > most:
                most, best = excess, index
        first, last = max(0, best - stride + 1), min(count, best + stride)
        if stride == 1:
            break
    return load, price


@njit()
def cardinality_bound_of_nodes(
    tokens: FloatArray,
    group_of: IntArray,
    nodes: int,
    replicas: int,
    gpus: int,
    copies_limit: int,
    floor: float,
) -> tuple[float, float, int]:
    """Raise a bound as `cardinality_bound` and, where each node hosts one group, node by node.

    Parameters
    ----------
    group_of : int64 [experts]
    nodes : int
        1 without groups.

    Returns
    -------
    load, price : float
    group : int
        The group whose node proves it, -1 where all GPUs do.
    """
    load, price = cardinality_bound(tokens, replicas, gpus, copies_limit, floor)
    proof = -1
    if nodes > 1 and nodes == group_of.max() + 1:
        for group in range(nodes):
            raised, by = cardinality_bound(
                tokens[group_of == group], replicas // nodes, gpus // nodes, copies_limit, load
            )
            if raised > load:
                load, price, proof = raised, by, group
    return load, price, proof


@inner()
def _raise(
    tokens: FloatArray,
    copies: int,
    copies_limit: int,
    slots: int,
    load: float,
    price: float,
    margin: float,
    gains: FloatArray,
) -> float:
    """Find the greatest load that a price refutes, from one that it does refute."""
    low, step = load, 1e-3 * load
    while _excess(tokens, copies, copies_limit, slots, low + step, price, margin, gains) > 0.0:
        low += step
        step *= 2.0
    high = low + step
    while high - low > _CLOSE * low:
        middle = 0.5 * (low + high)
        if _excess(tokens, copies, copies_limit, slots, middle, price, margin, gains) > 0.0:
            low = middle
        else:
            high = middle
    return low


@inner()
def _excess(
    tokens: FloatArray,
    copies: int,
    copies_limit: int,
    slots: int,
    load: float,
    price: float,
    margin: float,
    gains: FloatArray,
) -> float:
    """Compute the least excess of what heavy experts lack over what light ones save.

    Over all numbers of copies; above 0 it refutes the load. ``gains`` is room to work in.
    """
    room = load - (slots - 1) * price
    spare = copies
    excess = -margin * load
    count = 0
    for token in tokens:
        needed = max(1.0, np.ceil(token / load * (1.0 - 1e-12)))
        if needed > copies_limit:
            return np.inf
        spare -= int(needed)
        lack = token - needed * room
        if lack <= 0.0:
            excess -= max(0.0, price * needed - token)
            continue
        excess += lack
        # What further copies of a heavy expert gain, while that is more than the price.
        while lack > price and needed < copies_limit and count < gains.size:
            needed += 1.0
            gains[count] = min(lack, room) + max(0.0, price * needed - token)
            lack -= room
            count += 1
    if spare < 0:
        return np.inf
    if excess <= 0.0:
        return excess - spare * price
    if count > spare:
        sort(gains[:count])
    first, gained = max(0, count - spare), 0.0
    for place in range(first, count):
        gained += gains[place]
    return excess - gained - (spare - (count - first)) * price
