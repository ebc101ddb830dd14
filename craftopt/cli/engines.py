"""Export: into the files that serving engines load."""

from __future__ import annotations

import dataclasses
from typing import Annotated, cast

import typer

import craftopt as co
from craftopt.cli.shared import (
    AsJson,
    MapGpus,
    Reader,
    numbers_of,
    print_json,
    reading,
    writable,
)
from craftopt.formats import EngineName


@reading
def export(
    reader: Reader,
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A plan, - for stdin.")],
    engine: Annotated[
        str,
        typer.Option(
            help="sglang, tensorrt-llm, vllm-ascend (also MindIE), vllm-ascend-pool, vllm or "
            "deepseek."
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", callback=writable, help="File to write.")
    ],
    pad: Annotated[
        bool, typer.Option("--pad", help="Fill up to equal slot counts with further copies.")
    ] = False,
    fill: Annotated[
        str | None,
        typer.Option(
            metavar="LAYERS",
            help="MoE layers that the plan lacks, such as 61 for multi-token prediction: they host "
            "the experts in order.",
        ),
    ] = None,
    loads: Annotated[
        str | None, typer.Option(help="Loads, to say what nearest copies make of them.")
    ] = None,
    gpus: MapGpus = None,
    as_json: AsJson = False,
) -> None:
    """Write a plan as a serving engine loads it, and say how to load it."""
    held = reader.plan(plan, gpus)
    exported = co.export(
        held,
        cast(EngineName, engine),
        output,
        pad,
        fill=() if fill is None else numbers_of("--fill", fill),
    )
    if loads is not None:
        served = reader.loads(loads, experts=held.experts)
        nearest, even = (
            co.evaluate(held, served, rule).relative_time for rule in ("nearest-even", "even")
        )
        figure = f"relative time {nearest:.3f} by the nearest copies, {even:.3f} evenly"
        exported = dataclasses.replace(exported, notes=(*exported.notes, figure))
    if as_json:
        print_json(dataclasses.asdict(exported))
    else:
        print(exported)
