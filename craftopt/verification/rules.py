"""The rules of a problem, checked on a plan's copies."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from craftopt.plan import Plan
from craftopt.problem import Problem
from craftopt.verification.checks import require


def check_rules(problem: Problem, plan: Plan) -> None:
    """Check every rule of the problem on a plan's copies.

    Raises
    ------
    VerificationError
        The first rule that the plan breaks.
    """
    loads = problem.loads
    copies = plan.copies.astype(np.int64)
    require(
        copies.shape == (loads.layers, loads.experts, problem.gpus)
        and plan.layer_ids.tolist() == loads.layer_ids.tolist(),
        "the plan is for other layers, experts or GPUs than the problem",
    )
    counts = copies.sum(axis=2)
    slots = copies.sum(axis=1)
    totals = slots.sum(axis=0)
    require(copies.max() == 1, "the plan hosts an expert twice on one GPU")
    require(counts.min() >= 1, "the plan leaves an expert out")
    require(
        problem.max_copies is None or counts.max() <= problem.max_copies,
        f"the plan has {counts.max()} copies of an expert, more than allowed",
    )
    used = int(counts.sum()) - loads.layers * loads.experts
    require(
        used <= problem.replicas,
        f"the plan has {used} replicas where {problem.replicas} are allowed",
    )
    if problem.slots == "uniform":
        require(bool(slots.min() == slots.max()), "the plan's slots are not uniform")
    if problem.slots == "even":
        require(np.ptp(slots, axis=1).max() <= 1, "the plan's slots are not even")
    require(np.ptp(totals) <= 1, "the GPUs' copies over all layers differ by more than 1")
    if problem.expert_groups is not None:
        _check_groups(problem, copies)
    if problem.max_moves is not None and problem.previous is not None:
        moves = int((copies > problem.previous_copies).sum())
        require(
            moves <= problem.max_moves,
            f"the plan moves {moves} copies where {problem.max_moves} moves are allowed",
        )


def _check_groups(problem: Problem, copies: npt.NDArray[np.int64]) -> None:
    layers, experts, gpus = copies.shape
    in_node = copies.reshape(layers, experts, problem.nodes, gpus // problem.nodes).sum(axis=3)
    slots = in_node.sum(axis=1)
    require(np.ptp(slots, axis=1).max() == 0, "nodes have different numbers of slots in a layer")
    for layer in range(layers):
        homes = []
        for group in range(problem.groups):
            nodes = np.flatnonzero(in_node[layer, problem.group_of == group].any(axis=0))
            require(nodes.size == 1, f"the plan spreads group {group} over {nodes.size} nodes")
            homes.append(int(nodes[0]))
        shares = np.bincount(homes, minlength=problem.nodes)
        require(np.ptp(shares) == 0, "nodes have different numbers of groups in a layer")
