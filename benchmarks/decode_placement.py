"""Plans for decode on batches that they have not seen, and one plan for prefill and decode.

Tables for docs/routing.md. Odd tokens of a trace make the batches that are planned, even ones
those that are served. Run ``python -m benchmarks.decode_placement FOLDER`` with the folder of the
real traces; without it, only the synthetic one is done.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import craftopt as co
from craftopt.bounds import whole_plan_bound
from craftopt.evaluation import mean_activated, objective_value

TRACES = ("deepseek_v2_lite_esft_trace", "gpt_oss_20b_benchmarks_trace")
PLANNED, SERVED = 1000, 500
PREFILL = 512  # tokens of a prefill batch
WEIGHTS = (0.0, 0.05, 0.2, 0.5, 0.8, 1.0)


def synthetic_trace(
    tokens: int = 64_000, experts: int = 256, k: int = 8, domains: int = 8, seed: int = 0
) -> co.Trace:
    """Draw one layer: experts of lognormal weight, each domain with its own, top-k of a token."""
    generator = np.random.default_rng(seed)
    base = generator.normal(size=experts)
    odds = base + 0.8 * generator.normal(size=(domains, experts))
    domain = generator.integers(domains, size=tokens)
    keys = odds[domain] + generator.gumbel(size=(tokens, experts))
    chosen = np.argpartition(-keys, k, axis=1)[:, :k]
    return co.Trace(chosen[:, np.newaxis].astype(np.int16), experts=experts, domain=domain)


def halves(trace: co.Trace) -> tuple[co.Trace, co.Trace]:
    """Split by token: odd ones to plan, even ones to serve."""
    odd = np.arange(trace.tokens) % 2 == 1
    first, second = (co.Trace(trace.topk_ids[m], experts=trace.experts) for m in (odd, ~odd))
    return first, second


def batches(trace: co.Trace, size: int, count: int) -> co.Loads:
    """Draw batches at random; each pass over the trace uses every token once."""
    per_pass = -(-trace.tokens // size)
    tokens = np.concatenate(
        [trace.batches(size, "random", seed=s).tokens for s in range(-(-count // per_pass))]
    )
    return co.Loads(tokens[:count], trace.layer_ids)


def decode_problem(loads: co.Loads, gpus: int) -> co.Problem:
    """State the problem at 1.5 x copies, as engines load them."""
    slots = loads.experts * 3 // 2 // gpus * gpus
    return co.Problem(
        loads,
        gpus,
        replicas_per_layer=slots - loads.experts,
        slots="uniform",
        objective="activated",
    )


def placement_row(name: str, trace: co.Trace, size: int, gpus: int) -> None:
    """Print what EPLB's plan and the fast one activate on batches that neither has seen."""
    mine, others = halves(trace)
    problem = decode_problem(batches(mine, size, PLANNED), gpus)
    served = batches(others, size, SERVED)
    result = co.solve(problem)
    fast = mean_activated(result.plan, served)
    eplb = mean_activated(co.solve(problem, "eplb").plan, served)
    bound = whole_plan_bound(problem.replace(loads=served))
    print(
        f"| {name} | {gpus} | {size} | {eplb:.3f} | **{fast:.3f}** | {1 - fast / eplb:.1%} "
        f"| {bound:.3f} | {fast / bound - 1:.1%} | {result.gap:.1%} | {result.runtime:.1f} |",
        flush=True,
    )


def both_rows(name: str, trace: co.Trace, size: int, gpus: int) -> None:
    """Print the curve between the plan for prefill and the one for decode."""
    mine, others = halves(trace)
    decode = decode_problem(batches(mine, size, PLANNED), gpus)
    prefill = decode.replace(loads=mine.batches(PREFILL), objective="time")
    served = decode.replace(loads=batches(others, size, SERVED))
    served_prefill = prefill.replace(loads=others.batches(PREFILL))
    for weight in WEIGHTS:
        plan = co.plan_for_both(prefill, decode, weight=weight)
        time = objective_value(plan, served_prefill)
        reads = objective_value(plan, served)
        print(f"| {name} | {weight:g} | {time:.4f} | {reads:.4f} |", flush=True)


def main() -> None:
    """Print both tables."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    traces = [] if folder is None else [(n, co.read_trace(folder / f"{n}.npz")) for n in TRACES]
    warm = decode_problem(co.Loads(np.ones((2, 1, 8))), 2)
    co.solve(warm)
    print("| trace | GPUs | tokens | EPLB | fast | less | bound | above | gap | s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, trace in traces:
        for gpus in (8, 16):
            for size in (16, 32, 64):
                placement_row(name, trace, size, gpus)
    synthetic = synthetic_trace()
    for size in (32, 64):
        placement_row("synthetic", synthetic, size, 64)
    print("\n| trace | weight of decode | prefill, relative time | decode, activated |")
    print("|---|---|---|---|")
    for name, trace in traces:
        both_rows(name, trace, 16, 16)


if __name__ == "__main__":
    main()
