"""Route."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated

import typer

import craftopt as co
from craftopt.cli.shared import (
    AsJson,
    MapGpus,
    PlanArgument,
    Reader,
    Seed,
    print_json,
    print_rich,
    reading,
)
from craftopt.errors import choice
from craftopt.routing import COUNT_DISPATCHES


@reading
def route(
    reader: Reader,
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
    if reader.batch is not None:
        reader = replace(reader, order=reader.order or "random", seed=seed)
    held, batches = reader.both(plan, traffic, gpus)
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
