"""A layer's copies in many windows: state, surrogate cost, and steps of a search.

The surrogate of the largest GPU load is the weighted mean over windows of the p-norm of the GPU
loads, with p = 8. Loads, their 8th powers and the powers' sums over the GPUs are kept per window,
so that a step costs time linear in the windows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from craftopt.jit import njit
from craftopt.loads import BoolArray, FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.search.kernels import NONE, Random, Rules, draw, fullest, root


class Gpus(NamedTuple):
    """What every GPU hosts."""

    hosted: BoolArray  # [experts, gpus]
    items: IntArray  # [gpus, slots]: the experts of a GPU, in any order, then NONE
    filled: IntArray  # [gpus]: how many


class Experts(NamedTuple):
    """What every expert has."""

    tokens: FloatArray  # [experts, windows]
    copies: IntArray  # [experts]: how many
    replicated: IntArray  # [experts]: those with several copies, in any order
    place: IntArray  # [experts]: where they are in that list, or NONE
    several: IntArray  # [1]: length of that list


class WindowLoads(NamedTuple):
    """Loads in the windows that count, and what the surrogate needs of them."""

    share: FloatArray  # [experts + 1, windows]: load of one copy; 0 in the last row, for NONE
    load: FloatArray  # [gpus, windows]
    power: FloatArray  # [gpus, windows]: load ** 8
    norm: FloatArray  # [windows]: sum of the powers
    weight: FloatArray  # [windows]
    scratch: FloatArray  # [2, windows]


class Rows(NamedTuple):
    """Loads after a replacement."""

    load: FloatArray  # [gpus, windows]
    touched: IntArray  # [gpus + 1]: the GPU of every row, then NONE
    mark: IntArray  # [gpus]: the row of a GPU that is touched


class State(NamedTuple):
    """A placement under search. Kernels change it in place.

    Numba counts references to all arrays that a call hands over. So kernels that every step calls
    take only the parts that they need, and the most frequent ones are inlined.
    """

    gpus: Gpus
    experts: Experts
    loads: WindowLoads
    rows: Rows


class Step(NamedTuple):
    """A change of copies: an exchange (or move) or, with ``drop``, a replacement.

    Exchange: ``given``, item i of GPU a, for ``taken``, item j of GPU b, or for a free slot there
    (both NONE). Replacement: a copy of ``drop`` on a for one of ``add``, there or on b, whose item
    j, ``taken``, goes to a.
    """

    a: int
    b: int
    i: int
    j: int
    given: int
    taken: int
    drop: int
    add: int


# What a draw returns where it led to no step.
NO_STEP = Step(NONE, NONE, NONE, NONE, NONE, NONE, NONE, NONE)


@njit(cache=True, nogil=True)
def state_of(tokens: FloatArray, weight: FloatArray, copies: Copies, slots: int) -> State:
    """Build the state of a placement; `sum_loads` is yet to be called.

    Parameters
    ----------
    tokens : float64 [experts, windows]
    weight : float64 [some windows]
        Of the first windows, those that count.
    copies : uint8 [experts, gpus]
        At most one copy of an expert on a GPU.
    slots : int
        Copies to make room for on every GPU.
    """
    experts, gpus = copies.shape
    windows = weight.size
    hosted = np.zeros((experts, gpus), dtype=np.bool_)
    count, filled = np.zeros(experts, dtype=np.int64), np.zeros(gpus, dtype=np.int64)
    for expert in range(experts):
        for gpu in range(gpus):
            if copies[expert, gpu]:
                hosted[expert, gpu] = True
                count[expert] += 1
                filled[gpu] += 1
    for gpu in range(gpus):
        slots = max(slots, filled[gpu])
        filled[gpu] = 0
    items = np.full((gpus, slots), NONE)
    replicated, place = np.full(experts, NONE), np.full(experts, NONE)
    several = np.zeros(1, dtype=np.int64)
    used, share = np.empty((experts, windows)), np.zeros((experts + 1, windows))
    for expert in range(experts):
        for gpu in range(gpus):
            if hosted[expert, gpu]:
                items[gpu, filled[gpu]] = expert
                filled[gpu] += 1
        if count[expert] > 1:
            replicated[several[0]] = expert
            place[expert] = several[0]
            several[0] += 1
        for w in range(windows):
            used[expert, w] = tokens[expert, w]
            share[expert, w] = tokens[expert, w] / count[expert]
    return State(
        Gpus(hosted, items, filled),
        Experts(used, count, replicated, place, several),
        WindowLoads(
            share,
            np.empty((gpus, windows)),
            np.empty((gpus, windows)),
            np.empty(windows),
            weight.copy(),
            np.empty((2, windows)),
        ),
        Rows(
            np.empty((gpus, windows)),
            np.empty(gpus + 1, dtype=np.int64),
            np.empty(gpus, dtype=np.int64),
        ),
    )


@njit(cache=True, nogil=True)
def sum_loads(gpus: Gpus, loads: WindowLoads) -> None:
    """Sum loads and powers from the copies: corrected by differences, they drift."""
    share, load = loads.share, loads.load
    for gpu in range(load.shape[0]):
        for w in range(load.shape[1]):
            load[gpu, w] = 0.0
        for slot in range(gpus.filled[gpu]):
            expert = gpus.items[gpu, slot]
            for w in range(load.shape[1]):
                load[gpu, w] += share[expert, w]
    sum_powers(loads)


@njit(cache=True, nogil=True)
def sum_powers(loads: WindowLoads) -> None:
    """Sum the powers of the loads over the GPUs."""
    _, load, power, norm, _, _ = loads
    for w in range(norm.size):
        norm[w] = 0.0
    for gpu in range(load.shape[0]):
        for w in range(norm.size):
            q = load[gpu, w]
            q *= q
            q *= q
            q *= q
            power[gpu, w] = q
            norm[w] += q


# --- cost -----------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _total(parts: FloatArray) -> float:
    """Sum in an order of its own, so that every processor gets the same last bit."""
    sum0 = sum1 = sum2 = sum3 = 0.0
    whole = parts.size - parts.size % 4
    for w in range(0, whole, 4):
        sum0 += parts[w]
        sum1 += parts[w + 1]
        sum2 += parts[w + 2]
        sum3 += parts[w + 3]
    for w in range(whole, parts.size):
        sum0 += parts[w]
    return (sum0 + sum1) + (sum2 + sum3)


@njit(cache=True, nogil=True)
def norm_cost(loads: WindowLoads) -> float:
    """Compute the surrogate: the weighted sum of the 8-norms of the GPU loads."""
    norm, weight, parts = loads.norm, loads.weight, loads.scratch[0]
    for w in range(norm.size):
        parts[w] = weight[w] * root(norm[w])
    return _total(parts)


@njit(cache=True, nogil=True, forceinline=True)
def norm_cost_of_exchange(step: Step, loads: WindowLoads) -> float:
    """Compute the surrogate after an exchange or a move."""
    share, load, power, norm, weight, scratch = loads
    up, down, parts = share[step.taken], share[step.given], scratch[0]
    load1, load2, power1, power2 = load[step.a], load[step.b], power[step.a], power[step.b]
    for w in range(norm.size):
        shift = up[w] - down[w]
        q1 = load1[w] + shift
        q2 = load2[w] - shift
        q1 *= q1
        q2 *= q2
        q1 *= q1
        q2 *= q2
        q1 *= q1
        q2 *= q2
        both = q1 + q2
        parts[w] = weight[w] * root(max(norm[w] - power1[w] - power2[w] + both, both))
    return _total(parts)


@njit(cache=True, nogil=True, forceinline=True)
def norm_cost_of_rows(loads: WindowLoads, rows: Rows) -> float:
    """Compute the surrogate after the replacement that `set_rows` was called for."""
    norm, weight = loads.norm, loads.weight
    added, kept = loads.scratch[0], loads.scratch[1]
    for w in range(norm.size):
        added[w] = 0.0
        kept[w] = norm[w]
    for k in range(rows.touched.size):
        if rows.touched[k] < 0:
            break
        row, gone = rows.load[k], loads.power[rows.touched[k]]
        for w in range(norm.size):
            q = row[w]
            q *= q
            q *= q
            q *= q
            added[w] += q
            kept[w] -= gone[w]
    for w in range(norm.size):
        added[w] = weight[w] * root(max(kept[w] + added[w], added[w]))
    return _total(added)


@njit(cache=True, nogil=True, forceinline=True)
def set_rows(step: Step, width: int, state: State) -> None:
    """Compute the loads after a replacement, in a node of ``width`` GPUs."""
    a, b, drop, add = step.a, step.b, step.drop, step.add
    hosted, tokens, mark = state.gpus.hosted, state.experts.tokens, state.rows.mark
    share, load = state.loads.share, state.loads.load
    less, more = state.experts.copies[drop], state.experts.copies[add]
    many = 0
    first = a // width * width
    for gpu in range(first, first + width):
        if hosted[drop, gpu] or hosted[add, gpu] or gpu == b:
            mark[gpu] = many
            state.rows.touched[many] = gpu
            row = state.rows.load[many]
            for w in range(row.size):
                row[w] = load[gpu, w]
            if hosted[drop, gpu] and gpu != a:
                growth = 1.0 / (less - 1) - 1.0 / less
                for w in range(row.size):
                    row[w] += tokens[drop, w] * growth
            if hosted[add, gpu]:
                relief = 1.0 / more - 1.0 / (more + 1)
                for w in range(row.size):
                    row[w] -= tokens[add, w] * relief
            many += 1
    state.rows.touched[many] = NONE
    left, reached = state.rows.load[mark[a]], state.rows.load[mark[b]]
    for w in range(left.size):
        left[w] -= share[drop, w]
    for w in range(left.size):
        reached[w] += tokens[add, w] / (more + 1)
    if step.taken >= 0:
        for w in range(left.size):
            left[w] += share[step.taken, w]
            reached[w] -= share[step.taken, w]


# --- steps ----------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def draw_two_gpus(random: Random, load: FloatArray, first: int, width: int) -> tuple[int, int]:
    """Draw two GPUs of a node, the first one mostly a full one."""
    if draw(random, 10) < 3:
        return first + draw(random, width), first + draw(random, width)
    return fullest(random, load, first, width), first + draw(random, width)


@njit(cache=True, nogil=True, forceinline=True)
def draw_replacement(
    random: Random, state: State, node_of: IntArray, rules: Rules, apart: int
) -> Step:
    """Draw a copy to go and an expert to get one, in ``apart`` of ten steps on another GPU."""
    hosted, items, filled = state.gpus
    count = state.experts.copies
    width = filled.size // rules.nodes
    drop = state.experts.replicated[draw(random, state.experts.several[0])]
    nth = draw(random, count[drop])
    a = 0
    while not hosted[drop, a] or nth > 0:
        nth -= hosted[drop, a]
        a += 1
    first = a // width * width
    if draw(random, 10) < 7:
        full = fullest(random, state.loads.load, first, width)
        if filled[full] == 0:
            return NO_STEP
        add = items[full, draw(random, filled[full])]
    else:
        add = draw(random, count.size)
    if add == drop or count[add] >= rules.copies_limit or node_of[add] != node_of[drop]:
        return NO_STEP
    b, j, taken = a, NONE, NONE
    if draw(random, 10) < apart:
        b = first + draw(random, width)
        if b == a or filled[b] == 0:
            return NO_STEP
        j = draw(random, filled[b])
        taken = items[b, j]
    return Step(a, b, NONE, j, NONE, taken, drop, add)


@njit(cache=True, nogil=True)
def is_possible(step: Step, hosted: BoolArray) -> bool:
    """Whether there is a step, and it leaves at most one copy of every expert on a GPU."""
    a, b, _, _, given, taken, drop, add = step
    if a < 0 or (taken >= 0 and hosted[taken, a]):
        return False
    if drop < 0:
        return not hosted[given, b]
    return not hosted[add, b] and taken not in (drop, add)


@njit(cache=True, nogil=True)
def take(step: Step, state: State) -> None:
    """Take a step, a replacement right after `set_rows`: correct loads and copies."""
    a, b, i, j, given, taken, drop, add = step
    hosted, items, filled = state.gpus
    gone, come = given, given
    if drop < 0:
        _shift_loads(a, b, given, taken, state.loads)
    else:
        for k in range(state.rows.touched.size):
            if state.rows.touched[k] < 0:
                break
            set_load(state.rows.touched[k], state.rows.load[k], state.loads)
        count_replacement(drop, add, state)
        gone, come, i = drop, add, 0
        while items[a, i] != drop:
            i += 1
    hosted[gone, a] = False
    hosted[come, b] = True
    if taken >= 0:
        hosted[taken, b] = False
        hosted[taken, a] = True
        items[a, i] = taken
        items[b, j] = come
    elif drop >= 0:
        items[a, i] = come
    else:
        filled[a] -= 1
        items[a, i] = items[a, filled[a]]
        items[b, filled[b]] = come
        filled[b] += 1


@njit(cache=True, nogil=True)
def _shift_loads(a: int, b: int, given: int, taken: int, loads: WindowLoads) -> None:
    up, down, shifted = loads.share[taken], loads.share[given], loads.scratch[0]
    for w in range(shifted.size):
        shifted[w] = loads.load[a, w] + (up[w] - down[w])
    set_load(a, shifted, loads)
    for w in range(shifted.size):
        shifted[w] = loads.load[b, w] - (up[w] - down[w])
    set_load(b, shifted, loads)


@njit(cache=True, nogil=True)
def set_load(gpu: int, fresh: FloatArray, loads: WindowLoads) -> None:
    """Give a GPU its load, and correct powers and norms by the difference."""
    load, power, norm = loads.load[gpu], loads.power[gpu], loads.norm
    for w in range(norm.size):
        q = fresh[w]
        q *= q
        q *= q
        q *= q
        norm[w] = max(norm[w] - power[w] + q, q)
        power[w] = q
        load[w] = fresh[w]


@njit(cache=True, nogil=True)
def count_replacement(drop: int, add: int, state: State) -> None:
    """Count a copy fewer of ``drop`` and one more of ``add``."""
    tokens, copies, replicated, place, several = state.experts
    share = state.loads.share
    copies[drop] -= 1
    copies[add] += 1
    for w in range(tokens.shape[1]):
        share[drop, w] = tokens[drop, w] / copies[drop]
        share[add, w] = tokens[add, w] / copies[add]
    if copies[drop] == 1:
        several[0] -= 1
        last = replicated[several[0]]
        replicated[place[drop]] = last
        place[last] = place[drop]
        place[drop] = NONE
    if copies[add] == 2:
        replicated[several[0]] = add
        place[add] = several[0]
        several[0] += 1
