"""The parts of the fast path keep what they promise, each for itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import token_arrays

from craftopt.bounds import max_copy_load
from craftopt.knapsack import allocate
from craftopt.planners.allocation import MeasuredAllocation
from craftopt.search.descent import Packing, improve, improve_layer
from craftopt.search.placement import Layout, pack, place_layer
from craftopt.search.replication import replicate
from craftopt.search.totals import equalise

# --- replication ----------------------------------------------------------------------------


@settings(max_examples=200)
@given(token_arrays((1, 1), (1, 1)), st.integers(1, 5), st.data())
def test_replicate_attains_the_least_heaviest_copy(tokens, limit, data):
    weight = tokens[0, 0]
    replicas = data.draw(st.integers(0, weight.size * (limit - 1)))
    count = replicate(weight, replicas, limit)
    assert count.sum() == weight.size + replicas
    assert 1 <= count.min() <= count.max() <= limit
    assert (weight / count).max() == max_copy_load(weight, replicas, limit)[-1]


# --- placement ------------------------------------------------------------------------------


@st.composite
def packings(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw shares, copies and capacities that differ by at most 1, as `pack` asks for."""
    gpus = draw(st.integers(1, 7))
    experts = draw(st.integers(1, 9))
    share = draw(token_arrays((1, 1), (1, 1), (experts, experts)))[0, 0]
    count = np.array(draw(st.lists(st.integers(1, gpus), min_size=experts, max_size=experts)))
    floor, extra = divmod(int(count.sum()), gpus)
    capacity = np.full(gpus, floor)
    capacity[gpus - extra :] += 1
    return share, count, capacity + draw(st.sampled_from([0, 0, 2]))


def assert_state_is_sound(packing: Packing, count: np.ndarray) -> None:
    """Check that the arrays tell the same placement, with every copy and no duplicate."""
    share, items, filled, load, hosted = packing
    for gpu in range(filled.size):
        here = items[gpu, : filled[gpu]].tolist()
        assert len(set(here)) == len(here)
        assert sorted(here) == np.flatnonzero(hosted[:, gpu]).tolist()
    assert hosted.sum(axis=1).tolist() == count.tolist()
    assert load == pytest.approx(share @ hosted, rel=1e-9, abs=1e-9)


@given(packings())
def test_pack_keeps_capacities_and_never_duplicates(packing):
    share, count, capacity = packing
    packed = pack(share, count, capacity, int(capacity.max()))
    assert (packed.filled <= capacity).all()
    assert_state_is_sound(packed, count)


def test_pack_makes_room_where_only_hosts_of_the_expert_have_a_slot():
    # The 1s fill the GPU beside the 9; both free slots are then on the 9's GPU.
    share, count = np.array([9.0, 1.0, 1.0, 1.0, 0.5]), np.array([1, 1, 1, 1, 2])
    packed = pack(share, count, np.array([3, 3]), 3)
    assert packed.filled.tolist() == [3, 3]
    assert_state_is_sound(packed, count)


@given(packings(), st.booleans())
def test_improve_keeps_the_slots_and_never_raises_the_maximum(packing, loose):
    share, count, capacity = packing
    width = min(int(capacity.max()) + loose, share.size)
    packed = pack(share, count, capacity, max(width, int(capacity.max())))
    slots, before = packed.filled.copy(), packed.load.max()
    low = np.maximum(slots - loose, 0)
    high = np.maximum(np.minimum(slots + loose, width), slots)
    target = share @ count / slots.size
    reached = improve(packed, low, high, target)
    assert reached == packed.load.max()
    assert reached <= before * (1 + 1e-12)
    assert ((low <= packed.filled) & (packed.filled <= high)).all()
    assert_state_is_sound(packed, count)
    improved = packed.hosted.copy()
    improve(packed, low, high, target)
    assert (packed.hosted == improved).all(), "improve stopped before no exchange helped"


@given(packings())
def test_improve_layer_keeps_copies_and_every_gpus_number_of_them(packing):
    share, count, capacity = packing
    hosted = pack(share, count, capacity, int(capacity.max())).hosted
    before = hosted.astype(np.uint8)
    after = improve_layer(share, before, share @ count / capacity.size)
    assert after.dtype == np.uint8
    assert after.max() == 1
    assert after.sum(axis=0).tolist() == before.sum(axis=0).tolist()
    assert after.sum(axis=1).tolist() == count.tolist()
    assert (share @ after).max() <= (share @ before).max() * (1 + 1e-12)
    assert before.tolist() == hosted.tolist(), "the argument was changed"


