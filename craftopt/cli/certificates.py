"""Certify, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import craftopt as co
from craftopt.cli.running import running
from craftopt.cli.shared import (
    AsJson,
    Groups,
    LoadsArgument,
    MapGpus,
    MapNodes,
    MaxCopies,
    ObjectiveOption,
    PerLayer,
    PlanArgument,
    PlanSlots,
    Reader,
    Replicas,
    TraceOption,
    make_problem,
    print_json,
    print_rich,
    progress,
    reading,
    slots_of,
    writable,
)
from craftopt.errors import InputError


@reading
@running
def certify(
    reader: Reader,
    workers: int | co.Executor | None,
    plan: PlanArgument,
    loads: LoadsArgument,
    gpus: MapGpus = None,
    nodes: MapNodes = None,
    replicas: Replicas = None,
    replicas_per_layer: PerLayer = None,
    slots: PlanSlots = None,
    objective: ObjectiveOption = "time",
    groups: Groups = None,
    max_copies: MaxCopies = None,
    total: Annotated[
        bool, typer.Option("--total", help="Certify on the sum of the windows.")
    ] = False,
    trace: TraceOption = None,
    traffic_price: Annotated[
        float, typer.Option("--traffic", metavar="MU", help="Price of a node per token.")
    ] = 0.0,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds after which no bound is sharpened.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", callback=writable, help="Write the certificate."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prove how far a plan is from the best one; the budget is the plan's, if none is given."""
    from craftopt.reporting.tables import certificate_table  # noqa: PLC0415

    if traffic_price and trace is None:
        raise InputError(
            "--traffic needs the tokens that the loads were counted from: pass --trace"
        )
    held, traffic = reader.both(plan, loads, gpus, nodes)
    if replicas is None and replicas_per_layer is None:
        replicas = held.replicas
    tokens, _ = reader.tokens(trace, None, traffic.layer_ids, traffic.experts)
    problem = make_problem(
        traffic.total() if total else traffic, held.gpus, held.nodes, replicas,
        replicas_per_layer, slots or slots_of(held), objective, groups, max_copies,
    ).replace(coactivation=tokens, traffic=traffic_price or None)  # fmt: skip
    with progress("certifying") as report:
        certificate = co.certify(
            problem,
            held,
            time_limit=time_limit,
            workers=workers,
            progress=lambda done: report(f"{done:.0%}"),
        )
    if output is not None:
        certificate.save(output)
    if as_json:
        print_json({**certificate.to_dict(), "output": None if output is None else str(output)})
        return
    print_rich(certificate_table(certificate))
    if output is not None:
        print_rich(f"wrote {output}")


def verify(
    certificate: Annotated[
        str, typer.Argument(metavar="CERTIFICATE", help="File of a certificate.")
    ],
    log: Annotated[
        Path | None,
        typer.Option(help="Check this proof log as well: that no plan is better."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every claim of a certificate in exact arithmetic."""
    from craftopt.reporting.tables import certificate_table  # noqa: PLC0415

    held = co.Certificate.load(certificate)
    with progress("verifying"):
        co.verify(held, log=log)
    if as_json:
        print_json({"verified": True, "log": log and str(log), **held.to_dict()})
        return
    print_rich(certificate_table(held))
    print_rich("verified: every claim holds")
    if log is not None:
        print_rich(f"no plan is better than {held.value:.6f}: every step of {log} follows")
