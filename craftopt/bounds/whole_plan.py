"""The bound on whole plans: per-layer bounds for every number of replicas, and the knapsack."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from craftopt.bounds.activated import least_activated
from craftopt.bounds.cardinality import cardinality_bound_of_nodes
from craftopt.bounds.common_copies import Companions, common_copies_curve
from craftopt.bounds.companions import best_companions
from craftopt.bounds.copies import max_copy_load_of_groups
from craftopt.bounds.costs import window_cost
from craftopt.bounds.groups import mean_loads
from craftopt.jit import njit
from craftopt.knapsack import allocate
from craftopt.loads import FloatArray, IntArray
from craftopt.problem import Problem

# Bounds the cost of layers with exactly these numbers of replicas: float64 of the same shape.
Sharpen = Callable[[IntArray, IntArray], FloatArray]
# As `map`, here or in an executor.
Each = Callable[..., Iterable[Any]]

# Windows x layers x experts up to which companions are looked for: beyond, it takes half a minute.
MOST_TOKENS = 2_000_000
# Halvings of the range of prices for a replica.
_HALVINGS = 50


@lru_cache(maxsize=8)
def whole_plan_bound(problem: Problem, *, companions: bool = True) -> float:
    """Bound the objective of every plan that keeps the problem's rules.

    Mean load and heaviest copy for every number of replicas; under even dispatch, with several
    windows for the copies that they share, and where slots are even, their companions and the
    cardinality bound wherever it could change the outcome. With a price of traffic, one node per
    token beside.

    Parameters
    ----------
    problem : Problem
    companions : bool
        Without them it takes a quarter of the time; they close a percent or two of the gap.

    Returns
    -------
    float
        A lower bound on relative time or on activated copies, or an upper bound on mean
        balancedness.

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
    if not problem.goal.even_dispatch:
        return float(least_activated(problem).mean())
    if problem.dispatch != "even":  # a copy may serve more of its expert than another
        return _value_of(problem, least_cost(problem, cost_table(problem), None))
    return _bound(problem, shared_cost_table(problem), companions=companions)


def bounds_by_budget(
    problem: Problem, budgets: Sequence[int], *, companions: bool = True
) -> list[float]:
    """Bound as `whole_plan_bound` does with several numbers of replicas per layer, even dispatch.

    What windows share is bounded once for all of them; ``problem.slots`` is not ``uniform``.
    """
    parts = [problem.replace(replicas_per_layer=replicas) for replicas in budgets]
    table = shared_cost_table(max(parts, key=lambda part: part.replicas))
    return [
        _bound(part, table[:, : part.replica_choices.size], companions=companions) for part in parts
    ]


def _bound(problem: Problem, table: FloatArray, *, companions: bool) -> float:
    """Bound the objective by a `shared_cost_table`, companions and cardinality."""

    def sharpen(layers: IntArray, replicas: IntArray) -> FloatArray:
        return even_costs(problem, layers, replicas)

    if companions:
        table = with_companions(problem, table)
    return _value_of(problem, least_cost(problem, table, sharpen if problem.even_slots else None))


def _value_of(problem: Problem, cost: float) -> float:
    """Turn a bound on the cost of loads into one on the objective; a token visits a node."""
    scale = problem.goal.cost(1.0, problem.loads, problem.gpus)
    value = cost / scale if scale else 1.0  # without tokens
    if problem.goal.maximised:
        return min(1.0, value)
    return max(1.0, value) + (problem.traffic_price if scale else 0.0)


def cost_table(problem: Problem) -> FloatArray:
    """Bound every layer's cost for all `Problem.replica_choices`, by mean load and heaviest copy.

    Returns
    -------
    float64 [layers, choices]
        In the unit of `layer_costs`.
    """
    choices = problem.replica_choices
    if problem.slots == "uniform":
        return _cost_curves_of(problem, choices)
    curves = layer_costs(problem)
    return np.pad(curves, ((0, 0), (0, choices.size - curves.shape[1])), mode="edge")


def shared_cost_table(problem: Problem, each: Each = map) -> FloatArray:
    """Bound as `cost_table` does and, with several windows, by the copies that they share.

    ``each`` maps over layers, as `map` does.
    """
    table = cost_table(problem)
    if problem.loads.windows > 1:
        for costs, shared in zip(
            table, each(partial(_shared, problem), range(len(table))), strict=True
        ):
            np.maximum(costs, shared, out=costs)
    return table


