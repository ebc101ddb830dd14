"""Plan, compare, evaluate, info."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import craftopt as co
from craftopt.cli.shared import (
    AsJson,
    Blend,
    Dispatch,
    Gpus,
    Groups,
    Holdout,
    LoadsArgument,
    MaxCopies,
    Nodes,
    ObjectiveOption,
    PerLayer,
    Replicas,
    Seed,
    Slots,
    Workers,
    make_problem,
    print_json,
    print_rich,
    progress,
    read_source,
)
from craftopt.errors import InputError


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
    problem = make_problem(
        read_source(loads), gpus, nodes, replicas, replicas_per_layer, slots, objective, groups,
        max_copies,
    )  # fmt: skip
    with progress(f"planning with {method}") as report:
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
        print_json(
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

    print_rich(result_table(result))
    if output is not None:
        print_rich(f"wrote {output}")


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
    planned, served = read_source(loads), None
    if holdout is not None and holdout != "domains":
        planned, served = co.holdout(planned, holdout)
        if blend is not None:
            served = co.blend(served, blend, seed=seed)
    problem = make_problem(
        planned, gpus, nodes, replicas, replicas_per_layer, slots, objective, groups, max_copies
    )
    names: list[str] | None = [name.strip() for name in methods.split(",")]
    if names == ["all"]:
        names = None
    with progress("comparing") as report:
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
            print_json({domain: result.to_dict() for domain, result in results.items()})
        else:
            from craftopt.report.tables import domains_table  # noqa: PLC0415

            print_rich(domains_table(results))
        return
    if as_json:
        print_json(result.to_dict())
        return
    from craftopt.report.tables import comparison_table  # noqa: PLC0415

    print_rich(comparison_table(result))


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
    scored = co.evaluate(held, read_source(loads), dispatch.lower())
    if as_json:
        print_json(
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

    print_rich(evaluation_table(scored))


def info(loads: LoadsArgument, as_json: AsJson = False) -> None:
    """Say what a file of loads holds."""
    held = read_source(loads)
    if as_json:
        print_json(
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

    print_rich(loads_table(held))
