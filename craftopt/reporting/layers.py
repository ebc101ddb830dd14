"""Plots of plans over layers, windows and budgets, with matplotlib (the extra ``plot``).

Every function draws into the axes given, or into new ones, and returns them. Colours are told
apart in grey and by colour-blind readers; lines differ in marker and dash as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from craftopt.diagnosis.measuring import hottest_marked
from craftopt.errors import InputError
from craftopt.evaluation import evaluate, gpu_loads
from craftopt.loads import FloatArray, Loads
from craftopt.plan import Plan
from craftopt.reporting.plots import COLOURS, legend_above, line_style, new_axes, write_beside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of several windows, a map shows the load that a GPU stays below in this part of them: a mean of
# windows hides who waits for whom.
OFTEN = 0.9


def load_map(tokens: FloatArray) -> FloatArray:
    """Compute each GPU's load over the mean of its layer, in most windows, [layers, gpus].

    Parameters
    ----------
    tokens : float64 [windows, layers, gpus]
        As `gpu_loads` computes them.
    """
    mean = tokens.mean(axis=2, keepdims=True)
    most: FloatArray = np.quantile(tokens / np.maximum(mean, 1e-300), OFTEN, axis=0)
    return most


def plot_load_map(
    plan: Plan,
    loads: Loads,
    window: int | None = None,
    most: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the load of every GPU in every layer, relative to the layer's mean.

    The palest colour is the mean and all below it: what is dark makes its layer wait. Of several
    windows, a colour is the load that the GPU stays below in nine of ten.

    Parameters
    ----------
    plan : Plan
    loads : Loads
    window : int, optional
        One window; by default all.
    most : float, optional
        Relative load of the darkest colour, to compare maps; by default the largest shown.
    ax : matplotlib Axes, optional
        Where to draw, without a scale; new axes with one by default.

    Returns
    -------
    matplotlib Axes
    """
    alone = ax is None
    ax = new_axes(height=4) if ax is None else ax
    shown = load_map(gpu_loads(plan, loads if window is None else loads.select([window])))
    image = ax.imshow(
        shown,
        aspect="auto",
        cmap="YlOrBr",
        vmin=1,
        vmax=most or max(shown.max(), 1.01),
        interpolation="none",
    )
    if alone:
        ax.figure.colorbar(image, ax=ax, label="load / mean load of the layer")
    ticks = np.arange(0, len(shown), -(-len(shown) // 8))
    ax.set_yticks(ticks, loads.layer_ids[ticks].tolist())
    ax.set_xlabel("GPU")
    ax.set_ylabel("layer")
    which = f"{loads.windows} windows" if window is None else f"window {window}"
    ax.set_title(f"{which}: fullest GPU {shown.max():.2f} times the mean")
    return ax


def plot_tradeoff(
    curves: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]],
    bound: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    *,
    of: str = "balancedness",
    ax: Axes | None = None,
) -> Axes:
    """Draw what plans reach against their replicas, and what no plan can pass.

    Parameters
    ----------
    curves : mapping of str to (array_like [points], array_like [points])
        Replicas per layer and the figure reached, by label.
    bound : (array_like [points], array_like [points]), optional
        Replicas per layer and the proven bound of the figure.
    of : str
        Name of the figure.
    ax : matplotlib Axes, optional
        Where to draw; new axes by default.

    Returns
    -------
    matplotlib Axes
    """
    ax = new_axes(height=4) if ax is None else ax
    for index, (label, (replicas, reached)) in enumerate(curves.items()):
        ax.plot(replicas, reached, label=label, **line_style(index))
    if bound is not None:
        _shade_beyond(bound, ax)
    ax.set_xlabel("replicas per layer")
    ax.set_ylabel(of)
    ax.grid(color="0.9")
    legend_above(ax)
    return ax


def plot_replicas(plans: Mapping[str, Plan], ax: Axes | None = None) -> Axes:
    """Draw how many replicas every layer gets.

    Returns
    -------
    matplotlib Axes
    """
    by_label = {label: plan.layer_replicas for label, plan in plans.items()}
    ids = next(iter(plans.values())).layer_ids
    ax = _by_layer(by_label, ids, ax)
    ax.set_xlabel("layer")
    ax.set_ylabel("replicas")
    return ax


def plot_gaps(gaps: Mapping[str, npt.ArrayLike], ax: Axes | None = None) -> Axes:
    """Draw how far every layer may be from its optimum.

    Parameters
    ----------
    gaps : mapping of str to array_like [layers]
        Relative gap between a layer's value and its proven bound, by label.
    ax : matplotlib Axes, optional
        Where to draw; new axes by default.

    Returns
    -------
    matplotlib Axes
    """
    percent = {label: 100 * np.asarray(gap, dtype=float) for label, gap in gaps.items()}
    ax = _by_layer(percent, np.arange(next(iter(percent.values())).size), ax)
    ax.set_xlabel("position of the layer")
    ax.set_ylabel("at most above the optimum, %")
    return ax


