"""Placement within a layer: longest processing time first (LPT), then descent.

Copies go to the lightest GPU with room, heaviest first; exchanges on the fullest GPU follow
(`craftopt.search.descent`). Where the result stays far from its bound, copies are exchanged
between experts and all are placed again: an iterated local search over the numbers of copies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from craftopt.bounds import cardinality_bound
from craftopt.jit import inner, njit
from craftopt.loads import FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.search.descent import (
    PROGRESS,
    Packing,
    add_copy,
    empty_packing,
    improve,
    kick,
    remove_copy,
)
from craftopt.search.kernels import NONE
from craftopt.search.replication import replicate

# A layer whose fullest GPU stays this far above its bound, relative, has copies exchanged.
_BAD = 1e-3
# Limit on copy exchanges tried in one climb.
_TRIALS = 40
# Where it stays this far above, some replicas are tried as copies of light experts: from that many
# of the best starts, copies are exchanged again. In layers of few experts sooner, and from starts
# that are no better by themselves, too.
_FAR, _STARTS, _SMALL = 5e-3, 4, 64


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
    # The frame is Python and the loops are compiled, each kernel apart: a compiled frame would
    # have LLVM optimise every kernel once more within it.
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
        search = _Node(weight[local], width, copies_limit, slack, bound, tolerance)
        packing, fullest = search.place(count)
        copies[local, node * width : (node + 1) * width] = packing.hosted
        value = max(value, fullest)
    return copies, value


def _node_of_groups(weight: FloatArray, group_of: IntArray, nodes: int) -> IntArray:
    """Spread the groups over the nodes, equally many to each, with equal loads."""
    share = np.bincount(group_of, weights=weight).astype(np.float64)
    room = np.full(nodes, share.size // nodes)
    packing = pack(share, np.ones(share.size, dtype=np.int64), room, int(room[0]))
    mean = float(np.cumsum(packing.load)[-1]) / nodes  # summed in order, unlike np.mean
    improve(packing, room, room, mean)
    node_of: IntArray = packing.hosted.argmax(axis=1)
    return node_of


@dataclass(frozen=True, eq=False)
class _Node:
    """Places the experts of one node on its GPUs.

    ``slack`` and ``tolerance`` are those of `place_layer`, ``bound`` is what the fullest GPU
    carries at least.
    """

    weight: FloatArray  # [experts]
    gpus: int
    copies_limit: int
    slack: int
    bound: float
    tolerance: float

    def place(self, count: IntArray) -> tuple[Packing, float]:
        """Place given copies; where the result stays bad, exchange copies and place again.

        Returns
        -------
        packing : Packing
        fullest : float
            Its largest load.
        """
        best, fullest = self._climb(count, kicks=True)
        replicas = int(count.sum()) - count.size
        if self.slack or not replicas or not self._is_bad(fullest):
            return best, fullest
        floor = max(float(self.weight.sum()) / self.gpus, float((self.weight / count).max()))
        least = cardinality_bound(self.weight, replicas, self.gpus, self.copies_limit, floor)[0]
        small = count.size <= _SMALL
        if fullest <= max(self.bound, least) * (1.0 + (_BAD if small else _FAR)):
            return best, fullest
        # Copies of the heaviest are not always the best use of slots that have to be filled:
        # hold some of them back for the lightest, and go on from the best of these.
        starts: list[tuple[float, int, IntArray]] = []
        for other in self._with_fillers(count, fullest):
            value = self._attempt(other, kicks=False)[1]
            if small or value < fullest:
                starts.append((value, len(starts), other))
        for _, _, other in sorted(starts)[:_STARTS]:
            packing, value = self._climb(other, kicks=False)
            if value < fullest * (1.0 - PROGRESS):
                best, fullest = packing, value
        return best, fullest

    def _with_fillers(self, count: IntArray, fullest: float) -> Iterator[IntArray]:
        """List copies with some of the replicas as fillers: copies of the lightest experts.

        Of 1, 2, ... 8, 10, ... of them, as long as the heaviest copy leaves room to do better.
        """
        replicas, limit = int(count.sum()) - count.size, self.copies_limit
        lightest = np.argsort(self.weight, kind="stable")
        held = 0
        while (held := held + max(1, held // 4)) <= replicas:
            other = replicate(self.weight, replicas - held, limit)
            if (self.weight / other).max() >= fullest * (1.0 - PROGRESS):
                break
            room = limit - other[lightest]
            other[lightest] += (held + room - room.cumsum()).clip(0, room)
            yield other

    def _is_bad(self, fullest: float) -> bool:
        return fullest > self.bound * (1.0 + _BAD)

    def _climb(self, count: IntArray, *, kicks: bool) -> tuple[Packing, float]:
        """Exchange copies between experts, the first exchange that helps, until none does."""
        best, fullest = self._attempt(count, kicks=kicks)
        trials = 0
        while self._is_bad(fullest):
            for donor, taker in self._copy_exchanges(count, best):
                if trials == _TRIALS:
                    return best, fullest
                trials += 1
                trial = count.copy()
                trial[donor] -= 1
                trial[taker] += 1
                # Kicks take long: only a trial that is better without them gets them.
                packing, value = self._attempt(trial, kicks=False)
                if value < fullest * (1.0 - PROGRESS):
                    count = trial
                    best, fullest = self._attempt(count, kicks=True) if kicks else (packing, value)
                    break
            else:
                break
        return best, fullest

    def _copy_exchanges(self, count: IntArray, packing: Packing) -> Iterator[tuple[int, int]]:
        """List exchanges of one copy between experts: who has one less, who has one more.

        The donor is one of the two whose copies grow least by it. The taker is on the fullest
        GPU, or it is the lightest expert of all, as a filler.
        """
        weight, more = self.weight, count < self.copies_limit
        fullest = int(packing.load.argmax())
        crowd = packing.items[fullest, : packing.filled[fullest]]
        grown = np.divide(weight, count - 1, out=np.full(weight.size, np.inf), where=count > 1)
        filler = int(np.argmin(np.where(more, weight, np.inf)))
        for donor in np.argsort(grown, kind="stable")[:2].tolist():
            if grown[donor] < packing.load[fullest]:
                for taker in [*crowd.tolist(), filler]:
                    if taker != donor and more[taker]:
                        yield donor, taker

    def _attempt(self, count: IntArray, *, kicks: bool) -> tuple[Packing, float]:
        """Pack, descend, and leave local optima as long as that helps."""
        floor, extra = divmod(int(count.sum()), self.gpus)
        ceil = floor + (1 if extra else 0)
        if self.slack:
            low = np.zeros(self.gpus, dtype=np.int64)
            high = capacity = np.full(self.gpus, min(ceil + self.slack, self.weight.size))
        else:
            low, high = np.full(self.gpus, floor), np.full(self.gpus, ceil)
            # The fuller GPUs come last, so that heavy copies meet fewer companions.
            capacity = low.copy()
            capacity[self.gpus - extra :] = ceil
        packing = pack(self.weight / count, count, capacity, int(high[0]))
        target = self.bound * (1.0 + self.tolerance)
        fullest, before = improve(packing, low, high, target), np.inf
        while kicks and self._is_bad(fullest) and fullest < before:
            before, fullest = fullest, kick(packing, low, high, target)
        return packing, fullest


def pack(share: FloatArray, count: IntArray, capacity: IntArray, most: int) -> Packing:
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
    most : int
        Most copies that a GPU may ever hold.
    """
    packing = empty_packing(share, capacity.size, most)
    _pack(packing, count, (-share).argsort(kind="stable"), capacity)
    return packing


@njit()
def _pack(packing: Packing, count: IntArray, order: IntArray, capacity: IntArray) -> None:
    share, _, filled, load, hosted = packing
    for expert in order:
        for _ in range(count[expert]):
            lightest = NONE
            for gpu in range(capacity.size):
                if (
                    filled[gpu] < capacity[gpu]
                    and not hosted[expert, gpu]
                    and (lightest < 0 or load[gpu] < load[lightest])
                ):
                    lightest = gpu
            if lightest < 0:
                lightest = _make_room(expert, capacity, packing)
            add_copy(lightest, expert, packing)
            load[lightest] += share[expert]


@inner()
def _make_room(expert: int, capacity: IntArray, packing: Packing) -> int:
    """Free a slot on a GPU without the expert: one of its items goes to a GPU with room.

    Every GPU with room hosts the expert already. A full GPU without it has an item that some
    such GPU lacks, as long as capacities differ by at most 1.
    """
    share, items, filled, load, hosted = packing
    best = best_slot = best_target = NONE
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
    remove_copy(best, moved, packing)
    add_copy(best_target, moved, packing)
    load[best] -= share[moved]
    load[best_target] += share[moved]
    return best
