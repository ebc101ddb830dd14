"""``fast`` with a price of traffic, a limit of slowdown, and dispatch to the nearest copies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import craftopt as co
from craftopt.engines.sglang import rebalance_experts
from craftopt.errors import InputError
from craftopt.evaluation import objective_value
from craftopt.rules import violations
from craftopt.serving import Deployment, find_gpu, find_model


def a_trace(seed=0, tokens=2400, layers=2, experts=16, k=4):
    """Make tokens that prefer a topic's experts; topics are spread over the expert ids."""
    generator = np.random.default_rng(seed)
    topic_of = np.stack([generator.permutation(experts) % 4 for _ in range(layers)])
    topic = (np.arange(tokens) // 50 + generator.integers(2, size=tokens)) % 4
    liked = topic_of[np.newaxis] == topic[:, np.newaxis, np.newaxis]
    popular = generator.normal(size=(layers, experts))
    scores = 2.0 * liked + popular + generator.gumbel(size=(tokens, layers, experts))
    return co.Trace(np.argsort(-scores, axis=2)[:, :, :k], experts)


TRACE = a_trace()
LOADS = TRACE.batches(200)
PAIRS = TRACE.coactivation()


def a_problem(**arguments):
    return co.Problem(LOADS, **{"gpus": 8, "nodes": 4, "replicas_per_layer": 8} | arguments)


def solved(problem, **limits):
    return co.solve(problem, **{"work_limit": 4000, "workers": 1} | limits)


# --- the problem ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"traffic": 0.5}, "coactivation"),
        ({"max_slowdown": 0.1}, "coactivation"),
        ({"traffic": 0.5, "max_slowdown": 0.1, "coactivation": PAIRS}, "max_slowdown"),
        ({"traffic": -0.5, "coactivation": PAIRS}, "traffic"),
        ({"traffic": "much", "coactivation": PAIRS}, "traffic"),
        ({"max_slowdown": -0.1, "coactivation": PAIRS}, "max_slowdown"),
        ({"traffic": 0.5, "coactivation": LOADS}, "Loads"),
        ({"traffic": 0.5, "coactivation": PAIRS.select([0])}, "1 layers"),
        ({"traffic": 0.5, "coactivation": PAIRS, "objective": "balancedness"}, "balancedness"),
        ({"dispatch": "nearest"}, "nearest-even"),
        ({"dispatch": "nearest-even", "objective": "activated"}, "activated"),
    ],
)
def test_what_cannot_be_priced_is_refused(arguments, named):
    with pytest.raises(InputError, match=named):
        a_problem(**arguments)


def test_layers_of_other_numbers_are_refused_and_unnumbered_ones_match_by_position():
    loads = co.Loads(LOADS.tokens, layer_ids=[3, 4])
    problem = co.Problem(loads, gpus=8, nodes=4, coactivation=PAIRS, traffic=0.5)
    assert problem.traffic_price == 0.5
    other = co.Coactivation(PAIRS.pairs, PAIRS.assignments, PAIRS.tokens, top_k=4, layer_ids=[7, 8])
    with pytest.raises(InputError, match=r"\[7, 8\]"):
        problem.replace(coactivation=other)


def deployment(**changes):
    return Deployment(find_model("deepseek-r1"), find_gpu("h100"), 8, 4).replace(**changes)


def test_a_deployment_prices_a_node_by_its_facts():
    price = deployment(nodes=2).traffic_price()
    assert price.remote_seconds == pytest.approx(7168 * 3 / (50e9 * 0.8), rel=0.02)
    assert price.compute_seconds == pytest.approx(8 * 2 * 44.04e6 / (1978.9e12 * 0.5), rel=1e-3)
    assert price.price == pytest.approx(0.38, abs=0.005)
    assert a_problem(coactivation=PAIRS, traffic=deployment()).traffic_price == pytest.approx(
        1.5 * price.price
    )
    with pytest.raises(InputError, match="nodes=2"):
        a_problem(coactivation=PAIRS, traffic=deployment(nodes=2))


