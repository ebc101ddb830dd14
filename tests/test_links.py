"""Costs of links: evaluated exactly, and saved by renaming GPUs at the same balance."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from strategies import quiet

import craftopt as co


def drawn(dispatch, nodes, copies):
    """List where the tokens of every source go, from the rule's definition."""
    gpus = copies.shape[1]
    width = gpus // nodes
    share = np.zeros((gpus, *copies.shape))
    for source in range(gpus):
        for expert, hosted in enumerate(copies):
            hosts = np.flatnonzero(hosted)
            if dispatch == "nearest-even":
                inside = hosts[hosts // width == source // width]
                hosts = inside if inside.size else hosts
                hosts = [source] if hosted[source] else hosts
            share[source, expert, hosts] = 1 / len(hosts)
    return share


def random_plan(rng, layers, experts, gpus, nodes):
    copies = rng.random((layers, experts, gpus)) < 0.3
    for layer in copies:
        layer[np.arange(experts), rng.integers(gpus, size=experts)] = True
    return co.Plan(copies.astype(np.uint8), nodes=nodes)


@pytest.mark.parametrize("dispatch", ["even", "nearest-even"])
def test_the_cost_of_links_follows_from_the_rule(dispatch):
    rng = np.random.default_rng(1)
    for _ in range(10):
        plan = random_plan(rng, 2, 5, 4, 2)
        cost = rng.random((4, 4))
        ids = np.argsort(rng.random((40, 2, 5)), axis=2)[:, :, :2]
        ids[rng.random((40, 2)) < 0.2, 0] = -1
        trace, homes = co.Trace(ids, 5), rng.integers(4, size=40)
        loads = trace.batches(10)
        uniform = co.evaluate(plan, loads, dispatch, link_cost=cost)
        known = co.evaluate(plan, loads, dispatch, trace=trace, homes=homes, link_cost=cost)
        for layer in range(2):
            share = drawn(dispatch, 2, plan.copies[layer])
            paid = np.einsum("sej,sj->se", share, cost)
            for window in range(4):
                tokens = slice(10 * window, 10 * window + 10)
                chosen = [
                    (home, e)
                    for home, row in zip(homes[tokens], ids[tokens, layer], strict=True)
                    for e in row
                    if e >= 0
                ]
                expected = np.mean([paid[home, e] for home, e in chosen])
                assert known.link_cost[window, layer] == pytest.approx(expected)
                expected = np.mean([paid[:, e].mean() for _, e in chosen])
                assert uniform.link_cost[window, layer] == pytest.approx(expected)


def test_costs_of_nodes_are_those_of_their_gpus():
    rng = np.random.default_rng(2)
    plan, loads = random_plan(rng, 1, 6, 4, 2), co.Loads(rng.integers(1, 9, (2, 1, 6)))
    nodes, gpus = [[0, 2], [5, 1]], [[0, 0, 2, 2], [0, 0, 2, 2], [5, 5, 1, 1], [5, 5, 1, 1]]
    both = [co.evaluate(plan, loads, link_cost=cost).mean_link_cost for cost in (nodes, gpus)]
    assert both[0] == both[1]


@pytest.mark.parametrize("known", [False, True])
def test_no_renaming_of_gpus_costs_less(known):
    rng = np.random.default_rng(3)
    ids = np.argsort(rng.random((60, 1, 8)) * np.arange(1, 9), axis=2)[:, :, :2]
    trace = co.Trace(ids, 8)
    homes = {"trace": trace, "homes": rng.integers(4, size=60)} if known else {}
    loads, cost = trace.batches(20), rng.random((4, 4))
    plan = co.solve(co.Problem(loads, 4, nodes=2, slots="uniform"), "fast").plan

    def paid(of):
        return co.evaluate(of, loads, link_cost=cost, **homes).mean_link_cost

    for within_nodes in (True, False):
        best = co.relabel_for_links(plan, loads, cost, **homes, within_nodes=within_nodes)
        allowed = [
            order
            for order in permutations(range(4))
            if not within_nodes or order[0] // 2 == order[1] // 2
        ]
        least = min(paid(co.Plan(plan.copies[:, :, list(o)], nodes=2)) for o in allowed)
        assert paid(best) == pytest.approx(least, abs=1e-12)


def test_a_problem_with_links_keeps_its_objective_and_costs_no_more():
    rng = np.random.default_rng(4)
    trace = co.Trace(np.argsort(rng.gumbel(size=(2400, 3, 8)), axis=2)[:, :, -2:], 8)
    cost = rng.random((4, 4))
    for changes in (
        {"slots": "uniform"},
        {"slots": "free", "replicas": 3},
        {"dispatch": "nearest-even", "replicas": 12, "slots": "uniform"},
        {"coactivation": trace, "traffic": 0.5, "slots": "uniform"},
        {"expert_groups": 2},
    ):
        problem = quiet(lambda c=changes: co.Problem(trace.batches(800), 4, nodes=2, **c))
        found = [co.solve(of, "fast") for of in (problem, problem.replace(link_cost=cost))]
        costs = [
            co.evaluate(of.plan, problem.loads, problem.dispatch, link_cost=cost).mean_link_cost
            for of in found
        ]
        assert found[1].violations == ()
        assert found[1].objective == pytest.approx(found[0].objective, rel=1e-12)
        assert costs[1] <= costs[0]
        if changes.get("slots") == "uniform" and len(changes) == 1:
            assert costs[1] < costs[0]


def test_links_that_are_none_are_refused():
    loads = co.Loads([[3, 2, 1, 1]])
    plan = co.solve(co.Problem(loads, 4, nodes=2), "nominal").plan
    for cost, text in (
        (np.ones((3, 3)), "shape"),
        (np.full((4, 4), -1.0), "negative"),
        (np.full((4, 4), np.inf), "finite"),
    ):
        with pytest.raises(co.InputError, match=text):
            co.Problem(loads, 4, nodes=2, link_cost=cost)
        with pytest.raises(co.InputError, match=text):
            co.evaluate(plan, loads, link_cost=cost)
    with pytest.raises(co.InputError, match="max_moves"):
        co.Problem(loads, 4, previous=plan, max_moves=1, link_cost=np.ones((4, 4)))
    with pytest.raises(co.InputError, match="metro"):
        co.evaluate(plan, loads, "metro", link_cost=np.ones((4, 4)))
    with pytest.raises(co.InputError, match="not known"):
        _ = co.evaluate(plan, loads).mean_link_cost
