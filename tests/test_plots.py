"""Plots draw what they say, without a screen."""

from __future__ import annotations

import itertools

import pytest

import craftopt as co
from craftopt.reporting.plots import plot_gpu_loads, plot_tradeoff

matplotlib = pytest.importorskip("matplotlib", reason="plots need the extra 'plot'")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

POINTS = {
    "eplb": [(0, 0.4, 0.39), (2, 0.45, 0.43), (64, 0.6, 0.5)],
    "fast": [(0, 0.5, 0.45), (2, 0.6, 0.5), (64, 0.9, 0.7)],
}


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


def test_the_tradeoff_has_a_solid_and_a_dashed_line_of_one_colour_per_method():
    drawn = plot_tradeoff(POINTS)
    draw(drawn)
    assert [text.get_text() for text in drawn.get_legend().get_texts()] == list(POINTS)
    lines = drawn.get_lines()
    assert len(lines) == 2 * len(POINTS)
    for points, (solid, dashed) in zip(
        POINTS.values(), zip(lines[::2], lines[1::2], strict=True), strict=True
    ):
        replicas, planned, served = (list(column) for column in zip(*points, strict=True))
        assert solid.get_xdata().tolist() == dashed.get_xdata().tolist() == replicas
        assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
        assert solid.get_ydata().tolist() == served
        assert dashed.get_ydata().tolist() == planned
        assert solid.get_color() == dashed.get_color()
    assert [text.get_text() for text in drawn.get_xticklabels()] == ["0", "2", "64"]


def test_plots_are_drawn_where_they_are_asked_to(ax):
    loads = co.Loads([[8, 4, 2, 2]])
    plan = co.solve(co.Problem(loads, gpus=2), "trivial").plan
    assert plot_gpu_loads({"trivial": plan}, loads, ax=ax) is ax
    assert plot_tradeoff(POINTS, ax=ax) is ax
    draw(ax)
