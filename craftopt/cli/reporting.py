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
from craftopt.documents import write_atomically


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
    """Write the verdict, heat maps, budgets, layers and windows on one page for a browser."""
    from craftopt.reporting.page import report_page  # noqa: PLC0415

    plans: dict[str, co.Plan] = {}
    for name in maps or ():
        label = name if Path(name).name in plans else Path(name).name
        plans[label], traffic = reader.both(name, loads, gpus, nodes)
    if not plans:
        traffic = reader.loads(loads)
    today = next(iter(plans.values()), None)
    if today is not None:
        gpus, nodes = today.gpus, today.nodes  # without those that are dead
    tokens, _ = reader.tokens(trace, None, traffic.layer_ids, traffic.experts)
    with progress("reporting") as say:
        found = co.diagnose(
            traffic, gpus, nodes, plan=today, model=model, gpu=gpu, trace=tokens, seed=seed,
            workers=workers, progress=say,
        )  # fmt: skip
        if today is None:
            problem = co.Problem(traffic, gpus, nodes=nodes, slots="even")
            plans["experts by id"] = co.solve(problem, "trivial").plan
        page = report_page(
            traffic, found, plans, trace=tokens, source=loads, seed=seed, workers=workers,
            progress=say,
        )  # fmt: skip
    write_atomically(output, page)
    print_rich(f"{found.answer}\nwrote {output}")
