"""The command line: parse, call, print."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Any

import typer

import craftopt as co
from craftopt.cli.bench import bench_exact
from craftopt.cli.certificates import certify, verify
from craftopt.cli.engines import export
from craftopt.cli.models import export_model
from craftopt.cli.planning import compare, diagnose, evaluate, info, plan, warm_up
from craftopt.cli.rebalancing import rebalance
from craftopt.cli.reporting import report
from craftopt.cli.routing import route
from craftopt.cli.serving import advise
from craftopt.errors import CraftoptError, CraftoptWarning

# In the order in which the help lists them.
COMMANDS = (
    diagnose,
    report,
    plan,
    compare,
    evaluate,
    certify,
    verify,
    route,
    rebalance,
    export,
    export_model,
    info,
    advise,
    bench_exact,
    warm_up,
)

# What engines call it, and the answer to an option that there is not.
_ENGINES_OPTIONS = {
    "ep-size ep expert-parallel-size moe-ep-size tp-size tp tensor-parallel-size dp-size "
    "data-parallel-size world-size num-gpus num-ranks": "the GPUs (EP ranks) are --gpus here",
    "num-redundant-experts ep-num-redundant-experts redundant-experts redundancy "
    "eplb-num-redundant-experts eplb-config": "redundant experts are --replicas-per-layer here",
    "num-slots num-replicas num-physical-experts": "slots less experts are --replicas-per-layer "
    "here",
    "nnodes num-nodes": "nodes are --nodes here",
    "num-groups n-group num-expert-group": "expert groups are --groups here",
    "ep-dispatch-algorithm": "how tokens are split over copies is --dispatch here",
    "eplb-algorithm algorithm policy eplb-policy-type": "algorithms are --method here",
    "init-expert-location expert-map-path expert-map-file": "a map is an argument here, PLAN",
    "num-experts": "experts are --experts here",
    "num-layers layer-ids": "layers are --layers here",
}
OPTIONS_OF_ENGINES = {
    f"--{name}": answer for names, answer in _ENGINES_OPTIONS.items() for name in names.split()
}

app = typer.Typer(
    help="Plan expert replication and placement for Mixture-of-Experts serving.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in COMMANDS:
    app.command()(command)

# click's UsageError, which typer carries inside from some version on
_UsageError: type[Any] = typer.BadParameter.__bases__[0]


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
        meant = OPTIONS_OF_ENGINES.get(getattr(error, "option_name", "").replace("_", "-"))
        text += f"; {meant}" if meant else ""
        if text:  # without arguments, the help has been printed
            print(f"craftopt: {text}", file=sys.stderr)
        sys.exit(2)
    except typer.Abort:  # Ctrl-C: at once, without waiting for threads that search
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def _show_warning(
    message: Warning | str, category: type[Warning], *_: object, **__: object
) -> None:
    label = "note" if issubclass(category, CraftoptWarning) else category.__name__
    print(f"{label}: {message}", file=sys.stderr)
