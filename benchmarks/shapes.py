"""Draws of problems of every shape, and what ``nominal`` and ``fast`` make of them.

    python benchmarks/shapes.py [DRAWS] [FIRST] [METHOD]

Each draw has 8 to 896 experts, 2 to 320 GPUs, top-1 to top-16 routing, 1 to 4 layers, 1 to 8
windows, and maybe expert groups. A layer's hottest expert has up to 30 times the mean load, as far
as top-k routing allows. A draw is planned under all slot rules that it fits and with a smaller
budget, and three promises are checked: no plan is behind one under a stricter rule or with a
smaller budget, and none is behind EPLB's where that hosts no duplicates; ``fast`` is also held
against ``nominal``. Prints one line of JSON
per draw, then the mean and the largest distance from the bound.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any

import numpy as np

import craftopt as co

RULES = ("uniform", "even", "free")
# Objectives that differ by less, relative, are equal.
NOISE = 1e-9


def popularity(rng: np.random.Generator, experts: int, skew: float) -> np.ndarray:
    """Draw the shares of a layer's experts, the largest of them ``skew`` times the mean."""
    shape = rng.standard_normal(experts) if rng.random() < 0.5 else -np.log(1 + np.arange(experts))
    rise = shape - shape.max()
    low, high = 0.0, 64.0
    for _ in range(60):
        spread = 0.5 * (low + high)
        low, high = (spread, high) if np.exp(spread * rise).mean() * skew > 1 else (low, spread)
    share: np.ndarray = rng.permutation(np.exp(low * rise))
    return share / share.sum()


def tokens(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    top_k: int,
    skew: float,
    drift: float,
) -> np.ndarray:
    """Draw whole loads [windows, layers, experts]; windows drift apart by lognormal factors."""
    _, layers, experts = shape
    share = np.stack([popularity(rng, experts, skew) for _ in range(layers)])
    load = share * np.exp(drift * rng.standard_normal(shape))
    count = 4096 * top_k
    load *= count / load.sum(axis=2, keepdims=True)
    return np.round(np.minimum(load, count / top_k))


def draw(seed: int) -> co.Problem:
    """Draw a problem under the uniform rule, or even where that has no plan."""
    rng = np.random.default_rng(seed)
    experts = int(rng.choice([8, 16, 32, 60, 64, 72, 96, 128, 160, 256, 288, 384, 512, 640, 896]))
    top_k = min(int(rng.choice([1, 2, 4, 6, 8, 10, 16])), experts // 4)
    sizes = [2, 4, 6, 8, 16, 24, 32, 48, 64, 96, 128, 160, 256, 320]
    gpus = int(rng.choice([size for size in sizes if size <= 2 * experts]))
    shape = (int(rng.choice([1, 1, 2, 8])), int(rng.integers(1, 5)), experts)
    skew = min(float(np.exp(rng.uniform(np.log(1.5), np.log(30)))), experts / top_k)
    drift = float(rng.choice([0.1, 0.5, 1.0]))
    loads = co.Loads(tokens(rng, shape, top_k, skew, drift))
    groups = next((n for n in (8, 4, 2) if experts % n == 0 and gpus % n == 0), None)
    if rng.random() < 0.8:
        groups = None
    extra = int(rng.choice([0, 1, 1, 2, 3])) * gpus + -experts % gpus
    objective = str(rng.choice(["time", "balancedness"]))
    slots = "uniform"
    if (experts + extra) > experts * (gpus // (groups or 1)) or rng.random() < 0.3:
        extra, slots = int(rng.choice([0, 8, 16, 64])), "even"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", co.CraftoptWarning)
        return co.Problem(
            loads,
            gpus,
            nodes=groups or 1,
            replicas_per_layer=extra,
            slots=slots,
            objective=objective,
            expert_groups=groups,
        )


def variants(problem: co.Problem) -> dict[str, co.Problem]:
    """List a draw's slot rules, strictest first, and smaller budgets, each by its name."""
    rules = RULES[RULES.index(problem.slots) :]
    found = {rule: problem.replace(slots=rule) for rule in rules}
    # Half of the replicas that need not be there.
    forced = -problem.loads.experts % problem.gpus if problem.slots == "uniform" else 0
    spare = problem.replicas - forced * problem.loads.layers
    if spare > 1:
        fewer = problem.replicas - spare // 2
        found |= {f"{rule}, fewer": found[rule].replace(replicas=fewer) for rule in rules}
    return found


def examine(problem: co.Problem, method: str = "nominal", allowed: float = NOISE) -> dict[str, Any]:
    """Plan a draw's variants; say what came out and which promises are broken.

    A plan may be behind one of a smaller budget by a relative ``allowed``.
    """
    if method == "nominal":
        problem = problem.replace(loads=problem.loads.total())
    goal = problem.goal
    start = time.process_time()
    cases = variants(problem)
    results = {name: co.solve(case, method) for name, case in cases.items()}
    seconds = time.process_time() - start
    broken = []

    def check(better: str, worse: str, value: float, by: float = NOISE) -> None:
        of = results[better].objective
        if goal.order(of) > goal.order(value) + by * abs(value):
            broken.append(f"{better} {of:.6f} behind {worse} {value:.6f}")

    names = list(results)
    for name in names:
        rule, _, fewer = name.partition(", ")
        if fewer:
            check(rule, name, results[name].objective, allowed)
        for other in names:
            strict, _, less = other.partition(", ")
            if fewer == less and RULES.index(strict) < RULES.index(rule):
                check(name, other, results[other].objective)
        peer = "eplb" if problem.expert_groups is None else "eplb-hierarchical"
        eplb = co.solve(cases[name], peer)
        if eplb.has_plan and not eplb.violations:
            check(name, peer, eplb.objective)
        if method != "nominal":
            check(name, "nominal", co.solve(cases[name], "nominal").objective)
    return {
        "shape": [problem.loads.experts, problem.gpus, problem.loads.layers, problem.groups],
        "windows": problem.loads.windows,
        "objective": problem.objective,
        "replicas": problem.replicas,
        "values": {name: result.objective for name, result in results.items()},
        "gaps": {name: result.gap for name, result in results.items()},
        "seconds": seconds,
        "broken": broken,
    }


def main(draws: int = 500, first: int = 0, method: str = "nominal") -> None:
    """Examine draws and print what came out."""
    gaps, broken = [], 0
    warnings.simplefilter("ignore", co.CraftoptWarning)
    for seed in range(first, first + draws):
        facts = examine(draw(seed), method)
        gaps += facts["gaps"].values()
        broken += len(facts["broken"])
        print(json.dumps({"seed": seed, **facts}), flush=True)
    print(f"gap {np.mean(gaps):.4%} mean, {np.max(gaps):.2%} worst; {broken} promises broken")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:])
