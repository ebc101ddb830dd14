"""EPLB, DeepSeek's expert-parallel load balancer, as released.

Replicate the expert with the heaviest copies until all slots are used, then give the copies,
heaviest first, to the lightest GPU with a free slot. With expert groups, first pack the groups
onto nodes in the same manner and do the rest within each node. float32 arithmetic and stable
descending sorts reproduce the released code slot by slot.

References
----------
https://github.com/deepseek-ai/EPLB
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from craftopt.errors import InputError
from craftopt.jit import inner, njit
from craftopt.loads import IntArray, as_array
from craftopt.problem import Problem
from craftopt.result import Outcome

Float32Array = npt.NDArray[np.float32]


class EplbTables(NamedTuple):
    """The three tables that EPLB returns, int64.

    ``phy2log`` [layers, slots]: expert of every slot. ``log2phy`` [layers, experts, most
    copies]: slots of every expert, -1 padded. ``logcnt`` [layers, experts]: copies.
    """

    phy2log: IntArray
    log2phy: IntArray
    logcnt: IntArray


def rebalance_experts(
    weight: npt.ArrayLike, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> EplbTables:
    """Plan as DeepSeek's EPLB does, with its signature.

    Parameters
    ----------
    weight : array_like [layers, experts]
        Load of every expert.
    num_replicas : int
        Physical slots in a layer: a multiple of ``num_gpus``, at least the experts.
    num_groups, num_nodes, num_gpus : int
        Expert groups, nodes and GPUs. Where nodes do not divide the groups, EPLB ignores both.

    Returns
    -------
    EplbTables
        ``(phy2log, log2phy, logcnt)``.

    Raises
    ------
    InputError
        Shapes or counts that do not divide.

    Examples
    --------
    >>> import craftopt as co
    >>> weight = [[90, 132, 40, 61, 104, 165, 39, 4]]
    >>> phy2log, log2phy, logcnt = co.eplb.rebalance_experts(weight, 12, 2, 2, 4)
    >>> logcnt
    array([[2, 2, 1, 1, 2, 2, 1, 1]])
    """
    loads = as_array("weight", weight)
    if loads.ndim != 2 or 0 in loads.shape or loads.dtype.kind not in "iuf":
        raise InputError(f"weight has shape {loads.shape}; pass numbers [layers, experts]")
    loads = loads.astype(np.float32)
    if not np.isfinite(loads).all() or (loads < 0).any():
        raise InputError("weight holds values that are negative or not finite")
    experts = loads.shape[1]
    if num_gpus < 1 or num_replicas % num_gpus:
        raise InputError(f"num_replicas={num_replicas} is no multiple of num_gpus={num_gpus}")
    if num_replicas < experts:
        raise InputError(f"num_replicas={num_replicas} is below the {experts} experts")
    if num_groups < 1 or num_nodes < 1 or num_groups % num_nodes:
        num_groups = num_nodes = 1
    if experts % num_groups or num_gpus % num_nodes:
        raise InputError(
            f"num_groups={num_groups} must divide {experts} experts and num_nodes={num_nodes} "
            f"num_gpus={num_gpus}"
        )
    capacity = np.full(num_gpus, num_replicas // num_gpus)
    phy2log = np.empty((loads.shape[0], num_replicas), dtype=np.int64)
    rank = np.empty_like(phy2log)
    logcnt = np.empty(loads.shape, dtype=np.int64)
    _plan_layers(loads, num_groups, num_nodes, capacity, phy2log, rank, logcnt)
    log2phy = np.full((*loads.shape, int(logcnt.max())), -1, dtype=np.int64)
    layer = np.arange(loads.shape[0])[:, np.newaxis]
    log2phy[layer, phy2log, rank] = np.arange(num_replicas)
    return EplbTables(phy2log, log2phy, logcnt)


def plan_eplb(problem: Problem) -> Outcome:
    """Plan with global EPLB, the largest equal number of replicas that the GPUs divide."""
    return _plan_uniform(problem, "eplb")


def plan_eplb_hierarchical(problem: Problem) -> Outcome:
    """Plan with hierarchical EPLB: groups onto nodes, then within each node."""
    return _plan_uniform(problem, "eplb-hierarchical")


def plan_eplb_counts(problem: Problem) -> Outcome:
    """Plan with EPLB's replication and packing for replicas that GPUs do not divide.

    The budget is spread evenly over the layers; every GPU takes floor or ceil of a layer's
    copies, the extra slots going round the GPUs (of each node) from layer to layer.
    """
    layers, experts = problem.loads.layers, problem.loads.experts
    step = problem.replica_step
    usable = min(problem.replicas, layers * problem.layer_replicas_limit) // step
    if problem.slots == "uniform":
        usable = layers * (problem.layer_replicas_limit // step)
    ends = np.arange(layers + 1) * usable // layers * step
    capacities = even_slots(experts + np.diff(ends), problem.gpus, problem.replica_step)
    return _plan_slots(problem, "eplb-counts", capacities)


def plan_placement(problem: Problem) -> Outcome:
    """Plan without replicas: experts, heaviest first, to the lightest GPU with a free slot."""
    experts, layers = problem.loads.experts, problem.loads.layers
    if problem.slots == "uniform" and experts % problem.gpus:
        return Outcome(
            message=f"{experts} experts without replicas do not fill {problem.gpus} GPUs "
            "equally; pass slots='even'"
        )
    capacities = even_slots(np.full(layers, experts), problem.gpus, problem.replica_step)
    return _plan_slots(problem, "placement", capacities)


def even_slots(copies: IntArray, gpus: int, nodes: int = 1) -> IntArray:
    """Share out every layer's copies, floor or ceil to each GPU, with equal totals.

    Each node takes the same share of a layer. Within a node the extra slots go to consecutive
    GPUs, cyclically: each layer starts where the last one stopped, so that the totals over the
    layers differ by at most 1.

    Parameters
    ----------
    copies : int64 [layers]
        Copies of every layer, multiples of ``nodes``.

    Returns
    -------
    int64 [layers, gpus]

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt.baselines.eplb import even_slots
    >>> even_slots(np.array([5, 6, 5]), gpus=4)
    array([[2, 1, 1, 1],
           [1, 2, 2, 1],
           [1, 1, 1, 2]])
    """
    width = gpus // nodes
    share = copies // nodes
    extra = share % width
    start = np.concatenate([[0], np.cumsum(extra)[:-1]])
    turn = (np.arange(width) - start[:, np.newaxis]) % width
    slots = (share // width)[:, np.newaxis] + (turn < extra[:, np.newaxis])
    return np.tile(slots, (1, nodes))


def _plan_uniform(problem: Problem, method: str) -> Outcome:
    """Plan with the same slots everywhere: the largest replicas that GPUs divide."""
    layers, experts = problem.loads.layers, problem.loads.experts
    asked = problem.replicas // layers
    # More slots than experts could only hold a second copy of each.
    slots = min((experts + asked) // problem.gpus, experts)
    if slots * problem.gpus < experts:
        least = -experts % problem.gpus
        return Outcome(
            message=f"EPLB needs copies that {problem.gpus} GPUs divide: at least {least} "
            f"replicas per layer, {asked} are allowed"
        )
    used = slots * problem.gpus - experts
    note = "" if used == asked else f"EPLB uses {used} of {asked} replicas per layer"
    capacities = np.full((layers, problem.gpus), slots)
    return _plan_slots(problem, method, capacities, note)


def _plan_slots(problem: Problem, method: str, capacities: IntArray, note: str = "") -> Outcome:
    """Run EPLB's replication and packing under given slots per layer and GPU."""
    total = problem.loads.total()
    experts = total.experts
    # EPLB's groups are consecutive experts: sort ours by group, and back afterwards.
    order = np.argsort(problem.group_of, kind="stable")
    weight = np.ascontiguousarray(total.tokens[0][:, order], dtype=np.float32)
    copies = np.zeros((total.layers, experts, problem.gpus), dtype=np.int64)
    _copies_of_layers(weight, problem.groups, problem.group_nodes, capacities, copies)
    if copies.max() > np.iinfo(np.uint8).max:
        return Outcome(message=f"EPLB puts {copies.max()} copies of one expert on one GPU")
    unsorted = np.empty_like(copies)
    unsorted[:, order] = copies
    plan = problem.plan(unsorted, method)
    if problem.max_copies is not None and plan.replica_counts.max() > problem.max_copies:
        return Outcome(
            message=f"EPLB knows no limit of copies: it makes {plan.replica_counts.max()} of one "
            f"expert, max_copies={problem.max_copies}"
        )
    return Outcome(plan, note)


