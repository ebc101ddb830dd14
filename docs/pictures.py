"""Draw the pictures of the concept pages and of the README: ``python docs/pictures.py``."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import craftopt as co
from craftopt.reporting.layers import plot_load_map
from craftopt.windows import without_domain

FOLDER = Path(__file__).parent / "pictures"
BLUE, ORANGE, GREY, PALE = "#0072B2", "#E69F00", "#444444", "#CFE3F0"  # Okabe and Ito


def stack(ax: Axes, gpus: list[dict[str, float]], hot: str, height: float) -> None:
    """Draw experts, by name, on top of each other on their GPUs, and the wait above them."""
    totals = [sum(experts.values()) for experts in gpus]
    for gpu, experts in enumerate(gpus):
        bottom = 0.0
        for name, load in experts.items():
            colour = ORANGE if name in hot else PALE
            ax.bar(gpu, load, 0.8, bottom, color=colour, edgecolor="white", linewidth=2)
            ax.text(gpu, bottom + load / 2, name, ha="center", va="center")
            bottom += load
        ax.bar(gpu, max(totals) - bottom, 0.8, bottom, fill=False, hatch="///", edgecolor="0.7")
    ax.axhline(max(totals), color=BLUE, linewidth=2)
    ax.set_xticks(range(len(gpus)), [f"GPU {gpu}" for gpu in range(len(gpus))])
    ax.set(ylim=(0, height), yticks=[])
    ax.spines[["top", "right", "left"]].set_visible(False)


def problem() -> Figure:
    """Show a layer that waits for its fullest GPU, and what one copy changes."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    by_id = [{"A": 8, "B": 5}, {"C": 3, "D": 2}, {"E": 2, "F": 2}, {"G": 1, "H": 1}]
    planned = [{"A": 4, "D": 2}, {"A": 4, "E": 2}, {"B": 5, "G": 1}, {"C": 3, "F": 2, "H": 1}]
    stack(axes[0], by_id, "A", 15)
    stack(axes[1], planned, "A", 15)
    axes[0].set_title("experts by id: relative time 13 / 6 = 2.17")
    axes[1].set_title("one copy of A, others moved: 6 / 6 = 1")
    axes[0].text(2, 13.3, "the layer is done here", color=BLUE, ha="center")
    axes[0].text(2, 8, "waiting", color=GREY, ha="center", backgroundcolor="white")
    axes[1].text(1.5, 6.3, "and here", color=BLUE, ha="center")
    return figure


def windows() -> Figure:
    """Show two plans that are equal on the sum of two windows, and not in the windows."""
    plans = {"A, C and B, D together": ("AC", "BD"), "A, B and C, D together": ("AB", "CD")}
    always = {"C": 3, "D": 3}
    loads = {"window 1": {"A": 6, "B": 0, **always}, "window 2": {"A": 0, "B": 6, **always}}
    loads["their sum"] = {name: sum(of[name] for of in loads.values()) for name in "ABCD"}
    figure, axes = plt.subplots(2, 3, figsize=(8, 4.6), layout="constrained", sharey="col")
    for row, (label, gpus) in zip(axes, plans.items(), strict=True):
        for ax, (name, tokens) in zip(row, loads.items(), strict=True):
            held = [{e: tokens[e] for e in gpu if tokens[e]} for gpu in gpus]
            stack(ax, held, "AB", 13 if "sum" in name else 10)
            time = max(sum(of.values()) for of in held) / (sum(tokens.values()) / 2)
            ax.set_title(f"{name}: time {time:g}")
        row[0].set_ylabel(label.replace(" and ", "\nand "))
    return figure


def slots() -> Figure:
    """Show the copies of every GPU and layer under the three rules, 12 replicas each."""
    rules = {
        "uniform": [[3, 3, 3, 3]] * 3,
        "even": [[4, 4, 3, 3], [3, 3, 4, 4], [2, 2, 2, 2]],
        "free": [[5, 4, 3, 2], [2, 3, 4, 5], [2, 2, 2, 2]],
    }
    figure, axes = plt.subplots(1, 3, figsize=(8, 2.6), layout="constrained")
    for ax, (rule, rows) in zip(axes, rules.items(), strict=True):
        ax.imshow(rows, cmap="Blues", vmin=1, vmax=8)
        for layer, row in enumerate(rows):
            for gpu, copies in enumerate(row):
                ax.text(gpu, layer, copies, ha="center", va="center")
        ax.set_title(f'"{rule}"')
        ax.set_xticks(range(4), [f"GPU {gpu}\n= {sum(r[gpu] for r in rows)}" for gpu in range(4)])
        ax.set_yticks(range(3), [f"layer {layer}" for layer in range(3)])
        ax.tick_params(length=0)
    return figure


def bounds() -> Figure:
    """Show where the optimum may be: figures of gpt-oss-20b without replicas."""
    planned, _ = co.holdout(co.load_example_trace("gpt-oss-20b").batches(1024), "odd-even")
    case = co.Problem(planned, gpus=8, nodes=2, replicas=0, slots="even")
    names = {"trivial": "experts by id", "eplb": "EPLB", "fast": "fast"}
    results = {label: co.solve(case, method) for method, label in names.items()}
    least, best = results["fast"].bound, results["fast"].objective
    figure, ax = plt.subplots(figsize=(8, 2.2), layout="constrained")
    ax.axvspan(1, least, color="0.85")
    ax.axvspan(least, best, color=PALE)
    for middle, text in [
        ((1 + least) / 2, "proven:\nno plan"),
        ((least + best) / 2, "gap: the best plan\nis somewhere here"),
    ]:
        ax.text(middle, 0.75, text, ha="center", va="center")
    for label, result in results.items():
        ax.plot(result.objective, 0.2, marker="o", color=BLUE, markersize=9)
        ax.text(
            result.objective, 0.33, f"{label}\n{result.objective:.2f}", ha="center", va="bottom"
        )
    ax.set(xlim=(1, 1.8), ylim=(0, 1), yticks=[], xlabel="relative time, 1 is perfect balance")
    ax.spines[["top", "right", "left"]].set_visible(False)
    return figure


def result() -> Figure:
    """Show one unseen window of gpt-oss-20b under three plans."""
    loads = co.load_example_trace("gpt-oss-20b").batches(1024)
    known, _ = without_domain(loads, "sorry_bench_base")  # as `make demo`
    planned, served = co.holdout(known, "odd-even")
    case = co.Problem(planned, gpus=8, nodes=2, replicas_per_layer=8, slots="even")
    names = {"trivial": "experts by id", "eplb": "DeepSeek's EPLB", "fast": "craftopt"}
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained", sharey=True)
    for ax, (method, label) in zip(axes, names.items(), strict=True):
        plan = co.solve(case, method).plan
        plot_load_map(plan, served, window=8, most=3, ax=ax)
        ax.set_title(f"{label}: time {co.evaluate(plan, served).relative_time:.2f}")
        if ax is not axes[0]:
            ax.set_ylabel("")
    figure.colorbar(ax.images[0], ax=axes, label="load / mean load of the layer")
    return figure


if __name__ == "__main__":
    mpl.use("agg")
    mpl.rcParams.update({"svg.hashsalt": "craftopt", "svg.fonttype": "none"})
    FOLDER.mkdir(exist_ok=True)
    for draw in (problem, windows, slots, bounds, result):
        draw().savefig(FOLDER / f"{draw.__name__}.svg", metadata={"Date": None})
