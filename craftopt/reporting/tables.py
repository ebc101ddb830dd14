"""Tables and small charts for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from craftopt.coactivation import Coactivation, standard_error
from craftopt.comparison import Comparison
from craftopt.evaluation import Evaluation
from craftopt.loads import FloatArray, Loads
from craftopt.objective import ObjectiveName
from craftopt.plan import Plan
from craftopt.result import Result
from craftopt.routing import Dispatch
from craftopt.routing.timing import DispatchFigures
from craftopt.traces import Trace
from craftopt.traffic import Traffic
from craftopt.verification import Certificate

# Loads are enough for planning where the hottest experts' shares are known this well, relative.
STABLE = 0.05

# What a bound rules out, by objective.
_BOUNDS: dict[ObjectiveName, str] = {
    "time": "a planned relative time below",
    "balancedness": "a planned balancedness above",
    "activated": "fewer planned activated copies than",
}

_NOT_MEASURED = "Traffic between nodes is not measured: pass --trace or --coactivation."

_BARS = "▁▂▃▄▅▆▇█"


def comparison_table(comparison: Comparison) -> Table:
    """Lay out methods side by side, planned windows beside served ones."""
    problem = comparison.problem
    both = comparison.served is not None
    title = (
        f"{problem.loads.layers} layers x {problem.loads.experts} experts on {problem.gpus} GPUs, "
        f"{problem.nodes} node(s), {problem.replicas} replicas, slots {problem.slots}"
    )
    decode = not problem.goal.even_dispatch
    if comparison.dispatch != "even":
        title += f", dispatch {comparison.dispatch} (gaps: {'exact' if decode else 'even'})"
    if comparison.served is not None:
        title += f"\nplanned on {problem.loads.windows} windows, "
        title += f"served {comparison.served.windows} that no plan has seen"
    table = plain_table(title)
    table.add_column("method")
    for name in ("replicas", "slots/GPU"):
        table.add_column(name, justify="right")
    columns = {"balanced": "balancedness", "worst layer": "worst_layer", "time": "relative_time"}
    if decode:
        columns["activated"] = "activated"
    if comparison.traffic is not None:
        columns |= {"nodes": "nodes_per_token", "critical": "critical_nodes"}
    for name in columns:
        if both:
            table.add_column(f"{name}\nplanned", justify="right")
            table.add_column("\nserved", justify="right", style="bold")
        else:
            table.add_column(name, justify="right")
    for name in ("gap", "dup.", "ms"):
        table.add_column(name, justify="right")
    for row in comparison.rows:
        if row.planned is None or row.slots_per_gpu is None:
            continue
        few, most = row.slots_per_gpu
        cells = [row.method, str(row.replicas), str(few) if few == most else f"{few}-{most}"]
        cells += [
            "" if scores is None else f"{getattr(scores, figure):.3f}"
            for figure in columns.values()
            for scores in ((row.planned, row.served) if both else (row.planned,))
        ]
        cells += [
            "-" if row.gap is None else f"{row.gap:.1%}",
            str(row.duplicates),
            f"{row.milliseconds:,.0f}" if row.milliseconds >= 10 else f"{row.milliseconds:.1f}",
        ]
        table.add_row(*cells)
    notes = [f"{row.method}: {row.note}" for row in comparison.rows if row.note]
    bound = f"No plan has {_BOUNDS[problem.objective]} {comparison.bound:.4f}"
    lines = [f"{bound}: gaps are to that bound."]
    if comparison.traffic is not None:
        lines.append(f"Nodes per token, and those of the busiest node, from {comparison.traffic}.")
    elif problem.nodes > 1:
        lines.append(_NOT_MEASURED)
    table.caption = "\n".join([*lines, *notes])
    table.caption_justify = "left"
    return table


def domains_table(results: Mapping[str, Comparison]) -> Table:
    """Lay out a served figure by method, a column per domain left out, and the mean.

    Balancedness, or the activated copies where these are the objective.
    """
    first = next(iter(results.values()))
    problem = first.problem
    name = "balancedness" if problem.goal.even_dispatch else "activated"
    table = plain_table(
        f"{name} of the domain left out: {problem.gpus} GPUs, {problem.replicas} "
        f"replicas, slots {problem.slots}, objective {problem.objective}, "
        f"dispatch {first.dispatch}"
    )
    table.add_column("method")
    for domain in results:
        table.add_column(domain, justify="right", overflow="fold")
    table.add_column("mean", justify="right", style="bold")
    for rows in zip(*(result.rows for result in results.values()), strict=True):
        scores = [getattr(row.served, name) for row in rows if row.served is not None]
        if len(scores) == len(rows):
            cells = [f"{score:.4f}" for score in (*scores, sum(scores) / len(scores))]
            table.add_row(rows[0].method, *cells)
    table.caption = "\n".join(f"{row.method}: {row.note}" for row in first.rows if row.note)
    table.caption_justify = "left"
    return table


def result_table(result: Result) -> Table:
    """Lay out one plan: how good it is, how far from the bound, what it costs."""
    plan, problem = result.plan, result.problem
    totals = plan.slots.sum(axis=0)
    name = problem.goal.label
    rows = [
        ("status", result.status.value + (f" (stopped by {result.limit})" if result.limit else "")),
        (name, f"{result.objective:.4f}"),
        ("bound", f"{result.bound:.4f}"),
        ("gap", "-" if result.gap is None else f"{result.gap:.3%}"),
        ("replicas", f"{plan.replicas} of {problem.replicas}"),
        ("per layer", sparkline(plan.layer_replicas)),
        ("slots per GPU", f"{totals.min()}-{totals.max()} over all layers"),
        ("time", f"{result.runtime * 1e3:.1f} ms"),
    ]
    if result.message:
        rows.append(("note", result.message))
    rows += [("breaks", text) for text in result.violations]
    return _pairs(f"{result.method} on {problem.gpus} GPUs", rows)


def evaluation_table(evaluation: Evaluation) -> Table:
    """Lay out what a plan scores on loads."""
    layers = evaluation.balancedness.mean(axis=0)
    windows, count = evaluation.balancedness.shape
    rows = [
        ("mean balancedness", f"{evaluation.mean_balancedness:.4f}"),
        ("worst layer", f"{evaluation.worst_layer:.4f}"),
        ("relative time", f"{evaluation.relative_time:.4f}"),
        ("by layer", sparkline(layers)),
    ]
    rows += [
        (f"{name} figure", f"{value:.4f}") for name, value in evaluation.engine_metrics.items()
    ]
    rows += _traffic_rows(evaluation.traffic)
    return _pairs(f"{windows} windows x {count} layers", rows)


def loads_table(loads: Loads, name: str) -> Table:
    """Lay out what loads hold, with the skew of every layer, and whether they are enough."""
    total = loads.total().tokens[0]
    hottest = total.max(axis=1) / total.mean(axis=1)
    spread = np.array([gini(layer) for layer in total])
    windows = ", ".join(loads.window_names[:3]) + (", ..." if loads.windows > 3 else "")
    rows = [
        ("format", name),
        ("windows", f"{loads.windows} ({windows})"),
        ("layers", f"{loads.layers} (model's {loads.layer_ids.min()}..{loads.layer_ids.max()})"),
        ("experts", str(loads.experts)),
        ("token assignments", f"{loads.tokens.sum():,.{0 if loads.tokens.sum() >= 10 else 4}f}"),
        ("hottest expert / mean", f"{np.median(hottest):.2f} median, {hottest.max():.2f} most"),
        ("by layer", sparkline(hottest)),
        ("Gini", f"{np.median(spread):.3f} median, {spread.max():.3f} most"),
        ("digest", loads.digest[:16]),
    ]
    error = share_error(loads)
    if error is None:
        rows.append(("unit", "not whole numbers, so no counts: nothing is said on sampling"))
        return _pairs("loads", rows)
    layer = int(error.argmax())
    share = f"known to {error[layer]:.1%} in layer {loads.layer_ids[layer]}, the least known one"
    rows.append(("hottest expert's share", share))
    if error[layer] > STABLE:
        rows.append(
            (
                "too few tokens",
                f"its relative standard error is above {STABLE:.0%}: record "
                f"{math.ceil((error[layer] / STABLE) ** 2)} times as many",
            )
        )
    return _pairs("loads", rows)


def trace_table(trace: Trace, name: str) -> Table:
    """Lay out what a token trace holds."""
    rows = [
        ("format", name),
        ("tokens", f"{trace.tokens:,}"),
        ("layers", f"{trace.layers} (model's {trace.layer_ids.min()}..{trace.layer_ids.max()})"),
        ("experts per token", str(trace.topk_ids.shape[2])),
        ("experts", str(trace.experts)),
        ("domains", ", ".join(trace.domain_names) or "-"),
        ("sequences", "yes" if trace.sequence is not None else "-"),
        _error_row(standard_error(trace.tokens)),
    ]
    return _pairs("token trace", rows)


def pairs_table(pairs: Coactivation, name: str) -> Table:
    """Lay out what pair counts hold."""
    least, most = int(pairs.tokens.min()), int(pairs.tokens.max())
    rows = [
        ("format", name),
        ("layers", f"{pairs.layers} (model's {pairs.layer_ids.min()}..{pairs.layer_ids.max()})"),
        ("experts per token", str(pairs.top_k)),
        ("experts", str(pairs.experts)),
        ("tokens per layer", f"{least:,}" if least == most else f"{least:,} to {most:,}"),
        _error_row(pairs.standard_error),
        ("digest", pairs.digest[:16]),
    ]
    return _pairs("pair counts", rows)


def plan_table(plan: Plan, name: str, traffic: Traffic | None = None) -> Table:
    """Lay out what a plan holds, and what its GPUs send."""
    least, most = plan.slots.min(), plan.slots.max()
    totals = plan.slots.sum(axis=0)
    rows = [
        ("format", name),
        ("layers", f"{plan.layers} (model's {plan.layer_ids.min()}..{plan.layer_ids.max()})"),
        ("experts", str(plan.experts)),
        ("GPUs", f"{plan.gpus} in {plan.nodes} node(s)"),
        ("replicas", str(plan.replicas)),
        ("per layer", sparkline(plan.layer_replicas)),
        ("slots per GPU and layer", str(least) if least == most else f"{least}-{most}"),
        ("slots per GPU", f"{totals.min()}-{totals.max()} over all layers"),
        ("duplicates", str(plan.duplicates)),
    ]
    rows += _traffic_rows(traffic)
    return _pairs("plan", rows)


def certificate_table(certificate: Certificate) -> Table:
    """Lay out what a certificate proves."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, text in certificate.summary().items():
        table.add_row(name, text)
    return table


