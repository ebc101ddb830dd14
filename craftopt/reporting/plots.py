"""Plots, with matplotlib (the extra ``plot``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from craftopt.evaluation import gpu_loads
from craftopt.loads import Loads
from craftopt.plan import Plan
from craftopt.serving import Advice
from craftopt.serving.deployment import GIB

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
    ax = new_axes(height=3.5) if ax is None else ax
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
        ax.plot(memory, goodput, marker=".", linewidth=0.9, label=f"{rule}, planned windows")
    points = [*advice.candidates, *([advice.eplb] if advice.eplb else [])]
    for candidate in points:
        place = (candidate.memory.replicas / GIB, candidate.goodput)
        own = candidate is advice.recommended
        ax.plot(*place, marker="*" if own else "o", color="black", markersize=10 if own else 5)
        ax.annotate(candidate.name, place, textcoords="offset points", xytext=(6, -10))
    ax.set_xlabel("replicas, GiB per GPU")
    ax.set_ylabel("requests/s, modelled")
    ax.set_title("black: full plans on windows not planned on; star: recommended")
    ax.grid(color="0.9")
    ax.legend()
    return ax


def new_axes(height: float) -> Axes:
    """Make axes of a height in inches."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 - an optional extra

    _, ax = plt.subplots(figsize=(7, height), layout="constrained")
    return ax
