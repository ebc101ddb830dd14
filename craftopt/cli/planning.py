"""Plan, compare, evaluate, info."""

from __future__ import annotations

import dataclasses
from typing import Annotated, cast, get_args

import typer

import craftopt as co
from craftopt.cli.running import running
from craftopt.cli.shared import (
    AsJson,
    Blend,
    DispatchOption,
    Gpus,
    Groups,
    Holdout,
    LoadsArgument,
    MapGpus,
    MapNodes,
    MaxCopies,
    Nodes,
    ObjectiveOption,
    PairsOption,
    PerLayer,
    PlanArgument,
    PlannedDispatchOption,
    PlanOutput,
    Reader,
    Replicas,
    Seed,
    Slots,
    TraceOption,
    Workers,
    make_problem,
    on_nodes,
    print_json,
    print_rich,
    progress,
    reading,
)
from craftopt.cli.traffic import Pricing, pricing
from craftopt.errors import InputError, choice
from craftopt.problem import PlannedDispatch
from craftopt.routing import DISPATCHES
from craftopt.windows import without_domain


@reading
@pricing
@running
def plan(
    reader: Reader,
    pricing: Pricing,
    workers: int | co.Executor | None,
    loads: LoadsArgument,
    gpus: Gpus,
    nodes: Nodes = 1,
    replicas: Replicas = None,
    replicas_per_layer: PerLayer = None,
    slots: Slots = "free",
    objective: ObjectiveOption = "time",
    groups: Groups = None,
    max_copies: MaxCopies = None,
    dispatch: PlannedDispatchOption = "even",
    method: Annotated[str, typer.Option(help="How to plan.")] = "fast",
    seed: Seed = 0,
    work_limit: Annotated[
        int | None,
        typer.Option(
            help="Most work, in the method's unit: annealing steps per layer (fast), placements of "
            "a layer (nominal), deterministic seconds of CP-SAT (exact)."
        ),
    ] = None,
    time_limit: Annotated[float | None, typer.Option(help="Seconds; a safety stop.")] = None,
    output: PlanOutput = None,
    as_json: AsJson = False,
) -> None:
    """Plan a model, say how good the plan is, and write it to a file."""
    problem = make_problem(
        reader.loads(loads), gpus, nodes, replicas, replicas_per_layer, slots, objective, groups,
        max_copies,
    )  # fmt: skip
    problem = pricing.problem(problem, reader, dispatch)
    with progress(f"planning with {method}") as report:
        result = co.solve(
            problem,
            cast(co.MethodName, method),
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
                **result.to_dict(),
                "output": str(output) if output is not None and result.has_plan else None,
            }
        )
        if not result.has_plan:
            raise typer.Exit(1)
        return
    from craftopt.reporting.tables import rich_table  # noqa: PLC0415

    _ = result.plan  # says why where there is none
    print_rich(rich_table(result.table()))
    if output is not None:
        print_rich(f"wrote {output}")


@reading
@pricing
@running
def compare(
    reader: Reader,
    pricing: Pricing,
    workers: int | co.Executor | None,
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
        str | None,
        typer.Option(
            help="Methods, separated by commas, or all; all but exact, which may take minutes, "
            "if none are named."
        ),
    ] = None,
    holdout: Holdout = None,
    foreign: Annotated[
        str | None,
        typer.Option(metavar="DOMAIN", help="Keep a whole domain apart, as a third column."),
    ] = None,
    blend: Blend = None,
    dispatch: DispatchOption = "even",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Plan with several methods and show them side by side, on unseen windows too."""
    if blend is not None and holdout in (None, "domains"):
        raise InputError(
            "--blend mixes the windows held out: pass one --holdout, such as first-half"
        )
    planned, served, apart = reader.loads(loads), None, None
    if foreign is not None:
        if holdout == "domains":
            raise InputError("--holdout domains holds out every domain; leave out --foreign")
        planned, apart = without_domain(planned, foreign)
    if holdout is not None and holdout != "domains":
        planned, served = co.holdout(planned, holdout)
        if blend is not None:
            served = co.blend(served, blend, seed=seed)
    problem = make_problem(
        planned, gpus, nodes, replicas, replicas_per_layer, slots, objective, groups, max_copies
    )
    rule = choice("dispatch", dispatch, DISPATCHES)
    planned_rule = (
        rule if rule in get_args(PlannedDispatch) and problem.goal.even_dispatch else "even"
    )
    problem = pricing.problem(problem, reader, planned_rule)
    given = problem.coactivation
    tokens = given if isinstance(given, co.Trace) else None
    pairs = given if isinstance(given, co.Coactivation) else None
    names = None if methods is None else [name.strip() for name in methods.split(",")]
    if names == ["all"]:
        names = list(co.methods())
    with progress("comparing") as report:
        if holdout == "domains":
            results = co.compare_domains(
                problem, names, dispatch=rule, trace=tokens, coactivation=pairs,
                seed=seed, workers=workers, progress=report,
            )  # fmt: skip
        else:
            result = co.compare(
                problem, served, names, foreign=apart, dispatch=rule, trace=tokens,
                coactivation=pairs, seed=seed, workers=workers, progress=report,
            )  # fmt: skip
    if holdout == "domains":
        if as_json:
            print_json({domain: result.to_dict() for domain, result in results.items()})
        else:
            from craftopt.reporting.tables import domains_tables  # noqa: PLC0415

            for table in domains_tables(results):
                print_rich(table)
        return
    if as_json:
        print_json(result.to_dict())
        return
    from craftopt.reporting.tables import rich_table  # noqa: PLC0415

    for laid_out in result.tables():
        print_rich(rich_table(laid_out))


@reading
def diagnose(
    reader: Reader,
    loads: LoadsArgument,
    gpus: Gpus,
    nodes: Nodes = 1,
    served: Annotated[
        str | None,
        typer.Option("--map", metavar="PLAN", help="What is served with; experts by id if none."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model, such as deepseek-r1.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Accelerator, such as h200.")] = None,
    trace: TraceOption = None,
    seed: Seed = 0,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Say in a sentence what to do: leave it, place, replicate, or collect more windows first."""
    if served is None:
        today, traffic = None, reader.loads(loads)
    else:
        today, traffic = reader.both(served, loads, gpus, nodes)
        gpus, nodes = today.gpus, today.nodes  # without those that are dead
    tokens, _ = reader.tokens(trace, None, traffic.layer_ids, traffic.experts)
    with progress("diagnosing") as report:
        found = co.diagnose(
            traffic, gpus, nodes, plan=today, model=model, gpu=gpu, trace=tokens, seed=seed,
            workers=workers, progress=report,
        )  # fmt: skip
    if as_json:
        print_json(found.to_dict())
        return
    from craftopt.reporting.tables import rich_table  # noqa: PLC0415

    table = dataclasses.replace(found.table(), title="layer time saved, by budget", notes=())
    print_rich(found.answer)
    print_rich("")
    if found.gains:
        print_rich(rich_table(table))
        print_rich("")
    print_rich("\n".join(f"- {reason}" for reason in found.reasons))


