"""Simulated annealing on the largest GPU loads themselves, for long searches of one layer.

`craftopt.search.annealing` follows a smooth stand-in, which is better for few steps and for
traffic to come. With many steps, and on the windows that are planned, the objective itself is:
the three largest loads of every window tell what is left of the largest where two GPUs change.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from craftopt.jit import njit
from craftopt.loads import BoolArray, FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.search.annealing import REFRESH, draw_exchange, exchange_between, write_items
from craftopt.search.kernels import (
    NONE,
    Rules,
    Schedule,
    accepts,
    draw,
    draw_word,
    fall,
    field,
    home_nodes,
    seeded,
)
from craftopt.search.surrogate import (
    Rows,
    Step,
    WindowLoads,
    copies_of,
    draw_replacement,
    is_possible,
    set_rows,
    state_of,
    sum_loads,
    take,
)

# One in so many steps of a layer with replicas replaces a copy.
_REPLACED = 5


class Peaks(NamedTuple):
    """The largest loads of every window, descending, and the GPUs that carry them."""

    load: FloatArray  # [3, windows]
    gpu: IntArray  # [3, windows]


def anneal_largest(
    tokens: FloatArray,
    weight: FloatArray,
    start: Copies,
    rules: Rules,
    schedule: Schedule,
    seed: int,
    time: bool,
) -> Copies:
    """Anneal one layer on the weighted sum of its windows' costs.

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
        Temperatures in mean GPU loads; all windows count at a time.
    seed : int
    time : bool
        Whether a window costs its largest load, rather than minus its balancedness.

    Returns
    -------
    uint8 [experts, gpus]
        The best of the second half.
    """
    return _anneal(tokens, weight, start.copy(), rules, schedule, seed, time)


@njit()
def _anneal(
    tokens: FloatArray,
    weight: FloatArray,
    start: Copies,
    rules: Rules,
    schedule: Schedule,
    seed: int,
    time: bool,
) -> Copies:
    steps, hot, cold, _ = schedule
    width = start.shape[1] // rules.nodes
    node_of = home_nodes(start, rules.nodes)
    state = state_of(tokens, weight, start, rules.high)
    gpus, experts, loads, rows = state
    peaks = Peaks(np.empty((3, weight.size)), np.empty((3, weight.size), dtype=np.int64))
    touched = np.zeros(start.shape[1], dtype=np.bool_)
    random = seeded(seed)
    cost, best_cost, best = np.inf, np.inf, gpus.items.copy()
    cooling = fall(hot, cold, steps)
    temperature = hot
    for turn in range(steps):
        temperature *= cooling
        if turn % REFRESH == 0:
            sum_loads(gpus, loads)
            for w in range(weight.size):
                _find_peaks(loads.load, peaks, w)
            cost = _cost(peaks.load[0], weight, time)
        if experts.several[0] > 0 and draw(random, _REPLACED) == 0:
            step = draw_replacement(random, state, node_of, rules)
        elif draw(random, 2) == 0:
            first = draw(random, rules.nodes) * width
            step = draw_exchange(random, gpus, loads.load, rules, first)
        else:  # on a fullest GPU
            word = draw_word(random)
            a = max(peaks.gpu[0, field(word, 0, weight.size)], 0)
            b = a // width * width + field(word, 1, width)
            step = exchange_between(a, b, word, gpus, rules)
        if not is_possible(step, gpus.hosted):
            continue
        largest = loads.parts
        if step.drop < 0:
            rows.touched[0], rows.touched[1], rows.touched[2] = step.a, step.b, NONE
            _largest_after_exchange(step, loads, peaks, largest)
        else:
            set_rows(step, state)
            _largest_after_rows(loads.load, rows, touched, peaks, largest)
        fresh = _cost(largest, weight, time)
        if not accepts(random, fresh - cost, temperature):
            continue
        take(step, state)
        _update_peaks(loads.load, rows.touched, peaks)
        cost = fresh
        if cost < best_cost and 2 * turn >= steps:
            best_cost = cost
            write_items(gpus.items, best)
    return copies_of(best, start.shape[0])


@njit()
def _find_peaks(load: FloatArray, peaks: Peaks, w: int) -> None:
    """Find the three largest loads of a window; 0 on no GPU where there are fewer."""
    first = second = third = 0.0
    g1 = g2 = g3 = -1
    for g in range(load.shape[0]):
        x = load[g, w]
        if x > first:
            third, g3, second, g2, first, g1 = second, g2, first, g1, x, g
        elif x > second:
            third, g3, second, g2 = second, g2, x, g
        elif x > third:
            third, g3 = x, g
    top, gpu = peaks
    top[0, w], top[1, w], top[2, w] = first, second, third
    gpu[0, w], gpu[1, w], gpu[2, w] = g1, g2, g3


@njit()
def _update_peaks(load: FloatArray, changed: IntArray, peaks: Peaks) -> None:
    """Find the largest loads again where those of some GPUs, listed up to NONE, have changed."""
    top, gpu = peaks
    for w in range(load.shape[1]):
        for g in changed:
            if g < 0:
                break
            if load[g, w] > top[2, w] or g in (gpu[0, w], gpu[1, w], gpu[2, w]):
                _find_peaks(load, peaks, w)
                break


@njit(forceinline=True)
def _cost(largest: FloatArray, weight: FloatArray, time: bool) -> float:
    total = 0.0
    for w in range(weight.size):
        total += weight[w] * (largest[w] if time else -1.0 / max(largest[w], 1e-300))
    return total


@njit(forceinline=True)
def _largest_after_exchange(
    step: Step, loads: WindowLoads, peaks: Peaks, largest: FloatArray
) -> None:
    a, b = step.a, step.b
    up, down = loads.share[step.taken], loads.share[step.given]
    load1, load2 = loads.load[a], loads.load[b]
    top, gpu = peaks
    for w in range(largest.size):
        shift = up[w] - down[w]
        rest = top[2, w]
        if gpu[1, w] != a and gpu[1, w] != b:
            rest = top[1, w]
        if gpu[0, w] != a and gpu[0, w] != b:
            rest = top[0, w]
        largest[w] = max(rest, load1[w] + shift, load2[w] - shift)


@njit()
def _largest_after_rows(
    load: FloatArray, rows: Rows, touched: BoolArray, peaks: Peaks, largest: FloatArray
) -> None:
    """Find the largest loads after the replacement that `set_rows` was called for.

    ``touched``, bool [gpus], is all false before and after.
    """
    top, gpu = peaks
    many = 0
    while rows.touched[many] >= 0:
        touched[rows.touched[many]] = True
        many += 1
    for w in range(largest.size):
        k = 0
        while k < 3 and gpu[k, w] >= 0 and touched[gpu[k, w]]:
            k += 1
        rest = 0.0
        if k < 3:
            rest = top[k, w]
        else:
            for g in range(load.shape[0]):
                if not touched[g]:
                    rest = max(rest, load[g, w])
        largest[w] = rest
    for k in range(many):
        touched[rows.touched[k]] = False
        for w in range(largest.size):
            largest[w] = max(largest[w], rows.load[k, w])
