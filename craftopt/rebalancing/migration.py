"""Migration: in which order copies are received and dropped, so that serving never stops.

Between rounds no GPU has more copies in a layer than it has slots there. Within a round a GPU may
receive copies into staging slots, which the drops at the end of the round empty again.

Why this always ends with one staging slot per GPU: after all drops that leave an expert a copy,
whatever is still to be dropped is some expert's last copy, so that a GPU still has to receive it.
Take a layer that is not done. Start at a GPU that has to receive a copy: either it has a free
slot, or it has a copy to drop, whose expert another GPU has to receive; go on there. The walk ends
at a free slot or comes back to a GPU that it has seen, and then the walk, or its cycle, can be
carried out in one round with one staging slot on every GPU of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from craftopt.documents import write_json
from craftopt.errors import InfeasibleError, InputError, number, whole
from craftopt.loads import IntArray
from craftopt.plan import Plan
from craftopt.rebalancing.relabelling import check_comparable
from craftopt.rebalancing.survivors import alive_gpus, resized


@dataclass(frozen=True)
class Step:
    """One step of a migration.

    Parameters
    ----------
    round : int
        Receptions of a round can run side by side; its drops follow when all have ended.
    action : {"receive", "drop"}
    layer, expert, gpu : int
        What happens where; layers and experts by position.
    source : int or None
        GPU to receive from; None where no GPU that is left has a copy: load it from storage.
    """

    round: int
    action: Literal["receive", "drop"]
    layer: int
    expert: int
    gpu: int
    source: int | None = None


@dataclass(frozen=True, eq=False)
class Migration:
    """Hold the steps from one plan to another, in order.

    Parameters
    ----------
    steps : tuple of Step
    gpus : int
    staging : int
        Staging slots per GPU that the steps make use of at most.
    """

    steps: tuple[Step, ...]
    gpus: int
    staging: int

    @property
    def rounds(self) -> int:
        """Rounds, one after the other."""
        return self.steps[-1].round + 1 if self.steps else 0

    @property
    def moves(self) -> int:
        """Copies received."""
        return sum(step.action == "receive" for step in self.steps)

    def traffic(self) -> IntArray:
        """Count the copies that GPUs send and receive, int64 [rounds, 2, gpus]."""
        result = np.zeros((self.rounds, 2, self.gpus), dtype=np.int64)
        for step in self.steps:
            if step.action == "receive":
                result[step.round, 1, step.gpu] += 1
                if step.source is not None:
                    result[step.round, 0, step.source] += 1
        return result

    def seconds(self, expert_bytes: float, link_bytes_per_second: float) -> float:
        """Estimate the time on links that send and receive at once, one link per GPU.

        A round takes as long as its busiest GPU; rounds follow each other.

        Examples
        --------
        >>> import craftopt as co
        >>> old = co.Plan.from_phy2log([[0, 1, 2, 3]], gpus=2)
        >>> new = co.Plan.from_phy2log([[0, 2, 1, 3]], gpus=2)
        >>> co.plan_migration(old, new).seconds(44e6, 44e9)
        0.001
        """
        number("expert_bytes", expert_bytes, above=0)
        number("link_bytes_per_second", link_bytes_per_second, above=0)
        busiest = self.traffic().max(axis=(1, 2)).sum() if self.steps else 0
        return float(busiest * (expert_bytes / link_bytes_per_second))

    def to_json(self) -> str:
        """Write the steps as JSON, one a line."""
        steps = [
            {
                "round": step.round,
                "action": step.action,
                "layer": step.layer,
                "expert": step.expert,
                "gpu": step.gpu,
                **({"source": step.source} if step.action == "receive" else {}),
            }
            for step in self.steps
        ]
        head = {"gpus": self.gpus, "staging": self.staging, "rounds": self.rounds}
        return write_json({**head, "steps": steps}, {"steps": 1})

    def __repr__(self) -> str:
        return f"Migration(moves={self.moves}, rounds={self.rounds}, staging={self.staging})"


def plan_migration(
    old: Plan, new: Plan, *, staging: int = 1, active: npt.ArrayLike | None = None
) -> Migration:
    """Order the steps from one plan to another.

    At any time every expert has a copy, a copy is received from a GPU that holds it, and a GPU
    holds in a layer no more copies than its slots there (what the old or the new plan fills,
    whichever is more) and in staging, summed over the layers, no more than ``staging``.

    Parameters
    ----------
    old, new : Plan
        Of the same layers and experts. Of different numbers of GPUs, the last ones come or leave,
        and those that leave send before.
    staging : int
        Spare slots per GPU, for a copy of any layer. 1 is always enough. With 0 only GPUs with a
        free or freed slot can receive: enough to replace replicas, not to exchange last copies.
    active : array_like of bool [gpus of the new plan], optional
        GPUs that are alive, by default those that the new plan does not call dead; the old copies
        of the others are lost.

    Returns
    -------
    Migration

    Raises
    ------
    InputError
        Plans of different models or layers, ``staging`` below 0, a new plan that uses dead GPUs.
    InfeasibleError
        Without a staging slot there is no way.

    Examples
    --------
    >>> import craftopt as co
    >>> old = co.Plan.from_phy2log([[0, 1, 2, 3]], gpus=2)
    >>> new = co.Plan.from_phy2log([[0, 2, 1, 3]], gpus=2)
    >>> for step in co.plan_migration(old, new).steps:
    ...     print(step.round, step.action, step.expert, step.gpu, step.source)
    0 receive 1 1 0
    0 receive 2 0 1
    0 drop 1 0 None
    0 drop 2 1 None
    """
    check_comparable(old, new)
    whole("staging", staging, 0)
    if active is None:
        active = ~np.isin(np.arange(new.gpus), new.dead)
    alive = alive_gpus(active, new.gpus)
    used = np.flatnonzero(new.copies[:, :, ~alive].any(axis=(0, 1)))
    if used.size:
        raise InputError(
            f"the new plan uses GPU {np.flatnonzero(~alive)[used[0]]}, which active= calls dead; "
            "plan for the GPUs that are alive"
        )
    gpus = max(old.gpus, new.gpus)
    before = resized(old.copies, gpus).astype(np.int64)
    before[:, :, : new.gpus][:, :, ~alive] = 0
    return _Mover(before, resized(new.copies, gpus).astype(np.int64), staging).run()


class _Layer:
    """One layer during the migration: what is hosted, and what is still to come and go."""

    def __init__(self, old: IntArray, new: IntArray) -> None:
        self.hosted = old.copy()
        self.room = np.maximum(old.sum(axis=0), new.sum(axis=0)) - old.sum(axis=0)
        expert, gpu = np.nonzero(old > new)
        repeats = (old - new)[expert, gpu]
        self.leaving = [
            (int(e), int(g))
            for e, g, n in zip(expert, gpu, repeats, strict=True)
            for _ in range(int(n))
        ]
        gpu, expert = np.nonzero((new > old).T)
        repeats = (new - old)[expert, gpu]
        self.coming = [
            (int(e), int(g))
            for e, g, n in zip(expert, gpu, repeats, strict=True)
            for _ in range(int(n))
        ]


class _Mover:
    """Carry a migration out on paper."""

    def __init__(self, old: IntArray, new: IntArray, staging: int) -> None:
        self.layers = [_Layer(first, second) for first, second in zip(old, new, strict=True)]
        self.gpus = old.shape[2]
        self.staging = staging
        self.used = 0
        self.round = 0
        self.steps: list[Step] = []

    def run(self) -> Migration:
        """Go round by round until nothing is left to do."""
        busy = [(index, layer) for index, layer in enumerate(self.layers)]
        self._drop(busy)
        while busy := [(i, layer) for i, layer in busy if layer.coming or layer.leaving]:
            before = len(self.steps)
            self.staged = np.zeros(self.gpus, dtype=np.int64)
            self.sent = np.zeros(self.gpus, dtype=np.int64)
            for index, layer in busy:
                self._receive(index, layer)
            if len(self.steps) == before:
                raise InfeasibleError(
                    "last copies have to change places and no GPU has a free slot; pass staging=1"
                )
            self.used = max(self.used, int(self.staged.max()))
            self._drop(busy)
            self.round += 1
        return Migration(tuple(self.steps), self.gpus, self.used)

    def _drop(self, busy: list[tuple[int, _Layer]]) -> None:
        """Drop what leaves its expert a copy."""
        for index, layer in busy:
            copies = layer.hosted.sum(axis=1)
            kept = []
            for expert, gpu in layer.leaving:
                if copies[expert] == 1:
                    kept.append((expert, gpu))
                    continue
                copies[expert] -= 1
                layer.hosted[expert, gpu] -= 1
                layer.room[gpu] += 1
                self.steps.append(Step(self.round, "drop", index, expert, gpu))
            layer.leaving = kept

    def _receive(self, index: int, layer: _Layer) -> None:
        """Receive what there is room for, then what walks make room for."""
        before = layer.hosted.copy()
        waiting = []
        for expert, gpu in layer.coming:
            if layer.room[gpu] > 0:
                self._take(index, layer, before, expert, gpu)
            else:
                waiting.append((expert, gpu))
        if self.staging and waiting:
            waiting = self._stage(index, layer, before, waiting)
        layer.coming = waiting

    def _stage(
        self, index: int, layer: _Layer, before: IntArray, waiting: list[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """Receive into staging slots that this round's drops empty; return who still waits."""
        awaited: dict[int, list[int]] = {}  # expert -> GPUs that wait for it
        for expert, gpu in waiting:
            awaited.setdefault(expert, []).append(gpu)
        # What leaves a GPU: last copies, and what this round has brought elsewhere.
        home = dict(layer.leaving)
        last: dict[int, list[int]] = {}
        free: dict[int, list[int]] = {}
        copies = layer.hosted.sum(axis=1)
        for expert, gpu in layer.leaving:
            (last if copies[expert] == 1 else free).setdefault(gpu, []).append(expert)
        for start in waiting:
            if start[1] not in awaited[start[0]]:
                continue  # a walk from elsewhere has come by
            walk = self._walk(start, awaited, last, free)
            for expert, gpu in walk:
                awaited[expert].remove(gpu)
                self.staged[gpu] += 1
                self._take(index, layer, before, expert, gpu)
                if expert in last.get(home.get(expert, -1), ()):
                    last[home[expert]].remove(expert)
                    free.setdefault(home[expert], []).append(expert)
            for _, gpu in walk:  # each empties its staging slot by one of its drops
                free[gpu].pop()
        return [(expert, gpu) for expert, gpus in awaited.items() for gpu in gpus]

    def _walk(
        self,
        start: tuple[int, int],
        awaited: dict[int, list[int]],
        last: dict[int, list[int]],
        free: dict[int, list[int]],
    ) -> list[tuple[int, int]]:
        """Find receptions (expert, GPU) after which every GPU of them has a copy to drop."""
        if self.staged[start[1]] == self.staging:
            return []
        walk, place = [start], {start[1]: 0}
        while True:
            gpu = walk[-1][1]
            if free.get(gpu):
                return walk
            onward = [
                (expert, target)
                for expert in last.get(gpu, ())
                for target in awaited[expert]
                if target in place or self.staged[target] < self.staging
            ]
            if not onward:
                return []  # other layers use the staging slots in this round
            expert, target = onward[0]
            if target in place:
                return [*walk[place[target] + 1 :], (expert, target)]
            place[target] = len(walk)
            walk.append((expert, target))

    def _take(self, index: int, layer: _Layer, before: IntArray, expert: int, gpu: int) -> None:
        hosts = np.flatnonzero(before[expert])
        source = None
        if hosts.size:
            source = int(hosts[np.argmin(self.sent[hosts])])
            self.sent[source] += 1
        layer.hosted[expert, gpu] += 1
        layer.room[gpu] -= 1
        self.steps.append(Step(self.round, "receive", index, expert, gpu, source))
