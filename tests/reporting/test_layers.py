"""Plots over layers, windows and budgets show the figures they were given."""

from __future__ import annotations

import numpy as np
import pytest

import craftopt as co
from craftopt.reporting import layers

matplotlib = pytest.importorskip("matplotlib", reason="plots need the extra 'plot'")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture
def ax():
    yield plt.subplots()[1]
    plt.close("all")


@pytest.fixture
def loads() -> co.Loads:
    return co.Loads([[[9, 1, 1, 1], [3, 3, 3, 3]], [[1, 9, 1, 1], [9, 1, 1, 1]]], layer_ids=[3, 7])


@pytest.fixture
def plan(loads) -> co.Plan:
    return co.solve(co.Problem(loads, gpus=2), "trivial").plan


def test_the_load_map_shows_each_layer_relative_to_its_mean(loads, plan, ax):
    assert layers.plot_load_map(plan, loads, 0, ax=ax) is ax
    ax.figure.canvas.draw()
    shown = np.asarray(ax.get_images()[0].get_array())
    assert shown == pytest.approx(np.array([[10 / 6, 2 / 6], [1, 1]]))
    assert [text.get_text() for text in ax.get_yticklabels()] == ["3", "7"]


def test_persistence_is_the_share_of_hot_experts_kept(ax):
    kept = [[[9, 8, 1, 1]], [[9, 1, 8, 1]]]
    layers.plot_persistence(co.Loads(kept), hottest=2, ax=ax)
    ax.figure.canvas.draw()
    mean, chance = ax.get_lines()
    assert list(mean.get_ydata()) == [0.5]
    assert chance.get_ydata()[0] == 0.5


@pytest.mark.parametrize(("windows", "hottest"), [(1, 2), (2, 4)])
def test_persistence_that_no_loads_could_show_is_refused(windows, hottest, ax):
    with pytest.raises(co.InputError, match="pass"):
        layers.plot_persistence(co.Loads(np.ones((windows, 1, 4))), hottest=hottest, ax=ax)


def test_lines_hold_the_figures_given(plan, ax):
    layers.plot_replicas({"trivial": plan}, ax=ax)
    layers.plot_gaps({"gap": [0.01, 0.02]}, ax=ax)
    layers.plot_migration([(0, 0.5), (3, 0.9)], ax=ax)
    layers.plot_tradeoff({"fast": ([0, 1], [0.5, 0.8])}, ([0, 1], [0.6, 0.9]), ax=ax)
    ax.figure.canvas.draw()
    drawn = [list(line.get_ydata()) for line in ax.get_lines()]
    assert drawn == [[0, 0], [1, 2], [0.5, 0.9], [0.5, 0.8], [0.6, 0.9]]
