"""Route."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated, cast

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
from craftopt.errors import InputError, choice
from craftopt.routing import COUNT_DISPATCHES
from craftopt.traces import Order


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
    dispatch: Annotated[
        str,
        typer.Option(
            "--dispatch",
            "--rule",
            help=f"Rules, separated by commas: {', '.join(COUNT_DISPATCHES)}, or all.",
        ),
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
    from craftopt.routing.timing import measure_dispatch  # noqa: PLC0415

    names = [name.strip() for name in dispatch.split(",")]
    rules = (
        COUNT_DISPATCHES
        if names == ["all"]
        else [choice("dispatch", n, COUNT_DISPATCHES) for n in names]
    )
    if plan == traffic == "-":
        raise InputError("stdin can be the plan or the traffic, not both")
    held = read_plan(plan, gpus)
    batches = _batches(traffic, held, batch, order, seed)
    held = same_layers(held, batches)
    co.evaluate(held, batches.select([0]))  # names what does not match
    found = {name: measure_dispatch(held, batches, name) for name in rules}
    if as_json:
        print_json(
            {
                "batches": batches.windows,
                "layer_ids": batches.layer_ids.tolist(),
                "rules": {
                    name: {key: values.tolist() for key, values in asdict(figures).items()}
                    for name, figures in found.items()
                },
            }
        )
        return
    from craftopt.reporting.tables import dispatch_table  # noqa: PLC0415

    print_rich(dispatch_table(batches, found))


def _batches(traffic: str, plan: co.Plan, size: int | None, order: str, seed: int) -> co.Loads:
    """Cut a trace into batches, without a last one that is short; or read loads."""
    if size is None:
        return read_source(traffic)
    trace = co.read_trace(sys.stdin.buffer if traffic == "-" else traffic, experts=plan.experts)
    windows = trace.batches(size, cast(Order, order), seed)
    return windows.select(range(max(1, trace.tokens // size)))
