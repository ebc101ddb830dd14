"""Method ``fast``: the same plan anywhere, within the rules, better than where it started."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.rules import broken_rules
from reference.scores import slow_objective
from strategies import problems

import craftopt as co
from craftopt.evaluation import objective_value
from craftopt.planners.windowed import MOST_STEPS_PER_COPY
from craftopt.windows import MOST_SHRUNK, SHRINKAGE, shrink

RULES = ("uniform", "even", "free")
OBJECTIVES = ("time", "balancedness")
# Annealing steps of a layer: enough to matter, few enough for many tests.
WORK = 2000
# Windows: more than are in play at a time, at first and until the end.
MANY = (40, 300)

each_rule = pytest.mark.parametrize("rule", RULES)
each_objective = pytest.mark.parametrize("objective", OBJECTIVES)


@pytest.fixture(scope="module")
def loads() -> co.Loads:
    """Six layers and ten windows: two of each topic."""
    example = co.load_example("deepseek-r1")
    return co.Loads(example.tokens[1::4, ::10], example.layer_ids[::10])


@pytest.fixture
def problem(loads) -> co.Problem:
    return co.Problem(loads, 32, replicas_per_layer=8, slots="even")


def of_rule(problem: co.Problem, rule: str) -> co.Problem:
    """Change the slot rule; uniform buys no slot with less than a copy per GPU."""
    return problem.replace(slots=rule, replicas_per_layer=32 if rule == "uniform" else 8)


def plan(problem: co.Problem, **options) -> co.Result:
    """Plan, and check that no rule is broken and the objective is true."""
    result = co.solve(problem, "fast", **options)
    assert broken_rules(result.plan, problem) == set()
    assert result.objective == pytest.approx(slow_objective(result.plan, problem), rel=1e-9)
    return result


def no_worse(problem: co.Problem, value: float, reference: float) -> bool:
    slack = 1e-12 * reference
    if problem.objective == "time":
        return value <= reference + slack
    return value >= reference - slack


# --- the same plan everywhere ---------------------------------------------------------------


@each_rule
def test_plans_are_the_same_bytes_for_any_workers_and_in_every_run(problem, rule):
    problem = of_rule(problem, rule)
    texts = {
        co.solve(problem, "fast", work_limit=WORK, workers=workers).plan.to_json()
        for workers in (1, 2, 3, 1)
    }
    assert len(texts) == 1


def test_seeds_change_the_plan_and_break_no_rule(problem):
    results = [plan(problem, seed=seed, work_limit=WORK) for seed in (0, 1, 2**40, -1)]
    assert len({result.plan.to_json() for result in results}) > 1


# --- quality --------------------------------------------------------------------------------


@each_objective
@each_rule
def test_fast_is_at_least_as_good_as_planning_for_the_sum(problem, rule, objective):
    problem = of_rule(problem, rule).replace(objective=objective)
    found = plan(problem)
    assert found.limit is None
    for other in ("eplb-counts", "nominal"):
        assert no_worse(problem, found.objective, co.solve(problem, other).objective), other


@each_objective
@pytest.mark.parametrize("seed", range(40))
def test_annealing_never_ends_worse_than_it_started(seed, objective):
    # What annealing minimises is not quite the objective: short searches of few windows get worse.
    tokens = np.random.default_rng(seed).lognormal(3, 1, (2 + seed % 2, 1, 16))
    problem = co.Problem(co.Loads(tokens), 4, slots="uniform", objective=objective)
    start = plan(problem, work_limit=0, workers=1)
    found = plan(problem, work_limit=30, workers=1)
    assert no_worse(problem, found.objective, start.objective)


@each_objective
def test_more_windows_than_are_in_play_are_planned_for(objective):
    loads = co.load_example("qwen3-235b")
    loads = co.Loads(loads.tokens[: MANY[0], :2])
    problem = co.Problem(loads, 16, replicas_per_layer=8, slots="even", objective=objective)
    results = [plan(problem, work_limit=30_000, workers=workers) for workers in (1, 2)]
    assert results[0].plan.to_json() == results[1].plan.to_json()
    for other in ("eplb-counts", "nominal"):
        assert no_worse(problem, results[0].objective, co.solve(problem, other).objective), other


@pytest.mark.parametrize("windows", MANY)
def test_windows_count_by_their_tokens_however_many_there_are(windows):
    rng = np.random.default_rng(3)
    kinds = rng.lognormal(3, 1.2, (2, 1, 48))
    few = windows // 5
    small = kinds[0] * rng.lognormal(0, 0.1, (windows - few, 1, 48))
    large = kinds[1] * rng.lognormal(0, 1, (few, 1, 48)) * 1000
    alone = co.Problem(co.Loads(large), 8, replicas=8, slots="even")
    among = alone.replace(loads=co.Loads(np.concatenate([small, large])))
    assert plan(among).objective == pytest.approx(plan(alone).objective, rel=0.1)


@each_rule
def test_one_window_is_planned_as_nominal_does(loads, rule):
    problem = of_rule(co.Problem(loads.total(), 32), rule)
    found, nominal = plan(problem), co.solve(problem, "nominal")
    assert found.plan == replace(nominal.plan, method="fast")


def test_a_layer_with_more_skew_gets_more_replicas():
    rng = np.random.default_rng(5)
    flat = rng.uniform(90, 110, (4, 64))
    skewed = flat * np.where(np.arange(64) < 4, 12.0, 1.0)
    loads = co.Loads(np.stack([flat, skewed, flat], axis=1))
    found = plan(co.Problem(loads, 16, replicas=24, slots="even"), work_limit=20_000)
    first, second, third = found.plan.replica_counts.sum(axis=1) - 64
    assert second > 2 * max(first, third)


# --- limits and progress --------------------------------------------------------------------


def test_work_limit_stops_the_search_and_says_so(problem):
    assert plan(problem, work_limit=WORK).limit == "work"
    # The start of a layer without its annealing: no step was done.
    assert plan(problem, work_limit=0, seed=0).plan == plan(problem, work_limit=0, seed=1).plan


def test_work_that_suffices_is_no_limit():
    loads = co.Loads(np.random.default_rng(0).integers(1, 99, (3, 2, 8)))
    problem = co.Problem(loads, 4, replicas_per_layer=4, slots="even")
    enough = plan(problem, work_limit=MOST_STEPS_PER_COPY * 8 * 4)
    assert enough.limit is None
    assert enough.plan == plan(problem).plan


@each_rule
def test_no_time_at_all_still_gives_a_valid_plan(problem, rule):
    assert plan(of_rule(problem, rule), time_limit=1e-9).limit == "time"


@each_rule
def test_progress_rises_to_1(problem, rule):
    seen: list[float] = []
    plan(of_rule(problem, rule), work_limit=100, workers=1, progress=seen.append)
    assert all(before <= after for before, after in itertools.pairwise(seen))
    assert 0 <= seen[0] < 0.5
    assert seen[-1] == pytest.approx(1)


def test_progress_stays_within_its_range_with_several_workers(problem):
    seen: list[float] = []
    plan(problem, work_limit=100, workers=3, progress=seen.append)
    assert min(seen) >= 0
    assert max(seen) == pytest.approx(1)


# --- rules ----------------------------------------------------------------------------------


@settings(max_examples=100)
@given(problems(windows=(2, 4), most_experts=16), st.integers(0, 3))
def test_rules_are_kept_on_any_problem(problem, seed):
    found = plan(problem, seed=seed, work_limit=300, workers=1)
    assert found.plan.method == "fast"


@each_rule
def test_groups_and_copy_limits_are_kept_at_the_size_of_a_model(problem, rule):
    loads = co.Loads(problem.loads.tokens[:, :3])
    problem = of_rule(co.Problem(loads, 32, nodes=4, expert_groups=8, max_copies=2), rule)
    found = plan(problem, work_limit=20_000)
    assert found.plan.replica_counts.max() == 2
    assert no_worse(problem, found.objective, co.solve(problem, "nominal").objective)


def test_max_moves_is_refused_with_a_message(problem):
    previous = plan(problem, work_limit=0).plan
    refused = co.solve(problem.replace(previous=previous, max_moves=3), "fast")
    assert not refused.has_plan
    assert "max_moves" in refused.message


# --- a previous plan ------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [None, 8])
@each_objective
def test_a_previous_plan_with_the_same_replicas_is_never_made_worse(loads, groups, objective):
    before, now = loads.split(np.arange(loads.windows) % 2 == 0)
    problem = co.Problem(
        before,
        32,
        nodes=4,
        replicas_per_layer=32,
        slots="uniform",
        expert_groups=groups,
        objective=objective,
    )
    previous = plan(problem, work_limit=50_000).plan
    problem = problem.replace(loads=now, previous=previous)
    reference = objective_value(previous, problem)
    for work in (0, WORK):
        assert no_worse(problem, plan(problem, work_limit=work).objective, reference)


def test_a_previous_plan_better_than_any_start_is_kept_without_work(problem):
    problem = of_rule(problem, "uniform")
    previous = plan(problem, work_limit=50_000).plan
    again = plan(problem.replace(previous=previous), work_limit=0)
    assert np.array_equal(again.plan.copies, previous.copies)


def test_a_previous_plan_that_breaks_the_rules_is_no_start(problem):
    problem = of_rule(problem, "uniform").replace(max_copies=2)
    previous = plan(problem.replace(max_copies=None), work_limit=WORK).plan
    assert previous.replica_counts.max() > 2
    plan(problem.replace(previous=previous), work_limit=WORK)


# --- windows without tokens -----------------------------------------------------------------


@each_objective
@each_rule
def test_windows_and_layers_without_tokens_are_planned(loads, rule, objective):
    tokens = loads.tokens[:, :4].copy()
    tokens[2] = 0
    tokens[:, 1] = 0
    tokens[0, 2] = 0
    problem = of_rule(co.Problem(co.Loads(tokens), 32, objective=objective), rule)
    found = plan(problem, work_limit=20_000)
    start = plan(problem, work_limit=0)
    assert no_worse(problem, found.objective, start.objective)


@each_rule
def test_loads_without_any_token_are_planned(rule):
    problem = of_rule(co.Problem(co.Loads(np.zeros((3, 2, 64))), 32), rule)
    assert plan(problem).objective == 1


# --- shrinkage -----------------------------------------------------------------------------


@st.composite
def scaled_windows(draw: st.DrawFn) -> np.ndarray:
    """Draw windows of two kinds of traffic with noise; every layer sums to 8."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    windows, layers, experts = (draw(st.integers(2, most)) for most in (9, 3, 12))
    kinds = rng.lognormal(0, 1, (2, layers, experts))
    noise = rng.lognormal(0, draw(st.sampled_from([0.01, 0.3])), (windows, layers, experts))
    tokens = kinds[rng.integers(0, 2, windows)] * noise
    return tokens * 8 / tokens.sum(axis=2, keepdims=True)


