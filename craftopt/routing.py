"""Which copy serves: the best split of every expert's tokens over its copies.

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
import numpy.typing as npt
from numba import njit

from craftopt.loads import FloatArray, IntArray

# Loads within this share of T are at T: rounding must not start another raise.
_TOLERANCE = 1e-12


def lp_max_loads(copies: npt.NDArray[np.uint8], tokens: FloatArray) -> FloatArray:
    """Compute the largest GPU load under the best split, float64 [windows, layers].

    Exact but for rounding: the value is attained by a split, and within 1e-10 of it (relative)
    there is a set of GPUs that proves it.

    Parameters
    ----------
    copies : uint8 [layers, experts, gpus]
        Copies that every GPU hosts; at least one of every expert.
    tokens : float64 [windows, layers, experts]

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.routing import lp_max_loads
    >>> plan = co.Plan.from_phy2log([[0, 1, 0, 2]], gpus=2)
    >>> lp_max_loads(plan.copies, co.Loads([[6, 2, 4]]).tokens)
    array([[6.]])
    """
    return _max_loads(copies, tokens)


@njit(cache=True, nogil=True)
def _max_loads(copies: npt.NDArray[np.uint8], tokens: FloatArray) -> FloatArray:
    windows, layers, experts = tokens.shape
    gpus = copies.shape[2]
    result = np.empty((windows, layers))
    load = np.empty(gpus)
    hosts = np.empty(experts, dtype=np.int64)
    shared = np.empty(experts, dtype=np.int64)  # experts with several hosts
    home = np.empty(experts, dtype=np.int64)  # the host of the others
    # An arc is a host of a shared expert: arcs first[i]..first[i+1] of the i-th. Those of a GPU
    # are arcs[arcs_first[gpu]..arcs_first[gpu+1]].
    first = np.zeros(experts + 1, dtype=np.int64)
    demand = np.empty(experts)
    for layer in range(layers):
        count = 0
        arcs_first = np.zeros(gpus + 1, dtype=np.int64)
        for expert in range(experts):
            hosts[expert] = 0
            for gpu in range(gpus):
                if copies[layer, expert, gpu] > 0:
                    hosts[expert] += 1
                    home[expert] = gpu
            if hosts[expert] < 2:
                continue
            shared[count] = expert
            count += 1
            first[count] = first[count - 1] + hosts[expert]
            for gpu in range(gpus):
                if copies[layer, expert, gpu] > 0:
                    arcs_first[gpu + 1] += 1
        size = first[count]
        host = np.empty(size, dtype=np.int64)
        owner = np.empty(size, dtype=np.int64)
        arcs = np.empty(size, dtype=np.int64)
        flow = np.empty(size)
        for gpu in range(gpus):
            arcs_first[gpu + 1] += arcs_first[gpu]
        filled = arcs_first.copy()
        arc = 0
        for i in range(count):
            for gpu in range(gpus):
                if copies[layer, shared[i], gpu] > 0:
                    host[arc] = gpu
                    owner[arc] = i
                    arcs[filled[gpu]] = arc
                    filled[gpu] += 1
                    arc += 1
        for window in range(windows):
            load[:] = 0.0
            flow[:] = 0.0
            for expert in range(experts):
                if hosts[expert] == 1:
                    load[home[expert]] += tokens[window, layer, expert]
            for i in range(count):
                demand[i] = tokens[window, layer, shared[i]]
            result[window, layer] = _balance(
                first[: count + 1], host, owner, arcs, arcs_first, demand[:count], load, flow
            )
    return result


@njit(cache=True, nogil=True)
def _balance(
    first: IntArray,
    host: IntArray,
    owner: IntArray,
    arcs: IntArray,
    arcs_first: IntArray,
    demand: FloatArray,
    load: FloatArray,
    flow: FloatArray,
) -> float:
    """Split the demands into ``flow``, add them to ``load``, and return the largest load."""
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
    return float(load.max())


@njit(cache=True, nogil=True)
def _fill(hosts: IntArray, amount: float, load: FloatArray, flow: FloatArray) -> None:
    """Pour an expert's tokens over its hosts, the least loaded first, to one level."""
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
