"""Annealing on the largest loads: what a step leaves is what the copies say."""

from __future__ import annotations

import numpy as np

from craftopt.jit import njit
from craftopt.search.kernels import Rules, Schedule, home_nodes, seeded
from craftopt.search.largest import (
    Peaks,
    _find_peaks,
    _largest_after_rows,
    _update_peaks,
    anneal_largest,
)
from craftopt.search.surrogate import (
    copies_of,
    draw_replacement,
    is_possible,
    set_rows,
    state_of,
    sum_loads,
    take,
)

EXPERTS, GPUS, WINDOWS = 12, 6, 4


def placement(rng):
    """Host every expert once and some twice or more, three copies on every GPU."""
    hosts = np.zeros((EXPERTS, GPUS), dtype=np.uint8)
    for slot, expert in enumerate([*range(EXPERTS), 0, 0, 1, 1, 2, 3]):
        hosts[expert, slot % GPUS if slot < EXPERTS else (slot + expert + 1) % GPUS] = 1
    return hosts[rng.permutation(EXPERTS)]


@njit()
def sum_all_loads(state):
    sum_loads(state.gpus, state.loads)


@njit()
def draw_possible(random, state, homes, rules):
    step = draw_replacement(random, state, homes, rules)
    possible = is_possible(step, state.gpus.hosted)
    if possible:
        set_rows(step, state)
    return step, possible


@njit()
def take_drawn(step, state):
    take(step, state)


def largest_loads(tokens, copies):
    return ((tokens.T / copies.sum(axis=1)) @ copies).max(axis=1)


def test_a_replacement_leaves_the_largest_loads_that_its_copies_have():
    rng = np.random.default_rng(0)
    tokens, start = rng.lognormal(0, 1.5, (EXPERTS, WINDOWS)), placement(rng)
    state = state_of(tokens, np.ones(WINDOWS), start, GPUS)
    peaks = Peaks(np.empty((3, WINDOWS)), np.empty((3, WINDOWS), dtype=np.int64))
    sum_all_loads(state)
    for w in range(WINDOWS):
        _find_peaks(state.loads.load, peaks, w)
    rules, random, touched = Rules(1, 0, GPUS, GPUS), seeded(1), np.zeros(GPUS, dtype=np.bool_)
    largest, taken = np.empty(WINDOWS), 0
    for _ in range(400):
        step, possible = draw_possible(random, state, home_nodes(start, 1), rules)
        if not possible:
            continue
        _largest_after_rows(state.loads.load, state.rows, touched, peaks, largest)
        take_drawn(step, state)
        _update_peaks(state.loads.load, state.rows.touched, peaks)
        taken += 1
        copies = copies_of(state.gpus.items, EXPERTS)
        assert not touched.any()
        np.testing.assert_allclose(largest, largest_loads(tokens, copies))
        np.testing.assert_allclose(peaks.load[0], largest)
        np.testing.assert_allclose(peaks.load, np.sort(state.loads.load, axis=0)[:-4:-1])
    assert taken > 50


def test_annealing_keeps_the_rules_and_lowers_the_largest_loads():
    rng = np.random.default_rng(3)
    tokens, start = rng.lognormal(0, 1.5, (EXPERTS, WINDOWS)), placement(rng)
    weight = np.full(WINDOWS, 1 / WINDOWS)
    schedule = Schedule(20_000, 3e-2, 1e-3)
    low, high = int(start.sum(axis=0).min()), int(start.sum(axis=0).max())
    copies = anneal_largest(tokens, weight, start, Rules(1, low, high, 4), schedule, 1, True)
    assert copies.sum() == start.sum()
    assert copies.max() == 1
    assert copies.sum(axis=1).min() >= 1
    assert low <= copies.sum(axis=0).min() <= copies.sum(axis=0).max() <= high
    assert largest_loads(tokens, copies).sum() < largest_loads(tokens, start).sum()
