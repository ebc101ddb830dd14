"""The fewest tokens on the fullest GPU: an optimal fractional split of every expert's tokens.

Let expert e have t_e tokens and copies on the GPUs H_e (two copies on one GPU are one host). A
split sends x[e,g] >= 0 tokens to g in H_e, t_e in all, and loads GPU g with sum_e x[e,g].

**Theorem.** The least possible largest load is the greatest mean load that some GPUs cannot pass
on to others::

    T* = max over sets S of GPUs of  sum of t_e with H_e inside S  /  |S|

*Proof.* At least: experts with all their hosts inside S are served inside S, where some GPU
carries the mean or more. At most: start from any split and a T that is one of these ratios. Let S
be the GPUs above T and all that they reach, where GPU g reaches all hosts of each expert that
sends it tokens. While S has a GPU below T, pass tokens along a shortest path to it; as in any
maximum flow, that ends. Then an expert served inside S has all its hosts there, so the mean load
of S is one of the ratios, and above T, as no load of S is below. Raise T to that mean and go on.
What S reaches from now on stays inside S, and its mean stays the new T, so the next S, with all
loads at T or more and one above, is a smaller one: after at most |GPUs| raises nothing is above
T, and T, a ratio still, is attained. []

This is Newton's (Dinkelbach's) method on a parametric minimum cut, warm-started from raise to
raise: Gallo, Grigoriadis and Tarjan, "A fast parametric maximum flow algorithm and applications",
SIAM J. Comput. 18 (1989) 30-55; S is a densest sub-hypergraph of the GPUs. Experts with one host
are no choice, so the search sees the others only.
"""

from __future__ import annotations

import numpy as np

from craftopt.jit import inner, njit
from craftopt.loads import FloatArray, IntArray
from craftopt.routing.hosts import Int32Array

# Loads within this share of T are at T: rounding must not start another raise.
_TOLERANCE = 1e-12


@njit()
def split_tokens(
    first: Int32Array,
    gpu: Int32Array,
    tokens: FloatArray,
    share: FloatArray,
    activated: IntArray,
    loads: FloatArray,
    bound: FloatArray,
) -> None:
    """Split the tokens of every layer so that the largest load is least.

    ``bound`` [layers] gets T of the theorem; the largest load is within 1e-10 of it, relative.
    """
    layers, experts = tokens.shape
    for layer in range(layers):
        cells = first[layer * experts : (layer + 1) * experts + 1]
        bound[layer] = split_layer(cells, gpu, tokens[layer], share, loads[layer])
        for place in range(cells[0], cells[experts]):
            activated[layer, gpu[place]] += share[place] > 0.0


@inner()
def split_layer(
    first: Int32Array, gpu: Int32Array, tokens: FloatArray, share: FloatArray, load: FloatArray
) -> float:
    """Split the tokens of one layer, add them to ``load``, which is 0, and return T.

    Parameters
    ----------
    first : int32 [experts + 1]
        The hosts of an expert are places first[expert]..first[expert + 1] of ``gpu``, ``share``.
    """
    experts = tokens.size
    gpus = load.size
    # An arc is a host of an expert with several: arcs begin[i]..begin[i + 1] of the i-th such
    # expert. Those of a GPU are arcs[arcs_first[gpu]..arcs_first[gpu + 1]].
    shared = np.empty(experts, dtype=np.int32)
    begin = np.zeros(experts + 1, dtype=np.int32)
    demand = np.empty(experts)
    arcs_first = np.zeros(gpus + 1, dtype=np.int32)
    count = 0
    for expert in range(experts):
        if tokens[expert] <= 0.0:
            continue
        hosts = first[expert + 1] - first[expert]
        if hosts == 1:
            share[first[expert]] = tokens[expert]
            load[gpu[first[expert]]] += tokens[expert]
            continue
        shared[count] = expert
        demand[count] = tokens[expert]
        begin[count + 1] = begin[count] + hosts
        count += 1
        for place in range(first[expert], first[expert + 1]):
            arcs_first[gpu[place] + 1] += 1
    size = begin[count]
    host = np.empty(size, dtype=np.int32)
    owner = np.empty(size, dtype=np.int32)
    arcs = np.empty(size, dtype=np.int32)
    flow = np.zeros(size)
    for g in range(gpus):
        arcs_first[g + 1] += arcs_first[g]
    filled = arcs_first.copy()
    for i in range(count):
        for k in range(begin[i + 1] - begin[i]):
            arc = begin[i] + k
            host[arc] = gpu[first[shared[i]] + k]
            owner[arc] = i
            arcs[filled[host[arc]]] = arc
            filled[host[arc]] += 1
    level = _balance(begin[: count + 1], host, owner, arcs, arcs_first, demand[:count], load, flow)
    for i in range(count):
        _sweep(demand[i], host[begin[i] : begin[i + 1]], flow[begin[i] : begin[i + 1]], load)
        for k in range(begin[i + 1] - begin[i]):
            share[first[shared[i]] + k] = flow[begin[i] + k]
    return level


