"""The configuration LP and branching over copies: no placement is below what they prove."""

from __future__ import annotations

import itertools
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("ortools")

from craftopt_formulations.branching import prove_load
from craftopt_formulations.configuration_lp import (
    Layer,
    configuration_bound,
    price_configurations,
)

FLASHLB = (600, 560, 120, 120, 20, 10, 10, 10)


@cache
def placements(experts, gpus, copies, even):
    """List every valid placement: of each expert, the tuple of GPUs that host it."""
    hosts = [
        group
        for number in range(1, gpus + 1)
        for group in itertools.combinations(range(gpus), number)
    ]
    found = []
    for chosen in itertools.product(hosts, repeat=experts):
        slots = [sum(gpu in group for group in chosen) for gpu in range(gpus)]
        if sum(slots) == copies and (not even or max(slots) - min(slots) <= 1):
            found.append(chosen)
    return found


def least_load(tokens, gpus, copies, even, lower, upper):
    """Try every placement within the limits; return the least largest load, or None."""
    best = None
    for chosen in placements(len(tokens), gpus, copies, even):
        counts = [len(group) for group in chosen]
        if any(
            not least <= count <= most
            for count, least, most in zip(counts, lower, upper, strict=True)
        ):
            continue
        loads = [Fraction(0)] * gpus
        for token, group in zip(tokens, chosen, strict=True):
            for gpu in group:
                loads[gpu] += Fraction(token) / len(group)
        best = max(loads) if best is None else min(best, max(loads))
    return best


def allowed_copies(layer, load):
    """List, by expert, the copies of some choice within the limits with all copies below a load."""
    ranges = [
        [c for c in range(least, most + 1) if count / c < load]
        for count, least, most in zip(layer.tokens, layer.lower, layer.upper, strict=True)
    ]
    sums = [{0}]
    for some in ranges:
        sums.append({total + c for total in sums[-1] for c in some})
    rest = {layer.copies}
    allowed = []
    for some, before in zip(reversed(ranges), reversed(sums[:-1]), strict=True):
        allowed.append([c for c in some if any(total - c in before for total in rest)])
        rest = {total - c for total in rest for c in some if total - c in before}
    return allowed[::-1]


def check_configuration(witness, layer):
    """List every configuration: AssertionError where the dual proves nothing."""
    load = Fraction(witness["load"])
    options = [
        [None, *((count / c, Fraction(sigma, c)) for c in allowed)]
        for count, sigma, allowed in zip(
            layer.tokens, witness["experts"], allowed_copies(layer, load), strict=True
        )
    ]
    few, fuller = divmod(layer.copies, layer.gpus)
    for chosen in itertools.product(*options):
        members = [pair for pair in chosen if pair]
        if layer.even and len(members) not in ({few, few + 1} if fuller else {few}):
            continue
        if sum(size for size, _ in members) >= load:
            continue
        extra = witness["extra"] if layer.even and len(members) > few else 0
        worth = sum(value for _, value in members) - witness["slot"] * len(members) - extra
        assert worth <= witness["scale"]
    proven = sum(witness["experts"]) - witness["slot"] * layer.copies
    if layer.even:
        proven -= witness["extra"] * fuller
    assert proven > layer.gpus * witness["scale"]


def check_tree(witness, layer, load):
    """Check every leaf of a tree; return the number of its leaves."""
    kind = witness["kind"]
    if kind == "branch":
        expert, copies = witness["expert"], witness["copies"]
        upper, lower = list(layer.upper), list(layer.lower)
        upper[expert] = min(upper[expert], copies)
        lower[expert] = max(lower[expert], copies + 1)
        boxes = (
            Layer(layer.tokens, layer.gpus, layer.copies, layer.lower, tuple(upper), layer.even),
            Layer(layer.tokens, layer.gpus, layer.copies, tuple(lower), layer.upper, layer.even),
        )
        return check_tree(witness["below"], boxes[0], load) + check_tree(
            witness["above"], boxes[1], load
        )
    if kind == "mean":
        assert sum(layer.tokens) / layer.gpus >= load
    elif kind == "empty":
        assert not sum(layer.lower) <= layer.copies <= sum(layer.upper)
    elif kind == "copies":
        fewest = [
            next((c for c in range(least, most + 1) if count / c < load), None)
            for count, least, most in zip(layer.tokens, layer.lower, layer.upper, strict=True)
        ]
        assert None in fewest or sum(fewest) > layer.copies or sum(layer.upper) < layer.copies
    else:
        assert kind == "configuration"
        assert Fraction(witness["load"]) == load
        check_configuration(witness, layer)
    return 1