@njit()
def _copies_of_layers(
    weight: Float32Array,
    groups: int,
    nodes: int,
    capacities: IntArray,
    copies: IntArray,
) -> None:
    layers, experts = weight.shape
    logcnt = np.empty(experts, dtype=np.int64)
    for layer in range(layers):
        slots = capacities[layer].sum()
        phy2log = np.empty(slots, dtype=np.int64)
        rank = np.empty(slots, dtype=np.int64)
        _plan_layer(weight[layer], groups, nodes, capacities[layer], phy2log, rank, logcnt)
        slot = 0
        for gpu in range(capacities.shape[1]):
            for _ in range(capacities[layer, gpu]):
                copies[layer, phy2log[slot], gpu] += 1
                slot += 1


@njit()
def _plan_layers(
    weight: Float32Array,
    groups: int,
    nodes: int,
    capacity: IntArray,
    phy2log: IntArray,
    rank: IntArray,
    logcnt: IntArray,
) -> None:
    for layer in range(weight.shape[0]):
        _plan_layer(
            weight[layer], groups, nodes, capacity, phy2log[layer], rank[layer], logcnt[layer]
        )


@inner()
def _plan_layer(
    weight: Float32Array,
    groups: int,
    nodes: int,
    capacity: IntArray,
    phy2log: IntArray,
    rank: IntArray,
    logcnt: IntArray,
) -> None:
    """Fill one layer's slots, GPU after GPU; every node has the same number of slots."""
    size = weight.size // groups
    gpus = capacity.size // nodes
    group_load = np.zeros(groups, dtype=np.float32)
    for group in range(groups):
        for expert in range(group * size, (group + 1) * size):
            group_load[group] += weight[expert]
    node_of_group, rank_of_group = _pack(group_load, np.full(nodes, groups // nodes))
    slots = phy2log.size // nodes
    local = weight.size // nodes
    expert_of = np.empty(local, dtype=np.int64)
    first = 0
    for node in range(nodes):
        for group in range(groups):
            if node_of_group[group] == node:
                for member in range(size):
                    expert_of[rank_of_group[group] * size + member] = group * size + member
        of_copy, rank_of_copy, count = _replicate(weight[expert_of], slots)
        share = np.empty(slots, dtype=np.float32)
        for copy in range(slots):
            share[copy] = weight[expert_of[of_copy[copy]]] / np.float32(count[of_copy[copy]])
        room = capacity[node * gpus : (node + 1) * gpus]
        gpu_of_copy, slot_of_copy = _pack(share, room)
        start = np.zeros(gpus, dtype=np.int64)
        start[1:] = np.cumsum(room)[:-1]
        for copy in range(slots):
            slot = first + start[gpu_of_copy[copy]] + slot_of_copy[copy]
            phy2log[slot] = expert_of[of_copy[copy]]
            rank[slot] = rank_of_copy[copy]
        for member in range(local):
            logcnt[expert_of[member]] = count[member]
        first += slots


@inner()
def _replicate(weight: Float32Array, slots: int) -> tuple[IntArray, IntArray, IntArray]:
    """Copy the expert with the heaviest copies until the slots are used."""
    experts = weight.size
    expert_of_copy = np.arange(slots)
    rank = np.zeros(slots, dtype=np.int64)
    count = np.ones(experts, dtype=np.int64)
    share = weight.copy()
    for copy in range(experts, slots):
        heaviest = np.argmax(share)
        expert_of_copy[copy] = heaviest
        rank[copy] = count[heaviest]
        count[heaviest] += 1
        share[heaviest] = weight[heaviest] / np.float32(count[heaviest])
    return expert_of_copy, rank, count


@njit()
def _pack(weight: Float32Array, capacity: IntArray) -> tuple[IntArray, IntArray]:
    """Give items, heaviest first, to the lightest pack with room."""
    items, packs = weight.size, capacity.size
    pack_of = np.arange(items)
    rank = np.zeros(items, dtype=np.int64)
    if capacity.max() == 1 and items == packs:
        return pack_of, rank
    load = np.zeros(packs, dtype=np.float32)
    filled = np.zeros(packs, dtype=np.int64)
    for item in np.argsort(-weight, kind="mergesort"):
        lightest = -1
        for pack in range(packs):
            if filled[pack] < capacity[pack] and (lightest < 0 or load[pack] < load[lightest]):
                lightest = pack
        pack_of[item] = lightest
        rank[item] = filled[lightest]
        load[lightest] += weight[item]
        filled[lightest] += 1
    return pack_of, rank
