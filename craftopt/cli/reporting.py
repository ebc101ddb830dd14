"""Report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import craftopt as co
from craftopt.cli.shared import (
    Gpus,
    LoadsArgument,
    Nodes,
    Reader,
    Seed,
    TraceOption,
    Workers,
    print_rich,
    progress,
    reading,
    writable,
)


@reading
def report(
    reader: Reader,
    loads: LoadsArgument,
    gpus: Gpus,
    output: Annotated[
        Path, typer.Option("--output", "-o", callback=writable, help="Page to write, report.html.")
    ],
    maps: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PLAN]...", help="First what is served with, then others."),
    ] = None,
    nodes: Nodes = 1,
    model: Annotated[str | None, typer.Option(help="Model, such as deepseek-r1.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Accelerator, such as h200.")] = None,
    trace: TraceOption = None,
    seed: Seed = 0,
    workers: Workers = None,
) -> None:
    """Write the verdict, heat maps, budgets, layers, windows and commands on one page."""
    plans: dict[str, co.Plan] = {}
    for name in maps or ():
        plans[name], traffic = reader.both(name, loads, gpus, nodes)
    if not plans:
        traffic = reader.loads(loads)
    for today in list(plans.values())[:1]:
        gpus, nodes = today.gpus, today.nodes  # without those that are dead
    tokens, _ = reader.tokens(trace, None, traffic.layer_ids, traffic.experts)
    with progress("reporting") as say:
        found = co.report(
            traffic, gpus, nodes, path=output, plans=plans, source=reader.words(loads),
            model=model, gpu=gpu, trace=tokens, seed=seed, workers=workers, progress=say,
        )  # fmt: skip
    print_rich(f"{found.answer}\nwrote {output}")
