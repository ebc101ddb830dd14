"""Simulated annealing: search one layer's copies so that every window of traffic is balanced.

Steps exchange two experts between GPUs, move one to a free slot, or replace a copy of one expert
by a copy of another; the cost is that of `craftopt.search.surrogate`.
"""

from __future__ import annotations

import numpy as np

from craftopt.jit import njit
from craftopt.loads import FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.search.kernels import NONE, Random, Rules, Schedule, accepts, draw, home_nodes, seeded
from craftopt.search.surrogate import (
    NO_STEP,
    Gpus,
    State,
    Step,
    draw_replacement,
    draw_two_gpus,
    is_possible,
    norm_cost,
    norm_cost_of_exchange,
    norm_cost_of_rows,
    set_rows,
    state_of,
    sum_loads,
    take,
)

# Steps after which loads are summed again and, with more windows than count at a time, the next
# mini-batch is drawn.
REFRESH = 10_000


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


@njit(cache=True, nogil=True)
def _anneal(
    tokens: FloatArray,
    weight: FloatArray,
    start: Copies,
    rules: Rules,
    schedule: Schedule,
    seed: int,
) -> Copies:
    steps, hot, cold, in_play = schedule
    all_windows = tokens.shape[1]
    sampled = all_windows > in_play
    width = start.shape[1] // rules.nodes
    node_of = home_nodes(start, rules.nodes)
    state = state_of(tokens, weight[: min(all_windows, in_play)], start, rules.high)
    gpus, experts, loads, rows = state
    batch = np.arange(all_windows)
    random = seeded(seed)
    cost = np.inf  # known from the first step on
    best_cost, best = np.inf, start
    cooling = (cold / hot) ** (1.0 / max(steps, 1))
    temperature = hot
    for turn in range(steps):
        temperature *= cooling
        if turn % REFRESH == 0:
            if sampled:
                draw_batch(random, batch, tokens, weight, state)
            sum_loads(gpus, loads)
            cost = norm_cost(loads)
        first = draw(random, rules.nodes) * width if rules.nodes > 1 else 0
        if experts.several[0] == 0 or draw(random, 10) < 7:
            step = draw_exchange(random, gpus, loads.load, rules, first)
        else:
            step = draw_replacement(random, state, node_of, rules, 6)
        if not is_possible(step, gpus.hosted):
            continue
        if step.drop < 0:
            fresh = norm_cost_of_exchange(step, loads)
        else:
            set_rows(step, width, state)
            fresh = norm_cost_of_rows(loads, rows)
        if not accepts(random, fresh - cost, temperature):
            continue
        take(step, state)
        cost = fresh
        if not sampled and cost < best_cost and 2 * turn >= steps:
            best_cost = cost
            write_copies(gpus, best)
    if best_cost == np.inf:
        write_copies(gpus, best)
    return best


@njit(cache=True, nogil=True)
def write_copies(gpus: Gpus, copies: Copies) -> None:
    """Write down what GPUs host."""
    for expert in range(copies.shape[0]):
        for gpu in range(copies.shape[1]):
            copies[expert, gpu] = gpus.hosted[expert, gpu]


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True, forceinline=True)
def draw_exchange(random: Random, gpus: Gpus, load: FloatArray, rules: Rules, first: int) -> Step:
    """Draw an item of a GPU for one of another, or for a free slot there."""
    hosted, items, filled = gpus
    a, b = draw_two_gpus(random, load, first, filled.size // rules.nodes)
    if a == b or filled[a] == 0:
        return NO_STEP
    i = draw(random, filled[a])
    given = items[a, i]
    if hosted[given, b]:
        return NO_STEP
    # A slot that may stay empty counts like an item in the draw.
    movable = filled[a] > rules.low and filled[b] < rules.high
    j = draw(random, filled[b] + (1 if movable else 0))
    if j < filled[b]:
        return Step(a, b, i, j, given, items[b, j], NONE, NONE)
    return Step(a, b, i, NONE, given, NONE, NONE, NONE) if movable else NO_STEP
