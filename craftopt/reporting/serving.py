"""Advice on budgets: tables for a terminal."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from craftopt.reporting.tables import plain_table, rich_table
from craftopt.serving import Advice


def advice_tables(advice: Advice) -> Group:
    """Lay out the answer, its reasons, the candidates, and what would flip it."""
    deployment, workload = advice.deployment, advice.workload
    limits = [
        f"{name} at most {limit:g} s"
        for name, limit in (("TTFT", workload.ttft), ("TPOT", workload.tpot))
        if limit is not None
    ]
    head = (
        f"{deployment.model.name} on {deployment.gpus} x {deployment.gpu.name}, "
        f"{deployment.nodes} node(s); {workload.input_tokens} tokens in, "
        f"{workload.output_tokens} out; {', '.join(limits) or 'no limit on waiting'}"
    )
    parts: list[RenderableType] = [
        Text(head, style="bold"),
        Text(advice.answer),
        Text(),
        rich_table(replace(advice.table(), notes=())),
        Text(),
    ]
    parts += [Text(f"- {reason}") for reason in advice.reasons]
    parts += [Text(), _seconds(advice), Text(), _sensitivity(advice)]
    if advice.loadable is not None:
        parts.append(Text())
        parts.append(Text(f"to load {advice.loadable.name}:", style="bold"))
        parts += [Text(f"  {engine}: {flag}") for engine, flag in advice.flags().items()]
    for fact in (deployment.model, deployment.gpu):
        if fact.note:
            parts.append(Text(f"{fact.name}: {fact.note}", style="dim"))
    return Group(*parts)


def _seconds(advice: Advice) -> Table:
    table = plain_table("where the time goes, ms per step on the windows served")
    table.add_column("plan")
    table.add_column("step")
    names = ("experts", "exchange", "attention", "dense", "overhead", "total")
    for name in names:
        table.add_column(name, justify="right")
    for candidate in advice.compared:
        for phase in ("decode", "prefill"):
            if phase == "prefill" and advice.deployment.prefill_elsewhere:
                continue
            step = getattr(candidate.served, phase)
            cells = [f"{getattr(step, name) * 1e3:.2f}" for name in names]
            table.add_row(candidate.name if phase == "decode" else "", phase, *cells)
    return table


def _sensitivity(advice: Advice) -> Table:
    table = plain_table("what would change the answer, all else kept")
    table.add_column("constant")
    table.add_column("now", justify="right")
    table.add_column("then")
    for row in advice.sensitivity:
        flips = "; ".join(f"{value}: {winner}" for value, winner in row.flips)
        table.add_row(row.constant, row.value, flips or f"the same for {row.tried}")
    return table
