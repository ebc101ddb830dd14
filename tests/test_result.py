"""What a result is worth is computed when it is first asked for, and is the same then."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import craftopt as co

LOADS = co.Loads(np.random.default_rng(3).integers(1, 100, (3, 2, 12)))
PROBLEM = co.Problem(LOADS, gpus=4, replicas=4)


def test_planning_does_not_bound(monkeypatch):
    bounded = []  # besides the miniatures of a first use
    monkeypatch.setattr(
        "craftopt.result.whole_plan_bound", lambda problem: bounded.append(problem) or 1.0
    )
    found = co.solve(PROBLEM, "nominal")
    moved = co.rebalance(PROBLEM, found.plan, max_moves=0)
    assert (found.violations, moved.violations) == ((), ())
    assert found.objective == moved.objective == co.evaluate(found.plan, LOADS).relative_time
    assert PROBLEM not in bounded
    assert found.status is co.Status.FEASIBLE
    assert bounded[-1] is PROBLEM


@pytest.mark.parametrize("method", ["trivial", "craft", "eplb", "nominal", "exact"])
@pytest.mark.parametrize("objective", ["time", "balancedness"])
def test_a_result_that_was_pickled_first_says_the_same(method, objective):
    found = co.solve(PROBLEM.replace(objective=objective), method, work_limit=0)
    late = pickle.loads(pickle.dumps(found))
    assert late.to_dict() == found.to_dict()
    assert repr(late) == repr(found)
