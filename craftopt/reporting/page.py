"""A diagnosis and its plans on one page, with jinja2 (the extra ``report``)."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from craftopt.bounds.whole_plan import layer_costs
from craftopt.diagnosis import Diagnosis
from craftopt.diagnosis.measuring import hot_experts
from craftopt.errors import InputError
from craftopt.evaluation import evaluate, gpu_loads
from craftopt.loads import BoolArray, FloatArray, Loads
from craftopt.plan import Plan
from craftopt.problem import Problem
from craftopt.solving import solve
from craftopt.traces import Trace
from craftopt.windows import without_idle

# Light to dark, so that they are told apart in grey and by the colour-blind (ColorBrewer YlOrBr).
COLOURS = ("#ffffe5", "#fff0b0", "#fec44f", "#ec7014", "#b03a05", "#662506")
# Loads over the mean, in percent, at which the next colour begins.
LIMITS = (75, 105, 125, 160, 220)
# Windows that are shown on their own: those in which today's plan waits longest.
WORST = 6


def report_page(
    loads: Loads,
    found: Diagnosis,
    plans: Mapping[str, Plan],
    *,
    trace: Trace | None = None,
    source: str = "LOADS",
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> str:
    """Lay out a diagnosis as one HTML page that loads nothing from elsewhere.

    Parameters
    ----------
    loads : Loads
        Windows that the diagnosis is of.
    found : Diagnosis
    plans : mapping of str to Plan
        What to show, by name; the first is what is served with today. Where it is alone, a plan
        with the budget of the verdict is made on every other window and shown beside it.
    trace : Trace, optional
        Tokens to measure the exchange between nodes on.
    source : str
        Name of the recording, for titles and commands.
    seed, workers : int
        As in `solve`.
    progress : callable, optional
        Called with what is done next.

    Raises
    ------
    InputError
        jinja2 is not installed.
    """
    try:
        import jinja2  # noqa: PLC0415 - an optional extra
        import markupsafe  # noqa: PLC0415 - of jinja2
    except ImportError:
        raise InputError("a report needs jinja2; pip install 'craftopt[report]'") from None
    say = progress or (lambda _: None)
    loads = without_idle(loads)
    planned = np.arange(loads.windows) % 2 == 1
    problem = Problem(
        loads.split(planned)[0] if loads.windows > 1 else loads,
        found.gpus,
        nodes=found.nodes,
        replicas_per_layer=found.chosen.replicas if found.chosen else 0,
        slots="even",
    )
    plans = dict(plans)
    if len(plans) == 1:
        say("planning")
        plans["new plan"] = solve(problem, seed=seed, workers=workers).plan
    say("laying out")
    names, of_view, shown = _views(loads, next(iter(plans.values())), planned)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(
        Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    )
    maps = [_map(name, plan, loads, of_view) for name, plan in plans.items()]
    layers = loads.layer_ids.tolist()
    data = {"maps": maps, "layers": layers, "gpus": found.gpus, "limits": LIMITS}
    steps = [f"below {LIMITS[0] / 100:.2f}", *(f"from {limit / 100:.2f}" for limit in LIMITS)]
    page: str = template.render(
        title=f"{source}, {found.gpus} GPUs on {found.nodes} nodes",
        found=found,
        views=names,
        shown=shown,
        maps=maps,
        layers=layers,
        gpus=found.gpus,
        colours=COLOURS,
        steps=steps,
        shade=lambda load: sum(load >= limit for limit in LIMITS),
        chart=_chart(found),
        tables=list(_tables(loads, found, plans, problem, planned, trace)),
        commands=_commands(found, source),
        assumed=_assumed(loads, plans, seed),
        # A "<" in a name must not end the script element.
        data=markupsafe.Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")),
    )
    return page


def _views(loads: Loads, today: Plan, planned: BoolArray) -> tuple[list[str], BoolArray, int]:
    """Name the sets of windows that can be shown, and mark their windows, [views, windows]."""
    windows = loads.windows
    one_by_one = np.eye(windows, dtype=bool)
    if windows == 1:
        return [loads.window_names[0]], one_by_one, 0
    scored = evaluate(today, loads)
    times = scored.max_load.sum(axis=1) / scored.mean_load.sum(axis=1)
    worst = np.sort(np.argsort(-times, kind="stable")[:WORST])
    names = ["planned windows, mean", "held-out windows, mean"]
    names += [f"{loads.window_names[w]} ({'planned' if planned[w] else 'held out'})" for w in worst]
    return names, np.vstack([planned, ~planned, one_by_one[worst]]), 1


def _map(name: str, plan: Plan, loads: Loads, of_view: BoolArray) -> dict[str, Any]:
    """Average the loads of GPUs over the mean of their layer, in percent, for every view."""
    of_gpu = gpu_loads(plan, loads)
    mean = of_gpu.mean(axis=2, keepdims=True)
    relative = np.divide(of_gpu, mean, out=np.zeros_like(of_gpu), where=mean > 0)
    scored = evaluate(plan, loads)
    shown, times = [], []
    for windows in of_view:
        shown.append(np.rint(100 * relative[windows].mean(axis=0)).astype(int).tolist())
        time = scored.max_load[windows].sum() / scored.mean_load[windows].sum()
        times.append(f"{time:.3f}")
    return {"name": name, "loads": shown, "times": times}


def _chart(found: Diagnosis) -> dict[str, Any] | None:
    """Place relative time by budget: held out with its interval, planned, and the bound."""
    if not found.gains:
        return None
    time = {
        name: [found.relative_time * (1 - getattr(gain, name)) for gain in found.gains]
        for name in ("held_out", "planned", "most", "low", "high")
    }
    top = max(map(max, time.values()))
    most = max(1, found.gains[-1].replicas)

    def down(value: float) -> float:
        return round(float(245 - 205 * (value - 1) / max(top - 1, 1e-9)), 1)

    across = [round(80 + 520 * gain.replicas / most, 1) for gain in found.gains]
    looks = (
        ("held_out", "held out", "#d55e00", ""),
        ("planned", "planned", "#0072b2", "7 4"),
        ("most", "proven bound", "#808080", "2 4"),
    )
    lines = [
        {
            "name": label,
            "colour": colour,
            "dash": dash,
            "points": " ".join(f"{x},{down(y)}" for x, y in zip(across, time[name], strict=True)),
            "dots": [
                (x, down(y), f"{label}, {gain.replicas} copies per layer: {y:.3f}")
                for x, y, gain in zip(across, time[name], found.gains, strict=True)
            ],
        }
        for name, label, colour, dash in looks
    ]
    ticks = np.linspace(1.0, max(top, 1.001), 5)
    bars = zip(across, map(down, time["low"]), map(down, time["high"]), strict=True)
    return {
        "x": [(x, gain.replicas) for x, gain in zip(across, found.gains, strict=True)],
        "y": [(down(tick), f"{tick:.2f}") for tick in ticks],
        "bars": list(bars),
        "lines": lines,
    }


def _tables(
    loads: Loads,
    found: Diagnosis,
    plans: Mapping[str, Plan],
    problem: Problem,
    planned: BoolArray,
    trace: Trace | None,
) -> Any:
    """Yield the tables of the page in order."""
    if found.gains:
        table = found.table()
        yield _table("budgets", "Layer time saved, by budget", "", table.header, table.rows)
    (first, today), *others = plans.items()
    name, plan = others[0]
    before, after = evaluate(today, loads), evaluate(plan, loads)
    several = loads.windows > 1
    held, used = (~planned, planned) if several else (~planned, ~planned)

    def times(scored: Any, windows: BoolArray) -> FloatArray:
        return np.asarray(
            scored.max_load[windows].sum(axis=0)
            / np.maximum(scored.mean_load[windows].sum(axis=0), 1e-300)
        )

    costs = layer_costs(problem)
    column = np.minimum(plan.layer_replicas // problem.replica_step, costs.shape[1] - 1)
    least = costs[np.arange(loads.layers), column]
    gaps = after.max_load[used].sum(axis=0) / np.maximum(least, 1e-300) - 1
    moves = ((plan.copies > 0) & (today.copies == 0)).sum(axis=(1, 2))
    rows = zip(
        loads.layer_ids.tolist(),
        plan.layer_replicas.tolist(),
        plan.replica_counts.max(axis=1).tolist(),
        *(
            [f"{value:.3f}" for value in column]
            for column in (times(before, held), times(after, held), times(after, used))
        ),
        [f"{max(0.0, gap):.1%}" for gap in gaps],
        moves.tolist(),
        strict=True,
    )
    yield _table(
        "layers",
        "Layers",
        f"Relative time of each layer with {first} and with {name}. Gap: how far it is above "
        "the proven bound for as many copies in the layer, on planned windows. Moves: copies "
        f"hosted where {first} has none, {moves.sum():,} in all.",
        ("layer", "copies added", "most copies of an expert", f"{first}, held out",
         f"{name}, held out", f"{name}, planned", "gap to the bound", "moves"),
        rows,
    )  # fmt: skip
    yield _table(
        "windows",
        "Worst windows",
        f"Those in which {first} waits longest. Hot for: windows in a row, this one included, in "
        "which the hottest expert stays among the hottest eighth of its layer.",
        ("window", "use", first, name, "worst layer", "hot experts (share of tokens)", "hot for"),
        _windows(loads, before, after, planned),
    )
    if trace is not None and found.nodes > 1:
        matrices = {
            name: evaluate(plan, loads, trace=trace).traffic for name, plan in plans.items()
        }
        yield _table(
            "nodes",
            "Traffic between nodes",
            "Share of the tokens at home in a node that visit another.",
            ("plan", "home", *(f"node {node}" for node in range(found.nodes))),
            (
                (name, f"node {node}", *(f"{part:.1%}" for part in row))
                for name, traffic in matrices.items()
                if traffic is not None
                for node, row in enumerate(traffic.node_matrix)
            ),
        )


def _table(name: str, title: str, note: str, header: Any, rows: Any) -> dict[str, Any]:
    return {"id": name, "title": title, "note": note, "header": header, "rows": list(rows)}


def _windows(loads: Loads, before: Any, after: Any, planned: BoolArray) -> Any:
    """Yield the windows that wait longest, with the hottest experts of their worst layer."""
    mean = before.mean_load.sum(axis=1)
    now = before.max_load.sum(axis=1) / mean
    then = after.max_load.sum(axis=1) / mean
    for window in np.argsort(-now, kind="stable")[:20]:
        waits = before.max_load[window] - before.mean_load[window]
        layer = int(np.argmax(waits))
        tokens = loads.tokens[:, layer]
        hot = np.argsort(-tokens[window], kind="stable")[:3]
        # [windows]: whether the hottest expert is among the hottest eighth
        above = (tokens > tokens[:, hot[:1]]).sum(axis=1) < hot_experts(loads)
        after_it = np.flatnonzero(~above[window:])
        share = tokens[window, hot] / max(tokens[window].sum(), 1e-300)
        yield (
            loads.window_names[window],
            "planned" if planned[window] and loads.windows > 1 else "held out",
            f"{now[window]:.3f}",
            f"{then[window]:.3f}",
            int(loads.layer_ids[layer]),
            ", ".join(f"{e} ({part:.1%})" for e, part in zip(hot, share, strict=True)),
            int(after_it[0]) if after_it.size else loads.windows - int(window),
        )


def _commands(found: Diagnosis, source: str) -> str:
    if found.verdict not in {"place", "replicate"}:
        return f"# nothing to load; the verdict is: {found.verdict}"
    return (
        f"craftopt plan {source} --gpus {found.gpus} --nodes {found.nodes} --slots even "
        f"--replicas-per-layer {found.replicas_per_layer} -o plan.json\n"
        "# then the file of your engine: sglang, tensorrt-llm, vllm-ascend, vllm or deepseek; it\n"
        "# says the flags. --pad fills up slots for engines that load whole slots only.\n"
        "craftopt export plan.json --pad --engine sglang -o location.json"
    )


def _assumed(loads: Loads, plans: Mapping[str, Plan], seed: int) -> list[str]:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("craftopt", "numpy")]
    return [
        "Dispatch: even; every copy of an expert serves the same share of its tokens.",
        f"Windows: {loads.windows} with tokens, every other one planned and the rest held out; "
        f"{loads.layers} layers of {loads.experts} experts; digest {loads.digest[:12]}.",
        "Given plans may have been made on windows that are called held out here.",
        "Plans: " + "; ".join(f"{name}, {plan.replicas:,} copies" for name, plan in plans.items()),
        f"Seed {seed}; {', '.join(versions)}.",
    ]
