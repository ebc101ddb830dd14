"""The bound by mean loads: of all GPUs, and under expert groups of the node that carries most."""

from __future__ import annotations

import numpy as np

from craftopt.loads import FloatArray
from craftopt.problem import Problem


def mean_loads(problem: Problem) -> FloatArray:
    """Bound the largest GPU load of every window and layer by means, float64 [windows, layers].

    The mean over all GPUs. Under expert groups every node hosts k whole groups: of the j N + 1
    heaviest, one of the N nodes hosts j + 1 or more, for j = 0..k-1, and with them k - j - 1
    others. Its GPUs carry their share of that or more. With j = 0 this is the heaviest group and
    the lightest others.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.bounds import mean_loads
    >>> loads = co.Loads([[60, 20, 10, 10]])
    >>> mean_loads(co.Problem(loads, gpus=4, nodes=2))
    array([[25.]])
    >>> mean_loads(co.Problem(loads, gpus=4, nodes=2, expert_groups=2))
    array([[40.]])
    """
    tokens = problem.loads.tokens
    mean: FloatArray = tokens.sum(axis=2) / problem.gpus
    nodes, each = problem.group_nodes, problem.groups // problem.group_nodes
    if nodes == 1:
        return mean
    members = problem.group_of == np.arange(problem.groups)[:, np.newaxis]
    sums = np.stack([tokens[:, :, of].sum(axis=2) for of in members], axis=2)
    sums = -np.sort(-sums, axis=2)  # heaviest first
    for j in range(each):
        least = sums[:, :, j * (nodes - 1) : j * nodes + 1].sum(axis=2)
        least += sums[:, :, problem.groups - (each - 1 - j) :].sum(axis=2)
        np.maximum(mean, least / problem.gpus_per_node, out=mean)
    return mean
