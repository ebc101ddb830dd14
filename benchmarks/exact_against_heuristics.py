"""Where exact pays: gap and time of every method on a grid of shapes, skews and budgets.

    python benchmarks/exact_against_heuristics.py [--windows 1] [--slots even] [--work-limit 5]

Every cell is a problem of one layer, of synthetic loads: popularity of the i-th expert falls as
1/i to the power of the skew, and strays at random, anew in every window. Gaps of all methods are
to the best bound that any of them proved, which is mostly that of ``exact``. Prints Markdown
tables; a star marks plans that break a rule (EPLB's duplicates).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

import craftopt as co

SHAPES = ((8, 4), (16, 4), (16, 8), (32, 8), (64, 16))
SKEWS = {"mild": 0.5, "zipf": 1.0, "steep": 1.5}
# Replicas as a share of the experts.
SHARES = (0.0, 0.125, 0.25, 0.5)
DRIFT, TOKENS = 0.5, 10_000


@dataclass(frozen=True)
class Cell:
    """One problem with what every method made of it."""

    experts: int
    gpus: int
    skew: str
    replicas: int
    results: dict[str, co.Result]

    @property
    def bound(self) -> float:
        return max(result.bound for result in self.results.values())

    def gap(self, method: str) -> float | None:
        result = self.results[method]
        return max(result.objective / self.bound - 1.0, 0.0) if result.has_plan else None


def draw(experts: int, windows: int, skew: float, seed: int) -> co.Loads:
    """Draw whole tokens of one layer."""
    rng = np.random.default_rng(seed)
    popular = rng.permutation(np.arange(1, experts + 1.0)) ** -skew
    rates = popular * np.exp(rng.normal(0, DRIFT, (windows, 1, experts)))
    return co.Loads(np.round(rates * (TOKENS * experts) / rates.sum(axis=2, keepdims=True)))


def run(windows: int, slots: str, work_limit: int) -> Iterator[Cell]:
    """Solve every problem of the grid with every method."""
    grid = itertools.product(SHAPES, SKEWS, SHARES)
    for seed, ((experts, gpus), skew, share) in enumerate(grid):
        loads = draw(experts, windows, SKEWS[skew], seed)
        replicas = round(experts * share)
        problem = co.Problem(loads, gpus, replicas=replicas, slots=slots)
        results = {}
        for method in co.methods():
            limit = work_limit if method == "exact" else None
            if method != "exact" and not seed:
                co.solve(problem, method)  # compiled before it is timed
            results[method] = co.solve(problem, method, work_limit=limit)
        yield Cell(experts, gpus, skew, replicas, results)


def print_cell(cell: Cell) -> None:
    columns = [f"{cell.experts} x {cell.gpus}", cell.skew, str(cell.replicas)]
    for method, result in cell.results.items():
        gap = cell.gap(method)
        star = "*" if result.violations else ""
        columns.append("-" if gap is None else f"{100 * gap:.2f}{star}")
    columns.append(cell.results["exact"].status.value)
    columns.append(f"{cell.results['exact'].runtime:.2f}")
    print("|", " | ".join(columns), "|", flush=True)


def print_summary(cells: list[Cell]) -> None:
    """Print, by method, how often it is best, its gaps and its time."""
    print("\n| method | plans | best known | within 0.1 % | mean gap % | worst gap % | median ms |")
    print("|---|---|---|---|---|---|---|")
    for method in cells[0].results:
        valid = [cell for cell in cells if cell.results[method].gap is not None]
        if not valid:
            print(f"| {method} | 0 |" + " - |" * 5)
            continue
        above_best = [
            cell.results[method].objective
            / min(result.objective for result in cell.results.values() if result.gap is not None)
            - 1.0
            for cell in valid
        ]
        gaps = [100 * cell.gap(method) for cell in valid]
        milliseconds = statistics.median(1e3 * cell.results[method].runtime for cell in valid)
        print(
            f"| {method} | {len(valid)} | {sum(above <= 1e-9 for above in above_best)} "
            f"| {sum(above <= 1e-3 for above in above_best)} | {statistics.mean(gaps):.2f} "
            f"| {max(gaps):.2f} | {milliseconds:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--windows", type=int, default=1)
    parser.add_argument("--slots", default="even", choices=("even", "uniform", "free"))
    parser.add_argument("--work-limit", type=int, default=5)
    options = parser.parse_args()
    print("| shape | skew | replicas |", " | ".join(co.methods()), "| exact is | seconds |")
    print("|" + "---|" * (len(co.methods()) + 5))
    cells = []
    for cell in run(options.windows, options.slots, options.work_limit):
        print_cell(cell)
        cells.append(cell)
    print_summary(cells)


if __name__ == "__main__":
    main()
