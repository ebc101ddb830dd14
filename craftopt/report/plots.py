"""Plots, with matplotlib (the extra ``plot``)."""

from __future__ import annotations

from collections.abc import Mapping
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
    if ax is None:
        import matplotlib.pyplot as plt  # noqa: PLC0415 - an optional extra

        _, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
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
