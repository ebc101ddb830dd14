"""Relabel the GPUs of a new plan so that as many copies as possible stay where they are.

GPUs are interchangeable within a layer, as far as the slot rule allows: which of them gets which
set of copies is a linear assignment problem, solved exactly.
"""

from __future__ import annotations

import numpy as np

from craftopt.errors import InputError
from craftopt.loads import FloatArray, IntArray, as_array
from craftopt.plan import Copies, Plan
from craftopt.rebalancing.survivors import resized


def count_moves(plan: Plan, previous: Plan) -> int:
    """Count the copies that are hosted where the previous plan does not host them.

    Of plans for different numbers of GPUs, the first ones are the same.

    Examples
    --------
    >>> import craftopt as co
    >>> old = co.Plan.from_phy2log([[0, 1, 0, 2]], gpus=2)
    >>> co.count_moves(co.Plan.from_phy2log([[0, 2, 0, 1]], gpus=2), old)
    2
    """
    check_comparable(plan, previous)
    return moved_copies(plan.copies, resized(previous.copies, plan.gpus))


def moved_copies(copies: Copies, previous: Copies) -> int:
    """Count as `count_moves` does."""
    return int(np.maximum(copies.astype(np.int64) - previous, 0).sum())


def relabel(plan: Plan, previous: Plan, *, within_nodes: bool = False) -> Plan:
    """Permute a plan's GPUs, layer by layer, so that the most copies stay where they are.

    Loads per GPU are only renamed, so every objective stays as it is. Where all GPUs have equally
    many slots in a layer, any permutation will do, and the result is optimal. Elsewhere only
    those permutations are used that keep the GPUs' totals over the layers as they are in the plan
    or, if every layer has the previous plan's slots in some order, as in the previous plan; among
    these the result is optimal if the slots of every layer are to stay in place, and good
    otherwise.

    Parameters
    ----------
    plan, previous : Plan
        Of the same layers, experts and GPUs.
    within_nodes : bool
        Move nodes only whole, and GPUs only within their node, as expert groups need. How many
        nodes there are is read off the plan.

    Returns
    -------
    Plan

    Raises
    ------
    InputError
        Plans of different shapes or layers.

    Examples
    --------
    >>> import craftopt as co
    >>> old = co.Plan.from_phy2log([[0, 1, 2, 3]], gpus=2)
    >>> new = co.Plan.from_phy2log([[2, 3, 0, 1]], gpus=2)
    >>> co.count_moves(new, old), co.count_moves(co.relabel(new, old), old)
    (4, 0)
    """
    check_comparable(plan, previous)
    if plan.gpus != previous.gpus or plan.dead or previous.dead:
        raise InputError(
            f"the plans have {plan.gpus} and {previous.gpus} GPUs, {len(plan.dead)} and "
            f"{len(previous.dead)} of them dead; relabel plans of the same GPUs, all alive"
        )
    nodes = plan.nodes if within_nodes else 1
    copies = relabel_copies(plan.copies, previous.copies, nodes)
    return Plan(copies, plan.layer_ids, plan.nodes, plan.method, plan.loads_digest)


def relabel_copies(copies: Copies, previous: Copies, nodes: int) -> Copies:
    """Relabel as `relabel` does; nodes are moved whole."""
    kept = _kept(copies, previous)
    slots = copies.sum(axis=1, dtype=np.int64)
    wanted = previous.sum(axis=1, dtype=np.int64)
    # Slots that the layers are to have afterwards: each keeps the totals of a plan there is.
    targets = [slots]
    if (np.ptp(slots, axis=1) > 0).any():
        jointly, _ = assign_gpus(kept.sum(axis=0), slots.sum(axis=0), None, nodes)
        renamed = np.empty_like(slots)
        renamed[:, jointly] = slots
        targets.append(renamed)
        balanced = np.ptp(wanted.sum(axis=0)) <= max(1, np.ptp(slots.sum(axis=0)))
        if balanced and (np.sort(slots, axis=1) == np.sort(wanted, axis=1)).all():
            targets.append(wanted)
    best, most = copies, -np.inf
    for target in targets:
        found = [assign_gpus(*layer, nodes) for layer in zip(kept, slots, target, strict=True)]
        stayed = sum(value for _, value in found)
        if stayed > most:
            most = stayed
            best = np.empty_like(copies)
            for layer, (to, _) in enumerate(found):
                best[layer][:, to] = copies[layer]
    return best


