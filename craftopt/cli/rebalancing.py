"""Rebalance."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer

import craftopt as co
from craftopt.cli.running import running
from craftopt.cli.shared import (
    AsJson,
    Groups,
    LoadsArgument,
    MaxCopies,
    ObjectiveOption,
    PlanArgument,
    PlannedDispatchOption,
    PlanOutput,
    PlanSlots,
    Reader,
    Seed,
    numbers_of,
    print_json,
    print_rich,
    progress,
    reading,
    slots_of,
    writable,
)
from craftopt.cli.traffic import Pricing, pricing
from craftopt.documents import write_atomically
from craftopt.errors import CraftoptWarning, FormatError, InputError, whole
from craftopt.loads import layer_text
from craftopt.objective import ObjectiveName
from craftopt.problem import SlotRule

# Shares of all copies at which the curve is shown.
SHARES = (0.01, 0.02, 0.05, 0.1, 0.25)


@reading
@pricing
@running
def rebalance(
    reader: Reader,
    pricing: Pricing,
    workers: int | co.Executor | None,
    plan: PlanArgument,
    loads: LoadsArgument,
    gpus: Annotated[
        int | None,
        typer.Option(
            help="GPUs afterwards, fewer or more than the plan has: the last ones leave or come. "
            "Of an engine's map, which does not say its GPUs, also those before."
        ),
    ] = None,
    max_moves: Annotated[
        int | None, typer.Option(help="Most copies on GPUs that did not host them.")
    ] = None,
    max_bytes: Annotated[
        float | None, typer.Option(help="Most bytes to send; needs --expert-bytes.")
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(help="Most time to send; needs --expert-bytes and --link-bytes-per-second."),
    ] = None,
    expert_bytes: Annotated[float | None, typer.Option(help="Bytes of one expert.")] = None,
    link_bytes_per_second: Annotated[
        float | None, typer.Option(help="Speed of a GPU's link.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(metavar="PLAN", help="Make no plan: relabel the GPUs of this one."),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Extra copies over all layers; as in the plan by default.")
    ] = None,
    slots: PlanSlots = None,
    objective: ObjectiveOption = "time",
    nodes: Annotated[int | None, typer.Option(help="Nodes; as in the plan by default.")] = None,
    groups: Groups = None,
    max_copies: MaxCopies = None,
    dispatch: PlannedDispatchOption = "even",
    all_windows: Annotated[
        bool,
        typer.Option(
            "--all-windows",
            help="Plan for all windows, not only for those of the last one's kind of traffic.",
        ),
    ] = False,
    dead: Annotated[
        str | None,
        typer.Option(metavar="GPUS", help="Dead GPUs, separated by commas, besides the plan's."),
    ] = None,
    seed: Seed = 0,
    output: PlanOutput = None,
    steps: Annotated[
        Path | None,
        typer.Option(metavar="FILE", callback=writable, help="Write the ordered migration steps."),
    ] = None,
    staging: Annotated[int, typer.Option(help="Spare slots per GPU during migration.")] = 1,
    as_json: AsJson = False,
) -> None:
    """From the plan that serves to a better one for new loads, with few copies moved."""
    if to == "-" and "-" in (plan, loads):
        raise InputError("stdin can be one of the plans or the loads, not two of them")
    old, held = _all_layers(*_old_plan(reader, plan, loads, gpus))
    if gpus is not None:
        old = old.survivors()  # a GPU that comes back is a new one
    gpus = old.gpus if gpus is None else whole("gpus", gpus, 1)
    active = _active(dead, old, gpus)
    if to is not None:
        if dead is not None:
            raise InputError("--to relabels a plan as it is; leave out --dead")
        wanted = reader.plan(to, old.gpus)
        new = co.relabel(wanted, old, within_nodes=groups is not None)
        facts: dict[str, Any] = {
            "moves before relabelling": co.count_moves(wanted, old),
            "moves": co.count_moves(new, old),
            "relative time before": co.evaluate(old, held).relative_time,
            "relative time": co.evaluate(new, held).relative_time,
        }
        curve: tuple[tuple[int, float], ...] = ()
        note = ""
    else:
        problem = co.Problem(
            held,
            gpus,
            nodes=old.nodes if nodes is None else nodes,
            replicas=_replicas(old, gpus) if replicas is None else replicas,
            slots=slots_of(old.survivors()) if slots is None else cast(SlotRule, slots),
            objective=cast(ObjectiveName, objective),
            expert_groups=groups,
            max_copies=max_copies,
        )
        problem = pricing.problem(problem, reader, dispatch)
        with progress("rebalancing"):
            found = co.rebalance(
                problem,
                old,
                max_moves,
                max_bytes=max_bytes,
                max_seconds=max_seconds,
                expert_bytes=expert_bytes,
                link_bytes_per_second=link_bytes_per_second,
                all_windows=all_windows,
                active=active,
                seed=seed,
                workers=workers,
            )
        if not found.has_plan:
            raise InputError(found.message)
        new = found.plan
        name = problem.goal.label
        note = "" if found.problem.loads == held else f"{found.message}; --all-windows uses them"
        facts = {
            "moves": found.moves,
            f"{name} before": found.previous_objective,
            name: found.objective,
            **_sent(found),
            "bound": found.bound,
            "breaks": list(found.violations),
        }
        every = int(new.slots.sum())
        points = [round(share * every) for share in SHARES]
        curve = found.curve([most for most in points if most < found.moves] + [found.moves])
    migration = co.plan_migration(old, new, staging=staging, active=active)
    facts["share of copies moved"] = facts["moves"] / int(new.slots.sum())
    facts["rounds"] = migration.rounds
    if expert_bytes is not None:
        facts["bytes"] = round(facts["moves"] * expert_bytes)
        if link_bytes_per_second is not None:
            facts["seconds"] = migration.seconds(expert_bytes, link_bytes_per_second)
            before, after = facts.get("relative time before"), facts.get("relative time")
            if before is not None and after < before:
                # As long under the old plan would have taken before / after times the time.
                facts["seconds until it pays"] = facts["seconds"] / (before / after - 1)
    if output is not None:
        new.save(output)
    if steps is not None:
        write_atomically(steps, migration.to_json())
    if as_json:
        named = {key.replace(" ", "_"): value for key, value in facts.items()}
        print_json(
            {
                **named,
                "note": note,
                "curve": curve,
                "output": None if output is None else str(output),
            }
        )
        return
    from craftopt.reporting.tables import rebalancing_table  # noqa: PLC0415

    print_rich(rebalancing_table(facts, curve))
    if note:
        print_rich(note)
    for path in (output, steps):
        if path is not None:
            print_rich(f"wrote {path}")


def _sent(found: Any) -> dict[str, float]:
    """Take apart time and traffic, where the latter is known."""
    if found.scored is None:
        return {}
    names = ("nodes_per_token", "remote_nodes", "critical_nodes", "gpus_per_token")
    traffic = {name.replace("_", " "): getattr(found.scored.traffic, name) for name in names}
    return {"relative time": found.scored.relative_time, **traffic}


def _all_layers(plan: co.Plan, loads: co.Loads) -> tuple[co.Plan, co.Loads]:
    """Give layers that the loads lack no tokens, so that they stay in the plan as they are."""
    position = {number: index for index, number in enumerate(loads.layer_ids.tolist())}
    used = loads.layer_ids[loads.tokens.any(axis=(0, 2))]
    missing = set(plan.layer_ids.tolist()) - set(used.tolist())
    if not np.isin(used, plan.layer_ids).all() or plan.experts != loads.experts:
        plan.check_layers(loads, "loads")
    tokens = np.zeros((loads.windows, plan.layers, loads.experts))
    for layer, number in enumerate(plan.layer_ids.tolist()):
        if number in position:
            tokens[:, layer] = loads.tokens[:, position[number]]
    if missing:
        warnings.warn(
            f"the layers {layer_text(sorted(missing))} of the plan have no tokens and stay as they "
            "are",
            CraftoptWarning,
            stacklevel=2,
        )
    return plan, co.Loads(tokens, plan.layer_ids, loads.window_names)


def _old_plan(reader: Reader, plan: str, loads: str, gpus: int | None) -> tuple[co.Plan, co.Loads]:
    """Read the old plan and the loads; --gpus is the map's, too, where it does not say its own."""
    if gpus is not None and plan != "-":
        with suppress(FormatError):
            return reader.whole_plan(plan, loads, None)
    return reader.whole_plan(plan, loads, gpus)


def _replicas(old: co.Plan, gpus: int) -> int:
    """Budget of as many copies per GPU as the old plan has, and of one copy of every expert.

    It is that of all GPUs, as if none were dead: `rebalance` takes off what the dead ones held.
    """
    alive = old.gpus - len(old.dead)
    copies = int(old.slots.sum())
    if gpus != alive:
        copies = copies * gpus // alive
        least = -(-old.experts // gpus) * gpus if slots_of(old) == "uniform" else old.experts
        copies = max(copies, least * old.layers)
    return copies - old.experts * old.layers


def _active(
    dead: str | None, old: co.Plan, gpus: int
) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    if dead is None:
        return None
    active = ~np.isin(np.arange(gpus), old.dead)
    for gpu in numbers_of("--dead", dead):
        if gpu >= gpus:
            raise InputError(f"--dead names {gpu}; the GPUs are 0..{gpus - 1}")
        active[gpu] = False
    if not active.any():
        raise InputError(f"--dead names all {gpus} GPUs of the plan; at least one must be alive")
    return active
