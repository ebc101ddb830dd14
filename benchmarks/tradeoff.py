"""Balancedness against memory: what every method makes of more and more replicas.

    python benchmarks/tradeoff.py [loads] [--gpus 64] [--layers-step 6] [--plot tradeoff.png]

Loads are a file or the name of an example. Odd windows are planned, even windows served, under
even slots, for mean balancedness. ``eplb-counts`` may host an expert twice on a GPU; no other
method may. Prints a Markdown table and saves the plot.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

import craftopt as co
from craftopt.reporting.plots import line_style

METHODS = ("eplb-counts", "craft", "nominal", "fast")
REPLICAS_PER_LAYER = (0, 2, 4, 8, 16, 32, 64)


def read(source: str, step: int) -> co.Loads:
    """Read loads or make an example, and keep every ``step``-th layer."""
    known = source.lower() in co.example_names()
    loads = co.load_example(source) if known else co.read_loads(source)
    return co.Loads(loads.tokens[:, ::step], loads.layer_ids[::step], loads.window_names)


def measure(loads: co.Loads, gpus: int) -> dict[str, list[tuple[float, float, float]]]:
    """Plan with every method at every budget; score planned and served windows."""
    planned, served = co.holdout(loads, "odd-even")
    points: dict[str, list[tuple[float, float, float]]] = {name: [] for name in METHODS}
    for replicas in REPLICAS_PER_LAYER:
        problem = co.Problem(
            planned, gpus, replicas_per_layer=replicas, slots="even", objective="balancedness"
        )
        for name, line in points.items():
            result = co.solve(problem, name)
            assert name == "eplb-counts" or not result.violations
            on_planned, on_served = (co.evaluate(result.plan, part) for part in (planned, served))
            line.append((replicas, on_planned.mean_balancedness, on_served.mean_balancedness))
    return points


def print_table(points: dict[str, list[tuple[float, float, float]]]) -> None:
    print("| replicas per layer |", " | ".join(points), "|")
    print("|" + "---|" * (len(points) + 1))
    for row in zip(*points.values(), strict=True):
        cells = (f"{planned:.3f} / {served:.3f}" for _, planned, served in row)
        print(f"| {row[0][0]} |", " | ".join(cells), "|")


def plot(points: dict[str, list[tuple[float, float, float]]], path: Path) -> None:
    """Plot balancedness against replicas: solid lines served windows, dashed ones planned."""
    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    for index, (label, line) in enumerate(points.items()):
        replicas, planned, served = zip(*line, strict=True)
        style = line_style(index) | {"linestyle": "-", "markersize": 4}
        ax.plot(replicas, served, label=label, **style)
        ax.plot(replicas, planned, "--", linewidth=0.9, color=style["color"])
    # Doubling the replicas is one step to the right, and 0 has a place.
    ax.set_xscale("symlog", base=2, linthresh=2)
    ax.set_xticks(REPLICAS_PER_LAYER, [f"{tick:g}" for tick in REPLICAS_PER_LAYER])
    ax.minorticks_off()
    ax.set_xlabel("replicas per layer")
    ax.set_ylabel("mean balancedness")
    ax.set_title("solid: windows served, dashed: windows planned", fontsize="medium")
    ax.grid(color="0.9")
    ax.legend()
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("loads", nargs="?", default="deepseek-r1")
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--layers-step", type=int, default=6)
    parser.add_argument("--plot", type=Path, default=Path("tradeoff.png"))
    options = parser.parse_args()
    points = measure(read(options.loads, options.layers_step), options.gpus)
    print_table(points)
    plot(points, options.plot)


if __name__ == "__main__":
    main()
