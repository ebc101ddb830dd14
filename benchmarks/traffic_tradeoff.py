"""Relative time against critical nodes: what plans for one price after another make of both.

    python -m benchmarks.traffic_tradeoff TRACE --gpus 16 --nodes 4 [--plot traffic_tradeoff.png]

TRACE is a token trace with domains and sequences; half of its sequences are planned, the other half
served, in windows of eight (`benchmarks.traffic_study`). Three layers, evenly spread. No plan with
one copy per expert is left of the line: the companion bound on the nodes per token, which critical
nodes are never below, of a sample of the served tokens. Prints a Markdown table and saves the plot.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import craftopt as co
from benchmarks.traffic_study import figures, halves, spread
from craftopt.bounds.traffic import companion_bound, token_sets
from craftopt.reporting.plots import write_beside

PRICES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
SEED, BATCH, LAYERS, SAMPLE = 100, 8, 3, 2000


def measure(trace: co.Trace, gpus: int, nodes: int) -> tuple[dict[str, np.ndarray], float]:
    """Return relative time, nodes and critical nodes of every plan on served sequences; a bound."""
    (seen, loads), (unseen, served) = halves(spread(trace, LAYERS), BATCH, SEED)
    problem = co.Problem(loads, gpus=gpus, nodes=nodes, slots="uniform")
    tasks = {"EPLB": (problem, "eplb"), "price 0": (problem, "fast")}
    for price in PRICES:
        tasks[f"price {price}"] = (problem.replace(coactivation=seen, traffic=price), "fast")
    points = {
        name: figures(co.solve(task, method).plan, served, unseen, 0.0)[-1, :3]
        for name, (task, method) in tasks.items()
    }
    sample = np.random.default_rng(SEED).permutation(unseen.tokens)[:SAMPLE]
    visits = tokens = 0.0
    for layer in range(unseen.layers):
        sets = token_sets(unseen.topk_ids[sample, layer], unseen.experts)
        visits += companion_bound(sets, nodes, unseen.experts // nodes).visits
        tokens += sets.tokens
    return points, visits / tokens


def plot(points: dict[str, np.ndarray], bound: float, title: str, path: Path) -> None:
    """Plot time against critical nodes, and the bound as a line."""
    figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
    eplb, *line = points.values()
    slow, _, critical = np.array(line).T
    ax.plot(critical, slow, marker="o", markersize=4, label="fast, price of a node")
    names = [name.removeprefix("price ") for name in list(points)[1:]]
    write_beside(ax, dict(zip(names, zip(critical, slow, strict=True), strict=True)))
    ax.plot(eplb[2], eplb[0], "s", color="0.4", markersize=5, label="EPLB")
    ax.axvline(bound, color="0.4", linestyle="--", linewidth=0.9, label="no plan is left of this")
    ax.set_xlabel("critical nodes per token")
    ax.set_ylabel("relative time")
    ax.set_title(title, fontsize="medium")
    ax.grid(color="0.9")
    ax.legend()
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file")
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--title", default="sequences that the plans have not seen")
    parser.add_argument("--plot", type=Path, default=Path("traffic_tradeoff.png"))
    options = parser.parse_args()
    warnings.simplefilter("ignore", co.CraftoptWarning)
    points, bound = measure(co.read_trace(options.file), options.gpus, options.nodes)
    print("| plan | relative time | nodes per token | critical nodes |\n|---|---|---|---|")
    for name, (slow, nodes, critical) in points.items():
        print(f"| {name} | {slow:.3f} | {nodes:.3f} | {critical:.3f} |")
    print(f"\nNo plan has fewer than {bound:.3f} nodes per token, so no fewer critical nodes.")
    plot(points, bound, options.title, options.plot)


if __name__ == "__main__":
    main()
