"""The fewest activated copies on the fullest GPU: METRO's greedy, and the optimum.

In decode a GPU's time is that of reading the weights of the copies that it activates, not that of
the tokens. One copy may serve all tokens of an expert, and a second one only adds to the count, so
a routing is a choice of one host for every expert that has tokens: an optimal semi-matching
(Harvey, Ladner, Lovász and Tamir, J. Algorithms 59 (2006) 53-78), found by cost-reducing paths.

**Theorem.** Let some GPU serve ``most`` experts, none more. From it, GPU u leads to v where an
expert served on u has another host v. If no GPU with ``most - 2`` or fewer can be reached, then
``most`` is the least possible. *Proof.* Let S be what is reached. An expert served in S has all its
hosts in S. Each GPU of S serves at least ``most - 1`` and the first one ``most``, so the experts
that must be served in S are more than ``(most - 1) |S|``: some GPU gets ``most``. [] Otherwise
every expert on the path moves one step on, which takes one from a fullest GPU and makes no new one.

S is the witness; `craftopt.routing.check_witness` counts the experts whose hosts are all in it.
Where ``most`` is ceil(experts with tokens / GPUs), all GPUs together are a witness.
"""

from __future__ import annotations

import numpy as np

from craftopt.jit import inner, njit
from craftopt.loads import BoolArray, FloatArray, IntArray
from craftopt.routing.hosts import Hosts, Int32Array, LayerHosts, Served


@njit()
def serve_by_one_copy(
    hosts: Hosts, tokens: FloatArray, optimal: bool, served: Served, witness: BoolArray
) -> None:
    """Give each expert to its least activated host, by id, as METRO does.

    Where ``optimal``, in ``order`` instead, and then improve to the optimum and fill ``witness``
    [layers, gpus].
    """
    first, gpu = hosts.first, hosts.gpu
    layers, experts = tokens.shape
    gpus = served.activated.shape[1]
    chosen = np.empty(experts, dtype=np.int32)
    queue = np.empty(gpus, dtype=np.int32)
    way = np.empty(gpus, dtype=np.int32)
    for layer in range(layers):
        count = served.activated[layer]
        active = 0
        for i in range(experts):
            e = hosts.order[layer, i] if optimal else i
            if tokens[layer, e] <= 0.0:
                chosen[e] = -1
                continue
            active += 1
            cell = layer * experts + e
            best = first[cell]
            least = count[gpu[best]]
            for place in range(best + 1, first[cell + 1]):
                if count[gpu[place]] < least:
                    best = place
                    least = count[gpu[place]]
            chosen[e] = best
            count[gpu[best]] += 1
        if optimal:
            cells = first[layer * experts : (layer + 1) * experts + 1]
            of_first = hosts.of_gpu_first[layer * gpus : (layer + 1) * gpus + 1]
            here = LayerHosts(cells, gpu, hosts.expert, of_first, hosts.of_gpu)
            _improve(here, -(-active // gpus), chosen, count, witness[layer], queue, way)
        for e in range(experts):
            if chosen[e] >= 0:
                served.share[chosen[e]] = tokens[layer, e]
                served.loads[layer, gpu[chosen[e]]] += tokens[layer, e]


@inner()
def _improve(
    hosts: LayerHosts,
    least_possible: int,
    chosen: Int32Array,
    count: IntArray,
    reached: BoolArray,
    queue: Int32Array,
    way: Int32Array,
) -> None:
    """Shift experts along paths until the fullest GPU reaches no GPU with two fewer."""
    first, gpu, expert, of_gpu_first, of_gpu = hosts
    while True:
        start = np.argmax(count)
        most = count[start]
        if most <= least_possible:
            reached[:] = True
            return
        reached[:] = False
        reached[start] = True
        queue[0] = start
        size = 1
        at = 0
        end = -1
        while at < size and end < 0:
            u = queue[at]
            at += 1
            for i in range(of_gpu_first[u], of_gpu_first[u + 1]):
                e = expert[of_gpu[i]]
                if chosen[e] != of_gpu[i]:
                    continue
                for place in range(first[e], first[e + 1]):
                    v = gpu[place]
                    if reached[v]:
                        continue
                    reached[v] = True
                    way[v] = place  # the expert of this place came from chosen[expert]
                    if count[v] <= most - 2:
                        end = v
                        break
                    queue[size] = v
                    size += 1
                if end >= 0:
                    break
        if end < 0:
            return
        count[start] -= 1
        count[end] += 1
        while end != start:
            e = expert[way[end]]
            before = gpu[chosen[e]]
            chosen[e] = way[end]
            end = before
