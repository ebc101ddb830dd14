"""The online loop: it notices what changes, remembers, and moves only what pays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.rules import broken_rules

import craftopt as co
from craftopt.online import MOST_DOMAINS

GPUS, LAYERS, EXPERTS = 8, 2, 32
WORK = 4000


def domain(seed: int, windows: int, noise: float = 0.1) -> np.ndarray:
    """Draw windows of one kind of traffic."""
    rng = np.random.default_rng(seed)
    rates = rng.lognormal(0, 1, (1, LAYERS, EXPERTS)) * 100
    return np.round(rates * np.random.default_rng(seed + 99).lognormal(
        0, noise, (windows, LAYERS, EXPERTS)
    ))  # fmt: skip


def planner(past: np.ndarray, **options) -> co.OnlinePlanner:
    problem = co.Problem(co.Loads(past), GPUS, replicas_per_layer=8, slots="uniform")
    plan = co.solve(problem, "fast", work_limit=WORK).plan
    return co.OnlinePlanner(problem, plan, work_limit=WORK, **options)


def served(plan: co.Plan, window: np.ndarray) -> float:
    return float(co.evaluate(plan, co.Loads(window)).max_load.sum())


def test_windows_like_the_past_change_nothing_that_does_not_pay():
    windows = domain(0, 10)
    online = planner(windows[:6], move_cost=1e6)
    for window in windows[6:]:
        decision = online.observe(window)
        assert (decision.action, decision.moves, decision.domain) == ("keep", 0, 0)
        assert decision.plan is online.plan


def test_a_new_domain_is_noticed_at_once_and_planned_for():
    past, new = domain(0, 6), domain(1, 6)
    online = planner(past, move_cost=1.0)
    before = online.plan
    first = online.observe(new[0])
    assert first.domain == 1
    assert first.drift > 2
    assert first.action == "rebalance"
    assert first.gain > first.cost > 0
    for window in new[1:4]:
        decision = online.observe(window)
        assert decision.domain == 1
    assert served(online.plan, new[5]) < 0.8 * served(before, new[5])


def test_a_domain_that_comes_back_is_known():
    first, second = domain(0, 10), domain(1, 6)
    online = planner(first[:6], move_cost=1.0)
    before = served(online.plan, first[8])
    for window in second:
        online.observe(window)
    away = served(online.plan, first[8])
    decision = online.observe(first[6])
    assert decision.domain == 0
    assert decision.action in ("rebalance", "recall")
    assert served(online.plan, first[8]) < before + 0.2 * (away - before)


def test_recall_brings_a_plan_back_where_moves_are_free():
    first, second = domain(0, 8, noise=0.02), domain(1, 6)
    online = planner(first[:6])
    home = online.plan
    actions = [online.observe(window).action for window in second]
    assert "rebalance" in actions
    back = online.observe(first[6])
    assert back.domain == 0
    reached = served(back.plan, first[7])
    assert reached <= 1.05 * served(home, first[7])


def test_dear_moves_are_not_made_and_budgets_are_kept():
    past, new = domain(0, 4), domain(1, 4)
    moves = []
    for cost in (0.0, 20.0, 1e9):
        online = planner(past, move_cost=cost)
        moves.append(sum(online.observe(window).moves for window in new))
    assert moves[0] > moves[1] > moves[2] == 0
    online = planner(past, max_moves=3)
    decisions = [online.observe(window) for window in new]
    assert all(decision.moves <= 3 for decision in decisions)
    assert decisions[0].moves > 0


@settings(max_examples=15)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=10), st.integers(0, 9))
def test_any_stream_gives_valid_plans_and_the_same_decisions_twice(stream, seed):
    kinds = [domain(seed + kind, 12) for kind in range(5)]
    runs = []
    for workers in (1, 2):
        online = planner(kinds[0][:2], move_cost=2.0, max_moves=20, workers=workers)
        decisions = []
        for step, kind in enumerate(stream):
            before = online.plan
            decision = online.observe(kinds[kind][step])
            assert broken_rules(decision.plan, online.problem.replace(previous=before)) == set()
            assert decision.moves == co.count_moves(decision.plan, before)
            assert decision.action == "keep" or decision.gain > decision.cost
            decisions.append((decision.action, decision.plan.to_json(), decision.domain))
        runs.append(decisions)
    assert runs[0] == runs[1]


def test_domains_are_forgotten_beyond_what_is_kept():
    online = planner(domain(0, 6), move_cost=1e9)
    numbers = [online.observe(domain(seed, 1)[0]).domain for seed in range(1, MOST_DOMAINS + 3)]
    assert numbers == list(range(1, MOST_DOMAINS + 3))


def test_idle_windows_change_nothing():
    online = planner(domain(0, 3))
    plan = online.plan
    assert online.observe(np.zeros((LAYERS, EXPERTS))).plan is plan
    assert planner(np.zeros((1, LAYERS, EXPERTS))).observe(domain(0, 1)[0]).domain == 0


def test_wrong_values_are_named():
    online = planner(domain(0, 2))
    with pytest.raises(co.InputError, match=r"\[layers, experts\] = \(2, 32\)"):
        online.observe(np.ones((LAYERS, EXPERTS + 1)))
    with pytest.raises(co.InputError, match="one window at a time"):
        online.observe(np.ones((2, LAYERS, EXPERTS)))
    with pytest.raises(co.InputError, match=r"\[layers, experts\] = \(2, 32\)"):
        online.observe(np.ones((LAYERS + 1, EXPERTS)))
    for wrong in ({"horizon": 0}, {"horizon": np.inf}, {"move_cost": np.inf}):
        with pytest.raises(co.InputError, match=next(iter(wrong))):
            planner(domain(0, 2), **wrong)
    problem = co.Problem(co.Loads([[1, 2]]), 2, objective="balancedness")
    with pytest.raises(co.InputError, match="objective='time'"):
        co.OnlinePlanner(problem, co.solve(problem, "trivial").plan)
    with pytest.raises(co.InputError, match="above 0"):
        co.move_cost(0, 1, 1, 1)


def test_the_problems_limit_on_moves_holds_unless_another_is_given():
    past, new = domain(0, 3), domain(1, 1)[0]
    problem = planner(past).problem
    plan = problem.previous
    limited = problem.replace(max_moves=3)
    assert co.OnlinePlanner(limited, plan, work_limit=WORK).observe(new).moves <= 3
    assert co.OnlinePlanner(limited, plan, max_moves=9, work_limit=WORK).observe(new).moves > 3


def test_a_replay_of_nothing_takes_the_least_time():
    plan = co.Plan.from_phy2log([[0, 1]], 2)
    run = co.replay(co.Loads([[[0, 0]], [[3, 1]]]), plan, lambda window, tokens: plan)
    assert run.cumulative.tolist() == [1.0, 1.5]
    idle = co.replay(co.Loads([[0, 0]]), plan, lambda window, tokens: plan)
    assert idle.relative_time == co.evaluate(plan, co.Loads([[0, 0]])).relative_time == 1.0


def test_a_decision_in_the_place_of_its_plan_is_named():
    online = planner(domain(0, 2))
    with pytest.raises(co.InputError, match=r"decide returned a Decision.*the \.plan of"):
        co.replay(
            co.Loads(domain(0, 2)), online.plan, lambda window, tokens: online.observe(tokens)
        )


def test_the_loop_beats_eplb_every_window_with_a_fraction_of_its_moves():
    """A hard switch between two kinds of traffic, back and forth."""
    kinds = [domain(0, 8, 0.3), domain(1, 8, 0.3)]
    order = [(kind, 4 * turn + step) for turn in range(2) for kind in (0, 1) for step in range(4)]
    stream = co.Loads(np.stack([kinds[kind][step] for kind, step in order]))
    first = co.Problem(
        stream.select([0]), GPUS, replicas_per_layer=8, slots="uniform", objective="time"
    )
    start = co.solve(first, "eplb").plan

    def eplb(window: int, tokens: np.ndarray) -> co.Plan:
        return co.solve(first.replace(loads=co.Loads(tokens)), "eplb").plan

    online = co.OnlinePlanner(first, start, move_cost=2.0)
    runs = {
        "never": co.replay(stream, start, lambda window, tokens: start),
        "eplb": co.replay(stream, start, eplb),
        "online": co.replay(
            stream, start, lambda w, tokens: online.observe(tokens).plan if w else start
        ),
    }
    times = {name: run.relative_time for name, run in runs.items()}
    assert times["online"] <= times["eplb"] < times["never"]
    assert runs["online"].moves.sum() <= runs["eplb"].moves.sum() / 2
    assert runs["never"].moves.sum() == 0
    assert runs["online"].cumulative[-1] == pytest.approx(times["online"])
