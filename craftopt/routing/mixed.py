"""The least time of the slowest GPU, where both reading and computing count: a local search.

A GPU that activates n copies and serves m tokens takes max(a + b n, c + d m): TEMPO's model of one
layer, from decode (reading weights) to prefill (computing). An expert's tokens may be split, and
each part costs a copy more to read. The optimum is NP-hard already on two GPUs, so this is an
iterated local search between two relaxations: the fewest copies (``exact``) and the fewest tokens
(``lp``) are optima of theirs, and their larger time is the lower bound. For every limit on the
copies of a GPU whose time could still win, from the lowest up, the descent moves, exchanges or
splits experts of the GPU with most tokens, whichever leaves the least, until nothing helps; then
the tokens are split again, optimally, over the copies in use. A perturbation moves some experts at
random, and the descent runs again, within a limit on the work. The limits on copies are few: a
vertex of the token split uses at most one copy per expert and GPU, together, so GPUs need hardly
more than their share of that.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from craftopt.jit import inner, njit
from craftopt.loads import FloatArray, IntArray
from craftopt.routing.hosts import Hosts, Int32Array, LayerHosts, Served
from craftopt.routing.tokens import split_layer

_GAIN = 1e-6  # least relative gain of a step: smaller ones are rounding
_STEPS_PER_GPU = 30  # of a descent, before the tokens are split again
_ROUNDS = 40  # descents, for a limit on the copies
_KICKS = 150  # experts that a perturbation may move
_LINKS = 5  # moves in a chain
# Work is counted in transfers that are evaluated, so that it is the same on any machine.
_MOST_LOOKS_OF_A_CHAIN = 2_000
_MOST_LOOKS = 40_000


class _State(NamedTuple):
    """A layer's routing while it is improved."""

    share: FloatArray  # [hosts]
    copies: IntArray  # [gpus]: those that a GPU reads
    load: FloatArray  # [gpus]: tokens that it serves
    looks: IntArray  # [1]: work so far


@njit()
def serve_mixed(
    hosts: Hosts,
    tokens: FloatArray,
    cost: tuple[float, float, float, float],
    fewest_tokens: FloatArray,
    level: FloatArray,
    served: Served,
    value: FloatArray,
    bound: FloatArray,
) -> None:
    """Improve the routing with the fewest copies, which is given, until no step helps.

    Parameters
    ----------
    cost : tuple of 4 floats
        a, b, c and d.
    fewest_tokens : float64 [hosts]
        The routing with the fewest tokens on the fullest GPU.
    level : float64 [layers]
        A bound on those tokens.
    served : Served
        The routing with the fewest copies; replaced by the one that is found.
    value, bound : float64 [layers]
        Filled with the longest time, and a lower bound on it.
    """
    a, b, c, d = cost
    share = served.share
    gpu = hosts.gpu
    looks = np.zeros(1, dtype=np.int64)
    tried = np.zeros(share.size)
    layers, experts = tokens.shape
    gpus = served.loads.shape[1]
    for layer in range(layers):
        cells = hosts.first[layer * experts : (layer + 1) * experts + 1]
        of_first = hosts.of_gpu_first[layer * gpus : (layer + 1) * gpus + 1]
        here = LayerHosts(cells, gpu, hosts.expert, of_first, hosts.of_gpu)
        begin, end = int(cells[0]), int(cells[experts])
        count, load = served.activated[layer], served.loads[layer]
        bound[layer] = max(a + b * count.max(), c + d * level[layer])
        value[layer] = _time(cost, count, load)
        if value[layer] <= bound[layer] * (1 + _GAIN):
            continue
        best = share[begin:end].copy()
        tried[begin:end] = fewest_tokens[begin:end]
        tried_count, tried_load = _totals(tried, gpu, begin, end, gpus)
        time = _time(cost, tried_count, tried_load)
        if time < value[layer]:
            value[layer] = time
            best[:] = tried[begin:end]
        limit = count.max()
        if b > 0.0:
            # as many as the bound has time for; no GPU hosts more than all experts
            limit = max(limit, int(min(float(experts), (bound[layer] - a) / b * (1 + _GAIN))))
        tried[begin:end] = share[begin:end]
        tried_count[:] = count
        tried_load[:] = load
        looks[0] = 0
        state = _State(tried, tried_count, tried_load, looks)
        while value[layer] > bound[layer] * (1 + _GAIN) and a + b * limit < value[layer]:
            goal = max(level[layer], (a + b * limit - c) / d) if d > 0.0 else np.inf
            _unload(here, tokens[layer], limit, goal, state)
            time = _time(cost, tried_count, tried_load)
            if time < value[layer]:
                value[layer] = time
                best[:] = tried[begin:end]
            if tried_load.max() <= goal * (1 + _GAIN):
                break
            limit += 1
        share[begin:end] = best
        count[:], load[:] = _totals(share, gpu, begin, end, gpus)


