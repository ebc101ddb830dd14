"""Annealing: search one layer's copies so that every window of traffic is balanced.

Minimises the mean over windows of a smooth stand-in for the largest GPU load, the p-norm of the
GPU loads with p = 8, over exchanges of two experts between GPUs, moves to a free slot, and
replacing a copy of one expert by a copy of another. Loads, their p-th powers and their sums over
the GPUs are kept per window, so that an exchange costs time linear in the windows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from craftopt.loads import BoolArray, FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.search.kernels import Rules, Schedule, home_nodes

# Sums of p-th powers are corrected by differences; they are made anew every so many steps.
_REFRESH = 10_000
# Of that many GPUs drawn at random, the fullest in a random window gives or gets a copy.
_SAMPLE = 6


@njit(cache=True, nogil=True)
def _root(value: float) -> float:
    """Compute the 8th root."""
    return float(np.sqrt(np.sqrt(np.sqrt(value))))


@njit(cache=True, nogil=True)
def seeded(seed: int) -> npt.NDArray[np.uint64]:
    """Make the state of the generator, which is never 0."""
    state = np.empty(1, dtype=np.uint64)
    state[0] = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x2545F4914F6CDD1D)
    if state[0] == 0:
        state[0] = np.uint64(1)
    return state


@njit(cache=True, nogil=True)
def _draw(state: npt.NDArray[np.uint64], below: int) -> int:
    """Draw a whole number below a limit (xorshift64*), the same everywhere."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    high = (x * np.uint64(2685821657736338717)) >> np.uint64(33)
    return int(np.int64((high * np.uint64(below)) >> np.uint64(31)))


@njit(cache=True, nogil=True)
def _uniform(state: npt.NDArray[np.uint64]) -> float:
    """Draw a number in (0, 1)."""
    return (_draw(state, 1 << 30) + 0.5) / (1 << 30)


@njit(cache=True, nogil=True)
def _fullest(state: npt.NDArray[np.uint64], load: FloatArray, first: int, gpus: int) -> int:
    """Pick the fullest of a few GPUs of a node, in a random window."""
    window = _draw(state, load.shape[1])
    best = first + _draw(state, gpus)
    for _ in range(_SAMPLE - 1):
        gpu = first + _draw(state, gpus)
        if load[gpu, window] > load[best, window]:
            best = gpu
    return best


@njit(cache=True, nogil=True)
def _norms(load: FloatArray, power: FloatArray, norm: FloatArray) -> None:
    """Make the powers and their sums anew."""
    norm[:] = 0.0
    for gpu in range(load.shape[0]):
        for b in range(load.shape[1]):
            q = load[gpu, b]
            q *= q
            q *= q
            q *= q
            power[gpu, b] = q
            norm[b] += q


@njit(cache=True, nogil=True)
def _total(parts: FloatArray) -> float:
    """Sum in an order of its own, so that every processor gets the same last bit."""
    sum0 = sum1 = sum2 = sum3 = 0.0
    whole = parts.size - parts.size % 4
    for b in range(0, whole, 4):
        sum0 += parts[b]
        sum1 += parts[b + 1]
        sum2 += parts[b + 2]
        sum3 += parts[b + 3]
    for b in range(whole, parts.size):
        sum0 += parts[b]
    return (sum0 + sum1) + (sum2 + sum3)


@njit(cache=True, nogil=True)
def _cost(norm: FloatArray, weight: FloatArray, parts: FloatArray) -> float:
    for b in range(norm.size):
        parts[b] = weight[b] * _root(norm[b])
    return _total(parts)


