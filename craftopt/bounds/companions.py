"""Prices for companions: what every window offers for a copy beside a hot one, by ascent.

With given copies of all experts, what windows cost by their prices is known window by window, so
each can choose its best price among its loads. The copies, in turn, are those of the minimum cut at
the prices (`craftopt.bounds.common_copies`). Prices that are best for the mean of all copies found
so far are tried until they prove no more: cutting planes, every choice of copies being one.
"""

from __future__ import annotations

import numpy as np

from craftopt.bounds.common_copies import Companions, Credits, floors_of, per_load
from craftopt.bounds.costs import window_cost
from craftopt.jit import njit
from craftopt.loads import FloatArray, IntArray
from craftopt.objective import ObjectiveName

# Choices of copies that prices are made for, at most, and rounds without a gain until the end.
ROUNDS, PATIENCE = 12, 3
# Prices are among the lightest loads of a window: so many per companion.
LIGHTEST = 8


def best_companions(
    tokens: FloatArray,
    gpus: int,
    copies_limit: int,
    count: int,
    price: float,
    objective: ObjectiveName = "time",
) -> tuple[Companions, float]:
    """Choose prices for companions that prove much, at a price for a replica.

    Parameters
    ----------
    tokens : float64 [windows, experts]
    gpus, copies_limit : int
    count : int
        Others beside a copy on its GPU, at least.
    price : float
        What a replica is charged, in the unit of the cost.
    objective : {"time", "balancedness"}

    Returns
    -------
    companions : Companions
    start : float
        The layer costs at least ``start - price x replicas``.

    Examples
    --------
    Two hot experts, and four others of 3 and more beside them.

    >>> import numpy as np
    >>> from craftopt.bounds.companions import best_companions
    >>> tokens = np.array([[30.0, 30, 3, 3, 4, 4], [9, 30, 5, 3, 4, 4]])
    >>> companions, start = best_companions(tokens, 3, 1, 1, 0.0)
    >>> companions.prices, round(start, 6)
    (array([3., 3.]), 66.0)
    """
    windows, experts = tokens.shape

    def credits(companions: Companions) -> Credits:
        return Credits(tokens, gpus, copies_limit, objective, companions, price)

    best = Companions(count, np.zeros(windows))
    found = credits(best)
    start, counts = found.start, found.counts
    if count < 1:
        return best, start
    most = min(experts, LIGHTEST * count)
    offers = np.zeros((windows, most + 1))
    offers[:, 1:] = np.sort(np.partition(tokens, most - 1, axis=1)[:, :most], axis=1)
    means, floors = floors_of(tokens, gpus, copies_limit)
    weight = per_load(tokens, gpus, copies_limit, objective)
    # Copies: the kernel is compiled once, for arrays that can be written.
    tokens, means, floors, weight = (np.array(given) for given in (tokens, means, floors, weight))
    costs, idle = np.zeros(offers.shape), 0
    for _ in range(ROUNDS):
        costs += _costs(tokens, means, floors, weight, counts, count, offers, objective == "time")
        chosen = costs.argmax(axis=1)
        trial = Companions(count, offers[np.arange(windows), chosen])
        found = credits(trial)
        counts, idle = found.counts, idle + 1
        if found.start > start:
            best, start, idle = trial, found.start, 0
        if idle == PATIENCE:
            break
    return best, start


@njit()
def _costs(
    tokens: FloatArray,
    means: FloatArray,
    floors: FloatArray,
    weight: FloatArray,
    counts: IntArray,
    count: int,
    offers: FloatArray,
    time: bool,
) -> FloatArray:
    """Compute what windows cost with given copies, at every price that they could offer."""
    windows, experts = tokens.shape
    costs = np.empty(offers.shape)
    for w in range(windows):
        for k in range(offers.shape[1]):
            price = offers[w, k]
            lacking = 0.0
            for f in range(experts):
                lacking += max(0.0, price - tokens[w, f])
            load, rebate = floors[w], 0.0
            for e in range(experts):
                token, copies = tokens[w, e], counts[e]
                rest = token - lacking
                load = max(load, token / copies, count * price + min(rest, rest / copies))
                rebate += max(0.0, price - max(token, price) / copies)
            costs[w, k] = window_cost(load, means[w], time) - weight[w] * rebate
    return costs
