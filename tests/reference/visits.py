"""Node visits of tiny layers: the fewest, by trying all partitions."""

from __future__ import annotations

import math
from itertools import combinations, combinations_with_replacement

import numpy as np

from craftopt.bounds.traffic import count_visits, token_sets


def tiny_layer(rng, experts, k):
    """Draw tokens whose experts hang together a little, some of them with fewer than k."""
    tokens = int(rng.integers(3, 25))
    popularity = rng.normal(size=experts) * rng.uniform(0, 1.5)
    tastes = rng.normal(size=(tokens, 2)) @ rng.normal(size=(2, experts)) * rng.uniform(0, 2)
    ids = np.argsort(popularity + tastes + rng.gumbel(size=(tokens, experts)))[:, -k:]
    if rng.random() < 0.3:
        ids[rng.random(ids.shape) < 0.2] = -1
        ids[:, 0] = np.abs(ids[:, 0])
    return token_sets(ids, experts)


def partitions(experts, nodes, sizes):
    """Yield the node of every expert, once for each way to tell experts apart by node."""
    if not experts:
        if nodes == 0:
            yield {}
        return
    if nodes == 0:
        return
    first, rest = experts[0], experts[1:]
    for size in range(sizes[0], sizes[1] + 1):
        for others in combinations(rest, size - 1):
            left = [e for e in rest if e not in others]
            for nodes_of in partitions(left, nodes - 1, sizes):
                yield nodes_of | dict.fromkeys((first, *others), nodes - 1)


def fewest_visits(sets, nodes, sizes):
    """Try all partitions."""
    experts = list(range(sets.experts))
    return min(
        count_visits(sets, [nodes_of[e] for e in experts])
        for nodes_of in partitions(experts, nodes, sizes)
    )


def fewest_with_replicas(sets, nodes, size, replicas):
    """Try all placements: the fewest visits under even dispatch, and under the best for each."""
    experts = sets.experts
    of_node = np.array(
        [
            np.bincount(held, minlength=experts)
            for slots in range(size + 1)
            for held in combinations_with_replacement(range(experts), slots)
        ]
    )
    has = sets.has()
    groups = [group for n in range(1, nodes + 1) for group in combinations(range(nodes), n)]
    even = best = math.inf
    for chosen in combinations_with_replacement(range(len(of_node)), nodes):
        copies = of_node[list(chosen)]
        total = copies.sum(axis=0)
        if total.min() == 0 or total.sum() != experts + replicas:
            continue
        missed = np.where(has[:, np.newaxis], 1 - copies / total, 1.0).prod(axis=2)
        even = min(even, float(sets.counts @ (1 - missed).sum(axis=1)))
        least = np.full(len(has), nodes)
        for group in reversed(groups):
            served = (copies[list(group)] > 0).any(axis=0)
            least[~(has & ~served).any(axis=1)] = len(group)
        best = min(best, int(sets.counts @ least))
    return even, best
