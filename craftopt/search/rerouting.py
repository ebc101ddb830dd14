"""The optimal routing of every window, kept up to date while copies come and go.

A window's routing is optimal where the most activated copies on a GPU are as few as any routing
has. Where copies come and go, the experts that lost the copy that served them are routed again,
and augmenting paths restore the optimum (`craftopt.routing.activated`). Where a window cannot
reach its floor, the GPUs that the fullest one reaches are kept as well: a new copy helps only if
it leads out of them, so that most windows need no look.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from craftopt.jit import inner, njit
from craftopt.loads import BoolArray, IntArray
from craftopt.plan import Copies

Int16Array = npt.NDArray[np.int16]


class Placed(NamedTuple):
    """Copies, by expert and by GPU."""

    hosts: Int16Array  # [experts, gpus + 1]: the GPUs of an expert, in any order
    number: IntArray  # [experts]: copies
    hosted: BoolArray  # [experts, gpus]
    items: IntArray  # [gpus, experts + 1]: the experts of a GPU
    filled: IntArray  # [gpus]


class Routed(NamedTuple):
    """The optimal routing of every window."""

    least: IntArray  # [windows]: ceil of active experts / GPUs
    chosen: Int16Array  # [experts, windows]: GPU that serves, -1 where idle
    load: Int16Array  # [windows, gpus]: activated copies
    top: IntArray  # [windows]: their maximum
    reached: BoolArray  # [windows, gpus]: what the fullest reaches; valid where top > least


class Journal(NamedTuple):
    """What a step has changed in the routing, to take it back."""

    entry: IntArray  # [entries, 3]: window, expert, GPU before
    window: IntArray  # [windows]: windows looked at
    top: IntArray  # [windows]: and their maximum
    reached: BoolArray  # [windows, gpus]
    queue: IntArray  # [gpus]: scratch of the search for a path
    via: IntArray  # [gpus]


class Changes(NamedTuple):
    """Up to two copies that a step takes away, and those that it puts in place."""

    gone: IntArray  # [2, 2]: expert, GPU
    new: IntArray


@njit()
def most_activated(active: BoolArray, copies: Copies) -> IntArray:
    """Count the activated copies of the fullest GPU under exact routing, int64 [windows].

    Parameters
    ----------
    active : bool [experts, windows]
    copies : uint8 [experts, gpus]
    """
    gpus = copies.shape[1]
    placed = place(copies)
    routed, journal = empty_routing(active, gpus)
    route_all(active, placed, routed, journal)
    return routed.top


@njit()
def place(copies: Copies) -> Placed:
    """Build the state of a placement with at most one copy of an expert on a GPU."""
    experts, gpus = copies.shape
    placed = Placed(
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


@inner()
def _add(expert: int, gpu: int, placed: Placed) -> None:
    placed.hosts[expert, placed.number[expert]] = gpu
    placed.number[expert] += 1
    placed.hosted[expert, gpu] = True
    placed.items[gpu, placed.filled[gpu]] = expert
    placed.filled[gpu] += 1


@inner()
def _remove(expert: int, gpu: int, placed: Placed) -> None:
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


@inner()
def change_copies(gone: IntArray, new: IntArray, size: int, placed: Placed) -> None:
    """Take copies away and put new ones in place: ``size`` of each, expert and GPU."""
    for k in range(size):
        _remove(gone[k, 0], gone[k, 1], placed)
    for k in range(size):
        _add(new[k, 0], new[k, 1], placed)


@inner()
def empty_routing(active: BoolArray, gpus: int) -> tuple[Routed, Journal]:
    """Make room for the routing of all windows, and for what a step changes in it."""
    experts, windows = active.shape
    routed = Routed(
        np.zeros(windows, dtype=np.int64),
        np.full((experts, windows), -1, dtype=np.int16),
        np.zeros((windows, gpus), dtype=np.int16),
        np.zeros(windows, dtype=np.int64),
        np.zeros((windows, gpus), dtype=np.bool_),
    )
    journal = Journal(
        np.empty((gpus * (windows + 64), 3), dtype=np.int64),
        np.empty(windows, dtype=np.int64),
        np.empty(windows, dtype=np.int64),
        np.empty((windows, gpus), dtype=np.bool_),
        np.empty(gpus, dtype=np.int64),
        np.empty(gpus, dtype=np.int64),
    )
    return routed, journal


@inner()
def route_all(active: BoolArray, placed: Placed, routed: Routed, journal: Journal) -> None:
    """Route every window: experts with the fewest hosts first, then augmenting."""
    experts, windows = active.shape
    gpus = placed.filled.size
    order = np.empty(experts, dtype=np.int64)
    at = 0
    for copies in range(gpus + 1):
        for expert in range(experts):
            if placed.number[expert] == copies:
                order[at] = expert
                at += 1
    for window in range(windows):
        many = 0
        for place in range(experts):
            expert = int(order[place])
            if active[expert, window]:
                many += 1
                _serve(expert, window, placed, routed)
        routed.least[window] = -(-many // gpus)
        _augment(window, 0, False, placed, routed, journal)


@inner()
def _serve(expert: int, window: int, placed: Placed, routed: Routed) -> None:
    """Let the host with the fewest activated copies serve."""
    load = routed.load[window]
    best = placed.hosts[expert, 0]
    for k in range(1, placed.number[expert]):
        if load[placed.hosts[expert, k]] < load[best]:
            best = placed.hosts[expert, k]
    routed.chosen[expert, window] = best
    load[best] += 1


@inner()
def _augment(
    window: int, size: int, keep: bool, placed: Placed, routed: Routed, journal: Journal
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


@inner()
def reroute(
    step: Changes, size: int, placed: Placed, routed: Routed, journal: Journal, allowed: float
) -> tuple[float, int, int]:
    """Update the routing of all windows after a step.

    Returns
    -------
    change : float
        Of the summed maxima; infinite as soon as it exceeds ``allowed``.
    entries, looked : int
        What `take_back` needs.
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
            for gpu in range(placed.filled.size):
                journal.reached[looked, gpu] = routed.reached[window, gpu]
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


@inner()
def _leads_out(step: Changes, size: int, window: int, routed: Routed) -> bool:
    """Whether a new copy lets an expert leave the GPUs that the fullest one reaches."""
    for k in range(size):
        server = routed.chosen[step.new[k, 0], window]
        if server < 0 or not routed.reached[window, server]:
            continue
        if not routed.reached[window, step.new[k, 1]]:
            return True
    return False


@inner()
def take_back(entries: int, looked: int, routed: Routed, journal: Journal) -> None:
    """Restore the routing that `reroute` has changed."""
    for k in range(entries - 1, -1, -1):
        window, expert, gpu = journal.entry[k]
        routed.load[window, routed.chosen[expert, window]] -= 1
        routed.load[window, gpu] += 1
        routed.chosen[expert, window] = gpu
    for k in range(looked):
        routed.top[journal.window[k]] = journal.top[k]
        for gpu in range(routed.reached.shape[1]):
            routed.reached[journal.window[k], gpu] = journal.reached[k, gpu]