def rebalancing_table(facts: Mapping[str, Any], curve: Sequence[tuple[int, float]]) -> Table:
    """Lay out what a rebalancing moves and gains, and what fewer moves would reach."""
    table = plain_table("rebalance")
    table.pad_edge = True
    table.show_header = False
    for key, value in facts.items():
        if isinstance(value, list):
            for text in value:
                table.add_row(key, text)
        elif key.startswith("share"):
            table.add_row(key, f"{value:.1%}")
        elif value is not None:
            table.add_row(key, f"{value:,}" if value == int(value) else f"{value:.4f}")
    for most, reached in curve:
        table.add_row(f"with {most:,} moves", f"{reached:.4f}")
    return table


def dispatch_table(batches: Loads, found: Mapping[Dispatch, DispatchFigures]) -> Table:
    """Lay out the figures of dispatch rules side by side, layer by layer."""
    table = Table(
        title=f"{batches.windows} batches of {batches.tokens[0, 0].sum():.0f} token assignments: "
        "means of the fullest GPU, and microseconds per batch",
        box=None,
    )
    table.add_column("layer", justify="right")
    names = {"max_activated": "copies", "max_tokens": "tokens", "microseconds": "µs"}
    for rule in found:
        for name in names.values():
            table.add_column(f"{rule}\n{name}", justify="right", overflow="fold")
    rows = [*map(str, batches.layer_ids.tolist()), "mean"]
    for position, row in enumerate(rows):
        cells = [row]
        for figures in found.values():
            for key, decimals in zip(names, (2, 1, 1), strict=True):
                values = getattr(figures, key)
                mean = values.mean() if row == "mean" else values[position]
                cells.append(f"{mean:.{decimals}f}")
        table.add_row(*cells, end_section=position == len(rows) - 2)
    return table


