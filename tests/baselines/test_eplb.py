"""EPLB's tables: DeepSeek's own, slot by slot, and what they always hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
from files import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

import craftopt as co
from craftopt.baselines.eplb import even_slots

# --- DeepSeek's outputs ---------------------------------------------------------------------


def test_equals_deepseeks_tables():
    cases = json.loads((GOLDEN / "eplb_cases.json").read_text())
    assert len(cases) == 8
    with np.load(GOLDEN / "eplb_cases.npz") as golden:
        for case in cases:
            name = case.pop("name")
            tables = co.eplb.rebalance_experts(golden[f"{name}/weight"], **case)
            np.testing.assert_array_equal(tables.phy2log, golden[f"{name}/phy2log"], name)
            np.testing.assert_array_equal(tables.logcnt, golden[f"{name}/logcnt"], name)
            wanted = golden[f"{name}/log2phy"]
            assert tables.log2phy.shape == wanted.shape, name
            np.testing.assert_array_equal(
                np.sort(tables.log2phy, axis=2), np.sort(wanted, axis=2), name
            )


# --- worked by hand -------------------------------------------------------------------------


def test_global_policy_worked_by_hand():
    # 9 is copied (4.5 each), then 5 (2.5 each). Heaviest first, to the lighter of two GPUs of 3:
    # 4.5 | 4.5; 3 left (7.5); 2.5 right (7); 2.5 right (9.5, full); 1 left.
    phy2log, log2phy, logcnt = co.eplb.rebalance_experts([[9, 5, 3, 1]], 6, 1, 1, 2)
    assert phy2log.tolist() == [[0, 2, 3, 0, 1, 1]]
    assert logcnt.tolist() == [[2, 2, 1, 1]]
    assert log2phy.tolist() == [[[0, 3], [4, 5], [1, -1], [2, -1]]]


def test_hierarchical_policy_worked_by_hand():
    # Groups of 12 and 6, a node each. Node 0 copies 10 twice (3.3 each) and pairs
    # 3.3 3.3 | 3.3 2; node 1 copies both of its experts and pairs them with themselves.
    tables = co.eplb.rebalance_experts([[10, 2, 3, 3]], 8, 2, 2, 4)
    assert tables.phy2log.tolist() == [[0, 0, 0, 1, 2, 2, 3, 3]]
    assert tables.logcnt.tolist() == [[3, 1, 2, 2]]


def test_groups_go_to_the_lightest_node_heaviest_first():
    # Groups of one expert, 7 | 5, then 2 right, 1 left.
    tables = co.eplb.rebalance_experts([[1, 7, 5, 2]], 4, 4, 2, 4)
    assert tables.phy2log.tolist() == [[1, 0, 2, 3]]


def test_ties_go_to_the_lowest_number():
    tables = co.eplb.rebalance_experts([[1, 1, 1, 1]], 6, 1, 1, 3)
    assert tables.logcnt.tolist() == [[2, 2, 1, 1]]
    # Whole copies of 2 and 3 first, then halves: two to the empty GPU, one to each of the others.
    assert tables.phy2log.tolist() == [[2, 0, 3, 1, 0, 1]]


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.int64, np.float32, np.float64])
def test_takes_whole_and_floating_weights_alike(kind):
    weight = np.random.default_rng(0).integers(0, 9999, (3, 32)).astype(kind)
    tables = co.eplb.rebalance_experts(weight, 48, 4, 2, 8)
    reference = co.eplb.rebalance_experts(weight.astype(np.float64), 48, 4, 2, 8)
    for table, other in zip(tables, reference, strict=True):
        np.testing.assert_array_equal(table, other)
        assert table.dtype == np.int64


# --- always -------------------------------------------------------------------------------


@st.composite
def arguments(draw):
    """Draw weights and counts that EPLB takes, groups that nodes divide or do not."""
    nodes = draw(st.integers(1, 3))
    gpus = nodes * draw(st.integers(1, 4))
    groups = draw(st.sampled_from([1, nodes, 2 * nodes, 3]))
    experts = groups * draw(st.integers(1, 4))
    slots = -(-experts // gpus) + draw(st.integers(0, 3))
    cells = st.integers(0, 5) | st.integers(0, 10**6) | st.floats(0, 1e6, width=32)
    layers = draw(st.integers(1, 2))
    weight = draw(st.lists(cells, min_size=layers * experts, max_size=layers * experts))
    weight = np.array(weight).reshape(layers, experts)
    return weight, slots * gpus, groups, nodes, gpus


@given(arguments())
def test_tables_tell_the_same_story(case):
    weight, slots = case[:2]
    phy2log, log2phy, logcnt = co.eplb.rebalance_experts(*case)
    layers, experts = weight.shape
    assert phy2log.shape == (layers, slots)
    assert logcnt.shape == (layers, experts)
    assert log2phy.shape == (layers, experts, logcnt.max())
    for layer in range(layers):
        counts = np.bincount(phy2log[layer], minlength=experts)
        assert counts.tolist() == logcnt[layer].tolist()
        assert counts.min() >= 1
        for expert in range(experts):
            listed = log2phy[layer, expert, : counts[expert]].tolist()
            assert sorted(listed) == np.flatnonzero(phy2log[layer] == expert).tolist()
            assert (log2phy[layer, expert, counts[expert] :] == -1).all()


@given(arguments())
def test_groups_stay_on_one_node_unless_nodes_do_not_divide_them(case):
    weight, slots, groups, nodes, _ = case
    if groups % nodes:
        plain = co.eplb.rebalance_experts(weight, slots, 1, 1, case[-1])
        np.testing.assert_array_equal(co.eplb.rebalance_experts(*case).phy2log, plain.phy2log)
        return
    group_of_slot = co.eplb.rebalance_experts(*case).phy2log // (weight.shape[1] // groups)
    for layer in group_of_slot.reshape(len(weight), nodes, -1):
        held = [set(node.tolist()) for node in layer]
        assert sum(len(node) for node in held) == groups == len(set().union(*held))
        assert {len(node) for node in held} == {groups // nodes}


@given(arguments())
def test_copies_are_those_of_min_max_replication(case):
    weight, slots, _, _, gpus = case
    logcnt = co.eplb.rebalance_experts(weight, slots, 1, 1, gpus).logcnt
    for counts, copies in zip(weight.astype(np.float32), logcnt, strict=True):
        share = counts / copies.astype(np.float32)
        # Whoever has a replica needed it: without it, no copy would be heavier.
        for expert in np.flatnonzero(copies > 1):
            assert counts[expert] / np.float32(copies[expert] - 1) >= share.max()


@settings(max_examples=100)
@given(arguments())
def test_layers_are_planned_alone(case):
    weight, *counts = case
    together = co.eplb.rebalance_experts(weight, *counts)
    for layer in range(len(weight)):
        alone = co.eplb.rebalance_experts(weight[layer : layer + 1], *counts)
        np.testing.assert_array_equal(alone.phy2log[0], together.phy2log[layer])


@pytest.mark.parametrize(
    ("weight", "counts"),
    [
        ([1, 2, 3], (3, 1, 1, 1)),
        ([[]], (3, 1, 1, 1)),
        ([["a", "b"]], (2, 1, 1, 1)),
        ([[1, 2], [3]], (2, 1, 1, 1)),
        ([[1, np.nan]], (2, 1, 1, 1)),
        ([[1, np.inf]], (2, 1, 1, 1)),
        ([[1, -1]], (2, 1, 1, 1)),
        ([[1, 2, 3]], (2, 1, 1, 1)),
        ([[1, 2, 3]], (4, 1, 1, 3)),
        ([[1, 2, 3]], (3, 1, 1, 0)),
        ([[1, 2, 3]], (3, 2, 1, 3)),
        ([[1, 2, 3, 4]], (6, 2, 2, 3)),
    ],
)
def test_refuses_what_eplb_cannot_plan(weight, counts):
    with pytest.raises(co.InputError):
        co.eplb.rebalance_experts(weight, *counts)


# --- as methods -----------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [1, 2])
def test_methods_plan_what_the_function_plans(nodes):
    tokens = np.random.default_rng(1).integers(0, 999, (2, 3, 16))
    groups = None if nodes == 1 else 4
    method = "eplb" if nodes == 1 else "eplb-hierarchical"
    problem = co.Problem(
        co.Loads(tokens),
        8,
        nodes=nodes,
        replicas_per_layer=8,
        slots="uniform",
        expert_groups=groups,
    )
    plan = co.solve(problem, method).plan
    tables = co.eplb.rebalance_experts(tokens.sum(axis=0), 24, groups or 1, nodes, 8)
    assert plan.copies.tolist() == co.Plan.from_phy2log(tables.phy2log, 8, 16).copies.tolist()


def test_permuted_groups_are_planned_as_consecutive_ones():
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, 999, (1, 2, 12))
    order = rng.permutation(12)
    groups = np.repeat([5, 3, 8, 1], 3)
    problem = co.Problem(co.Loads(tokens), 4, nodes=2, replicas_per_layer=4, expert_groups=groups)
    permuted = co.Problem(
        co.Loads(tokens[:, :, order]),
        4,
        nodes=2,
        replicas_per_layer=4,
        expert_groups=groups[order],
    )
    first, second = (co.solve(p, "eplb-hierarchical") for p in (problem, permuted))
    assert first.objective == pytest.approx(second.objective)
    assert first.plan.replica_counts[:, order].tolist() == second.plan.replica_counts.tolist()


@pytest.mark.parametrize(("budget", "used"), [(4, 4), (5, 4), (9, 8), (11, 8)])
def test_eplb_takes_the_largest_budget_that_gpus_divide(budget, used):
    loads = co.Loads(np.arange(8.0).reshape(1, 8))
    problem = co.Problem(loads, 4, replicas_per_layer=budget)
    result = co.solve(problem, "eplb")
    assert result.plan.replicas == used
    assert (result.message == "") == (budget == used)


def test_eplb_says_how_many_replicas_it_would_need():
    problem = co.Problem(co.Loads(np.ones((1, 6))), 4, replicas=1)
    result = co.solve(problem, "eplb")
    assert result.status is co.Status.NOT_FOUND
    assert "at least 2 replicas per layer" in result.message
    assert co.solve(problem.replace(replicas=2), "eplb").has_plan


@pytest.mark.parametrize("replicas", [253, 254, 255, 256, 300, 1000])
def test_eplb_hosts_the_replicas_of_a_vast_budget_or_says_otherwise(replicas):
    result = co.solve(co.Problem(co.Loads([[1.0]]), 1, replicas=replicas), "eplb")
    assert result.message or result.plan.replicas == replicas


@given(
    shares=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    nodes=st.integers(1, 3),
    width=st.integers(1, 5),
)
def test_even_slots_are_floor_or_ceil_with_equal_totals(shares, nodes, width):
    copies = np.array(shares) * nodes
    slots = even_slots(copies, nodes * width, nodes)
    assert slots.sum(axis=1).tolist() == copies.tolist()
    assert np.ptp(slots, axis=1).max() <= 1
    assert np.ptp(slots.sum(axis=0)) <= 1
    assert np.ptp(slots.reshape(len(shares), nodes, width).sum(axis=2), axis=1).max() == 0
