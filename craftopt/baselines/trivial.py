"""The trivial plan: experts by id, as engines start."""

from __future__ import annotations

import numpy as np

from craftopt.baselines.eplb import even_slots
from craftopt.problem import Problem
from craftopt.result import Outcome


def plan_trivial(problem: Problem) -> Outcome:
    """Fill the GPUs with experts by id, without looking at the loads.

    Only ``uniform`` uses replicas, and only those that the slots force: after the last expert
    the ids begin again, as in the engines' start map. With groups, each node gets
    consecutive groups.
    """
    loads = problem.loads
    copies = loads.experts
    if problem.slots == "uniform":
        copies = -(-loads.experts // problem.gpus) * problem.gpus
    slots = even_slots(np.full(loads.layers, copies), problem.gpus, problem.replica_step)
    order = np.arange(loads.experts)
    nodes = 1
    if problem.expert_groups is not None:
        order = np.argsort(problem.expert_groups, kind="stable")
        nodes = problem.nodes
    local = order.reshape(nodes, -1)
    hosted = np.concatenate([np.resize(experts, copies // nodes) for experts in local])
    table = np.zeros((loads.layers, loads.experts, problem.gpus), dtype=np.uint8)
    for layer in range(loads.layers):
        gpu_of_slot = np.repeat(np.arange(problem.gpus), slots[layer])
        table[layer, hosted, gpu_of_slot] = 1
    return Outcome(problem.plan(table, "trivial"))