def plot_persistence(loads: Loads, hottest: int = 8, ax: Axes | None = None) -> Axes:
    """Draw how many of a window's hottest experts are still hottest some windows later.

    The line is the mean of all layers and pairs of windows, the band holds 80 % of the layers; the
    dashed line is what experts drawn at random would keep.

    Raises
    ------
    InputError
        If there is one window only, or not more experts than ``hottest``.

    Returns
    -------
    matplotlib Axes
    """
    if loads.windows < 2:
        raise InputError("windows=1 shows no persistence; pass loads of at least 2 windows")
    experts = loads.tokens.shape[2]
    if not 1 <= hottest < experts:
        raise InputError(f"hottest={hottest} of {experts} experts; pass 1 to {experts - 1}")
    ax = new_axes(height=3.5) if ax is None else ax
    hot = hottest_marked(loads, hottest)
    apart = np.arange(1, max(2, loads.windows // 2 + 1))
    kept = np.array([(hot[:-d] & hot[d:]).sum(axis=2).mean(axis=0) / hottest for d in apart])
    low, high = np.quantile(kept, (0.1, 0.9), axis=1)
    ax.fill_between(apart, low, high, color=COLOURS[0], alpha=0.2, label="80 % of the layers")
    ax.plot(apart, kept.mean(axis=1), color=COLOURS[0], marker="o", label="mean of the layers")
    ax.axhline(hottest / experts, color="black", linestyle="--", label="by chance")
    ax.set_ylim(0, 1.02)
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("windows later")
    ax.set_ylabel(f"share of the {hottest} hottest kept")
    legend_above(ax)
    return ax


def plot_pareto(
    plans: Mapping[str, Plan], prefill: Loads, decode: Loads, ax: Axes | None = None
) -> Axes:
    """Draw how plans do in prefill and in decode; a line joins those that no other beats in both.

    Parameters
    ----------
    plans : mapping of str to Plan
        Such as those of `plan_for_both` by weight, and others to compare with.
    prefill, decode : Loads
        Windows of each kind, best unseen ones; a window of decode is a batch.
    ax : matplotlib Axes, optional
        Where to draw; new axes by default.

    Returns
    -------
    matplotlib Axes
    """
    ax = new_axes(height=4) if ax is None else ax
    points = {}
    for label, plan in plans.items():
        activated = evaluate(plan, decode, "exact").max_activated
        assert activated is not None
        points[label] = (evaluate(plan, prefill).relative_time, float(activated.mean()))
    front, least = [], np.inf
    for time, read in sorted(points.values()):
        if read < least:
            front.append((time, read))
            least = read
    ax.plot(*zip(*front, strict=True), color=COLOURS[0], drawstyle="steps-post", zorder=1)
    for point in points.values():
        best = point in front
        ax.plot(*point, marker="o" if best else "s", color=COLOURS[0] if best else COLOURS[2],
                fillstyle="full" if best else "none", linestyle="")  # fmt: skip
    write_beside(ax, points)
    ax.margins(0.15)
    ax.set_xlabel("prefill: relative time")
    ax.set_ylabel("decode: experts read by the busiest GPU")
    ax.grid(color="0.9")
    return ax


def plot_migration(
    curve: Sequence[tuple[int, float]], of: str = "relative time", ax: Axes | None = None
) -> Axes:
    """Draw what a number of moves reaches, such as `Rebalancing.curve` returns.

    Parameters
    ----------
    curve : sequence of (int, float)
        Most moves, and the objective reached.
    of : str
        Name of the objective.
    ax : matplotlib Axes, optional
        Where to draw; new axes by default.

    Returns
    -------
    matplotlib Axes
    """
    ax = new_axes(height=3.5) if ax is None else ax
    ax.plot(*zip(*curve, strict=True), color=COLOURS[0], marker="o")
    ax.set_xlabel("copies moved")
    ax.set_ylabel(of)
    ax.grid(color="0.9")
    return ax


def _shade_beyond(bound: tuple[npt.ArrayLike, npt.ArrayLike], ax: Axes) -> None:
    """Draw a bound on the lines drawn so far, and shade the side of it where no plan is."""
    x, y = (np.asarray(values, dtype=float) for values in bound)
    reached = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines()])
    ax.plot(x, y, color="black", linewidth=2, label="proven bound")
    low, high = ax.get_ylim()
    beyond = high if reached.mean() < y.mean() else low
    ax.fill_between(x, y, beyond, color="0.9", linewidth=0, zorder=0, label="no plan can be here")
    ax.set_ylim(low, high)


def _by_layer(
    by_label: Mapping[str, npt.NDArray[np.generic]], layers: npt.ArrayLike, ax: Axes | None
) -> Axes:
    ax = new_axes(height=3.5) if ax is None else ax
    for index, (label, values) in enumerate(by_label.items()):
        ax.plot(layers, values, linewidth=0.9, markersize=4, label=label, **line_style(index))
    ax.set_ylim(bottom=0)
    ax.locator_params(axis="x", integer=True)
    for line in ax.get_lines():
        line.set_clip_on(False)
    ax.grid(axis="y", color="0.9")
    legend_above(ax)
    return ax
