"""Dispatch lp is the best split there is: brute force, GLOP and the rules of thumb agree."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from files import measured
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import copies_arrays, token_arrays

import craftopt as co


@st.composite
def served(draw, experts=(1, 7), gpus=(1, 6)):
    """Draw a plan, often with duplicates, and loads of its shape."""
    tokens = draw(token_arrays(windows=(1, 2), layers=(1, 2), experts=experts))
    copies = draw(copies_arrays(*tokens.shape[1:], draw(st.integers(*gpus))))
    return co.Plan(copies), co.Loads(tokens)


def plain(plan, loads):
    """Compute the greatest mean load that some GPUs cannot pass on, in exact arithmetic."""
    result = np.empty((loads.windows, loads.layers))
    for window, layer in np.ndindex(result.shape):
        hosts = [frozenset(np.flatnonzero(row).tolist()) for row in plan.copies[layer]]
        tokens = [Fraction(count) for count in loads.tokens[window, layer].tolist()]
        result[window, layer] = max(
            sum(count for count, on in zip(tokens, hosts, strict=True) if on <= set(some))
            / Fraction(size)
            for size in range(1, plan.gpus + 1)
            for some in combinations(range(plan.gpus), size)
        )
    return result


def glop(plan, loads):
    """Solve the linear program: least T with every GPU at T or below."""
    solvers = pytest.importorskip("ortools.linear_solver.pywraplp", reason="needs ortools")
    result = np.zeros((loads.windows, loads.layers))
    for window, layer in np.ndindex(result.shape):
        scale = loads.tokens[window, layer].sum()
        if scale == 0:
            continue
        solver = solvers.Solver.CreateSolver("GLOP")
        largest = solver.NumVar(0, solver.infinity(), "T")
        rows = [solver.Constraint(-solver.infinity(), 0) for _ in range(plan.gpus)]
        for row in rows:
            row.SetCoefficient(largest, -1)
        for expert, count in enumerate((loads.tokens[window, layer] / scale).tolist()):
            all_served = solver.Constraint(count, count)
            for gpu in np.flatnonzero(plan.copies[layer, expert]).tolist():
                share = solver.NumVar(0, solver.infinity(), "")
                all_served.SetCoefficient(share, 1)
                rows[gpu].SetCoefficient(share, 1)
        solver.Minimize(largest)
        assert solver.Solve() == solvers.Solver.OPTIMAL
        result[window, layer] = largest.solution_value() * scale
    return result


def random_plan(layers, experts, gpus, most, seed=0):
    """Give every expert 1 to ``most`` copies on random GPUs."""
    rng = np.random.default_rng(seed)
    copies = np.zeros((layers, experts, gpus), dtype=np.uint8)
    for layer, expert in np.ndindex(layers, experts):
        copies[layer, expert, rng.choice(gpus, rng.integers(1, most + 1), replace=False)] = 1
    return co.Plan(copies)


def random_loads(windows, layers, experts, sigma, seed=0):
    rng = np.random.default_rng(seed)
    return co.Loads(np.round(rng.lognormal(sigma=sigma, size=(windows, layers, experts)) * 1000))


# --- it is the optimum ----------------------------------------------------------------------


@given(served())
def test_equals_brute_force_over_sets_of_gpus(case):
    plan, loads = case
    scored = co.evaluate(plan, loads, dispatch="lp")
    np.testing.assert_allclose(scored.max_load, plain(plan, loads), rtol=1e-9)


@given(served(experts=(1, 12), gpus=(1, 10)))
@settings(max_examples=100)
def test_equals_glop_on_any_plan(case):
    plan, loads = case
    scored = co.evaluate(plan, loads, dispatch="lp")
    np.testing.assert_allclose(scored.max_load, glop(plan, loads), rtol=1e-6)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(("experts", "gpus", "most"), [(64, 16, 2), (64, 16, 9), (96, 48, 3)])
def test_equals_glop_on_larger_plans(experts, gpus, most, sigma):
    """Chains of shared experts over many GPUs take many raises."""
    plan, loads = random_plan(3, experts, gpus, most), random_loads(3, 3, experts, sigma)
    scored = co.evaluate(plan, loads, dispatch="lp")
    np.testing.assert_allclose(scored.max_load, glop(plan, loads), rtol=1e-6)


@pytest.mark.parametrize("method", ["trivial", "placement", "eplb", "nominal"])
def test_equals_glop_on_the_plans_of_methods(method):
    loads = random_loads(4, 3, 32, 1.0)
    planned, unseen = loads.split([True, True, False, False])
    plan = co.solve(co.Problem(planned, gpus=8, replicas_per_layer=8, slots="uniform"), method).plan
    for windows in (planned, unseen):
        scored = co.evaluate(plan, windows, dispatch="lp")
        np.testing.assert_allclose(scored.max_load, glop(plan, windows), rtol=1e-6)


# --- what follows from that -----------------------------------------------------------------


@given(served())
def test_lies_between_the_mean_and_even_dispatch(case):
    plan, loads = case
    even, best = co.evaluate(plan, loads), co.evaluate(plan, loads, dispatch="lp")
    assert np.array_equal(even.mean_load, best.mean_load)
    assert (best.max_load <= even.max_load * (1 + 1e-12)).all()
    assert (best.max_load >= best.mean_load).all()


@given(served())
def test_a_second_copy_on_a_gpu_changes_nothing(case):
    plan, loads = case
    once = co.evaluate(co.Plan(np.minimum(plan.copies, 1)), loads, dispatch="lp")
    assert np.array_equal(once.max_load, co.evaluate(plan, loads, dispatch="lp").max_load)


@given(served(), st.data())
def test_gpus_may_be_numbered_anew(case, data):
    plan, loads = case
    order = data.draw(st.permutations(range(plan.gpus)))
    renumbered = co.evaluate(co.Plan(plan.copies[:, :, order]), loads, dispatch="lp")
    scored = co.evaluate(plan, loads, dispatch="lp")
    np.testing.assert_allclose(renumbered.max_load, scored.max_load, rtol=1e-9)


def test_without_replicas_there_is_no_choice():
    loads = random_loads(3, 2, 32, 1.0)
    plan = co.solve(co.Problem(loads, gpus=8), "placement").plan
    even, best = co.evaluate(plan, loads), co.evaluate(plan, loads, dispatch="lp")
    np.testing.assert_allclose(best.max_load, even.max_load, rtol=1e-12)


def test_with_every_expert_everywhere_the_balance_is_perfect():
    scored = co.evaluate(
        co.Plan(np.ones((2, 9, 7), dtype=int)), random_loads(3, 2, 9, 3.0), dispatch="lp"
    )
    np.testing.assert_allclose(scored.balancedness, 1.0, rtol=1e-9)


def test_a_layer_without_tokens_is_balanced():
    plan = co.Plan(np.ones((2, 3, 2), dtype=int))
    scored = co.evaluate(plan, co.Loads([[[1, 2, 3], [0, 0, 0]]]), dispatch="lp")
    assert scored.balancedness[0, 1] == 1
    assert scored.max_load[0, 1] == 0


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_the_unit_of_tokens_does_not_matter(scale):
    plan, loads = random_plan(2, 20, 6, 3), random_loads(2, 2, 20, 1.0)
    scored = co.evaluate(plan, co.Loads(loads.tokens * scale), dispatch="lp")
    expected = co.evaluate(plan, loads, dispatch="lp")
    np.testing.assert_allclose(scored.balancedness, expected.balancedness, rtol=1e-9)


def test_eplbs_plan_of_a_real_model_gains_from_the_best_split():
    """64 GPUs, 64 replicas per layer, planned on odd windows: .481 even, .562 lp, unseen."""
    loads = co.read_loads(measured("glm52_five_domains"))
    planned, unseen = co.holdout(loads, "odd-even")
    problem = co.Problem(planned, gpus=64, replicas_per_layer=64, slots="uniform")
    plan = co.solve(problem, "eplb").plan
    assert co.evaluate(plan, unseen).mean_balancedness == pytest.approx(0.481, abs=0.001)
    best = co.evaluate(plan, unseen, dispatch="lp")
    assert best.mean_balancedness == pytest.approx(0.562, abs=0.001)
    some = co.Loads(unseen.tokens[::5, ::15])
    sample = co.Plan(plan.copies[::15])
    expected = glop(sample, some)
    np.testing.assert_allclose(best.max_load[::5, ::15], expected, rtol=1e-6)
