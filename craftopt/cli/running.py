"""Where a command runs: threads or a cluster, what it keeps for a later run, and Ctrl-C."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

import craftopt as co
from craftopt.cli.groups import grouped
from craftopt.errors import InputError, choice
from craftopt.result import Options

PLACES = {
    "workers": (int | None, typer.Option(help="Threads; all processors by default.")),
    "executor": (str | None, typer.Option(help="Where layers are searched: threads, or dask.")),
    "scheduler": (
        str | None,
        typer.Option(metavar="ADDRESS", help="Scheduler of a Dask cluster that is up."),
    ),
}
_RESUME = typer.Option(
    metavar="DIR", help="Keep finished layers there, and take those of an earlier run."
)


def running(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say where it runs, and it the ``workers`` of `solve`."""

    @functools.wraps(command)
    def run(*, workers: int | co.Executor | None, **arguments: Any) -> None:
        said = "nothing is kept; with --resume DIR a later run goes on where this one stopped"
        if isinstance(workers, co.Resumable):
            said = f"finished layers are in {workers.folder}; the same command goes on from there"
        with said_when_stopped(said):
            command(workers=workers, **arguments)

    return grouped("workers", PLACES | {"resume": (Path | None, _RESUME)}, executor_of)(run)


@contextmanager
def said_when_stopped(what_is_left: str) -> Iterator[None]:
    """Say after Ctrl-C what a later run goes on from."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"craftopt: stopped: {what_is_left}", file=sys.stderr)
        raise


def executor_of(
    workers: int | None, executor: str | None, scheduler: str | None, resume: Path | None = None
) -> int | co.Executor | None:
    """Make the ``workers`` of `solve` of what a command line says."""
    chosen: int | co.Executor | None = workers
    if choice("--executor", executor or "threads", ("threads", "dask")) == "dask":
        if scheduler is None:
            raise InputError("--executor dask needs --scheduler, such as tcp://10.0.0.1:8786")
        if workers is not None:
            raise InputError("--workers counts threads here; a Dask cluster has its own workers")
        chosen = co.Dask(scheduler)
    elif scheduler is not None:
        raise InputError("--scheduler is for --executor dask; pass both or neither")
    if resume is None:
        return chosen
    return co.Resumable(resume, Options(workers=chosen).executor)
