"""Placement within a layer: longest processing time first, then swaps on the fullest GPU.

The kernels keep one state: ``items`` [gpus, most slots], the experts that a GPU hosts;
``filled`` [gpus], how many; ``load`` [gpus]; ``hosted`` [experts, gpus]. A GPU keeps between
``low`` and ``high`` copies, and never two of one expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numba import njit

from craftopt.loads import BoolArray, FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.search.replication import replicate

# An exchange counts when it lowers the fuller of its two GPUs by this much, relative.
_PROGRESS = 1e-9
# Pairs of items are tried when single ones close less than this part of the way to the target.
_ENOUGH = 0.3
# A layer whose fullest GPU stays this far above its bound has copies exchanged.
_BAD = 1e-3
# At most so often.
_TRIALS = 40
# So many replicas are tried as copies of light experts, in layers of so many experts: in larger
# ones it never helped.
_HELD, _SMALL = 4, 64
# Worse placements that a search goes through, in a row, before it returns.
_DEPTH = 3


class Layout(NamedTuple):
    """The GPUs that a layer is placed on, and what its copies must keep.

    Parameters
    ----------
    group_of : int64 [experts]
        Group of every expert, 0, 1, ...; groups stay within a node.
    nodes, gpus : int
        ``nodes`` divides the groups and the GPUs.
    copies_limit : int
        Most copies of an expert, at most the GPUs of a node.
    slack : int
        0: every GPU takes floor or ceil of its node's copies. Else any number, up to that many
        above ceil.
    """

    group_of: IntArray
    nodes: int
    gpus: int
    copies_limit: int
    slack: int = 0


def place_layer(
    weight: FloatArray,
    replicas: int,
    layout: Layout,
    tolerance: float,
) -> tuple[Copies, float]:
    """Replicate and place one layer.

    Parameters
    ----------
    weight : float64 [experts]
    replicas : int
        Extra copies: a multiple of the nodes.
    layout : Layout
    tolerance : float
        Stop this close, relative, to the bound max(mean, heaviest copy).

    Returns
    -------
    copies : uint8 [experts, gpus]
    value : float
        Load of the fullest GPU.
    """
    # The frame is Python and the loops below are compiled: compiling all in one takes twice
    # as long, and every user pays for that once.
    group_of, nodes, gpus, copies_limit, slack = layout
    width = gpus // nodes
    members, counts, bound = [np.arange(weight.size)], [], 0.0
    if nodes > 1:
        node_of = _node_of_groups(weight, group_of, nodes)
        members = [np.flatnonzero(node_of[group_of] == node) for node in range(nodes)]
    for local in members:
        load = weight[local]
        counts.append(replicate(load, replicas // nodes, copies_limit))
        bound = max(bound, float(load.sum()) / width, float((load / counts[-1]).max()))
    copies = np.zeros((weight.size, gpus), dtype=np.uint8)
    value = 0.0
    for node, (local, count) in enumerate(zip(members, counts, strict=True)):
        hosted, fullest = _place(weight[local], count, width, copies_limit, slack, bound, tolerance)
        copies[local, node * width : (node + 1) * width] = hosted
        value = max(value, fullest)
    return copies, value


@njit(cache=True, nogil=True)
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
    experts, gpus = copies.shape
    filled = np.zeros(gpus, dtype=np.int64)
    load = np.zeros(gpus)
    hosted = np.zeros((experts, gpus), dtype=np.bool_)
    for gpu in range(gpus):
        for expert in range(experts):
            if copies[expert, gpu]:
                hosted[expert, gpu] = True
                load[gpu] += share[expert]
                filled[gpu] += 1
    items = np.zeros((gpus, filled.max()), dtype=np.int64)
    for gpu in range(gpus):
        items[gpu, : filled[gpu]] = np.flatnonzero(hosted[:, gpu])
    fixed = filled.copy()
    improve(share, items, filled, load, hosted, fixed, fixed, target, 10 * filled.sum())
    result = np.zeros((experts, gpus), dtype=np.uint8)
    for gpu in range(gpus):
        for slot in range(filled[gpu]):
            result[items[gpu, slot], gpu] = 1
    return result


@njit(cache=True, nogil=True)
def _node_of_groups(weight: FloatArray, group_of: IntArray, nodes: int) -> IntArray:
    """Spread the groups over the nodes, equally many to each, with equal loads."""
    groups = group_of.max() + 1
    share = np.zeros(groups)
    for expert in range(group_of.size):
        share[group_of[expert]] += weight[expert]
    room = np.full(nodes, groups // nodes)
    items, filled, load, hosted = pack(share, np.ones(groups, dtype=np.int64), room, room[0])
    improve(share, items, filled, load, hosted, room, room, load.mean(), 10 * groups)
    node_of = np.empty(groups, dtype=np.int64)
    for node in range(nodes):
        for slot in range(filled[node]):
            node_of[items[node, slot]] = node
    return node_of


def _place(
    weight: FloatArray,
    count: IntArray,
    gpus: int,
    copies_limit: int,
    slack: int,
    bound: float,
    tolerance: float,
) -> tuple[BoolArray, float]:
    """Place given copies; where the result stays bad, exchange copies and place again."""

    def attempt(count: IntArray, kicks: bool) -> tuple[BoolArray, float, IntArray]:
        found: tuple[BoolArray, float, IntArray] = _pack_and_improve(
            weight, count, gpus, slack, bound, tolerance, kicks
        )
        return found

    def climb(count: IntArray, kicks: bool) -> tuple[BoolArray, float]:
        hosted, fullest, crowd = attempt(count, kicks)
        trials = 0
        while fullest > bound * (1.0 + _BAD):
            for donor, taker in _copy_exchanges(weight, count, copies_limit, fullest, crowd):
                if trials == _TRIALS:
                    return hosted, fullest
                trials += 1
                trial = count.copy()
                trial[donor] -= 1
                trial[taker] += 1
                # Kicks take long: only a trial that is better without them gets them.
                if attempt(trial, False)[1] < fullest * (1.0 - _PROGRESS):
                    count = trial
                    hosted, fullest, crowd = attempt(count, kicks)
                    break
            else:
                break
        return hosted, fullest

    hosted, fullest = climb(count, True)
    # Copies of the heaviest are not always the best use of slots that have to be filled: start
    # with some of them as copies of the lightest instead.
    replicas = int(count.sum()) - weight.size if weight.size <= _SMALL else 0
    for held in range(1, min(replicas, _HELD, weight.size) + 1):
        if fullest <= bound * (1.0 + _BAD):
            break
        other = replicate(weight, replicas - held, copies_limit)
        light = np.argsort(np.where(other < copies_limit, weight, np.inf), kind="stable")[:held]
        other[light] += 1
        if other.max() <= copies_limit:
            better = climb(other, False)
            if better[1] < fullest * (1.0 - _PROGRESS):
                hosted, fullest = better
    return hosted, fullest


def _copy_exchanges(
    weight: FloatArray, count: IntArray, copies_limit: int, fullest: float, crowd: IntArray
) -> Iterator[tuple[int, int]]:
    """List exchanges of one copy between experts: who has one less, who has one more.

    The donor is one of the two whose copies grow least by it. The taker is on the fullest GPU,
    or it is the lightest expert of all, as a filler.
    """
    grown = np.divide(weight, count - 1, out=np.full(weight.size, np.inf), where=count > 1)
    filler = int(np.argmin(np.where(count < copies_limit, weight, np.inf)))
    for donor in np.argsort(grown, kind="stable")[:2].tolist():
        if grown[donor] < fullest:
            for taker in [*crowd.tolist(), filler]:
                if taker != donor and count[taker] < copies_limit:
                    yield donor, taker


@njit(cache=True, nogil=True)
def _pack_and_improve(
    weight: FloatArray,
    count: IntArray,
    gpus: int,
    slack: int,
    bound: float,
    tolerance: float,
    kicks: bool,
) -> tuple[BoolArray, float, IntArray]:
    share = weight / count
    total = count.sum()
    floor, extra = total // gpus, total % gpus
    ceil = floor + (1 if extra else 0)
    if slack:
        low = np.zeros(gpus, dtype=np.int64)
        high = np.full(gpus, min(ceil + slack, weight.size))
        capacity = high
    else:
        low, high = np.full(gpus, floor), np.full(gpus, ceil)
        capacity = low.copy()
        capacity[gpus - extra :] = ceil
    items, filled, load, hosted = pack(share, count, capacity, high[0])
    target = bound * (1.0 + tolerance)
    improve(share, items, filled, load, hosted, low, high, target, 10 * total)
    while kicks and load.max() > bound * (1.0 + _BAD):
        if not _kick(share, items, filled, load, hosted, low, high, target):
            break
    fullest = int(np.argmax(load))
    return hosted, load[fullest], items[fullest, : filled[fullest]].copy()


@njit(cache=True, nogil=True)
def _kick(
    share: FloatArray,
    items: IntArray,
    filled: IntArray,
    load: FloatArray,
    hosted: BoolArray,
    low: IntArray,
    high: IntArray,
    target: float,
) -> bool:
    """Leave a local optimum, in place: overload another GPU, improve, keep it if better.

    Each item of the fullest GPU in turn goes to the GPU that it overloads least, alone or in
    exchange for one of that GPU's items. Where none of this ends better, go on from the best
    of the worse, `_DEPTH` times; then return to the start.
    """
    first = load.max()
    start = items.copy(), filled.copy(), load.copy(), hosted.copy()
    for _ in range(_DEPTH):
        fullest = int(np.argmax(load))
        top = load[fullest]
        before = items.copy(), filled.copy(), load.copy(), hosted.copy()
        least = before
        lowest = np.inf
        for slot in range(before[1][fullest]):
            expert = items[fullest, slot]
            best, take, other = np.inf, -1, -1
            for gpu in range(load.size):
                if gpu == fullest or hosted[expert, gpu]:
                    continue
                if filled[fullest] > low[fullest] and filled[gpu] < high[gpu]:
                    if load[gpu] + share[expert] < best:
                        best, take, other = load[gpu] + share[expert], -1, gpu
                    continue
                for back in range(filled[gpu]):
                    shift = share[expert] - share[items[gpu, back]]
                    if shift <= top * _PROGRESS or hosted[items[gpu, back], fullest]:
                        continue
                    if load[gpu] + shift < best:
                        best, take, other = load[gpu] + shift, back, gpu
            if other < 0:
                continue
            _exchange(fullest, other, slot, -1, take, -1, share, items, filled, load, hosted)
            # As if it hosted everything, the relieved GPU gets nothing back for now.
            hosted[:, fullest] = True
            improve(share, items, filled, load, hosted, low, high, target, 10 * filled.sum())
            hosted[:, fullest] = False
            for left in range(filled[fullest]):
                hosted[items[fullest, left], fullest] = True
            improve(share, items, filled, load, hosted, low, high, target, 10 * filled.sum())
            value = load.max()
            if value < first * (1.0 - _PROGRESS):
                return True
            if value < lowest and abs(value - top) > top * _PROGRESS:
                least = items.copy(), filled.copy(), load.copy(), hosted.copy()
                lowest = value
            items[:], filled[:], load[:], hosted[:] = before
        if lowest == np.inf:
            break
        items[:], filled[:], load[:], hosted[:] = least
    items[:], filled[:], load[:], hosted[:] = start
    return False


@njit(cache=True, nogil=True)
def pack(
    share: FloatArray, count: IntArray, capacity: IntArray, width: int
) -> tuple[IntArray, IntArray, FloatArray, BoolArray]:
    """Give the copies, heaviest first, to the lightest GPU with room that lacks the expert.

    Of equally light GPUs the first is taken. Capacities that rise with the GPU's number make
    heavy copies meet fewer companions.

    Parameters
    ----------
    share : float64 [experts]
        Load of one copy.
    count : int64 [experts]
        Copies, at most one per GPU.
    capacity : int64 [gpus]
        Most copies of a GPU; they sum to at least the copies.
    width : int
        Most copies that a GPU may ever hold: width of ``items``.

    Returns
    -------
    items, filled, load, hosted
        The state of this module.
    """
    gpus = capacity.size
    items = np.zeros((gpus, width), dtype=np.int64)
    filled = np.zeros(gpus, dtype=np.int64)
    load = np.zeros(gpus)
    hosted = np.zeros((share.size, gpus), dtype=np.bool_)
    for expert in np.argsort(-share, kind="mergesort"):
        for _ in range(count[expert]):
            lightest = -1
            for gpu in range(gpus):
                if (
                    filled[gpu] < capacity[gpu]
                    and not hosted[expert, gpu]
                    and (lightest < 0 or load[gpu] < load[lightest])
                ):
                    lightest = gpu
            if lightest < 0:
                lightest = _make_room(expert, share, capacity, items, filled, load, hosted)
            _add(lightest, expert, items, filled, hosted)
            load[lightest] += share[expert]
    return items, filled, load, hosted


@njit(cache=True, nogil=True)
def _make_room(
    expert: int,
    share: FloatArray,
    capacity: IntArray,
    items: IntArray,
    filled: IntArray,
    load: FloatArray,
    hosted: BoolArray,
) -> int:
    """Free a slot on a GPU without the expert: one of its items goes to a GPU with room.

    Every GPU with room hosts the expert already. A full GPU without it has an item that some
    such GPU lacks, as long as capacities differ by at most 1.
    """
    best, best_slot, best_target = -1, -1, -1
    for gpu in range(capacity.size):
        if hosted[expert, gpu]:
            continue
        for target in range(capacity.size):
            if filled[target] >= capacity[target]:
                continue
            for slot in range(filled[gpu]):
                if hosted[items[gpu, slot], target]:
                    continue
                lighter = best < 0 or (
                    load[target] + share[items[gpu, slot]]
                    < load[best_target] + share[items[best, best_slot]]
                )
                if lighter:
                    best, best_slot, best_target = gpu, slot, target
    moved = items[best, best_slot]
    _remove(best, moved, items, filled, hosted)
    _add(best_target, moved, items, filled, hosted)
    load[best] -= share[moved]
    load[best_target] += share[moved]
    return best


@njit(cache=True, nogil=True)
def improve(
    share: FloatArray,
    items: IntArray,
    filled: IntArray,
    load: FloatArray,
    hosted: BoolArray,
    low: IntArray,
    high: IntArray,
    target: float,
    work: int,
) -> int:
    """Lower the fullest GPU by moves and exchanges, in place, until ``target`` or no gain.

    Tries a move and 1-1 exchanges of the fullest GPU with every other, lightest first; where
    these gain little, 2-2, 2-1 and 1-2 exchanges too. The best one is made, or the first that
    brings both GPUs to the target.

    Returns
    -------
    int
        Exchanges made, at most ``work``.
    """
    most = items.shape[1]
    # Slots and shares of what the fullest GPU may give and take.
    mine, theirs = np.empty(most, dtype=np.int64), np.empty(most, dtype=np.int64)
    given, taken = np.empty(most), np.empty(most)
    for done in range(work):
        fullest = int(np.argmax(load))
        top = load[fullest]
        if top <= target:
            return done
        order = np.argsort(load)
        best = top * (1.0 - _PROGRESS)
        give, give2, take, take2, other = -1, -1, -1, -1, -1
        for pairs in range(2):
            if best <= target or top - best >= _ENOUGH * (top - target):
                break
            for gpu in order:
                gap = top - load[gpu]
                if gap <= 0.0 or best <= target:
                    break
                gives = _exchangeable(fullest, gpu, share, items, filled, hosted, mine, given)
                takes = _exchangeable(gpu, fullest, share, items, filled, hosted, theirs, taken)
                # Shifting half the gap levels the two GPUs; the fuller one then has ``middle``.
                half, middle = 0.5 * gap, top - 0.5 * gap
                more = filled[fullest] > low[fullest] and filled[gpu] < high[gpu]
                fewer = filled[fullest] < high[fullest] and filled[gpu] > low[gpu]
                if pairs == 0:
                    for i in range(gives):
                        if more and middle + abs(given[i] - half) < best:
                            best = middle + abs(given[i] - half)
                            give, take, other = mine[i], -1, gpu
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
                                    give, give2, take, take2 = mine[i], mine[i2], theirs[j], -1
                                    other = gpu
                            if i2 == i and not fewer:
                                continue
                            for j2 in range(j + 1, takes):
                                value = middle + abs(rest - taken[j2] - half)
                                if value < best:
                                    best = value
                                    give, take, take2 = mine[i], theirs[j], theirs[j2]
                                    give2 = mine[i2] if i2 > i else -1
                                    other = gpu
        if other < 0:
            return done
        _exchange(fullest, other, give, give2, take, take2, share, items, filled, load, hosted)
    return work


@njit(cache=True, nogil=True)
def _exchangeable(
    source: int,
    target: int,
    share: FloatArray,
    items: IntArray,
    filled: IntArray,
    hosted: BoolArray,
    slots: IntArray,
    shares: FloatArray,
) -> int:
    """List the slots and shares of a GPU's items that the other lacks; return how many."""
    count = 0
    for slot in range(filled[source]):
        expert = items[source, slot]
        if not hosted[expert, target]:
            slots[count] = slot
            shares[count] = share[expert]
            count += 1
    return count


