"""Route."""

from __future__ import annotations

import statistics
import sys
import time
from typing import Annotated, Any, cast

import numpy as np
import typer

import craftopt as co
from craftopt.cli.shared import (
    AsJson,
    MapGpus,
    PlanArgument,
    Seed,
    print_json,
    print_rich,
    read_plan,
    read_source,
    same_layers,
)
from craftopt.errors import InputError
from craftopt.routing import RULES
from craftopt.traces import Order

_MOST_BATCHES = 512  # of a layer in one call: enough to time it, little to hold
_ROUNDS = 3


def route(
    plan: PlanArgument,
    traffic: Annotated[
        str,
        typer.Argument(
            metavar="TRACE_OR_LOADS",
            help="With --batch a token trace; else loads, of which every window is a batch.",
        ),
    ],
    gpus: MapGpus = None,
    rule: Annotated[
        str, typer.Option(help=f"Rules, separated by commas: {', '.join(RULES)}, or all.")
    ] = "even,metro,exact",
    batch: Annotated[
        int | None, typer.Option(help="Tokens per batch, cut from a token trace.")
    ] = None,
    order: Annotated[
        str, typer.Option(help="Tokens of a batch: recorded (prefill) or random (decode).")
    ] = "random",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Route batches by several rules: activated copies, tokens and microseconds per layer."""
    rules = [name.strip().lower() for name in rule.split(",")]
    if rules == ["all"]:
        rules = list(RULES)
    if plan == traffic == "-":
        raise InputError("stdin can be the plan or the traffic, not both")
    held = read_plan(plan, gpus)
    batches = _batches(traffic, held, batch, order, seed)
    held = same_layers(held, batches)
    co.evaluate(held, batches.select([0]))  # names what does not match
    found = {name: _route_layers(held, batches, name) for name in rules}
    if as_json:
        print_json(
            {
                "batches": batches.windows,
                "layer_ids": batches.layer_ids.tolist(),
                "rules": {
                    name: {key: values.tolist() for key, values in figures.items()}
                    for name, figures in found.items()
                },
            }
        )
        return
    print_rich(_table(batches, found))


def _batches(traffic: str, plan: co.Plan, size: int | None, order: str, seed: int) -> co.Loads:
    """Cut a trace into batches, without a last one that is short; or read loads."""
    if size is None:
        return read_source(traffic)
    trace = co.read_trace(sys.stdin.buffer if traffic == "-" else traffic, experts=plan.experts)
    windows = trace.batches(size, cast(Order, order.lower()), seed)
    return windows.select(range(max(1, trace.tokens // size)))


def _route_layers(plan: co.Plan, batches: co.Loads, rule: str) -> dict[str, Any]:
    """Return means over the batches, and microseconds per batch, of every layer."""
    activated, tokens, seconds = np.zeros((3, plan.layers))
    for layer in range(plan.layers):
        for start in range(0, batches.windows, _MOST_BATCHES):
            some = batches.tokens[start : start + _MOST_BATCHES, layer]
            # The batches stand as the layers of one call, which costs next to nothing for each.
            repeated = co.Plan(np.repeat(plan.copies[[layer]], len(some), axis=0), nodes=plan.nodes)
            routing = co.route(repeated, some, rule)  # lists the hosts, and compiles
            times = []
            for _ in range(_ROUNDS):
                begin = time.perf_counter()
                co.route(repeated, some, rule)
                times.append(time.perf_counter() - begin)
            seconds[layer] += statistics.median(times)
            activated[layer] += routing.max_activated.sum()
            tokens[layer] += routing.max_tokens.sum()
    return {
        "max_activated": activated / batches.windows,
        "max_tokens": tokens / batches.windows,
        "microseconds": seconds / batches.windows * 1e6,
    }


def _table(batches: co.Loads, found: dict[str, dict[str, Any]]) -> Any:
    from rich.table import Table  # noqa: PLC0415

    table = Table(
        title=f"{batches.windows} batches of {batches.tokens[0, 0].sum():.0f} token assignments: "
        "means of the fullest GPU, and microseconds per batch",
        box=None,
    )
    table.add_column("layer", justify="right")
    names = {"max_activated": "copies", "max_tokens": "tokens", "microseconds": "µs"}
    for rule in found:
        for name in names.values():
            table.add_column(f"{rule}\n{name}", justify="right", overflow="fold")
    rows = [*map(str, batches.layer_ids.tolist()), "mean"]
    for position, row in enumerate(rows):
        cells = [row]
        for figures in found.values():
            for key, decimals in zip(names, (2, 1, 1), strict=True):
                mean = figures[key].mean() if row == "mean" else figures[key][position]
                cells.append(f"{mean:.{decimals}f}")
        table.add_row(*cells, end_section=position == len(rows) - 2)
    return table
