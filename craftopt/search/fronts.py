"""Search a layer's copies for every number of moves at once.

Simulated annealing on the Lagrangian relaxation of the limit on moves: every copy that is hosted
where it was not before costs a price. The price falls from what the best single step is worth to
next to nothing, so that one run passes every number of moves, and the best placement met with
each is kept: the layer's front of quality against moves. Slots stay as they are on every GPU, so
that whatever slot rule the start keeps is kept.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from craftopt.jit import njit
from craftopt.loads import BoolArray, FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.search.kernels import NONE, Random, Rules, accepts, draw, fall, home_nodes, seeded
from craftopt.search.surrogate import (
    NO_STEP,
    Gpus,
    Rows,
    State,
    Step,
    WindowLoads,
    change_by_exchange,
    change_by_rows,
    draw_replacement,
    draw_two_gpus,
    is_possible,
    norm_cost,
    set_rows,
    state_of,
    sum_loads,
    take,
)

# Levels of the price; the least first and the last one, relative to the cost of the start.
LEVELS, FIRST_PRICE, LAST_PRICE = 16, 0.03, 1e-5
# Temperature relative to the price: the largest load itself makes a rougher landscape.
HEAT, HEAT_SHARP = 0.1, 1.0
# A limit on copies that draws do not ask for: it is checked after them.
_ANY = 1 << 62


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
        Where hosting a copy is no move.
    start : uint8 [experts, gpus]
        At most one copy of an expert on a GPU.
    rules : Rules
        GPUs keep their numbers of copies, whatever the rules would allow.
    most : int
        Most moves.
    steps, seed : int
    sharp : bool
        Minimise the largest GPU load itself, instead of its surrogate.

    Returns
    -------
    met : bool [most + 1]
        Whether a placement with that number of moves was met.
    items : int16 [most + 1, gpus, slots]
        The best one: the experts of every GPU, -1 = no slot.
    """
    # Copied, since a kernel is compiled once more for arrays that are read-only.
    return _trace_front(
        tokens, weight, previous.copy(), start.copy(), rules, most, steps, seed, sharp
    )