@st.composite
def layers(draw):
    gpus = draw(st.integers(1, 3))
    experts = draw(st.integers(1, 4 if gpus < 3 else 3))
    counts = st.one_of(st.integers(0, 12), st.integers(0, 1000), st.floats(0, 100))
    tokens = tuple(
        Fraction(count) for count in draw(st.lists(counts, min_size=experts, max_size=experts))
    )
    copies = draw(st.integers(experts, experts * gpus))
    limits = [
        sorted((draw(st.integers(1, gpus)), draw(st.integers(1, gpus)))) for _ in range(experts)
    ]
    if draw(st.booleans()):
        limits = [(1, gpus)] * experts
    lower, upper = zip(*limits, strict=True)
    return Layer(tokens, gpus, copies, tuple(lower), tuple(upper), draw(st.booleans()))


def assert_proofs_hold(layer, share):
    least = least_load(layer.tokens, layer.gpus, layer.copies, layer.even, layer.lower, layer.upper)
    mean = sum(layer.tokens) / layer.gpus
    if not mean:
        return
    reached = 2 * mean if least is None else least
    # Below, at and above the optimum: proven where possible, never where false.
    for load in (mean + (reached - mean) * share, reached, reached * Fraction(1001, 1000)):
        priced = price_configurations(layer, load)
        if priced.witness is not None:
            check_configuration(priced.witness, layer)
            assert least is None or load <= least
        tree = prove_load(layer, load)
        if tree.witness is not None:
            assert least is None or load <= least
            check_tree(tree.witness, layer, load)


shares = st.fractions(Fraction(1, 10), 1, max_denominator=10)


@settings(max_examples=60)
@given(layers(), shares)
def test_nothing_false_is_proven(layer, share):
    assert_proofs_hold(layer, share)


@pytest.mark.slow
@settings(
    max_examples=3000, derandomize=False, suppress_health_check=list(HealthCheck), deadline=None
)
@given(layers(), shares)
def test_nothing_false_is_proven_on_thousands(layer, share):
    assert_proofs_hold(layer, share)


def test_flashlb_optimum_is_certified():
    layer = Layer.of(FLASHLB, gpus=8, replicas=8)
    optimum = Fraction(590, 3)
    tree = prove_load(layer, optimum)
    assert tree.witness is not None
    assert 2 <= check_tree(tree.witness, layer, optimum) <= tree.boxes <= 50
    # There is a placement with that load, so that nothing above it can be proven.
    assert prove_load(layer, optimum + Fraction(1, 100)).witness is None


def test_flashlb_root_is_not_enough():
    # The LP alone stops at 575/3, where it has a solution.
    layer = Layer.of(FLASHLB, gpus=8, replicas=8)
    bound, witness = configuration_bound(layer, 181.25, 590 / 3)
    assert bound == pytest.approx(575 / 3, rel=2e-3)
    check_configuration(witness, layer)
    assert price_configurations(layer, Fraction(590, 3)).witness is None


def test_work_limit_stops_the_tree():
    layer = Layer.of(FLASHLB, gpus=8, replicas=8)
    tree = prove_load(layer, Fraction(590, 3), work_limit=1)
    assert tree.witness is None
    assert tree.boxes == 1


def test_even_slots_prove_more_than_free_ones():
    # Six copies on two GPUs: evenly, the 100 has two companions; freely, none.
    tokens = [100, 10, 10, 10, 10, 10]
    even = Layer.of(tokens, gpus=2, replicas=0)
    free = Layer.of(tokens, gpus=2, replicas=0, even=False)
    assert price_configurations(even, Fraction(120)).witness is not None
    assert price_configurations(free, Fraction(101)).witness is None
    assert prove_load(free, Fraction(100)).witness is not None


def test_a_layer_of_real_size_is_bounded():
    rng = np.random.default_rng(3)
    tokens = np.round(rng.pareto(1.1, 64) * 1000)
    layer = Layer.of(tokens, gpus=16, replicas=8)
    mean = tokens.sum() / 16
    priced = price_configurations(layer, Fraction(mean) * Fraction(99, 100))
    assert priced.witness is not None
    assert priced.witness["scale"] >= 0
    assert sum(priced.witness["experts"]) > 0


def test_same_input_same_witness():
    layer = Layer.of(FLASHLB, gpus=8, replicas=8)
    first, second = (prove_load(layer, Fraction(590, 3)).witness for _ in range(2))
    assert first == second
