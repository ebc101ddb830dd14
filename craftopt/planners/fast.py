"""The method ``fast``: the search that suits the problem."""

from __future__ import annotations

from craftopt.planners.decode import plan_decode
from craftopt.planners.nominal import nominal_copies
from craftopt.planners.windowed import plan_windowed
from craftopt.problem import Problem
from craftopt.result import Options, Outcome


def plan_fast(problem: Problem, options: Options) -> Outcome:
    """Plan for every window, or for every batch of decode.

    One window is the nominal problem, which `nominal` solves better, without limits. Elsewhere
    ``work_limit`` counts annealing steps of a layer; where ``time_limit`` strikes, layers not yet
    reached keep their start. A previous plan is a start for the layers that it suits, and never
    better than the result.
    """
    if not problem.goal.even_dispatch:
        return plan_decode(problem, options)
    if problem.loads.windows == 1:
        copies, limit = nominal_copies(problem, Options(workers=options.workers))
        return Outcome(problem.plan(copies, "fast"), limit=limit)
    return plan_windowed(problem, options)