@njit(cache=True, nogil=True)
def _cost_of_shift(
    up: FloatArray,
    down: FloatArray,
    load1: FloatArray,
    load2: FloatArray,
    power1: FloatArray,
    power2: FloatArray,
    norm: FloatArray,
    weight: FloatArray,
    parts: FloatArray,
) -> float:
    """Compute the cost after GPU 1 gets ``up`` for ``down``, and GPU 2 the reverse."""
    for b in range(norm.size):
        shift = up[b] - down[b]
        q1 = load1[b] + shift
        q2 = load2[b] - shift
        q1 *= q1
        q2 *= q2
        q1 *= q1
        q2 *= q2
        q1 *= q1
        q2 *= q2
        both = q1 + q2
        parts[b] = weight[b] * _root(max(norm[b] - power1[b] - power2[b] + both, both))
    return _total(parts)


@njit(cache=True, nogil=True)
def _set_load(
    gpu: int, load: FloatArray, power: FloatArray, norm: FloatArray, fresh: FloatArray
) -> None:
    for b in range(norm.size):
        q = fresh[b]
        q *= q
        q *= q
        q *= q
        norm[b] = max(norm[b] - power[gpu, b] + q, q)
        power[gpu, b] = q
        load[gpu, b] = fresh[b]


@njit(cache=True, nogil=True)
def list_replicated(count: IntArray) -> tuple[IntArray, IntArray, int]:
    """List the experts with several copies, and where each stands in the list (-1: nowhere).

    Returns
    -------
    replicated, place : int64 [experts]
    many : int
        How much of the list is used.
    """
    replicated = np.empty(count.size, dtype=np.int64)
    place = np.full(count.size, -1, dtype=np.int64)
    many = 0
    for expert in range(count.size):
        if count[expert] > 1:
            replicated[many] = expert
            place[expert] = many
            many += 1
    return replicated, place, many


@njit(cache=True, nogil=True)
def rows_of_replacement(
    drop: int,
    add: int,
    moved: int,
    a: int,
    b: int,
    first: int,
    width: int,
    hosted: BoolArray,
    count: IntArray,
    tokens: FloatArray,
    share: FloatArray,
    load: FloatArray,
    mark: IntArray,
    touched: IntArray,
    rows: FloatArray,
) -> int:
    """Compute the new loads after a copy of ``drop`` left GPU a and one of ``add`` came to b.

    Where ``moved`` is an expert, and not -1, it goes from b to a. Fills ``touched`` with the GPUs
    that change and ``rows`` with their loads; returns how many.
    """
    less, more = count[drop], count[add]
    many_touched = 0
    for gpu in range(first, first + width):
        if hosted[drop, gpu] or hosted[add, gpu] or gpu == b:
            mark[gpu] = many_touched
            touched[many_touched] = gpu
            row = rows[many_touched]
            row[:] = load[gpu]
            if hosted[drop, gpu] and gpu != a:
                row += tokens[drop] * (1.0 / (less - 1) - 1.0 / less)
            if hosted[add, gpu]:
                row -= tokens[add] * (1.0 / more - 1.0 / (more + 1))
            many_touched += 1
    rows[mark[a]] -= share[drop]
    rows[mark[b]] += tokens[add] / (more + 1)
    if moved >= 0:
        rows[mark[a]] += share[moved]
        rows[mark[b]] -= share[moved]
    return many_touched


@njit(cache=True, nogil=True)
def book_replacement(
    drop: int,
    add: int,
    many: int,
    count: IntArray,
    replicated: IntArray,
    place: IntArray,
    tokens: FloatArray,
    share: FloatArray,
) -> int:
    """Book a copy fewer of ``drop`` and one more of ``add``; return ``many`` as it is then."""
    count[drop] -= 1
    count[add] += 1
    share[drop] = tokens[drop] / count[drop]
    share[add] = tokens[add] / count[add]
    if count[drop] == 1:
        many -= 1
        last = replicated[many]
        replicated[place[drop]] = last
        place[last] = place[drop]
        place[drop] = -1
    if count[add] == 2:
        replicated[many] = add
        place[add] = many
        many += 1
    return many


