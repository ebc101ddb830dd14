"""A previous plan as a start: which of its layers the problem's rules allow."""

from __future__ import annotations

import numpy as np

from craftopt.loads import BoolArray, IntArray
from craftopt.problem import Problem


def usable_replicas(problem: Problem, spread: int) -> IntArray:
    """Find the replicas of every layer of the previous plan; -1 where it breaks a rule.

    Parameters
    ----------
    problem : Problem
    spread : int
        Most by which the copies of a layer may differ between GPUs.

    Returns
    -------
    int64 [layers]
    """
    layers, experts = problem.loads.layers, problem.loads.experts
    if problem.previous is None:
        return np.full(layers, -1, dtype=np.int64)
    group_of, nodes = problem.group_of, problem.group_nodes
    copies = problem.previous_copies
    counts, slots = copies.sum(axis=2, dtype=np.int64), copies.sum(axis=1, dtype=np.int64)
    by_node: IntArray = slots.reshape(layers, nodes, -1)
    replicas = counts.sum(axis=1) - experts
    usable: BoolArray = np.ones(layers, dtype=np.bool_)
    usable &= copies.max(axis=(1, 2)) <= 1
    usable &= counts.min(axis=1) >= 1
    usable &= counts.max(axis=1) <= problem.copies_limit
    totals = by_node.sum(axis=2)
    usable &= totals.max(axis=1) == totals.min(axis=1)
    usable &= (by_node.max(axis=2) - by_node.min(axis=2)).max(axis=1) <= spread
    usable &= replicas <= problem.layer_replicas_limit
    if problem.slots == "uniform":
        usable &= slots.max(axis=1) == slots.min(axis=1)
    if nodes > 1:
        present: BoolArray = copies.reshape(layers, experts, nodes, -1).max(axis=3) > 0
        on = np.stack(
            [present[:, group_of == g].any(axis=1) for g in range(problem.groups)], axis=1
        )
        of_node = on.sum(axis=1)
        usable &= (on.sum(axis=2) == 1).all(axis=1)
        usable &= of_node.max(axis=1) == of_node.min(axis=1)
    return np.where(usable, replicas, -1)
