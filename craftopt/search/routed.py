"""Simulated annealing on routed batches: few activated copies on the fullest GPU.

The cost is the sum over windows of the most activated copies on a GPU under exact routing. A step
(an exchange of two experts between GPUs, a move to a free slot, or a copy of one expert in place of
another's) updates the optimal routing of every window (`craftopt.search.rerouting`). Windows that
could gain come first; after them the cost only rises, and a step is given up once it has risen too
far.

Optionally the windows of prefill count too, as in `craftopt.search.annealing`: by the p-norm of the
GPU loads under even dispatch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from craftopt.jit import njit
from craftopt.loads import BoolArray, FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.search.kernels import (
    Random,
    Rules,
    Schedule,
    draw,
    eighth_power,
    exponential,
    fall,
    fullest,
    home_nodes,
    root,
    seeded,
)
from craftopt.search.rerouting import (
    Changes,
    Placed,
    Routed,
    change_copies,
    empty_routing,
    place,
    reroute,
    route_all,
    take_back,
)

# Of ten steps, this many exchange or move; the others replace a copy.
_EXCHANGES = 6
# Attempts to draw a GPU that a full window reaches, or one that it does not.
_DRAWS = 8


class _Prefill(NamedTuple):
    """Loads of prefill, and what a step changes in them, to take it back."""

    tokens: FloatArray  # [experts, windows]
    weight: FloatArray  # [windows]
    load: FloatArray  # [gpus, windows]
    before: FloatArray  # [gpus, windows]: loads of the GPUs touched
    touched: IntArray  # [gpus]


@njit()
def anneal_routed(
    active: BoolArray,
    tokens: FloatArray,
    weight: FloatArray,
    start: Copies,
    rules: Rules,
    schedule: Schedule,
    seed: int,
) -> Copies:
    """Anneal one layer.

    Parameters
    ----------
    active : bool [experts, windows]
        Experts with tokens, in every batch of decode.
    tokens : float64 [experts, prefill windows]
        Loads of prefill, each window scaled to a mean GPU load of 1; none where decode alone
        counts.
    weight : float64 [prefill windows]
        What a mean GPU load of each counts, in activated copies of one batch.
    start : uint8 [experts, gpus]
        At most one copy of an expert on a GPU.
    rules : Rules
    schedule : Schedule
        Temperatures in activated copies per window. All windows count all the time.
    seed : int

    Returns
    -------
    uint8 [experts, gpus]
        The best that was met.
    """
    steps, hot, cold, _ = schedule
    gpus, windows = start.shape[1], active.shape[1]
    width = gpus // rules.nodes
    node_of = home_nodes(start, rules.nodes)
    random = seeded(seed)
    placed = place(start)
    routed, journal = empty_routing(active, gpus)
    route_all(active, placed, routed, journal)
    load = np.zeros((gpus, weight.size))
    prefill = _Prefill(tokens, weight, load, load.copy(), np.empty(gpus, dtype=np.int64))
    for gpu in range(gpus):
        _sum_load(gpu, placed, prefill)
    decode_cost, prefill_cost = routed.top.sum(), _cost(prefill)
    floor = routed.least.sum()
    best_cost, best = decode_cost + prefill_cost, start.copy()
    step = Changes(np.empty((2, 2), dtype=np.int64), np.empty((2, 2), dtype=np.int64))
    cooling = fall(hot, cold, steps)
    temperature = hot * windows
    for _ in range(steps):
        temperature *= cooling
        if decode_cost == floor and weight.size == 0:
            break  # no routing of any plan activates fewer
        first = draw(random, rules.nodes) * width if rules.nodes > 1 else 0
        a, b = _two_gpus(random, routed, first, width)
        if weight.size and draw(random, 2):
            a = fullest(random, load, first, width)
        if draw(random, 10) < _EXCHANGES:
            size = _draw_exchange(random, placed, a, b, rules, step)
        else:
            c = first + draw(random, width)
            size = _draw_replacement(random, placed, (a, b, c), node_of, rules, step)
        if size == 0:
            continue
        allowed = temperature * exponential(random)
        many = _touch(step, size, placed, prefill) if weight.size else 0
        change_copies(step.gone, step.new, size, placed)
        fresh = prefill_cost
        if weight.size:
            for k in range(many):
                _sum_load(prefill.touched[k], placed, prefill)
            fresh = _cost(prefill)
        allowed -= fresh - prefill_cost
        change, entries, looked = reroute(step, size, placed, routed, journal, allowed)
        if change > allowed:
            take_back(entries, looked, routed, journal)
            change_copies(step.new, step.gone, size, placed)
            for k in range(many):
                for w in range(weight.size):
                    load[prefill.touched[k], w] = prefill.before[k, w]
            continue
        decode_cost += change
        prefill_cost = fresh
        if decode_cost + prefill_cost < best_cost:
            best_cost = decode_cost + prefill_cost
            for expert in range(start.shape[0]):
                for gpu in range(gpus):
                    best[expert, gpu] = placed.hosted[expert, gpu]
    return best


@njit()
def _two_gpus(random: Random, routed: Routed, first: int, width: int) -> tuple[int, int]:
    """Draw two GPUs of a node: often one that a full window reaches, and one that it does not."""
    a = first + draw(random, width)
    b = first + draw(random, width)
    windows = routed.top.size
    if windows == 0 or draw(random, 2):
        return a, b
    window = draw(random, windows)
    if routed.top[window] == routed.least[window]:
        return a, b
    for _ in range(_DRAWS):
        if routed.reached[window, a]:
            break
        a = first + draw(random, width)
    for _ in range(_DRAWS):
        if not routed.reached[window, b]:
            break
        b = first + draw(random, width)
    return a, b


@njit()
def _draw_exchange(
    random: Random, placed: Placed, a: int, b: int, rules: Rules, step: Changes
) -> int:
    """Draw an item of a to go to b, and one of b, or a free slot, for it; return the changes."""
    filled = placed.filled
    if a == b or filled[a] == 0:
        return 0
    given = placed.items[a, draw(random, filled[a])]
    if placed.hosted[given, b]:
        return 0
    movable = filled[a] > rules.low and filled[b] < rules.high
    slots = filled[b] + (1 if movable else 0)
    if slots == 0:
        return 0
    slot = draw(random, slots)
    _set(step, 0, (given, a), (given, b))
    if slot == filled[b]:
        return 1
    taken = placed.items[b, slot]
    if placed.hosted[taken, a]:
        return 0
    _set(step, 1, (taken, b), (taken, a))
    return 2


@njit()
def _draw_replacement(
    random: Random,
    placed: Placed,
    gpus: tuple[int, int, int],
    node_of: IntArray,
    rules: Rules,
    step: Changes,
) -> int:
    """Draw an expert, mostly of a, to get a copy on b, and the copy that goes: of b, or of c.

    A copy that goes from c is replaced by one from b. Returns the changes.
    """
    a, b, c = gpus
    items, filled, number = placed.items, placed.filled, placed.number
    if filled[a] == 0 or filled[b] == 0:
        return 0
    of_a = draw(random, 10) < 7
    add = items[a, draw(random, filled[a])] if of_a else draw(random, number.size)
    if placed.hosted[add, b] or number[add] >= rules.copies_limit:
        return 0
    if draw(random, 2):
        c = b
    if filled[c] == 0:
        return 0
    drop = items[c, draw(random, filled[c])]
    if drop == add or number[drop] < 2 or node_of[drop] != node_of[add]:
        return 0
    _set(step, 0, (drop, c), (add, b))
    if c == b:
        return 1
    moved = items[b, draw(random, filled[b])]
    if moved == drop or placed.hosted[moved, c]:
        return 0
    _set(step, 1, (moved, b), (moved, c))
    return 2


@njit()
def _set(step: Changes, k: int, gone: tuple[int, int], new: tuple[int, int]) -> None:
    step.gone[k, 0], step.gone[k, 1] = gone
    step.new[k, 0], step.new[k, 1] = new


@njit()
def _touch(step: Changes, size: int, placed: Placed, prefill: _Prefill) -> int:
    """List the GPUs whose loads the step changes, and keep these; return how many."""
    gpus, windows = prefill.load.shape
    mark = np.zeros(gpus, dtype=np.bool_)
    for k in range(size):
        for expert, gpu in (step.gone[k], step.new[k]):
            mark[gpu] = True
            if step.gone[k, 0] != step.new[k, 0]:  # its copies get another share
                for i in range(placed.number[expert]):
                    mark[placed.hosts[expert, i]] = True
    many = 0
    for gpu in range(gpus):
        if mark[gpu]:
            prefill.touched[many] = gpu
            for w in range(windows):
                prefill.before[many, w] = prefill.load[gpu, w]
            many += 1
    return many


@njit()
def _sum_load(gpu: int, placed: Placed, prefill: _Prefill) -> None:
    """Sum a GPU's loads over its experts in order."""
    windows = prefill.weight.size
    for w in range(windows):
        prefill.load[gpu, w] = 0.0
    for expert in np.sort(placed.items[gpu, : placed.filled[gpu]]):
        for w in range(windows):
            prefill.load[gpu, w] += prefill.tokens[expert, w] / placed.number[expert]


@njit()
def _cost(prefill: _Prefill) -> float:
    """Compute the weighted sum of the 8-norms of the GPU loads."""
    total = 0.0
    for w in range(prefill.weight.size):
        norm = 0.0
        for gpu in range(prefill.load.shape[0]):
            norm += eighth_power(prefill.load[gpu, w])
        total += prefill.weight[w] * root(norm)
    return total
