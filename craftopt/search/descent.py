"""Descent within a layer: pairwise exchanges on the fullest GPU, and kicks out of local optima.

`improve` descends to a local optimum, `kick` leaves one. Copies stay within the limits of every
GPU, and no GPU gets two of one expert.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from craftopt.heap import NEARLY, argsort, sort_places
from craftopt.jit import inner, njit
from craftopt.loads import BoolArray, FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.search.kernels import NONE

# An exchange counts when it lowers the fuller of its two GPUs by this much, relative.
PROGRESS = 1e-9
# Pairs of items are tried when single ones close less than this part of the way to the target.
_ENOUGH = 0.3
# Worse placements that `kick` goes through, in a row, before it returns to its start.
_DEPTH = 3
# Limit on the exchanges of one descent, per copy.
_WORK = 10


class Packing(NamedTuple):
    """A layer's copies in one window, by GPU and by expert. Kernels change it in place."""

    share: FloatArray  # [experts]: load of one copy
    items: IntArray  # [gpus, most copies]: the experts of a GPU
    filled: IntArray  # [gpus]: how many
    load: FloatArray  # [gpus]
    hosted: BoolArray  # [experts, gpus]


def improve_layer(share: FloatArray, copies: Copies, target: float) -> Copies:
    """Improve a placement by exchanges that keep every GPU's number of copies.

    Parameters
    ----------
    share : float64 [experts]
        Load of one copy.
    copies : uint8 [experts, gpus]
        At most one copy of an expert on a GPU.
    target : float
        Load of the fullest GPU to stop at.

    Returns
    -------
    uint8 [experts, gpus]
    """
    slots = copies.sum(axis=0, dtype=np.int64)
    packing = empty_packing(share, slots.size, int(slots.max()))
    fill(packing, copies)
    improve(packing, slots, slots, target)
    return packing.hosted.astype(np.uint8)


def empty_packing(share: FloatArray, gpus: int, most: int) -> Packing:
    """Build the state without copies, with room for ``most`` on a GPU."""
    return Packing(
        share,
        np.zeros((gpus, most), dtype=np.int64),
        np.zeros(gpus, dtype=np.int64),
        np.zeros(gpus),
        np.zeros((share.size, gpus), dtype=np.bool_),
    )


@njit()
def fill(packing: Packing, copies: Copies) -> None:
    """Make it the placement of given copies, at most one of an expert on a GPU."""
    experts, gpus = copies.shape
    for gpu in range(gpus):
        packing.filled[gpu] = 0
        packing.load[gpu] = 0.0
        for expert in range(experts):
            packing.hosted[expert, gpu] = False
            if copies[expert, gpu]:
                add_copy(gpu, expert, packing)
                packing.load[gpu] += packing.share[expert]


@inner()
def add_copy(gpu: int, expert: int, packing: Packing) -> None:
    """Put a copy on a GPU; its load is the caller's to correct."""
    packing.items[gpu, packing.filled[gpu]] = expert
    packing.filled[gpu] += 1
    packing.hosted[expert, gpu] = True


@inner()
def remove_copy(gpu: int, expert: int, packing: Packing) -> None:
    """Take a copy off a GPU; its load is the caller's to correct."""
    slot = 0
    while packing.items[gpu, slot] != expert:
        slot += 1
    packing.filled[gpu] -= 1
    packing.items[gpu, slot] = packing.items[gpu, packing.filled[gpu]]
    packing.hosted[expert, gpu] = False


@inner()
def fullest_gpu(load: FloatArray) -> int:
    """Find the first GPU with the largest load."""
    fullest = 0
    for gpu in range(1, load.size):
        if load[gpu] > load[fullest]:
            fullest = gpu
    return fullest


