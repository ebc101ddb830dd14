"""The bound on whole plans: per-layer bounds for every number of replicas, and the knapsack."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit

from craftopt.bounds.copies import max_copy_load
from craftopt.knapsack import allocate
from craftopt.loads import FloatArray, IntArray
from craftopt.problem import Problem


@lru_cache(maxsize=8)
def whole_plan_bound(problem: Problem) -> float:
    """Bound the objective of every plan that keeps the problem's rules.

    Returns
    -------
    float
        A lower bound on relative time, or an upper bound on mean balancedness.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.bounds import whole_plan_bound
    >>> loads = co.Loads([[600, 560, 120, 120, 20, 10, 10, 10]])
    >>> round(whole_plan_bound(co.Problem(loads, gpus=8, replicas=8)), 4)
    1.0
    >>> round(whole_plan_bound(co.Problem(loads, gpus=8, replicas=1)), 4)
    3.0897
    """
    costs = layer_costs(problem)
    if problem.slots == "uniform":
        cost = float(costs[:, -1].sum())
    else:
        cost = allocate(costs, problem.replicas, problem.replica_step)[1]
    if problem.objective == "balancedness":
        return min(1.0, -cost / (problem.loads.windows * problem.loads.layers))
    mean = float(problem.loads.tokens.sum()) / problem.gpus
    return max(1.0, cost / mean) if mean > 0 else 1.0


def layer_costs(problem: Problem) -> FloatArray:
    """Bound every layer's part of the objective for every number of replicas, as a cost.

    Returns
    -------
    float64 [layers, choices]
        Column k is for ``k * problem.replica_step`` replicas, up to
        `Problem.layer_replicas_limit`: the sum over windows of a lower bound on the largest GPU
        load (objective time), or minus the sum of an upper bound on balancedness. Never rising
        in k; columns after the last one where any layer still gains are left out.
    """
    limit = problem.layer_replicas_limit
    if problem.slots == "uniform":
        choices = np.array([limit])
    else:
        choices = np.arange(0, limit + 1, problem.replica_step)
    tokens = np.ascontiguousarray(problem.loads.tokens.transpose(1, 0, 2))
    curves = _cost_curves(
        tokens, problem.gpus, problem.copies_limit, choices, problem.objective == "time"
    )
    last = int((curves > curves[:, -1:]).sum(axis=1).max())
    return curves[:, : last + 1]


@njit(cache=True)
def _cost_curves(
    tokens: FloatArray, gpus: int, copies_limit: int, choices: IntArray, time: bool
) -> FloatArray:
    layers, windows, _ = tokens.shape
    curves = np.zeros((layers, choices.size))
    for layer in range(layers):
        for window in range(windows):
            mean = tokens[layer, window].sum() / gpus
            least = max_copy_load(tokens[layer, window], choices[-1], copies_limit, mean)
            for k in range(choices.size):
                load = max(mean, least[choices[k]])
                if time:
                    curves[layer, k] += load
                else:
                    curves[layer, k] -= mean / load if load > 0 else 1.0
    return curves