@inner()
def _time(cost: tuple[float, float, float, float], count: IntArray, load: FloatArray) -> float:
    a, b, c, d = cost
    return float(max(a + b * count.max(), c + d * load.max()))


@inner()
def _totals(
    share: FloatArray, gpu: Int32Array, begin: int, end: int, gpus: int
) -> tuple[IntArray, FloatArray]:
    """Count the copies in use and the tokens of every GPU."""
    count = np.zeros(gpus, dtype=np.int64)
    load = np.zeros(gpus)
    for place in range(begin, end):
        if share[place] > 0.0:
            count[gpu[place]] += 1
            load[gpu[place]] += share[place]
    return count, load


@inner()
def _unload(hosts: LayerHosts, tokens: FloatArray, limit: int, goal: float, state: _State) -> None:
    """Lower the most tokens on a GPU towards ``goal``, with at most ``limit`` copies on each.

    Iterated local search: descend; then, a few times, perturb, descend, and keep what is better.
    """
    first, gpu, expert, _, _ = hosts
    share, count, load, looks = state
    begin, end = int(first[0]), int(first[first.size - 1])
    best = np.empty(end - begin)
    least = np.inf
    random = np.uint64(1)
    for turn in range(_ROUNDS):
        _descend(hosts, tokens, limit, goal, turn % 2 == 0, state)
        if load.max() < least:
            least = load.max()
            best[:] = share[begin:end]
        if least <= goal * (1 + _GAIN):
            return
        if looks[0] > _MOST_LOOKS:
            break
        share[begin:end] = best
        count[:], load[:] = _totals(share, gpu, begin, end, load.size)
        for _ in range(_KICKS):
            random = random * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
            p = begin + int((random >> np.uint64(33)) % np.uint64(end - begin))
            choices = first[expert[p] + 1] - first[expert[p]]
            q = first[expert[p]] + int((random >> np.uint64(20)) % np.uint64(choices))
            if p != q and share[p] > 0.0 and (share[q] > 0.0 or count[gpu[q]] < limit):
                _pass_on(p, q, share[p], gpu, state)
    share[begin:end] = best
    count[:], load[:] = _totals(share, gpu, begin, end, load.size)


@inner()
def _descend(
    hosts: LayerHosts, tokens: FloatArray, limit: int, goal: float, sparing: bool, state: _State
) -> None:
    """Take steps until none helps, even after the tokens are split again."""
    load = state.load
    steps = _STEPS_PER_GPU * load.size
    while True:
        before = load.max()
        while steps > 0 and load.max() > goal * (1 + _GAIN):
            if not _step(hosts, limit, sparing, state):
                break
            steps -= 1
        if load.max() <= goal * (1 + _GAIN):
            return
        _split_again(hosts, tokens, state)
        state.looks[0] += 8 * (hosts.first[hosts.first.size - 1] - hosts.first[0])
        if steps <= 0 or load.max() >= before * (1 - _GAIN):
            return


@inner()
def _step(hosts: LayerHosts, limit: int, sparing: bool, state: _State) -> bool:
    """Take tokens off the fullest GPU u: the step that leaves the least on all GPUs it touches.

    Some tokens of an expert go from u to another host v. Where v may read no further copy, one of
    its experts leaves it for another host w. Steps that split an expert use a copy up, so they are
    taken only where no other step helps.
    """
    first, gpu, expert, of_gpu_first, of_gpu = hosts
    share, count, load, looks = state
    u = int(np.argmax(load))
    top = load[u]
    whole_after = split_after = top * (1 - _GAIN)
    whole = split = (-1, -1, -1, -1, 0.0)
    for i in range(of_gpu_first[u], of_gpu_first[u + 1]):
        p = of_gpu[i]
        if share[p] <= 0.0:
            continue
        for q in range(first[expert[p]], first[expert[p] + 1]):
            v = gpu[q]
            if v == u:
                continue
            looks[0] += 1
            if share[q] > 0.0 or count[v] < limit:
                moved = min(share[p], (top - load[v]) / 2)
                if share[q] > 0.0 or load[v] + share[p] < whole_after:
                    part = moved if share[q] > 0.0 else share[p]
                    after = max(top - part, load[v] + part)
                    if part > 0.0 and after < whole_after:
                        whole_after = after
                        whole = (p, q, -1, -1, part)
                after = max(top - moved, load[v] + moved)
                if moved > 0.0 and after < split_after:
                    split_after = after
                    split = (p, q, -1, -1, moved)
                continue
            for j in range(of_gpu_first[v], of_gpu_first[v + 1]):
                r = of_gpu[j]
                back = share[r]
                if back <= 0.0:
                    continue
                for s in range(first[expert[r]], first[expert[r] + 1]):
                    w = gpu[s]
                    if w == v:
                        continue
                    looks[0] += 1
                    if w == u:
                        part = share[p]
                        after = max(top + back - part, load[v] - back + part)
                        if after < whole_after:
                            whole_after = after
                            whole = (p, q, r, s, part)
                        if share[s] > 0.0 or count[u] < limit:
                            part = min(part, (top - load[v]) / 2 + back)
                            after = max(top + back - part, load[v] - back + part)
                            if after < split_after:
                                split_after = after
                                split = (p, q, r, s, part)
                    elif share[s] > 0.0 or count[w] < limit:
                        part = share[p]
                        after = max(top - part, load[v] - back + part, load[w] + back)
                        if after < whole_after:
                            whole_after = after
                            whole = (p, q, r, s, part)
                        part = min(part, (top - load[v] + back) / 2)
                        after = max(top - part, load[v] - back + part, load[w] + back)
                        if part > 0.0 and after < split_after:
                            split_after = after
                            split = (p, q, r, s, part)
    spared = whole[0] >= 0 and (sparing or whole_after <= split_after)
    p, q, r, s, part = whole if spared else split
    if p < 0:
        return _chain(u, hosts, limit, state)
    if r >= 0:
        _pass_on(r, s, share[r], gpu, state)
    _pass_on(p, q, part, gpu, state)
    return True