def share_error(loads: Loads) -> FloatArray | None:
    """Estimate how well every layer's hottest expert is known, from all windows together.

    Parameters
    ----------
    loads : Loads

    Returns
    -------
    float64 [layers] or None
        Relative standard error of the hottest expert's share of the tokens, as if every token
        chose by itself. Neighbouring tokens choose alike, so the true error is larger. None where
        the loads are no whole numbers, and so no counts.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.reporting.tables import share_error
    >>> share_error(co.Loads([[100, 100, 100, 100]])).round(3)
    array([0.087])
    """
    if (loads.tokens % 1).any():
        return None
    total = loads.total().tokens[0]
    hottest = total.max(axis=1)
    share = hottest / np.maximum(total.sum(axis=1), 1e-300)
    error: FloatArray = np.sqrt((1.0 - share) / np.maximum(hottest, 1e-300))
    return error


def sparkline(values: npt.ArrayLike) -> str:
    """Draw one bar per value, from the least to the most.

    Examples
    --------
    >>> from craftopt.reporting.tables import sparkline
    >>> sparkline([0, 1, 2, 3])
    '▁▃▆█ (0 to 3)'
    """
    array = np.asarray(values, dtype=np.float64)
    low, high = float(array.min()), float(array.max())
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    bars = "".join(_BARS[round((value - low) * scale)] for value in array.tolist())
    return f"{bars} ({low:.3g} to {high:.3g})"


