"""Every method keeps the rules, tells the truth about its plan, and repeats itself exactly."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from reference.rules import broken_rules, rules_named
from reference.scores import slow_objective
from strategies import problems, quiet

import craftopt as co
from craftopt.cli.planning import plan as plan_command
from craftopt.objective import OBJECTIVES
from craftopt.rules import violations
from craftopt.solving import METHODS

METHODS_PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
each_method = pytest.mark.parametrize("method", co.methods())


def examples(method: str, most: int) -> int:
    """Fewer problems for methods that search."""
    return most // 5 if METHODS[method].work else most


def assert_result_is_true(problem: co.Problem, method: str) -> None:
    """Check everything that a result claims against plain recomputation."""
    result = co.solve(problem, method)
    assert result.method == method
    assert result.problem is problem
    assert result.runtime >= 0
    again = co.solve(quiet(problem.replace), method)
    assert again.bound == result.bound
    if not result.has_plan:
        assert_says_why(result)
        assert not again.has_plan
        return
    assert again.plan.to_json() == result.plan.to_json()
    assert_plan_is_as_told(result)


def assert_says_why(result: co.Result) -> None:
    assert result.status in (co.Status.NOT_FOUND, co.Status.INFEASIBLE)
    assert result.message
    assert result.objective is None
    assert result.gap is None
    with pytest.raises(co.NoPlanError, match=result.method):
        _ = result.plan
    if result.status is co.Status.INFEASIBLE:
        plain = co.solve(result.problem, "trivial")
        assert plain.violations, "proven infeasible, and yet the trivial plan is valid"


def assert_plan_is_as_told(result: co.Result) -> None:
    problem, plan = result.problem, result.plan
    assert (plan.gpus, plan.nodes, plan.method) == (problem.gpus, problem.nodes, result.method)
    assert plan.loads_digest == problem.loads.digest
    assert plan.layer_ids.tolist() == problem.loads.layer_ids.tolist()

    broken = broken_rules(plan, problem)
    assert rules_named(result.violations) == broken
    assert result.violations == violations(plan, problem)
    others = result.method.startswith("eplb") or result.method == "craft-artifact"
    assert broken <= ({"duplicates"} if others else set())

    assert result.objective == pytest.approx(slow_objective(plan, problem), rel=1e-9)
    if broken:
        assert result.gap is None
        assert result.status is co.Status.FEASIBLE
        return
    if problem.objective == "time":
        gap = result.objective / result.bound - 1
    else:
        gap = result.bound / result.objective - 1
    assert gap >= -1e-12, "the plan is better than its bound"
    assert result.gap >= 0
    assert result.gap == pytest.approx(gap, rel=1e-6, abs=1e-12)
    assert result.status is (co.Status.OPTIMAL if result.gap <= 1e-9 else co.Status.FEASIBLE)


@each_method
def test_results_are_true(method):
    @settings(max_examples=examples(method, 300))
    @given(problems())
    def check(problem):
        assert_result_is_true(problem, method)

    check()


@pytest.mark.slow
@each_method
def test_results_are_true_on_thousands_of_problems(method):
    @settings(
        max_examples=examples(method, 10_000),
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(problems(layers=(1, 4), most_experts=12, most_gpus=9))
    def check(problem):
        assert_result_is_true(problem, method)

    check()


@given(problems())
def test_trivial_always_has_a_valid_plan(problem):
    assert co.solve(problem, "trivial").violations == ()


@given(problems())
def test_placement_has_no_replicas_and_a_plan_wherever_one_can_be(problem):
    result = co.solve(problem, "placement")
    fills = problem.slots != "uniform" or problem.loads.experts % problem.gpus == 0
    assert result.has_plan == fills
    if fills:
        assert result.plan.replicas == 0


@given(problems())
def test_eplb_counts_spends_the_budget_that_can_be_used(problem):
    result = co.solve(problem, "eplb-counts")
    if result.has_plan:
        assert result.plan.replicas == problem.replicas - problem.unused_replicas


# --- solve ----------------------------------------------------------------------------------


def test_refuses_unknown_methods_and_suggests_the_nearest():
    problem = co.Problem(co.Loads([[1, 2]]), 2)
    with pytest.raises(co.InputError, match=r"'eplb_counts' is unknown.*mean 'eplb-counts'"):
        co.solve(problem, "eplb_counts")
    with pytest.raises(co.InputError, match="pass one of trivial"):
        co.solve(problem, "")


@pytest.mark.parametrize(
    "limits",
    [
        {"work_limit": -1},
        {"time_limit": 0},
        {"time_limit": -1.0},
        {"time_limit": float("nan")},
        {"workers": 0},
        {"workers": -2},
    ],
)
def test_refuses_limits_outside_their_range(limits):
    problem = co.Problem(co.Loads([[1, 2]]), 2)
    with pytest.raises(co.InputError, match=next(iter(limits))):
        co.solve(problem, "trivial", **limits)


@each_method
def test_a_plan_that_moves_too_much_is_named_so(method):
    loads = co.Loads([[9, 5, 3, 1]])
    previous = co.Plan.from_phy2log([[3, 1, 2, 0]], gpus=2)
    problem = co.Problem(loads, 2, previous=previous, max_moves=0)
    result = co.solve(problem, method)
    if result.has_plan:
        moved = int((result.plan.copies > previous.copies).sum())
        assert any(text.startswith("max moves") for text in result.violations) == (moved > 0)
        assert (result.gap is None) == (moved > 0)


# --- what a method can plan ------------------------------------------------------------------

LOADS = co.Loads([[[9, 5, 3, 1]], [[8, 6, 2, 2]]])
GROUPED = co.Problem(LOADS, 2, nodes=2, expert_groups=2)
UNGROUPED = co.Problem(LOADS, 2)
PINNED = UNGROUPED.replace(previous=co.Plan.from_phy2log([[3, 1, 2, 0]], gpus=2), max_moves=0)


KINDS = {
    "groups": GROUPED,
    "no groups": UNGROUPED,
    "max_moves": PINNED,
    **{objective: UNGROUPED.replace(objective=objective) for objective in OBJECTIVES},
}


@each_method
@pytest.mark.parametrize("problem", KINDS.values(), ids=KINDS)
def test_what_a_method_does_not_refuse_it_plans_and_keeps(method, problem):
    refusal, result = METHODS[method].refusal(problem), co.solve(problem, method)
    if refusal:
        assert result.status is co.Status.NOT_FOUND
        assert result.message == refusal
        assert refusal.startswith(f"{method} ")
        assert "; pass " in refusal
        return
    broken = rules_named(result.violations)
    assert "expert groups" not in broken
    if METHODS[method].moves == "kept":
        assert "max moves" not in broken


def test_methods_refuse_what_their_algorithm_cannot_plan():
    refused = {
        name: {method for method in METHODS if METHODS[method].refusal(problem)}
        for name, problem in KINDS.items()
    }
    assert refused == {
        "groups": {"eplb", "craft", "craft-artifact"},
        "no groups": {"eplb-hierarchical"},
        "max_moves": {"eplb-hierarchical", "nominal", "fast"},
        "time": {"eplb-hierarchical"},
        "balancedness": {"eplb-hierarchical"},
        "activated": {"eplb-hierarchical", "exact"},
    }


@pytest.mark.parametrize("method", [name for name in co.methods() if METHODS[name].work])
def test_help_and_documentation_name_the_unit_of_the_work_limit(method):
    unit = METHODS[method].work
    option = get_type_hints(plan_command, include_extras=True)["work_limit"].__metadata__[0]
    assert f"{unit} ({method})" in option.help
    assert re.search(rf"^\| `{method}` .*\| {unit}\b", METHODS_PAGE.read_text(), re.MULTILINE)


@each_method
def test_loads_of_any_size_are_planned(method):
    for scale in (1e-30, 1e-9, 1e9, 1e29):
        loads = co.Loads(np.array([[9.0, 5.0, 3.0, 1.0]]) * scale)
        for objective in ("time", "balancedness"):
            problem = co.Problem(loads, 2, replicas=2, objective=objective)
            result = co.solve(problem, method)
            if result.has_plan:
                assert result.objective == pytest.approx(
                    slow_objective(result.plan, problem), rel=1e-9
                )


# --- the same plan everywhere ---------------------------------------------------------------

PLAN_ALL = """
import hashlib, sys
import numpy as np
import craftopt as co
rng = np.random.default_rng(7)
loads = co.Loads(np.floor(rng.lognormal(3, 1.2, (3, 4, 24))))
for slots in ("free", "even", "uniform"):
    for groups in (None, 4):
        problem = co.Problem(
            loads, 8, nodes=2, replicas_per_layer=8, slots=slots, expert_groups=groups
        )
        for method in sys.argv[1:]:
            limits = {"work_limit": 1} if method == "exact" else {}
            result = co.solve(problem, method, **limits)
            text = result.plan.to_json() if result.has_plan else result.message
            print(slots, groups, method, hashlib.sha256(text.encode()).hexdigest())
"""


def plan_all(threads: int) -> str:
    return subprocess.run(
        [sys.executable, "-c", PLAN_ALL, *co.methods()],
        env={**os.environ, "NUMBA_NUM_THREADS": str(threads)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_plans_are_the_same_bytes_in_other_processes_and_with_other_threads():
    one = plan_all(1)
    assert len(one.splitlines()) == 6 * len(co.methods())
    assert plan_all(2) == one
