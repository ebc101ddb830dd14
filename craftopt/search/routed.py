"""Annealing on routed batches: search one layer's copies so that few are activated on any GPU.

The cost is the sum over windows of the most activated copies on a GPU under exact routing. The
optimal routing of every window is kept; a step (an exchange of two experts between GPUs, a move to
a free slot, or a copy of one expert in place of another's) re-routes the experts that lost the
copy that served them, and augments from there (`craftopt.routing.activated`). Where the routing
cannot do better, the GPUs that the fullest one reaches are kept as well: a new copy helps only if
it leads out of them, so most windows need no look. Windows that could gain are looked at first;
after them the cost only rises, and a step is given up once it has risen too far.

Optionally the windows of prefill count too, as in `craftopt.search.annealing`: a p-norm of the GPU
loads under even dispatch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from craftopt.loads import BoolArray, FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.search.annealing import _draw, _fullest, _root, _uniform, seeded
from craftopt.search.kernels import Rules, Schedule, home_nodes

Int16Array = npt.NDArray[np.int16]

# Of ten steps, so many exchange or move; the others replace a copy.
_EXCHANGES = 6
# Attempts to draw a GPU that a full window reaches, or one that it does not.
_DRAWS = 8


class _Placed(NamedTuple):
    """Copies, by expert and by GPU."""

    hosts: Int16Array  # [experts, gpus + 1]: the GPUs of an expert, in any order
    number: IntArray  # [experts]: copies
    hosted: BoolArray  # [experts, gpus]
    items: IntArray  # [gpus, experts + 1]: the experts of a GPU
    filled: IntArray  # [gpus]


class _Routed(NamedTuple):
    """The optimal routing of every window."""

    least: IntArray  # [windows]: ceil of active experts / GPUs
    chosen: Int16Array  # [experts, windows]: GPU that serves, -1 where idle
    load: Int16Array  # [windows, gpus]: activated copies
    top: IntArray  # [windows]: their maximum
    reached: BoolArray  # [windows, gpus]: what the fullest reaches; valid where top > least


class _Journal(NamedTuple):
    """What a step has changed in the routing, to take it back."""

    entry: IntArray  # [entries, 3]: window, expert, GPU before
    window: IntArray  # [windows]: windows looked at
    top: IntArray  # [windows]: and their maximum
    reached: BoolArray  # [windows, gpus]
    queue: IntArray  # [gpus]: scratch of the search for a path
    via: IntArray  # [gpus]


class _Step(NamedTuple):
    """Copies that a step takes away and puts in place."""

    gone: IntArray  # [2, 2]: expert, GPU
    new: IntArray


@njit(cache=True, nogil=True)
def most_activated(active: BoolArray, copies: Copies) -> IntArray:
    """Count the activated copies of the fullest GPU under exact routing, int64 [windows].

    Parameters
    ----------
    active : bool [experts, windows]
    copies : uint8 [experts, gpus]
    """
    gpus = copies.shape[1]
    placed = _place(copies)
    routed, journal = _empty_routing(active, gpus)
    _route(active, placed, routed, journal)
    return routed.top


@njit(cache=True, nogil=True)
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
    nodes, low, high, copies_limit = rules
    steps, hot, cold, _ = schedule
    node_of = home_nodes(start, nodes)
    windows = active.shape[1]
    gpus = start.shape[1]
    width = gpus // nodes
    state = seeded(seed)
    placed = _place(start)
    routed, journal = _empty_routing(active, gpus)
    _route(active, placed, routed, journal)
    shares = np.zeros((gpus, tokens.shape[1]))
    before = np.empty_like(shares)
    touched = np.empty(gpus, dtype=np.int64)
    for gpu in range(gpus):
        _sum_load(gpu, placed, tokens, shares)
    prefill = _prefill_cost(shares, weight)
    step = _Step(np.empty((2, 2), dtype=np.int64), np.empty((2, 2), dtype=np.int64))
    floor = routed.least.sum()
    decode = routed.top.sum()
    cost = decode + prefill
    best_cost, best = cost, start.copy()
    cooling = (cold / hot) ** (1.0 / max(steps, 1))
    temperature = hot * windows
    for _ in range(steps):
        temperature *= cooling
        if decode == floor and weight.size == 0:
            break  # no routing of any plan activates fewer
        first = _draw(state, nodes) * width if nodes > 1 else 0
        a, b = _two_gpus(state, routed, first, width)
        if weight.size and _draw(state, 2):
            a = _fullest(state, shares, first, width)
        if _draw(state, 10) < _EXCHANGES:
            size = _draw_exchange(state, placed, a, b, low, high, step)
        else:
            c = first + _draw(state, width)
            size = _draw_replacement(state, placed, a, b, c, copies_limit, node_of, step)
        if size == 0:
            continue
        allowed = -temperature * np.log(_uniform(state))
        many = 0
        if weight.size:
            many = _touch(step, size, placed, touched)
            for k in range(many):
                before[k] = shares[touched[k]]
        _change(step.gone, step.new, size, placed)
        fresh = prefill
        if weight.size:
            for k in range(many):
                _sum_load(touched[k], placed, tokens, shares)
            fresh = _prefill_cost(shares, weight)
        change, entries, looked = _reroute(
            step, size, placed, routed, journal, allowed - (fresh - prefill)
        )
        if change <= allowed - (fresh - prefill):
            decode += change
            prefill = fresh
            cost = decode + prefill
            if cost < best_cost:
                best_cost = cost
                best[:] = 0
                for gpu in range(gpus):
                    for k in range(placed.filled[gpu]):
                        best[placed.items[gpu, k], gpu] = 1
            continue
        _take_back(entries, looked, routed, journal)
        _change(step.new, step.gone, size, placed)
        for k in range(many):
            shares[touched[k]] = before[k]
    return best


@njit(cache=True, nogil=True)
def _place(copies: Copies) -> _Placed:
    experts, gpus = copies.shape
    placed = _Placed(
        np.zeros((experts, gpus + 1), dtype=np.int16),
        np.zeros(experts, dtype=np.int64),
        np.zeros((experts, gpus), dtype=np.bool_),
        np.zeros((gpus, experts + 1), dtype=np.int64),
        np.zeros(gpus, dtype=np.int64),
    )
    for expert in range(experts):
        for gpu in range(gpus):
            if copies[expert, gpu]:
                _add(expert, gpu, placed)
    return placed


@njit(cache=True, nogil=True)
def _add(expert: int, gpu: int, placed: _Placed) -> None:
    placed.hosts[expert, placed.number[expert]] = gpu
    placed.number[expert] += 1
    placed.hosted[expert, gpu] = True
    placed.items[gpu, placed.filled[gpu]] = expert
    placed.filled[gpu] += 1


@njit(cache=True, nogil=True)
def _remove(expert: int, gpu: int, placed: _Placed) -> None:
    placed.number[expert] -= 1
    last = placed.number[expert]
    for k in range(last):
        if placed.hosts[expert, k] == gpu:
            placed.hosts[expert, k] = placed.hosts[expert, last]
            break
    placed.hosted[expert, gpu] = False
    placed.filled[gpu] -= 1
    last = placed.filled[gpu]
    for k in range(last):
        if placed.items[gpu, k] == expert:
            placed.items[gpu, k] = placed.items[gpu, last]
            break


@njit(cache=True, nogil=True)
def _change(gone: IntArray, new: IntArray, size: int, placed: _Placed) -> None:
    for k in range(size):
        _remove(gone[k, 0], gone[k, 1], placed)
    for k in range(size):
        _add(new[k, 0], new[k, 1], placed)


@njit(cache=True, nogil=True)
def _empty_routing(active: BoolArray, gpus: int) -> tuple[_Routed, _Journal]:
    experts, windows = active.shape
    routed = _Routed(
        np.zeros(windows, dtype=np.int64),
        np.full((experts, windows), -1, dtype=np.int16),
        np.zeros((windows, gpus), dtype=np.int16),
        np.zeros(windows, dtype=np.int64),
        np.zeros((windows, gpus), dtype=np.bool_),
    )
    journal = _Journal(
        np.empty((gpus * (windows + 64), 3), dtype=np.int64),
        np.empty(windows, dtype=np.int64),
        np.empty(windows, dtype=np.int64),
        np.empty((windows, gpus), dtype=np.bool_),
        np.empty(gpus, dtype=np.int64),
        np.empty(gpus, dtype=np.int64),
    )
    return routed, journal


@njit(cache=True, nogil=True)
def _two_gpus(
    state: npt.NDArray[np.uint64], routed: _Routed, first: int, width: int
) -> tuple[int, int]:
    """Draw two GPUs of a node: often one that a full window reaches, and one that it does not."""
    a = first + _draw(state, width)
    b = first + _draw(state, width)
    windows = routed.top.size
    if windows == 0 or _draw(state, 2):
        return a, b
    window = _draw(state, windows)
    if routed.top[window] == routed.least[window]:
        return a, b
    for _ in range(_DRAWS):
        if routed.reached[window, a]:
            break
        a = first + _draw(state, width)
    for _ in range(_DRAWS):
        if not routed.reached[window, b]:
            break
        b = first + _draw(state, width)
    return a, b


@njit(cache=True, nogil=True)
def _set(pairs: IntArray, k: int, expert: int, gpu: int) -> None:
    pairs[k, 0] = expert
    pairs[k, 1] = gpu


@njit(cache=True, nogil=True)
def _draw_exchange(
    state: npt.NDArray[np.uint64],
    placed: _Placed,
    a: int,
    b: int,
    low: int,
    high: int,
    step: _Step,
) -> int:
    """Draw an item of a to go to b, and one of b, or a free slot, for it; return the changes."""
    if a == b or placed.filled[a] == 0:
        return 0
    given = placed.items[a, _draw(state, placed.filled[a])]
    if placed.hosted[given, b]:
        return 0
    movable = placed.filled[a] > low and placed.filled[b] < high
    slots = placed.filled[b] + (1 if movable else 0)
    if slots == 0:
        return 0
    slot = _draw(state, slots)
    _set(step.gone, 0, given, a)
    _set(step.new, 0, given, b)
    if slot == placed.filled[b]:
        return 1
    taken = placed.items[b, slot]
    if placed.hosted[taken, a]:
        return 0
    _set(step.gone, 1, taken, b)
    _set(step.new, 1, taken, a)
    return 2


@njit(cache=True, nogil=True)
def _draw_replacement(
    state: npt.NDArray[np.uint64],
    placed: _Placed,
    a: int,
    b: int,
    c: int,
    copies_limit: int,
    node_of: IntArray,
    step: _Step,
) -> int:
    """Draw an expert, mostly of a, to get a copy on b, and the copy that goes: of b, or of c.

    A copy that goes from c is replaced by one from b. Returns the changes.
    """
    if placed.filled[a] == 0 or placed.filled[b] == 0:
        return 0
    if _draw(state, 10) < 7:
        add = placed.items[a, _draw(state, placed.filled[a])]
    else:
        add = _draw(state, placed.number.size)
    if placed.hosted[add, b] or placed.number[add] >= copies_limit:
        return 0
    if _draw(state, 2):
        c = b
    if placed.filled[c] == 0:
        return 0
    drop = placed.items[c, _draw(state, placed.filled[c])]
    if drop == add or placed.number[drop] < 2 or node_of[drop] != node_of[add]:
        return 0
    _set(step.gone, 0, drop, c)
    _set(step.new, 0, add, b)
    if c == b:
        return 1
    moved = placed.items[b, _draw(state, placed.filled[b])]
    if moved == drop or placed.hosted[moved, c]:
        return 0
    _set(step.gone, 1, moved, b)
    _set(step.new, 1, moved, c)
    return 2


@njit(cache=True, nogil=True)
def _route(active: BoolArray, placed: _Placed, routed: _Routed, journal: _Journal) -> None:
    """Route every window: experts with the fewest hosts first, then augmenting."""
    windows = active.shape[1]
    gpus = placed.filled.size
    order = np.argsort(placed.number, kind="mergesort")
    for window in range(windows):
        many = 0
        for expert in order:
            if active[expert, window]:
                many += 1
                _serve(expert, window, placed, routed)
        routed.least[window] = -(-many // gpus)
        _augment(window, 0, False, placed, routed, journal)


@njit(cache=True, nogil=True)
def _serve(expert: int, window: int, placed: _Placed, routed: _Routed) -> None:
    """Let the host with the fewest activated copies serve."""
    load = routed.load[window]
    best = placed.hosts[expert, 0]
    for k in range(1, placed.number[expert]):
        if load[placed.hosts[expert, k]] < load[best]:
            best = placed.hosts[expert, k]
    routed.chosen[expert, window] = best
    load[best] += 1


@njit(cache=True, nogil=True)
def _augment(
    window: int, size: int, keep: bool, placed: _Placed, routed: _Routed, journal: _Journal
) -> int:
    """Shift experts along paths until the routing is optimal, and note its maximum.

    Returns the entries of the journal, -1 where it has no room; without ``keep`` none is kept.
    """
    load, reached = routed.load[window], routed.reached[window]
    queue, via = journal.queue, journal.via
    gpus = load.size
    while True:
        start = 0
        for gpu in range(1, gpus):
            if load[gpu] > load[start]:
                start = gpu
        top = load[start]
        routed.top[window] = top
        if top <= routed.least[window]:
            return size
        reached[:] = False
        reached[start] = True
        queue[0] = start
        many, at, end = 1, 0, -1
        while at < many and end < 0:
            u = queue[at]
            at += 1
            for k in range(placed.filled[u]):
                expert = placed.items[u, k]
                if routed.chosen[expert, window] != u:
                    continue
                for i in range(placed.number[expert]):
                    v = placed.hosts[expert, i]
                    if reached[v]:
                        continue
                    reached[v] = True
                    via[v] = expert
                    if load[v] <= top - 2:
                        end = v
                        break
                    queue[many] = v
                    many += 1
                if end >= 0:
                    break
        if end < 0:
            return size
        if size + gpus > journal.entry.shape[0]:
            return -1
        load[start] -= 1
        load[end] += 1
        while end != start:
            expert = via[end]
            before = routed.chosen[expert, window]
            if keep:
                journal.entry[size, 0] = window
                journal.entry[size, 1] = expert
                journal.entry[size, 2] = before
                size += 1
            routed.chosen[expert, window] = end
            end = before


@njit(cache=True, nogil=True)
def _reroute(
    step: _Step, size: int, placed: _Placed, routed: _Routed, journal: _Journal, allowed: float
) -> tuple[float, int, int]:
    """Route anew what the step has changed; return the change, entries and windows to take back.

    Infinite where the change exceeds ``allowed``: the rest is not looked at.
    """
    change, entries, looked = 0.0, 0, 0
    for full in (True, False):
        for window in range(routed.top.size):
            # A window that this loop has just made or found full is not looked at again: nothing
            # in it is served by a copy that is gone.
            if (routed.top[window] > routed.least[window]) != full:
                continue
            lost = False
            for k in range(size):
                lost |= routed.chosen[step.gone[k, 0], window] == step.gone[k, 1]
            if not lost and not (full and _leads_out(step, size, window, routed)):
                continue
            if entries + size > journal.entry.shape[0]:
                return np.inf, entries, looked
            journal.window[looked] = window
            journal.top[looked] = routed.top[window]
            journal.reached[looked] = routed.reached[window]
            looked += 1
            for k in range(size):
                expert, gpu = step.gone[k]
                if routed.chosen[expert, window] == gpu:
                    journal.entry[entries, 0] = window
                    journal.entry[entries, 1] = expert
                    journal.entry[entries, 2] = gpu
                    entries += 1
                    routed.load[window, gpu] -= 1
                    _serve(expert, window, placed, routed)
            before = routed.top[window]
            after = _augment(window, entries, True, placed, routed, journal)
            if after < 0:
                return np.inf, entries, looked
            entries = after
            change += routed.top[window] - before
            if not full and change > allowed:
                return np.inf, entries, looked
    return change, entries, looked


@njit(cache=True, nogil=True)
def _leads_out(step: _Step, size: int, window: int, routed: _Routed) -> bool:
    """Whether a new copy lets an expert leave the GPUs that the fullest one reaches."""
    for k in range(size):
        server = routed.chosen[step.new[k, 0], window]
        if server < 0 or not routed.reached[window, server]:
            continue
        if not routed.reached[window, step.new[k, 1]]:
            return True
    return False


@njit(cache=True, nogil=True)
def _take_back(entries: int, looked: int, routed: _Routed, journal: _Journal) -> None:
    for k in range(entries - 1, -1, -1):
        window, expert, gpu = journal.entry[k]
        routed.load[window, routed.chosen[expert, window]] -= 1
        routed.load[window, gpu] += 1
        routed.chosen[expert, window] = gpu
    for k in range(looked):
        routed.top[journal.window[k]] = journal.top[k]
        routed.reached[journal.window[k]] = journal.reached[k]


@njit(cache=True, nogil=True)
def _touch(step: _Step, size: int, placed: _Placed, touched: IntArray) -> int:
    """List the GPUs whose loads the step changes; return how many."""
    mark = np.zeros(placed.filled.size, dtype=np.bool_)
    for k in range(size):
        for expert, gpu in (step.gone[k], step.new[k]):
            mark[gpu] = True
            if step.gone[k, 0] != step.new[k, 0]:  # its copies get another share
                for i in range(placed.number[expert]):
                    mark[placed.hosts[expert, i]] = True
    many = 0
    for gpu in range(mark.size):
        if mark[gpu]:
            touched[many] = gpu
            many += 1
    return many


@njit(cache=True, nogil=True)
def _sum_load(gpu: int, placed: _Placed, tokens: FloatArray, shares: FloatArray) -> None:
    shares[gpu] = 0.0
    for expert in np.sort(placed.items[gpu, : placed.filled[gpu]]):
        shares[gpu] += tokens[expert] / placed.number[expert]


@njit(cache=True, nogil=True)
def _prefill_cost(shares: FloatArray, weight: FloatArray) -> float:
    total = 0.0
    for window in range(weight.size):
        norm = 0.0
        for gpu in range(shares.shape[0]):
            q = shares[gpu, window]
            q *= q
            q *= q
            norm += q * q
        total += weight[window] * _root(norm)
    return total
