"""Plots of plans over layers, windows and budgets, with matplotlib (the extra ``plot``).

Every function draws into the axes given, or into new ones, and returns them. Colours are told
apart in grey and by colour-blind readers; lines differ in marker and dash as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from craftopt.errors import InputError
from craftopt.evaluation import gpu_loads
from craftopt.loads import Loads
from craftopt.plan import Plan
from craftopt.reporting.plots import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Blue, orange, dark grey of Okabe and Ito: of three different lightnesses.
COLOURS = ("#0072B2", "#E69F00", "#444444", "#CC79A7")
STYLES = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"))


def plot_load_map(
    plan: Plan,
    loads: Loads,
    window: int | None = None,
    most: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the load of every GPU in every layer, relative to the layer's mean.

    The palest colour is the mean and all below it: what is dark makes its layer wait.

    Parameters
    ----------
    plan : Plan
    loads : Loads
    window : int, optional
        One window; by default the mean of all.
    most : float, optional
        Relative load of the darkest colour, to compare maps; by default the largest shown.
    ax : matplotlib Axes, optional
        Where to draw; new axes by default.

    Returns
    -------
    matplotlib Axes
    """
    ax = new_axes(height=4) if ax is None else ax
    tokens = gpu_loads(plan, loads)
    shown = tokens.mean(axis=0) if window is None else tokens[window]
    shown = shown / np.maximum(shown.mean(axis=1, keepdims=True), 1e-300)
    image = ax.imshow(
        shown,
        aspect="auto",
        cmap="YlOrBr",
        vmin=1,
        vmax=most or max(shown.max(), 1.01),
        interpolation="none",
    )
    ax.figure.colorbar(image, ax=ax, label="load / mean load of the layer")
    ticks = np.unique(np.linspace(0, len(shown) - 1, min(len(shown), 8)).astype(int))
    ax.set_yticks(ticks, loads.layer_ids[ticks].tolist())
    ax.set_xlabel("GPU")
    ax.set_ylabel("layer")
    which = f"mean of {loads.windows} windows" if window is None else f"window {window}"
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
        ax.plot(replicas, reached, label=label, **_style(index))
    if bound is not None:
        ax.plot(*bound, color="black", linewidth=2, label="proven bound: no plan passes it")
    ax.set_xlabel("replicas per layer")
    ax.set_ylabel(of)
    ax.grid(color="0.9")
    ax.legend(frameon=False)
    return ax


def plot_replicas(plans: Mapping[str, Plan], ax: Axes | None = None) -> Axes:
    """Draw how many replicas every layer gets.

    Returns
    -------
    matplotlib Axes
    """
    by_label = {
        label: plan.copies.sum(axis=(1, 2), dtype=np.int64) - plan.experts
        for label, plan in plans.items()
    }
    ax = _by_layer(by_label, ax)
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
    ax = _by_layer(percent, ax)
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
    order = np.argsort(-loads.tokens, axis=2, kind="stable")[:, :, :hottest]
    hot = np.zeros(loads.tokens.shape, dtype=bool)
    np.put_along_axis(hot, order, True, axis=2)
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
    ax.legend(frameon=False)
    return ax


def plot_migration(curve: Sequence[tuple[int, float]], ax: Axes | None = None) -> Axes:
    """Draw the balancedness that a number of moves reaches.

    Parameters
    ----------
    curve : sequence of (int, float)
        Most moves, and balancedness reached.
    ax : matplotlib Axes, optional
        Where to draw; new axes by default.

    Returns
    -------
    matplotlib Axes
    """
    ax = new_axes(height=3.5) if ax is None else ax
    ax.plot(*zip(*curve, strict=True), color=COLOURS[0], marker="o")
    ax.set_xlabel("experts moved")
    ax.set_ylabel("balancedness")
    ax.grid(color="0.9")
    return ax


def _style(index: int) -> dict[str, Any]:
    """Return colour, marker and dash of a line, each of them its own."""
    marker, dash = STYLES[index % len(STYLES)]
    return {"color": COLOURS[index % len(COLOURS)], "marker": marker, "linestyle": dash}


def _by_layer(by_label: Mapping[str, npt.NDArray[np.generic]], ax: Axes | None) -> Axes:
    ax = new_axes(height=3.5) if ax is None else ax
    for index, (label, values) in enumerate(by_label.items()):
        ax.plot(values, markersize=4, label=label, **_style(index))
    ax.set_ylim(bottom=0)
    for line in ax.get_lines():
        line.set_clip_on(False)
    ax.set_xlabel("position of the layer")
    ax.grid(axis="y", color="0.9")
    ax.legend(frameon=False)
    return ax
