"""Common copies: no choice of copies, and so no plan, costs less than the bound."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from files import measured
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference.enumeration import best_by_enumeration
from strategies import problems, token_arrays

import craftopt as co
from craftopt.bounds import layer_costs
from craftopt.bounds.common_copies import common_copies_curve, common_copies_witness
from craftopt.knapsack import allocate

OBJECTIVES = ("time", "balancedness")
LAYERS = token_arrays((1, 4), (1, 1), (1, 4))


def window_cost(counts, gpus, copies, objective):
    """Cost of one window in which every copy has a GPU of its own, exactly."""
    counts = [Fraction(count) for count in counts]
    mean = sum(counts) / gpus
    load = max(mean, *(count / number for count, number in zip(counts, copies, strict=True)))
    if objective == "time":
        return load
    return -mean / load if load else Fraction(-1)


def costs_by_enumeration(tokens, gpus, limit, objective):
    """List the least cost of every number of replicas, trying every choice of copies."""
    experts = tokens.shape[1]
    best = [None] * (experts * (limit - 1) + 1)
    for copies in itertools.product(range(1, limit + 1), repeat=experts):
        cost = sum(window_cost(counts, gpus, copies, objective) for counts in tokens.tolist())
        replicas = sum(copies) - experts
        if best[replicas] is None or cost < best[replicas]:
            best[replicas] = cost
    return list(itertools.accumulate(best, min))


def convex_envelope(costs):
    """Return the largest convex sequence below the costs."""
    result = []
    for at in range(len(costs)):
        below = [costs[at]]
        for left, right in itertools.product(range(at), range(at + 1, len(costs))):
            slope = (costs[right] - costs[left]) / (right - left)
            below.append(costs[left] + slope * (at - left))
        result.append(min(below))
    return result


def proven_line(witness, tokens, gpus, limit, objective):
    """Check a witness in exact arithmetic; return cost at 0 replicas and the fall per replica.

    Raises AssertionError where the witness does not prove what it says.
    """
    scale, price = Fraction(witness["scale"]), witness["price"]
    assert price >= 0
    assert scale > 0
    base = credit = Fraction(0)
    taken: dict[tuple[int, int], int] = {}
    for window, counts in enumerate(tokens.tolist()):
        idle = [limit] * len(counts)
        floor = window_cost(counts, gpus, idle, objective)
        base += floor
        mean = Fraction(sum(map(Fraction, counts))) / gpus
        levels = []
        for expert, step, amount in witness["windows"].get(str(window), []):
            assert 2 <= step <= limit
            assert amount > 0
            level = Fraction(counts[expert]) / (step - 1)
            cost = level if objective == "time" else -mean / level
            levels.append((cost, amount))
            taken[expert, step] = taken.get((expert, step), 0) + amount
        spent = 0
        for cost, amount in sorted(levels):
            spent += amount
            assert spent <= (cost - floor) * scale
        credit += spent
    for expert in {expert for expert, _ in taken}:
        spent = 0
        for step in range(2, limit + 1):
            spent += taken.get((expert, step), 0)
            assert spent <= price * (step - 1)
    return base + credit / scale, Fraction(price) / scale


def assert_curve_is_the_envelope(tokens, gpus, limit, objective):
    exact = costs_by_enumeration(tokens, gpus, limit, objective)
    choices = np.arange(len(exact))
    curve = common_copies_curve(tokens, gpus, limit, choices, objective)
    noise = 1e-9 * (1 + max(map(abs, exact)))
    for bound, cost, envelope in zip(curve, exact, convex_envelope(exact), strict=True):
        assert bound <= cost + noise
        assert bound == pytest.approx(float(envelope), abs=noise)
    some = choices[:: max(1, len(exact) // 3)]
    alone = common_copies_curve(tokens, gpus, limit, some, objective)
    assert alone == pytest.approx(curve[some], abs=noise)


def assert_witness_proves(tokens, gpus, limit, price, objective):
    exact = costs_by_enumeration(tokens, gpus, limit, objective)
    witness = common_copies_witness(tokens, gpus, limit, price, objective)
    start, fall = proven_line(witness, tokens, gpus, limit, objective)
    for replicas, cost in enumerate(exact):
        assert start - fall * replicas <= cost
    # ... and it proves the most that a line of that fall can.
    most = min(cost + fall * replicas for replicas, cost in enumerate(exact))
    assert float(start) == pytest.approx(float(most), abs=1e-9 * (1 + max(map(abs, exact))))


cases = given(LAYERS, st.integers(1, 5), st.integers(1, 4), st.sampled_from(OBJECTIVES))
prices = st.floats(0, 4, allow_subnormal=False)


@settings(max_examples=60)
@cases
def test_curve_is_the_convex_envelope_of_trying_every_choice(tokens, gpus, limit, objective):
    assert_curve_is_the_envelope(tokens[:, 0], gpus, min(gpus, limit), objective)


@settings(max_examples=150)
@given(LAYERS, st.integers(1, 5), st.integers(1, 4), prices, st.sampled_from(OBJECTIVES))
def test_witness_proves_its_line_in_whole_numbers(tokens, gpus, limit, price, objective):
    if objective == "time":
        price *= tokens.max()
    assert_witness_proves(tokens[:, 0], gpus, min(gpus, limit), price, objective)


@pytest.mark.slow
@settings(
    max_examples=4000, derandomize=False, suppress_health_check=list(HealthCheck), deadline=None
)
@given(LAYERS, st.integers(1, 6), st.integers(1, 4), prices, st.sampled_from(OBJECTIVES))
def test_curve_and_witness_on_thousands(tokens, gpus, limit, price, objective):
    assert_curve_is_the_envelope(tokens[:, 0], gpus, min(gpus, limit), objective)
    if objective == "time":
        price *= tokens.max()
    assert_witness_proves(tokens[:, 0], gpus, min(gpus, limit), price, objective)


def shared_costs(problem):
    """Bound every layer for every number of replicas, by common copies alone."""
    choices = np.arange(0, problem.layer_replicas_limit + 1, problem.replica_step)
    if problem.slots == "uniform":
        choices = np.array([problem.layer_replicas_limit])
    return np.array(
        [
            common_copies_curve(
                tokens, problem.gpus, problem.copies_limit, choices, problem.objective
            )
            for tokens in problem.loads.tokens.transpose(1, 0, 2)
        ]
    )


def assert_no_plan_is_better(problem):
    best = best_by_enumeration(problem)
    costs = shared_costs(problem)
    if problem.slots == "uniform":
        cost = costs[:, -1].sum()
    else:
        cost = allocate(costs, problem.replicas, problem.replica_step)[1]
    cells = problem.loads.windows * problem.loads.layers
    if problem.objective == "balancedness":
        assert best <= -cost / cells + 1e-9
    elif problem.loads.tokens.any():
        assert best >= cost / (problem.loads.tokens.sum() / problem.gpus) - 1e-9


TINY = {"windows": (1, 4), "layers": (1, 2), "most_experts": 4, "most_gpus": 4, "most_cells": 9}


@settings(max_examples=50)
@given(problems(**TINY))
def test_no_plan_is_better_than_the_bound(problem):
    assert_no_plan_is_better(problem)


@pytest.mark.slow
@settings(
    max_examples=4000, derandomize=False, suppress_health_check=list(HealthCheck), deadline=None
)
@given(problems(**{**TINY, "most_cells": 12}))
def test_no_plan_is_better_than_the_bound_on_thousands(problem):
    assert_no_plan_is_better(problem)


def test_a_false_witness_is_seen_by_the_check():
    tokens = np.array([[8.0, 1, 1], [1, 8, 1]])
    witness = common_copies_witness(tokens, 2, 2, 3.0)
    start, fall = proven_line(witness, tokens, 2, 2, "time")
    assert float(start) == pytest.approx(16)
    assert float(fall) == pytest.approx(3)
    expert, step, amount = witness["windows"]["0"][0]
    more = {**witness, "windows": {**witness["windows"], "0": [[expert, step, amount + 4]]}}
    cheap = {**witness, "price": witness["price"] - 4}
    for wrong in (more, cheap):
        with pytest.raises(AssertionError):
            proven_line(wrong, tokens, 2, 2, "time")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_witness_holds_where_loads_are_nearly_equal(objective):
    # What lies above the mean is then lost in rounding, and must not be claimed.
    rng = np.random.default_rng(0)
    for digits in range(1, 17):
        for experts in (2, 3, 5):
            spread = 1 + rng.uniform(0, 10.0**-digits, (3, experts))
            tokens = rng.uniform(1, 1000) * spread
            price = tokens.max() if objective == "time" else 1.0
            witness = common_copies_witness(tokens, experts, experts, price, objective)
            proven_line(witness, tokens, experts, experts, objective)


def test_windows_that_share_their_copies_cost_more_than_windows_alone():
    # Each window alone halves its own hot expert with the one replica that there is.
    problem = co.Problem(co.Loads([[[8, 1, 1]], [[1, 8, 1]]]), gpus=2, replicas=2)
    assert layer_costs(problem)[0, 1] == 10
    assert shared_costs(problem)[0] == pytest.approx([16, 13, 10])
    balanced = problem.replace(objective="balancedness")
    assert shared_costs(balanced)[0] == pytest.approx([-10 / 8, -1.625, -2])


def test_one_window_is_bounded_by_its_heaviest_copy():
    # The heaviest copy alone is exact for one window, and so never below the envelope.
    rng = np.random.default_rng(0)
    for _ in range(20):
        problem = co.Problem(co.Loads(rng.pareto(1, (1, 1, 12))), gpus=6, replicas=30)
        alone = layer_costs(problem)[0]
        shared = shared_costs(problem)[0, : alone.size]
        assert (shared <= alone + 1e-9).all()
        assert shared[0] == pytest.approx(alone[0])


def test_many_windows_of_a_large_layer_take_no_time():
    rng = np.random.default_rng(1)
    tokens = rng.lognormal(0, 1.2, (1, 256)) * rng.lognormal(0, 0.8, (200, 256))
    common_copies_curve(tokens[:1], 64, 64, np.arange(3))  # compiled by now
    curve = common_copies_curve(tokens, 64, 64, np.arange(257))
    alone = np.maximum(tokens.sum(axis=1) / 64, tokens.max(axis=1)).sum()
    assert curve[0] == pytest.approx(alone)
    assert (np.diff(curve) <= 0).all()
    assert (np.diff(curve, 2) >= -1e-9 * alone).all()


@pytest.mark.slow
def test_real_windows_are_bounded_far_above_what_windows_alone_say():
    loads = co.read_loads(measured("glm52_five_domains"))
    planned, _ = loads.split(np.arange(loads.windows) % 2 == 1)
    problem = co.Problem(planned, gpus=64, replicas_per_layer=8)
    mean = planned.tokens.sum() / 64
    alone = allocate(layer_costs(problem), problem.replicas)[1] / mean
    shared = allocate(shared_costs(problem), problem.replicas)[1] / mean
    assert alone < 1.06
    assert shared > 1.64


def test_the_program_with_a_budget_equals_trying_every_choice():
    common_copies = pytest.importorskip("craftopt_formulations.common_copies")
    rng = np.random.default_rng(5)
    for objective in OBJECTIVES:
        for solver in ("cp-sat", "highs", "cbc"):
            tokens = np.round(rng.pareto(1.2, (3, 4)) * 100)
            exact = costs_by_enumeration(tokens, 3, 3, objective)
            curve = common_copies_curve(tokens, 3, 3, np.arange(len(exact)), objective)
            for replicas in (0, 2, 3, 5):
                model = common_copies.build(tokens, 3, replicas, 3, objective, solver=solver)
                solved = model.solve()
                span = float(exact[0] - exact[-1])
                assert solved.status == "optimal"
                assert solved.objective == pytest.approx(float(exact[replicas]), abs=1e-5 * span)
                assert solved.counts.sum() <= 4 + replicas
                assert solved.objective >= curve[replicas] - 1e-5 * span
