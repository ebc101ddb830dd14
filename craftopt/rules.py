"""The one place where the rules that a plan must keep are checked."""

from __future__ import annotations

import numpy as np

from craftopt.errors import InputError
from craftopt.loads import IntArray
from craftopt.plan import Plan
from craftopt.problem import Problem


def violations(plan: Plan, problem: Problem) -> tuple[str, ...]:
    """Name every rule of the problem that the plan breaks; empty = valid.

    Each text begins with the rule: ``duplicates``, ``max copies``, ``budget``,
    ``uniform slots``, ``even slots``, ``equal totals``, ``expert groups``, ``max moves``.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.rules import violations
    >>> problem = co.Problem(co.Loads([[6, 2, 4]]), gpus=2, replicas=1)
    >>> violations(co.Plan.from_phy2log([[0, 0, 1, 2]], gpus=2), problem)
    ('duplicates: 1 copies share a GPU with a copy of the same expert (layer 0, expert 0, GPU 0)',)
    """
    plan.check_layers(problem.loads, "loads")
    plan = plan.survivors()
    if plan.gpus != problem.gpus:
        raise InputError(f"the plan is for {plan.gpus} GPUs, the problem for {problem.gpus}")
    found = [
        _duplicates(plan),
        _max_copies(plan, problem),
        _budget(plan, problem),
        _layer_slots(plan, problem),
        _equal_totals(plan),
        _expert_groups(plan, problem),
        _max_moves(plan, problem),
    ]
    return tuple(text for text in found if text)


def _duplicates(plan: Plan) -> str:
    if not plan.duplicates:
        return ""
    layer, expert, gpu = np.argwhere(plan.copies > 1)[0]
    return (
        f"duplicates: {plan.duplicates} copies share a GPU with a copy of the same expert "
        f"(layer {layer}, expert {expert}, GPU {gpu})"
    )


def _max_copies(plan: Plan, problem: Problem) -> str:
    most = int(plan.replica_counts.max())
    if problem.max_copies is None or most <= problem.max_copies:
        return ""
    layer, expert = np.argwhere(plan.replica_counts == most)[0]
    return (
        f"max copies: {most} copies of one expert where {problem.max_copies} are allowed "
        f"(layer {layer}, expert {expert})"
    )


def _budget(plan: Plan, problem: Problem) -> str:
    if plan.replicas <= problem.replicas:
        return ""
    return f"budget: {plan.replicas} replicas where {problem.replicas} are allowed"


def _layer_slots(plan: Plan, problem: Problem) -> str:
    if problem.slots == "uniform" and plan.slots.min() != plan.slots.max():
        return (
            f"uniform slots: GPUs have {plan.slots.min()} to {plan.slots.max()} filled slots "
            "in a layer"
        )
    spread = plan.slots.max(axis=1) - plan.slots.min(axis=1)
    if problem.slots == "even" and spread.max() > 1:
        layer = int(spread.argmax())
        return (
            f"even slots: GPUs differ by {spread.max()} slots in layer {layer}, at most 1 "
            "is allowed"
        )
    return ""


def _equal_totals(plan: Plan) -> str:
    totals = plan.slots.sum(axis=0)
    if totals.max() - totals.min() <= 1:
        return ""
    return (
        f"equal totals: GPU {totals.argmin()} hosts {totals.min()} copies over all layers, "
        f"GPU {totals.argmax()} {totals.max()}; they may differ by 1"
    )


def _expert_groups(plan: Plan, problem: Problem) -> str:
    if problem.expert_groups is None:
        return ""
    per_node = plan.copies.reshape(plan.layers, plan.experts, problem.nodes, -1).sum(axis=3)
    present = np.zeros((plan.layers, problem.groups, problem.nodes), dtype=bool)
    for group in range(problem.groups):
        present[:, group] = (per_node[:, problem.expert_groups == group] > 0).any(axis=1)
    spread = present.sum(axis=2)
    if spread.max() > 1:
        layer, group = np.argwhere(spread > 1)[0]
        return f"expert groups: group {group} is on {spread[layer, group]} nodes in layer {layer}"
    groups_of_node: IntArray = present.sum(axis=1)
    if groups_of_node.min() != groups_of_node.max():
        return f"expert groups: nodes hold {groups_of_node.min()} to {groups_of_node.max()} groups"
    slots_of_node = per_node.sum(axis=1)
    uneven = slots_of_node.max(axis=1) - slots_of_node.min(axis=1)
    if uneven.any():
        layer = int(uneven.argmax())
        return f"expert groups: nodes differ by {uneven[layer]} slots in layer {layer}"
    return ""


def _max_moves(plan: Plan, problem: Problem) -> str:
    if problem.previous is None or problem.max_moves is None:
        return ""
    added = plan.copies.astype(np.int64) - problem.previous_copies
    moves = int(np.maximum(added, 0).sum())
    if moves <= problem.max_moves:
        return ""
    return f"max moves: {moves} copies are new on their GPUs where {problem.max_moves} are allowed"
