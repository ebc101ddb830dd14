"""The method ``fast``: the search that suits the problem."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from craftopt.evaluation import evaluate_for
from craftopt.planners.decode import plan_decode
from craftopt.planners.joint import plan_joint
from craftopt.planners.nominal import nominal_copies
from craftopt.planners.windowed import plan_windowed
from craftopt.problem import Problem
from craftopt.result import Options, Outcome

# Prices of traffic that are tried for the least of it within a slowdown, ascending.
SLOWDOWN_PRICES = (0.05, 0.1, 0.2, 0.4, 0.8)


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
        copies, limit = nominal_copies(problem, Options(workers=options.workers))
        return Outcome(problem.plan(copies, "fast"), problem.free_traffic, limit)
    return replace(plan_windowed(problem, options), message=problem.free_traffic)


def _plan_within(problem: Problem, options: Options) -> Outcome:
    """Find the plan with the fewest critical nodes within a slowdown against balance alone.

    Prices are raised until the plan is too slow.
    """
    assert problem.max_slowdown is not None
    deadline, parts = options.deadline(), len(SLOWDOWN_PRICES) + 1
    free = problem.variant(max_slowdown=None)
    best = plan_fast(free, _share(options, deadline, 0.0, 1 / parts))
    if problem.free_traffic:
        return replace(best, message=problem.free_traffic)
    assert best.plan is not None
    scored = evaluate_for(best.plan, problem, traffic=True)
    assert scored.traffic is not None
    fewest, limit = scored.traffic.critical_nodes, best.limit
    slowest = scored.relative_time * (1.0 + problem.max_slowdown)
    for index, price in enumerate(SLOWDOWN_PRICES, 1):
        priced = free.variant(traffic=price)
        found = plan_fast(priced, _share(options, deadline, index / parts, 1 / parts))
        assert found.plan is not None
        scored, limit = evaluate_for(found.plan, problem, traffic=True), found.limit or limit
        assert scored.traffic is not None
        if scored.relative_time > slowest:
            break
        if scored.traffic.critical_nodes < fewest:
            best, fewest = found, scored.traffic.critical_nodes
    return replace(best, limit=limit)


def _share(options: Options, deadline: float, done: float, part: float) -> Options:
    """Give one of several searches the time that is left, and its part of the progress."""
    progress = options.progress
    left = deadline - time.monotonic()
    return replace(
        options,
        time_limit=None if math.isinf(deadline) else max(left, 1e-9),
        progress=progress and (lambda share: progress(done + part * share)),
    )
