"""Bench exact."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import typer

import craftopt as co
from craftopt.bench_exact import Grid, tables
from craftopt.bench_exact import bench_exact as run_grid
from craftopt.cli.groups import grouped
from craftopt.cli.running import PLACES, executor_of, said_when_stopped
from craftopt.cli.shared import Slots, print_rich, progress, writable
from craftopt.documents import write_atomically
from craftopt.errors import InputError, number, whole
from craftopt.problem import SlotRule


def _text(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{one:g}" for one in numbers)


_SHAPES = ",".join(f"{experts}x{gpus}" for experts, gpus in Grid.shapes)
_MOST = 10_000  # of windows, experts and GPUs
_PICTURES = (".png", ".pdf", ".svg")
_WORKERS = "Runs side by side; 1 by default, since they slow each other down and are timed."


@grouped("workers", PLACES | {"workers": (int | None, typer.Option(help=_WORKERS))}, executor_of)
def bench_exact(
    workers: int | co.Executor | None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", callback=writable, help="Runs as CSV; what it has is not run again."
        ),
    ],
    shapes: Annotated[str, typer.Option(help="Experts x GPUs, separated by commas.")] = _SHAPES,
    skews: Annotated[
        str, typer.Option(help="Popularity of the i-th expert is 1/i to this power.")
    ] = _text(Grid.skews),
    shares: Annotated[str, typer.Option(help="Replicas, as shares of the experts.")] = _text(
        Grid.shares
    ),
    windows: Annotated[str, typer.Option(help="Numbers of windows.")] = _text(Grid.windows),
    work_limits: Annotated[
        str, typer.Option(help="Work of exact, in deterministic seconds of CP-SAT.")
    ] = _text(Grid.work_limits),
    slots: Slots = "even",
    plot: Annotated[
        Path | None,
        typer.Option(callback=writable, help="Also plot how often a gap is kept (extra plot)."),
    ] = None,
) -> None:
    """Compare exact with all heuristics on a grid of made-up problems: gap and time of each.

    A run that was stopped goes on from its file; a wider grid adds to it.
    """
    if plot is not None and plot.suffix not in _PICTURES:
        raise InputError(f"cannot plot into {plot}; name it file.png, file.pdf or file.svg")
    grid = Grid(
        shapes=_listed("shapes", shapes, _shape),
        skews=_numbers("skews", skews),
        shares=_numbers("shares", shares),
        windows=_listed("windows", windows, lambda one: whole("windows", int(one), 1, _MOST)),
        work_limits=_listed(
            "work_limits", work_limits, lambda one: whole("work_limit", int(one), 0)
        ),
        slots=cast(SlotRule, slots),
    )
    stopped = f"finished runs are in {output}; the same command goes on from there"
    with said_when_stopped(stopped), progress("running") as say:
        runs = run_grid(grid, output, workers=workers or 1, progress=say)
    from craftopt.reporting.tables import rich_table  # noqa: PLC0415

    for table in tables(runs):
        print_rich(rich_table(table))
    print_rich(f"wrote {output}, {len(runs)} runs")
    if plot is not None:
        from craftopt.reporting.plots import plot_bench  # noqa: PLC0415

        stream = io.BytesIO()
        plot_bench(runs).savefig(stream, format=plot.suffix[1:], dpi=150)
        write_atomically(plot, stream.getvalue())
        print_rich(f"wrote {plot}")


def _shape(text: str) -> tuple[int, int]:
    experts, gpus = text.split("x")
    return whole("experts", int(experts), 1, _MOST), whole("gpus", int(gpus), 1, _MOST)


def _numbers(name: str, text: str) -> tuple[float, ...]:
    return _listed(name, text, lambda one: number(name, float(one), least=0, most=100))


def _listed(name: str, text: str, read: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        return tuple(read(one) for one in text.split(","))
    except InputError:
        raise
    except ValueError:
        example = "8x4,16x8" if name == "shapes" else "1,4"
        raise InputError(f"{name}={text!r} is no list like {example}; pass one") from None
