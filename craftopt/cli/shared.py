"""What the commands share: their options, reading what they are given, printing."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import craftopt as co
from craftopt.errors import InputError, unknown
from craftopt.objective import ObjectiveName
from craftopt.problem import SlotRule

LoadsArgument = Annotated[
    str, typer.Argument(metavar="LOADS", help="File of loads, - for stdin, or an example's name.")
]
PlanArgument = Annotated[
    str, typer.Argument(metavar="PLAN", help="A plan or an engine's map, - for stdin.")
]
Gpus = Annotated[int, typer.Option(help="GPUs (EP ranks).")]
MapGpus = Annotated[
    int | None, typer.Option("--gpus", help="GPUs of an engine's map that does not say them.")
]
Nodes = Annotated[int, typer.Option(help="Nodes that the GPUs are in.")]
Replicas = Annotated[int | None, typer.Option(help="Extra copies over all layers together.")]
PerLayer = Annotated[int | None, typer.Option(help="The engines' number: extra copies per layer.")]
Slots = Annotated[str, typer.Option(help="Memory layout: uniform, even or free.")]
PlanSlots = Annotated[
    str | None,
    typer.Option("--slots", help="Memory layout; the strictest that the plan keeps by default."),
]
ObjectiveOption = Annotated[str, typer.Option(help="time, balancedness, or activated (decode).")]
Groups = Annotated[
    int | None, typer.Option(help="Equal groups of experts that must stay within a node.")
]
MaxCopies = Annotated[int | None, typer.Option(help="Most copies of one expert.")]
Seed = Annotated[int, typer.Option(help="Seed of the methods that search.")]
Workers = Annotated[int | None, typer.Option(help="Threads; all processors by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Holdout = Annotated[
    str | None,
    typer.Option(
        help="Windows to serve unseen: odd-even, first-half, second-half, domain:NAME, a file of "
        "names, or domains: each domain in turn. A window's domain is its name up to the first /."
    ),
]
DispatchOption = Annotated[
    str,
    typer.Option(
        help="How tokens are split over copies: even, hash, nearest, nearest-even, metro, exact, "
        "mixed, lp (the best balance there is), or cover (fewest nodes; with --trace)."
    ),
]
TraceOption = Annotated[
    str | None,
    typer.Option("--trace", metavar="FILE", help="Token trace to measure the traffic on."),
]
PairsOption = Annotated[
    str | None,
    typer.Option(
        "--coactivation", metavar="FILE", help="Pair counts to estimate the traffic from."
    ),
]
MapNodes = Annotated[
    int | None, typer.Option("--nodes", help="Nodes of an engine's map, which does not say them.")
]
Blend = Annotated[
    float | None,
    typer.Option(
        metavar="ALPHA",
        help="Serve drifting Dirichlet(ALPHA) blends of the windows held out; small = few at once.",
    ),
]


def read_source(source: str) -> co.Loads:
    """Read loads from a file, from stdin or from the examples."""
    if source == "-":
        return co.read_loads(sys.stdin.buffer)
    if Path(source).exists():
        return co.read_loads(source)
    if source.casefold() in co.example_names():
        return co.load_example(source)
    wrong = unknown("example", source, co.example_names())
    raise InputError(f"there is no file {source}, and {wrong}")


def read_both(
    plan: str, loads: str, gpus: int | None, nodes: int | None = None
) -> tuple[co.Plan, co.Loads]:
    """Read a plan and loads, and leave layers out of an engine's map that the loads do not have."""
    if plan == loads == "-":
        raise InputError("stdin can be the plan or the loads, not both")
    held = on_nodes(read_plan(plan, gpus), nodes)
    traffic = read_source(loads)
    return same_layers(held, traffic), traffic


def on_nodes(plan: co.Plan, nodes: int | None) -> co.Plan:
    """Say how many nodes hold the GPUs of an engine's map."""
    if nodes is None:
        return plan
    return co.Plan(plan.copies, plan.layer_ids, nodes, plan.method, plan.loads_digest)


def read_tokens(
    trace: str | None, coactivation: str | None, experts: int
) -> tuple[co.Trace | None, co.Coactivation | None]:
    """Read what traffic is measured on, where it is given."""
    return (
        None if trace is None else co.read_trace(trace, experts),
        None if coactivation is None else co.read_coactivation(coactivation, experts),
    )


def read_plan(plan: str, gpus: int | None) -> co.Plan:
    """Read a plan or an engine's map from a file or from stdin."""
    return co.read_plan(sys.stdin.buffer if plan == "-" else plan, gpus)


def same_layers(plan: co.Plan, loads: co.Loads) -> co.Plan:
    """Leave out layers of the plan that the loads lack: engines' maps list dense layers, too."""
    kept = np.isin(plan.layer_ids, loads.layer_ids)
    if plan.layers <= loads.layers or kept.sum() != loads.layers:
        return plan
    return co.Plan(plan.copies[kept], plan.layer_ids[kept], plan.nodes, plan.method)


def slots_of(plan: co.Plan) -> SlotRule:
    """Name the strictest slot rule that a plan keeps."""
    if plan.slots.min() == plan.slots.max():
        return "uniform"
    return "even" if (plan.slots.max(axis=1) - plan.slots.min(axis=1)).max() <= 1 else "free"


def make_problem(
    loads: co.Loads,
    gpus: int,
    nodes: int,
    replicas: int | None,
    replicas_per_layer: int | None,
    slots: str,
    objective: str,
    groups: int | None,
    max_copies: int | None,
) -> co.Problem:
    """Make the problem that the options describe."""
    return co.Problem(
        loads,
        gpus,
        nodes=nodes,
        replicas=replicas,
        replicas_per_layer=replicas_per_layer,
        slots=cast(SlotRule, slots),
        objective=cast(ObjectiveName, objective),
        expert_groups=groups,
        max_copies=max_copies,
    )


@contextmanager
def progress(task: str) -> Iterator[Any]:
    """Show what runs and for how long, on a terminal only."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        row = bar.add_task(task, total=None)
        yield lambda name: bar.update(row, description=f"{task}: {name}")


def print_rich(content: Any) -> None:
    """Print a table or a text for a terminal, or plainly into a pipe or file."""
    console = Console()
    if console.is_terminal:
        # Rather lines that wrap than figures that are cut.
        console.width = max(console.width, 120)
        console.print(content)
        return
    page = io.StringIO()
    Console(file=page, width=160).print(content)  # a file or pipe has no width to wrap to
    print("\n".join(line.rstrip() for line in page.getvalue().rstrip().splitlines()))


def print_json(content: Any) -> None:
    """Print what a program reads."""
    print(json.dumps(content, indent=2))
