"""The heaviest copy: a lower bound on the largest GPU load.

With r replicas a layer has at most E + r copies, so in one window its largest GPU load is at
least the mean load and at least ``T*(r) = min{T : sum_e max(1, ceil(t_e/T)) <= E + r}`` (every
copy of expert e carries t_e/c_e, and some expert's copies carry T* or more). Greedy min-max
replication, always copying the expert with the heaviest copies, attains T* for every r in one
pass. The sum over windows bounds time: each window is free to choose its own copies.
"""

from __future__ import annotations

import numpy as np

from craftopt.heap import TOP, sift_down
from craftopt.jit import njit
from craftopt.loads import FloatArray, IntArray


@njit()
def max_copy_load(
    tokens: FloatArray, replicas: int, copies_limit: int, enough: float = 0.0
) -> FloatArray:
    """Compute T*(r), the least possible heaviest copy, for r = 0..replicas.

    Parameters
    ----------
    tokens : float64 [experts]
    replicas : int
    copies_limit : int
        Most copies of one expert.
    enough : float
        Once T* is at most that, it is not followed further: the curve stays where it is.

    Returns
    -------
    float64 [replicas + 1]
    """
    experts = tokens.size
    curve = np.empty(replicas + 1)
    # A binary heap of experts, the one with the heaviest copies on top.
    heap = np.empty(experts, dtype=np.int64)
    load = np.empty(experts)
    for expert in range(experts):
        heap[expert] = expert
        load[expert] = tokens[expert]
    for place in range(experts // 2 - 1, -1, -1):
        sift_down(heap, load, place)
    count = np.ones(experts, dtype=np.int64)
    curve[0] = load[heap[0]]
    for replica in range(1, replicas + 1):
        top = heap[0]
        if count[top] == copies_limit or load[top] <= enough:
            for rest in range(replica, replicas + 1):
                curve[rest] = load[top]
            break
        count[top] += 1
        load[top] = tokens[top] / count[top]
        sift_down(heap, load, TOP)
        curve[replica] = load[heap[0]]
    return curve


@njit()
def max_copy_load_of_groups(
    tokens: FloatArray,
    group_of: IntArray,
    nodes: int,
    replicas: int,
    copies_limit: int,
    enough: float = 0.0,
) -> FloatArray:
    """Compute T*(r) as `max_copy_load` where nodes share whole groups, and have as many copies.

    No group has more than its node's ``r // nodes`` replicas.

    Parameters
    ----------
    tokens : float64 [experts]
    group_of : int64 [experts]
    nodes : int
        1 without groups.
    replicas, copies_limit, enough
        As of `max_copy_load`.

    Returns
    -------
    float64 [replicas + 1]
    """
    curve = max_copy_load(tokens, replicas, copies_limit, enough)
    if nodes == 1:
        return curve
    for group in range(group_of.max() + 1):
        of_group = tokens[group_of == group]
        part = max_copy_load(of_group, replicas // nodes, copies_limit, enough)
        for r in range(replicas + 1):
            curve[r] = max(curve[r], part[r // nodes])
    return curve