def gini(values: FloatArray) -> float:
    """Compute the Gini coefficient of loads, 0 = equal, towards 1 = all on one.

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt.reporting.tables import gini
    >>> gini(np.array([1.0, 1.0])), gini(np.array([0.0, 1.0]))
    (0.0, 0.5)
    """
    ordered = np.sort(values)
    total = float(ordered.sum())
    if total == 0:
        return 0.0
    ranks = np.arange(1, ordered.size + 1)
    return float((2 * ranks - ordered.size - 1) @ ordered / (ordered.size * total))


def _traffic_rows(traffic: Traffic | None) -> list[tuple[str, str]]:
    if traffic is None:
        return [("traffic", "not measured: pass --trace or --coactivation")]
    kind = "estimated from pair counts" if traffic.estimated else "exact for the trace"
    return [
        ("nodes per token", f"{traffic.nodes_per_token:.4f}"),
        ("remote nodes", f"{traffic.remote_nodes:.4f}"),
        ("critical nodes", f"{traffic.critical_nodes:.4f} (the busiest of each window)"),
        ("GPUs per token", f"{traffic.gpus_per_token:.4f}"),
        ("critical GPUs", f"{traffic.critical_gpus:.4f}"),
        ("traffic", f"{kind}; windows: {traffic.windows}"),
        _error_row(traffic.standard_error),
    ]


def _error_row(error: float) -> tuple[str, str]:
    return ("standard error", f"{error:.3f} nodes per token, in one layer")


def plain_table(title: str) -> Table:
    """Make an empty table in the style of this package."""
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)


def _pairs(title: str, rows: Sequence[tuple[str, str]]) -> Table:
    table = plain_table(title)
    table.show_header = False
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
