"""Search a layer's copies for every number of moves at once.

Annealing under a price per copy hosted anew. The price falls from what the best single step is
worth to next to nothing, so that one run passes every number of moves, and the best placement met
with each is kept: the layer's front of quality against moves. Slots stay as they are on every GPU,
so that whatever slot rule the start keeps is kept.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from craftopt.loads import BoolArray, FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.search.annealing import (
    _cost,
    _cost_of_rows,
    _cost_of_shift,
    _draw,
    _fullest,
    _norms,
    _set_load,
    _uniform,
    book_replacement,
    list_replicated,
    rows_of_replacement,
    seeded,
)
from craftopt.search.kernels import Rules, home_nodes

# Levels of the price; the least first and the last one, relative to the cost of the start.
LEVELS, DEAR, CHEAP = 16, 0.03, 1e-5
# Temperature relative to the price: the largest load itself makes a rougher landscape.
HEAT, HEAT_SHARP = 0.1, 1.0


@njit(cache=True, nogil=True)
def trace_front(
    tokens: FloatArray,
    weight: FloatArray,
    previous: BoolArray,
    start: Copies,
    rules: Rules,
    most: int,
    steps: int,
    seed: int,
    sharp: bool,
) -> tuple[BoolArray, npt.NDArray[np.int16]]:
    """Trace one layer's front.

    Parameters
    ----------
    tokens : float64 [experts, windows]
        Loads, each window scaled to a mean GPU load of 1.
    weight : float64 [windows]
        What each window counts; sums to 1.
    previous : bool [experts, gpus]
        Where a copy can stand without being a move.
    start : uint8 [experts, gpus]
        At most one copy of an expert on a GPU.
    rules : Rules
        GPUs keep their numbers of copies, whatever the rules would allow.
    most : int
        Most moves.
    steps, seed : int
    sharp : bool
        Minimise the largest GPU load itself, instead of the 8-norm of the loads.

    Returns
    -------
    met : bool [most + 1]
        Whether a placement with so many moves was met.
    items : int16 [most + 1, gpus, slots]
        The best one: the experts of every GPU, -1 = no slot.
    """
    nodes, _, _, copies_limit = rules
    node_of = home_nodes(start, nodes)
    experts, windows = tokens.shape
    gpus = start.shape[1]
    width = gpus // nodes
    state = seeded(seed)
    hosted = start > 0
    count = np.zeros(experts, dtype=np.int64)
    filled = np.zeros(gpus, dtype=np.int64)
    moved = 0
    for expert in range(experts):
        for gpu in range(gpus):
            if hosted[expert, gpu]:
                count[expert] += 1
                filled[gpu] += 1
                moved += not previous[expert, gpu]
    items = np.full((gpus, max(1, filled.max())), -1, dtype=np.int16)
    filled[:] = 0
    share = np.empty((experts, windows))
    for expert in range(experts):
        for b in range(windows):
            share[expert, b] = tokens[expert, b] / count[expert]
        for gpu in range(gpus):
            if hosted[expert, gpu]:
                items[gpu, filled[gpu]] = expert
                filled[gpu] += 1
    replicated, place, many = list_replicated(count)
    load = np.zeros((gpus, windows))
    power = np.empty((gpus, windows))
    norm = np.empty(windows)
    top, unused = np.zeros((2, windows), dtype=np.int64)
    scratch = np.empty((gpus, windows))
    touched = np.empty(gpus, dtype=np.int64)
    mark = np.full(gpus, -1, dtype=np.int64)
    trial = np.empty(windows)
    shift = np.empty(windows)
    pair = np.empty((2, windows))
    best = np.full(most + 1, np.inf)
    front = np.full((most + 1, gpus, items.shape[1]), -1, dtype=np.int16)
    per_level = steps // (LEVELS + 1)
    price, temperature, fall = np.inf, 0.0, 1.0
    worth = 0.0  # the most that a step gains per move
    cost = 0.0
    for step in range(per_level * (LEVELS + 1)):
        looking = step < per_level  # at first, steps are only looked at
        if step % per_level == 0:
            # Running sums drift: make them anew.
            load[:] = 0.0
            for gpu in range(gpus):
                for slot in range(filled[gpu]):
                    load[gpu] += share[items[gpu, slot]]
            if sharp:
                cost = _largest(load, weight, top)
            else:
                _norms(load, power, norm)
                cost = _cost(norm, weight, trial)
            if looking:
                if moved <= most:
                    best[moved] = cost
                    front[moved] = items
            elif step == per_level:
                price = max(worth, DEAR * cost)
                if price == 0.0:
                    break
                fall = (CHEAP * cost / price) ** (1.0 / (LEVELS - 1))
            else:
                price *= fall
            temperature = (HEAT_SHARP if sharp else HEAT) * price
        # Choose a step: item i of GPU a for item j of GPU b; or a copy of ``drop`` on a for a
        # copy of ``add`` there, or on b, whose item j goes to a.
        first = _draw(state, nodes) * width if nodes > 1 else 0
        kind = _draw(state, 10)
        a = b = first
        i = j = drop = add = -1
        if kind < 3 and moved > 0:
            # Undo: an expert that GPU a hosted before comes back for one that it hosts anew.
            a = first + _draw(state, width)
            seen = 0
            for slot in range(filled[a]):
                if not previous[items[a, slot], a]:
                    seen += 1
                    if _draw(state, seen) == 0:
                        i = slot
            if seen == 0:
                continue
            back, seen = -1, 0
            for expert in range(experts):
                if previous[expert, a] and not hosted[expert, a]:
                    seen += 1
                    if _draw(state, seen) == 0:
                        back = expert
            if seen == 0:
                continue
            given = items[a, i]
            # It comes from where it stands anew, if there is such a place.
            seen, anew = 0, False
            for gpu in range(first, first + width):
                if hosted[back, gpu] and not hosted[given, gpu]:
                    if not previous[back, gpu] and not anew:
                        seen, anew = 0, True
                    if anew != previous[back, gpu]:
                        seen += 1
                        if _draw(state, seen) == 0:
                            b = gpu
            if seen > 0 and (anew or count[given] == 1 or _draw(state, 2) == 0):
                j = 0
                while items[b, j] != back:
                    j += 1
            else:
                if count[given] == 1 or node_of[back] != node_of[given]:
                    continue
                drop, add, b = given, back, a
        elif many == 0 or kind < 6:
            if _draw(state, 10) < 3:
                a = first + _draw(state, width)
            else:
                a = _fullest(state, load, first, width)
            b = first + _draw(state, width)
            if a == b or filled[a] == 0 or filled[b] == 0:
                continue
            i, j = _draw(state, filled[a]), _draw(state, filled[b])
        else:
            drop = replicated[_draw(state, many)]
            nth = _draw(state, count[drop])
            a = 0
            while not hosted[drop, a] or nth > 0:
                nth -= hosted[drop, a]
                a += 1
            first = a // width * width
            b = a
            if _draw(state, 10) < 7:
                full = _fullest(state, load, first, width)
                if filled[full] == 0:
                    continue
                add = items[full, _draw(state, filled[full])]
            else:
                add = _draw(state, experts)
            if add == drop or node_of[add] != node_of[drop]:
                continue
            if _draw(state, 10) < 3:
                b = first + _draw(state, width)
                if b == a or filled[b] == 0:
                    continue
                j = _draw(state, filled[b])
        # Weigh it, and take it or not.
        more = 0
        if drop < 0:
            given, taken = items[a, i], items[b, j]
            if hosted[given, b] or hosted[taken, a]:
                continue
            more += int(previous[given, a]) - int(previous[given, b])
            more += int(previous[taken, b]) - int(previous[taken, a])
            if moved + more > most:
                continue
            up, down = share[taken], share[given]
            if sharp:
                fresh = _largest_of_shift(up, down, a, b, load, weight, top)
            else:
                fresh = _cost_of_shift(
                    up, down, load[a], load[b], power[a], power[b], norm, weight, trial
                )
        else:
            third = -1 if b == a else items[b, j]
            if count[add] >= copies_limit or hosted[add, b] or third in (drop, add):
                continue
            more += int(previous[drop, a]) - int(previous[add, b])
            if third >= 0:
                if hosted[third, a]:
                    continue
                more += int(previous[third, b]) - int(previous[third, a])
            if moved + more > most:
                continue
            many_touched = rows_of_replacement(
                drop, add, third, a, b, first, width, hosted, count, tokens, share, load, mark,
                touched, scratch,
            )  # fmt: skip
            if sharp:
                _exchange_rows(load, scratch, touched, many_touched)
                fresh = _largest(load, weight, unused)
                _exchange_rows(load, scratch, touched, many_touched)
            else:
                fresh = _cost_of_rows(scratch, touched, many_touched, power, norm, weight, pair)
        if looking:
            if more > 0:
                worth = max(worth, (cost - fresh) / more)
            continue
        worse = fresh - cost + price * more
        if worse > 0.0 and worse > -temperature * np.log(_uniform(state)):
            continue
        if drop < 0:
            shift[:] = share[taken] - share[given]
            if sharp:
                load[a] += shift
                load[b] -= shift
            else:
                trial[:] = load[a] + shift
                _set_load(a, load, power, norm, trial)
                trial[:] = load[b] - shift
                _set_load(b, load, power, norm, trial)
            hosted[given, a] = False
            hosted[given, b] = True
            hosted[taken, b] = False
            hosted[taken, a] = True
            items[a, i] = taken
            items[b, j] = given
        else:
            if sharp:
                _exchange_rows(load, scratch, touched, many_touched)
            else:
                for k in range(many_touched):
                    _set_load(touched[k], load, power, norm, scratch[k])
            slot = 0
            while items[a, slot] != drop:
                slot += 1
            hosted[drop, a] = False
            hosted[add, b] = True
            if third >= 0:
                items[a, slot] = third
                items[b, j] = add
                hosted[third, b] = False
                hosted[third, a] = True
            else:
                items[a, slot] = add
            many = book_replacement(drop, add, many, count, replicated, place, tokens, share)
        cost = _largest(load, weight, top) if sharp else fresh
        moved += more
        if moved <= most and cost < best[moved]:
            best[moved] = cost
            front[moved] = items
    if per_level == 0 and moved <= most:
        best[moved] = 0.0
        front[moved] = items
    return best < np.inf, front


@njit(cache=True, nogil=True)
def measure_front(
    tokens: FloatArray,
    mean: FloatArray,
    met: BoolArray,
    front: npt.NDArray[np.int16],
    balancedness: bool,
) -> FloatArray:
    """Compute what the placements of a front cost on the windows as they are.

    Parameters
    ----------
    tokens : float64 [windows, experts]
    mean : float64 [windows]
        Mean GPU load.
    met, front
        As `trace_front` returns them.
    balancedness : bool
        Count minus the sum of mean/max instead of the sum of the largest loads.

    Returns
    -------
    float64 [most + 1]
        ``inf`` where there is no placement.
    """
    windows, experts = tokens.shape
    costs = np.full(met.size, np.inf)
    count = np.empty(experts)
    for moves in range(met.size):
        if not met[moves]:
            continue
        count[:] = 0.0
        for row in front[moves]:
            for expert in row:
                if expert >= 0:
                    count[expert] += 1.0
        cost = 0.0
        for window in range(windows):
            largest = 0.0
            for row in front[moves]:
                load = 0.0
                for expert in row:
                    if expert >= 0:
                        load += tokens[window, expert] / count[expert]
                largest = max(largest, load)
            if not balancedness:
                cost += largest
            elif largest > 0.0:
                cost -= mean[window] / largest
        costs[moves] = cost
    return costs


@njit(cache=True, nogil=True)
def _largest(load: FloatArray, weight: FloatArray, top: IntArray) -> float:
    """Compute the weighted sum of the largest GPU loads; note the GPUs that have them."""
    total = 0.0
    for b in range(weight.size):
        fullest = 0
        for gpu in range(1, load.shape[0]):
            if load[gpu, b] > load[fullest, b]:
                fullest = gpu
        top[b] = fullest
        total += weight[b] * load[fullest, b]
    return total


@njit(cache=True, nogil=True)
def _largest_of_shift(
    up: FloatArray,
    down: FloatArray,
    a: int,
    b: int,
    load: FloatArray,
    weight: FloatArray,
    top: IntArray,
) -> float:
    """Compute `_largest` after GPU a gets ``up`` for ``down``, and GPU b the reverse."""
    total = 0.0
    for w in range(weight.size):
        shift = up[w] - down[w]
        most = max(load[a, w] + shift, load[b, w] - shift)
        if top[w] not in (a, b):
            most = max(most, load[top[w], w])
        else:
            for gpu in range(load.shape[0]):
                if gpu not in (a, b) and load[gpu, w] > most:
                    most = load[gpu, w]
        total += weight[w] * most
    return total


@njit(cache=True, nogil=True)
def _exchange_rows(load: FloatArray, rows: FloatArray, touched: IntArray, many: int) -> None:
    """Exchange the loads of some GPUs for the rows, and the rows for the loads."""
    for k in range(many):
        for b in range(load.shape[1]):
            load[touched[k], b], rows[k, b] = rows[k, b], load[touched[k], b]
