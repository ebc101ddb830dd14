"""Simulated annealing: search one layer's copies so that every window of traffic is balanced.

Steps exchange two experts between GPUs, move one to a free slot, or replace a copy of one expert
by a copy of another; the cost is that of `craftopt.search.surrogate`.
"""

from __future__ import annotations

import numpy as np

from craftopt.jit import njit
from craftopt.loads import FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.search.kernels import (
    NONE,
    Random,
    Rules,
    Schedule,
    accepts,
    draw,
    draw_word,
    fall,
    field,
    fullest,
    fullest_in,
    home_nodes,
    inlined,
    seeded,
    step_kernel,
)
from craftopt.search.surrogate import (
    NO_STEP,
    Gpus,
    State,
    Step,
    WindowLoads,
    change_by_exchange,
    change_by_rows,
    copies_of,
    draw_replacement,
    is_possible,
    norm_cost,
    set_rows,
    state_of,
    sum_loads,
    take,
)

# Steps after which loads are summed again and, with more windows than count at a time, the next
# mini-batch is drawn.
REFRESH = 10_000
# One in so many steps of a layer with replicas replaces a copy: they take long.
REPLACED = 5
# Of the others, one in so many may be any; the rest level a random window, which costs next to
# nothing to see, and most of what is accepted does.
ANY = 3


def anneal(
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
    tokens : float64 [experts, windows]
        Loads, each window scaled to a mean GPU load of 1.
    weight : float64 [windows]
        What each window counts; sums to 1.
    start : uint8 [experts, gpus]
        At most one copy of an expert on a GPU.
    rules : Rules
    schedule : Schedule
        Temperatures in mean GPU loads.
    seed : int

    Returns
    -------
    uint8 [experts, gpus]
        The best of the second half; with more windows than in a mini-batch, the last.
    """
    # Copied, since a kernel is compiled once more for arrays that are read-only.
    return _anneal(tokens, weight, start.copy(), rules, schedule, seed)


@njit()
def _anneal(
    tokens: FloatArray,
    weight: FloatArray,
    start: Copies,
    rules: Rules,
    schedule: Schedule,
    seed: int,
) -> Copies:
    in_play = min(tokens.shape[1], schedule.in_play)
    state = state_of(tokens, weight[:in_play], start, rules.high)
    node_of = home_nodes(start, rules.nodes)
    best = state.gpus.items.copy()
    _take_steps(
        state, tokens, weight, np.arange(weight.size), node_of, rules, schedule, seeded(seed), best
    )
    return copies_of(best, start.shape[0])


@step_kernel
def _take_steps(
    state: State,
    tokens: FloatArray,
    weight: FloatArray,
    batch: IntArray,
    node_of: IntArray,
    rules: Rules,
    schedule: Schedule,
    random: Random,
    best: IntArray,
) -> None:
    """Anneal the state; leave in ``best`` what GPUs host in the end."""
    steps, hot, cold, _ = schedule
    gpus, experts, loads, rows = state
    sampled = batch.size > loads.weight.size
    width = gpus.filled.size // rules.nodes
    best_cost = np.inf
    cooling = fall(hot, cold, steps)
    temperature = hot
    for turn in range(steps):
        temperature *= cooling
        if turn % REFRESH == 0:
            if sampled:
                draw_batch(random, batch, tokens, weight, state)
            sum_loads(gpus, loads)
            norm_cost(loads)
        first = draw(random, rules.nodes) * width if rules.nodes > 1 else 0
        if experts.several[0] > 0 and draw(random, REPLACED) == 0:
            step = draw_replacement(random, state, node_of, rules)
        elif draw(random, ANY) == 0:
            step = draw_exchange(random, gpus, loads.load, rules, first)
        else:
            step = draw_levelling(random, gpus, loads, rules, first)
        if not is_possible(step, gpus.hosted):
            continue
        if step.drop < 0:
            change = change_by_exchange(step, loads)
        else:
            set_rows(step, state)
            change = change_by_rows(loads, rows)
        if not accepts(random, change, temperature):
            continue
        take(step, state)
        cost = norm_cost(loads)
        if not sampled and cost < best_cost and 2 * turn >= steps:
            best_cost = cost
            write_items(gpus.items, best)
    if best_cost == np.inf:
        write_items(gpus.items, best)


@step_kernel
def write_items(items: IntArray, copied: IntArray) -> None:
    """Write down what GPUs host."""
    for gpu in range(items.shape[0]):
        for slot in range(items.shape[1]):
            copied[gpu, slot] = items[gpu, slot]


@step_kernel
def draw_batch(
    random: Random, batch: IntArray, tokens: FloatArray, weight: FloatArray, state: State
) -> None:
    """Draw the next mini-batch, without replacement."""
    used, count = state.experts.tokens, state.experts.copies
    share, part = state.loads.share, state.loads.weight
    for k in range(part.size):
        other = k + draw(random, batch.size - k)
        batch[k], batch[other] = batch[other], batch[k]
    total = 0.0
    for k in range(part.size):
        part[k] = weight[batch[k]]
        total += part[k]
    for k in range(part.size):
        part[k] /= max(total, 1e-300)
    for expert in range(count.size):
        for k in range(part.size):
            used[expert, k] = tokens[expert, batch[k]]
            share[expert, k] = used[expert, k] / count[expert]


@inlined
def draw_exchange(random: Random, gpus: Gpus, load: FloatArray, rules: Rules, first: int) -> Step:
    """Draw an item of a GPU for one of another, or for a free slot there."""
    width = gpus.filled.size // rules.nodes
    word = draw_word(random)
    a, b = first + field(word, 0, width), first + field(word, 1, width)
    if draw(random, 10) >= 3:
        a = fullest(random, load, first, width)
    return exchange_between(a, b, word, gpus, rules)


@inlined
def draw_levelling(
    random: Random, gpus: Gpus, loads: WindowLoads, rules: Rules, first: int
) -> Step:
    """Draw an exchange or a move from a full GPU that levels the two in a random window."""
    (hosted, items, filled), share, load = gpus, loads.share, loads.load
    width = filled.size // rules.nodes
    word = draw_word(random)
    window, b = field(word, 0, load.shape[1]), first + field(word, 3, width)
    a = fullest_in(window, word, random, load, first, width)
    gap = load[a, window] - load[b, window]
    if gap <= 0.0:
        return NO_STEP
    word = draw_word(random)
    movable = filled[a] > rules.low and filled[b] < rules.high
    i, j = field(word, 0, filled[a]), field(word, 1, filled[b] + (1 if movable else 0))
    given, taken = items[a, i], items[b, j] if j < filled[b] else NONE
    shift = share[given, window] - share[taken, window]
    if shift <= 0.0 or shift >= gap or hosted[given, b]:
        return NO_STEP
    return Step(a, b, i, j, given, taken, NONE, NONE)


@inlined
def exchange_between(a: int, b: int, word: np.uint64, gpus: Gpus, rules: Rules) -> Step:
    """Pick an item of one GPU for one of another, or for a free slot there, by a word's end."""
    hosted, items, filled = gpus
    if a == b or filled[a] == 0:
        return NO_STEP
    i = field(word, 2, filled[a])
    given = items[a, i]
    if hosted[given, b]:
        return NO_STEP
    # A slot that may stay empty counts like an item in the draw.
    movable = filled[a] > rules.low and filled[b] < rules.high
    j = field(word, 3, filled[b] + (1 if movable else 0))
    if j < filled[b]:
        return Step(a, b, i, j, given, items[b, j], NONE, NONE)
    return Step(a, b, i, NONE, given, NONE, NONE, NONE) if movable else NO_STEP
