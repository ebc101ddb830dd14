"""Tables and small charts for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from craftopt import display
from craftopt.coactivation import Coactivation
from craftopt.comparison import Comparison
from craftopt.display import sparkline
from craftopt.loads import FloatArray, Loads
from craftopt.plan import Plan
from craftopt.recordings import foreseen, in_words, looks_made_up, windows_enough
from craftopt.routing import Dispatch
from craftopt.routing.timing import DispatchFigures
from craftopt.traces import Trace
from craftopt.traffic import NOT_MEASURED, Traffic, traffic_summary
from craftopt.verification import Certificate

# Loads are enough for planning where the hottest experts' shares are known this well, relative.
STABLE = 0.05


def rich_table(table: display.Table) -> Table:
    """Lay out a table for a terminal; figures of windows not planned on stand out."""
    result = plain_table(table.title)
    for place, name in enumerate(table.header):
        result.add_column(
            name,
            justify="right" if place else "left",
            style="bold" if name == "\nserved" else None,
        )
    if not table.header:
        result.show_header = False
        result.add_column(style="dim")
        result.add_column(overflow="fold")
    for row in table.rows:
        result.add_row(*row)
    result.caption = "\n".join(table.notes)
    result.caption_justify = "left"
    return result


def domains_tables(results: Mapping[str, Comparison]) -> list[Table]:
    """Lay out served figures by method, a column per domain left out, and the mean.

    Balancedness, or the activated copies where these are the objective; and where traffic was
    measured, relative time and critical nodes.
    """
    first = next(iter(results.values()))
    names = ["balancedness" if first.problem.goal.even_dispatch else "activated"]
    if first.traffic is not None:
        names += ["relative_time", "critical_nodes"]
    tables = [_domains_table(results, name) for name in names]
    notes = [f"{row.method}: {row.note}" for row in first.rows if row.note]
    if first.traffic is None and first.problem.nodes > 1:
        notes.append(f"Traffic between nodes is {NOT_MEASURED}.")
    tables[-1].caption = "\n".join(notes)
    tables[-1].caption_justify = "left"
    return tables


def _domains_table(results: Mapping[str, Comparison], name: str) -> Table:
    first = next(iter(results.values()))
    problem = first.problem
    table = plain_table(
        f"{name.replace('_', ' ')} of the domain left out: {problem.gpus} GPUs, {problem.replicas} "
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
    return table


def loads_table(loads: Loads, name: str) -> Table:
    """Lay out what loads hold, with the skew of every layer, and whether they are enough."""
    total = loads.total().tokens[0]
    hottest = total.max(axis=1) / total.mean(axis=1)
    spread = np.array([gini(layer) for layer in total])
    rows = {"format": name} | loads.summary()
    rows |= {
        "hottest expert / mean": f"{np.median(hottest):.2f} median, {hottest.max():.2f} most",
        "by layer": sparkline(hottest),
        "Gini": f"{np.median(spread):.3f} median, {spread.max():.3f} most",
        "digest": loads.digest[:16],
    }
    if loads.windows > 1:
        rows["foreseen"] = f"{foreseen(loads)[1]:.0%} of a window's skew, by the other windows"
        rows["enough windows"] = in_words(windows_enough(loads), loads.windows)
    made_up = looks_made_up(loads)
    if made_up:
        rows["looks made up"] = made_up
    error = share_error(loads)
    if error is None:
        rows["unit"] = "not whole numbers, so no counts: nothing is said on sampling"
        return _pairs("loads", rows)
    layer = int(error.argmax())
    share = f"known to {error[layer]:.1%} in layer {loads.layer_ids[layer]}, the least known one"
    rows["hottest expert's share"] = share
    if error[layer] > STABLE:
        rows["too few tokens"] = (
            f"its relative standard error is above {STABLE:.0%}: record "
            f"{math.ceil((error[layer] / STABLE) ** 2)} times as many"
        )
    return _pairs("loads", rows)


def trace_table(trace: Trace, name: str) -> Table:
    """Lay out what a token trace holds."""
    return _pairs("token trace", {"format": name} | trace.summary())


def pairs_table(pairs: Coactivation, name: str) -> Table:
    """Lay out what pair counts hold."""
    return _pairs("pair counts", {"format": name} | pairs.summary())


def plan_table(plan: Plan, name: str, traffic: Traffic | None = None) -> Table:
    """Lay out what a plan holds, and what its GPUs send."""
    return _pairs("plan", {"format": name} | plan.summary() | traffic_summary(traffic))


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


def plain_table(title: str) -> Table:
    """Make an empty table in the style of this package."""
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)


def _pairs(title: str, rows: Mapping[str, str]) -> Table:
    return rich_table(display.Table(title, (), tuple(rows.items())))
