"""Scores equal a plain recomputation, and every rule is named by the plan that breaks it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.rules import broken_rules, rules_named
from reference.scores import slow_objective, slow_scores
from strategies import copies_arrays, problems, quiet, token_arrays

import craftopt as co
from craftopt.evaluation import gpu_loads, objective_value
from craftopt.objective import OBJECTIVES
from craftopt.rules import violations


@st.composite
def scored(draw):
    """Draw a plan, often with duplicates, and loads of its shape."""
    tokens = draw(token_arrays(experts=(1, 6)))
    gpus = draw(st.integers(1, 5))
    copies = draw(copies_arrays(*tokens.shape[1:], gpus))
    return co.Plan(copies), co.Loads(tokens)


# --- scores ---------------------------------------------------------------------------------


@given(scored())
def test_scores_equal_a_plain_recomputation(case):
    plan, loads = case
    slow = slow_scores(plan.copies.tolist(), loads.tokens.tolist())
    scores = co.evaluate(plan, loads)
    exact = lambda table: np.array(table, dtype=np.float64)  # noqa: E731
    np.testing.assert_allclose(scores.max_load, exact(slow.largest), rtol=1e-12)
    np.testing.assert_allclose(scores.mean_load, exact(slow.mean), rtol=1e-12)
    np.testing.assert_allclose(scores.balancedness, exact(slow.balancedness), rtol=1e-12)
    assert scores.mean_balancedness == pytest.approx(float(slow.mean_balancedness), rel=1e-12)
    assert scores.relative_time == pytest.approx(float(slow.relative_time), rel=1e-12)
    layers = zip(*slow.balancedness, strict=True)
    worst = min(sum(layer) / len(layer) for layer in layers)
    assert scores.worst_layer == pytest.approx(float(worst), rel=1e-12)


@given(scored())
def test_engines_figures_equal_a_plain_recomputation(case):
    plan, loads = case
    slow = slow_scores(plan.copies.tolist(), loads.tokens.tolist())
    cells = [
        (float(most), float(mean))
        for rows in zip(slow.largest, slow.mean, strict=True)
        for most, mean in zip(*rows, strict=True)
    ]
    figures = co.evaluate(plan, loads).engine_metrics
    sglang = [(mean + 1e-5) / (most + 1e-5) for most, mean in cells]
    tensorrt = [(most - mean) / mean if mean else 0.0 for most, mean in cells]
    assert figures == pytest.approx(
        {
            "sglang": sum(sglang) / len(cells),
            "vllm": float(1 / slow.relative_time),
            "tensorrt-llm": sum(tensorrt) / len(cells),
        },
        rel=1e-9,
        abs=1e-12,
    )


@given(scored())
def test_scores_keep_their_ranges(case):
    scores = co.evaluate(*case)
    assert (scores.max_load >= scores.mean_load).all()
    assert ((scores.balancedness > 0) & (scores.balancedness <= 1)).all()
    assert scores.relative_time >= 1
    assert 0 < scores.worst_layer <= scores.mean_balancedness + 1e-12


@given(scored())
def test_gpu_loads_add_up_to_the_tokens(case):
    plan, loads = case
    np.testing.assert_allclose(
        gpu_loads(plan, loads).sum(axis=2), loads.tokens.sum(axis=2), rtol=1e-12
    )


def test_worked_example_with_a_duplicate():
    # Expert 0 has two copies on GPU 0 and one on GPU 1: 4 + 4 of its 12 tokens, and 4.
    plan = co.Plan([[[2, 1], [0, 1]]])
    scores = co.evaluate(plan, co.Loads([[[12, 2]], [[0, 6]]]))
    assert scores.max_load.tolist() == [[8], [6]]
    assert scores.mean_load.tolist() == [[7], [3]]
    assert scores.balancedness.tolist() == [[0.875], [0.5]]
    assert scores.mean_balancedness == 0.6875
    assert scores.relative_time == 1.4
    assert scores.engine_metrics["vllm"] == pytest.approx(10 / 14)
    assert scores.engine_metrics["tensorrt-llm"] == pytest.approx((1 / 7 + 1) / 2)


def test_windows_without_tokens_count_as_balanced_and_free():
    plan = co.Plan([[[1, 0], [0, 1]]])
    scores = co.evaluate(plan, co.Loads([[[0, 0]], [[2, 0]]]))
    assert scores.balancedness.tolist() == [[1], [0.5]]
    assert scores.max_load.tolist() == [[0], [2]]
    assert scores.relative_time == 2
    assert scores.engine_metrics["tensorrt-llm"] == 0.5
    idle = co.evaluate(plan, co.Loads([[0, 0]]))
    assert (idle.mean_balancedness, idle.relative_time, idle.worst_layer) == (1, 1, 1)
    assert idle.engine_metrics == {"sglang": 1, "vllm": 1, "tensorrt-llm": 0}


def test_scores_cannot_be_changed():
    scores = co.evaluate(co.Plan([[[1]]]), co.Loads([[1]]))
    for array in (scores.max_load, scores.mean_load, scores.balancedness):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_refuses_loads_of_another_shape_and_other_layers():
    plan = co.Plan(np.ones((2, 3, 2), int), [4, 5])
    with pytest.raises(co.InputError, match=r"layers 4-5 \(2\), the loads 0 \(1\)"):
        co.evaluate(plan, co.Loads(np.ones((1, 3))))
    with pytest.raises(co.InputError, match="2 layers of 3 experts"):
        co.evaluate(plan, co.Loads(np.ones((2, 4))))
    with pytest.raises(co.InputError, match=r"layers 4-5 \(2\), the loads 4, 6 \(2\)"):
        co.evaluate(plan, co.Loads(np.ones((2, 3)), [4, 6]))
    assert co.evaluate(plan, co.Loads(np.ones((2, 3)), [4, 5])).relative_time == 1


def test_refuses_an_unknown_dispatch():
    with pytest.raises(co.InputError, match="dispatch='fair' is unknown"):
        co.evaluate(co.Plan([[[1]]]), co.Loads([[1]]), dispatch="fair")


@given(problems(), st.data())
def test_objective_is_the_problems_own(problem, data):
    shape = (problem.loads.layers, problem.loads.experts, problem.gpus)
    plan = co.Plan(data.draw(copies_arrays(*shape)))
    assert objective_value(plan, problem) == pytest.approx(slow_objective(plan, problem), rel=1e-12)


def test_gap_is_relative_to_the_bound_for_time_and_to_the_value_for_balancedness():
    assert OBJECTIVES["time"].gap(1.5, 1.2) == pytest.approx(0.25)
    assert OBJECTIVES["balancedness"].gap(0.8, 0.9) == pytest.approx(0.125)
    assert OBJECTIVES["time"].gap(1.2 - 1e-16, 1.2) == 0


# --- rules: one plan that breaks each, and one near it that does not --------------------------

LOADS = co.Loads(np.ones((2, 4)))  # 2 layers, 4 experts
PREVIOUS = co.Plan.from_phy2log([[0, 1, 2, 3], [0, 1, 2, 3]], gpus=2, experts=4)

RULES = [
    (
        "duplicates",
        {"gpus": 2, "replicas": 4},
        [[0, 1, 0, 2, 3, 3], [0, 1, 2, 0, 2, 3]],
        [[0, 1, 3, 0, 2, 3], [0, 1, 2, 0, 2, 3]],
    ),
    (
        "max copies",
        {"gpus": 3, "replicas": 4, "max_copies": 2},
        [[0, 1, 0, 2, 0, 3], [0, 1, 0, 2, 1, 3]],
        [[0, 1, 0, 2, 1, 3], [0, 1, 0, 2, 1, 3]],
    ),
    (
        "budget",
        {"gpus": 2, "replicas": 3},
        [[0, 1, 2, 0, 1, 3], [0, 1, 2, 0, 1, 3]],
        [[0, 1, 2, 0, 1, 3], [0, 1, 2, 0, -1, 3]],
    ),
    (
        "uniform slots",
        {"gpus": 2, "slots": "uniform", "replicas": 4},
        [[0, 1, 2, 0, 1, 3], [0, 1, -1, 2, 3, -1]],
        [[0, 1, 2, 0, 1, 3], [0, 1, 2, 0, 2, 3]],
    ),
    (
        "even slots",
        {"gpus": 2, "slots": "even", "replicas": 4},
        [[0, 1, 2, 3, -1, -1], [0, -1, -1, 1, 2, 3]],
        [[0, 1, 2, 0, 3, -1], [0, 1, -1, 1, 2, 3]],
    ),
    (
        "equal totals",
        {"gpus": 2, "slots": "free", "replicas": 4},
        [[0, 1, 2, 3, -1, -1], [0, 1, -1, 2, 3, -1]],
        [[0, 1, 2, 3, -1, -1], [0, 1, -1, 0, 2, 3]],
    ),
    (
        "expert groups",
        {"gpus": 4, "nodes": 2, "expert_groups": [0, 1, 0, 1], "replicas": 4},
        [[0, 1, 2, 3], [0, 2, 3, 1]],
        [[1, 3, 2, 0], [0, 2, 3, 1]],
    ),
    (  # the groups of one expert stay on a node, but both on the same
        "expert groups",
        {"gpus": 2, "nodes": 2, "expert_groups": 4, "replicas": 4},
        [[0, 1, 2, 3, -1, -1], [0, -1, -1, 1, 2, 3]],
        [[0, 1, -1, 2, 3, -1], [0, 3, -1, 1, 2, -1]],
    ),
    (  # groups are in place, but a node has a slot more
        "expert groups",
        {"gpus": 4, "nodes": 2, "expert_groups": 2, "replicas": 4},
        [[0, -1, 0, 1, 2, -1, 3, -1], [0, -1, 1, -1, 2, -1, 3, -1]],
        [[0, -1, 0, 1, 2, -1, 2, 3], [0, 1, 0, -1, 2, 3, 3, -1]],
    ),
    (
        "max moves",
        {"gpus": 2, "replicas": 4, "previous": PREVIOUS, "max_moves": 2},
        [[0, 2, 1, 3], [2, 3, 0, 1]],
        [[0, 2, 1, 3], [1, 0, 3, 2]],
    ),
]


@pytest.mark.parametrize(("rule", "arguments", "wrong", "right"), RULES)
def test_each_rule_is_named_by_the_plan_that_breaks_it(rule, arguments, wrong, right):
    problem = co.Problem(LOADS, **arguments)
    breaking = co.Plan.from_phy2log(wrong, problem.gpus, 4)
    texts = violations(breaking, problem)
    assert rules_named(texts) == {rule} == broken_rules(breaking, problem)
    assert len(texts) == 1
    near = co.Plan.from_phy2log(right, problem.gpus, 4)
    assert violations(near, problem) == () == tuple(broken_rules(near, problem))


def test_copies_hosted_twice_are_moved_twice():
    problem = co.Problem(LOADS, gpus=2, replicas=4, previous=PREVIOUS, max_moves=0)
    plan = co.Plan.from_phy2log([[0, 1, 1, 2, 3, 3], [0, 1, -1, 2, 3, -1]], 2, 4)
    assert any("2 copies are new on their GPUs" in text for text in violations(plan, problem))


@given(problems(), st.data())
def test_rules_equal_a_plain_recomputation(problem, data):
    shape = (problem.loads.layers, problem.loads.experts, problem.gpus)
    if data.draw(st.booleans()):
        rules = {
            "previous": co.Plan(data.draw(copies_arrays(*shape))),
            "max_moves": data.draw(st.integers(0, int(np.prod(shape)))),
        }
        problem = quiet(lambda: problem.replace(**rules))
    plan = co.Plan(data.draw(copies_arrays(*shape)))
    if data.draw(st.booleans()):  # a plan near a valid one breaks few rules, each at its edge
        valid = co.solve(problem, "trivial").plan.copies.astype(np.int64)
        layer = data.draw(st.integers(0, shape[0] - 1))
        expert = data.draw(st.integers(0, shape[1] - 1))
        gpu = data.draw(st.integers(0, shape[2] - 1))
        valid[layer, expert, gpu] += 1
        plan = co.Plan(valid)
    texts = violations(plan, problem)
    assert rules_named(texts) == broken_rules(plan, problem)
    assert len(texts) == len(rules_named(texts))


def test_refuses_to_check_a_plan_of_another_size():
    problem = co.Problem(LOADS, gpus=2)
    with pytest.raises(co.InputError, match="for 3 GPUs, the problem for 2"):
        violations(co.Plan(np.ones((2, 4, 3), int)), problem)
    with pytest.raises(co.InputError, match="2 layers of 5 experts"):
        violations(co.Plan(np.ones((2, 5, 2), int)), problem)
