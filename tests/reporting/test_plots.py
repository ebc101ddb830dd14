"""Plots draw what they say, without a screen."""

from __future__ import annotations

import itertools

import pytest

import craftopt as co
from craftopt.reporting.plots import plot_gpu_loads

matplotlib = pytest.importorskip("matplotlib", reason="plots need the extra 'plot'")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def ax():
    return plt.subplots()[1]


def draw(ax) -> None:
    """Render everything, so that whatever cannot be drawn fails here."""
    ax.figure.canvas.draw()


def test_gpu_loads_fall_from_the_fullest_gpu_for_every_plan():
    loads = co.Loads([[[8, 4, 2, 2]], [[0, 0, 0, 0]], [[1, 2, 4, 8]]], layer_ids=[7])
    problem = co.Problem(loads, gpus=4)
    plans = {name: co.solve(problem, name).plan for name in ("trivial", "eplb")}
    drawn = plot_gpu_loads(plans, loads)
    draw(drawn)
    labels = [text.get_text() for text in drawn.get_legend().get_texts()]
    assert labels == list(plans)
    for line in drawn.get_lines()[: len(plans)]:
        heights = line.get_ydata()
        assert all(before >= after for before, after in itertools.pairwise(heights))
        assert heights.mean() == pytest.approx(1)
    assert "layer 7" in drawn.get_title()


def test_plots_are_drawn_where_they_are_asked_to(ax):
    loads = co.Loads([[8, 4, 2, 2]])
    plan = co.solve(co.Problem(loads, gpus=2), "trivial").plan
    assert plot_gpu_loads({"trivial": plan}, loads, ax=ax) is ax
    draw(ax)