@reading
def evaluate(
    reader: Reader,
    plan: PlanArgument,
    loads: LoadsArgument,
    gpus: MapGpus = None,
    nodes: MapNodes = None,
    dispatch: DispatchOption = "even",
    trace: TraceOption = None,
    coactivation: PairsOption = None,
    as_json: AsJson = False,
) -> None:
    """Score a plan, or the map that an engine serves with, on loads."""
    held, served = reader.both(plan, loads, gpus, nodes)
    tokens, pairs = reader.tokens(trace, coactivation, held.layer_ids, held.experts)
    rule = choice("dispatch", dispatch, DISPATCHES)
    scored = co.evaluate(held, served, rule, trace=tokens, coactivation=pairs)
    if as_json:
        print_json(scored.to_dict())
        return
    from craftopt.reporting.tables import rich_table  # noqa: PLC0415

    print_rich(rich_table(scored.table()))


@reading
def info(
    reader: Reader,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="File or folder of loads, a trace, pair counts or a plan, - for stdin, or an "
            "example's name.",
        ),
    ],
    gpus: MapGpus = None,
    nodes: MapNodes = None,
    trace: TraceOption = None,
    coactivation: PairsOption = None,
    as_json: AsJson = False,
) -> None:
    """Say what a file is and holds: loads, a token trace, pair counts or a plan.

    For a plan, also what its GPUs send, where a trace or pair counts are given.
    """
    from craftopt.reporting.tables import (  # noqa: PLC0415
        loads_table,
        pairs_table,
        plan_table,
        share_error,
        trace_table,
    )

    held: co.Loads | co.Trace | co.Plan | co.Coactivation
    name, held = reader.any(file, gpus)
    if not isinstance(held, co.Plan) and (trace, coactivation, nodes) != (None, None, None):
        raise InputError(f"--trace, --coactivation and --nodes are for plans; this is {name}")
    match held:
        case co.Loads():
            error = share_error(held)
            facts = {**held.to_dict(), "share_error": None if error is None else error.tolist()}
            table = loads_table(held, name)
        case co.Trace():
            facts = held.to_dict()
            table = trace_table(held, name)
        case co.Coactivation():
            facts = held.to_dict()
            table = pairs_table(held, name)
        case _:
            held = on_nodes(held, nodes)
            traffic = _traffic_of(
                held, *reader.tokens(trace, coactivation, held.layer_ids, held.experts)
            )
            facts = {
                "layers": held.layers,
                "experts": held.experts,
                "gpus": held.gpus,
                "nodes": held.nodes,
                "replicas": held.replicas,
                "duplicates": held.duplicates,
                "slots": [int(held.slots.min()), int(held.slots.max())],
                "layer_ids": held.layer_ids.tolist(),
                "traffic": traffic and traffic.to_dict(),
            }
            table = plan_table(held, name, traffic)
    if as_json:
        print_json({"format": name, "kind": type(held).__name__.lower(), **facts})
    else:
        print_rich(table)


def warm_up(
    methods: Annotated[
        list[str] | None, typer.Argument(metavar="METHOD", help="All by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compile what the methods need, once on a machine; plans then start at once."""
    seconds: dict[str, float] = {}
    with progress("compiling") as report:
        for name in methods or co.methods():
            report(name)
            seconds |= co.warm_up([name])
    if as_json:
        print_json(seconds)
        return
    for name, spent in seconds.items():
        print_rich(f"{name}: {spent:.1f} s")


def _traffic_of(
    plan: co.Plan, trace: co.Trace | None, pairs: co.Coactivation | None
) -> co.Traffic | None:
    """Measure a plan's traffic on all tokens together."""
    if trace is not None:
        plan.check_layers(trace, "trace")
        loads = co.Loads(trace.batches(trace.tokens).tokens, plan.layer_ids)
        return co.evaluate(plan, loads, trace=trace).traffic
    if pairs is not None:
        plan.check_layers(pairs, "pair counts")
        loads = co.Loads(pairs.assignments, plan.layer_ids)
        return co.evaluate(plan, loads, coactivation=pairs).traffic
    return None
