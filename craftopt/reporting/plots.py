"""Plots, with matplotlib (the extra ``plot``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from craftopt.evaluation import gpu_loads
from craftopt.loads import Loads
from craftopt.plan import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_gpu_loads(
    plans: Mapping[str, Plan], loads: Loads, layer: int = 0, ax: Axes | None = None
) -> Axes:
    """Plot the load of every GPU in one layer, mean over the windows, fullest GPU first.

    Each window's loads are divided by their mean and sorted on their own: the left end is the
    wait that the layer causes.

    Parameters
    ----------
    plans : mapping of str to Plan
        Plans by label.
    loads : Loads
    layer : int
        0-based position of the layer.
    ax : matplotlib Axes, optional
        Where to draw; new axes by default.

    Returns
    -------
    matplotlib Axes
    """
    ax = _new_axes(height=3.5) if ax is None else ax
    for label, plan in plans.items():
        of_layer = gpu_loads(plan, loads)[:, layer]
        of_layer = of_layer[of_layer.sum(axis=1) > 0]
        relative = -np.sort(-of_layer / of_layer.mean(axis=1, keepdims=True), axis=1)
        ax.step(np.arange(plan.gpus), relative.mean(axis=0), where="mid", label=label)
    ax.axhline(1.0, color="0.6", linewidth=0.8)
    ax.set_xlabel("GPUs, fullest first")
    ax.set_ylabel("load / mean load")
    ax.set_title(f"layer {loads.layer_ids[layer]}, mean of {loads.windows} windows")
    ax.legend()
    return ax


def plot_tradeoff(
    points: Mapping[str, Sequence[tuple[float, float, float]]], ax: Axes | None = None
) -> Axes:
    """Plot balancedness against the memory that replicas take, one line per method.

    Solid: the windows served, which no plan saw; dashed: the windows planned. The distance
    between the two is what a plan loses on traffic other than its own.

    Parameters
    ----------
    points : mapping of str to sequence of (replicas per layer, planned, served)
        Mean balancedness at growing numbers of replicas, by method.
    ax : matplotlib Axes, optional
        Where to draw; new axes by default.

    Returns
    -------
    matplotlib Axes
    """
    ax = _new_axes(height=4) if ax is None else ax
    ticks = sorted({replicas for line in points.values() for replicas, _, _ in line})
    for label, line in points.items():
        replicas, planned, served = zip(*line, strict=True)
        (drawn,) = ax.plot(replicas, served, marker="o", markersize=3, label=label)
        ax.plot(replicas, planned, linestyle="--", linewidth=0.9, color=drawn.get_color())
    # Doubling the replicas is one step to the right, and 0 has a place.
    ax.set_xscale("symlog", base=2, linthresh=2)
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel("replicas per layer")
    ax.set_ylabel("mean balancedness")
    ax.set_title("solid: windows served, dashed: windows planned", fontsize="medium")
    ax.grid(color="0.9")
    ax.legend()
    return ax


def _new_axes(height: float) -> Axes:
    import matplotlib.pyplot as plt  # noqa: PLC0415 - an optional extra

    _, ax = plt.subplots(figsize=(7, height), layout="constrained")
    return ax
