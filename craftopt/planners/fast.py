"""The method ``fast``: the search that suits the problem."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from craftopt.evaluation import Evaluation, evaluate_for
from craftopt.plan import Plan
from craftopt.planners.decode import plan_decode
from craftopt.planners.joint import plan_joint
from craftopt.planners.nominal import plan_nominal
from craftopt.planners.windowed import plan_windowed
from craftopt.portable import power
from craftopt.problem import Problem
from craftopt.recordings import few_windows
from craftopt.result import Options, Outcome
from craftopt.rules import violations

# Prices of traffic that are tried for the least of it within a slowdown, ascending, and how many
# are tried between one that is low enough and one that is too high.
SLOWDOWN_PRICES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
HALVINGS = 2
# Prices at which layers of these plans are combined.
MIXING_PRICES = [1e-3 * power(10.0, step / 40) for step in range(161)]


def plan_fast(problem: Problem, options: Options) -> Outcome:
    """Plan for every window, or for every batch of decode.

    One window is the nominal problem, which `nominal` solves better, without limits. Elsewhere
    ``work_limit`` counts annealing steps of a layer; where ``time_limit`` strikes, layers not yet
    reached keep their start. A previous plan is a start for the layers that it suits, and never
    better than the result. Nor is the plan for balance alone where traffic has a price, or where
    the dispatch is not even.
    """
    if not problem.goal.even_dispatch:
        return plan_decode(problem, options)
    if problem.max_slowdown is not None:
        return _plan_within(problem, options)
    if not problem.balance_alone:
        deadline = options.deadline()
        alone = problem.variant(dispatch="even", traffic=None)
        balanced = plan_fast(alone, _share(options, deadline, 0.0, 0.5))
        assert balanced.plan is not None
        found = plan_joint(problem, _share(options, deadline, 0.5, 0.5), balanced.plan)
        return replace(found, limit=found.limit or balanced.limit)
    if problem.loads.windows == 1:
        found = plan_nominal(problem, Options(workers=options.workers))
        assert found.plan is not None
        found = replace(found, plan=replace(found.plan, method="fast"))
    else:
        found = plan_windowed(problem, options)
    notes = (problem.free_traffic, few_windows(problem.loads), found.message)
    return replace(found, message="; ".join(filter(None, notes)))


def _plan_within(problem: Problem, options: Options) -> Outcome:
    """Find the plan with the fewest critical nodes within a slowdown against balance alone.

    Prices are raised until the plan is too slow, and then halved in between.
    """
    assert problem.max_slowdown is not None
    free = problem.variant(max_slowdown=None)
    if problem.free_traffic:
        return replace(plan_fast(free, options), message=problem.free_traffic)
    deadline, parts = options.deadline(), len(SLOWDOWN_PRICES) + HALVINGS + 2
    even = plan_fast(free.variant(dispatch="even"), _share(options, deadline, 0.0, 1 / parts))
    assert even.plan is not None
    balanced, limit = even.plan, even.limit
    plans: list[Plan] = []
    scores: list[Evaluation] = []

    def add(price: float | None) -> Evaluation:
        """Plan at a price, and score the plan."""
        nonlocal limit
        priced = free.variant(traffic=price)
        part = _share(options, deadline, (len(plans) + 1) / parts, 1 / parts)
        found = even if priced.balance_alone else plan_joint(priced, part, balanced)
        assert found.plan is not None
        limit = found.limit or limit
        plans.append(found.plan)
        scores.append(evaluate_for(found.plan, problem, traffic=True))
        return scores[-1]

    slowest = add(None).relative_time * (1.0 + problem.max_slowdown)
    low, high, prices = 0.0, math.inf, iter(SLOWDOWN_PRICES)
    for _ in range(len(SLOWDOWN_PRICES) + HALVINGS):
        price = next(prices, None) if math.isinf(high) else (low + high) / 2
        if price is None:  # traffic counts so much already that nothing is too slow
            break
        if add(price).relative_time > slowest:
            high = price
        else:
            low = price
    return Outcome(_least_traffic(problem, plans, scores, slowest), limit=limit)


def _least_traffic(
    problem: Problem, plans: list[Plan], scores: list[Evaluation], slowest: float
) -> Plan:
    """Combine layers of plans, the first of which is quick enough, for the fewest critical nodes.

    Layers share a limit on their time: at every price each takes the plan that is best for it.
    """
    time = np.stack([scored.max_load.sum(axis=0) for scored in scores])
    tokens = [scored.traffic for scored in scores if scored.traffic is not None]
    nodes = np.stack([(sent.busiest_node * sent.tokens).sum(axis=0) for sent in tokens])
    most = slowest * float(scores[0].mean_load.sum())
    unit = float(scores[0].mean_load.sum()) / max(float(tokens[0].tokens.sum()), 1e-300)
    layers = np.arange(problem.loads.layers)
    copies = np.stack([plan.copies for plan in plans])
    choices = [np.full(layers.size, index) for index in range(len(plans))]
    choices += [(time + price * unit * nodes).argmin(axis=0) for price in MIXING_PRICES]
    best, fewest = plans[0], float(nodes[0].sum())
    for choice in choices:
        critical = float(nodes[choice, layers].sum())
        if critical < fewest and float(time[choice, layers].sum()) <= most:
            mixed = problem.plan(copies[choice, layers], "fast")
            if not violations(mixed, problem):
                best, fewest = mixed, critical
    return best


def _share(options: Options, deadline: float, done: float, part: float) -> Options:
    """Give one of several searches the time that is left, and its part of the progress."""
    progress = options.progress
    left = deadline - time.monotonic()
    return replace(
        options,
        time_limit=None if math.isinf(deadline) else max(left, 1e-9),
        progress=progress and (lambda share: progress(done + part * share)),
    )
