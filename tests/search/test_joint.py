"""The kernel for balance and traffic: its running sums, its surrogate, its shares."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import craftopt as co
from craftopt.routing import route
from craftopt.search.joint import NO_MOVES, Moves, anneal_joint, copy_shares
from craftopt.search.kernels import Rules, Schedule
from craftopt.search.visits import NO_VISITS, visits_surrogate

EXPERTS, GPUS, NODES, WINDOWS = 24, 8, 4, 5


def pairs_of(generator, experts=EXPERTS, tokens=400, k=4):
    """Make pairs and assignments per token, of tokens that prefer neighbouring experts."""
    centre = generator.integers(experts, size=(tokens, 1))
    scores = -np.abs(np.arange(experts) - centre) + generator.gumbel(
        scale=3, size=(tokens, experts)
    )
    ids = np.argsort(-scores, axis=1)[:, :k]
    hits = np.zeros((tokens, experts))
    np.put_along_axis(hits, ids, 1, axis=1)
    pairs = hits.T @ hits / tokens
    chosen = np.diagonal(pairs).copy()
    np.fill_diagonal(pairs, 0)
    return pairs, chosen, ids


def a_start(generator, copies_per_gpu, experts=EXPERTS, gpus=GPUS):
    """Place every expert, some of them twice."""
    order = generator.permutation(experts)
    flat = np.concatenate([order, np.roll(order[: copies_per_gpu * gpus - experts], 1)])
    start = np.zeros((experts, gpus), dtype=np.uint8)
    start[flat, np.arange(flat.size) % gpus] = 1
    assert start.sum() == flat.size
    return start


def surrogate(copies, tokens, weight, visits, nearest):
    """Compute the kernel's cost from the copies alone, by matrix products."""
    shares = np.empty(copies.shape)
    for expert, hosted in enumerate(copies > 0):
        copy_shares(hosted, visits.nodes, nearest, shares[expert])
    load = shares.T @ tokens
    cost = weight @ (load**8).sum(axis=0) ** 0.125
    if visits.price == 0:
        return cost
    of_node = shares.reshape(len(shares), visits.nodes, -1).sum(axis=2)
    assigned = visits.chosen @ of_node
    inside = np.einsum("en,ef,fn->n", of_node, visits.pairs, of_node) / 2
    line = visits.per_assignment * assigned - visits.per_pair * inside
    visited = np.maximum(line, assigned / visits.chosen.sum())[:, np.newaxis]
    if not visits.pooled:
        per_token = load.reshape(visits.nodes, -1, len(weight)).sum(axis=1)
        visited = (
            visited / assigned[:, np.newaxis] * per_token * visits.chosen.sum() / load.shape[0]
        )
    norms = visits.nodes * (visited**8).mean(axis=0) ** 0.125
    return cost + visits.price * (norms[0] if visits.pooled else weight @ norms)


@pytest.mark.parametrize("nearest", [False, True], ids=["even", "nearest-even"])
@pytest.mark.parametrize("slots", [3, 4], ids=["one copy each", "replicas"])
@pytest.mark.parametrize("kind", ["windows", "pooled", "loads alone"])
def test_running_sums_equal_those_computed_from_the_copies_after_ten_thousand_steps(
    kind, slots, nearest
):
    generator = np.random.default_rng(slots)
    pairs, chosen, _ = pairs_of(generator)
    tokens = generator.gamma(0.5, size=(EXPERTS, WINDOWS))
    tokens *= GPUS / tokens.sum(axis=0)
    weight = np.full(WINDOWS, 1 / WINDOWS)
    visits = visits_surrogate(0.7, NODES, pairs, chosen, pooled=kind == "pooled")
    if kind == "loads alone":
        visits = NO_VISITS._replace(nodes=NODES)
    # No refresh falls into these steps, and a temperature at which most are taken.
    found, cost = anneal_joint(
        tokens,
        weight,
        a_start(generator, slots),
        Rules(1, slots, slots, GPUS),
        visits,
        nearest,
        NO_MOVES,
        Schedule(10_000, 3e-1, 1e-1),
        1,
    )
    assert found.sum(axis=0).tolist() == [slots] * GPUS
    assert found.any(axis=1).all()
    assert found.max() == 1
    assert cost == pytest.approx(surrogate(found, tokens, weight, visits, nearest), rel=1e-9)


def test_a_free_slot_is_moved_with_its_traffic():
    generator = np.random.default_rng(0)
    pairs, chosen, _ = pairs_of(generator)
    tokens = generator.gamma(0.5, size=(EXPERTS, WINDOWS))
    weight = np.full(WINDOWS, 1 / WINDOWS)
    visits = visits_surrogate(0.7, NODES, pairs, chosen, pooled=False)
    found, cost = anneal_joint(
        tokens, weight, a_start(generator, 3), Rules(1, 1, 5, GPUS), visits, False,
        NO_MOVES, Schedule(5_000, 3e-1, 1e-1), 1,
    )  # fmt: skip
    assert len(set(found.sum(axis=0).tolist())) > 1
    assert cost == pytest.approx(surrogate(found, tokens, weight, visits, False), rel=1e-9)


def test_the_surrogate_is_exact_for_the_mean_of_all_placements():
    generator = np.random.default_rng(2)
    pairs, chosen, ids = pairs_of(generator, experts=6, k=3)
    visits = visits_surrogate(1.0, 2, pairs, chosen, pooled=True)
    line, visited = [], []
    for first in itertools.combinations(range(6), 3):
        node = np.isin(np.arange(6), first).astype(int)
        of_node = np.eye(2)[node]
        inside = np.einsum("en,ef,fn->", of_node, pairs, of_node) / 2
        line.append(visits.per_assignment * chosen.sum() - visits.per_pair * inside)
        visited.append(np.mean([len(set(node[token])) for token in ids]))
    assert np.mean(line) == pytest.approx(np.mean(visited))
    assert np.corrcoef(line, visited)[0, 1] > 0.99


@given(st.lists(st.booleans(), min_size=12, max_size=12).filter(any), st.sampled_from([1, 2, 3, 4]))
def test_copies_serve_what_routing_sends_them(hosted, nodes):
    plan = co.Plan(np.array(hosted, dtype=np.uint8)[np.newaxis, np.newaxis], nodes=nodes)
    shares = np.empty(12)
    for dispatch in ("even", "nearest-even"):
        copy_shares(np.array(hosted), nodes, dispatch != "even", shares)
        assert shares == pytest.approx(route(plan, [[1.0]], dispatch).tokens[0, 0])


def test_a_price_of_moves_keeps_copies_where_they_were():
    generator = np.random.default_rng(0)
    pairs, chosen, _ = pairs_of(generator)
    tokens = generator.gamma(0.5, size=(EXPERTS, WINDOWS))
    tokens *= GPUS / tokens.sum(axis=0)
    weight = np.full(WINDOWS, 1 / WINDOWS)
    visits = visits_surrogate(0.7, NODES, pairs, chosen, pooled=False)
    start = a_start(generator, 3)
    moved = []
    for price in (0.0, 0.1, 10.0):
        found, cost = anneal_joint(
            tokens, weight, start, Rules(1, 3, 3, GPUS), visits, False,
            Moves(price, start > 0), Schedule(5_000, 1e-2, 1e-3), 1,
        )  # fmt: skip
        moved.append(int(((found > 0) & (start == 0)).sum()))
        own = surrogate(found, tokens, weight, visits, False)
        assert cost == pytest.approx(own + price * moved[-1], rel=1e-9)
    assert moved[0] > moved[1] > moved[2] == 0
