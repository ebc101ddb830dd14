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


def test_the_load_map_of_several_windows_shows_who_waits_for_whom(loads, plan, ax):
    """Each GPU is the fullest in one of two windows: their means are alike, their waits are not."""
    loads = co.Loads(np.array([[[9, 9, 1, 1]], [[1, 1, 9, 9]]]))
    plan = co.Plan.from_phy2log([[0, 1, 2, 3]], gpus=2)
    layers.plot_load_map(plan, loads, ax=ax)
    shown = np.asarray(ax.get_images()[0].get_array())
    assert shown == pytest.approx(np.full((1, 2), np.quantile([0.2, 1.8], 0.9)))


def test_the_pareto_line_joins_plans_that_none_beats_in_both(ax):
    prefill, decode = co.Loads([[8, 7, 1, 2]]), co.Loads([[1, 0, 1, 0]])
    tables = {"prefill": [0, 2, 1, 3], "decode": [0, 3, 1, 2], "beaten": [0, 1, 2, 3]}
    plans = {name: co.Plan.from_phy2log([slots], gpus=2) for name, slots in tables.items()}
    layers.plot_pareto(plans, prefill, decode, ax=ax)
    ax.figure.canvas.draw()
    front = ax.get_lines()[0]
    assert list(front.get_xdata()) == pytest.approx([1, 10 / 9])
    assert list(front.get_ydata()) == [2, 1]


def test_points_that_lie_together_share_a_name(ax):
    loads = co.Loads([[4, 3, 2, 1]])
    plans = {
        name: co.Plan.from_phy2log([slots], gpus=2)
        for name, slots in {"a": [0, 1, 2, 3], "b": [1, 0, 3, 2], "c": [0, 3, 1, 2]}.items()
    }
    layers.plot_pareto(plans, loads, loads, ax=ax)
    assert {text.get_text() for text in ax.texts} == {"a; b", "c"}


@pytest.mark.parametrize(("reached", "bound"), [([1.5, 1.4], [1.2, 1.1]), ([0.5, 0.6], [0.9, 1.0])])
def test_the_side_of_a_bound_that_no_plan_reaches_is_shaded(reached, bound, ax):
    layers.plot_tradeoff({"fast": ([0, 8], reached)}, ([0, 8], bound), ax=ax)
    ax.figure.canvas.draw()
    (shaded,) = ax.collections
    heights = shaded.get_paths()[0].vertices[:, 1]
    beyond = heights >= min(bound) if bound > reached else heights <= max(bound)
    assert beyond.all()
    assert len(set(heights)) > len(set(bound))


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
