"""The tables of the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from craftopt.bounds.whole_plan import even_costs, layer_costs, shared_costs
from craftopt.diagnosis import Diagnosis
from craftopt.diagnosis.measuring import hot_experts
from craftopt.evaluation import Evaluation, evaluate
from craftopt.loads import BoolArray, FloatArray, Loads
from craftopt.plan import Plan
from craftopt.problem import Problem
from craftopt.rebalancing import plan_migration
from craftopt.reporting.charts import Balance, memory_of
from craftopt.serving.deployment import GIB
from craftopt.traces import Trace

# Most rows of the windows that wait longest, and of the moves.
WINDOWS, MOVES = 20, 200


@dataclass(frozen=True)
class Section:
    """Hold a table of the page; rows are of text or numbers."""

    id: str
    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, eq=False)
class Shown:
    """Hold the plans of a page by name, what is served with today first, and score each once."""

    loads: Loads
    planned: BoolArray
    plans: Mapping[str, Plan]

    @cached_property
    def scored(self) -> dict[str, Evaluation]:
        """Score every plan on all windows."""
        return {name: evaluate(plan, self.loads) for name, plan in self.plans.items()}

    @property
    def held(self) -> BoolArray:
        """Mark the windows that are held out; a single one is both."""
        return ~self.planned if self.loads.windows > 1 else self.planned

    @property
    def first(self) -> str:
        """Name what is served with today."""
        return next(iter(self.plans))


def budgets(found: Diagnosis, balance: Iterable[Balance]) -> Section:
    """Lay out what every budget gains."""
    table = found.table()
    memory = memory_of(found)
    rows = [
        (*row[:1], memory(one.replicas), *row[1:],
         *(f"{value:.3f}" for value in (one.planned, one.held_out, one.most)))
        for row, one in zip(table.rows, balance, strict=True)
    ]  # fmt: skip
    return Section(
        "budgets",
        "What copies buy",
        "Part of today's layer time that is saved, and balancedness, by copies per layer. Limits: "
        "proven, for the windows planned.",
        (table.header[0], "memory" if found.cost is None else "memory per GPU",
         *(f"saved, {name}" for name in table.header[1:]),
         *(f"balancedness, {name}" for name in ("planned", "held out", "limit"))),
        rows,
    )  # fmt: skip


def layers(shown: Shown) -> Section:
    """Lay out every layer: its time under every plan, and copies, gap and moves of new ones."""
    (first, today), *others = shown.plans.items()
    columns: dict[str, Iterable[Any]] = {"layer": shown.loads.layer_ids.tolist()}
    for name, scored in shown.scored.items():
        columns[f"{name}, held out"] = _decimals(_layer_times(scored, shown.held))
    for name, plan in others or [(first, today)]:
        about = f"{name}, " if len(others) > 1 else ""
        scored = shown.scored[name]
        gaps, proofs = _gaps(plan, scored, shown.loads, shown.planned)
        columns |= {
            f"{name}, planned": _decimals(_layer_times(scored, shown.planned)),
            f"{about}gap to the bound": [f"{gap:.1%}" for gap in gaps],
            f"{about}bound by": proofs,
            f"{about}copies added": plan.layer_replicas.tolist(),
            f"{about}most of an expert": plan.replica_counts.max(axis=1).tolist(),
        }
        if others:
            columns[f"{about}moves"] = _moves(today, plan).tolist()
    return Section(
        "layers",
        "Layers",
        "Relative time of each layer. Gap: how far a plan is above the proven bound for as many "
        "copies in the layer, on planned windows, and which bound that is: the mean load, the "
        "heaviest copy, the copies that all windows share, or the copies beside a heavy one. "
        f"Moves: copies hosted where {first} has none.",
        tuple(columns),
        list(zip(*columns.values(), strict=True)),
    )


def _decimals(values: FloatArray) -> list[str]:
    return [f"{value:.3f}" for value in values]


def window_times(scored: Evaluation) -> FloatArray:
    """Compute the relative time of every window."""
    times: FloatArray = scored.max_load.sum(axis=1) / scored.mean_load.sum(axis=1)
    return times


def _layer_times(scored: Evaluation, windows: BoolArray) -> FloatArray:
    mean = scored.mean_load[windows].sum(axis=0)
    return np.asarray(scored.max_load[windows].sum(axis=0) / np.maximum(mean, 1e-300))


def _moves(today: Plan, plan: Plan) -> Any:
    return ((plan.copies > 0) & (today.copies == 0)).sum(axis=(1, 2))


def _gaps(
    plan: Plan, scored: Evaluation, loads: Loads, planned: BoolArray
) -> tuple[FloatArray, list[str]]:
    """Compare each layer with the best of the bounds for as many copies, [layers], and name it."""
    part = loads.select(np.flatnonzero(planned))
    problem = Problem(part, plan.gpus, replicas=plan.replicas, slots="free")
    replicas, every = plan.layer_replicas, np.arange(loads.layers)
    costs = layer_costs(problem)
    shared = [
        shared_costs(problem, layer, replicas[layer : layer + 1])[0] if part.windows > 1 else 0.0
        for layer in range(loads.layers)
    ]
    # Where slots differ by one at most and no expert is twice on a GPU, copies have companions.
    even = (np.ptp(plan.slots, axis=1) <= 1) & (plan.copies.max(axis=(1, 2)) <= 1)
    beside = np.where(even, even_costs(problem, every, replicas), 0.0)
    bounds = np.array([
        scored.mean_load[planned].sum(axis=0),
        costs[every, np.minimum(replicas, costs.shape[1] - 1)],
        shared,
        beside,
    ])  # fmt: skip
    names = ("mean load", "heaviest copy", "shared copies", "copies beside")
    # The simplest bound that is as good as the best, but for rounding.
    best = (bounds >= bounds.max(axis=0) * (1 - 1e-9)).argmax(axis=0)
    cost = scored.max_load[planned].sum(axis=0)
    gaps = np.maximum(0.0, cost / np.maximum(bounds.max(axis=0), 1e-300) - 1)
    return gaps, [names[index] for index in best]


def worst_windows(shown: Shown) -> Section:
    """Lay out the windows that wait longest, with the hottest experts of their worst layer."""
    loads, first = shown.loads, shown.first
    before = shown.scored[first]
    times = {name: window_times(one) for name, one in shown.scored.items()}
    rows = []
    for window in np.argsort(-times[first], kind="stable")[:WINDOWS]:
        waits = before.max_load[window] - before.mean_load[window]
        layer = int(np.argmax(waits))
        tokens = loads.tokens[:, layer]
        hot = np.argsort(-tokens[window], kind="stable")[:3]
        # [windows]: whether the hottest expert is among the hottest eighth
        above = (tokens > tokens[:, hot[:1]]).sum(axis=1) < hot_experts(loads)
        after_it = np.flatnonzero(~above[window:])
        share = tokens[window, hot] / max(tokens[window].sum(), 1e-300)
        rows.append((
            loads.window_names[window],
            "held out" if shown.held[window] else "planned",
            *(f"{time[window]:.3f}" for time in times.values()),
            int(loads.layer_ids[layer]),
            ", ".join(f"{e} ({part:.1%})" for e, part in zip(hot, share, strict=True)),
            int(after_it[0]) if after_it.size else loads.windows - int(window),
        ))  # fmt: skip
    return Section(
        "windows",
        "Worst windows",
        f"Those in which {first} waits longest: relative time with each plan. Hot for: windows in "
        "a row, this one included, in which the hottest expert stays among the hottest eighth of "
        "its layer.",
        ("window", "use", *times, "worst layer", "hot experts there (share of tokens)", "hot for"),
        rows,
    )


def node_traffic(shown: Shown, trace: Trace) -> Section:
    """Lay out who sends tokens to which node."""
    rows = []
    for name, plan in shown.plans.items():
        traffic = evaluate(plan, shown.loads, trace=trace).traffic
        assert traffic is not None
        for node, row in enumerate(traffic.node_matrix):
            rows.append((name, node, *(f"{part:.1%}" for part in row)))
    nodes = shown.plans[shown.first].nodes
    return Section(
        "nodes",
        "Traffic between nodes",
        "Share of the tokens at home in a node that visit each node, their own included.",
        ("plan", "home node", *(f"to node {node}" for node in range(nodes))),
        rows,
    )


def moves(shown: Shown, found: Diagnosis) -> Section:
    """Lay out the way from the plan that is served with to the last one, in order."""
    (first, today), *_, (last, plan) = shown.plans.items()
    migration = plan_migration(today, plan)
    ids = shown.loads.layer_ids
    received = [step for step in migration.steps if step.action == "receive"]
    rows = [
        (step.round, int(ids[step.layer]), step.expert,
         "storage" if step.source is None else step.source, step.gpu)
        for step in received[:MOVES]
    ]  # fmt: skip
    size = ""
    if found.cost is not None:
        one = found.cost.copy * found.gpus / found.layers / GIB
        size = f" ({migration.moves * one:.1f} GiB)"
    cut = f" The first {MOVES}:" if len(received) > MOVES else ""
    return Section(
        "moves",
        "Moves in order",
        f"From {first} to {last}: {migration.moves:,} copies{size} in {migration.rounds} rounds, "
        f"with {migration.staging} spare slot per GPU. Those of a round run side by side; then "
        "what is to leave is dropped. Every expert has a copy at any time. The plan that the "
        f"commands make has its own steps, in steps.json.{cut}",
        ("round", "layer", "expert", "from GPU", "to GPU"),
        rows,
    )
