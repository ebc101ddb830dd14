"""Plans for decode: few activated copies on the fullest GPU."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from files import measured
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.rules import broken_rules, rules_named
from strategies import problems, quiet

import craftopt as co
from craftopt.bounds import least_activated, whole_plan_bound
from craftopt.evaluation import mean_activated, objective_value
from craftopt.objective import OBJECTIVES
from craftopt.rules import violations
from craftopt.search.kernels import Rules, Schedule
from craftopt.search.rerouting import most_activated
from craftopt.search.routed import anneal_routed


@st.composite
def decode_problems(draw, **sizes):
    problem = draw(problems(**sizes))
    return quiet(lambda: problem.replace(objective="activated"))


def fewest(hosts: list[list[int]], gpus: int) -> int:
    """Find the fewest copies on the fullest GPU over all ways to choose one host each."""
    if not hosts:
        return 0
    return min(
        max(np.bincount(choice, minlength=gpus).tolist()) for choice in itertools.product(*hosts)
    )


def slow_activated(plan: co.Plan, loads: co.Loads) -> float:
    values = [
        fewest(
            [np.flatnonzero(plan.copies[layer, e]).tolist() for e in np.flatnonzero(counts)],
            plan.gpus,
        )
        for window in loads.tokens
        for layer, counts in enumerate(window)
    ]
    return sum(values) / len(values)


def synthetic(seed: int, windows: int, experts: int, layers: int = 1, tokens: int = 8) -> co.Loads:
    generator = np.random.default_rng(seed)
    odds = generator.lognormal(size=(layers, experts))
    shares = odds / odds.sum(axis=1, keepdims=True)
    return co.Loads(
        [[generator.multinomial(tokens, row) for row in shares] for _ in range(windows)]
    )


# --- objective and bound --------------------------------------------------------------------


@given(decode_problems(windows=(1, 2), layers=(1, 2), most_experts=5, most_gpus=4))
@settings(max_examples=60)
def test_objective_is_that_of_all_choices_of_hosts(problem):
    plan = co.solve(problem, "trivial").plan
    fast = co.solve(problem, work_limit=50).plan
    for made in (plan, fast):
        assert objective_value(made, problem) == pytest.approx(
            slow_activated(made, problem.loads), rel=1e-12
        )
        assert mean_activated(made, problem.loads) == objective_value(made, problem)


def all_layer_copies(experts: int, gpus: int) -> list[np.ndarray]:
    rows = [row for row in itertools.product((0, 1), repeat=gpus) if any(row)]
    return [np.array(table) for table in itertools.product(rows, repeat=experts)]


@given(decode_problems(windows=(1, 3), layers=(1, 1), most_experts=4, most_gpus=3))
@settings(max_examples=60)
def test_bound_below_optimum_below_plan(problem):
    """Over all plans of one small layer that keep the rules."""
    values = []
    for copies in all_layer_copies(problem.loads.experts, problem.gpus):
        plan = co.Plan(copies[np.newaxis], nodes=problem.nodes)
        if not broken_rules(plan, problem):
            values.append(slow_activated(plan, problem.loads))
    bound = whole_plan_bound(problem)
    result = co.solve(problem)
    assert bound == least_activated(problem).mean()
    if not values:  # e.g. groups that no equal slots fit
        return
    assert bound <= min(values) + 1e-12
    assert result.objective >= min(values) - 1e-12
    assert result.bound == bound


def test_bound_of_groups_is_that_of_their_node():
    loads = co.Loads([[1, 1, 0, 0]])
    free = co.Problem(loads, gpus=4, nodes=2, objective="activated", replicas=4)
    kept = free.replace(gpus=2, expert_groups=2)
    assert whole_plan_bound(free) == 1
    assert whole_plan_bound(kept) == 2  # both active experts are of one group, on one GPU
    assert co.solve(kept).status is co.Status.OPTIMAL


def test_gap_of_nothing_active_is_none():
    problem = co.Problem(co.Loads([[0, 0, 0]]), gpus=2, objective="activated")
    result = co.solve(problem)
    assert (result.objective, result.bound, result.gap) == (0, 0, 0)
    assert OBJECTIVES["activated"].gap(3.0, 2.0) == 0.5


# --- plans ----------------------------------------------------------------------------------


@given(decode_problems(), st.integers(0, 3))
@settings(max_examples=60)
def test_plans_keep_every_rule(problem, seed):
    result = co.solve(problem, seed=seed, work_limit=300)
    assert result.violations == ()
    assert broken_rules(result.plan, problem) == set()
    assert result.objective >= result.bound
    assert rules_named(violations(result.plan, problem)) == set()


@given(
    problem=decode_problems(windows=(2, 4), layers=(1, 1), most_experts=8, most_gpus=6),
    data=st.data(),
)
@settings(max_examples=60)
def test_kernel_counts_what_route_counts(problem, data):
    """After many steps taken and taken back: the kept routing is still the optimal one."""
    plan = co.solve(problem, seed=data.draw(st.integers(0, 99)), work_limit=2_000).plan
    active = np.ascontiguousarray((problem.loads.tokens[:, 0] > 0).T)
    routed = [co.route(plan, window, "exact").max_activated[0] for window in problem.loads.tokens]
    assert most_activated(active, plan.copies[0]).tolist() == routed


def test_annealing_returns_the_best_it_met():
    """Its own running cost decides, so a slip in taking steps back would show here."""
    for seed in range(12):
        loads = synthetic(seed, 40, 12)
        problem = co.Problem(loads, gpus=4, replicas=4, slots="uniform", objective="activated")
        start = np.array(co.solve(problem, "nominal").plan.copies[0])
        active = np.ascontiguousarray((loads.tokens[:, 0] > 0).T)
        reached = [most_activated(active, start).sum()]
        for steps in (50, 200, 800):
            found = anneal_routed(
                active,
                np.zeros((12, 0)),
                np.zeros(0),
                start,
                Rules(nodes=1, low=4, high=4, copies_limit=4),
                Schedule(steps, 1e-9, 1e-9),
                seed,
            )
            reached.append(most_activated(active, found).sum())
        # At no temperature only gains are taken, and more steps go on from fewer.
        assert reached == sorted(reached, reverse=True)
        assert reached[-1] < reached[0] or reached[0] == least_activated(problem).sum()


@given(decode_problems(), st.integers(0, 3))
@settings(max_examples=15)
def test_plan_is_the_same_on_any_threads(problem, seed):
    plans = [co.solve(problem, seed=seed, workers=n, work_limit=200).plan for n in (1, 2, 4)]
    assert plans[0].to_json() == plans[1].to_json() == plans[2].to_json()


def test_never_worse_than_the_previous_plan_and_stops_are_named():
    loads = synthetic(3, 60, 16, layers=3)
    problem = co.Problem(loads, gpus=4, replicas=24, slots="uniform", objective="activated")
    best = co.solve(problem, seed=5)
    again = problem.replace(previous=best.plan)
    short = co.solve(again, work_limit=0)
    assert short.objective <= best.objective
    assert short.limit == "work"
    assert co.solve(problem, time_limit=1e-9).limit == "time"
    assert best.limit is None
    refused = co.solve(again.replace(max_moves=3))
    assert refused.status is co.Status.NOT_FOUND
    shares = []
    co.solve(problem, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize("gpus", [8, 16])
def test_fewer_activated_than_eplb_on_batches_that_are_not_planned(gpus):
    windows = synthetic(gpus, 800, 64, layers=2, tokens=96)
    planned, served = windows.split(np.arange(800) % 2 == 1)
    problem = co.Problem(
        planned, gpus=gpus, replicas_per_layer=32, slots="uniform", objective="activated"
    )
    fast = mean_activated(co.solve(problem).plan, served)
    eplb = mean_activated(co.solve(problem, "eplb").plan, served)
    assert fast < eplb
    assert fast >= whole_plan_bound(problem.replace(loads=served))


# --- with prefill ---------------------------------------------------------------------------


def pair(seed=0):
    prefill = co.Problem(
        synthetic(seed, 6, 16, layers=2, tokens=2000), gpus=4, replicas=16, slots="uniform"
    )
    batches = synthetic(seed + 1, 80, 16, layers=2, tokens=12)
    return prefill, prefill.replace(loads=batches, objective="activated")


def test_weights_trace_a_curve_from_prefill_to_decode():
    prefill, decode = pair()
    ends = [co.plan_for_both(prefill, decode, weight=weight) for weight in (0.0, 1.0)]
    assert ends[0] == co.solve(prefill).plan
    assert ends[1] == co.solve(decode).plan
    middle = co.plan_for_both(prefill, decode, weight=0.5)
    assert violations(middle, prefill) == ()
    time = [objective_value(plan, prefill) for plan in (ends[0], middle, ends[1])]
    reads = [objective_value(plan, decode) for plan in (ends[0], middle, ends[1])]
    assert time[0] <= time[1] <= time[2]
    assert reads[2] <= reads[1] <= reads[0]
    again = co.plan_for_both(prefill, decode, weight=0.5, workers=1)
    assert again.to_json() == middle.to_json()


@given(problems(windows=(1, 3)), st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=30)
def test_plans_for_both_keep_every_rule(problem, weight):
    prefill = quiet(lambda: problem.replace(objective="time"))
    decode = quiet(lambda: problem.replace(objective="activated"))
    plan = co.plan_for_both(prefill, decode, weight=weight, work_limit=200)
    assert broken_rules(plan, decode) == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": 1.5}, "weight=1.5"),
        ({"gpus": 8}, "gpus is 4 in prefill and 8 in decode"),
        ({"objective": "time"}, "objectives are"),
        ({"expert_groups": 2}, "differ in their expert_groups"),
        ({"loads": synthetic(0, 2, 16)}, "differ in their layer_ids"),
    ],
)
def test_pairs_that_do_not_match_are_refused(change, message):
    prefill, decode = pair()
    weight = change.get("weight", 0.5)
    others = {name: value for name, value in change.items() if name != "weight"}
    decode = quiet(lambda: decode.replace(**others))
    with pytest.raises(co.InputError, match=message):
        co.plan_for_both(prefill, decode, weight=weight)


# --- where the objective is not known -------------------------------------------------------


def test_who_cannot_answer_for_this_objective_refuses():
    _, decode = pair()
    plan = co.solve(decode, "nominal").plan
    with pytest.raises(co.InputError, match="certify knows no objective='activated'"):
        co.certify(decode, plan)
    with pytest.raises(co.InputError, match="rebalance knows no objective='activated'"):
        co.rebalance(decode, plan)
    with pytest.raises(co.InputError, match="pass objective='time'"):
        co.OnlinePlanner(decode, plan)


def test_a_certificate_is_not_read_as_one_of_this_objective():
    loads = co.Loads([[6, 3, 2, 1]])
    problem = co.Problem(loads, gpus=2, objective="balancedness")
    certificate = co.certify(problem, co.solve(problem).plan)
    forged = co.Certificate.from_json(
        certificate.to_json().replace('"balancedness"', '"activated"')
    )
    with pytest.raises(co.CraftoptError, match="activated"):
        co.verify(forged)


def test_all_methods_are_compared_on_activated_copies():
    _, decode = pair()
    served = synthetic(9, 10, 16, layers=2, tokens=12)
    rows = co.compare(decode, served, ["trivial", "nominal", "eplb", "craft", "fast"]).rows
    for row in rows:
        if row.planned is not None:
            assert row.planned.activated >= least_activated(decode).mean()
            assert row.served.activated > 0
    by_name = {row.method: row for row in rows}
    assert by_name["fast"].planned.activated <= by_name["nominal"].planned.activated


def test_exact_says_that_it_has_no_plan():
    pytest.importorskip("ortools")
    pytest.importorskip("pulp")
    _, decode = pair()
    result = co.solve(decode, "exact")
    assert result.status is co.Status.NOT_FOUND
    assert "activated" in result.message


# --- real traces ----------------------------------------------------------------------------


@pytest.mark.slow
def test_real_trace_within_2_percent_of_the_bound_and_5_below_eplb():
    trace = co.read_trace(measured("deepseek_v2_lite_esft_trace"))
    kept = np.arange(trace.tokens) % 2 == 1
    planned, served = (
        co.Trace(trace.topk_ids[mask], experts=trace.experts).batches(16, "random", seed=0)
        for mask in (kept, ~kept)
    )
    problem = co.Problem(
        planned, gpus=16, replicas_per_layer=32, slots="uniform", objective="activated"
    )
    fast = mean_activated(co.solve(problem).plan, served)
    assert fast <= 0.95 * mean_activated(co.solve(problem, "eplb").plan, served)
    assert fast <= 1.02 * whole_plan_bound(problem.replace(loads=served))
