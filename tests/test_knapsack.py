"""The knapsack equals trying everything, and its choice attains the cost that it reports."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

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


@pytest.mark.parametrize("points", range(1, 8))
def test_tables_between_measured_points_are_those_of_monotone_cubics(points):
    rng = np.random.default_rng(points)
    for step in (1, 3):
        grid = step * np.concatenate(([0], np.cumsum(rng.integers(1, 9, points - 1))))
        costs = rng.integers(-3, 4, (20, points)).astype(np.float64)
        costs[10:] = np.minimum.accumulate(costs[10:], axis=1)
        table = interpolate(grid, costs, step)
        if points > 1:
            every = np.arange(0, grid[-1] + 1, step)
            expected = PchipInterpolator(grid, costs, axis=1)(every)
            np.testing.assert_allclose(table, expected, atol=1e-13)
        np.testing.assert_allclose(table[:, grid // step], costs, atol=1e-13)
        assert (np.diff(table[10:]) <= 1e-13).all()
