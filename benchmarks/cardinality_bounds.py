"""Bounds of the scheduling literature against ours, on random tiny layers with their optimum.

    python benchmarks/cardinality_bounds.py [--layers 50]

Every GPU hosts the same number k of copies, so that a layer with its numbers of copies given is
P | at most k jobs | Cmax with as many jobs as there is room for. Bounds of the literature hold for
given numbers of copies: with replicas, the least over all of them counts. All loads are whole
parts of a token, and bounds are rounded up to them. Prints Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

from craftopt.bounds import cardinality_bound
from craftopt_formulations.configuration_lp import Layer, price_configurations

# Experts, GPUs, replicas.
SHAPES = (
    (8, 4, 0),
    (9, 3, 0),
    (12, 4, 0),
    (12, 3, 0),
    (15, 5, 0),
    (6, 4, 2),
    (9, 4, 3),
    (10, 3, 2),
)
SKEWS = (0.0, 0.5, 1.0, 1.5)
DRIFT, TOKENS = 0.5, 40

Jobs = Sequence[int]


def mean_and_largest(jobs: Jobs, gpus: int) -> int:
    """L1: the mean, and the largest job."""
    return max(-(-sum(jobs) // gpus), jobs[0])


def two_of_the_largest(jobs: Jobs, gpus: int) -> int:
    """L2: of the gpus + 1 largest jobs two share a GPU."""
    return max(mean_and_largest(jobs, gpus), jobs[gpus - 1] + jobs[gpus])


def completed(jobs: Jobs, gpus: int) -> int:
    """Of the q gpus + 1 largest jobs q + 1 share a GPU, which the smallest fill up to k."""
    k = len(jobs) // gpus
    found = mean_and_largest(jobs, gpus)
    for q in range(k):
        together = jobs[q * gpus - q : q * gpus + 1] if q else jobs[:1]
        found = max(found, sum(together) + sum(jobs[len(jobs) - (k - q - 1) :]))
    return found


def packed(jobs: Jobs, gpus: int, most: int) -> int:
    """L3: L2, raised while Martello and Toth's bound for bin packing needs more bins."""
    low = two_of_the_largest(jobs, gpus)
    refuted = (load for load in range(most - 1, low - 1, -1) if _bins(jobs, load) > gpus)
    return next(refuted, low - 1) + 1