@njit(cache=True, nogil=True)
def _exchange(
    source: int,
    target: int,
    give: int,
    give2: int,
    take: int,
    take2: int,
    share: FloatArray,
    items: IntArray,
    filled: IntArray,
    load: FloatArray,
    hosted: BoolArray,
) -> None:
    """Exchange up to two items for up to two (-1 = none); loads are summed anew."""
    first = items[source, give]
    second = items[source, give2] if give2 >= 0 else -1
    third = items[target, take] if take >= 0 else -1
    fourth = items[target, take2] if take2 >= 0 else -1
    for expert in (first, second):
        if expert >= 0:
            _remove(source, expert, items, filled, hosted)
    for expert in (third, fourth):
        if expert >= 0:
            _remove(target, expert, items, filled, hosted)
            _add(source, expert, items, filled, hosted)
    for expert in (first, second):
        if expert >= 0:
            _add(target, expert, items, filled, hosted)
    for gpu in (source, target):
        total = 0.0
        for slot in range(filled[gpu]):
            total += share[items[gpu, slot]]
        load[gpu] = total


@njit(cache=True, nogil=True)
def _remove(gpu: int, expert: int, items: IntArray, filled: IntArray, hosted: BoolArray) -> None:
    slot = 0
    while items[gpu, slot] != expert:
        slot += 1
    filled[gpu] -= 1
    items[gpu, slot] = items[gpu, filled[gpu]]
    hosted[expert, gpu] = False


@njit(cache=True, nogil=True)
def _add(gpu: int, expert: int, items: IntArray, filled: IntArray, hosted: BoolArray) -> None:
    items[gpu, filled[gpu]] = expert
    filled[gpu] += 1
    hosted[expert, gpu] = True