@given(scaled_windows())
def test_shrinkage_keeps_the_sum_of_every_window_and_layer(tokens):
    shrunk = shrink(tokens)
    assert shrunk.shape == tokens.shape
    assert (shrunk >= 0).all()
    assert shrunk.sum(axis=2) == pytest.approx(tokens.sum(axis=2), rel=1e-9)


@given(scaled_windows(), st.randoms(use_true_random=False))
def test_shrinkage_does_not_depend_on_the_order_of_windows(tokens, random):
    order = random.sample(range(len(tokens)), len(tokens))
    assert shrink(tokens[order]) == pytest.approx(shrink(tokens)[order], rel=1e-6)


@given(scaled_windows())
def test_shrinkage_leaves_a_lone_window_and_equal_windows_alone(tokens):
    assert np.array_equal(shrink(tokens[:1]), tokens[:1])
    equal = np.repeat(tokens[:1], 5, axis=0)
    assert shrink(equal) == pytest.approx(equal, rel=1e-9)


def test_windows_of_a_kind_are_shrunk_toward_each_other_and_not_toward_others():
    a, b = [[[9.0, 1, 1, 1]], [[8, 2, 1, 1]]], [[[1, 1, 1, 9]], [[1, 1, 2, 8]]]
    tokens = np.array([*a, *b])
    partner = tokens[[1, 0, 3, 2]]
    apart = partner != tokens
    part = (shrink(tokens) - tokens)[apart] / (partner - tokens)[apart]
    assert (part > 0.9 * SHRINKAGE).all()
    assert (part < 1.05 * SHRINKAGE).all()


