"""Maximum closure by maximum flow: levels that windows stay below, and the steps that they need.

Kept by hand: scipy's maximum flow counts in 32 bits, and OR-Tools is optional.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from craftopt.jit import njit
from craftopt.loads import BoolArray, IntArray

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


def cut(
    levels: Levels, part: IntArray, bought: IntArray, most: IntArray, charges: IntArray
) -> tuple[int, IntArray, BoolArray]:
    """Find the minimum cut of some levels, where every step beyond those bought is charged for.

    Parameters
    ----------
    levels : Levels
    part : int64 [part]
        The levels that are cut, ascending.
    bought, most : int64 [experts]
        Copies that every expert has, and may have.
    charges : int64 [steps]
        For the steps from those bought to the most, expert by expert.

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
    flow, left, depth = _max_flow(head, onward, end, capacity, priced, charges)
    return flow, left[needs ^ 1], depth >= 0


@njit()
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


@njit()
def _max_flow(
    head: IntArray,
    onward: IntArray,
    end: IntArray,
    capacity: IntArray,
    priced: IntArray,
    charges: IntArray,
) -> tuple[int, IntArray, IntArray]:
    """Send the most from source to sink (Dinic's algorithm), with ``charges`` on the priced arcs.

    Returns
    -------
    flow : int
    left : int64 [arcs]
        Capacity that is not used.
    depth : int64 [nodes]
        Arcs from the source to a node, -1 where none with capacity left lead there.
    """
    left = capacity.copy()
    for step in range(priced.size):  # a loop: assignment by index takes seconds to compile
        left[priced[step]] = charges[step]
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
            if 0 <= depth[1] <= depth[node]:  # on no shortest path
                break
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
