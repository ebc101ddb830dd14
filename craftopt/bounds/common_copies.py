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

from fractions import Fraction
from typing import Any

import numpy as np
from numba import njit

from craftopt.bounds.costs import window_cost
from craftopt.loads import BoolArray, FloatArray, IntArray
from craftopt.objective import OBJECTIVES, ObjectiveName

# Costs are counted in whole units of 2^-SCALE_BITS of their size. Floating point finds them to
# about 2^-53 of it per expert that is summed: for 4096 experts, within half a unit.
SCALE_BITS = 40
_UNBOUNDED = 1 << 60


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
    base, scale, network = _levels_of(tokens, gpus, copies_limit, objective)
    above = np.zeros(len(choices))
    for price, flow in zip(*_envelope(*network, choices), strict=True):
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
    _, scale, network = _levels_of(tokens, gpus, copies_limit, objective)
    window, expert, step, rise = network
    charge = int(min(max(0.0, price * scale), float(rise.sum())))
    amount = _max_flow(*_graph(*network, np.ones(tokens.shape[1], dtype=np.int64)), charge)[1]
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


def _levels_of(
    tokens: FloatArray, gpus: int, copies_limit: int, objective: ObjectiveName
) -> tuple[float, float, tuple[IntArray, IntArray, IntArray, IntArray]]:
    goal = OBJECTIVES[objective]
    goal.require_even_dispatch("the bound by common copies")
    # A copy, so that kernels are compiled for one kind of array.
    owned = np.array(tokens, dtype=np.float64, order="C")
    return _levels(owned, gpus, copies_limit, not goal.maximised)


@njit(cache=True)
def _levels(
    tokens: FloatArray, gpus: int, copies_limit: int, time: bool
) -> tuple[float, float, tuple[IntArray, IntArray, IntArray, IntArray]]:
    """List every window's levels: the loads that it only stays below with one more step.

    Returns
    -------
    base : float
        What the windows cost at least, whatever the copies.
    scale : float
        A power of two.
    levels : window, expert, step, rise, each int64 [levels]
        By window, ascending. To stay below its level takes ``step`` copies of the expert, and
        what the levels above need; ``rise`` is the cost between the level before and this one,
        in units of 1/scale.
    """
    windows, experts = tokens.shape
    means = np.empty(windows)
    floors = np.empty(windows)
    base = 0.0
    count = 0
    for w in range(windows):
        means[w] = tokens[w].sum() / gpus
        floors[w] = max(means[w], tokens[w].max() / copies_limit)
        base += window_cost(floors[w], means[w], time)
        for e in range(experts):
            copies = 1
            while tokens[w, e] / copies > floors[w]:
                copies += 1
            count += copies - 1
    window, expert = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    step, rise = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    load, above = np.empty(count), np.empty(count)
    at = 0
    size = 0.0
    for w in range(windows):
        start = at
        for e in range(experts):
            copies = 1
            while tokens[w, e] / copies > floors[w]:
                load[at] = tokens[w, e] / copies
                expert[at] = e
                copies += 1
                step[at] = copies
                at += 1
        order = start + np.argsort(load[start:at], kind="mergesort")
        window[start:at] = w
        load[start:at], expert[start:at], step[start:at] = load[order], expert[order], step[order]
        least = window_cost(floors[w], means[w], time)
        for level in range(start, at):
            above[level] = max(0.0, window_cost(load[level], means[w], time) - least)
        if at > start:
            size += max(abs(least), abs(window_cost(load[at - 1], means[w], time)))
    # A power of two, so that scaling rounds nothing.
    scale = 2.0 ** (SCALE_BITS - np.ceil(np.log2(size))) if size > 0 else 1.0
    before = 0
    for level in range(count):
        if level == 0 or window[level] != window[level - 1]:
            before = 0
        # One unit less than computed is less than the true cost, whatever was rounded.
        upto = max(before, int(above[level] * scale) - 1)
        rise[level] = upto - before
        before = upto
    return base, scale, (window, expert, step, rise)


