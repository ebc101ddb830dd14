"""The bound on decode: activated copies of the fullest GPU, whatever the placement."""

from __future__ import annotations

import numpy as np

from craftopt.loads import IntArray
from craftopt.problem import Problem


def least_activated(problem: Problem) -> IntArray:
    """Bound the most activated copies on a GPU in every window and layer, int64 [windows, layers].

    Every active expert is served by a copy at least, so some GPU reads ceil(active / GPUs) or
    more; under expert groups the same holds for a group and the GPUs of its node.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.bounds import least_activated
    >>> problem = co.Problem(co.Loads([[3, 0, 2, 1]]), gpus=2, objective="activated")
    >>> least_activated(problem)
    array([[2]])
    """
    active = problem.loads.tokens > 0
    least: IntArray = -(-active.sum(axis=2) // problem.gpus)
    if problem.expert_groups is not None:
        for group in range(problem.groups):
            inside = active[:, :, problem.expert_groups == group].sum(axis=2)
            np.maximum(least, -(-inside // problem.gpus_per_node), out=least)
    return least
