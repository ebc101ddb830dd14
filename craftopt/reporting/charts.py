"""What the charts of the page show: shares of the layer time, and figures by budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from craftopt.bounds import bounds_by_budget
from craftopt.diagnosis import Diagnosis
from craftopt.diagnosis.verdict import SHARES
from craftopt.evaluation import evaluate
from craftopt.loads import Loads
from craftopt.problem import Problem
from craftopt.serving.deployment import GIB

# Pixels of a chart: left, right, top and bottom of what is drawn; least distance of two memories.
LEFT, RIGHT, TOP, BOTTOM, APART = 60, 500, 20, 230, 72


@dataclass(frozen=True)
class Balance:
    """Hold the mean balancedness of a budget's plans, and what no plan can pass.

    Parameters
    ----------
    replicas : int
        Extra copies per layer.
    held_out, planned, most : float
        On the windows that the plans had not seen, on those they were made for, and the proven
        bound on the latter.
    """

    replicas: int
    held_out: float
    planned: float
    most: float


def balances(loads: Loads, found: Diagnosis) -> list[Balance]:
    """Measure the balancedness of the plans of a diagnosis, on the layers that it measured.

    The bound leaves companions out where these are not all layers.
    """
    if not found.plans:
        return []
    ids = next(iter(found.plans.values()))[0].layer_ids
    whole = len(ids) == loads.layers
    loads = loads.with_layers(np.flatnonzero(np.isin(loads.layer_ids, ids)).tolist(), ids)
    odd = np.arange(loads.windows) % 2 == 1
    problem = Problem(loads, found.gpus, nodes=found.nodes, slots="even", objective="balancedness")
    most = sum(
        fold.mean()
        * np.array(
            bounds_by_budget(
                problem.replace(loads=loads.select(np.flatnonzero(fold))),
                list(found.plans),
                companions=whole,
            )
        )
        for fold in (odd, ~odd)
    )
    result = []
    for (replicas, plans), bound in zip(found.plans.items(), most, strict=True):
        held, planned = np.zeros(loads.windows), np.zeros(loads.windows)
        for fold, plan in zip((odd, ~odd), plans, strict=True):
            reached = evaluate(plan, loads).balancedness.mean(axis=1)
            planned[fold], held[~fold] = reached[fold], reached[~fold]
        result.append(Balance(replicas, float(held.mean()), float(planned.mean()), float(bound)))
    return result


def shares(found: Diagnosis) -> list[dict[str, Any]]:
    """Lay out what today's layer time is made of, as parts of a bar."""
    return [
        {
            "name": name,
            "width": max(0.0, 100 * part),
            "text": f"{part:.1%} {SHARES[name]}{' (a loss)' if part < 0 else ''}",
        }
        for name, part in found.shares.items()
        if abs(part) >= 0.0005
    ]


def budget_charts(found: Diagnosis, balance: Sequence[Balance]) -> Iterator[dict[str, Any]]:
    """Lay out relative time and balancedness against memory, with their proven bounds."""
    gains = found.gains
    time = {
        name: [found.relative_time * (1 - getattr(gain, name)) for gain in gains]
        for name in ("held_out", "planned", "most", "low", "high")
    }
    yield _chart("time", "Relative time: lower is better, 1 is perfect", found, time, 1.0,
                 max(map(max, time.values())))  # fmt: skip
    reached = {
        name: [getattr(one, name) for one in balance] for name in ("held_out", "planned", "most")
    }
    yield _chart("balance", "Balancedness: higher is better, 1 is perfect", found, reached,
                 min(map(min, reached.values())), 1.0)  # fmt: skip


def _chart(
    name: str,
    title: str,
    found: Diagnosis,
    lines: dict[str, list[float]],
    low: float,
    high: float,
) -> dict[str, Any]:
    ticks = _ticks(low, high)
    span = ticks[-1] - ticks[0]

    def down(value: float) -> float:
        return round(float(BOTTOM - (BOTTOM - TOP) * (value - ticks[0]) / span), 1)

    replicas = [gain.replicas for gain in found.gains]
    across = [
        round(LEFT + 20 + (RIGHT - LEFT - 40) * r / max(1, replicas[-1]), 1) for r in replicas
    ]
    memory = memory_of(found)
    labels: list[tuple[float, int, str]] = []
    free = 0.0  # where the text of the last label ends
    for x, r in zip(across, replicas, strict=True):
        labels.append((x, r, memory(r) if x >= free else ""))
        free = x + APART if x >= free else free
    intervals = [lines[key] for key in ("low", "high") if key in lines]
    looks = (
        ("held_out", "held out", "held"),
        ("planned", "planned", "planned"),
        ("most", "proven bound", "bound"),
    )
    return {
        "name": name,
        "title": title,
        "x": labels,
        "y": [(down(tick), f"{tick:.2f}") for tick in ticks],
        "bars": [
            (x, down(least), down(most))
            for x, least, most in zip(across, *intervals, strict=True)
        ] if intervals else [],
        "lines": [
            {
                "name": label,
                "look": look,
                "points": [
                    (x, down(y), f"{label}, {r} copies per layer ({memory(r)}): {y:.3f}")
                    for x, r, y in zip(across, replicas, lines[key], strict=True)
                ],
            }
            for key, label, look in looks
        ],
    }  # fmt: skip


def memory_of(found: Diagnosis) -> Callable[[int], str]:
    """Say what copies per layer take: GiB per GPU where the model is known, else a part."""
    if found.cost is None:
        return lambda replicas: f"+{replicas / found.experts:.0%}"
    copy = found.cost.copy / GIB
    return lambda replicas: f"{replicas * copy:.2f} GiB"


def _ticks(low: float, high: float) -> list[float]:
    """Choose round values that hold a range."""
    step = next(
        (s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if high - low <= 5 * s), 50
    )
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    return [float(k * step) for k in np.arange(first, max(last, first + 1) + 1)]
