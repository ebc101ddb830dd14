"""Advise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

import craftopt as co
from craftopt.cli.shared import (
    AsJson,
    Gpus,
    Groups,
    LoadsArgument,
    Nodes,
    PairsOption,
    Reader,
    Seed,
    TraceOption,
    Workers,
    print_json,
    print_rich,
    progress,
    reading,
    writable,
)
from craftopt.cli.traffic import FACTS, GPU, MODEL, SETTINGS, read_constants
from craftopt.problem import SlotRule


@reading
def advise(
    reader: Reader,
    loads: LoadsArgument,
    model: Annotated[str, MODEL],
    gpu: Annotated[str, GPU],
    gpus: Gpus,
    nodes: Nodes = 1,
    input_tokens: Annotated[int, typer.Option(help="Prompt tokens per request.")] = 4096,
    output_tokens: Annotated[int, typer.Option(help="Generated tokens per request.")] = 256,
    ttft: Annotated[float | None, typer.Option(help="Most seconds to the first token.")] = None,
    tpot: Annotated[float | None, typer.Option(help="Most seconds between tokens.")] = None,
    settings: Annotated[list[str] | None, SETTINGS] = None,
    facts: Annotated[Path | None, FACTS] = None,
    slots: Annotated[
        str, typer.Option(help="Memory layouts to consider, separated by commas.")
    ] = "uniform,even",
    holdout: Annotated[
        str, typer.Option(help="Windows to score on and not to plan on, as for compare.")
    ] = "odd-even",
    trace: TraceOption = None,
    coactivation: PairsOption = None,
    groups: Groups = None,
    seed: Seed = 0,
    workers: Workers = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            callback=writable,
            help="Plan the recommended budget with all steps and write plan.json.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how many replicas to pay for, and why: memory, KV cache, modelled goodput."""
    from craftopt.serving import find_gpu, find_model, read_facts  # noqa: PLC0415

    models, devices = read_facts(facts) if facts is not None else ({}, {})
    constants: dict[str, Any] = {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "ttft": ttft,
        "tpot": tpot,
    }
    constants.update(read_constants(settings))
    with progress("advising") as report:
        held = reader.loads(loads)
        tokens, pairs = reader.tokens(trace, coactivation, held.layer_ids, held.experts)
        advice = co.advise(
            held,
            find_model(model, models),
            find_gpu(gpu, devices),
            gpus,
            nodes,
            coactivation=pairs if tokens is None else tokens,
            slots=[cast(SlotRule, rule.strip()) for rule in slots.split(",")],
            holdout=holdout,
            expert_groups=groups,
            seed=seed,
            workers=workers,
            progress=report,
            **constants,
        )
        if output is not None:
            report("planning what is recommended with all steps")
            best = advice.recommended
            plan = co.solve(best.problem, "fast", seed=seed, workers=workers).plan
            plan.save(output)
    if as_json:
        print_json(advice.to_dict())
        return
    from craftopt.reporting.serving import advice_tables  # noqa: PLC0415

    print_rich(advice_tables(advice))
    if output is not None:
        scored = co.evaluate(plan, best.problem.loads, best.dispatch)
        print_rich(
            f"wrote {output}, planned with all steps: fullest/mean on the planned windows "
            f"{scored.relative_time:.3f} (above {best.relative_time_planned:.3f})"
        )
