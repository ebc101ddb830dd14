"""Bounds on node visits never exceed the optimum, and no false certificate passes."""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
from reference.visits import fewest_visits, fewest_with_replicas, partitions, tiny_layer

import craftopt.verification_traffic as checker
from craftopt.bounds.traffic import (
    certify_visits,
    column_bound,
    companion_bound,
    count_visits,
    node_sizes,
    token_sets,
)
from craftopt.errors import InputError, VerificationError
from craftopt.verification_traffic import check_visits, placement_visits, proven_visits

# --- tiny layers, and the fewest visits by enumeration --------------------------------------


def check_single_copies(instances, seed):
    """Compare bounds and optimum; return the companion bound's mean gap, and how often it is 0."""
    rng = np.random.default_rng(seed)
    gaps = []
    for _ in range(instances):
        experts = int(rng.integers(4, 9))
        nodes = int(rng.integers(2, min(4, experts // 2) + 1))
        gpus = nodes * int(rng.integers(1, 3))
        sizes = node_sizes(experts, gpus, nodes)
        sets = tiny_layer(rng, experts, int(rng.integers(2, min(4, experts - 1) + 1)))
        best = fewest_visits(sets, nodes, (max(1, sizes[0]), sizes[1]))
        case = sets.case(nodes, sizes)
        state = f"seed {seed}, instance {len(gaps)}: {case}"
        assert proven_visits(case, {"kind": "capacity"}) <= best, state
        companions = companion_bound(sets, nodes, sizes[1], rounds=60)
        assert proven_visits(case, companions.witness) == companions.visits <= best, state
        gaps.append(best / companions.visits - 1)
        if sizes[0] > 0:
            columns = column_bound(sets, nodes, sizes)
            assert columns.visits == columns.found == best, state
            assert count_visits(sets, columns.node_of) == best, state
            assert proven_visits(case, columns.witness) == best, state
    return float(np.mean(gaps)), gaps.count(0)


def check_replicas(instances, seed):
    """Compare bounds and optima with replicas; return the mean gaps, even and any dispatch."""
    rng = np.random.default_rng(seed)
    gaps = []
    for _ in range(instances):
        experts, nodes = ((4, 2), (5, 2), (3, 3), (4, 3))[int(rng.integers(4))]
        replicas = int(rng.integers(1, nodes + 1))
        size = min(experts, -(-(experts + replicas) // nodes))
        replicas = min(replicas, nodes * size - experts)
        if replicas == 0:
            continue
        sets = tiny_layer(rng, experts, int(rng.integers(2, experts)))
        optima = fewest_with_replicas(sets, nodes, size, replicas)
        for dispatch, best in zip(("even", "any"), optima, strict=True):
            bound = companion_bound(
                sets, nodes, size, replicas=replicas, dispatch=dispatch, rounds=60
            )
            case = sets.case(nodes, (0, size), replicas, dispatch)
            assert proven_visits(case, bound.witness) == bound.visits
            assert bound.visits <= best + 1e-9, f"seed {seed}, {dispatch}: {case}"
            gaps.append(best / float(bound.visits) - 1)
    return float(np.mean(gaps[::2])), float(np.mean(gaps[1::2]))


def test_no_bound_exceeds_the_optimum_and_columns_attain_it():
    gap, closed = check_single_copies(150, seed=1)
    # The test would say nothing if the companion bound did not bite.
    assert gap < 0.05
    assert closed > 60


def test_no_bound_exceeds_the_optimum_with_replicas():
    even, best = check_replicas(60, seed=2)
    assert even < 0.5
    assert best < 0.5


@pytest.mark.slow
def test_no_bound_exceeds_the_optimum_on_ten_thousand_layers():
    check_single_copies(10_000, seed=3)


@pytest.mark.slow
def test_no_bound_exceeds_the_optimum_with_replicas_on_ten_thousand_layers():
    check_replicas(10_000, seed=4)


def test_sizes_of_nodes_follow_from_even_slots():
    for experts, gpus, nodes in product(range(1, 20), (2, 4, 6), (1, 2)):
        least, most = node_sizes(experts, gpus, nodes)
        slots = [experts // gpus + (g < experts % gpus) for g in range(gpus)]
        held = {sum(chosen) for chosen in combinations(slots, gpus // nodes)}
        assert (least, most) == (min(held), max(held))


def test_layers_that_bounds_do_not_take_are_refused():
    sets = token_sets([[0, 1, 2]], experts=64)
    with pytest.raises(InputError, match="companion_bound"):
        column_bound(sets, nodes=4, sizes=(16, 16))
    with pytest.raises(InputError, match="column bound"):
        column_bound(token_sets([[0, 1]], experts=2), nodes=4, sizes=(0, 1))
    with pytest.raises(InputError, match="nodes=1"):
        companion_bound(sets, nodes=1, size=64)
    with pytest.raises(InputError, match="topk_ids"):
        token_sets([[0, 4]], experts=4)


def test_tokens_of_one_expert_visit_one_node():
    sets = token_sets([[0, -1], [1, -1], [-1, -1], [2, 2]], experts=4)
    assert sets.members.tolist() == [[0], [1], [2]]
    assert companion_bound(sets, nodes=2, size=2).visits == 3
    assert column_bound(sets, nodes=2, sizes=(2, 2)).visits == 3


def test_bounds_are_the_same_twice():
    sets = tiny_layer(np.random.default_rng(5), 8, 3)
    first, second = (companion_bound(sets, 2, 4, rounds=100) for _ in range(2))
    assert first.witness == second.witness
    first, second = (column_bound(sets, 2, (4, 4)) for _ in range(2))
    assert first.witness == second.witness


def test_the_column_bound_closes_layers_that_cannot_be_enumerated():
    rng = np.random.default_rng(6)
    factors = rng.normal(size=(24, 3))
    tokens = rng.normal(size=(2000, 3)) @ factors.T + rng.gumbel(size=(2000, 24))
    sets = token_sets(np.argsort(tokens)[:, -4:], experts=24)
    bound = column_bound(sets, nodes=4, sizes=(6, 6))
    assert bound.optimal
    assert count_visits(sets, bound.node_of) == bound.found
    companions = companion_bound(sets, nodes=4, size=6, rounds=500)
    assert 0.95 * bound.visits < companions.visits < bound.visits


# --- certificates ---------------------------------------------------------------------------


def some_certificates():
    """Make a true certificate of every kind, with the fewest visits that its case allows."""
    rng = np.random.default_rng(7)
    sets = tiny_layer(rng, 8, 4)
    nodes_of = np.arange(8) % 2
    single = np.eye(2, dtype=int)[nodes_of]
    yield certify_visits(sets, single, (4, 4)), fewest_visits(sets, 2, (4, 4))
    companions = companion_bound(sets, 2, 4)
    certificate = certify_visits(sets, single, (4, 4))
    bound = companions.visits
    gap = Fraction(certificate["visits"]) / bound - 1
    yield (
        certificate | {"witness": companions.witness, "bound": str(bound), "gap": str(gap)},
        fewest_visits(sets, 2, (4, 4)),
    )
    sets = tiny_layer(rng, 4, 3)
    copies = [[1, 1], [1, 1], [1, 0], [0, 1]]
    for dispatch, best in zip(("even", "any"), fewest_with_replicas(sets, 2, 3, 2), strict=True):
        certificate = certify_visits(sets, copies, (3, 3), dispatch=dispatch)
        assert certificate["witness"]["kind"] == "companions"
        yield certificate, best


def spoil(rng, certificate):
    """Change a number of the witness so that it seems to prove more."""
    spoilt = copy.deepcopy(certificate)
    witness = spoilt["witness"]
    amount = int(rng.integers(1, 1 << 23))
    if witness["kind"] == "columns":
        kind = rng.choice(["visits", "least", "prices", "scale"])
        if kind == "visits":
            witness["visits"] += int(rng.integers(1, 4))
        elif kind == "least":
            witness["least"] += amount
        elif kind == "prices":
            witness["prices"][int(rng.integers(8))] += amount
        else:
            witness["scale"] = max(1, witness["scale"] // 2)
        stated = sum(witness["prices"]) + spoilt["case"]["nodes"] * witness["least"]
        witness["visits"] = max(witness["visits"], -(-stated // witness["scale"]))
        return spoilt
    kind = rng.choice(["experts", "rows", "total", "cells", "prices", "shift", "scale"])
    if kind in ("experts", "rows"):
        witness[kind][int(rng.integers(len(witness[kind])))] -= amount
    elif kind == "total":
        witness["total"] -= amount
    elif kind == "shift":
        witness["shift"] = max(0, witness["shift"] - amount)
        witness["experts"] = [value - amount for value in witness["experts"]]
    elif kind == "cells":
        row = witness["cells"][int(rng.integers(len(witness["cells"])))]
        row[int(rng.integers(len(row)))] -= amount
        witness["rows"] = [value - amount for value in witness["rows"]]
    elif kind == "prices":
        row = witness["prices"][int(rng.integers(len(witness["prices"])))]
        if row:
            row[int(rng.integers(len(row)))] += int(rng.choice([-1, 1])) * amount
    else:
        witness["scale"] -= min(amount, witness["scale"] // 2)
    return spoilt


def test_a_thousand_false_certificates_are_rejected(monkeypatch):
    rng = np.random.default_rng(8)
    rejected = convincing = 0
    makers = list(some_certificates())
    while rejected < 1000:
        certificate, best = makers[int(rng.integers(len(makers)))]
        false = spoil(rng, certificate)
        with monkeypatch.context() as patch:  # what it would prove if nothing were checked
            patch.setattr(checker, "_is_semidefinite", lambda matrix: True)
            patch.setattr(checker, "_has_partition", lambda *arguments: False)
            try:
                claimed = proven_visits(false["case"], false["witness"])
            except VerificationError:
                claimed = Fraction(0)
        convincing += claimed > best + 1e-9
        bound = max(claimed, Fraction(math.floor(best + 1e-9) + 1))
        false["bound"] = str(bound)
        visits = Fraction(false["visits"])
        false["gap"] = str(visits / bound - 1)
        with pytest.raises(VerificationError):
            check_visits(false)
        rejected += 1
    # Many of them only fail at the last check.
    assert convincing > 200


def test_true_certificates_pass_and_spoilt_claims_do_not():
    for certificate, best in some_certificates():
        check_visits(certificate)
        assert Fraction(certificate["bound"]) <= best + 1e-9
        visits = Fraction(certificate["visits"])
        for key, false in (
            ("visits", str(visits - 1)),
            ("gap", "0" if certificate["gap"] != "0" else "1"),
            ("copies", certificate["copies"][1:]),
            ("copies", [[0, 0], *certificate["copies"][1:]]),
            ("bound", str(visits + 1)),
            ("bound", "1e999999999"),
            ("witness", {"kind": "mean"}),
            ("witness", {}),
            ("witness", certificate["witness"] | {"prices": 3}),
            ("case", certificate["case"] | {"sizes": [1, 1]}),
            ("case", certificate["case"] | {"counts": [1]}),
            ("case", certificate["case"] | {"dispatch": "nearest"}),
        ):
            with pytest.raises(VerificationError):
                check_visits(certificate | {key: false})


def test_the_visits_of_a_placement_are_those_of_all_draws():
    rng = np.random.default_rng(9)
    for _ in range(20):
        sets = tiny_layer(rng, 4, 3)
        copies = rng.integers(0, 3, (4, 3))
        copies[copies.sum(axis=1) == 0, 0] = 1
        held = [np.repeat(np.arange(3), row) for row in copies]
        total = Fraction(0)
        for token, count in zip(sets.as_tuples(), sets.counts.tolist(), strict=True):
            draws = list(product(*(held[e].tolist() for e in token)))
            total += count * Fraction(sum(len(set(draw)) for draw in draws), len(draws))
        sizes = (int(copies.sum(axis=0).min()), int(copies.sum(axis=0).max()))
        if sizes[1] > 4:
            continue
        case = sets.case(3, sizes, int(copies.sum()) - 4)
        assert placement_visits(case, copies.tolist()) == total


def test_the_joint_bound_holds_for_every_placement():
    """Relative time plus traffic x critical nodes, windows weighted by their tokens."""
    rng = np.random.default_rng(10)
    for _ in range(30):
        ids = rng.permuted(np.tile(np.arange(6), (24, 1)), axis=1)[:, :2]
        windows = np.repeat([0, 1, 2], [4, 8, 12])
        sets = token_sets(ids, experts=6)
        traffic = Fraction(int(rng.integers(0, 8)), 4)
        best_time = best_joint = math.inf
        for nodes_of in partitions(list(range(6)), 2, (3, 3)):
            node_of = np.array([nodes_of[e] for e in range(6)])
            time = nodes = 0.0
            for w in range(3):
                chosen = node_of[ids[windows == w]]
                time += np.bincount(chosen.ravel(), minlength=2).max() / 24
                nodes += 2 * max((chosen == n).any(axis=1).sum() for n in range(2)) / 24
            best_time = min(best_time, time)
            best_joint = min(best_joint, time + float(traffic) * nodes)
        certificate = certify_visits(
            sets,
            np.eye(2, dtype=int)[np.arange(6) % 2],
            (3, 3),
            time_bound=Fraction(best_time).limit_denominator(24),
            traffic=traffic,
        )
        check_visits(certificate)
        assert float(Fraction(certificate["joint"]["bound"])) <= best_joint + 1e-9
        joint = certificate["joint"] | {"bound": "100"}
        with pytest.raises(VerificationError, match="joint"):
            check_visits(certificate | {"joint": joint})
