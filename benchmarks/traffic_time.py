"""What traffic costs the planner: seconds and memory of a whole model, against balance alone.

    python -m benchmarks.traffic_time [--layers 58] [--replicas 0] [--repeats 3]

A synthetic model of 256 experts, top-8, on 64 GPUs and 8 nodes; 25 windows of 512 tokens and pair
counts (`benchmarks.synthetic_traces`). Every run is a fresh process, balance alone and both in
turns; seconds are of the processor, memory is the peak beyond that of the data.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
import warnings

import craftopt as co
from benchmarks.synthetic_traces import synthetic_trace

PRICE = 0.66  # DeepSeek-R1 on H100 with 400 Gb/s and 8 nodes


def peak() -> float:
    """Return the most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(layers: int, replicas: int, priced: bool) -> tuple[float, float]:
    """Plan once; return seconds and MB."""
    warnings.simplefilter("ignore", co.CraftoptWarning)
    trace = synthetic_trace(layers, 256, 8)
    problem = co.Problem(
        trace.batches(512), gpus=64, nodes=8, replicas_per_layer=replicas, slots="uniform"
    )
    if priced:
        problem = problem.replace(coactivation=trace.coactivation(), traffic=PRICE)
    co.solve(problem, work_limit=1, workers=1)  # load what is compiled
    before, started = peak(), time.process_time()
    co.solve(problem, workers=1)
    return time.process_time() - started, peak() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--layers", type=int, default=58)
    parser.add_argument("--replicas", type=int, default=0, help="per layer")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print("| balance alone: s, MB | both: s, MB | ratio of seconds |\n|---|---|---|")
    ratios = []
    for _ in range(options.repeats):
        pair = []
        for priced in (False, True):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                pair.append(pool.apply(run, (options.layers, options.replicas, priced)))
        (alone, alone_mb), (both, both_mb) = pair
        ratios.append(both / alone)
        print(
            f"| {alone:.1f}, {alone_mb:.0f} | {both:.1f}, {both_mb:.0f} | {ratios[-1]:.2f} |",
            flush=True,
        )
    print(f"\nMedian ratio: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