def _shared(problem: Problem, layer: int) -> FloatArray:
    return shared_costs(problem, layer, problem.replica_choices)


def with_companions(problem: Problem, table: FloatArray, each: Each = map) -> FloatArray:
    """Raise a `shared_cost_table` by companions, at the prices of `replica_prices`."""
    if problem.loads.windows == 1 or not seeks_companions(problem):
        return table
    table, choices = table.copy(), problem.replica_choices
    prices = replica_prices(problem, table, each)
    for costs, price, start in zip(
        table, prices, each(partial(_start, problem), range(len(table)), prices), strict=True
    ):
        np.maximum(costs, start - price * choices, out=costs)
    return table


def _start(problem: Problem, layer: int, price: float) -> float:
    return companions_of(problem, layer, int(problem.replica_choices[0]), price)[1]


def seeks_companions(problem: Problem) -> bool:
    """Say whether companions are looked for: slots are even, and tokens few enough."""
    return problem.even_slots and problem.loads.tokens.size <= MOST_TOKENS


def replica_prices(problem: Problem, table: FloatArray, each: Each = map) -> list[float]:
    """Find what a replica is worth to every layer under the budget, given bounds on their costs.

    The same in all layers, unless all have the same number (``uniform``): then what one more
    saves the layer.
    """
    choices, layers = problem.replica_choices, problem.loads.layers
    if problem.slots == "uniform":
        replicas = int(choices[table.sum(axis=0).argmin()])
        return list(each(partial(saving, problem), range(layers), [replicas] * layers))
    low, high = 0.0, float(table[:, 0].sum() - table[:, -1].sum())
    for _ in range(_HALVINGS):
        price = 0.5 * (low + high)
        wanted = choices[(table + price * choices).argmin(axis=1)].sum()
        low, high = (price, high) if wanted > problem.replicas else (low, price)
    return [high] * layers


def saving(problem: Problem, layer: int, replicas: int) -> float:
    """Say what one more replica saves a layer, by the copies that its windows share."""
    now, then = shared_costs(problem, layer, np.array([replicas, replicas + 1]))
    return float(now - then)


def companions_of(
    problem: Problem, layer: int, replicas: int, price: float
) -> tuple[Companions | None, float]:
    """Choose prices for companions in a layer that has as many replicas or more.

    Returns
    -------
    companions : Companions, optional
        None where none are looked for, or a GPU may host a copy alone.
    start : float
        The layer costs at least ``start - price x replicas``, in the unit of `layer_costs`; minus
        infinity without companions.
    """
    tokens, most = problem.loads.tokens[:, layer], problem.copies_limit
    beside = (problem.loads.experts + replicas) // problem.gpus - 1
    if beside < 1 or not seeks_companions(problem):
        return None, -np.inf
    return best_companions(tokens, problem.gpus, most, beside, price, problem.objective)


def shared_costs(problem: Problem, layer: int, choices: IntArray) -> FloatArray:
    """Bound a layer's cost for numbers of replicas, ascending, by the copies that windows share.

    Returns
    -------
    float64 [choices]
        In the unit of `layer_costs`; see `common_copies_curve`.
    """
    tokens = problem.loads.tokens[:, layer]
    return common_copies_curve(
        tokens, problem.gpus, problem.copies_limit, choices, problem.objective
    )


def least_cost(problem: Problem, table: FloatArray, sharpen: Sharpen | None) -> float:
    """Bound the summed cost of all layers over all ways to spend the budget.

    Sharper bounds are asked for only where the least cost picks a layer's number of replicas,
    until it picks none that is not sharpened: higher bounds elsewhere would not change it.

    Parameters
    ----------
    problem : Problem
    table : float64 [layers, choices]
        Bounds for all `Problem.replica_choices`.
    sharpen : callable, optional
        ``sharpen(layers, replicas)`` bounds the cost of some layers with exactly these numbers
        of replicas, in the unit of the table.
    """
    replicas = problem.replica_choices
    table = table.copy()
    layers = np.arange(problem.loads.layers)
    sharp = np.zeros(table.shape, dtype=np.bool_)
    while True:
        if problem.slots == "uniform":  # the same slots in all layers
            sums = table.sum(axis=0)
            picked = np.full(layers.size, sums.argmin())
            cost = float(sums.min())
        else:
            chosen, cost = allocate(table, problem.replicas, problem.replica_step)
            picked = chosen // problem.replica_step
        dull = layers[~sharp[layers, picked]]
        if sharpen is None or not dull.size:
            return cost
        at = picked[dull]
        table[dull, at] = np.maximum(table[dull, at], sharpen(dull, replicas[at]))
        sharp[dull, at] = True