@pytest.mark.parametrize("nodes", [1, 4])
def test_traffic_that_costs_nothing_says_why(nodes):
    fast_link = find_gpu("h100").replace(cluster_link=450e9)
    linked = deployment(gpu=fast_link, nodes=nodes)
    problem = a_problem(nodes=nodes, coactivation=PAIRS, traffic=linked)
    assert problem.traffic_price == 0
    reason = "as fast as" if nodes > 1 else "one node"
    assert reason in solved(problem, work_limit=10).message


# --- plans ----------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", ["uniform", "free"])
@pytest.mark.parametrize("source", [PAIRS, TRACE], ids=["pairs", "trace"])
def test_traffic_of_no_price_gives_the_plan_of_balance_alone(slots, source):
    alone = solved(a_problem(slots=slots))
    free = solved(a_problem(slots=slots, coactivation=source, traffic=0))
    assert free.plan.copies.tobytes() == alone.plan.copies.tobytes()
    assert (free.objective, free.bound) == (alone.objective, alone.bound)


@pytest.mark.parametrize(
    ("slots", "replicas"),
    [("uniform", 0), ("uniform", 8), ("even", 3), ("free", 0), ("free", 3), ("free", 8)],
)
@pytest.mark.parametrize("source", [PAIRS, TRACE], ids=["pairs", "trace"])
def test_a_plan_for_both_keeps_the_rules_and_is_no_worse_than_balance_alone(
    source, slots, replicas
):
    problem = a_problem(slots=slots, replicas_per_layer=replicas, coactivation=source, traffic=0.7)
    found = solved(problem)
    assert violations(found.plan, problem) == ()
    assert found.bound <= found.objective
    alone = solved(problem.replace(traffic=None)).plan
    assert found.objective <= objective_value(alone, problem)
    assert found.objective < objective_value(alone, problem) - 0.05


def test_the_objective_is_relative_time_and_the_price_of_critical_nodes():
    problem = a_problem(coactivation=TRACE, traffic=0.7)
    plan = solved(problem, work_limit=100).plan
    scored = co.evaluate(plan, LOADS, trace=TRACE)
    assert objective_value(plan, problem) == pytest.approx(
        scored.relative_time + 0.7 * scored.traffic.critical_nodes
    )
    estimated = co.evaluate(plan, LOADS, coactivation=PAIRS)
    assert objective_value(plan, problem.replace(coactivation=PAIRS)) == pytest.approx(
        estimated.relative_time + 0.7 * estimated.traffic.critical_nodes
    )


@pytest.mark.parametrize("price", [0.2, 2.0])
def test_eight_experts_on_two_nodes_are_planned_as_well_as_by_enumeration(price):
    trace = a_trace(seed=5, layers=1, experts=8, k=2)
    problem = co.Problem(
        trace.batches(400), gpus=4, nodes=2, coactivation=trace, traffic=price, slots="uniform"
    )
    best = np.inf
    # Two experts on each GPU; the first pair's node and the order within nodes do not matter.
    for first in itertools.combinations(range(8), 4):
        if 0 not in first:
            continue
        rest = [expert for expert in range(8) if expert not in first]
        for left, right in itertools.product(pairings(list(first)), pairings(rest)):
            plan = co.Plan.from_phy2log([[*left, *right]], gpus=4, nodes=2)
            best = min(best, objective_value(plan, problem))
    assert co.solve(problem).objective == pytest.approx(best)


def pairings(four):
    """List the three ways to put four experts on two GPUs."""
    a, *others = four
    return [[a, b, *(c for c in others if c != b)] for b in others]


