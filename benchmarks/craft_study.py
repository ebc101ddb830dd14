"""CRAFT's claims under the model: memory, balance, goodput, and its two observations.

    python benchmarks/craft_study.py [--nodes 6 8 12] [--plot docs/research/craft_study.png]

DeepSeek-R1 and Kimi K2 in bf16 on nodes of 8 A100-80G, attention in groups of 8 GPUs, 4096 tokens
in and 256 out, as the paper has it. Its traffic cannot be had, so the loads are the examples of
these shapes: odd windows are planned, even ones served. Prints Markdown tables and saves a plot.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import craftopt as co
from craftopt.baselines.craft import replay_benefits, replica_choices
from craftopt.reporting.plots import line_style
from craftopt.serving import (
    Deployment,
    Workload,
    find_gpu,
    find_model,
    memory_for_copies,
    memory_of,
    profile_of,
    service_of,
)

GIB = 2**30
MODELS = {"R1": "deepseek-r1", "K2": "kimi-k2"}
R = 8  # CRAFT's copies per GPU
# What the paper says of the cache that is lost: (model, nodes, plan) -> share.
PAPER = {
    ("K2", 6, "EPLB"): 0.75,
    ("R1", 8, "EPLB"): 0.19,
    ("K2", 12, "EPLB"): 0.24,
    ("K2", 6, "CRAFT"): 0.06,
}


def deployment(name: str, nodes: int, reserve: float | None = None) -> Deployment:
    found = Deployment(
        find_model(MODELS[name]),
        find_gpu("a100"),
        gpus=8 * nodes,
        nodes=nodes,
        expert_dtype="bf16",
        attention_gpus=8,
    )
    return found if reserve is None else found.replace(reserve=reserve)


def copies_beyond(spread: Deployment, plan: str) -> tuple[int, int]:
    """Count the fullest GPU's copies without replicas, and what EPLB's default or CRAFT adds."""
    model = spread.model
    least = -(-model.moe_layers * model.experts // spread.gpus)
    # EPLB: one slot more than the experts fill, on every GPU in every layer.
    full = model.moe_layers * (model.experts // spread.gpus + 1)
    return least, R if plan == "CRAFT" else full - least


def lost(name: str, nodes: int, plan: str, reserve: float | None = None) -> float:
    """Compute the share of the cache that EPLB's default or CRAFT's R = 8 takes."""
    spread = deployment(name, nodes, reserve)
    least, more = copies_beyond(spread, plan)
    none = memory_for_copies(spread, least)
    return 1 - memory_for_copies(spread, least + more).kv / none.kv


def fitted_reserve() -> float:
    """Fit the one constant that the paper does not give, to its rows: least largest error."""
    choices = np.arange(5, 20, 0.1) * GIB
    errors = [
        max(abs(lost(*row, reserve=float(reserve)) - share) for row, share in PAPER.items())
        for reserve in choices
    ]
    return float(choices[int(np.argmin(errors))])


def print_memory(reserve: float, nodes: list[int]) -> None:
    print(f"Reserve: default {deployment('K2', 6).reserve / GIB:.0f} GiB, "
          f"fitted {reserve / GIB:.1f} GiB, both + 1 GiB per 8 GPUs.\n")  # fmt: skip
    print("| model x nodes | plan | GiB per GPU | paper | default reserve | fitted reserve |")
    print("|---|---|---|---|---|---|")
    for name in MODELS:
        for count in nodes:
            spread = deployment(name, count)
            for plan in ("EPLB", "CRAFT"):
                copies = copies_beyond(spread, plan)[1]
                paper = PAPER.get((name, count, plan))
                cells = [lost(name, count, plan), lost(name, count, plan, reserve)]
                print(
                    f"| {name} x {count} | {plan} | {copies * spread.expert_bytes / GIB:.2f} |",
                    f"{paper:.0%}" if paper else "",
                    "|", " | ".join(f"{cell:.1%}" for cell in cells), "|",
                )  # fmt: skip
    print()


def print_goodput(reserve: float, nodes: list[int], workers: int | None) -> None:
    print("| model x nodes | plan | replicas | balancedness | fullest/mean | sequences per group |"
          " TPOT ms | requests/s | to EPLB | to placement only |")  # fmt: skip
    print("|" + "---|" * 10)
    for name, example in MODELS.items():
        planned, served = co.holdout(co.load_example(example), "odd-even")
        for count in nodes:
            spread = deployment(name, count, reserve)
            gpus = spread.gpus
            extra = (planned.experts // gpus + 1) * gpus - planned.experts
            even = co.Problem(planned, gpus, nodes=count, slots="even")
            full = even.replace(slots="uniform", replicas_per_layer=extra)
            eight = even.replace(replicas=R * gpus)
            rows = {
                "placement only": (even, "placement"),
                "EPLB": (full, "eplb"),
                f"CRAFT, R = {R}": (eight, "craft"),
                f"fast, R = {R}": (eight, "fast"),
                "fast, none": (even, "fast"),
            }
            rates: dict[str, float] = {}
            lines = []
            for label, (problem, method) in rows.items():
                plan = co.solve(problem, method, workers=workers).plan
                scored = co.evaluate(plan, served)
                service = service_of(
                    spread, profile_of(plan, served), memory_of(spread, plan), Workload()
                )
                rates[label] = service.requests_per_second
                lines.append(
                    f"| {name} x {count} | {label} | {plan.replicas} "
                    f"| {scored.mean_balancedness:.3f} | {scored.relative_time:.3f} "
                    f"| {service.concurrency} | {service.tpot * 1e3:.0f} "
                    f"| {service.requests_per_second:.2f} |"
                )
            for line, rate in zip(lines, rates.values(), strict=True):
                ratios = (rate / rates["EPLB"], rate / rates["placement only"])
                print(line, " | ".join(f"{ratio:.2f}" for ratio in ratios), "|", flush=True)
    print()


def plot_observations(file: Path) -> None:
    """Plot what replicas bring by layer, and how it falls off: the paper's two observations."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    sizes = replica_choices(64)
    sixteen = sizes.tolist().index(16)
    for index, (name, example) in enumerate(MODELS.items()):
        style = line_style(index) | {"markersize": 4}
        loads = co.load_example(example)
        gain = replay_benefits(loads, 64)
        axes[0].plot(loads.layer_ids, gain[:, sixteen], label=f"{name}, 16 replicas", **style)
        axes[1].plot(sizes, gain.mean(axis=0), label=name, **style)
        means = zip(sizes, gain.mean(axis=0), strict=True)
        print(f"{name}, 64 GPUs: mean gain in balancedness by replicas per layer",
              ", ".join(f"{size}: {value:.3f}" for size, value in means))  # fmt: skip
        least, middle, most = np.quantile(gain[:, sixteen], (0, 0.5, 1))
        print(f"  of 16, by layer: {least:.3f} to {most:.3f}, median {middle:.3f}")
    axes[0].set_xlabel("layer")
    axes[0].set_ylabel("gain in balancedness")
    axes[0].set_title("the benefit differs by layer")
    axes[1].set_xlabel("replicas per layer")
    axes[1].set_ylabel("mean gain in balancedness")
    axes[1].set_title("the benefit diminishes")
    for ax in axes:
        ax.grid(color="0.9")
        ax.legend()
    figure.savefig(file, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[6, 8, 12])
    parser.add_argument("--workers", type=int)
    parser.add_argument("--plot", type=Path, default=Path("craft_study.png"))
    options = parser.parse_args()
    warnings.simplefilter("ignore", co.CraftoptWarning)
    reserve = fitted_reserve()
    print_memory(reserve, options.nodes)
    plot_observations(options.plot)
    print()
    print_goodput(reserve, options.nodes, options.workers)


if __name__ == "__main__":
    main()