@inner()
def _sweep(demand: float, hosts: Int32Array, flow: FloatArray, load: FloatArray) -> None:
    """Move rounding residues to the host with the most tokens: they must not activate a copy."""
    most = np.argmax(flow)
    for k in range(flow.size):
        if 0.0 < flow[k] <= _TOLERANCE * demand:
            flow[most] += flow[k]
            load[hosts[most]] += flow[k]
            load[hosts[k]] -= flow[k]
            flow[k] = 0.0


@inner()
def _balance(
    first: Int32Array,
    host: Int32Array,
    owner: Int32Array,
    arcs: Int32Array,
    arcs_first: Int32Array,
    demand: FloatArray,
    load: FloatArray,
    flow: FloatArray,
) -> float:
    """Split the demands into ``flow``, add them to ``load``, and return T."""
    gpus = load.size
    level = load.max()  # T of the theorem, always a lower bound
    level = max(level, (load.sum() + demand.sum()) / gpus)
    for i in range(demand.size):
        level = max(level, demand[i] / (first[i + 1] - first[i]))
    if level == 0.0:
        return 0.0
    for i in np.argsort(-demand):
        _fill(host[first[i] : first[i + 1]], demand[i], load, flow[first[i] : first[i + 1]])
    reached = np.empty(gpus, dtype=np.bool_)
    parent = np.empty(gpus, dtype=np.int64)
    taken = np.empty(gpus, dtype=np.int64)  # the arc that gives tokens up on the way to a GPU
    given = np.empty(gpus, dtype=np.int64)  # and the one that gets them
    queue = np.empty(gpus, dtype=np.int64)
    seen = np.empty(demand.size, dtype=np.bool_)
    while True:
        slack = _TOLERANCE * level
        reached[:] = False
        seen[:] = False
        size = 0
        for gpu in range(gpus):
            if load[gpu] > level + slack:
                reached[gpu] = True
                parent[gpu] = -1
                queue[size] = gpu
                size += 1
        if size == 0:
            break
        passed = False
        at = 0
        while at < size:
            gpu = queue[at]
            at += 1
            for arc in arcs[arcs_first[gpu] : arcs_first[gpu + 1]]:
                i = owner[arc]
                if seen[i] or flow[arc] <= slack:
                    continue
                seen[i] = True
                for target in range(first[i], first[i + 1]):
                    end = host[target]
                    if reached[end]:
                        continue
                    reached[end] = True
                    parent[end] = gpu
                    taken[end] = arc
                    given[end] = target
                    queue[size] = end
                    size += 1
                    if load[end] >= level - slack:
                        continue
                    # An earlier path of this search may have used this one up.
                    amount = level - load[end]
                    node = end
                    while parent[node] >= 0:
                        amount = min(amount, flow[taken[node]])
                        node = parent[node]
                    amount = min(amount, load[node] - level)
                    if amount <= 0.0:
                        continue
                    passed = True
                    load[node] -= amount
                    load[end] += amount
                    node = end
                    while parent[node] >= 0:
                        flow[taken[node]] -= amount
                        flow[given[node]] += amount
                        node = parent[node]
        if passed:
            continue
        total = 0.0
        for k in range(size):
            total += load[queue[k]]
        if total / size <= level + slack:
            break
        level = total / size
    return float(level)


@inner()
def _fill(hosts: Int32Array, amount: float, load: FloatArray, flow: FloatArray) -> None:
    """Fill an expert's hosts, the least loaded first, to one level (water-filling)."""
    order = np.arange(hosts.size)
    for k in range(1, order.size):  # few hosts: insertion is the fastest sort
        this = order[k]
        at = k
        while at > 0 and load[hosts[order[at - 1]]] > load[hosts[this]]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = this
    below = 0.0
    level = 0.0
    width = 0
    for k in range(order.size):
        if width > 0 and level <= load[hosts[order[k]]]:
            break
        below += load[hosts[order[k]]]
        width = k + 1
        level = (amount + below) / width
    for k in range(width):
        gpu = hosts[order[k]]
        flow[order[k]] = max(0.0, level - load[gpu])
        load[gpu] += flow[order[k]]