@njit(cache=True)
def _envelope(
    window: IntArray, expert: IntArray, step: IntArray, rise: IntArray, choices: IntArray
) -> tuple[IntArray, IntArray]:
    """Find prices and flows: the lines ``flow - price * r`` that support cost over replicas.

    The line through two vertices (replicas and cost of two minimum cuts) is proven by the flow at
    its price, or that minimum cut is a new vertex below it. Cuts are nested: what is bought at a
    price is bought at every lower one. So between two vertices only their difference is cut.
    """
    total = rise.sum()
    bought = np.ones(expert.max() + 1 if expert.size else 1, dtype=np.int64)
    most = bought.copy()
    for level in range(expert.size):
        most[expert[level]] = max(most[expert[level]], step[level])
    prices = [total, np.int64(0)]
    flows = [total, np.int64(0)]
    # Neighbouring vertices yet to be joined: replicas and cost of both, what the left one buys,
    # and the levels that only the right one stays below.
    steps = (most - bought).sum()
    todo: list[tuple[Any, ...]]
    todo = [(np.int64(0), total, steps, np.int64(0), bought, np.arange(expert.size))]
    while len(todo) > 0:
        left, left_cost, right, right_cost, bought, part = todo.pop()
        inside = np.searchsorted(choices, left, side="right") < np.searchsorted(choices, right)
        if not inside or left_cost <= right_cost:
            continue
        price = (left_cost - right_cost) // (right - left)
        graph = _graph(window[part], expert[part], step[part], rise[part], bought)
        cut, _, reached = _max_flow(*graph, price)
        flow = cut + right_cost + price * left
        prices.append(price)
        flows.append(flow)
        if flow >= left_cost + price * left:
            continue
        kept = reached[reached.size - part.size :]
        more = bought.copy()
        for level in part[kept]:
            more[expert[level]] = max(more[expert[level]], step[level])
        middle = left + (more - bought).sum()
        cost = flow - price * middle
        if left < middle < right:
            todo.append((middle, cost, right, right_cost, more, part[~kept]))
            todo.append((left, left_cost, middle, cost, bought, part[kept]))
    return np.array(prices), np.array(flows)


@njit(cache=True)
def _graph(
    window: IntArray, expert: IntArray, step: IntArray, rise: IntArray, bought: IntArray
) -> tuple[IntArray, IntArray, IntArray, IntArray, IntArray, IntArray]:
    """Build the network: source 0, sink 1, the steps beyond those bought, the levels.

    Returns
    -------
    head, onward, end, capacity : int64
        Linked lists of arcs: ``head[node]`` is a node's first arc, ``onward[arc]`` its next (or
        -1), ``end[arc]`` where it leads. Arc ``a ^ 1`` is the way back of arc a.
    priced : int64 [steps]
        Arcs from steps to the sink: their capacity is the price.
    needs : int64 [levels]
        Arcs from levels to the steps that they need; closed where those are bought.
    """
    levels = expert.size
    most = bought.copy()
    for level in range(levels):
        most[expert[level]] = max(most[expert[level]], step[level])
    steps = (most - bought).sum()
    nodes = 2 + steps + levels
    head = np.full(nodes, -1)
    arcs = 2 * (2 * steps + 3 * levels)
    onward, end = np.empty(arcs, dtype=np.int64), np.empty(arcs, dtype=np.int64)
    capacity = np.zeros(arcs, dtype=np.int64)
    priced, needs = np.empty(steps, dtype=np.int64), np.empty(levels, dtype=np.int64)
    offset = np.empty(bought.size, dtype=np.int64)  # step s of expert e is node offset[e] + s
    used = 0
    node = 2
    for e in range(bought.size):
        offset[e] = node - (bought[e] + 1)
        for s in range(bought[e] + 1, most[e] + 1):
            priced[node - 2] = used
            used = _join(head, onward, end, used, node, 1)
            if s > bought[e] + 1:
                capacity[used] = _UNBOUNDED
                used = _join(head, onward, end, used, node, node - 1)
            node += 1
    for level in range(levels):
        capacity[used] = rise[level]
        used = _join(head, onward, end, used, 0, node)
        if level + 1 < levels and window[level + 1] == window[level]:
            capacity[used] = _UNBOUNDED
            used = _join(head, onward, end, used, node, node + 1)
        needs[level] = used
        e = expert[level]
        if step[level] > bought[e]:
            capacity[used] = _UNBOUNDED
            used = _join(head, onward, end, used, node, offset[e] + step[level])
        else:
            used = _join(head, onward, end, used, node, 0)
        node += 1
    return head, onward, end, capacity, priced, needs


@njit(cache=True)
def _join(
    head: IntArray, onward: IntArray, end: IntArray, used: int, source: int, target: int
) -> int:
    """Add an arc and its way back; return the number of arcs."""
    end[used], end[used + 1] = target, source
    onward[used], onward[used + 1] = head[source], head[target]
    head[source], head[target] = used, used + 1
    return used + 2


@njit(cache=True)
def _max_flow(
    head: IntArray,
    onward: IntArray,
    end: IntArray,
    capacity: IntArray,
    priced: IntArray,
    needs: IntArray,
    price: int,
) -> tuple[int, IntArray, BoolArray]:
    """Send the most from source to sink (Dinic's algorithm), with ``price`` on the priced arcs.

    Returns
    -------
    flow : int
    credits : int64 [levels]
        What flows from each level into its step.
    reached : bool [nodes]
        The source's side of the minimum cut that buys the fewest steps.
    """
    left = capacity.copy()
    left[priced] = price
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
            return flow, left[needs ^ 1], depth >= 0
        current = head.copy()
        node = length = 0
        while True:
            if node == 1:
                push = left[path[:length]].min()
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
