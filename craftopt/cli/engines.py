"""Export: into the files that serving engines load."""

from __future__ import annotations

import dataclasses
from typing import Annotated, cast

import typer

import craftopt as co
from craftopt.cli.shared import AsJson, MapGpus, Reader, print_json, reading, writable
from craftopt.formats import EngineName


@reading
def export(
    reader: Reader,
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A plan, - for stdin.")],
    engine: Annotated[
        str, typer.Option(help="sglang, tensorrt-llm, vllm-ascend (also MindIE), vllm or deepseek.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", callback=writable, help="File to write.")
    ],
    pad: Annotated[
        bool, typer.Option("--pad", help="Fill up to equal slot counts with further copies.")
    ] = False,
    gpus: MapGpus = None,
    as_json: AsJson = False,
) -> None:
    """Write a plan as a serving engine loads it, and say how to load it."""
    exported = co.export(reader.plan(plan, gpus), cast(EngineName, engine), output, pad)
    if as_json:
        print_json(dataclasses.asdict(exported))
    else:
        print(exported)
