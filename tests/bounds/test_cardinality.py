"""The cardinality bound never exceeds the optimum: tried against all placements of tiny layers."""

from __future__ import annotations

import numpy as np
import pytest
from reference.enumeration import best_by_enumeration, least_max_load
from strategies import quiet

import craftopt as co
from craftopt.bounds import cardinality_bound, layer_costs, max_copy_load, whole_plan_bound

# --- the optimum, by enumeration ------------------------------------------------------------


def floor_of(tokens: np.ndarray, replicas: int, gpus: int, copies_limit: int) -> float:
    """Return what mean load and heaviest copy say."""
    heaviest = max_copy_load(tokens, replicas, copies_limit)[-1]
    return max(float(tokens.sum()) / gpus, float(heaviest))


# --- tiny layers ----------------------------------------------------------------------------

KINDS = ("small", "spiky", "lognormal", "heavy", "companions", "real")


def tiny_layer(rng: np.random.Generator) -> tuple[np.ndarray, int, int, int]:
    """Draw tokens, replicas, GPUs and the copies limit of a layer that can be enumerated."""
    gpus = int(rng.integers(2, 5))
    replicas = int(rng.choice([0, 1, 1, 2, 2, 3, 4]))
    most = {2: 9, 3: 9, 4: 10 - replicas}[gpus]
    experts = int(rng.integers(min(most - 1, 2 * gpus - 1), most)) if rng.random() < 0.8 else gpus
    kind = KINDS[rng.integers(len(KINDS))]
    if kind == "small":
        tokens = rng.integers(0, 8, experts)
    elif kind == "spiky":
        tokens = rng.integers(0, 4, experts)
        tokens[rng.integers(0, experts, 2)] += rng.integers(5, 60)
    elif kind == "lognormal":
        tokens = np.round(100 * rng.lognormal(0, rng.uniform(0.3, 2), experts))
    elif kind in ("heavy", "companions"):  # as many heavy experts as GPUs, or one less or more
        tokens = rng.integers(4, 13, experts)
        heavy = rng.permutation(experts)[: gpus + rng.integers(-1, 2)]
        tokens[heavy] += rng.integers(10, 40) + rng.integers(0, 4, heavy.size)
        if kind == "companions":
            tokens[rng.integers(0, experts)] *= 2
    else:
        tokens = rng.exponential(1.0, experts)
    copies_limit = int(rng.integers(1, gpus + 1))
    replicas = min(replicas, experts * (copies_limit - 1))
    return tokens.astype(np.float64), replicas, gpus, copies_limit


def check(instances: int, seed: int) -> tuple[int, int]:
    """Compare bound and optimum; return how often the bound says more, and all that can be said."""
    rng = np.random.default_rng(seed)
    sharper = tight = 0
    for _ in range(instances):
        tokens, replicas, gpus, copies_limit = tiny_layer(rng)
        best = least_max_load(tokens, replicas, gpus, copies_limit)
        floor = floor_of(tokens, replicas, gpus, copies_limit)
        load, price = cardinality_bound(tokens, replicas, gpus, copies_limit, floor)
        case = (tokens.tolist(), replicas, gpus, copies_limit)
        assert load <= best * (1 + 1e-12), f"bound {load} above the optimum {best}: {case}"
        assert load >= floor, f"bound {load} below what it was given, {floor}: {case}"
        assert (load > floor) == (price > 0), case
        sharper += load > floor
        tight += floor < load >= best * (1 - 1e-8)
    return sharper, tight


def test_the_bound_never_exceeds_the_optimum():
    sharper, tight = check(2_000, seed=1)
    # The test would say nothing if the bound did not bite.
    assert sharper > 200
    assert tight > 150


@pytest.mark.slow
def test_the_bound_never_exceeds_the_optimum_on_thousands():
    sharper, tight = check(100_000, seed=2)
    assert sharper > 10_000
    assert tight > 7_500


def test_enumeration_agrees_with_the_other_enumeration():
    """`best_by_enumeration` is slower and shares nothing with `least_max_load`."""
    rng = np.random.default_rng(3)
    compared = 0
    while compared < 40:
        tokens, replicas, gpus, copies_limit = tiny_layer(rng)
        if tokens.size * gpus > 12 or not tokens.any():
            continue
        loads = co.Loads(tokens[np.newaxis])
        problem = co.Problem(loads, gpus, replicas=replicas, max_copies=copies_limit, slots="even")
        exactly = [least_max_load(tokens, r, gpus, copies_limit) for r in range(replicas + 1)]
        best = best_by_enumeration(problem)
        assert best == pytest.approx(min(exactly) / (tokens.sum() / gpus), rel=1e-12)
        compared += 1


# --- what it is good for --------------------------------------------------------------------


def test_it_proves_optima_that_mean_and_heaviest_copy_miss():
    """Three GPUs host seven experts: the two heavy ones need a companion each."""
    tokens = np.array([60.0, 60, 20, 20, 20, 20, 20])
    floor = floor_of(tokens, 0, 3, 3)
    assert floor == pytest.approx(220 / 3)
    load, _ = cardinality_bound(tokens, 0, 3, 3, floor)
    assert load == pytest.approx(80, rel=1e-9) == least_max_load(tokens, 0, 3, 3)


def test_the_bound_scales_with_the_loads():
    rng = np.random.default_rng(6)
    for _ in range(50):
        tokens, replicas, gpus, copies_limit = tiny_layer(rng)
        floor = floor_of(tokens, replicas, gpus, copies_limit)
        load, price = cardinality_bound(tokens, replicas, gpus, copies_limit, floor)
        for scale in (2.0**-40, 2.0**30):  # powers of two round nothing
            scaled = cardinality_bound(tokens * scale, replicas, gpus, copies_limit, floor * scale)
            assert scaled == (load * scale, price * scale)


def test_whole_plans_are_bounded_by_it_where_slots_are_even():
    rng = np.random.default_rng(0)
    loads = co.Loads(np.round(rng.lognormal(sigma=1.2, size=(1, 6, 64)) * 1000))
    for slots, replicas in (("even", 0), ("even", 12), ("uniform", 0)):
        problem = co.Problem(loads, 16, replicas=replicas, slots=slots)
        by_copies = problem.replace(slots="free")
        assert whole_plan_bound(problem) > 1.01 * whole_plan_bound(by_copies)
        result = co.solve(problem, "nominal")
        assert whole_plan_bound(problem) <= result.objective


def test_uniform_slots_may_be_fewer_than_the_budget_pays_for():
    """The bound holds for plans that fill fewer slots: they keep the rule as well."""
    rng = np.random.default_rng(8)
    for _ in range(30):
        tokens = rng.integers(1, 30, (1, 1, 4)).astype(float)
        problem = quiet(lambda t=tokens: co.Problem(co.Loads(t), 2, replicas=2, slots="uniform"))
        best = best_by_enumeration(problem)
        assert whole_plan_bound(problem) <= best * (1 + 1e-12)


def test_layer_costs_stay_cheap_and_never_rise():
    """They hold for at most so many replicas, which cardinality does not."""
    rng = np.random.default_rng(9)
    loads = co.Loads(np.round(rng.lognormal(sigma=1.2, size=(1, 3, 24)) * 1000))
    costs = layer_costs(co.Problem(loads, 8, replicas=20, slots="even"))
    assert (np.diff(costs, axis=1) <= 0).all()
