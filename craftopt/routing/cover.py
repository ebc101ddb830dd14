"""As few nodes per token as can be: every token's smallest set of nodes that host its experts.

Ties prefer the node that holds the token, its *home*, so that the fewest nodes are also the fewest
remote ones. *Proof.* Let R be the fewest remote nodes of a token, and T its fewest nodes. Home and
R remote nodes serve it, so T <= R + 1. A set of nodes with home has at least R others, one without
home at least R, so T >= R. If T = R, a smallest set is without home, and its R nodes are remote. If
T = R + 1, home and R others are a smallest set. []

Among further ties the node next after home comes first, so that no node is favoured. Within the
chosen nodes an expert's copies serve evenly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from craftopt.errors import InputError
from craftopt.jit import inner, njit
from craftopt.loads import FloatArray, IntArray
from craftopt.plan import Plan
from craftopt.routing.hosts import Int32Array, layer_hosts
from craftopt.routing.visits import Tokens, Visits, shares_of

_MOST_NODES = 62  # a set of nodes is one 64-bit number


class Served(NamedTuple):
    """What tokens take to the hosts, GPUs and nodes that serve them, added up."""

    share: FloatArray  # [hosts]: token assignments
    loads: FloatArray  # [windows, gpus]: token assignments
    by_gpu: FloatArray  # [windows, gpus]: tokens
    by_node: FloatArray  # [windows, nodes]: tokens
    by_home: FloatArray  # [homes, nodes]: tokens; if homes are equally likely, all for each
    at_home: FloatArray  # [windows]: tokens that visit their home


def cover_layer(plan: Plan, layer: int, tokens: Tokens) -> tuple[Visits, FloatArray, FloatArray]:
    """Serve every token of a layer by the fewest nodes.

    Returns
    -------
    Visits
    float64 [windows, gpus]
        Loads of the GPUs.
    float64 [hosts]
        Tokens that every host of an expert serves, in the order of `Routing.share`.
    """
    if plan.nodes > _MOST_NODES:
        raise InputError(f"the plan has {plan.nodes} nodes; cover handles at most {_MOST_NODES}")
    hosts = layer_hosts(plan, layer)
    home = np.where(tokens.home < 0, -1, tokens.home // (plan.gpus // plan.nodes))
    served = Served(
        share=np.zeros(hosts[1].size),
        loads=np.zeros((tokens.windows, plan.gpus)),
        by_gpu=np.zeros((tokens.windows, plan.gpus)),
        by_node=np.zeros((tokens.windows, plan.nodes)),
        by_home=np.zeros((plan.nodes, plan.nodes)),
        at_home=np.zeros(tokens.windows),
    )
    serve_by_cover(tokens.ids, tokens.window, home, hosts, served)
    visits = shares_of(plan, tokens, served.by_node, served.by_gpu, served.by_home, served.at_home)
    return visits, served.loads, served.share


@njit()
def serve_by_cover(
    ids: Int32Array,
    window: IntArray,
    home: IntArray,
    hosts: tuple[Int32Array, Int32Array, Int32Array],
    sums: Served,
) -> None:
    """Serve every token of a layer by the fewest nodes, and add up what that is.

    Parameters
    ----------
    ids, window, home
        As in `visits.count_visits`.
    hosts
        As `layer_hosts` returns them.
    sums : Served
    """
    first, gpu, copies = hosts
    share, loads, gpu_visits, node_visits, by_home, at_home = sums
    nodes = node_visits.shape[1]
    experts = first.size - 1
    gpus_per_node = loads.shape[1] // nodes
    hosting = np.zeros(experts, dtype=np.int64)
    for expert in range(experts):
        for place in range(first[expert], first[expert + 1]):
            hosting[expert] |= 1 << (gpu[place] // gpus_per_node)
    away = np.ones(loads.shape[1])
    masks = np.empty(ids.shape[1], dtype=np.int64)
    sets, steps = np.empty((2, ids.shape[1] + 1), dtype=np.int64)
    for t in range(ids.shape[0]):
        w = window[t]
        if w < 0:
            continue
        size = 0
        for expert in ids[t]:
            if expert >= 0:
                masks[size] = hosting[expert]
                size += 1
        if size == 0:
            continue
        needed = masks[:size]
        fewest = 1
        while _cover(needed, 0, fewest, 0, nodes, sets, steps) < 0:
            fewest += 1
        low, high = (0, nodes) if home[t] < 0 else (home[t], home[t] + 1)
        part = 1.0 / (high - low)
        for h in range(low, high):
            chosen = _cover(needed, 1 << h, fewest - 1, h, nodes, sets, steps)
            if chosen < 0:
                chosen = _cover(needed, 0, fewest, h, nodes, sets, steps)
            for node in range(nodes):
                if chosen >> node & 1:
                    node_visits[w, node] += part
                    by_home[h, node] += 1.0
            at_home[w] += part * (chosen >> h & 1)
            for expert in ids[t]:
                if expert < 0:
                    continue
                total = 0
                for place in range(first[expert], first[expert + 1]):
                    total += copies[place] * (chosen >> (gpu[place] // gpus_per_node) & 1)
                for place in range(first[expert], first[expert + 1]):
                    if chosen >> (gpu[place] // gpus_per_node) & 1:
                        served = copies[place] / total
                        share[place] += part * served
                        loads[w, gpu[place]] += part * served
                        away[gpu[place]] *= 1.0 - served
            for node in range(nodes):
                if chosen >> node & 1:
                    for g in range(node * gpus_per_node, (node + 1) * gpus_per_node):
                        gpu_visits[w, g] += part * (1.0 - away[g])
                        away[g] = 1.0


@inner()
def _cover(
    masks: IntArray, chosen: int, left: int, start: int, nodes: int, sets: IntArray, steps: IntArray
) -> int:
    """Add at most ``left`` nodes so that every mask has one of those chosen; -1 = impossible.

    Depth first: the hosts of the first expert without one are tried in turn, from ``start`` on.
    ``sets`` and ``steps`` are room for one node more than ``left``.
    """
    depth = 0
    sets[0] = chosen
    steps[0] = 0
    while depth >= 0:
        missing = 0
        for mask in masks:
            if mask & sets[depth] == 0:
                missing = mask
                break
        if missing == 0:
            return int(sets[depth])
        node = -1
        while depth < left and node < 0 and steps[depth] < nodes:
            tried = (start + steps[depth]) % nodes
            steps[depth] += 1
            if missing >> tried & 1:
                node = tried
        if node < 0:
            depth -= 1
        else:
            sets[depth + 1] = sets[depth] | 1 << node
            steps[depth + 1] = 0
            depth += 1
    return -1
