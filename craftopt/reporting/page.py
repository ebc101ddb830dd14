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
from craftopt.evaluation import gpu_loads
from craftopt.loads import BoolArray, Loads
from craftopt.plan import Plan
from craftopt.problem import Problem
from craftopt.reporting import charts, sections
from craftopt.reporting.commands import commands, new_plan, whole_slots
from craftopt.reporting.layers import load_map
from craftopt.reporting.sections import Shown
from craftopt.solving import solve
from craftopt.traces import Trace
from craftopt.windows import without_idle

# Light to dark, so that they are told apart in grey and by the colour-blind (ColorBrewer YlOrBr).
COLOURS = ("#ffffe5", "#fee391", "#fe9929", "#b03a05", "#662506")
# Loads over the mean, in percent, at which the next colour begins.
LIMITS = (105, 125, 160, 220)
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
        copies, by default). Where it is alone, the plan that the commands of the page make, but
        from every other window, is beside it.
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
    rest = {name: options[name] for name in ("trace", "seed", "workers") if name in options}
    page = report_page(loads, found, plans or {}, source, **rest)
    write_atomically(path, page)
    return found


def report_page(
    loads: Loads,
    found: Diagnosis,
    given: Mapping[str, Plan],
    source: str = "LOADS",
    trace: Trace | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> str:
    """Lay out a diagnosis as one HTML page; see `report`."""
    loads = without_idle(loads)
    planned = np.arange(loads.windows) % 2 == 1 if loads.windows > 1 else np.ones(1, dtype=bool)
    plans = dict(given)
    if not given:
        problem = Problem(loads, found.gpus, nodes=found.nodes)
        plans[TODAY] = solve(problem, "trivial").plan
    if len(plans) == 1 and found.chosen:
        today = next(iter(given.values()), None)
        windows = loads.select(np.flatnonzero(planned))
        plans[NEW] = new_plan(found, windows, today, seed, workers)
    shown = Shown(loads, planned, plans)
    names, of_view, first_view = _views(shown)
    balance = charts.balances(loads, found)
    tables = [sections.layers(shown), sections.worst_windows(shown)]
    if trace is not None and found.nodes > 1:
        tables.append(sections.node_traffic(shown, trace))
    if given and len(plans) > 1:
        tables.append(sections.moves(shown, found))
    maps = [_map(name, shown, of_view) for name in plans]
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
        assumed=list(_assumed(found, shown, seed, given=bool(given))),
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


def _views(shown: Shown) -> tuple[list[str], BoolArray, int]:
    """Name the sets of windows that can be shown, and mark their windows, [views, windows]."""
    loads, planned = shown.loads, shown.planned
    one_by_one = np.eye(loads.windows, dtype=bool)
    if loads.windows == 1:
        return [loads.window_names[0]], one_by_one, 0
    times = sections.window_times(shown.scored[shown.first])
    worst = np.sort(np.argsort(-times, kind="stable")[:WORST])
    names = ["all planned windows", "all held-out windows"]
    names += [f"{loads.window_names[w]} ({'planned' if planned[w] else 'held out'})" for w in worst]
    return names, np.vstack([planned, ~planned, one_by_one[worst]]), 1


def _map(name: str, shown: Shown, of_view: BoolArray) -> dict[str, Any]:
    """Compute loads of GPUs over the mean of their layer, in percent, for every view."""
    plan, scored = shown.plans[name], shown.scored[name]
    tokens, copies = gpu_loads(plan, shown.loads), plan.layer_replicas.mean()
    cells, times = [], []
    for windows in of_view:
        most = load_map(tokens[windows])
        cells.append(np.rint(100 * most).astype(int).tolist())
        time = scored.max_load[windows].sum() / scored.mean_load[windows].sum()
        layer, gpu = np.unravel_index(most.argmax(), most.shape)
        times.append(
            f"{copies:.3g} copies per layer; relative time {time:.3f}; fullest: GPU {gpu} in layer "
            f"{shown.loads.layer_ids[layer]}, {cells[-1][layer][gpu] / 100:.2f} times the mean"
        )
    return {"name": name, "loads": cells, "times": times}


def _assumed(found: Diagnosis, shown: Shown, seed: int, *, given: bool) -> Iterator[str]:
    loads = shown.loads
    yield "Dispatch: even; every copy of an expert serves the same share of its tokens."
    yield (
        f"Windows: {loads.windows} with tokens, every other one planned and the rest held out; "
        f"{loads.layers} layers of {loads.experts} experts; digest {loads.digest[:12]}."
    )
    if given:
        yield "A plan that was given may have been made on windows that are called held out here."
    if NEW in shown.plans:
        yield (
            f"The {NEW} is what craftopt {'rebalance' if given else 'plan'} makes with "
            f"{whole_slots(found)} copies per layer in uniform slots, which engines load: here of "
            "the planned windows alone, so that the others test it; to serve with, of all windows."
        )
        yield (
            "The verdict, and what copies buy, rest on shorter searches with even slots, made on "
            "one half of the windows and scored on the other, both ways."
        )
    yield "Plans: " + "; ".join(
        f"{name}, {plan.replicas:,} extra copies" for name, plan in shown.plans.items()
    )
    version = importlib.metadata.version
    versions = ", ".join(f"{name} {version(name)}" for name in ("craftopt", "numpy", "numba"))
    yield f"Seed {seed}; {versions}, Python {platform.python_version()}."
