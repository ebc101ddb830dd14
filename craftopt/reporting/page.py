"""A verdict and its plans on one page, with jinja2 (the extra ``report``)."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from craftopt.diagnosis import Diagnosis, diagnose
from craftopt.documents import write_atomically
from craftopt.errors import InputError
from craftopt.evaluation import evaluate
from craftopt.loads import BoolArray, Loads
from craftopt.plan import Plan
from craftopt.problem import Problem
from craftopt.rebalancing import relabel
from craftopt.reporting import charts, sections
from craftopt.reporting.commands import commands
from craftopt.reporting.layers import load_map
from craftopt.solving import solve
from craftopt.traces import Trace
from craftopt.windows import without_idle

# Light to dark, so that they are told apart in grey and by the colour-blind (ColorBrewer YlOrBr).
COLOURS = ("#ffffe5", "#fff0b0", "#fec44f", "#ec7014", "#b03a05", "#662506")
# Loads over the mean, in percent, at which the next colour begins.
LIMITS = (75, 105, 125, 160, 220)
# Windows that are shown on their own: those in which today's plan waits longest.
WORST = 6
# Names of plans that were not given.
TODAY, NEW = "experts by id", "new plan"


def report(
    loads: Loads,
    gpus: int,
    nodes: int = 1,
    *,
    path: str | os.PathLike[str],
    plans: Mapping[str, Plan] | None = None,
    source: str = "LOADS",
    **options: Any,
) -> Diagnosis:
    """Write the verdict on a recording, and what it rests on, as one page for a browser.

    The page loads nothing from elsewhere. It has the verdict, the load of every GPU, what copies
    buy, layers with their gaps, the worst windows, traffic between nodes where a trace is given,
    the moves in order where the plan in use is given, the commands for the engines, and what was
    assumed.

    Parameters
    ----------
    loads : Loads
        Windows of traffic, as for `diagnose`.
    gpus, nodes : int
    path : str or os.PathLike
        File to write, such as ``report.html``.
    plans : mapping of str to Plan, optional
        What to show, by name; the first is what is served with today (experts by id, without
        copies, by default). Where it is alone, the plan that the verdict rests on is beside it.
    source : str
        How a command line names the recording, for the commands.
    **options
        ``model``, ``gpu``, ``trace``, ``seed``, ``workers`` and ``progress`` of `diagnose`.

    Returns
    -------
    Diagnosis

    Raises
    ------
    InputError
        As `diagnose`; jinja2 is not installed; a file that cannot be written.

    Examples
    --------
    >>> import craftopt as co, tempfile
    >>> from pathlib import Path
    >>> loads = co.Loads([[[80, 40, 20, 20]], [[70, 50, 30, 10]]] * 10)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = co.report(loads, gpus=2, path=Path(folder, "report.html"))
    ...     found.verdict, Path(folder, "report.html").stat().st_size < 2_000_000
    ('place', True)
    """
    _template()  # fail before the work
    today = next(iter((plans or {}).values()), None)
    found = diagnose(loads, gpus, nodes, plan=today, **options)
    page = report_page(
        loads, found, plans or {}, source, options.get("trace"), options.get("seed", 0)
    )
    write_atomically(path, page)
    return found


def report_page(
    loads: Loads,
    found: Diagnosis,
    plans: Mapping[str, Plan],
    source: str = "LOADS",
    trace: Trace | None = None,
    seed: int = 0,
) -> str:
    """Lay out a diagnosis as one HTML page; see `report`."""
    loads = without_idle(loads)
    several = loads.windows > 1
    planned = np.arange(loads.windows) % 2 == 1 if several else np.ones(1, dtype=bool)
    given, shown = dict(plans), dict(plans)
    if not given:
        problem = Problem(loads, found.gpus, nodes=found.nodes)
        shown[TODAY] = solve(problem, "trivial").plan
    if len(shown) == 1 and found.chosen:
        today = next(iter(shown.values()))
        plan = found.plans[found.chosen.replicas][0]
        shown[NEW] = relabel(plan, today, within_nodes=True) if given else plan
    names, of_view, first_view = _views(loads, next(iter(shown.values())), planned)
    balance = charts.balances(loads, found)
    tables = [sections.layers(loads, shown, planned), sections.worst_windows(loads, shown, planned)]
    if trace is not None and found.nodes > 1:
        tables.append(sections.node_traffic(loads, shown, trace))
    if given and len(shown) > 1:
        tables.append(sections.moves(found, loads, shown))
    maps = [_map(name, plan, loads, of_view) for name, plan in shown.items()]
    layers = loads.layer_ids.tolist()
    data = {"maps": maps, "layers": layers, "gpus": found.gpus, "limits": LIMITS}
    page: str = _template().render(
        title=f"{source}, {found.gpus} GPUs on {found.nodes} nodes",
        found=found,
        why=found.reasons[: len(found.reasons) - len(found.cautions)],
        shares=charts.shares(found),
        views=names,
        shown=first_view,
        maps=maps,
        layers=layers,
        colours=COLOURS,
        steps=[f"below {LIMITS[0] / 100:.2f}", *(f"from {one / 100:.2f}" for one in LIMITS)],
        shade=lambda load: sum(load >= limit for limit in LIMITS),
        charts=list(charts.budget_charts(found, balance)) if balance else [],
        memory="part of the experts' memory" if found.cost is None else "memory per GPU",
        budgets=sections.budgets(found, balance) if balance else None,
        tables=tables,
        commands=list(commands(found, source, next(iter(given), None))),
        assumed=list(_assumed(loads, given, shown, seed)),
        # A "<" in a name must not end the script element.
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )
    return page


def _template() -> Any:
    try:
        import jinja2  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise InputError("a report needs jinja2; pip install 'craftopt[report]'") from None
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return environment.from_string(text)


def _views(loads: Loads, today: Plan, planned: BoolArray) -> tuple[list[str], BoolArray, int]:
    """Name the sets of windows that can be shown, and mark their windows, [views, windows]."""
    windows = loads.windows
    one_by_one = np.eye(windows, dtype=bool)
    if windows == 1:
        return [loads.window_names[0]], one_by_one, 0
    scored = evaluate(today, loads)
    times = scored.max_load.sum(axis=1) / scored.mean_load.sum(axis=1)
    worst = np.sort(np.argsort(-times, kind="stable")[:WORST])
    names = ["all planned windows", "all held-out windows"]
    names += [f"{loads.window_names[w]} ({'planned' if planned[w] else 'held out'})" for w in worst]
    return names, np.vstack([planned, ~planned, one_by_one[worst]]), 1


def _map(name: str, plan: Plan, loads: Loads, of_view: BoolArray) -> dict[str, Any]:
    """Compute loads of GPUs over the mean of their layer, in percent, for every view."""
    scored = evaluate(plan, loads)
    shown, times = [], []
    for windows in of_view:
        most = load_map(plan, loads.select(np.flatnonzero(windows)))
        shown.append(np.rint(100 * most).astype(int).tolist())
        time = scored.max_load[windows].sum() / scored.mean_load[windows].sum()
        layer, gpu = np.unravel_index(most.argmax(), most.shape)
        times.append(
            f"relative time {time:.3f}; fullest: GPU {gpu} in layer {loads.layer_ids[layer]}, "
            f"{shown[-1][layer][gpu] / 100:.2f} times the mean"
        )
    return {"name": name, "loads": shown, "times": times}


def _assumed(
    loads: Loads, given: Mapping[str, Plan], shown: Mapping[str, Plan], seed: int
) -> Iterator[str]:
    yield "Dispatch: even; every copy of an expert serves the same share of its tokens."
    yield (
        f"Windows: {loads.windows} with tokens, every other one planned and the rest held out; "
        f"{loads.layers} layers of {loads.experts} experts; digest {loads.digest[:12]}."
    )
    if given:
        yield "A plan that was given may have been made on windows that are called held out here."
    if NEW in shown:
        yield (
            f"The {NEW} is that of a short search on every other window, to show what was "
            "measured; the commands make the one to serve with, on all windows."
        )
    yield "Plans: " + "; ".join(
        f"{name}, {plan.replicas:,} extra copies" for name, plan in shown.items()
    )
    version = importlib.metadata.version
    versions = ", ".join(f"{name} {version(name)}" for name in ("craftopt", "numpy", "numba"))
    yield f"Seed {seed}; {versions}, Python {platform.python_version()}."