def _bins(jobs: Jobs, load: int) -> int:
    most = 0
    for small in {0, *(job for job in jobs if 2 * job <= load)}:
        alone = sum(job > load - small for job in jobs)
        large = [job for job in jobs if load < 2 * job <= 2 * (load - small)]
        rest = sum(job for job in jobs if small <= job and 2 * job <= load)
        spare = len(large) * load - sum(large)
        most = max(most, alone + len(large) + max(0, -(-(rest - spare) // load)))
    return most


def optimum(jobs: Jobs, gpus: int, hosts: Jobs, best: int) -> int:
    """Try all placements that put no expert twice on a GPU and are better than ``best``."""
    k = len(jobs) // gpus
    loads, held = [0] * gpus, [set() for _ in range(gpus)]

    def place(job: int) -> None:
        nonlocal best
        if job == len(jobs):
            best = min(best, max(loads))
            return
        tried = set()
        for g in range(gpus):
            state = (loads[g], len(held[g]), hosts[job] in held[g])
            room = len(held[g]) < k and not state[2] and loads[g] + jobs[job] < best
            if not room or (state in tried and len(set(hosts)) == len(hosts)):
                continue
            tried.add(state)
            loads[g] += jobs[job]
            held[g].add(hosts[job])
            place(job + 1)
            loads[g] -= jobs[job]
            held[g].remove(hosts[job])
            if not held[g]:  # empty GPUs are alike
                break

    place(0)
    return best


def counts(experts: int, gpus: int, replicas: int) -> Iterator[tuple[int, ...]]:
    """List all numbers of copies."""
    for extra in itertools.combinations_with_replacement(range(experts), replicas):
        copies = [1] * experts
        for expert in extra:
            copies[expert] += 1
        if max(copies) <= gpus:
            yield tuple(copies)


def configuration(tokens: list[Fraction], gpus: int, replicas: int, low: int, high: int) -> int:
    """Find the largest whole load that the configuration LP refutes."""
    layer = Layer.of(tokens, gpus, replicas)
    while low < high:
        middle = -(-(low + high) // 2)
        if price_configurations(layer, Fraction(middle)).witness is None:
            high = middle - 1
        else:
            low = middle
    return low


def bounds(experts: int, gpus: int, replicas: int, skew: float, seed: int) -> dict[str, int]:
    """Draw a layer; return all bounds and the optimum, in whole parts of a token."""
    rng = np.random.default_rng([experts, gpus, replicas, round(10 * skew), seed])
    rates = np.arange(1, experts + 1.0) ** -skew * np.exp(rng.normal(0, DRIFT, experts))
    steps = math.lcm(*range(1, min(gpus, 1 + replicas) + 1))
    scale = TOKENS * experts / rates.sum()
    tokens = [steps * max(1, round(scale * rate)) for rate in rates.tolist()]
    best = sum(tokens) + 1
    theirs: dict[str, int] = {}
    for copies in counts(experts, gpus, replicas):
        pairs = sorted(
            ((t // c, e) for e, (t, c) in enumerate(zip(tokens, copies, strict=True))
             for _ in range(c)), reverse=True
        )  # fmt: skip
        jobs, hosts = [job for job, _ in pairs], [e for _, e in pairs]
        own = {
            "L1": mean_and_largest(jobs, gpus),
            "L2": two_of_the_largest(jobs, gpus),
            "completed": completed(jobs, gpus),
            "L3": packed(jobs, gpus, min(best, sum(jobs))),
        }
        if max(own.values()) < best:
            best = optimum(jobs, gpus, hosts, best)
        theirs = {name: min(theirs.get(name, bound), bound) for name, bound in own.items()}
    heaviest = min(max(-(-t // c) for t, c in zip(tokens, copies, strict=True))
                   for copies in counts(experts, gpus, replicas))  # fmt: skip
    plain = max(-(-sum(tokens) // gpus), heaviest)
    load, _ = cardinality_bound(np.array(tokens, float), replicas, gpus, gpus, float(plain))
    ours = {"cardinality": math.ceil(load * (1 - 1e-9))}
    fractions = [Fraction(t) for t in tokens]
    ours["configuration LP"] = configuration(fractions, gpus, replicas, plain, best + best // 8)
    return {**theirs, "best of these": max(theirs.values()), **ours, "optimum": best}


def main() -> None:
    """Print, by shape, how far bounds are from the optimum and how often they attain it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=50, help="of every shape and skew")
    given = parser.parse_args()
    names: list[str] = []
    for experts, gpus, replicas in SHAPES:
        found = [
            bounds(experts, gpus, replicas, skew, seed)
            for skew in SKEWS for seed in range(given.layers)
        ]  # fmt: skip
        if not names:
            names = [name for name in found[0] if name != "optimum"]
            print("| experts x GPUs + replicas |", " | ".join(names), "| ours above, below |")
            print("|" + "---|" * (len(names) + 2))
        assert all(one[name] <= one["optimum"] for one in found for name in names)
        cells = []
        for name in names:
            gaps = [one["optimum"] / one[name] - 1 for one in found]
            cells.append(f"{100 * np.mean(gaps):.2f} %, {gaps.count(0)}")
        above, below = (
            sum(sign * (max(one["cardinality"], one["configuration LP"])
                        - one["best of these"]) > 0 for one in found)
            for sign in (1, -1)
        )  # fmt: skip
        shape = f"{experts} x {gpus} + {replicas}, {len(found)} layers"
        print(f"| {shape} |", " | ".join(cells), f"| {above}, {below} |", flush=True)


if __name__ == "__main__":
    main()
