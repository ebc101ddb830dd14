"""The method exact: optimal where it says so, never beaten, and honest about the rest."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from files import measured
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference.enumeration import best_by_enumeration
from reference.rules import broken_rules
from strategies import problems, quiet

import craftopt as co

pytest.importorskip("ortools")
from craftopt_formulations._neighbourhoods import choose_again
from craftopt_formulations.whole import layer_cost

TINY = {"layers": (1, 2), "most_experts": 4, "most_gpus": 4, "most_cells": 9}
FLASHLB = [[600, 560, 120, 120, 20, 10, 10, 10]]


def better_or_equal(first: float, second: float, problem: co.Problem) -> bool:
    sign = 1 if problem.objective == "time" else -1
    return sign * first <= sign * second + 1e-9 * abs(second)


def assert_proves_the_best(problem: co.Problem) -> None:
    best = best_by_enumeration(problem)
    result = co.solve(problem, "exact", work_limit=60)
    assert result.status is co.Status.OPTIMAL, result
    assert result.limit is None
    assert result.objective == pytest.approx(best, rel=1e-9)
    assert broken_rules(result.plan, problem) == set()
    for method in co.methods():
        other = co.solve(problem, method, work_limit=100)
        if other.has_plan and not other.violations:
            assert better_or_equal(result.objective, other.objective, problem), method
        assert better_or_equal(other.bound, result.objective, problem)


@settings(max_examples=40)
@given(problems(**TINY))
def test_exact_equals_trying_every_plan(problem):
    assert_proves_the_best(problem)


@pytest.mark.slow
@settings(
    max_examples=500, derandomize=False, suppress_health_check=list(HealthCheck), deadline=None
)
@given(problems(**{**TINY, "most_cells": 12}))
def test_exact_equals_trying_every_plan_on_hundreds(problem):
    assert_proves_the_best(problem)


@settings(max_examples=10)
@given(
    problems(layers=(2, 2), most_experts=3, most_gpus=3, most_cells=9),
    st.sampled_from(["free", "even", "uniform"]),
    st.integers(0, 3),
)
def test_layers_are_coupled_by_equal_totals_under_every_rule(problem, slots, extra):
    forced = -problem.loads.experts % problem.gpus if slots == "uniform" else 0
    coupled = quiet(
        lambda: co.Problem(
            problem.loads,
            problem.gpus,
            replicas=2 * forced + extra,
            slots=slots,
            objective=problem.objective,
        )
    )
    assert_proves_the_best(coupled)


def test_a_layer_alone_could_do_better_than_equal_totals_allow():
    # Alone, layer 0 would have its hot expert on a GPU of its own, and so would layer 1: then
    # one GPU hosts one copy, the other three. Two such layers fit by relabelling; three do not.
    for layers, same in ((2, True), (3, False)):
        loads = co.Loads(np.tile([9.0, 3, 3, 3], (1, layers, 1)))
        result = co.solve(co.Problem(loads, 2), "exact", work_limit=60)
        assert result.status is co.Status.OPTIMAL
        alone = layers * 9 / (layers * 9)
        assert (result.objective == pytest.approx(alone)) == same
        assert result.objective == pytest.approx(best_by_enumeration(result.problem))


@pytest.mark.parametrize("moves", [0, 1, 2, 4])
@pytest.mark.parametrize("slots", ["free", "even", "uniform"])
def test_few_moves_are_used_best(moves, slots):
    rng = np.random.default_rng(moves)
    loads = co.Loads(np.floor(rng.lognormal(3, 1, (1, 2, 4))))
    previous = co.solve(co.Problem(loads.select([0]), 2), "trivial").plan
    problem = co.Problem(loads, 2, slots=slots, previous=previous, max_moves=moves)
    result = co.solve(problem, "exact", work_limit=60)
    assert result.status is co.Status.OPTIMAL
    assert broken_rules(result.plan, problem) == set()
    assert result.objective == pytest.approx(best_with_moves(problem))


def best_with_moves(problem: co.Problem) -> float:
    """Try every plan of two layers without replicas on two GPUs."""
    sides = np.array(list(np.ndindex(*[2] * (2 * problem.loads.experts))))
    best = np.inf
    for side in sides.reshape(-1, 2, problem.loads.experts):
        copies = np.stack([side == 0, side == 1], axis=2)
        plan = co.Plan(copies)
        if not broken_rules(plan, problem):
            best = min(best, co.evaluate(plan, problem.loads).relative_time)
    return best


def test_says_that_no_plan_exists():
    # GPU 0 hosts all of both layers, and nothing may move: the totals cannot be equal.
    previous = co.Plan(np.stack([np.stack([[1, 1], [0, 0]], axis=1)] * 2))
    problem = co.Problem(co.Loads([[[3, 1], [3, 1]]]), 2, previous=previous, max_moves=0)
    result = co.solve(problem, "exact", work_limit=60)
    assert result.status is co.Status.INFEASIBLE
    assert "no plan" in result.message


def test_proves_the_example_of_flashlb():
    problem = co.Problem(co.Loads(FLASHLB), 8, replicas=8, slots="uniform")
    result = co.solve(problem, "exact", work_limit=60)
    assert result.status is co.Status.OPTIMAL
    assert result.objective * 1450 / 8 == pytest.approx(590 / 3, rel=1e-12)
    assert co.solve(problem, "eplb").objective * 1450 / 8 == pytest.approx(232)


def middle_problem(**rules) -> co.Problem:
    rng = np.random.default_rng(5)
    loads = co.Loads(np.floor(rng.lognormal(4, 1, (2, 3, 12))))
    return co.Problem(loads, 4, replicas=7, **rules)


def test_without_solver_work_there_is_a_plan_and_a_gap():
    problem = middle_problem(slots="even")
    result = co.solve(problem, "exact", work_limit=0)
    assert (result.status, result.limit) == (co.Status.FEASIBLE, "work")
    assert result.gap > 0
    more = co.solve(problem, "exact", work_limit=1)
    assert more.objective <= result.objective
    assert more.bound >= result.bound


def test_the_safety_stop_is_named():
    result = co.solve(middle_problem(), "exact", time_limit=1e-6)
    assert (result.has_plan, result.limit) == (True, "time")


def test_the_plan_does_not_depend_on_the_workers():
    problem = middle_problem(slots="free", objective="balancedness")
    one = co.solve(problem, "exact", work_limit=1, workers=1)
    two = co.solve(problem, "exact", work_limit=1, workers=2)
    assert one.plan == two.plan
    assert one.bound == two.bound


def test_the_gap_is_logged_as_it_falls(caplog):
    shares = []
    with caplog.at_level(logging.INFO, "craftopt_formulations.exact"):
        co.solve(middle_problem(), "exact", work_limit=1, progress=shares.append)
    gaps = [record.args[1] for record in caplog.records]
    assert len(gaps) >= 3
    assert gaps == sorted(gaps, reverse=True)
    assert shares == sorted(shares)
    assert shares[-1] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [0, 2, 4])  # with 8 a gap of 8 % stays open
def test_proves_windows_of_twelve_experts(replicas):
    rng = np.random.default_rng(replicas)
    loads = co.Loads(np.floor(rng.lognormal(4, 1, (5, 1, 12))))
    result = co.solve(co.Problem(loads, 4, replicas=replicas), "exact", work_limit=100)
    assert result.status is co.Status.OPTIMAL
    assert result.runtime < 60


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [232, 464, 928])
def test_example_model_is_within_a_thousandth(replicas):
    loads = co.load_example("deepseek-r1").total()
    result = co.solve(co.Problem(loads, 64, replicas=replicas), "exact")
    assert result.gap <= 1e-3


@pytest.mark.slow
def test_real_traffic_is_within_two_parts_in_ten_thousand():
    loads = co.read_loads(measured("glm52_five_domains")).total()
    result = co.solve(co.Problem(loads, 64, replicas=512), "exact")
    assert result.gap <= 2e-4


def test_more_work_on_windows_never_ends_worse():
    rng = np.random.default_rng(4)
    tokens = rng.lognormal(0, 1, (1, 2, 64)) * rng.lognormal(0, 0.8, (4, 2, 64))
    problem = co.Problem(co.Loads(tokens), gpus=16, replicas_per_layer=16, slots="uniform")
    plans = [co.solve(problem, "exact", work_limit=work) for work in (0, 1, 2, 2)]
    times = [result.objective for result in plans]
    assert times[0] > times[1] >= times[2]
    assert (plans[2].plan.copies == plans[3].plan.copies).all()


def small_windows(**rules) -> co.Problem:
    rng = np.random.default_rng(8)
    tokens = np.floor(rng.lognormal(4, 1, 12) * rng.lognormal(0, 0.5, (5, 1, 12)))
    return co.Problem(co.Loads(tokens), gpus=4, replicas=4, **rules)


def test_more_work_on_a_small_layer_never_ends_worse():
    problem = small_windows(slots="uniform")
    times = [co.solve(problem, "exact", work_limit=work).objective for work in (0, 1, 4)]
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1]


@pytest.mark.parametrize("rules", [{}, {"slots": "free"}, {"nodes": 2, "expert_groups": 4}])
def test_neighbourhoods_keep_every_rule_and_never_end_worse(rules):
    problem = small_windows(**rules)
    start = co.solve(problem, "trivial").plan.copies[0]
    costs = [layer_cost(problem, 0, start)]
    for work in (0.05, 0.2, 0.8):
        found = choose_again(problem, 0, start, work, seed=1)
        assert broken_rules(co.Plan(found[np.newaxis], nodes=problem.nodes), problem) == set()
        assert found.sum() == start.sum()
        costs.append(layer_cost(problem, 0, found))
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[-1]


def test_a_free_pair_of_all_gpus_is_chosen_at_best():
    # Two GPUs are one neighbourhood: what it finds is the optimum, whatever the start.
    rng = np.random.default_rng(3)
    loads = co.Loads(np.floor(rng.lognormal(3, 1, (3, 1, 5))))
    problem = co.Problem(loads, gpus=2, replicas=2, slots="even")
    start = co.solve(problem, "fast").plan.copies[0]
    shuffled = np.ascontiguousarray(start[[3, 4, 0, 1, 2]])
    found = choose_again(problem, 0, shuffled, 5.0, seed=0)
    best = best_by_enumeration(problem) * problem.goal.cost(1.0, loads, 2)
    assert layer_cost(problem, 0, found) == pytest.approx(best)
