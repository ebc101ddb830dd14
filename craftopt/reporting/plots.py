"""What plots share, those of budgets and of bench-exact, with matplotlib (the extra ``plot``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from craftopt.bench_exact import Run, lines_of
from craftopt.serving import Advice
from craftopt.serving.deployment import GIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue, orange, dark grey of Okabe and Ito: of three different lightnesses.
COLOURS = ("#0072B2", "#E69F00", "#444444", "#CC79A7")
# Percent at the left end of a logarithmic axis.
_LEAST_GAP = 0.01
STYLES = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"))


def plot_budgets(advice: Advice, ax: Axes | None = None) -> Axes:
    """Plot modelled goodput against the memory that replicas take.

    Lines: what the sweep predicts on the windows planned, by slot rule. Points: full plans, on
    windows that they have not seen; the lines are above them by what traffic drifts.

    Returns
    -------
    matplotlib Axes
    """
    ax = new_axes(height=4) if ax is None else ax
    for rule in dict.fromkeys(budget.slots for budget in advice.curve):
        line = [budget for budget in advice.curve if budget.slots == rule]
        memory = [budget.memory / GIB for budget in line]
        goodput = [budget.requests_per_second for budget in line]
        style = line_style(len(ax.get_lines()))
        ax.plot(memory, goodput, markersize=3, label=f"{rule}, planned windows", **style)
    points = [*advice.candidates, *([advice.eplb] if advice.eplb else [])]
    places = {}
    for candidate in points:
        place = (candidate.memory.replicas / GIB, candidate.goodput)
        own = candidate is advice.recommended
        ax.plot(*place, "k*" if own else "ko", markersize=12 if own else 5)
        places[candidate.name] = place
    ax.margins(0.1)
    write_beside(ax, places)
    ax.set_xlabel("replicas, GiB per GPU")
    ax.set_ylabel("requests/s, modelled")
    ax.plot([], [], "ko", markersize=5, label="full plans, unseen windows")
    ax.plot([], [], "k*", markersize=12, label="recommended")
    ax.grid(color="0.9")
    legend_above(ax)
    return ax


def plot_bench(runs: list[Run]) -> Figure:
    """Plot the share of problems on which a method's plan is within a gap, with its median time.

    Plans that break rules are within none. A panel per slot rule and number of windows.

    Returns
    -------
    matplotlib Figure
    """
    import matplotlib.pyplot as plt  # noqa: PLC0415 - an optional extra

    groups = lines_of(runs)
    figure, panels = plt.subplots(
        len(groups), figsize=(8, 4 * len(groups)), layout="constrained", squeeze=False
    )
    for ax, ((slots, windows), lines) in zip(panels[:, 0], groups.items(), strict=True):
        for index, line in enumerate(line for line in lines if line.gaps):
            percent = [_LEAST_GAP, *(max(100 * gap, _LEAST_GAP) for gap in sorted(line.gaps))]
            shares = [done / line.runs for done in range(len(percent))]
            style = ("-", "--", "-.")[index // len(COLOURS)]
            label = f"{line.label}, {line.seconds:.1g} s"
            ax.step(percent, shares, style, where="post", label=label,
                    color=COLOURS[index % len(COLOURS)])  # fmt: skip
        ax.set_xscale("log")
        ax.set_xlim(left=_LEAST_GAP)
        ax.set_ylim(0, 1.02)
        ax.set_title(f"slots {slots}, windows {windows}", loc="left", fontsize="medium")
        ax.set_ylabel("share of problems")
        ax.grid(color="0.9")
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    panels[-1, 0].set_xlabel(f"gap, % (at most; {_LEAST_GAP} and less at the left)")
    return figure


def new_axes(height: float) -> Axes:
    """Make axes of a height in inches."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 - an optional extra

    _, ax = plt.subplots(figsize=(7, height), layout="constrained")
    return ax


def line_style(index: int) -> dict[str, Any]:
    """Return colour, marker and dash of a line, each of them its own."""
    marker, dash = STYLES[index % len(STYLES)]
    return {"color": COLOURS[index % len(COLOURS)], "marker": marker, "linestyle": dash}


def legend_above(ax: Axes) -> None:
    """Put the legend where it covers nothing."""
    wide = sum(map(len, ax.get_legend_handles_labels()[1])) > 60
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2 if wide else 4, frameon=False)


def write_beside(ax: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Name points on the side where the middle of the axis is; those that lie together, at once."""
    near = 0.1 * np.maximum(np.ptp(list(points.values()), axis=0), 1e-300)
    groups: list[tuple[list[str], tuple[float, float]]] = []
    for label, point in points.items():
        for labels, first in groups:
            if (np.abs(np.subtract(point, first)) < near).all():
                labels.append(label)
                break
        else:
            groups.append(([label], point))
    for labels, point in groups:
        right = point[0] > 1.1 * sum(ax.get_xlim()) / 2
        ax.annotate(
            "; ".join(labels),
            point,
            textcoords="offset points",
            xytext=(-7, -12) if right else (7, 5),
            ha="right" if right else "left",
        )
