"""What the commands share: their options, reading what they are given, printing."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import craftopt as co
from craftopt.cli.groups import grouped, is_there
from craftopt.datasets import is_synthetic
from craftopt.documents import check_writable
from craftopt.errors import CraftoptWarning, InputError, choice, unknown, whole
from craftopt.formats.reading import read_any
from craftopt.loads import IntArray, layer_text
from craftopt.objective import ObjectiveName
from craftopt.problem import SlotRule
from craftopt.traces import Order


def writable(path: Any) -> Any:
    """Refuse a file that cannot be written, before any work begins."""
    if path is not None:
        check_writable(path)
    return path


LoadsArgument = Annotated[
    str, typer.Argument(metavar="LOADS", help="File of loads, - for stdin, or an example's name.")
]
PlanArgument = Annotated[
    str, typer.Argument(metavar="PLAN", help="A plan or an engine's map, - for stdin.")
]
PlanOutput = Annotated[
    Path | None, typer.Option("--output", "-o", callback=writable, help="Write plan.json.")
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
PlannedDispatchOption = Annotated[
    str,
    typer.Option(
        "--dispatch",
        help="How copies will serve: even, or nearest-even (those on the token's GPU, else those "
        "in its node, else all; SGLang's dynamic dispatch).",
    ),
]
TRACE = typer.Option("--trace", metavar="FILE", help="Token trace to measure the traffic on.")
PAIRS = typer.Option(
    "--coactivation", metavar="FILE", help="Pair counts to estimate the traffic from."
)
TraceOption = Annotated[str | None, TRACE]
PairsOption = Annotated[str | None, PAIRS]
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


Kind = Literal["loads", "trace", "plan"]


@dataclass(frozen=True)
class Reader:
    """Read loads as the options of the command say; see `reading`."""

    kind: Kind | None
    layers: int | list[int] | None
    experts: int | None
    batch: int | None
    order: str | None
    seed: int = 0

    def words(self, source: str) -> str:
        """Write what a command line says to read loads so."""
        layers: Any = self.layers
        if isinstance(layers, list):
            whole_run = layers == list(range(layers[0], layers[-1] + 1))
            layers = f"{layers[0]}-{layers[-1]}" if whole_run else ",".join(map(str, layers))
        given = {"--as": self.kind, "--layers": layers, "--experts": self.experts,
                 "--batch": self.batch, "--order": self.order}  # fmt: skip
        options = [(name, str(value)) for name, value in given.items() if value is not None]
        return shlex.join([source, *(word for option in options for word in option)])

    def loads(self, source: str, keep_idle: bool = False, experts: int | None = None) -> co.Loads:
        """Read loads, or cut a trace into windows, from a file, stdin or the examples."""
        if self.batch is None and (self.kind == "trace" or self.order is not None):
            raise InputError("a token trace is cut into windows of N tokens: pass --batch N")
        held: Any = sys.stdin.buffer if source == "-" else source
        if source != "-" and not is_there(source):
            if source.casefold() not in co.example_names():
                wrong = unknown("example", source, co.example_names())
                raise InputError(f"there is no file {source}, and {wrong}")
            return self._example(source)
        if self.batch is not None:
            return self._windows(co.read_trace(held, self.experts or experts, self.layers))
        return co.read_loads(
            held, self.layers, experts=self.experts, kind=self.kind, keep_idle=keep_idle
        )

    def any(self, source: str, gpus: int | None) -> tuple[str, Any]:
        """Read whatever a file holds, and say in words what it is."""
        if source != "-" and not is_there(source):
            kind = "synthetic" if is_synthetic(source) else "measured"
            return f"an example, {kind}", self.loads(source)
        if self.batch is not None:
            return f"a trace in batches of {self.batch}", self.loads(source)
        held = sys.stdin.buffer if source == "-" else source
        return read_any(held, gpus, self.layers, self.experts, self.kind)

    def plan(self, source: str, gpus: int | None = None, nodes: int | None = None) -> co.Plan:
        """Read a plan or an engine's map from a file or from stdin."""
        held = co.read_plan(sys.stdin.buffer if source == "-" else source, gpus, self.layers)
        return on_nodes(held, nodes)

    def both(
        self, plan: str, loads: str, gpus: int | None, nodes: int | None = None
    ) -> tuple[co.Plan, co.Loads]:
        """Read a plan and loads of the same layers: those of the loads that have tokens."""
        held, traffic = self.whole_plan(plan, loads, gpus, nodes)
        if held.dead:
            warnings.warn(
                f"the dead GPUs {', '.join(map(str, held.dead))} are left out: this is about the "
                f"{held.gpus - len(held.dead)} that are alive",
                CraftoptWarning,
                stacklevel=2,
            )
            held = held.survivors()
        active = np.flatnonzero(traffic.tokens.any(axis=(0, 2)))
        if active.size < traffic.layers:
            traffic = traffic.with_layers(active.tolist(), traffic.layer_ids[active])
        return self.same_layers(held, traffic), traffic

    def whole_plan(
        self, plan: str, loads: str, gpus: int | None, nodes: int | None = None
    ) -> tuple[co.Plan, co.Loads]:
        """Read a plan and loads with all of their layers.

        Loads whose numbers are 0, 1, ... may be numbered by position, so they match a plan of as
        many layers alone, unless --layers says their numbers.
        """
        if plan == loads == "-":
            raise InputError("stdin can be the plan or the loads, not both")
        held = self.plan(plan, gpus, nodes)
        traffic = self.loads(loads, keep_idle=True, experts=held.experts)
        by_position = self.layers is None and traffic.layer_ids.tolist() == list(
            range(traffic.layers)
        )
        if by_position and traffic.layers < held.layers:
            held.check_layers(traffic, "loads")
        return held, traffic

    def same_layers(self, plan: co.Plan, loads: co.Loads) -> co.Plan:
        """Leave out layers of the plan that the loads lack, as of engines' maps with dense layers.

        Raises
        ------
        InputError
            Layers of the loads that the plan lacks.
        """
        held: co.Plan = _of_layers(plan, loads.layer_ids)
        held.check_layers(loads, "loads")
        if held.layers < plan.layers:
            lacking = layer_text(sorted({*plan.layer_ids.tolist()} - {*held.layer_ids.tolist()}))
            warnings.warn(
                f"the layers {lacking} of the plan have no tokens and are left out",
                CraftoptWarning,
                stacklevel=2,
            )
        return held

    def tokens(
        self, trace: str | None, coactivation: str | None, layers: IntArray, experts: int
    ) -> tuple[co.Trace | None, co.Coactivation | None]:
        """Read what traffic is measured on, where it is given, and leave out other layers."""
        if trace is not None and coactivation is not None:
            raise InputError("--trace and --coactivation are both given; pass one of them")
        tokens = None if trace is None else self._trace(trace, experts)
        pairs = (
            None
            if coactivation is None
            else co.read_coactivation(coactivation, experts, self.layers)
        )
        return _of_layers(tokens, layers), _of_layers(pairs, layers)

    def _trace(self, source: str, experts: int) -> co.Trace:
        """Read a token trace from a file or the examples."""
        if not is_there(source) and source.casefold() in co.example_names():
            return co.load_example_trace(source)
        return co.read_trace(source, experts, self.layers)

    def _example(self, name: str) -> co.Loads:
        """Load an example, or cut windows from its trace; say where it is made up."""
        if self != Reader(None, None, None, self.batch, self.order):
            raise InputError(
                f"{name} is an example, which says itself what it is; leave out --as, "
                "--layers and --experts"
            )
        if self.batch is not None:
            return self._windows(co.load_example_trace(name))
        if is_synthetic(name):
            text = f"{name} is a synthetic example, not measured traffic"
            warnings.warn(text, co.CraftoptWarning, stacklevel=2)
        return co.load_example(name)

    def _windows(self, trace: co.Trace) -> co.Loads:
        """Cut a trace into windows, without a last one that is short."""
        size, order = whole("batch", self.batch, 1), cast(Order, self.order or "recorded")
        windows = trace.batches(size, order, self.seed)
        return windows.select(range(max(1, trace.tokens // size)))


def _of_layers(held: Any, layer_ids: IntArray) -> Any:
    """Leave out other layers of a plan, a trace or pair counts, where it has all of these."""
    if held is None:
        return None
    kept = np.flatnonzero(np.isin(held.layer_ids, layer_ids))
    if kept.size == held.layers or kept.size < layer_ids.size:
        return held
    return held.with_layers(kept.tolist(), held.layer_ids[kept])


_READING = {
    "kind": (
        str | None,
        typer.Option("--as", metavar="KIND", help="What a bare array is: loads, trace or plan."),
    ),
    "layers": (
        str | None,
        typer.Option(
            metavar="LAYERS",
            help="The model's numbers of the layers, such as 3-60, where a file does not number "
            "them, or to select some; or how many there are.",
        ),
    ),
    "experts": (int | None, typer.Option(help="Experts per layer, where a file may lack some.")),
    "batch": (int | None, typer.Option(help="Tokens per window, cut from a token trace.")),
    "order": (
        str | None,
        typer.Option(help="Tokens of a --batch: recorded (prefill) or random (decode)."),
    ),
}


def _reader(layers: str | None, kind: str | None, **options: Any) -> Reader:
    if kind is not None:
        kind = choice("--as", kind, get_args(Kind))
    return Reader(layers=_layers(layers), kind=cast(Kind, kind), **options)


# Gives a command the options that say how files are read, and it a `Reader` made of them.
reading = grouped("reader", _READING, _reader)


def _layers(text: str | None) -> int | list[int] | None:
    """Read --layers: a number of layers, or their numbers, such as 3-60,62."""
    if text is None:
        return None
    one = re.fullmatch(r"\s*\d{1,5}\s*", text)
    return int(text) if one else numbers_of("--layers", text)


def numbers_of(option: str, text: str) -> list[int]:
    """Read numbers of layers or GPUs, such as 3-60,62."""
    numbers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part)
        run = range(int(found[1]), int(found[2] or found[1]) + 1) if found else ()
        if not run:
            raise InputError(f"{option} {text[:60]!r}; pass numbers, such as 3-60 or 3,5,7")
        numbers += run
    return numbers


def on_nodes(plan: co.Plan, nodes: int | None) -> co.Plan:
    """Say how many nodes hold the GPUs of an engine's map."""
    if nodes is None:
        return plan
    return co.Plan(plan.copies, plan.layer_ids, nodes, plan.method, plan.loads_digest, plan.dead)


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
        console.width = max(console.width, 140)
        console.print(content)
        return
    page = io.StringIO()
    Console(file=page, width=160).print(content)  # a file or pipe has no width to wrap to
    print("\n".join(line.rstrip() for line in page.getvalue().rstrip().splitlines()))


def print_json(content: Any) -> None:
    """Print what a program reads."""
    print(json.dumps(content, indent=2))