@pytest.mark.parametrize("dispatch", ["even", "nearest-even"])
def test_plans_do_not_depend_on_workers(dispatch):
    problem = a_problem(coactivation=PAIRS, traffic=0.7, dispatch=dispatch)
    plans = [solved(problem, workers=workers).plan.copies.tobytes() for workers in (1, 3)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("slots", ["uniform", "free"])
@pytest.mark.parametrize("objective", ["time", "balancedness"])
def test_a_plan_for_the_nearest_copies_is_no_worse_there_than_one_for_even_dispatch(
    objective, slots
):
    problem = a_problem(dispatch="nearest-even", objective=objective, slots=slots)
    found = solved(problem)
    assert violations(found.plan, problem) == ()
    order = problem.goal.order
    even = objective_value(solved(problem.replace(dispatch="even")).plan, problem)
    assert order(found.objective) < order(even)
    assert order(found.bound) <= order(found.objective)


@pytest.mark.parametrize("most", [0.0, 0.02, 0.5])
def test_traffic_falls_within_the_slowdown(most):
    problem = a_problem(coactivation=TRACE, max_slowdown=most)
    found = solved(problem)
    alone = solved(problem.replace(max_slowdown=None)).plan
    before, after = (co.evaluate(p, LOADS, trace=TRACE) for p in (alone, found.plan))
    assert found.objective == pytest.approx(after.relative_time)
    assert after.relative_time <= before.relative_time * (1 + most) + 1e-12
    assert after.traffic.critical_nodes <= before.traffic.critical_nodes
    if most == 0.5:
        assert after.traffic.critical_nodes < 0.95 * before.traffic.critical_nodes


def test_a_previous_plan_is_never_better_than_the_new_one():
    problem = a_problem(coactivation=PAIRS, traffic=0.7, slots="uniform")
    old = solved(problem)
    again = solved(problem.replace(previous=old.plan), work_limit=1)
    assert again.objective <= old.objective


def test_expert_groups_keep_their_nodes():
    problem = a_problem(coactivation=PAIRS, traffic=0.7, expert_groups=4)
    found = solved(problem)
    assert violations(found.plan, problem) == ()


@pytest.mark.parametrize("what", [{"traffic": 0.7}, {"max_slowdown": 0.1}, {}])
def test_what_is_for_balance_under_even_dispatch_alone_says_so(what):
    arguments = {"coactivation": PAIRS, **what} if what else {"dispatch": "nearest-even"}
    problem = a_problem(**arguments)
    plan = solved(problem, work_limit=1).plan
    named = next(iter(what), "dispatch")
    if named == "max_slowdown":  # it bounds time and nodes, each by itself
        assert co.certify(problem, plan).gap >= 0
        with pytest.raises(InputError, match=named):
            co.rebalance(problem, plan)
    else:
        with pytest.raises(InputError, match=named):
            co.certify(problem, plan)
    assert named in co.solve(problem, "exact").message
    assert not co.solve(problem, "exact").has_plan


# --- rebalancing, online, engines -----------------------------------------------------------


def an_old_plan(**arguments):
    other = a_trace(seed=7).batches(200)
    return solved(a_problem(slots="uniform", **arguments).replace(loads=other)).plan


@pytest.mark.parametrize("most", [0, 8, 20, None])
@pytest.mark.parametrize(
    "asked",
    [
        {"coactivation": PAIRS, "traffic": 0.7},
        {"coactivation": TRACE, "traffic": 0.7},
        {"dispatch": "nearest-even"},
        {"dispatch": "nearest-even", "objective": "balancedness"},
    ],
    ids=["pairs", "trace", "nearest", "nearest balancedness"],
)
def test_rebalancing_in_the_whole_objective_keeps_its_moves_and_is_no_worse(asked, most):
    problem, old = a_problem(slots="uniform", **asked), an_old_plan()
    found = co.rebalance(problem, old, most, work_limit=4000, workers=1)
    assert found.violations == ()
    assert most is None or found.moves <= most
    assert found.objective == pytest.approx(objective_value(found.plan, problem))
    order = problem.goal.order
    assert order(found.objective) <= order(found.previous_objective)
    if most == 20:
        assert order(found.objective) < order(found.previous_objective)


def test_rebalancing_for_traffic_beats_rebalancing_for_balance_in_the_whole_objective():
    problem, old = a_problem(slots="uniform", coactivation=PAIRS, traffic=0.7), an_old_plan()
    both = co.rebalance(problem, old, 16, work_limit=20_000, workers=1)
    alone = co.rebalance(problem.replace(traffic=None), old, 16, work_limit=20_000, workers=1)
    assert both.objective < objective_value(alone.plan, problem)


@pytest.mark.parametrize("most", [8, None])
def test_rebalancing_with_traffic_of_no_price_gives_the_plan_of_balance_alone(most):
    problem, old = a_problem(slots="uniform"), an_old_plan()
    alone = co.rebalance(problem, old, most, work_limit=2000, workers=1)
    priced = problem.replace(coactivation=PAIRS, traffic=0)
    free = co.rebalance(priced, old, most, work_limit=2000, workers=1)
    assert free.plan.copies.tobytes() == alone.plan.copies.tobytes()


def test_survivors_of_unequal_nodes_are_planned_as_one_node_and_that_is_said():
    problem, old = a_problem(coactivation=PAIRS, traffic=0.7), an_old_plan()
    active = np.arange(8) != 3
    found = co.rebalance(problem, old, active=active, work_limit=100, workers=1)
    assert "one node" in found.message
    active = np.arange(8) % 2 == 0
    found = co.rebalance(problem, old, active=active, work_limit=100, workers=1)
    assert found.problem.traffic_price == 0.7


def test_the_online_loop_weighs_traffic_and_takes_the_windows_own_pairs():
    past = a_trace(seed=7)
    problem = co.Problem(
        past.batches(200), 8, nodes=4, slots="uniform", coactivation=past, traffic=0.7
    )
    plan = solved(problem).plan
    decisions = []
    for pairs in (None, PAIRS):
        online = co.OnlinePlanner(problem, plan, work_limit=4000, workers=1)
        decisions.append(online.observe(LOADS.total().tokens[0], coactivation=pairs))
    judged = problem.replace(loads=LOADS.total(), coactivation=PAIRS)
    blind, seeing = (objective_value(decision.plan, judged) for decision in decisions)
    assert seeing < blind
    assert seeing < objective_value(plan, judged)
    with pytest.raises(InputError, match="1 layers"):
        online.observe(LOADS.total().tokens[0], coactivation=PAIRS.select([0]))


def test_an_engine_plans_for_traffic_from_a_file_of_pair_counts(monkeypatch, tmp_path):
    PAIRS.save(tmp_path / "pairs.npz")
    table, _, _ = rebalance_experts(LOADS.tokens, 24, 3, None, 4)
    monkeypatch.setenv("CRAFTOPT_COACTIVATION", str(tmp_path / "pairs.npz"))
    with pytest.raises(InputError, match="together"):
        rebalance_experts(LOADS.tokens, 24, 3, None, 4)
    monkeypatch.setenv("CRAFTOPT_TRAFFIC", "much")
    with pytest.raises(InputError, match="mean GPU loads"):
        rebalance_experts(LOADS.tokens, 24, 3, None, 4)
    monkeypatch.setenv("CRAFTOPT_TRAFFIC", "0.7")
    priced, _, _ = rebalance_experts(LOADS.tokens, 24, 3, None, 4)
    assert (priced >= 0).all()
    problem = a_problem(coactivation=PAIRS, traffic=0.7, slots="uniform")
    before, after = (
        objective_value(co.Plan.from_phy2log(slots, 8, 16, nodes=4), problem)
        for slots in (table, priced)
    )
    assert after < before
    alone, _, _ = rebalance_experts(LOADS.tokens, 24, 3, None, 1)
    monkeypatch.delenv("CRAFTOPT_COACTIVATION")
    monkeypatch.delenv("CRAFTOPT_TRAFFIC")
    assert np.array_equal(alone, rebalance_experts(LOADS.tokens, 24, 3, None, 1)[0])
