"""Solvers side by side: every formulation at growing sizes, until each solver stops.

    python benchmarks/solvers.py runs.csv [--seconds 20]

Popularity of the i-th expert is 1/i, with noise drawn anew in each of three windows. A solver that
has not proven its optimum in time is not tried at larger sizes. A second call goes on from the
file. Seconds are of the processor, of the solver's process where it has its own; the limit is by
the clock. Prints Markdown, and where solvers disagree.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import craftopt as co
from craftopt.bounds.traffic import token_sets
from craftopt.documents import write_atomically
from craftopt_formulations import (
    allocation,
    common_copies,
    joint,
    placement,
    rebalancing,
    replication,
    traffic,
    windowed,
)
from craftopt_formulations._solvers import SOLVERS

SIZES = ((6, 2), (8, 4), (12, 4), (16, 4), (16, 8), (24, 8), (32, 8), (64, 8), (64, 16), (128, 32))
WINDOWS, DRIFT, TOKENS = 3, 0.5, 1000
COLUMNS = ("formulation", "experts", "gpus", "solver", "version", "status", "objective", "seconds")
# Optima of solvers in floating point agree to this, relative.
_AGREE = 1e-5


class Inputs:
    """Draw what the formulations of a size take."""

    def __init__(self, experts: int, gpus: int) -> None:
        rng = np.random.default_rng([experts, gpus])
        popular = rng.permutation(np.arange(1, experts + 1.0)) ** -1.0
        rates = popular * np.exp(rng.normal(0, DRIFT, (WINDOWS, experts)))
        shares = rates / rates.sum(axis=1, keepdims=True)
        self.windows = np.round(shares * TOKENS * experts)
        self.tokens = self.windows[0]
        self.gpus, self.replicas = gpus, experts // 4
        choices = [rng.choice(experts, 2, replace=False, p=popular / popular.sum())
                   for _ in range(10 * experts)]  # fmt: skip
        self.sets = token_sets(choices, experts=experts)
        self.benefit = np.cumsum(np.sort(rng.random((experts, 2 * gpus)))[:, ::-1], axis=1)
        problem = co.Problem(co.Loads(self.windows[1:2, None]), gpus, replicas=self.replicas,
                             slots="even")  # fmt: skip
        self.plan = co.solve(problem, "nominal").plan
        self.hosts = self.plan.copies[0]


BUILDERS: dict[str, Callable[[Inputs, str], Any]] = {
    "allocation": lambda of, solver: allocation.build(
        of.benefit, budget=2 * len(of.benefit), solver=solver
    ),
    "replication": lambda of, solver: replication.build(
        of.tokens, of.replicas, of.gpus, solver=solver
    ),
    "placement": lambda of, solver: placement.build(
        of.tokens, of.hosts.sum(axis=1, dtype=np.int64), of.gpus, solver=solver
    ),
    "common copies": lambda of, solver: common_copies.build(
        of.windows, of.gpus, of.replicas, of.gpus, solver=solver
    ),
    "joint": lambda of, solver: joint.build(of.tokens, of.gpus, of.replicas, solver=solver),
    "several windows": lambda of, solver: windowed.build(
        of.windows, of.gpus, of.replicas, solver=solver
    ),
    "rebalancing": lambda of, solver: rebalancing.build(
        of.tokens, of.hosts, of.replicas, len(of.tokens) // 4, solver=solver
    ),
    "node visits": lambda of, solver: traffic.build(of.sets, of.gpus, 2, solver=solver),
}


def processor_seconds() -> float:
    """Return seconds of this process and of those that it waited for."""
    return sum(os.times()[:4])


def run(name: str, experts: int, gpus: int, solver: str, seconds: float) -> tuple[Any, ...]:
    """Build and solve one model."""
    model = BUILDERS[name](Inputs(experts, gpus), solver)
    start = processor_seconds()
    found = model.solve(seconds=seconds)
    objective = "" if found.objective is None else repr(float(found.objective))
    spent = f"{processor_seconds() - start:.3g}"
    return name, experts, gpus, solver, found.solver, found.status, objective, spent


def todo(rows: list[dict[str, str]]) -> Iterator[tuple[str, int, int, str]]:
    """List what is to be run next, smaller sizes first, as long as a solver gets through."""
    for name, (experts, gpus), solver in itertools.product(BUILDERS, SIZES, SOLVERS):
        own = [row for row in rows if (row["formulation"], row["solver"]) == (name, solver)]
        if any((row["experts"], row["gpus"]) == (str(experts), str(gpus)) for row in own):
            continue
        if all(row["status"] == "optimal" for row in own):
            yield name, experts, gpus, solver


def read(file: Path) -> list[dict[str, str]]:
    """Read the rows of a file, none where it is not there."""
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def add(file: Path, row: tuple[Any, ...]) -> None:
    """Write the file with a row more, whole or not at all."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows([*(tuple(old.values()) for old in read(file)), row])
    write_atomically(file, text.getvalue())


def print_table(rows: list[dict[str, str]]) -> None:
    """Print seconds at the largest size that all solvers prove, and where each of them stops."""
    print(
        "| formulation | all prove |", " | ".join([*SOLVERS, *(f"{s} stops" for s in SOLVERS)]), "|"
    )
    print("|" + "---|" * (2 + 2 * len(SOLVERS)))
    for name in BUILDERS:
        found = {(row["experts"], row["gpus"], row["solver"]): row
                 for row in rows if row["formulation"] == name}  # fmt: skip
        sizes = [(str(experts), str(gpus)) for experts, gpus in SIZES]
        proven = {key for key, row in found.items() if row["status"] == "optimal"}
        common = [size for size in sizes if all((*size, solver) in proven for solver in SOLVERS)]
        seconds = [float(found[*common[-1], solver]["seconds"]) for solver in SOLVERS]
        cells = [f"{spent:.2g}" if spent else "< 0.01" for spent in seconds]
        for solver in SOLVERS:
            stops = [size for size in sizes if (*size, solver) in {*found} - proven]
            cells.append(" x ".join(stops[0]) if stops else "-")
        print(f"| {name} | {' x '.join(common[-1])} |", " | ".join(cells), "|")
        for size in sizes:
            optima = {solver: float(found[*size, solver]["objective"])
                      for solver in SOLVERS if (*size, solver) in proven}  # fmt: skip
            if optima and max(optima.values()) > min(optima.values()) * (1 + _AGREE):
                print(f"DISAGREE on {name} {size}: {optima}")
    print("\nversions:", ", ".join(sorted({row["version"] for row in rows})))


def main() -> None:
    """Run what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    while following := next(todo(read(given.file)), None):
        row = run(*following, given.seconds)
        add(given.file, row)
        print(*row, flush=True)
    print_table(read(given.file))


if __name__ == "__main__":
    main()