@njit(cache=True, nogil=True)
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
        Temperatures in mean GPU loads. Where there are more windows than in a mini-batch,
        another one is drawn at each refresh.
    seed : int

    Returns
    -------
    uint8 [experts, gpus]
        The best of the second half; with more windows than in play, the last.
    """
    nodes, low, high, copies_limit = rules
    steps, hot, cold, in_play = schedule
    node_of = home_nodes(start, nodes)
    experts, all_windows = tokens.shape
    windows = min(all_windows, in_play)
    sampled = all_windows > windows
    batch = np.arange(all_windows)
    every_weight, every_token = weight, tokens
    tokens = np.ascontiguousarray(every_token[:, :windows])
    weight = every_weight[:windows].copy()
    gpus = start.shape[1]
    width = gpus // nodes
    state = seeded(seed)
    hosted = np.zeros((experts, gpus), dtype=np.bool_)
    count = np.zeros(experts, dtype=np.int64)
    filled = np.zeros(gpus, dtype=np.int64)
    for expert in range(experts):
        for gpu in range(gpus):
            if start[expert, gpu]:
                hosted[expert, gpu] = True
                count[expert] += 1
                filled[gpu] += 1
    items = np.zeros((gpus, max(high, filled.max()) + 1), dtype=np.int64)
    filled[:] = 0
    share = np.empty((experts, windows))
    load = np.zeros((gpus, windows))
    for expert in range(experts):
        for b in range(windows):
            share[expert, b] = tokens[expert, b] / count[expert]
        for gpu in range(gpus):
            if hosted[expert, gpu]:
                items[gpu, filled[gpu]] = expert
                filled[gpu] += 1
                load[gpu] += share[expert]
    replicated, place, many = list_replicated(count)
    power = np.empty((gpus, windows))
    norm = np.empty(windows)
    _norms(load, power, norm)
    cost = np.inf  # made at the first step
    best_cost = np.inf
    best_items, best_filled = items.copy(), filled.copy()
    scratch = np.empty((gpus, windows))
    touched = np.empty(gpus, dtype=np.int64)
    mark = np.full(gpus, -1, dtype=np.int64)
    trial = np.empty(windows)
    pair = np.empty((2, windows))
    nothing = np.zeros(windows)
    cooling = (cold / hot) ** (1.0 / max(steps, 1))
    temperature = hot
    for step in range(steps):
        temperature *= cooling
        if step % _REFRESH == 0:
            if sampled:
                for k in range(windows):
                    other = k + _draw(state, all_windows - k)
                    batch[k], batch[other] = batch[other], batch[k]
                for k in range(windows):
                    weight[k] = every_weight[batch[k]]
                weight /= max(weight.sum(), 1e-300)
                for expert in range(experts):
                    for k in range(windows):
                        tokens[expert, k] = every_token[expert, batch[k]]
                        share[expert, k] = tokens[expert, k] / count[expert]
            load[:] = 0.0
            for gpu in range(gpus):
                for slot in range(filled[gpu]):
                    load[gpu] += share[items[gpu, slot]]
            _norms(load, power, norm)
            cost = _cost(norm, weight, trial)
        first = _draw(state, nodes) * width if nodes > 1 else 0
        if many == 0 or _draw(state, 10) < 7:
            if _draw(state, 10) < 3:
                a = first + _draw(state, width)
            else:
                a = _fullest(state, load, first, width)
            b = first + _draw(state, width)
            if a == b or filled[a] == 0:
                continue
            i = _draw(state, filled[a])
            given = items[a, i]
            if hosted[given, b]:
                continue
            # A slot that may stay empty counts like an item in the draw.
            movable = filled[a] > low and filled[b] < high
            j = _draw(state, filled[b] + (1 if movable else 0))
            if j == filled[b]:
                if not movable:
                    continue
                taken = -1
                up = nothing
            else:
                taken = items[b, j]
                if hosted[taken, a]:
                    continue
                up = share[taken]
            fresh = _cost_of_shift(
                up, share[given], load[a], load[b], power[a], power[b], norm, weight, trial
            )
            if fresh - cost > 0.0 and fresh - cost > -temperature * np.log(_uniform(state)):
                continue
            trial[:] = load[a] + (up - share[given])
            _set_load(a, load, power, norm, trial)
            trial[:] = load[b] - (up - share[given])
            _set_load(b, load, power, norm, trial)
            hosted[given, a] = False
            hosted[given, b] = True
            if taken < 0:
                filled[a] -= 1
                items[a, i] = items[a, filled[a]]
                items[b, filled[b]] = given
                filled[b] += 1
            else:
                hosted[taken, b] = False
                hosted[taken, a] = True
                items[a, i] = taken
                items[b, j] = given
            cost = fresh
        else:
            # A copy of ``drop`` leaves GPU a; a copy of ``add`` comes to a, or to b, whose
            # item ``moved`` goes to a.
            drop = replicated[_draw(state, many)]
            nth = _draw(state, count[drop])
            a = 0
            while not hosted[drop, a] or nth > 0:
                if hosted[drop, a]:
                    nth -= 1
                a += 1
            first = a // width * width
            if _draw(state, 10) < 7:
                full = _fullest(state, load, first, width)
                if filled[full] == 0:
                    continue
                add = items[full, _draw(state, filled[full])]
            else:
                add = _draw(state, experts)
            if add == drop or count[add] >= copies_limit or node_of[add] != node_of[drop]:
                continue
            moved = -1
            j = -1
            b = a
            if _draw(state, 10) < 6:
                b = first + _draw(state, width)
                if b == a or filled[b] == 0:
                    continue
                j = _draw(state, filled[b])
                moved = items[b, j]
                if moved in (drop, add) or hosted[moved, a]:
                    continue
            if hosted[add, b]:
                continue
            many_touched = rows_of_replacement(
                drop, add, moved, a, b, first, width, hosted, count, tokens, share, load, mark,
                touched, scratch,
            )  # fmt: skip
            fresh = _cost_of_rows(scratch, touched, many_touched, power, norm, weight, pair)
            if fresh - cost > 0.0 and fresh - cost > -temperature * np.log(_uniform(state)):
                continue
            for k in range(many_touched):
                _set_load(touched[k], load, power, norm, scratch[k])
            slot = 0
            while items[a, slot] != drop:
                slot += 1
            hosted[drop, a] = False
            hosted[add, b] = True
            if moved >= 0:
                items[a, slot] = moved
                items[b, j] = add
                hosted[moved, b] = False
                hosted[moved, a] = True
            else:
                items[a, slot] = add
            many = book_replacement(drop, add, many, count, replicated, place, tokens, share)
            cost = fresh
        if not sampled and cost < best_cost and 2 * step >= steps:
            best_cost = cost
            best_items[:] = items
            best_filled[:] = filled
    if best_cost == np.inf:
        best_items, best_filled = items, filled
    result = np.zeros((experts, gpus), dtype=np.uint8)
    for gpu in range(gpus):
        for slot in range(best_filled[gpu]):
            result[best_items[gpu, slot], gpu] = 1
    return result


@njit(cache=True, nogil=True)
def _cost_of_rows(
    rows: FloatArray,
    touched: IntArray,
    many: int,
    power: FloatArray,
    norm: FloatArray,
    weight: FloatArray,
    scratch: FloatArray,
) -> float:
    """Compute the cost with new loads of some GPUs."""
    added = scratch[0]
    kept = scratch[1]
    added[:] = 0.0
    kept[:] = norm
    for k in range(many):
        row, gone = rows[k], power[touched[k]]
        for b in range(norm.size):
            q = row[b]
            q *= q
            q *= q
            q *= q
            added[b] += q
            kept[b] -= gone[b]
    for b in range(norm.size):
        added[b] = weight[b] * _root(max(kept[b] + added[b], added[b]))
    return _total(added)