def even_costs(problem: Problem, layers: IntArray, replicas: IntArray) -> FloatArray:
    """Bound the cost of layers that have even slots and exactly these numbers of replicas.

    By mean load, heaviest copy and cardinality, window by window.

    Parameters
    ----------
    problem : Problem
    layers, replicas : int64 [chosen]

    Returns
    -------
    float64 [chosen]
        In the unit of `layer_costs`.
    """
    tokens = np.array(problem.loads.tokens[:, layers].transpose(1, 0, 2), order="C")
    floors = mean_loads(problem).T[layers].copy()
    return _even_costs(
        tokens,
        floors,
        problem.group_of,
        problem.group_nodes,
        replicas,
        problem.gpus,
        problem.copies_limit,
        not problem.goal.maximised,
    )


def layer_costs(problem: Problem) -> FloatArray:
    """Bound every layer's part of the objective for every number of replicas, as a cost.

    By mean load (of a node, under groups) and heaviest copy, which take microseconds and hold for
    *at most* that number of replicas, under every slot rule.

    Returns
    -------
    float64 [layers, choices]
        Column k is for ``k * problem.replica_step`` replicas, up to
        `Problem.layer_replicas_limit` (``uniform``: one column, for that limit): the sum over
        windows of a lower bound on the largest GPU load (objective time), or minus the sum of
        an upper bound on balancedness. Never rising in k; columns after the last one where any
        layer still gains are left out.
    """
    limit = problem.layer_replicas_limit
    if problem.slots == "uniform":
        return _cost_curves_of(problem, np.array([limit]))
    curves = _cost_curves_of(problem, np.arange(0, limit + 1, problem.replica_step))
    last = int((curves > curves[:, -1:]).sum(axis=1).max())
    return curves[:, : last + 1]


def _cost_curves_of(problem: Problem, choices: IntArray) -> FloatArray:
    problem.goal.require_even_dispatch("a bound by loads")
    # Copied even where it is in order, so that kernels are compiled for one kind of array.
    tokens = np.array(problem.loads.tokens.transpose(1, 0, 2), order="C")
    floors = mean_loads(problem).T.copy()
    return _cost_curves(
        tokens,
        floors,
        problem.group_of,
        problem.group_nodes,
        problem.gpus,
        problem.copies_limit,
        choices,
        not problem.goal.maximised,
    )


@njit()
def _cost_curves(
    tokens: FloatArray,
    floors: FloatArray,
    group_of: IntArray,
    nodes: int,
    gpus: int,
    copies_limit: int,
    choices: IntArray,
    time: bool,
) -> FloatArray:
    layers, windows, _ = tokens.shape
    curves = np.zeros((layers, choices.size))
    for layer in range(layers):
        for window in range(windows):
            mean, floor = tokens[layer, window].sum() / gpus, floors[layer, window]
            least = max_copy_load_of_groups(
                tokens[layer, window], group_of, nodes, choices[-1], copies_limit, floor
            )
            for k in range(choices.size):
                load = max(floor, least[choices[k]])
                curves[layer, k] += window_cost(load, mean, time)
    return curves


@njit()
def _even_costs(
    tokens: FloatArray,
    floors: FloatArray,
    group_of: IntArray,
    nodes: int,
    replicas: IntArray,
    gpus: int,
    copies_limit: int,
    time: bool,
) -> FloatArray:
    layers, windows, _ = tokens.shape
    costs = np.zeros(layers)
    for layer in range(layers):
        for window in range(windows):
            weight = tokens[layer, window]
            mean, floor = weight.sum() / gpus, floors[layer, window]
            least = max_copy_load_of_groups(
                weight, group_of, nodes, replicas[layer], copies_limit, floor
            )[-1]
            load = cardinality_bound_of_nodes(
                weight, group_of, nodes, replicas[layer], gpus, copies_limit, max(floor, least)
            )[0]
            costs[layer] += window_cost(load, mean, time)
    return costs
