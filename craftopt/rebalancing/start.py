"""Where the search starts: the previous plan, changed as little as the rules ask for.

Previous plans may break rules: EPLB hosts experts twice on a GPU, ranks die, budgets change.
"""

from __future__ import annotations

import numpy as np

from craftopt.loads import BoolArray, FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.planners.nominal import nominal_copies
from craftopt.problem import Problem
from craftopt.rebalancing.relabelling import moved_copies, relabel_copies
from craftopt.result import Options
from craftopt.rules import violations


def valid_start(problem: Problem) -> Copies:
    """Change the problem's previous plan into one that keeps the rules, with few moves.

    Where that fails, it is a nominal plan, relabelled so that most copies stay.

    Returns
    -------
    uint8 [layers, experts, gpus]
        Keeps every rule but, perhaps, ``max_moves``.
    """
    old, most = problem.previous_copies, problem.max_moves
    free = problem.variant(previous=None, max_moves=None)
    # Budget that the previous plan did not have is used as far as moves are left for it.
    needed = _repair(free, old, 0)
    left = problem.replicas
    if most is not None and needed is not None:
        left = max(0, most - moved_copies(needed, old))
    for copies in (_repair(free, old, left), needed):
        if copies is None or violations(problem.plan(copies, "start"), free):
            continue
        if most is None or moved_copies(copies, old) <= most or copies is needed:
            return copies
    return relabel_copies(nominal_copies(free, Options()).copies, old, problem.whole_nodes)


def _repair(problem: Problem, old: Copies, added: int) -> Copies | None:
    """Change the old copies as little as the rules ask for, and add some; None where stuck."""
    copies: Copies = np.minimum(old, 1)
    slots = _slots(problem, old.sum(axis=1, dtype=np.int64), added)
    weight = problem.loads.total().tokens[0]
    limit = problem.copies_limit
    for layer in range(copies.shape[0]):
        held = copies[layer].sum(axis=0, dtype=np.int64)
        count = copies[layer].sum(axis=1, dtype=np.int64)
        if (held == slots[layer]).all() and count.min() >= 1 and count.max() <= limit:
            continue
        if not _fill(copies[layer], weight[layer], slots[layer], limit):
            return None
    return copies


def _slots(problem: Problem, slots: IntArray, added: int) -> IntArray:
    """Choose the slots of every layer and GPU: as before where rules and budget allow, or more."""
    layers, gpus = slots.shape
    experts, budget = problem.loads.experts, problem.replicas
    if problem.slots == "uniform":
        width = int(slots.max())
        least, most = -(-experts // gpus), problem.uniform_slots
        width = min(max(width, least), most)
        return np.full_like(slots, width + min(most - width, added // (gpus * layers)))
    nodes = problem.group_nodes
    by_node = slots.reshape(layers, nodes, -1)
    step, limit = problem.replica_step, problem.layer_replicas_limit
    replicas = np.clip(slots.sum(axis=1) - experts, 0, limit) // step * step
    while replicas.sum() > budget:
        replicas[replicas.argmax()] -= step
    left = min(budget - int(replicas.sum()), added)
    while left >= step and (open_layers := np.flatnonzero(replicas < limit)).size:
        replicas[open_layers[replicas[open_layers].argmin()]] += step
        left -= step
    totals = slots.sum(axis=0)
    as_before = (replicas == slots.sum(axis=1) - experts).all() and np.ptp(totals) <= 1
    if as_before and (np.ptp(by_node.sum(axis=2), axis=1) == 0).all():
        spread = np.ptp(by_node, axis=2)
        if problem.slots == "free" or spread.max() <= 1:
            return slots
    # Floor or ceil of a layer's copies; what is left over goes to the GPUs that have the fewest
    # so far, which keeps the totals within 1, and to those that had more before.
    wanted = np.empty_like(slots)
    totals = np.zeros(gpus, dtype=np.int64)
    width = gpus // nodes
    for layer in range(layers):
        every, more = divmod((experts + int(replicas[layer])) // nodes, width)
        wanted[layer] = every
        for first in range(0, gpus, width):
            node = slice(first, first + width)
            order = np.lexsort((-slots[layer, node], totals[node]))
            wanted[layer, first + order[:more]] += 1
        totals += wanted[layer]
    return wanted


def _fill(copies: Copies, weight: FloatArray, slots: IntArray, limit: int) -> bool:
    """Make a layer's copies fill its slots, in place; say whether that worked.

    Copies are dropped where they are missed least and added where they help most.
    """
    count = copies.sum(axis=1, dtype=np.int64)
    held = copies.sum(axis=0, dtype=np.int64)

    def change(expert: int, gpu: int, by: int) -> None:
        copies[expert, gpu] = by > 0
        count[expert] += by
        held[gpu] += by

    def drop(gpu: int, spare: BoolArray) -> None:
        """Drop the copy whose expert has the lightest copies afterwards, a spare one if any."""
        here = np.flatnonzero(copies[:, gpu])
        spares = here[spare[here]]
        chosen = spares if spares.size else here
        after = weight[chosen] / np.maximum(count[chosen] - 1, 1)
        change(int(chosen[after.argmin()]), gpu, -1)

    for expert in np.flatnonzero(count > limit).tolist():
        for gpu in np.flatnonzero(copies[expert])[limit:].tolist():
            change(expert, gpu, -1)
    for gpu in range(slots.size):
        while held[gpu] > slots[gpu]:
            drop(gpu, count > 1)
    homeless = [int(e) for e in np.argsort(-weight, kind="stable") if count[e] == 0]
    while homeless:
        expert = homeless[0]
        load = np.einsum("e,eg->g", weight / np.maximum(count, 1), copies)
        room = held < slots
        if not room.any():
            # Where a copy of a replicated expert is missed least.
            cost = np.where((copies > 0) & (count > 1)[:, np.newaxis], load, np.inf)
            if not np.isfinite(cost).any():
                return False
            change(*divmod(int(cost.argmin()), slots.size), -1)
            continue
        change(expert, int(np.where(room, load, np.inf).argmin()), 1)
        homeless.pop(0)
    while (held < slots).any():
        load = np.einsum("e,eg->g", weight / count, copies)
        gpu = int(np.where(held < slots, load, np.inf).argmin())
        able = (copies[:, gpu] == 0) & (count < limit)
        if not able.any():
            return False
        change(int(np.where(able, weight / count, -1.0).argmax()), gpu, 1)
    return True
