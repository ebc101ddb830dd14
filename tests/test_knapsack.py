"""The knapsack equals trying everything, and its choice attains the cost that it reports."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from craftopt.errors import InputError
from craftopt.knapsack import allocate, interpolate


def random_table(rng: np.random.Generator) -> np.ndarray:
    """Make a tiny table with ties, forbidden choices and costs that rise again."""
    shape = (int(rng.integers(1, 5)), int(rng.integers(1, 5)))
    table = rng.integers(-4, 5, shape).astype(np.float64)
    if rng.random() < 0.3:
        table = rng.standard_normal(shape)
    if rng.random() < 0.3:
        table = np.sort(table, axis=1)[:, ::-1]
    table[rng.random(shape) < rng.choice([0, 0.2, 0.6])] = np.inf
    return table


def test_equals_trying_everything_on_1000_tables():
    rng = np.random.default_rng(0)
    impossible = 0
    for _ in range(1000):
        table = random_table(rng)
        layers, choices = table.shape
        step = int(rng.integers(1, 4))
        budget = int(rng.integers(0, step * layers * choices + 2))
        best = min(
            (
                sum(table[layer, k] for layer, k in enumerate(chosen))
                for chosen in itertools.product(range(choices), repeat=layers)
                if step * sum(chosen) <= budget
            ),
        )
        replicas, cost = allocate(table, budget, step)
        assert cost == pytest.approx(best, rel=1e-12, abs=1e-12)
        assert replicas.dtype == np.int64
        if np.isinf(best):
            impossible += 1
            assert not replicas.any()
            continue
        assert (replicas % step == 0).all()
        assert 0 <= replicas.sum() <= budget
        assert sum(table[layer, k] for layer, k in enumerate(replicas // step)) == cost
    assert 50 < impossible < 500


def test_spends_nothing_that_gains_nothing():
    replicas, cost = allocate(np.array([[3.0, 3.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]]), budget=99)
    assert (replicas.tolist(), cost) == ([2, 0], 3)


def test_a_forbidden_choice_is_never_taken():
    replicas, cost = allocate(np.array([[np.inf, 5.0], [np.inf, 4.0]]), budget=2)
    assert (replicas.tolist(), cost) == ([1, 1], 9)
    replicas, cost = allocate(np.array([[np.inf, 5.0], [np.inf, 4.0]]), budget=1)
    assert (replicas.tolist(), cost) == ([0, 0], np.inf)


def test_does_not_change_the_table():
    table = np.array([[3.0, 1.0], [2.0, 0.0]])
    allocate(table, 1)
    assert table.tolist() == [[3, 1], [2, 0]]


def test_takes_read_only_and_strided_tables():
    table = np.arange(12.0).reshape(3, 4)[:, ::-2]
    table.setflags(write=False)
    assert allocate(table, 9)[1] == allocate(table.copy(), 9)[1]


@pytest.mark.parametrize(
    ("costs", "budget", "step"),
    [
        (np.ones(3), 1, 1),
        (np.ones((0, 3)), 1, 1),
        (np.ones((3, 0)), 1, 1),
        (np.array([[1.0, np.nan]]), 1, 1),
        (np.array([[1.0, -np.inf]]), 1, 1),
        (np.ones((2, 2)), -1, 1),
        (np.ones((2, 2)), 1, 0),
    ],
)
def test_refuses_what_is_no_knapsack(costs, budget, step):
    with pytest.raises(InputError):
        allocate(costs, budget, step)


def test_between_measured_points_every_replica_gains_less_than_the_one_before():
    grid, step = np.array([0, 2, 6, 20]), 2
    costs = np.array([[9.0, 4.0, 3.0, 0.5], [1.0, 1.0, 1.0, 1.0]])
    table = interpolate(grid, costs, step)
    assert np.array_equal(table[:, grid // step], costs)
    for low, high in itertools.pairwise(grid // step):
        gains = -np.diff(table[0, low : high + 1])
        assert (gains > 0).all()
        assert (np.diff(gains) < 0).all()
    assert (table[1] == 1).all()