def test_pairs_are_exchanged_where_single_copies_are_too_coarse():
    # 20 against 16. Every single exchange shifts 1, 6 or more; 8 + 6 against 7 + 5 shifts 2.
    share = np.array([8.0, 6.0, 6.0, 7.0, 5.0, 4.0])
    copies = np.zeros((6, 2), dtype=np.uint8)
    copies[:3, 0] = copies[3:, 1] = 1
    assert (share @ improve_layer(share, copies, 18.0)).tolist() == [18, 18]


@st.composite
def layers_to_place(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int, int]:
    """Draw weight, replicas, groups, nodes, GPUs and the limit of copies."""
    nodes = draw(st.integers(1, 3))
    width = draw(st.integers(1, 4))
    groups = nodes * draw(st.integers(1, 2))
    experts = groups * draw(st.integers(1, 4))
    tokens = draw(token_arrays((1, 1), (1, 3), (experts, experts)))[0]
    limit = draw(st.integers(1, width))
    most = experts // nodes * (limit - 1)
    steps = draw(st.lists(st.integers(0, most), min_size=len(tokens), max_size=len(tokens)))
    order = draw(st.permutations(np.repeat(np.arange(groups), experts // groups).tolist()))
    return tokens, nodes * np.array(steps), np.array(order), nodes, nodes * width, limit


@given(layers_to_place(), st.sampled_from([0, 2]))
def test_place_layer_spends_the_replicas_within_the_rules(layers, slack):
    weight, replicas, group_of, nodes, gpus, limit = layers
    layout = Layout(group_of, nodes, gpus, limit, slack)
    placed = [
        place_layer(load, int(r), layout, 1e-4) for load, r in zip(weight, replicas, strict=True)
    ]
    copies, value = np.stack([copies for copies, _ in placed]), [value for _, value in placed]
    count = copies.sum(axis=2, dtype=np.int64)
    assert (copies.sum(axis=(1, 2)) - weight.shape[1]).tolist() == replicas.tolist()
    assert copies.max() == 1
    assert 1 <= count.min() <= count.max() <= limit
    load = np.einsum("le,leg->lg", weight / count, copies)
    assert value == pytest.approx(load.max(axis=1), rel=1e-9)
    slots = copies.sum(axis=1, dtype=np.int64).reshape(len(weight), nodes, -1)
    assert (slots.sum(axis=2) == slots.sum(axis=2)[:, :1]).all()
    ceil = -(-slots.sum(axis=2, keepdims=True) // slots.shape[2])
    assert (slots <= ceil + slack).all()
    if not slack:
        assert np.ptp(slots, axis=2).max() <= 1
    homes = copies.reshape(*weight.shape, nodes, -1).any(axis=3)
    for layer in homes:
        of_group = np.array([layer[group_of == group].any(axis=0) for group in set(group_of)])
        assert (of_group.sum(axis=1) == 1).all()
        assert np.ptp(of_group.sum(axis=0)) == 0


# --- equal totals ---------------------------------------------------------------------------


def random_layers(rng: np.random.Generator, spread: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Make layers whose GPUs differ by up to ``spread`` copies, nodes filled equally."""
    nodes, width = int(rng.integers(1, 4)), int(rng.integers(2, 6))
    slots = rng.integers(1, 4, (int(rng.integers(1, 6)), 1)) + rng.integers(0, spread + 1, width)
    experts = slots.max() + int(rng.integers(0, 3))
    slots = np.tile(slots[nodes * slots.sum(axis=1) >= experts], (1, nodes))
    copies = np.zeros((len(slots), experts, nodes * width), dtype=np.uint8)
    for layer, filled in enumerate(slots):
        # Experts in a cycle: all are hosted, and none twice on a GPU.
        gpu_of_copy = np.repeat(np.arange(filled.size), filled)
        copies[layer, rng.permutation(experts)[np.arange(filled.sum()) % experts], gpu_of_copy] = 1
    return copies, rng.lognormal(2, 1, (len(slots), experts)), nodes


def contents(layer: np.ndarray, nodes: int) -> list[list[tuple[int, ...]]]:
    """List what the GPUs of every node host, whichever of them hosts it."""
    by_node = np.split(layer, nodes, axis=1)
    return [sorted(tuple(column) for column in node.T.tolist()) for node in by_node]


@pytest.mark.parametrize("spread", [0, 1, 2, 4])
def test_equalise_relabels_and_repairs_only_where_that_is_not_enough(spread):
    rng = np.random.default_rng(spread)
    repairs = 0
    for _ in range(150):
        copies, weight, nodes = random_layers(rng, spread)
        if not len(copies):
            continue
        before = copies.copy()
        equal, repaired = equalise(copies, weight, nodes)
        assert (copies == before).all(), "the argument was changed"
        totals = equal.sum(axis=(0, 1))
        assert totals.max() - totals.min() <= 1
        assert equal.max() == 1
        assert (equal.sum(axis=2) == copies.sum(axis=2)).all()
        for layer in range(len(copies)):
            old, new = contents(copies[layer], nodes), contents(equal[layer], nodes)
            if repaired:
                for node_old, node_new in zip(old, new, strict=True):
                    assert np.sum(node_old, axis=0).tolist() == np.sum(node_new, axis=0).tolist()
            else:
                assert old == new
        repairs += repaired
    assert (repairs > 0) == (spread > 1)


# --- allocation -----------------------------------------------------------------------------


class Measured:
    """A table of true costs that notes what was looked up."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table
        self.asked: list[tuple[int, int]] = []

    def __call__(self, layers: np.ndarray, choices: np.ndarray) -> np.ndarray:
        self.asked += zip(layers.tolist(), choices.tolist(), strict=True)
        return self.table[layers, choices]


def random_costs(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Make true costs, and falling lower bounds on them."""
    shape = (int(rng.integers(1, 6)), int(rng.integers(1, 8)))
    bounds = np.sort(rng.integers(5, 30, shape).astype(np.float64), axis=1)[:, ::-1]
    return bounds + rng.integers(0, 6, shape) * (rng.random(shape) < 0.6), bounds


def test_measured_allocation_is_the_best_of_all_allocations():
    rng = np.random.default_rng(0)
    asked = cells = 0
    for _ in range(300):
        table, bounds = random_costs(rng)
        step = int(rng.integers(1, 3))
        measure = Measured(table)
        allocation = MeasuredAllocation(bounds, step, measure, tolerance=0.0, least=0, work=10**9)
        # What one budget measured serves the next; budgets come in any order.
        for budget in rng.integers(0, table.size * step + 2, 3).tolist():
            replicas, cost, stopped = allocation.solve(budget)
            assert not stopped
            assert cost == allocate(table, budget, step)[1]
            assert replicas.sum() <= budget
            assert table[np.arange(len(table)), replicas // step].sum() == cost
        assert len(set(measure.asked)) == len(measure.asked), "a choice was measured twice"
        asked += len(measure.asked)
        cells += table.size
    assert asked < 0.8 * cells, "nearly everything was measured"


def test_measured_allocation_is_as_close_as_its_tolerance_and_keeps_its_work():
    rng = np.random.default_rng(1)
    close = stops = 0
    for _ in range(300):
        table, bounds = random_costs(rng)
        budget = int(rng.integers(0, table.size))
        best = allocate(table, budget)[1]
        measure = Measured(table)
        options = {"tolerance": 0.05, "least": 0}
        replicas, cost, stopped = MeasuredAllocation(
            bounds, 1, measure, work=10**9, **options
        ).solve(budget)
        assert not stopped
        assert best <= cost <= best * 1.05 + 1e-9
        close += cost > best
        work = int(rng.integers(0, 12))
        measure = Measured(table)
        replicas, cost, stopped = MeasuredAllocation(
            bounds, 1, measure, work=work, **options
        ).solve(budget)
        assert len(measure.asked) <= max(work, len(table)), "the first allocation is free"
        assert table[np.arange(len(table)), replicas].sum() == cost
        assert replicas.sum() <= budget
        stops += stopped
    assert close > 5
    assert stops > 5
