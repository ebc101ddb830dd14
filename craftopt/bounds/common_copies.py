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
The proof in full: ``formulations/README.md``, "Common copies".

Maximum flow is kept by hand: scipy's counts in 32 bits, and OR-Tools is optional.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from craftopt.loads import BoolArray, FloatArray, IntArray
from craftopt.objective import OBJECTIVES, ObjectiveName

# Costs are counted in whole units of 2^-SCALE_BITS of their size. Floating point finds them to
# about 2^-53 of it per expert that is summed: for 4096 experts, within half a unit.
SCALE_BITS = 40
_UNBOUNDED = 1 << 60


class Levels(NamedTuple):
    """Loads that windows only stay below with one more copy of some expert, [levels] each.

    By window, ascending. To stay below its level takes ``step`` copies of the expert, and what
    the levels above need; ``rise`` is the cost between the level before and this one.
    """

    window: IntArray
    expert: IntArray
    step: IntArray
    rise: IntArray


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
    base, scale, levels = _levels(tokens, gpus, copies_limit, objective)
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

    Returns
    -------
    dict
        ``{"kind": "credits", "price": int, "scale": "p/q", "windows": {"w": [[expert, step,
        amount], ...]}}``, price and amounts in units of 1/scale.
    """
    _, scale, levels = _levels(tokens, gpus, copies_limit, objective)
    window, expert, step, rise = levels
    charge = int(min(max(0.0, price * scale), float(rise.sum())))
    every, one = np.arange(rise.size), np.ones(tokens.shape[1], dtype=np.int64)
    amount = _cut(levels, every, one, _buy(one, levels, every), charge)[1]
    credits = np.column_stack((expert, step, amount))
    return {
        "kind": "credits",
        "price": charge,
        "scale": str(Fraction(scale)),
        "windows": {
            str(w): credits[(window == w) & (amount > 0)].tolist()
            for w in np.unique(window[amount > 0])
        },
    }


def _levels(
    tokens: FloatArray, gpus: int, copies_limit: int, objective: ObjectiveName
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
    # cumsum adds in order, unlike sum.
    means = np.cumsum(tokens, axis=1)[:, -1] / gpus
    floors = np.maximum(means, tokens.max(axis=1) / copies_limit)
    window, expert = np.nonzero(tokens > floors[:, np.newaxis])
    found = []
    for copies in range(1, copies_limit + 1):
        load = tokens[window, expert] / copies
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
    while todo:
        left, left_cost, bought, right, right_cost, most, part = todo.pop()
        if bisect_right(asked, left) >= bisect_left(asked, right) or left_cost <= right_cost:
            continue
        price = (left_cost - right_cost) // (right - left)
        cut, _, reached = _cut(levels, part, bought, most, price)
        flow = cut + right_cost + price * left
        prices.append(price)
        flows.append(flow)
        if flow >= left_cost + price * left:
            continue
        kept = reached[reached.size - part.size :]
        more = _buy(bought, levels, part[kept])
        middle = left + int((more - bought).sum())
        cost = flow - price * middle
        if left < middle < right:
            todo.append((middle, cost, more, right, right_cost, most, part[~kept]))
            todo.append((left, left_cost, bought, middle, cost, more, part[kept]))
    return prices, flows


def _buy(bought: IntArray, levels: Levels, part: IntArray) -> IntArray:
    """Return the copies of every expert that it takes to stay below some levels, too."""
    more = bought.copy()
    np.maximum.at(more, levels.expert[part], levels.step[part])
    return more


def _cut(
    levels: Levels, part: IntArray, bought: IntArray, most: IntArray, price: int
) -> tuple[int, IntArray, BoolArray]:
    """Find the minimum cut of some levels, where every step beyond those bought has a price.

    Returns
    -------
    flow : int
        Its capacity.
    credits : int64 [part]
        What flows from each level into its step.
    reached : bool [nodes]
        The source's side of the cut that buys the fewest steps; levels come last.
    """
    head, onward, end, capacity, priced, needs = _graph(levels, part, bought, most)
    flow, left, depth = _max_flow(head, onward, end, capacity, priced, price)
    return flow, left[needs ^ 1], depth >= 0


@njit(cache=True)
def _graph(
    levels: Levels, part: IntArray, bought: IntArray, most: IntArray
) -> tuple[IntArray, IntArray, IntArray, IntArray, IntArray, IntArray]:
    """Build the network: source 0, sink 1, the steps from those bought to the most, some levels.

    Returns
    -------
    head, onward, end, capacity : int64
        Linked lists of arcs: ``head[node]`` is a node's first arc, ``onward[arc]`` its next (or
        -1), ``end[arc]`` where it leads. Arc ``a ^ 1`` is the way back of arc a.
    priced : int64 [steps]
        Arcs from steps to the sink: their capacity is the price.
    needs : int64 [part]
        Arcs from levels to the steps that they need; closed where those are bought.
    """
    window, expert, step, rise = levels
    steps = 0
    for e in range(bought.size):
        steps += most[e] - bought[e]
    nodes = 2 + steps + part.size
    arcs = 2 * (2 * steps + 3 * part.size)
    head, onward = np.full(nodes, -1), np.empty(arcs, dtype=np.int64)
    end, capacity = np.empty(arcs, dtype=np.int64), np.zeros(arcs, dtype=np.int64)
    priced, needs = np.empty(steps, dtype=np.int64), np.empty(part.size, dtype=np.int64)
    offset = np.empty(bought.size, dtype=np.int64)  # step s of expert e is node offset[e] + s
    used = 0
    node = 2
    for e in range(bought.size):
        offset[e] = node - (bought[e] + 1)
        for s in range(bought[e] + 1, most[e] + 1):
            priced[node - 2] = used
            end[used], end[used + 1] = 1, node
            used += 2
            if s > bought[e] + 1:
                capacity[used] = _UNBOUNDED
                end[used], end[used + 1] = node - 1, node
                used += 2
            node += 1
    for k in range(part.size):
        level = part[k]
        capacity[used] = rise[level]
        end[used], end[used + 1] = node, 0
        used += 2
        if k + 1 < part.size and window[part[k + 1]] == window[level]:
            capacity[used] = _UNBOUNDED
            end[used], end[used + 1] = node + 1, node
            used += 2
        needs[k] = used
        e = expert[level]
        end[used], end[used + 1] = 0, node
        if step[level] > bought[e]:
            capacity[used] = _UNBOUNDED
            end[used] = offset[e] + step[level]
        used += 2
        node += 1
    for arc in range(used):
        source = end[arc ^ 1]
        onward[arc] = head[source]
        head[source] = arc
    return head, onward, end, capacity, priced, needs


@njit(cache=True)
def _max_flow(
    head: IntArray,
    onward: IntArray,
    end: IntArray,
    capacity: IntArray,
    priced: IntArray,
    price: int,
) -> tuple[int, IntArray, IntArray]:
    """Send the most from source to sink (Dinic's algorithm), with ``price`` on the priced arcs.

    Returns
    -------
    flow : int
    left : int64 [arcs]
        Capacity that is not used.
    depth : int64 [nodes]
        Arcs from the source to a node, -1 where none with capacity left lead there.
    """
    left = capacity.copy()
    for arc in priced:
        left[arc] = price
    depth = np.empty(head.size, dtype=np.int64)
    queue = np.empty(head.size, dtype=np.int64)
    path = np.empty(head.size, dtype=np.int64)
    flow = 0
    while True:
        depth[:] = -1
        depth[0] = 0
        queue[0] = 0
        waiting = 1
        for place in range(head.size):
            if place == waiting:
                break
            node = queue[place]
            arc = head[node]
            while arc >= 0:
                if left[arc] > 0 and depth[end[arc]] < 0:
                    depth[end[arc]] = depth[node] + 1
                    queue[waiting] = end[arc]
                    waiting += 1
                arc = onward[arc]
        if depth[1] < 0:
            return flow, left, depth
        current = head.copy()
        node = length = 0
        while True:
            if node == 1:
                push = left[path[0]]
                for place in range(1, length):
                    push = min(push, left[path[place]])
                flow += push
                for place in range(length - 1, -1, -1):
                    left[path[place]] -= push
                    left[path[place] ^ 1] += push
                    if left[path[place]] == 0:
                        length = place
                node = end[path[length] ^ 1]
            arc = current[node]
            while arc >= 0 and (left[arc] == 0 or depth[end[arc]] != depth[node] + 1):
                arc = onward[arc]
            current[node] = arc
            if arc >= 0:
                path[length] = arc
                length += 1
                node = end[arc]
            elif node == 0:
                break
            else:
                depth[node] = -1
                length -= 1
                node = end[path[length] ^ 1]