def arrange_slots(plan: Plan, phy2log: IntArray) -> IntArray:
    """List a plan's experts slot by slot, those that stay on a GPU in their previous slots.

    Engines compare maps slot by slot and copy whatever changed.

    Parameters
    ----------
    plan : Plan
        With as many slots per GPU as the table has.
    phy2log : int64 [layers, slots]
        Previous expert of every slot, GPU after GPU; -1 = empty.

    Returns
    -------
    int64 [layers, slots]

    Raises
    ------
    InputError
        A table of another shape, or with too few slots.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.rebalancing import arrange_slots
    >>> plan = co.Plan.from_phy2log([[0, 1, 0, 2]], gpus=2)
    >>> arrange_slots(plan, [[1, 3, 2, 0]])
    array([[1, 0, 2, 0]])
    """
    table = as_array("phy2log", phy2log)
    fits = table.ndim == 2 and table.shape[0] == plan.layers and not table.shape[1] % plan.gpus
    if not fits or table.dtype.kind not in "iu":
        raise InputError(
            f"phy2log has shape {table.shape} and type {table.dtype}; pass whole numbers "
            f"[{plan.layers}, slots], the slots a multiple of the plan's {plan.gpus} GPUs"
        )
    width = table.shape[1] // plan.gpus
    if width < plan.slots.max():
        raise InputError(
            f"phy2log has {width} slots per GPU, and the plan fills up to {plan.slots.max()}; "
            "pass a table with more slots, padded with -1"
        )
    old = table.reshape(plan.layers, plan.gpus, width)
    left = plan.copies.transpose(0, 2, 1).copy()  # [layers, gpus, experts]
    result = np.full(old.shape, -1, dtype=np.int64)
    for slot in range(width):
        expert = old[:, :, slot]
        known = (expert >= 0) & (expert < plan.experts)
        hosted = np.take_along_axis(left, np.where(known, expert, 0)[:, :, np.newaxis], axis=2)
        layer, gpu = np.nonzero(known & (hosted[:, :, 0] > 0))
        stays = expert[layer, gpu]
        result[layer, gpu, slot] = stays
        left[layer, gpu, stays] -= 1
    # New copies go into the first free slots, by expert.
    missing = left.sum(axis=2, dtype=np.int64)[:, :, np.newaxis]
    free = result < 0
    new = np.repeat(np.arange(left.size), left.ravel()) % plan.experts
    result[free & (np.cumsum(free, axis=2) <= missing)] = new
    return result.reshape(plan.layers, -1)


def _kept(copies: Copies, previous: Copies) -> FloatArray:
    """Count the copies that stay if one GPU becomes another, float64 [layers, gpus, gpus]."""
    layers, _, gpus = copies.shape
    layer, expert, gpu = np.nonzero(copies)
    _, _, old_gpu = np.nonzero(previous)
    # Every copy beside every previous copy of its expert.
    hosts = np.count_nonzero(previous, axis=2)
    first = np.cumsum(hosts.ravel()).reshape(hosts.shape) - hosts
    many = hosts[layer, expert]
    copy = np.repeat(np.arange(layer.size), many)
    place = np.arange(copy.size) - np.repeat(np.cumsum(many) - many, many)
    layer, expert, gpu = layer[copy], expert[copy], gpu[copy]
    other = old_gpu[first[layer, expert] + place]
    stays = np.minimum(copies[layer, expert, gpu], previous[layer, expert, other])
    pair = (layer * gpus + gpu) * gpus + other
    kept = np.bincount(pair, stays, layers * gpus * gpus).astype(np.float64, copy=False)
    return kept.reshape(layers, gpus, gpus)


def assign_gpus(
    kept: FloatArray, slots: IntArray, target: IntArray | None, nodes: int
) -> tuple[IntArray, float]:
    """Give every GPU a new number, nodes whole; return them and the copies that stay.

    A GPU may go where the target has as many slots as it has, or anywhere without one.
    """
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 (slow to import)

    gpus = slots.size
    width = gpus // nodes
    # No permutation loses as much as one forbidden pair costs.
    allowed = kept
    if target is not None:
        fits = slots[:, np.newaxis] == target
        allowed = np.where(fits, kept, -1.0 - kept.sum())
    to_node = np.empty((nodes, nodes, width), dtype=np.int64)
    value = np.empty((nodes, nodes))
    for source in range(nodes):
        for place in range(nodes):
            block = allowed[
                source * width : (source + 1) * width, place * width : (place + 1) * width
            ]
            row, column = linear_sum_assignment(block, maximize=True)
            to_node[source, place, row] = column + place * width
            value[source, place] = block[row, column].sum()
    row, column = linear_sum_assignment(value, maximize=True)
    to: IntArray = to_node[row, column].ravel()
    return to, float(value[row, column].sum())


def check_comparable(plan: Plan, previous: Plan) -> None:
    """Refuse plans of different models or layers.

    Raises
    ------
    InputError
        The plans cannot follow each other.
    """
    plan.check_layers(previous, "other plan")
