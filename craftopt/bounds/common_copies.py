"""Common copies: a lower bound on the windowed cost of a layer, all windows sharing its copies.

Given the copies c of a layer's experts, window w has a GPU that carries ``max_e t[w,e]/c_e`` or
more, and the mean m_w or more. So the layer costs at least ``min_c sum_w max(m_w, max_e
t[w,e]/c_e)`` over all c with ``sum_e (c_e - 1) <= r``. Charge every replica a price instead of
limiting their number (Lagrangian relaxation), and the minimum over c is a minimum cut, that of a
maximum closure:

- buy steps: step k of expert e (its k-th copy) costs the price and needs step k-1;
- the levels ``t[w,e]/k`` of window w, ascending, cut the range above m_w into intervals; to stay
  out of the interval below level ``t[w,e]/k`` a window needs step k+1 of e, and whatever the
  levels above need.

The minimum cut is found by maximum flow, and the flow is the proof: what flows from window w
into step k of expert e is its **credit**. No credit of a window is spent beyond the level that
it is for, so the credits of the steps that were not bought never exceed what the window
costs above its mean; and no chain of steps takes in more than its price. Hence for every r, not
only for the one that the price was made for, ``cost(r) >= base + credits - price * r``.
Prices for all r are found from the cuts, as the convex envelope of cost over r, exactly.

**Companions.** Where every GPU hosts at least s other copies beside a hot one, that one's GPU
carries more than it. A window names a price v for a companion; those that weigh less than v are
few, and what they lack is D = sum_f (v - t[w,f])+. So the levels rise, to ``t[w,e]/k + s v - D/k``,
and what further copies of f take off its weight as a companion, ``(v - max(t[w,f], v)/k)+`` with k
of them, its steps are to pay for: that comes off what its chain may take in.

The proofs in full: ``formulations/README.md``, "Common copies" and "Companions at a price".
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from craftopt.bounds.closure import Levels, cut
from craftopt.jit import njit
from craftopt.loads import FloatArray, IntArray
from craftopt.objective import OBJECTIVES, ObjectiveName

# Costs are counted in whole units of 2^-SCALE_BITS of their size. Floating point finds them to
# about 2^-53 of it per expert that is summed: for 4096 experts, within half a unit.
SCALE_BITS = 40


class Companions(NamedTuple):
    """What a copy shares its GPU with: so many others at least, at a price in every window.

    ``prices``: float64 [windows], in tokens; at 0 nothing is said.
    """

    beside: int
    prices: FloatArray


def common_copies_curve(
    tokens: FloatArray,
    gpus: int,
    copies_limit: int,
    choices: IntArray,
    objective: ObjectiveName = "time",
) -> FloatArray:
    """Bound what one layer costs, for every number of replicas.

    Parameters
    ----------
    tokens : float64 [windows, experts]
    gpus : int
    copies_limit : int
        Most copies of one expert.
    choices : int64 [choices]
        Numbers of replicas, ascending.
    objective : {"time", "balancedness"}

    Returns
    -------
    float64 [choices]
        A lower bound on the sum over windows of the largest GPU load, in tokens, or on minus
        the sum over windows of balancedness: the convex envelope over r of the best that
        any choice of copies could do, if no two copies had to share a GPU.

    References
    ----------
    Picard: Maximal closure of a graph and applications to combinatorial problems (1976);
    Eisner, Severance: Mathematical techniques for efficient record segmentation (1976).

    Examples
    --------
    Each window could halve its own hot expert; together they have one replica.

    >>> import numpy as np
    >>> from craftopt.bounds.common_copies import common_copies_curve
    >>> tokens = np.array([[8.0, 1.0, 1.0], [1.0, 8.0, 1.0]])
    >>> common_copies_curve(tokens, 2, 2, np.arange(3)).round(6)
    array([16., 13., 10.])
    """
    base, scale, levels = _levels(tokens, gpus, copies_limit, objective, None)
    above = np.zeros(len(choices))
    for price, flow in zip(*_envelope(levels, choices), strict=True):
        np.maximum(above, float(flow) - float(price) * choices, out=above)
    curve: FloatArray = base + above / scale
    return curve


def common_copies_witness(
    tokens: FloatArray,
    gpus: int,
    copies_limit: int,
    price: float,
    objective: ObjectiveName = "time",
    companions: Companions | None = None,
) -> dict[str, Any]:
    """Prove ``cost(r) >= base + (credits - price * r)`` for every r, in whole numbers.

    Parameters
    ----------
    tokens, gpus, copies_limit, objective
        As in `common_copies_curve`.
    price : float
        What a replica is charged, at least 0, in the unit of the cost. The proof is tight
        where the curve of `common_copies_curve` falls by that much per replica: for a whole
        plan, charge every layer what the last replica of the budget saves.
    companions : Companions, optional
        Of a layer whose GPUs host that many copies beside every one, at least.

    Returns
    -------
    dict
        ``{"kind": "credits", "price": int, "scale": "p/q", "windows": {"w": [[expert, step,
        amount], ...]}}``, price and amounts in units of 1/scale; with companions also
        ``"companions": {"w": "p/q"}``, their prices in tokens, where above 0.
    """
    found = Credits(tokens, gpus, copies_limit, objective, companions, price)
    window, expert, step, _ = found.levels
    amount = found.amounts
    credits = np.column_stack((expert, step, amount))
    witness = {
        "kind": "credits",
        "price": found.charge,
        "scale": str(Fraction(found.scale)),
        "windows": {
            str(w): credits[(window == w) & (amount > 0)].tolist()
            for w in np.unique(window[amount > 0])
        },
    }
    if companions is not None:
        priced = [(str(w), str(Fraction(v))) for w, v in enumerate(companions.prices.tolist()) if v]
        witness["companions"] = dict(priced)
    return witness


class Credits:
    """The best credits at a price of a replica, and the line that they prove.

    ``start``, a float, is the cost that they prove without replicas; ``counts`` is int64
    [experts], copies that attain it if companions weigh no more than their prices say.
    """

    def __init__(
        self,
        tokens: FloatArray,
        gpus: int,
        copies_limit: int,
        objective: ObjectiveName,
        companions: Companions | None,
        price: float,
    ) -> None:
        base, self.scale, levels = _levels(tokens, gpus, copies_limit, objective, companions)
        self.levels, total = levels, int(levels.rise.sum())
        self.charge = charge = int(min(max(0.0, price * self.scale), float(total)))
        every, first = np.arange(levels.rise.size), np.ones(tokens.shape[1], dtype=np.int64)
        most = _buy(first, levels, every)
        paid = np.zeros((first.size, copies_limit), dtype=np.int64)
        if companions is not None and companions.prices.any():
            weight = per_load(tokens, gpus, copies_limit, objective) * self.scale
            # Copies: the kernel is compiled once, for arrays that can be written.
            paid = _rebates(np.array(tokens), np.array(companions.prices), weight, copies_limit)
        # The last step is beyond the limit: what needs it cannot be had.
        charges = np.full((first.size, copies_limit), total)
        charges[:, :-1] = np.maximum(charge - np.diff(paid), 0)
        charges = charges[np.arange(2, copies_limit + 2) <= most[:, np.newaxis]]
        _, self.amounts, reached = cut(levels, every, first, most, charges)
        taken = np.zeros((first.size, copies_limit + 1), dtype=np.int64)
        np.add.at(taken, (levels.expert, levels.step - 1), self.amounts)
        over = taken[:, :-1].cumsum(axis=1) + paid - charge * np.arange(copies_limit)
        spare = int(over.max(axis=1).sum())
        self.start = base + (int(self.amounts.sum()) - spare) / self.scale
        self.counts = _buy(first, levels, every[reached[reached.size - every.size :]])


def _levels(
    tokens: FloatArray,
    gpus: int,
    copies_limit: int,
    objective: ObjectiveName,
    companions: Companions | None,
) -> tuple[float, float, Levels]:
    """List every window's levels: the loads that it only stays below with one more step.

    Returns
    -------
    base : float
        What the windows cost at least, whatever the copies.
    scale : float
        A power of two.
    levels : Levels
        Rises in units of 1/scale.
    """
    goal = OBJECTIVES[objective]
    goal.require_even_dispatch("the bound by common copies")
    means, floors = floors_of(tokens, gpus, copies_limit)
    window, expert = np.nonzero(np.full(tokens.shape, True))
    shared, lacking = np.zeros(means.size), np.zeros(means.size)
    if companions is not None:
        prices = companions.prices
        shared = companions.beside * prices
        lacking = np.maximum(prices[:, np.newaxis] - tokens, 0.0).sum(axis=1)
    found = []
    for copies in range(1, copies_limit + 1):
        count, of, lack = tokens[window, expert], shared[window], lacking[window]
        # With companions it falls or rises all along, so that an end is the least.
        load = np.maximum(count / copies, of + np.minimum(count - lack, (count - lack) / copies))
        above = load > floors[window]
        window, expert = window[above], expert[above]
        found.append((np.full(window.size, copies + 1), expert, load[above], window))
        if not window.size:
            break
    step, expert, load, window = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.lexsort((step, expert, load, window))
    step, expert, load, window = step[order], expert[order], load[order], window[order]

    least = goal.costs(floors, means)
    cost = goal.costs(load, means[window])
    last = np.append(window[1:] != window[:-1], True)[: window.size]  # of its window
    size = np.cumsum(np.maximum(abs(least[window]), abs(cost))[last])
    # A power of two, so that scaling rounds nothing.
    scale = 2.0 ** (SCALE_BITS - math.ceil(math.log2(size[-1]))) if size.any() else 1.0
    # One unit less than computed is less than the true cost, whatever was rounded.
    upto = np.maximum(((cost - least[window]) * scale).astype(np.int64) - 1, 0)
    rise = np.diff(upto, prepend=0)
    rise[1:][last[:-1]] = upto[1:][last[:-1]]
    return float(np.cumsum(least)[-1]), scale, Levels(window, expert, step, rise)


def _envelope(levels: Levels, choices: IntArray) -> tuple[list[int], list[int]]:
    """Find prices and flows: the lines ``flow - price * r`` that support cost over replicas.

    The line through two vertices (replicas and cost of two minimum cuts) is proven by the flow at
    its price, or that minimum cut is a new vertex below it. Cuts are nested: what is bought at a
    price is bought at every lower one. So between two vertices only their difference is cut.
    """
    total, every = int(levels.rise.sum()), np.arange(levels.rise.size)
    first = np.ones(levels.expert.max(initial=0) + 1, dtype=np.int64)
    most = _buy(first, levels, every)
    prices, flows = [total, 0], [total, 0]
    asked = choices.tolist()
    # Neighbouring vertices yet to be joined: replicas, cost and copies of both, and the levels
    # that only the right one stays below.
    todo = [(0, total, first, int((most - first).sum()), 0, most, every)]
    # The first cut is the largest; at a lower price less of it is left where few are asked for.
    early = asked[-1] < todo[0][3]
    while todo:
        left, left_cost, bought, right, right_cost, most, part = todo.pop()
        if bisect_right(asked, left) >= bisect_left(asked, right) or left_cost <= right_cost:
            continue
        price = (left_cost - right_cost) // (right - left)
        if early:
            price //= 2
        charges = np.full((most - bought).sum(), price)
        flow, _, reached = cut(levels, part, bought, most, charges)
        flow += right_cost + price * left
        prices.append(price)
        flows.append(flow)
        if flow >= left_cost + price * left:
            continue
        kept = reached[reached.size - part.size :]
        more = _buy(bought, levels, part[kept])
        middle = left + int((more - bought).sum())
        cost = flow - price * middle
        if early and not left < middle < right:
            todo.append((left, left_cost, bought, right, right_cost, most, part))
        early = False
        if left < middle < right:
            todo.append((middle, cost, more, right, right_cost, most, part[~kept]))
            todo.append((left, left_cost, bought, middle, cost, more, part[kept]))
    return prices, flows


def _buy(bought: IntArray, levels: Levels, part: IntArray) -> IntArray:
    """Return the copies of every expert that it takes to stay below some levels, too."""
    more = bought.copy()
    np.maximum.at(more, levels.expert[part], levels.step[part])
    return more


def floors_of(tokens: FloatArray, gpus: int, copies_limit: int) -> tuple[FloatArray, FloatArray]:
    """Compute mean loads and what every window's largest load is at least, [windows] each."""
    # cumsum adds in order, unlike sum.
    means = np.cumsum(tokens, axis=1)[:, -1] / gpus
    return means, np.maximum(means, tokens.max(axis=1) / copies_limit)


def per_load(
    tokens: FloatArray, gpus: int, copies_limit: int, objective: ObjectiveName
) -> FloatArray:
    """Bound what a token more on the fullest GPU adds to the cost of a window, [windows]."""
    means, floors = floors_of(tokens, gpus, copies_limit)
    if objective == "time":
        return np.ones(means.size)
    return np.divide(means, floors**2, out=np.zeros(means.size), where=floors > 0)


@njit()
def _rebates(
    tokens: FloatArray, prices: FloatArray, weight: FloatArray, copies_limit: int
) -> IntArray:
    """Sum what further copies take off the weight of companions, int64 [experts, copies - 1].

    Rounded up, by a unit more than computed.
    """
    windows, experts = tokens.shape
    paid = np.zeros((experts, copies_limit), dtype=np.int64)
    for expert in range(experts):
        for copies in range(2, copies_limit + 1):
            total = 0.0
            for w in range(windows):
                price = prices[w]
                total += weight[w] * max(0.0, price - max(tokens[w, expert], price) / copies)
            paid[expert, copies - 1] = int(np.ceil(total)) + 1
    return paid