@njit()
def improve(packing: Packing, low: IntArray, high: IntArray, target: float) -> float:
    """Lower the fullest GPU by moves and exchanges, in place, until ``target`` or no gain.

    Tries a move and 1-1 exchanges of the fullest GPU with every other, lightest first; where
    these gain little, 2-2, 2-1 and 1-2 exchanges too. The best one is made, or the first that
    brings both GPUs to the target.

    Parameters
    ----------
    packing : Packing
    low, high : int64 [gpus]
        Fewest and most copies of every GPU.
    target : float
        Load of the fullest GPU to stop at.

    Returns
    -------
    float
        Load of the fullest GPU then.
    """
    filled, load = packing.filled, packing.load
    most = packing.items.shape[1]
    work = 0
    for gpu in range(filled.size):
        work += _WORK * filled[gpu]
    # Slots and shares of what the fullest GPU may give and take.
    mine, theirs = np.empty(most, dtype=np.int64), np.empty(most, dtype=np.int64)
    given, taken = np.empty(most), np.empty(most)
    fullest, order = fullest_gpu(load), argsort(load)
    for _ in range(work):
        top = load[fullest]
        if top <= target:
            break
        best = top * (1.0 - PROGRESS)
        give = give2 = take = take2 = other = NONE
        for pairs in range(2):
            if best <= target or top - best >= _ENOUGH * (top - target):
                break
            for gpu in order:
                gap = top - load[gpu]
                if gap <= 0.0 or best <= target:
                    break
                gives = _exchangeable(fullest, gpu, packing, mine, given)
                takes = _exchangeable(gpu, fullest, packing, theirs, taken)
                # Shifting half the gap levels the two GPUs; the fuller one then has ``middle``.
                half, middle = 0.5 * gap, top - 0.5 * gap
                more = filled[fullest] > low[fullest] and filled[gpu] < high[gpu]
                fewer = filled[fullest] < high[fullest] and filled[gpu] > low[gpu]
                if pairs == 0:
                    for i in range(gives):
                        if more and middle + abs(given[i] - half) < best:
                            best = middle + abs(given[i] - half)
                            give, take, other = mine[i], NONE, gpu
                        for j in range(takes):
                            value = middle + abs(given[i] - taken[j] - half)
                            if value < best:
                                best = value
                                give, take, other = mine[i], theirs[j], gpu
                    continue
                for i in range(gives):
                    for i2 in range(i, gives):  # i2 == i: give one
                        out = given[i] if i2 == i else given[i] + given[i2]
                        for j in range(takes):
                            rest = out - taken[j]
                            if i2 > i and more:
                                value = middle + abs(rest - half)
                                if value < best:
                                    best = value
                                    give, give2, take, take2 = mine[i], mine[i2], theirs[j], NONE
                                    other = gpu
                            if i2 == i and not fewer:
                                continue
                            for j2 in range(j + 1, takes):
                                value = middle + abs(rest - taken[j2] - half)
                                if value < best:
                                    best = value
                                    give, take, take2 = mine[i], theirs[j], theirs[j2]
                                    give2 = mine[i2] if i2 > i else NONE
                                    other = gpu
        if other < 0:
            break
        _exchange(packing, fullest, other, (give, give2), (take, take2))
        fullest = fullest_gpu(load)
        sort_places(order, load, NEARLY)
    return float(load[fullest])


@inner()
def _exchangeable(
    source: int, target: int, packing: Packing, slots: IntArray, shares: FloatArray
) -> int:
    """List the slots and shares of a GPU's items that the other lacks; return how many."""
    count = 0
    for slot in range(packing.filled[source]):
        expert = packing.items[source, slot]
        if not packing.hosted[expert, target]:
            slots[count] = slot
            shares[count] = packing.share[expert]
            count += 1
    return count


