"""A layer's copies in many windows: state, surrogate cost, and steps of a search.

The surrogate of the largest GPU load is the weighted mean over windows of the p-norm of the GPU
loads, with p = 8. Loads, their 8th powers and the powers' sums over the GPUs are kept per window,
so that a step costs time linear in the windows. What an exchange would change is estimated from
slope and curvature of the 8th roots, renewed with every step taken: most proposals need no roots.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from craftopt.jit import njit
from craftopt.loads import BoolArray, FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.search.kernels import (
    NONE,
    Random,
    Rules,
    draw,
    eighth_power,
    fullest,
    inlined,
    root,
    step_kernel,
)

# What `change_of_root` makes of a root whose argument falls to 0.
MOST_SAVED = 2.0 / 9.0


class Gpus(NamedTuple):
    """What every GPU hosts."""

    hosted: BoolArray  # [experts, gpus]
    items: IntArray  # [gpus, slots]: the experts of a GPU, in any order, then NONE
    filled: IntArray  # [gpus]: how many


class Experts(NamedTuple):
    """What every expert has."""

    tokens: FloatArray  # [experts, windows]
    copies: IntArray  # [experts]: how many
    hosts: IntArray  # [experts, gpus]: their GPUs, in any order, then anything
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
    slope: FloatArray  # [windows]: how the surrogate grows with the norm
    parts: FloatArray  # [windows], for sums


class Rows(NamedTuple):
    """Loads after a replacement."""

    load: FloatArray  # [gpus, windows]
    touched: IntArray  # [gpus + 1]: the GPU of every row, then NONE


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
    (both NONE). Replacement: on a, which is b, a copy of ``drop`` for one of ``add``.
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


@njit()
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
    hosted, hosts = np.zeros((experts, gpus), dtype=np.bool_), np.full((experts, gpus), NONE)
    count, filled = np.zeros(experts, dtype=np.int64), np.zeros(gpus, dtype=np.int64)
    for expert in range(experts):
        for gpu in range(gpus):
            if copies[expert, gpu]:
                hosted[expert, gpu] = True
                hosts[expert, count[expert]] = gpu
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
        Experts(used, count, hosts, replicated, place, several),
        WindowLoads(
            share,
            np.empty((gpus, windows)),
            np.empty((gpus, windows)),
            np.empty(windows),
            weight.copy(),
            np.empty(windows),
            np.empty(windows),
        ),
        Rows(np.empty((gpus, windows)), np.empty(gpus + 1, dtype=np.int64)),
    )


@step_kernel
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


@step_kernel
def sum_powers(loads: WindowLoads) -> None:
    """Sum the powers of the loads over the GPUs."""
    load, power, norm = loads.load, loads.power, loads.norm
    for w in range(norm.size):
        norm[w] = 0.0
    for gpu in range(load.shape[0]):
        for w in range(norm.size):
            power[gpu, w] = eighth_power(load[gpu, w])
            norm[w] += power[gpu, w]


@njit()
def copies_of(items: IntArray, experts: int) -> Copies:
    """Turn what GPUs host into copies, uint8 [experts, gpus]."""
    copies = np.zeros((experts, items.shape[0]), dtype=np.uint8)
    for gpu in range(items.shape[0]):
        for expert in items[gpu]:
            if expert >= 0:
                copies[expert, gpu] = 1
    return copies


# --- cost -----------------------------------------------------------------------------------


@inlined
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


@inlined
def norm_cost(loads: WindowLoads) -> float:
    """Compute the surrogate, the weighted sum of the 8-norms of the GPU loads; renew its slopes."""
    norm, weight, slope, parts = loads.norm, loads.weight, loads.slope, loads.parts
    for w in range(norm.size):
        parts[w] = weight[w] * root(norm[w])
        slope[w] = parts[w] / max(8.0 * norm[w], 1e-300)
    return _total(parts)


@inlined
def change_of_root(slope: float, norm: float, more: float) -> float:
    """Estimate by how much an 8th root changes whose argument grows from ``norm`` by ``more``.

    The Pade approximant x/8 / (1 + 7x/16) of (1 + x)^(1/8) - 1, exact to the second order. Saves
    at most `MOST_SAVED` of the root.
    """
    return slope * more * norm / max(norm + 0.4375 * more, 1e-300)


@inlined
def change_by_exchange(step: Step, loads: WindowLoads) -> float:
    """Estimate what an exchange or a move changes of the surrogate."""
    share, load, power, norm = loads.share, loads.load, loads.power, loads.norm
    slope, parts = loads.slope, loads.parts
    a, b, given, taken = step.a, step.b, step.given, step.taken
    for w in range(slope.size):
        shift = share[taken, w] - share[given, w]
        both = eighth_power(load[a, w] + shift) + eighth_power(load[b, w] - shift)
        parts[w] = change_of_root(slope[w], norm[w], both - power[a, w] - power[b, w])
    return _total(parts)


@inlined
def change_by_rows(loads: WindowLoads, rows: Rows) -> float:
    """Compute what the replacement that `set_rows` was called for changes of the surrogate."""
    power, norm, slope, parts = loads.power, loads.norm, loads.slope, loads.parts
    for w in range(slope.size):
        parts[w] = norm[w]
    for k in range(rows.touched.size):
        gpu = rows.touched[k]
        if gpu < 0:
            break
        for w in range(slope.size):
            parts[w] += eighth_power(rows.load[k, w]) - power[gpu, w]
    for w in range(slope.size):
        parts[w] = loads.weight[w] * root(max(parts[w], 0.0)) - 8.0 * slope[w] * norm[w]
    return _total(parts)


@inlined
def set_rows(step: Step, state: State) -> None:
    """Compute the loads after a replacement."""
    hosted, (tokens, copies, hosts, _, _, _) = state.gpus.hosted, state.experts
    a, drop, add = step.a, step.drop, step.add
    less, more = copies[drop], copies[add]
    growth, relief = 1.0 / (less - 1) - 1.0 / less, 1.0 / (more + 1) - 1.0 / more
    touched, row, load = state.rows.touched, state.rows.load, state.loads.load
    many = 0
    for k in range(less + more):
        if k < less:
            gpu, of_drop = hosts[drop, k], growth
            of_add = relief if hosted[add, gpu] else 0.0
            if gpu == a:
                of_drop, of_add = -1.0 / less, 1.0 / (more + 1)
        else:
            gpu, of_drop, of_add = hosts[add, k - less], 0.0, relief
            if hosted[drop, gpu]:
                continue
        touched[many] = gpu
        for w in range(load.shape[1]):
            row[many, w] = load[gpu, w] + of_drop * tokens[drop, w] + of_add * tokens[add, w]
        many += 1
    touched[many] = NONE


# --- steps ----------------------------------------------------------------------------------


@inlined
def draw_two_gpus(random: Random, load: FloatArray, first: int, width: int) -> tuple[int, int]:
    """Draw two GPUs of a node, the first one mostly a full one."""
    if draw(random, 10) < 3:
        return first + draw(random, width), first + draw(random, width)
    return fullest(random, load, first, width), first + draw(random, width)


@inlined
def draw_replacement(random: Random, state: State, node_of: IntArray, rules: Rules) -> Step:
    """Draw a copy to go and an expert to get one in its place, mostly one of a full GPU."""
    items, filled = state.gpus.items, state.gpus.filled
    count = state.experts.copies
    width = filled.size // rules.nodes
    drop = state.experts.replicated[draw(random, state.experts.several[0])]
    a = state.experts.hosts[drop, draw(random, count[drop])]
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
    return Step(a, a, NONE, NONE, NONE, NONE, drop, add)


@inlined
def is_possible(step: Step, hosted: BoolArray) -> bool:
    """Whether there is a step, and it leaves at most one copy of every expert on a GPU."""
    a, b, _, _, given, taken, drop, add = step
    if a < 0 or (taken >= 0 and hosted[taken, a]):
        return False
    return not hosted[given if drop < 0 else add, b]


@inlined
def take(step: Step, state: State) -> None:
    """Take a step, a replacement right after `set_rows`: correct loads and copies."""
    a, b, i, j, given, taken, drop, add = step
    (hosted, items, filled), hosts = state.gpus, state.experts.hosts
    gone, come = given, given
    if drop < 0:
        _shift_loads(a, b, given, taken, state.loads)
        _rehost(hosts[given], a, b)
    else:
        for k in range(state.rows.touched.size):
            if state.rows.touched[k] < 0:
                break
            set_load(state.rows.touched[k], state.rows.load[k], state.loads)
        hosts[add, state.experts.copies[add]] = b
        _rehost(hosts[drop], a, hosts[drop, state.experts.copies[drop] - 1])
        count_replacement(drop, add, state)
        gone, come, i = drop, add, 0
        while items[a, i] != drop:
            i += 1
    hosted[gone, a] = False
    hosted[come, b] = True
    if taken >= 0:
        _rehost(hosts[taken], b, a)
        hosted[taken, b] = False
        hosted[taken, a] = True
        items[a, i] = taken
        items[b, j] = come
    elif drop >= 0:
        items[a, i] = come
    else:
        filled[a] -= 1
        items[a, i] = items[a, filled[a]]
        items[a, filled[a]] = NONE
        items[b, filled[b]] = come
        filled[b] += 1


@step_kernel
def _rehost(hosts: IntArray, old: int, new: int) -> None:
    """Replace a GPU of an expert."""
    k = 0
    while hosts[k] != old:
        k += 1
    hosts[k] = new


@step_kernel
def _shift_loads(a: int, b: int, given: int, taken: int, loads: WindowLoads) -> None:
    share, load, fresh = loads.share, loads.load, loads.parts
    for w in range(fresh.size):
        fresh[w] = load[a, w] + (share[taken, w] - share[given, w])
    set_load(a, fresh, loads)
    for w in range(fresh.size):
        fresh[w] = load[b, w] - (share[taken, w] - share[given, w])
    set_load(b, fresh, loads)


@step_kernel
def set_load(gpu: int, fresh: FloatArray, loads: WindowLoads) -> None:
    """Give a GPU its load, and correct powers and norms by the difference."""
    load, power, norm = loads.load[gpu], loads.power[gpu], loads.norm
    for w in range(norm.size):
        q = eighth_power(fresh[w])
        norm[w] = max(norm[w] - power[w] + q, q)
        power[w] = q
        load[w] = fresh[w]


@step_kernel
def count_replacement(drop: int, add: int, state: State) -> None:
    """Count a copy fewer of ``drop`` and one more of ``add``."""
    tokens, copies, _, replicated, place, several = state.experts
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
