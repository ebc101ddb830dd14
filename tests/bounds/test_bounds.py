"""No plan is better than its bound: tried on all plans of tiny problems."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from reference.enumeration import best_by_enumeration
from strategies import problems, quiet, token_arrays

import craftopt as co
from craftopt.bounds import bounds_by_budget, layer_costs, max_copy_load, whole_plan_bound

TINY = {"layers": (1, 2), "most_experts": 4, "most_gpus": 4, "most_cells": 9}


def assert_bound_holds(problem: co.Problem) -> None:
    best = best_by_enumeration(problem)
    assert best is not None, "the strategy draws problems that have a plan"
    bound = whole_plan_bound(problem)
    noise = 1e-12 * best
    if problem.objective == "time":
        assert 1 <= bound <= best + noise
    else:
        assert best - noise <= bound <= 1
    for method in ("trivial", "placement", "eplb-counts"):
        result = co.solve(problem, method)
        if result.has_plan and not result.violations:
            sign = 1 if problem.objective == "time" else -1
            assert sign * result.objective >= sign * best - noise


@settings(max_examples=150)
@given(problems(**TINY))
def test_no_plan_is_better_than_the_bound(problem):
    assert_bound_holds(problem)


@pytest.mark.slow
@settings(
    max_examples=4000, derandomize=False, suppress_health_check=list(HealthCheck), deadline=None
)
@given(problems(**{**TINY, "most_cells": 12}))
def test_no_plan_is_better_than_the_bound_on_thousands(problem):
    assert_bound_holds(problem)


@pytest.mark.parametrize("slots", ["even", "free"])
@pytest.mark.parametrize("companions", [True, False])
@pytest.mark.parametrize("objective", ["time", "balancedness"])
def test_budgets_are_bounded_together_as_alone(slots, companions, objective):
    tokens = np.random.default_rng(1).lognormal(sigma=1.2, size=(5, 3, 20)) * 100
    problem = co.Problem(co.Loads(tokens.round()), gpus=5, slots=slots, objective=objective)
    budgets = [0, 2, 5, 9]
    alone = [
        whole_plan_bound(problem.replace(replicas_per_layer=replicas), companions=companions)
        for replicas in budgets
    ]
    assert bounds_by_budget(problem, budgets, companions=companions) == alone
    assert len(set(alone)) > 2


def least_heaviest_copy(tokens: list[float], replicas: int, limit: int) -> float:
    """Try every way to give out at most so many replicas."""
    return min(
        max(count / copies for count, copies in zip(tokens, chosen, strict=True))
        for chosen in itertools.product(range(1, limit + 1), repeat=len(tokens))
        if sum(chosen) <= len(tokens) + replicas
    )


@settings(max_examples=200)
@given(
    tokens=token_arrays((1, 1), (1, 1), (1, 4)),
    replicas=st.integers(0, 10),
    limit=st.integers(1, 4),
)
def test_heaviest_copy_equals_trying_every_replication(tokens, replicas, limit):
    tokens = tokens[0, 0]
    curve = max_copy_load(tokens, replicas, limit)
    assert curve.shape == (replicas + 1,)
    for budget, load in enumerate(curve):
        assert load == least_heaviest_copy(tokens.tolist(), budget, limit)


@settings(max_examples=100)
@given(problems(), st.integers(1, 30))
def test_bound_never_worsens_with_the_budget(problem, more):
    assume(problem.slots != "uniform" or problem.replicas)
    bounds = [
        whole_plan_bound(quiet(lambda r=replicas: problem.replace(replicas=r)))
        for replicas in range(problem.replicas, problem.replicas + more)
    ]
    if problem.objective == "balancedness":
        assert all(np.diff(bounds) >= 0)
    else:
        assert all(np.diff(bounds) <= 0)


@settings(max_examples=100)
@given(problems())
def test_looser_rules_never_worsen_the_bound(problem):
    sign = 1 if problem.objective == "time" else -1
    bound = sign * whole_plan_bound(problem)
    noise = 1e-12 * abs(bound)
    free = problem.replace(slots="free")
    assert sign * whole_plan_bound(free) <= bound + noise
    assert sign * whole_plan_bound(free.replace(max_copies=None)) <= bound + noise
    assert sign * whole_plan_bound(free.replace(expert_groups=None)) <= bound + noise


@settings(max_examples=100)
@given(problems())
def test_layer_costs_never_rise_with_replicas(problem):
    costs = layer_costs(problem)
    assert costs.shape[0] == problem.loads.layers
    assert (np.diff(costs, axis=1) <= 0).all()


def test_worked_example():
    # One replica halves the 600; then the 560 is the heaviest copy, and 1450 / 8 the mean.
    loads = co.Loads([[600, 560, 120, 120, 20, 10, 10, 10]])
    problem = co.Problem(loads, gpus=8, replicas=1)
    assert whole_plan_bound(problem) == pytest.approx(560 / (1450 / 8))
    assert whole_plan_bound(problem.replace(replicas=0)) == pytest.approx(600 / (1450 / 8))
    assert whole_plan_bound(problem.replace(objective="balancedness")) == pytest.approx(
        1450 / 8 / 560
    )
    assert whole_plan_bound(problem.replace(replicas=8)) == 1


def test_a_group_has_no_more_replicas_than_its_node():
    # Two replicas could halve both of the 60, which share a node; it has one replica.
    problem = co.Problem(
        co.Loads([[60, 60, 1, 1]]), 6, nodes=2, replicas=2, slots="even", expert_groups=2
    )
    assert whole_plan_bound(problem) == pytest.approx(60 / (122 / 6))
    ungrouped = problem.replace(expert_groups=None)
    assert whole_plan_bound(ungrouped) == pytest.approx(30 / (122 / 6))


def test_windows_share_their_copies():
    # Each window alone could halve its own hot expert; together they have one replica for it.
    loads = co.Loads([[[8, 1, 1]], [[1, 8, 1]]])
    problem = co.Problem(loads, gpus=2, replicas=1)
    assert layer_costs(problem)[0, -1] == 10
    assert whole_plan_bound(problem) == pytest.approx((5 + 8) / 10)
    assert best_by_enumeration(problem) == pytest.approx((5 + 8.5) / 10)


def test_bound_of_the_sum_does_not_bound_windowed_balancedness():
    windows = co.Loads([[[1, 1]], [[2, 0]]])
    problem = co.Problem(windows, gpus=2, objective="balancedness")
    assert whole_plan_bound(problem) == 0.75 == best_by_enumeration(problem)
    assert whole_plan_bound(problem.replace(loads=windows.total())) == pytest.approx(2 / 3)


@pytest.mark.parametrize("objective", ["time", "balancedness"])
def test_loads_without_tokens_are_balanced(objective):
    loads = co.Loads(np.zeros((2, 2, 3)))
    assert whole_plan_bound(co.Problem(loads, gpus=2, objective=objective)) == 1
