"""Certify, verify."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

import craftopt as co
from craftopt.cli.shared import (
    AsJson,
    Groups,
    LoadsArgument,
    MapGpus,
    MaxCopies,
    ObjectiveOption,
    PerLayer,
    PlanArgument,
    PlanSlots,
    Replicas,
    make_problem,
    print_json,
    print_rich,
    progress,
    read_both,
    slots_of,
)
from craftopt.errors import InputError

# Layers with a gap of that or less are counted in the summary.
_CLOSE = 0.001


def certify(
    plan: PlanArgument,
    loads: LoadsArgument,
    gpus: MapGpus = None,
    replicas: Replicas = None,
    replicas_per_layer: PerLayer = None,
    slots: PlanSlots = None,
    objective: ObjectiveOption = "time",
    groups: Groups = None,
    max_copies: MaxCopies = None,
    total: Annotated[
        bool, typer.Option("--total", help="Certify on the sum of the windows.")
    ] = False,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds after which no bound is sharpened.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the certificate.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prove how far a plan is from the best one; the budget is the plan's, if none is given."""
    held, traffic = read_both(plan, loads, gpus)
    if replicas is None and replicas_per_layer is None:
        replicas = held.replicas
    problem = make_problem(
        traffic.total() if total else traffic, held.gpus, held.nodes, replicas,
        replicas_per_layer, slots or slots_of(held), objective, groups, max_copies,
    )  # fmt: skip
    with progress("certifying") as report:
        certificate = co.certify(
            problem, held, time_limit=time_limit, progress=lambda done: report(f"{done:.0%}")
        )
    if output is not None:
        certificate.save(output)
    if as_json:
        print_json({**_summary(certificate), "output": None if output is None else str(output)})
        return
    print_rich(_table(certificate))
    if output is not None:
        print_rich(f"wrote {output}")


def verify(
    certificate: Annotated[
        str, typer.Argument(metavar="CERTIFICATE", help="File of a certificate.")
    ],
    as_json: AsJson = False,
) -> None:
    """Check every claim of a certificate in exact arithmetic."""
    try:
        text = Path(certificate).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {certificate}: {error}") from None
    held = co.Certificate.from_json(text)
    with progress("verifying"):
        co.verify(held)
    if as_json:
        print_json({"verified": True, **_summary(held)})
        return
    print_rich(_table(held))
    print_rich("verified: every claim holds")


def _summary(certificate: co.Certificate) -> dict[str, Any]:
    gaps = [layer.gap for layer in certificate.layers]
    return {
        "value": certificate.value,
        "bound": certificate.bound,
        "gap": certificate.gap,
        "solver_bound": certificate.solver_bound,
        "solver_gap": certificate.solver_gap,
        "solvers": certificate.solvers,
        "layers": len(gaps),
        "layers_within_0.1%": sum(gap <= _CLOSE for gap in gaps),
        "worst_layer_gap": max(gaps),
        "proofs": dict(Counter(layer.kind for layer in certificate.layers)),
    }


def _table(certificate: co.Certificate) -> Any:
    from rich.table import Table  # noqa: PLC0415

    summary = _summary(certificate)
    document = certificate.document
    name = {"time": "relative time", "balancedness": "mean balancedness"}
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rules = document["problem"]
    table.add_row("among plans with", f"{rules['replicas']} replicas, slots {rules['slots']}")
    table.add_row(name[rules["objective"]], f"{summary['value']:.6f}")
    table.add_row("no plan is better than", f"{summary['bound']:.6f}")
    table.add_row("certified gap", f"{summary['gap']:.4%}")
    if summary["solver_gap"] is not None:
        table.add_row(f"gap by {', '.join(summary['solvers'])}", f"{summary['solver_gap']:.4%}")
    within = f"{summary['layers_within_0.1%']} of {summary['layers']}"
    table.add_row(f"layers within {_CLOSE:.1%}", within)
    table.add_row("worst layer", f"{summary['worst_layer_gap']:.4%}")
    proofs = sorted(summary["proofs"].items(), key=lambda item: (-item[1], item[0]))
    table.add_row("layers proven by", ", ".join(f"{kind} {count}" for kind, count in proofs))
    return table