@inner()
def _exchange(
    packing: Packing, source: int, target: int, give: tuple[int, int], take: tuple[int, int]
) -> None:
    """Exchange the items in up to two slots for those in up to two others (NONE: no slot).

    Loads are summed again, so that they do not drift.
    """
    share, items, filled, load, _ = packing
    first, second = items[source, give[0]], NONE
    third = fourth = NONE
    if give[1] >= 0:
        second = items[source, give[1]]
    if take[0] >= 0:
        third = items[target, take[0]]
    if take[1] >= 0:
        fourth = items[target, take[1]]
    for expert in (first, second):
        if expert >= 0:
            remove_copy(source, expert, packing)
    for expert in (third, fourth):
        if expert >= 0:
            remove_copy(target, expert, packing)
            add_copy(source, expert, packing)
    for expert in (first, second):
        if expert >= 0:
            add_copy(target, expert, packing)
    for gpu in (source, target):
        total = 0.0
        for slot in range(filled[gpu]):
            total += share[items[gpu, slot]]
        load[gpu] = total


@njit()
def kick(packing: Packing, low: IntArray, high: IntArray, target: float) -> float:
    """Leave a local optimum, in place: overload another GPU, improve, keep it if better.

    Each item of the fullest GPU in turn goes to the GPU that it overloads least, alone or in
    exchange for one of that GPU's items. Where none of this ends better, go on from the best
    of the worse, `_DEPTH` times; then return to the start.

    Returns
    -------
    float
        Load of the fullest GPU then.
    """
    _, items, filled, load, hosted = packing
    first = float(load[fullest_gpu(load)])
    start, before, least = _copied(packing), _copied(packing), _copied(packing)
    for _ in range(_DEPTH):
        fullest = fullest_gpu(load)
        top = load[fullest]
        _overwrite(before, packing)
        lowest = np.inf
        for slot in range(before.filled[fullest]):
            other, take = _least_overloaded(packing, low, high, fullest, slot)
            if other < 0:
                continue
            _exchange(packing, fullest, other, (slot, NONE), (take, NONE))
            value = first
            for barred in range(2):
                # At first as if it hosted everything: the relieved GPU gets nothing back.
                for expert in range(hosted.shape[0]):
                    hosted[expert, fullest] = barred == 0
                if barred == 1:
                    for left in range(filled[fullest]):
                        hosted[items[fullest, left], fullest] = True
                value = float(improve(packing, low, high, target))
            if value < first * (1.0 - PROGRESS):
                return value
            if value < lowest and abs(value - top) > top * PROGRESS:
                _overwrite(least, packing)
                lowest = value
            _overwrite(packing, before)
        if lowest == np.inf:
            break
        _overwrite(packing, least)
    _overwrite(packing, start)
    return first


@inner()
def _least_overloaded(
    packing: Packing, low: IntArray, high: IntArray, fullest: int, slot: int
) -> tuple[int, int]:
    """Choose the GPU for an item of the fullest one, and the slot to take in exchange (NONE)."""
    share, items, filled, load, hosted = packing
    expert = items[fullest, slot]
    best, take, other = np.inf, NONE, NONE
    for gpu in range(load.size):
        if gpu == fullest or hosted[expert, gpu]:
            continue
        if filled[fullest] > low[fullest] and filled[gpu] < high[gpu]:
            if load[gpu] + share[expert] < best:
                best, take, other = load[gpu] + share[expert], NONE, gpu
            continue
        for back in range(filled[gpu]):
            shift = share[expert] - share[items[gpu, back]]
            if shift <= load[fullest] * PROGRESS or hosted[items[gpu, back], fullest]:
                continue
            if load[gpu] + shift < best:
                best, take, other = load[gpu] + shift, back, gpu
    return other, take


@inner()
def _copied(packing: Packing) -> Packing:
    share, items, filled, load, hosted = packing
    return Packing(share, items.copy(), filled.copy(), load.copy(), hosted.copy())


@inner()
def _overwrite(packing: Packing, other: Packing) -> None:
    """Make one placement the same as another (loops compile faster than slices)."""
    for gpu in range(packing.filled.size):
        packing.filled[gpu] = other.filled[gpu]
        packing.load[gpu] = other.load[gpu]
        for slot in range(other.filled[gpu]):
            packing.items[gpu, slot] = other.items[gpu, slot]
    for expert in range(packing.hosted.shape[0]):
        for gpu in range(packing.hosted.shape[1]):
            packing.hosted[expert, gpu] = other.hosted[expert, gpu]
