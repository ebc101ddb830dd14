"""GPUs that are dead, gone or new: which are alive, and the problem over these alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from craftopt.errors import InputError
from craftopt.loads import BoolArray, as_array, read_only
from craftopt.plan import Copies, nodes_left
from craftopt.problem import Problem


def alive_gpus(active: npt.ArrayLike | None, gpus: int) -> BoolArray:
    """Check which GPUs are alive: one bool per GPU, all of them where none are given.

    Raises
    ------
    InputError
        Anything else, or no GPU alive.
    """
    if active is None:
        return np.ones(gpus, dtype=np.bool_)
    alive = as_array("active", active)
    if alive.dtype != np.bool_ or alive.shape != (gpus,):
        raise InputError(
            f"active has shape {alive.shape} and type {alive.dtype}; pass one bool per GPU, "
            f"shape ({gpus},)"
        )
    if not alive.any():
        raise InputError(f"all {gpus} GPUs are dead; at least one must be alive")
    return alive.copy()


def resized(copies: Copies, gpus: int) -> Copies:
    """Return the copies on that many GPUs: the last ones leave, new ones are empty."""
    result = np.zeros((*copies.shape[:2], gpus), dtype=np.uint8)
    result[:, :, : copies.shape[2]] = copies[:, :, :gpus]
    return result


def on_survivors(copies: Copies, alive: BoolArray) -> Copies:
    """Return the copies on the GPUs that are alive."""
    return np.ascontiguousarray(copies[:, :, alive])


def over_all(copies: Copies, alive: BoolArray) -> Copies:
    """Return copies with the dead GPUs put back, empty."""
    result = np.zeros((*copies.shape[:2], alive.size), dtype=np.uint8)
    result[:, :, alive] = copies
    return result


def over_survivors(problem: Problem, old: Copies, alive: BoolArray) -> Problem:
    """State the problem over the GPUs that are alive.

    Parameters
    ----------
    problem : Problem
        Over all GPUs.
    old : uint8 [layers, experts, gpus]
        What those that are alive host now, and the previous copies of the new problem.
    alive : bool [gpus]

    Raises
    ------
    InputError
        Expert groups, and nodes that have lost different numbers of GPUs.
    """
    previous = read_only(old)
    if alive.all():
        return problem.variant(previous=previous)
    nodes = nodes_left(alive, problem.nodes)
    if problem.expert_groups is not None and nodes != problem.nodes:
        per_node = alive.reshape(problem.nodes, -1).sum(axis=1)
        raise InputError(
            f"expert_groups need equally many active GPUs in every node, and there are "
            f"{', '.join(map(str, per_node))}; pass a problem without groups"
        )
    # The survivors' own slots, if these suffice: dead GPUs take theirs with them.
    experts, layers, gpus = problem.loads.experts, problem.loads.layers, int(alive.sum())
    room = int(old.sum())
    if problem.slots == "uniform":
        room = int(old.sum(axis=1).max()) * gpus * layers
    replicas = problem.replicas
    if room >= experts * layers:
        replicas = min(replicas, room - experts * layers)
    return problem.variant(
        gpus=gpus,
        nodes=nodes,
        replicas=replicas,
        previous=previous,
        # The price is of the cluster as it was built.
        traffic=problem.traffic_price if nodes > 1 and problem.traffic is not None else None,
        link_cost=None,
    )
