"""Companions at a price: no even placement costs less, and no witness proves more, whoever made it.

The optima are found by listing every placement; what witnesses prove is computed in fractions.
"""

from __future__ import annotations

import copy
from fractions import Fraction

import numpy as np
import pytest
from files import measured
from numba import njit

import craftopt as co
from craftopt.bounds import Companions, best_companions, common_copies_witness, whole_plan_bound
from craftopt.verification import ExactProblem


@njit(cache=True)
def least_cost(tokens, replicas, gpus, limit, time):
    """List all even placements with exactly so many replicas; return the least summed cost."""
    windows, experts = tokens.shape
    copies, sets = experts + replicas, 2**gpus
    most = -(-copies // gpus)
    size = np.zeros(sets, dtype=np.int64)
    for bits in range(sets):
        for gpu in range(gpus):
            size[bits] += bits >> gpu & 1
    best = np.inf
    hosts = np.ones(experts, dtype=np.int64)
    load, slots = np.zeros((gpus, windows)), np.zeros(gpus, dtype=np.int64)
    while True:
        slots[:], load[:] = 0, 0.0
        for e in range(experts):
            for gpu in range(gpus):
                if hosts[e] >> gpu & 1:
                    slots[gpu] += 1
                    for w in range(windows):
                        load[gpu, w] += tokens[w, e] / size[hosts[e]]
        even = slots.sum() == copies and slots.min() >= copies // gpus and slots.max() <= most
        if even and size[hosts].max() <= limit:
            cost = 0.0
            for w in range(windows):
                largest = load[:, w].max()
                if time:
                    cost += largest
                else:
                    cost -= tokens[w].sum() / gpus / largest if largest > 0 else 1.0
            best = min(best, cost)
        e = 0
        while e < experts and hosts[e] == sets - 1:
            hosts[e] = 1
            e += 1
        if e == experts:
            return best
        hosts[e] += 1


def random_tokens(rng, windows, experts):
    """Draw loads: ties, zeros, hot beside light experts, windows that are alike, heavy tails."""
    shape = windows, experts
    kind = rng.integers(5)
    if kind == 0:
        return rng.integers(0, 12, shape).astype(float)
    if kind == 1:
        hot = rng.random(shape) < 0.3
        return np.where(hot, rng.integers(20, 60, shape), rng.integers(0, 6, shape)).astype(float)
    if kind == 2:
        return rng.exponential(3.0, shape)
    if kind == 3:
        return rng.integers(1, 9, experts) * rng.integers(1, 5, (windows, 1)).astype(float)
    return np.round(50 * rng.lognormal(0, 1.5, shape))


def mutated(witness, rng):
    """Change one number of a witness, upward or downward, little or much."""
    changed = copy.deepcopy(witness)
    factor = float(rng.choice([0.0, 0.5, 0.9, 1.1, 2.0, 10.0]))
    part = rng.choice(["price", "scale", "companions", "windows"])
    if part == "price":
        changed["price"] = int(changed["price"] * factor)
    elif part == "scale":
        changed["scale"] = str(Fraction(changed["scale"]) * Fraction(factor))
    elif part == "companions" and changed["companions"]:
        key = str(rng.choice(list(changed["companions"])))
        changed["companions"][key] = str(Fraction(changed["companions"][key]) * Fraction(factor))
    elif changed["windows"]:
        credits = changed["windows"][str(rng.choice(list(changed["windows"])))]
        place = int(rng.integers(3))
        credit = credits[rng.integers(len(credits))]
        credit[place] = int(credit[place] * factor) if place == 2 else credit[place] + 1
    return changed


def try_witnesses(instances, seed):
    """Try witnesses, and one mutant of each; count what became of them."""
    rng = np.random.default_rng(seed)
    counts = {"raised": 0, "attained": 0, "mutants": 0, "refused": 0}
    for _ in range(instances):
        gpus = int(rng.integers(2, 4))
        experts = int(rng.integers(2, 6 if gpus == 2 else 5))
        limit = int(rng.integers(1, gpus + 1))
        replicas = int(rng.integers(0, min(4, experts * (limit - 1)) + 1))
        tokens = random_tokens(rng, int(rng.integers(1, 4)), experts)
        objective = ("time", "balancedness")[int(rng.random() < 0.4)]
        optimum = least_cost(tokens, replicas, gpus, limit, objective == "time")
        problem = co.Problem(
            co.Loads(tokens[:, np.newaxis]),
            gpus,
            replicas=replicas,
            slots="even",
            objective=objective,
            max_copies=limit,
        )
        exact = ExactProblem(problem)
        unit = exact.unit if exact.time else 1
        price = rng.choice([0.0, 0.5, 1.5]) * rng.random() * (tokens.max() if exact.time else 1.0)
        beside = (experts + replicas) // gpus - 1
        companions, start = best_companions(tokens, gpus, limit, beside, price, objective)
        if rng.random() < 0.7:  # any others prove something too
            offers = [
                rng.choice([0, rng.choice(row), rng.random() * rng.choice(row) * 1.5])
                for row in tokens
            ]
            companions = Companions(beside, np.array(offers, dtype=np.float64))
        else:
            alone = common_copies_witness(tokens, gpus, limit, price, objective)
            least = float(exact.proven_line(0, alone)[0]) / unit
            counts["raised"] += start > least + 1e-9
        witness = common_copies_witness(tokens, gpus, limit, price, objective, companions)
        noise = 1e-9 * (1.0 + abs(optimum))
        proven = float(exact.proven_cost(0, replicas, witness)) / unit
        assert proven <= optimum + noise, (tokens, gpus, replicas, witness)
        counts["attained"] += proven >= optimum - noise
        mutant = mutated(witness, rng)
        if mutant == witness:
            continue
        counts["mutants"] += 1
        try:
            proven = float(exact.proven_cost(0, replicas, mutant)) / unit
        except co.VerificationError:
            counts["refused"] += 1
            continue
        assert proven <= optimum + noise, (tokens, gpus, replicas, mutant)
    return counts


def test_no_even_placement_costs_less_than_companions_prove():
    counts = try_witnesses(300, seed=1)
    assert all(counts.values())


@pytest.mark.slow
def test_no_even_placement_costs_less_on_a_hundred_thousand():
    counts = try_witnesses(100_000, seed=2)
    print(counts)
    assert counts["refused"] >= 1_000


def test_companions_of_hot_experts_are_charged_for():
    # Each window's hot expert shares its GPU with another of 3 or more.
    tokens = np.array([[30.0, 5, 3, 4, 4, 4], [5, 30, 4, 3, 4, 4]])
    problem = co.Problem(co.Loads(tokens[:, np.newaxis]), gpus=3, slots="even", max_copies=1)
    mean = tokens.sum() / 3
    assert whole_plan_bound(problem) == pytest.approx(66 / mean)
    assert least_cost(tokens, 0, 3, 1, True) == pytest.approx(66)
    result = co.solve(problem, "fast")
    certificate = co.certify(problem, result.plan)
    co.verify(certificate)
    assert certificate.bound == pytest.approx(66 / mean)


def test_free_slots_have_no_companions():
    tokens = np.array([[[30.0, 5, 3, 4, 4, 4]] * 2, [[5, 30, 4, 3, 4, 4]] * 2])
    problem = co.Problem(co.Loads(tokens), gpus=3, slots="free", max_copies=1)
    certificate = co.certify(problem, co.solve(problem, "fast").plan)
    witness = {
        "kind": "credits",
        "price": 0,
        "scale": "1",
        "windows": {},
        "companions": {"0": "3"},
    }
    with pytest.raises(co.VerificationError, match="even slots"):
        ExactProblem(problem).proven_cost(0, 0, witness)
    assert certificate.bound == pytest.approx(60 * 3 * 2 / tokens.sum())


@pytest.mark.slow
def test_companions_raise_the_bound_of_real_windows():
    loads = co.read_loads(measured("glm52_five_domains"))
    planned, _ = loads.split(np.arange(loads.windows) % 2 == 1)
    problem = co.Problem(planned, gpus=64, replicas_per_layer=8, slots="even")
    assert whole_plan_bound(problem.replace(slots="free")) < 1.65
    assert whole_plan_bound(problem) > 1.675