@inner()
def _chain(u: int, hosts: LayerHosts, limit: int, state: _State) -> bool:
    """Move an expert from u to v, another from v to w, and so on, back to u or to where is room.

    Depth first, until a chain is found after which every GPU in it has less than u has now.
    """
    first, gpu, expert, of_gpu_first, of_gpu = hosts
    share, count, load, looks = state
    below = load[u] * (1 - _GAIN)
    on_way = np.zeros(load.size, dtype=np.bool_)
    on_way[u] = True
    source = np.empty(_LINKS, dtype=np.int64)  # the place that link k empties
    target = np.empty(_LINKS, dtype=np.int64)  # and the one that it fills
    next_source = np.empty(_LINKS, dtype=np.int64)  # where to go on in the list of the GPU
    next_target = np.empty(_LINKS, dtype=np.int64)
    at = np.empty(_LINKS + 1, dtype=np.int64)  # the GPU that link k leaves
    gets = np.zeros(_LINKS + 1)  # what it has got by the link before
    at[0] = u
    next_source[0] = of_gpu_first[u]
    next_target[0] = -1
    k = 0
    stop = looks[0] + _MOST_LOOKS_OF_A_CHAIN
    while k >= 0:
        here = at[k]
        if next_target[k] < 0:  # the next expert of this GPU
            if next_source[k] == of_gpu_first[here + 1]:
                if k > 0:
                    on_way[here] = False
                k -= 1
                continue
            p = of_gpu[next_source[k]]
            next_source[k] += 1
            if share[p] <= 0.0 or (k > 0 and load[here] + gets[k] - share[p] >= below):
                continue
            source[k] = p
            next_target[k] = first[expert[p]]
        p = source[k]
        q = next_target[k]
        if q == first[expert[p] + 1]:
            next_target[k] = -1
            continue
        next_target[k] += 1
        v = gpu[q]
        if v == here:
            continue
        looks[0] += 1
        if looks[0] > stop:
            return False
        target[k] = q
        if v == u:
            # u has given its expert away whole, so it has room
            closes = load[u] - share[source[0]] + share[p] < below
        elif on_way[v]:
            continue
        else:
            room = share[q] > 0.0 or count[v] < limit
            closes = room and load[v] + share[p] < below
        if closes:
            for link in range(k, -1, -1):
                _pass_on(source[link], target[link], share[source[link]], gpu, state)
            return True
        if v != u and k + 1 < _LINKS:
            k += 1
            at[k] = v
            gets[k] = share[p]
            on_way[v] = True
            next_source[k] = of_gpu_first[v]
            next_target[k] = -1
    return False


@inner()
def _pass_on(source: int, target: int, part: float, gpu: Int32Array, state: _State) -> None:
    """Move tokens of an expert from one host to another."""
    share, count, load, _ = state
    if share[target] == 0.0:
        count[gpu[target]] += 1
    if part >= share[source]:
        part = share[source]
        share[source] = 0.0
        count[gpu[source]] -= 1
    else:
        share[source] -= part
    share[target] += part
    load[gpu[source]] -= part
    load[gpu[target]] += part


@inner()
def _split_again(hosts: LayerHosts, tokens: FloatArray, state: _State) -> None:
    """Split the tokens optimally over the copies in use."""
    first, gpu = hosts.first, hosts.gpu
    share, count, load, _ = state
    experts = tokens.size
    used_first = np.zeros(experts + 1, dtype=np.int32)
    places = np.empty(first[experts] - first[0], dtype=np.int32)
    size = 0
    for e in range(experts):
        for place in range(first[e], first[e + 1]):
            if share[place] > 0.0:
                places[size] = place
                size += 1
        used_first[e + 1] = size
    used = places[:size]
    shares = np.zeros(size)
    load[:] = 0.0
    split_layer(used_first, gpu[used], tokens, shares, load)
    count[:] = 0
    for k in range(size):
        share[used[k]] = shares[k]
        count[gpu[used[k]]] += shares[k] > 0.0
