"""Replicas that ``nominal`` needs to match uniform EPLB's planned balancedness.

    python benchmarks/replicas_to_match.py [loads.npz ...]

For the example models, and for files of loads given as arguments, all windows summed: EPLB plans
with as many replicas per layer as there are GPUs. Two numbers follow, both for the whole model:
the fewest replicas for which ``nominal`` reaches EPLB's mean balancedness, found by bisection,
and the fewest for which the whole-plan bound does. No planner can match EPLB with less than the
second, so EPLB's replicas over it are the ceiling of every such ratio. Prints a Markdown table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import craftopt as co
from craftopt.bounds import whole_plan_bound
from craftopt.datasets import is_synthetic

GPUS = (32, 64)
SLOTS = ("even", "free")
# EPLB's figure itself may be met to rounding only.
NOISE = 1e-9


def fewest(reaches: Callable[[int], bool], least: int, most: int) -> int:
    """Find the smallest number from ``least`` on that reaches; ``most`` is known to.

    Steps grow from ``least`` upwards, so that large budgets, which cost time, are tried last.
    """
    if reaches(least):
        return least
    below, step = least, max(1, least // 16)
    while below + step < most and not reaches(below + step):
        below += step
        step *= 2
    above = min(below + step, most)
    while above - below > 1:
        middle = (above + below) // 2
        if reaches(middle):
            above = middle
        else:
            below = middle
    return above


def match(total: co.Loads, gpus: int, slots: str) -> tuple[float, int, int, int]:
    """Return EPLB's balancedness and replicas, the bound's and ``nominal``'s fewest replicas."""
    uniform = co.Problem(
        total, gpus, replicas_per_layer=gpus, slots="uniform", objective="balancedness"
    )
    eplb = co.solve(uniform, "eplb")
    goal = co.evaluate(eplb.plan, total).mean_balancedness - NOISE
    problem = uniform.replace(slots=slots)

    def bound_reaches(replicas: int) -> bool:
        return whole_plan_bound(problem.replace(replicas=replicas)) >= goal

    def plan_reaches(replicas: int) -> bool:
        result = co.solve(problem.replace(replicas=replicas), "nominal")
        assert not result.violations
        return bool(result.objective >= goal)

    provable = fewest(bound_reaches, 0, problem.replicas)
    reached = fewest(plan_reaches, provable, problem.replicas)
    return goal, eplb.plan.replicas, provable, reached


def ratio(replicas: int, fewer: int) -> str:
    return f"{replicas / fewer:.1f}" if fewer else "no replica needed"


def main(paths: list[str]) -> None:
    models = {name: co.load_example(name) for name in filter(is_synthetic, co.example_names())}
    models |= {Path(path).stem: co.read_loads(path) for path in paths}
    print("| loads | GPUs | EPLB: balancedness | replicas | slots | nominal | ratio | ceiling |")
    print("|---|---|---|---|---|---|---|---|")
    for name, loads in models.items():
        for gpus in GPUS:
            for slots in SLOTS:
                goal, replicas, provable, reached = match(loads.total(), gpus, slots)
                print(
                    f"| `{name}` | {gpus} | {goal:.4f} | {replicas:,} | {slots} | {reached:,} "
                    f"| {ratio(replicas, reached)} | {ratio(replicas, provable)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main(sys.argv[1:])
