"""The command line: parse, call, print."""

from __future__ import annotations

import difflib
import io
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import craftopt as co
from craftopt.errors import CraftoptError, CraftoptWarning, InputError
from craftopt.problem import Objective, SlotRule

app = typer.Typer(
    help="Plan expert replication and placement for Mixture-of-Experts serving.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

# click's UsageError, which typer carries inside from some version on
_UsageError: type[Any] = typer.BadParameter.__bases__[0]

LoadsArgument = Annotated[
    str, typer.Argument(metavar="LOADS", help="File of loads, - for stdin, or an example's name.")
]
Gpus = Annotated[int, typer.Option(help="GPUs (EP ranks).")]
Nodes = Annotated[int, typer.Option(help="Nodes that the GPUs stand in.")]
Replicas = Annotated[int | None, typer.Option(help="Extra copies over all layers together.")]
PerLayer = Annotated[int | None, typer.Option(help="The engines' number: extra copies per layer.")]
Slots = Annotated[str, typer.Option(help="Memory layout: uniform, even or free.")]
ObjectiveOption = Annotated[str, typer.Option(help="time or balancedness.")]
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
Dispatch = Annotated[
    str, typer.Option(help="How tokens are split over copies: even, or lp (the best there is).")
]
Blend = Annotated[
    float | None,
    typer.Option(
        metavar="ALPHA",
        help="Serve drifting Dirichlet(ALPHA) blends of the windows held out; small = few at once.",
    ),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"craftopt {co.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Plan expert replication and placement for Mixture-of-Experts serving."""


@app.command()
def plan(
    loads: LoadsArgument,
    gpus: Gpus,
    nodes: Nodes = 1,
    replicas: Replicas = None,
    replicas_per_layer: PerLayer = None,
    slots: Slots = "free",
    objective: ObjectiveOption = "time",
    groups: Groups = None,
    max_copies: MaxCopies = None,
    method: Annotated[str, typer.Option(help="How to plan.")] = "fast",
    seed: Seed = 0,
    work_limit: Annotated[int | None, typer.Option(help="Most iterations.")] = None,
    time_limit: Annotated[float | None, typer.Option(help="Seconds; a safety stop.")] = None,
    workers: Workers = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write plan.json.")] = None,
    as_json: AsJson = False,
) -> None:
    """Plan a model, say how good the plan is, and write it to a file."""
    problem = _problem(
        _read(loads), gpus, nodes, replicas, replicas_per_layer, slots, objective, groups,
        max_copies,
    )  # fmt: skip
    with _progress(f"planning with {method}") as report:
        result = co.solve(
            problem,
            method,
            seed=seed,
            work_limit=work_limit,
            time_limit=time_limit,
            workers=workers,
            progress=lambda done: report(f"{done:.0%}"),
        )
    if output is not None and result.has_plan:
        result.plan.save(output)
    if as_json:
        _print_json(
            {
                "method": result.method,
                "status": result.status.value,
                "limit": result.limit,
                "objective": result.objective,
                "bound": result.bound,
                "gap": result.gap,
                "violations": result.violations,
                "runtime": result.runtime,
                "message": result.message,
                "replicas": result.plan.replicas if result.has_plan else None,
                "output": str(output) if output is not None and result.has_plan else None,
            }
        )
        if not result.has_plan:
            raise typer.Exit(1)
        return
    from craftopt.report.tables import result_table  # noqa: PLC0415

    _print(result_table(result))
    if output is not None:
        _print(f"wrote {output}")


@app.command()
def compare(
    loads: LoadsArgument,
    gpus: Gpus,
    nodes: Nodes = 1,
    replicas: Replicas = None,
    replicas_per_layer: PerLayer = None,
    slots: Slots = "free",
    objective: ObjectiveOption = "time",
    groups: Groups = None,
    max_copies: MaxCopies = None,
    methods: Annotated[
        str, typer.Option(help="Methods, separated by commas; all = all that can run here.")
    ] = "all",
    holdout: Holdout = None,
    blend: Blend = None,
    dispatch: Dispatch = "even",
    seed: Seed = 0,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Plan with several methods and show them side by side, on unseen windows too."""
    if blend is not None and holdout in (None, "domains"):
        raise InputError(
            "--blend mixes the windows held out: pass one --holdout, such as first-half"
        )
    planned, served = _read(loads), None
    if holdout is not None and holdout != "domains":
        planned, served = co.holdout(planned, holdout)
        if blend is not None:
            served = co.blend(served, blend, seed=seed)
    problem = _problem(
        planned, gpus, nodes, replicas, replicas_per_layer, slots, objective, groups, max_copies
    )
    names: list[str] | None = [name.strip() for name in methods.split(",")]
    if names == ["all"]:
        names = None
    with _progress("comparing") as report:
        if holdout == "domains":
            results = co.compare_domains(
                problem, names, dispatch=dispatch.lower(), seed=seed, workers=workers,
                progress=report,
            )  # fmt: skip
        else:
            result = co.compare(
                problem, served, names, dispatch=dispatch.lower(), seed=seed, workers=workers,
                progress=report,
            )  # fmt: skip
    if holdout == "domains":
        if as_json:
            _print_json({domain: result.to_dict() for domain, result in results.items()})
        else:
            from craftopt.report.tables import domains_table  # noqa: PLC0415

            _print(domains_table(results))
        return
    if as_json:
        _print_json(result.to_dict())
        return
    from craftopt.report.tables import comparison_table  # noqa: PLC0415

    _print(comparison_table(result))


@app.command()
def evaluate(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A plan, - for stdin.")],
    loads: LoadsArgument,
    dispatch: Dispatch = "even",
    as_json: AsJson = False,
) -> None:
    """Score a plan on loads."""
    if plan == loads == "-":
        raise InputError("stdin can be the plan or the loads, not both")
    held = co.read_plan(sys.stdin.buffer if plan == "-" else plan)
    scored = co.evaluate(held, _read(loads), dispatch.lower())
    if as_json:
        _print_json(
            {
                "mean_balancedness": scored.mean_balancedness,
                "worst_layer": scored.worst_layer,
                "relative_time": scored.relative_time,
                "engine_metrics": scored.engine_metrics,
                "balancedness": scored.balancedness.tolist(),
            }
        )
        return
    from craftopt.report.tables import evaluation_table  # noqa: PLC0415

    _print(evaluation_table(scored))


@app.command()
def info(loads: LoadsArgument, as_json: AsJson = False) -> None:
    """Say what a file of loads holds."""
    held = _read(loads)
    if as_json:
        _print_json(
            {
                "windows": held.windows,
                "layers": held.layers,
                "experts": held.experts,
                "tokens": held.tokens.sum(),
                "layer_ids": held.layer_ids.tolist(),
                "window_names": held.window_names,
                "digest": held.digest,
            }
        )
        return
    from craftopt.report.tables import loads_table  # noqa: PLC0415

    _print(loads_table(held))


def main() -> None:
    """Run the command line: exit 2 with one line on bad usage or input, no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # bars that a terminal cannot show
    warnings.showwarning = _show_warning
    try:
        sys.exit(app(standalone_mode=False))
    except CraftoptError as error:
        print(f"craftopt: {error}", file=sys.stderr)
        sys.exit(2)
    except _UsageError as error:
        text = " ".join(error.format_message().split())
        if text:  # without arguments, the help has been printed
            print(f"craftopt: {text}", file=sys.stderr)
        sys.exit(2)
    except typer.Abort:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def _read(source: str) -> co.Loads:
    if source == "-":
        return co.read_loads(sys.stdin.buffer)
    if not Path(source).exists() and source.lower() in co.example_names():
        return co.load_example(source)
    if not Path(source).exists():
        close = difflib.get_close_matches(source.lower(), co.example_names(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(
            f"there is no file {source}; the examples are {', '.join(co.example_names())}{hint}"
        )
    return co.read_loads(source)


def _problem(
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
    return co.Problem(
        loads,
        gpus,
        nodes=nodes,
        replicas=replicas,
        replicas_per_layer=replicas_per_layer,
        slots=cast(SlotRule, slots.lower()),
        objective=cast(Objective, objective.lower()),
        expert_groups=groups,
        max_copies=max_copies,
    )


@contextmanager
def _progress(task: str) -> Iterator[Any]:
    """Show what runs and for how long, on a terminal only."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        row = bar.add_task(task, total=None)
        yield lambda name: bar.update(row, description=f"{task}: {name}")


def _print(content: Any) -> None:
    console = Console()
    if console.is_terminal:
        # Rather lines that wrap than figures that are cut.
        console.width = max(console.width, 120)
        console.print(content)
        return
    page = io.StringIO()
    Console(file=page, width=160).print(content)  # a file or pipe has no width to wrap to
    print("\n".join(line.rstrip() for line in page.getvalue().rstrip().splitlines()))


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2))


def _show_warning(
    message: Warning | str, category: type[Warning], *_: object, **__: object
) -> None:
    label = "note" if issubclass(category, CraftoptWarning) else category.__name__
    print(f"{label}: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
