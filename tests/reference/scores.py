"""Scores of a plan, recomputed slowly and plainly."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import fsum
from typing import Any

import craftopt as co


@dataclass(frozen=True)
class Scores:
    """Objectives in exact arithmetic, [windows][layers] where they are tables."""

    largest: list[list[Fraction]]
    mean: list[list[Fraction]]

    @property
    def balancedness(self) -> list[list[Fraction]]:
        return [
            [mean / most if most else Fraction(1) for most, mean in zip(*rows, strict=True)]
            for rows in zip(self.largest, self.mean, strict=True)
        ]

    @property
    def mean_balancedness(self) -> Fraction:
        cells = [cell for row in self.balancedness for cell in row]
        return sum(cells) / Fraction(len(cells))

    @property
    def relative_time(self) -> Fraction:
        mean = sum(cell for row in self.mean for cell in row)
        return sum(cell for row in self.largest for cell in row) / mean if mean else Fraction(1)


def slow_scores(copies: list[Any], tokens: list[Any]) -> Scores:
    """Recompute the GPU loads: each of the c copies of an expert serves 1/c of its tokens."""
    largest: list[list[Fraction]] = []
    means: list[list[Fraction]] = []
    for window in tokens:
        largest.append([])
        means.append([])
        for hosted, counts in zip(copies, window, strict=True):
            loads = [Fraction(0)] * len(hosted[0])
            for row, count in zip(hosted, counts, strict=True):
                for gpu, number in enumerate(row):
                    loads[gpu] += Fraction(count) * number / sum(row)
            largest[-1].append(max(loads))
            means[-1].append(sum(loads) / len(loads))
    return Scores(largest, means)


def slow_objective(plan: co.Plan, problem: co.Problem) -> float:
    """Recompute the problem's objective in plain floats."""
    times, means, balances = [], [], []
    for window in problem.loads.tokens.tolist():
        for hosted, counts in zip(plan.copies.tolist(), window, strict=True):
            loads = [
                fsum(count * row[gpu] / sum(row) for row, count in zip(hosted, counts, strict=True))
                for gpu in range(problem.gpus)
            ]
            times.append(max(loads))
            means.append(fsum(counts) / problem.gpus)
            balances.append(means[-1] / times[-1] if times[-1] > 0 else 1.0)
    if problem.objective == "balancedness":
        return fsum(balances) / len(balances)
    return fsum(times) / fsum(means) if fsum(means) > 0 else 1.0
