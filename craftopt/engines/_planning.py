"""What the engines' interfaces share: tables of slots from loads."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from craftopt.coactivation import Coactivation
from craftopt.compiling import first_call, kind_of
from craftopt.errors import InputError, divide_gpus, whole
from craftopt.formats.reading import read_coactivation
from craftopt.kinds import near_latest
from craftopt.loads import BoolArray, FloatArray, IntArray, Loads
from craftopt.plan import Copies, Plan
from craftopt.planners.fast import plan_fast
from craftopt.planners.joint import JointSearch
from craftopt.planners.layers import Layers
from craftopt.planners.windowed import WindowedSearch, plan_windowed
from craftopt.problem import Problem
from craftopt.rebalancing import arrange_slots
from craftopt.rebalancing.fronts import trace_fronts
from craftopt.rebalancing.relabelling import relabel_copies
from craftopt.rebalancing.start import valid_start
from craftopt.result import Options

# Consecutive windows are added up until no more than these are left; work grows with them.
WINDOWS = 32
# Annealing steps over all layers, on windows and, as often as anything moves, from an old map.
STEPS, MOVE_STEPS = 300_000, 1_000_000
# Environment variables: a file of pair counts, what a node that a token visits costs in mean GPU
# loads, and how copies serve (nearest-even is SGLang's dynamic dispatch).
PAIRS, TRAFFIC, DISPATCH = "CRAFTOPT_COACTIVATION", "CRAFTOPT_TRAFFIC", "CRAFTOPT_DISPATCH"
# Engines run a rank per GPU on the same machine.
THREADS = 8
# What a layer's moves have to save, in shares of its time: so much for any, and so much more for
# all of its copies, some of them in proportion. Sending experts slows an engine.
CHANGE_PRICE, MOVE_PRICE = 0.02, 0.1


def plan_slots(
    tokens: FloatArray,
    slots: int,
    gpus: int,
    nodes: int = 1,
    groups: int = 1,
    old: IntArray | None = None,
    active: BoolArray | None = None,
) -> IntArray:
    """Plan equally many slots on every GPU, all of them filled.

    Parameters
    ----------
    tokens : float64 [windows, layers, experts]
        In the order of time; windows without tokens do not count, nor those of another kind of
        traffic than the last (`near_latest`). One window is planned by placement and exchanges;
        several are planned for each of them, added up to `WINDOWS` at most.
    slots : int
        Physical slots of a layer.
    gpus, nodes : int
    groups : int
        Equal groups of consecutive experts; where the nodes divide them, every group stays in
        one node, as in DeepSeek's EPLB.
    old : int64 [layers, old slots], optional
        Experts of the slots now, -1 = empty, on any number of GPUs of as many slots each: those
        behind the last are gone, those beyond are new. Moves have to pay (`CHANGE_PRICE`),
        and experts that stay on a GPU stay in their slots.
    active : bool [gpus], optional
        False where a GPU is dead: its slots hold expert 0 and count for nothing, as SGLang has
        it. Without all GPUs there are no nodes.

    Returns
    -------
    int64 [layers, slots]

    Raises
    ------
    InputError
        Counts that do not divide, loads that are negative or not finite, an old map of other
        layers, more experts than slots, or an environment that `configured` refuses.
    """
    windows = _windows(tokens)
    layers, experts = windows.shape[1:]
    width = divide_slots(slots, gpus)
    before = None if old is None else _fit(old, layers, slots, experts)
    if active is not None and not active.all():
        held = np.repeat(active, width)
        result = np.zeros((layers, slots), dtype=np.int64)
        left = None if before is None else before[:, held]
        result[:, held] = plan_slots(tokens, int(held.sum()), int(active.sum()), old=left)
        return result
    together = groups > 1 and nodes > 1 and groups % nodes == 0
    _check(experts, slots, gpus, nodes, groups if together else 1)
    sent = configured(layers) if nodes > 1 else {}
    nodes = nodes if together or sent else 1
    hosts = experts // nodes if together else experts
    if width >= hosts:  # every GPU hosts all that it may, and some twice
        home = np.arange(gpus)[:, np.newaxis] * (nodes if together else 1) // gpus
        table = np.tile((home * hosts + np.arange(width) % hosts).ravel(), (layers, 1))
        return table if before is None else arrange_slots(Plan.from_phy2log(table, gpus), before)
    problem = Problem(
        Loads(windows),
        gpus,
        nodes=nodes,
        replicas_per_layer=slots - experts,
        slots="uniform",
        expert_groups=groups if together else None,
        **sent,
    )
    # Engines run many processes on a machine, and call this first while the model loads.
    with first_call("hook", before is None, *kind_of(problem)):
        return _plan(problem, before)


def _plan(problem: Problem, before: IntArray | None) -> IntArray:
    """Plan, and move from the slots before as far as it pays."""
    layers, replicas = problem.loads.layers, problem.replicas // problem.loads.layers
    options = Options(work_limit=STEPS // layers, workers=min(THREADS, os.cpu_count() or 1))
    planned = None
    if not problem.balance_alone:
        planned = plan_fast(problem, options).plan
    elif problem.loads.windows > 1:
        planned = plan_windowed(problem, options).plan
    if planned is not None and planned.replicas == problem.replicas:
        copies = planned.copies
    else:  # one window, or fewer copies would be better for the loads: the slots are to be filled
        frame = Layers(problem, options)
        placed = frame.each(partial(frame.place, replicas=replicas), frame.total)
        copies = np.stack([of_layer for of_layer, _ in placed])
    if before is None:
        return Plan(copies).phy2log()
    return arrange_slots(Plan(_paying(copies, before, problem, options)), before)


def divide_slots(slots: int, gpus: int) -> int:
    """Count the slots of a GPU.

    Raises
    ------
    InputError
        GPUs that do not divide the slots.
    """
    if gpus < 1 or slots % gpus:
        raise InputError(f"{slots} slots do not divide into {gpus} GPUs")
    return slots // gpus


def _fit(old: IntArray, layers: int, slots: int, experts: int) -> IntArray:
    """Cut or fill up an old map to the slots that there are now; -1 for what is no expert."""
    if old.ndim != 2 or len(old) != layers:
        raise InputError(
            f"the old map has shape {old.shape}; pass [layers, slots], {layers} layers"
        )
    table = np.full((layers, slots), -1, dtype=np.int64)
    kept = old[:, :slots]
    table[:, : kept.shape[1]] = np.where((kept >= 0) & (kept < experts), kept, -1)
    return table


def _paying(copies: Copies, table: IntArray, problem: Problem, options: Options) -> Copies:
    """Move from the old copies as long as it pays: the same loads, planned again, move nothing.

    It ends, since every change saves at least `CHANGE_PRICE` of a layer's time.
    """
    layers, experts, gpus = copies.shape
    held = np.zeros((layers, experts, gpus), dtype=np.uint8)
    layer, slot = np.nonzero(table >= 0)
    np.add.at(held, (layer, table[layer, slot], slot // (table.shape[1] // gpus)), 1)
    while True:
        start, chosen = _cheapest(copies, held, problem, options)
        if (chosen == start).all():
            return chosen
        held = chosen


def _cheapest(
    copies: Copies, old: Copies, problem: Problem, options: Options
) -> tuple[Copies, Copies]:
    """Choose for every layer the old copies, some moves, or new copies: what costs least.

    Cost is the layer's part of the objective and the price of its moves. The old copies, made
    valid, are returned as well.
    """
    layers, experts, gpus = copies.shape
    task = problem.variant(previous=old)
    mean = problem.loads.tokens.sum(axis=(0, 2)) / gpus
    every = int(copies[0].sum())
    start = valid_start(task)
    options = replace(options, work_limit=MOVE_STEPS // layers)
    fronts = trace_fronts(task, start, every * layers, options)
    price = MOVE_PRICE * mean / every
    costs = fronts.costs + price[:, np.newaxis] * np.arange(fronts.costs.shape[1])
    some = fronts.copies(costs.argmin(axis=1), experts)
    candidates = np.stack([start, some, relabel_copies(copies, old, task.whole_nodes)])
    moves = np.maximum(candidates.astype(np.int64) - old, 0).sum(axis=(2, 3))
    alone = problem.balance_alone
    search = WindowedSearch(task, options) if alone else JointSearch(task, options, copies)
    time = [[search.cost(layer, held[layer]) for layer in range(layers)] for held in candidates]
    cost = np.array(time) + CHANGE_PRICE * mean * (moves > 0) + price * moves
    return start, candidates[cost.argmin(axis=0), np.arange(layers)]


def configured(layers: int) -> dict[str, Any]:
    """Read what the environment says of traffic and dispatch, as arguments of `Problem`.

    Engines do not hand the tokens' choices to their planners, so pair counts come from a file.

    Raises
    ------
    InputError
        One of the file and the price without the other, a price that is no number, pair counts of
        another number of layers.
    """
    found: dict[str, Any] = {}
    dispatch = os.environ.get(DISPATCH)
    if dispatch and dispatch != "even":
        found["dispatch"] = dispatch
    file, price = os.environ.get(PAIRS), os.environ.get(TRAFFIC)
    if not file and not price:
        return found
    if not (file and price):
        raise InputError(f"set {PAIRS} (file of pair counts) and {TRAFFIC} (price) together")
    try:
        found["traffic"] = float(price)
    except ValueError:
        raise InputError(f"{TRAFFIC}={price!r}; set mean GPU loads, such as 0.7") from None
    pairs = _pairs_of(file, Path(file).stat().st_mtime_ns)
    if pairs.layers != layers:
        raise InputError(f"{PAIRS}={file} has {pairs.layers} layers, the engine {layers}")
    return found | {"coactivation": pairs}


@lru_cache(maxsize=1)
def _pairs_of(file: str, _changed: int) -> Coactivation:
    """Read pair counts, once until the file changes; layers by position, as engines have them."""
    pairs = read_coactivation(file)
    every = range(pairs.layers)
    return pairs.with_layers(every, every)


def _windows(tokens: FloatArray) -> FloatArray:
    """Add up neighbours to `WINDOWS`; leave out idle windows and those of another kind."""
    values = np.asarray(tokens)
    if values.ndim != 3 or 0 in values.shape or values.dtype.kind not in "iuf":
        raise InputError(
            f"tokens have shape {values.shape} and type {values.dtype}; pass numbers "
            "[windows, layers, experts], none of them 0"
        )
    used = np.flatnonzero(values.any(axis=(1, 2)))
    if not used.size:
        return np.zeros((1, *values.shape[1:]))
    count = min(used.size, WINDOWS)
    ends = np.arange(1, count + 1) * used.size // count
    starts = np.concatenate([[0], ends[:-1]])
    windows = np.stack(
        [
            values[used[start:end]].sum(axis=0, dtype=np.float64)
            for start, end in zip(starts, ends, strict=True)
        ]
    )
    kept: FloatArray = windows[near_latest(windows)]
    return kept


def _check(experts: int, slots: int, gpus: int, nodes: int, groups: int) -> None:
    divide_gpus(gpus, whole("nodes", nodes, 1))
    if slots < experts:
        raise InputError(f"{slots} slots cannot host {experts} experts")
    if experts % groups:
        raise InputError(f"{experts} experts do not divide into {groups} groups")
