"""Export of models for other solvers."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from craftopt.cli.shared import (
    Gpus,
    Groups,
    LoadsArgument,
    MaxCopies,
    Nodes,
    PerLayer,
    Reader,
    Replicas,
    Slots,
    make_problem,
    print_rich,
    reading,
    writable,
)
from craftopt.errors import InputError


@reading
def export_model(
    reader: Reader,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="allocation, joint, placement, rebalancing, replication or windowed.",
        ),
    ],
    loads: LoadsArgument,
    gpus: Gpus,
    output: Annotated[
        Path, typer.Option("--output", "-o", callback=writable, help="File.mps or file.lp.")
    ],
    layer: Annotated[int, typer.Option(help="Position of the layer; allocation is of all.")] = 0,
    nodes: Nodes = 1,
    replicas: Replicas = None,
    replicas_per_layer: PerLayer = None,
    slots: Slots = "free",
    groups: Groups = None,
    max_copies: MaxCopies = None,
    previous: Annotated[
        Path | None, typer.Option(help="Plan to rebalance, with --max-moves.")
    ] = None,
    max_moves: Annotated[
        int | None,
        typer.Option(help="Most copies on GPUs that did not host them, over all layers."),
    ] = None,
) -> None:
    """Write a model as an MPS or LP file, for other solvers."""
    missing = [name for name in ("ortools", "pulp") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"export-model needs {', '.join(missing)}: pip install 'craftopt[exact]'")
    problem = make_problem(
        reader.loads(loads), gpus, nodes, replicas, replicas_per_layer, slots, "time", groups,
        max_copies,
    )  # fmt: skip
    if previous is not None:
        old = reader.plan(str(previous)).survivors()
        problem = problem.replace(previous=old, max_moves=max_moves)
    write = importlib.import_module("craftopt_formulations.export").export_model
    variables, constraints = write(problem, model.lower(), output, layer=layer)
    print_rich(f"wrote {output}: {variables} variables, {constraints} constraints")