@njit()
def _trace_front(
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
    width = start.shape[1] // rules.nodes
    node_of = home_nodes(start, rules.nodes)
    state = state_of(tokens, weight, start, 1)
    gpus, experts, loads, rows = state
    any_copies = Rules(rules.nodes, rules.low, rules.high, _ANY)
    random = seeded(seed)
    top = np.zeros((2, weight.size), dtype=np.int64)
    best = np.full(most + 1, np.inf)
    front = np.full((most + 1, start.shape[1], gpus.items.shape[1]), NONE, dtype=np.int16)
    moves = 0
    for expert in range(start.shape[0]):
        for gpu in range(start.shape[1]):
            moves += gpus.hosted[expert, gpu] and not previous[expert, gpu]
    per_level = steps // (LEVELS + 1)
    price, temperature, cheaper = np.inf, 0.0, 1.0
    worth = 0.0  # the most that a step gains per move
    cost = 0.0
    for turn in range(per_level * (LEVELS + 1)):
        looking = turn < per_level  # at first, steps are only looked at
        if turn % per_level == 0:
            sum_loads(gpus, loads)
            cost = _largest(loads, top[0]) if sharp else norm_cost(loads)
            if looking:
                _keep(moves, cost, gpus, best, front)
            elif turn == per_level:
                price = max(worth, FIRST_PRICE * cost)
                if price == 0.0:
                    break
                cheaper = fall(price, LAST_PRICE * cost, LEVELS - 1)
            else:
                price *= cheaper
            temperature = (HEAT_SHARP if sharp else HEAT) * price
        first = draw(random, rules.nodes) * width if rules.nodes > 1 else 0
        kind = draw(random, 10)
        if kind < 3 and moves > 0:
            step = _draw_return(random, state, previous, node_of, first, width)
        elif experts.several[0] == 0 or kind < 6:
            step = _draw_exchange(random, gpus, loads.load, first, width)
        else:
            step = draw_replacement(random, state, node_of, any_copies)
        if not is_possible(step, gpus.hosted):
            continue
        if step.drop >= 0 and experts.copies[step.add] >= rules.copies_limit:
            continue
        more = count_moves(step, previous)
        if moves + more > most:
            continue
        if step.drop >= 0:
            set_rows(step, state)
            change = (
                _largest_of_rows(loads, rows, top[1]) - cost
                if sharp
                else change_by_rows(loads, rows)
            )
        else:
            change = (
                _largest_of_exchange(step, loads, top[0]) - cost
                if sharp
                else change_by_exchange(step, loads)
            )
        if looking:
            if more > 0:
                worth = max(worth, -change / more)
            continue
        if not accepts(random, change + price * more, temperature):
            continue
        take(step, state)
        cost = _largest(loads, top[0]) if sharp else norm_cost(loads)
        moves += more
        _keep(moves, cost, gpus, best, front)
    if per_level == 0:
        _keep(moves, 0.0, gpus, best, front)
    return best < np.inf, front


@njit()
def _keep(
    moves: int, cost: float, gpus: Gpus, best: FloatArray, front: npt.NDArray[np.int16]
) -> None:
    """Keep the placement where it is the best one with its number of moves."""
    if moves < best.size and cost < best[moves]:
        best[moves] = cost
        for gpu in range(front.shape[1]):
            for slot in range(front.shape[2]):
                front[moves, gpu, slot] = gpus.items[gpu, slot]


@njit()
def count_moves(step: Step, previous: BoolArray) -> int:
    """Count the moves that a step adds, or takes back (negative)."""
    a, b, _, _, given, taken, drop, add = step
    gone, come = (given, given) if drop < 0 else (drop, add)
    more = int(previous[gone, a]) - int(previous[come, b])
    if taken >= 0:
        more += int(previous[taken, b]) - int(previous[taken, a])
    return more


@njit(forceinline=True)
def _draw_return(
    random: Random,
    state: State,
    previous: BoolArray,
    node_of: IntArray,
    first: int,
    width: int,
) -> Step:
    """Draw an expert that a GPU hosted before, for one that it did not.

    The expert comes from where it was moved to, if there is such a place.
    """
    hosted, items, filled = state.gpus
    count = state.experts.copies
    a = first + draw(random, width)
    i, seen = NONE, 0
    for slot in range(filled[a]):
        if not previous[items[a, slot], a]:
            seen += 1
            if draw(random, seen) == 0:
                i = slot
    if seen == 0:
        return NO_STEP
    back, seen = NONE, 0
    for expert in range(count.size):
        if previous[expert, a] and not hosted[expert, a]:
            seen += 1
            if draw(random, seen) == 0:
                back = expert
    if seen == 0:
        return NO_STEP
    given = items[a, i]
    b, seen, moved = NONE, 0, False
    for gpu in range(first, first + width):
        if hosted[back, gpu] and not hosted[given, gpu]:
            if not previous[back, gpu] and not moved:
                seen, moved = 0, True
            if moved != previous[back, gpu]:
                seen += 1
                if draw(random, seen) == 0:
                    b = gpu
    if seen > 0 and (moved or count[given] == 1 or draw(random, 2) == 0):
        j = 0
        while items[b, j] != back:
            j += 1
        return Step(a, b, i, j, given, back, NONE, NONE)
    if count[given] == 1 or node_of[back] != node_of[given]:
        return NO_STEP
    return Step(a, a, NONE, NONE, NONE, NONE, given, back)


@njit(forceinline=True)
def _draw_exchange(random: Random, gpus: Gpus, load: FloatArray, first: int, width: int) -> Step:
    """Draw an item of a GPU for one of another."""
    items, filled = gpus.items, gpus.filled
    a, b = draw_two_gpus(random, load, first, width)
    if a == b or filled[a] == 0 or filled[b] == 0:
        return NO_STEP
    i, j = draw(random, filled[a]), draw(random, filled[b])
    return Step(a, b, i, j, items[a, i], items[b, j], NONE, NONE)


@njit()
def _largest(loads: WindowLoads, top: IntArray) -> float:
    """Compute the weighted sum of the largest GPU loads; note the GPUs that have them."""
    load, weight = loads.load, loads.weight
    total = 0.0
    for w in range(weight.size):
        fullest = 0
        for gpu in range(1, load.shape[0]):
            if load[gpu, w] > load[fullest, w]:
                fullest = gpu
        top[w] = fullest
        total += weight[w] * load[fullest, w]
    return total


@njit(forceinline=True)
def _largest_of_exchange(step: Step, loads: WindowLoads, top: IntArray) -> float:
    """Compute `_largest` after an exchange."""
    a, b = step.a, step.b
    load, weight = loads.load, loads.weight
    up, down = loads.share[step.taken], loads.share[step.given]
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


@njit(forceinline=True)
def _largest_of_rows(loads: WindowLoads, rows: Rows, unused: IntArray) -> float:
    """Compute `_largest` after the replacement that `set_rows` was called for."""
    _exchange_rows(loads.load, rows)
    total = _largest(loads, unused)
    _exchange_rows(loads.load, rows)
    return total


@njit()
def _exchange_rows(load: FloatArray, rows: Rows) -> None:
    """Exchange the loads of the touched GPUs for the rows, and the rows for the loads."""
    for k in range(rows.touched.size):
        gpu = rows.touched[k]
        if gpu < 0:
            break
        for w in range(load.shape[1]):
            load[gpu, w], rows.load[k, w] = rows.load[k, w], load[gpu, w]


@njit()
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