def test_windows_without_their_like_are_left_alone():
    tokens = np.array([[[9.0, 1, 1, 1]], [[1, 1, 1, 9]]])
    assert shrink(tokens) == pytest.approx(tokens, rel=1e-9)


def test_shrinkage_neither_fills_nor_thins_layers_where_a_window_has_no_tokens():
    tokens = np.array([[[4.0, 4], [4, 4]], [[4, 4], [0, 0]], [[5, 3], [3, 5]]])
    assert shrink(tokens).sum(axis=2) == pytest.approx(tokens.sum(axis=2), rel=1e-9)


def test_budgets_smaller_than_the_layers_are_spent(loads):
    skewed = co.Loads(loads.tokens, loads.layer_ids)
    assert plan(co.Problem(skewed, 32, replicas=2), work_limit=WORK).plan.replicas == 2


def test_windows_without_tokens_change_nothing(loads):
    padded = np.concatenate([loads.tokens, np.zeros((400, *loads.tokens.shape[1:]))])
    problem = co.Problem(loads, 32, replicas_per_layer=8, slots="even")
    alone = plan(problem, work_limit=50_000).objective
    among = plan(problem.replace(loads=co.Loads(padded, loads.layer_ids)), work_limit=50_000)
    assert among.objective == pytest.approx(alone, rel=0.1)


@each_rule
def test_the_previous_plan_is_never_lost(problem, rule):
    problem = of_rule(problem, rule)
    first = plan(problem, work_limit=50_000)
    again = plan(problem.replace(previous=first.plan), work_limit=0)
    assert no_worse(problem, again.objective, first.objective)


def test_windows_are_left_alone_where_they_are_too_many_to_compare():
    tokens = np.random.default_rng(0).uniform(1, 2, (MOST_SHRUNK + 1, 1, 4))
    assert np.array_equal(shrink(tokens), tokens)
