"""How long routing takes, per layer and batch, and how good it is: rules beside max-flow solvers.

Times are medians of warm calls on one core, of all 58 layers of a batch in one call, divided by
the layers. ``python -m benchmarks.bench_routing [TRACE.npz ...]`` prints the tables of
docs/routing.md: times, and for every token trace given the activated copies on the fullest GPU by
replication ratio and batch size, EPLB's placement, planned on the odd and served on the even
batches.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

import craftopt as co
from craftopt.routing import COUNT_DISPATCHES

LAYERS, EXPERTS, TOPK, PER_GPU, RATIO = 58, 256, 8, 32, 1.5
SOLVED = 8  # layers for the solvers


def eplb_plan(weights: np.ndarray, gpus: int, ratio: float) -> co.Plan:
    """Place by EPLB with as many whole slots per GPU as the ratio gives."""
    slots = int(weights.shape[1] * ratio) // gpus * gpus
    tables = co.eplb.rebalance_experts(weights, slots, 1, 1, gpus)
    return co.Plan.from_phy2log(tables.phy2log, gpus, weights.shape[1])


def batch_of(gpus: int, tokens: int, layers: int = LAYERS) -> tuple[co.Plan, np.ndarray]:
    """Make EPLB's plan for skewed experts, and a batch that chooses by the same skew."""
    rng = np.random.default_rng(0)
    popular = rng.lognormal(sigma=1.0, size=(layers, EXPERTS))
    keys = np.log(popular)[:, np.newaxis] + rng.gumbel(size=(layers, tokens, EXPERTS))
    chosen = np.argpartition(-keys, TOPK, axis=2)[:, :, :TOPK]
    counts = [np.bincount(row.ravel(), minlength=EXPERTS) for row in chosen]
    return eplb_plan(popular * 1e3, gpus, RATIO), np.array(counts, dtype=np.float64)


@pytest.mark.parametrize("gpus", [64, 16])
@pytest.mark.parametrize("rule", COUNT_DISPATCHES)
def test_route(measure, rule, gpus):
    plan, tokens = batch_of(gpus, PER_GPU * gpus)
    measure(f"route {rule}, {gpus} GPUs", "58 layers", lambda: co.route(plan, tokens, rule))


def microseconds(work: Callable[[], object], rounds: int) -> float:
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def print_times(gpus: int, tokens: int) -> None:
    """Print microseconds per layer of every rule, and of the max-flow solvers."""
    from craftopt_formulations import routing as models  # noqa: PLC0415

    plan, batch = batch_of(gpus, tokens)
    active = (batch > 0).sum(axis=1).mean()
    print(f"\n{gpus} GPUs, {tokens} tokens, {active:.0f} of {EXPERTS} experts active")
    found = {}
    for rule in COUNT_DISPATCHES:
        rounds = 5 if rule == "mixed" else 50
        call = microseconds(lambda rule=rule: co.route(plan, batch, rule), rounds)
        found[rule] = call / LAYERS
        routing = co.route(plan, batch, rule)
        print(
            f"  {rule:10} {found[rule]:10.2f} us/layer {call / 1e3:8.3f} ms/call"
            f"  max activated {routing.max_activated.mean():6.3f}"
            f"  max tokens {routing.max_tokens.mean():7.1f}"
        )
    exact = co.route(plan, batch, "exact").max_activated[:SOLVED].tolist()
    for name, rounds in (("ortools", 20), ("networkx", 1)):
        solve = getattr(models, f"fewest_activated_{name}")

        def run(solve: Callable[..., int] = solve) -> list[int]:
            return [solve(plan.copies[layer], batch[layer]) for layer in range(SOLVED)]

        assert run() == exact
        each = microseconds(run, rounds) / SOLVED
        print(f"  {name:10} {each:10.1f} us/layer, {each / found['exact']:,.0f} x exact")


def print_quality(name: str, trace: co.Trace, gpus: int) -> None:
    """Print the activated copies on the fullest GPU, as ratios to the least."""
    print(f"\n{name}: {trace}, {gpus} GPUs; most activated copies, exact = 1")
    print("  ratio  batch   exact    even   metro  metro worst  metro optimal in")
    for ratio in (1.0, 1.125, 1.25, 1.375, 1.5):
        if trace.experts * ratio % gpus:
            continue
        for size in (16, 64, 256, 1024):
            windows = trace.batches(size, "random", seed=0)
            windows = windows.select(range(min(200, trace.tokens // size)))
            odd = np.arange(windows.windows) % 2 == 1
            planned, served = windows.split(odd)
            plan = eplb_plan(planned.total().tokens[0], gpus, ratio)
            batches = served.tokens
            most = {
                rule: np.array([co.route(plan, batch, rule).max_activated for batch in batches])
                for rule in ("even", "metro", "exact")
            }
            means = {rule: values.mean() for rule, values in most.items()}
            worst = (most["metro"] / most["exact"]).max()
            same = (most["metro"] == most["exact"]).mean()
            print(
                f"  {ratio:5.3f} {size:6} {means['exact']:7.2f}"
                f" {means['even'] / means['exact']:7.3f} {means['metro'] / means['exact']:7.3f}"
                f" {worst:12.3f} {same:17.0%}"
            )


if __name__ == "__main__":
    for gpus in (64, 16):
        for tokens in (PER_GPU * gpus, PER_GPU):
            print_times(gpus, tokens)
    for path in sys.argv[1:]:
        trace = co.read_trace(path)
        for gpus in (8, 16):
            print_quality(path.rsplit("/", 1)[-1], trace, gpus)
