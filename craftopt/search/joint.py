"""Annealing for balance and traffic together, or for dispatch that depends on the token's home.

Like `anneal`, with two additions. What a copy serves of its expert may depend on where the other
copies are (``nearest-even`` dispatch), so that an exchange can change more GPUs than two. And nodes
may have a price: visits of a node are estimated as linear in its assignments and in the pairs of
them that one token chose, the slopes being those of random placement and of a placement by pairs.
"""

from __future__ import annotations

from math import comb
from typing import NamedTuple

import numpy as np
from numba import njit

from craftopt.loads import BoolArray, FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.search.kernels import (
    NONE,
    Rules,
    Schedule,
    draw,
    fullest,
    home_nodes,
    seeded,
    uniform,
)
from craftopt.search.surrogate import (
    Rows,
    Step,
    WindowLoads,
    count_replacement,
    norm_cost,
    norm_cost_of_exchange,
    norm_cost_of_rows,
    set_load,
    state_of,
    sum_powers,
)

# Sums that are corrected by differences are computed again every so many steps.
_REFRESH = 10_000
# Companions of a token's expert in its node, in units of those of random placement, at which the
# surrogate has the slope of the true number of nodes: measured on plans for two models.
_GATHERED = 1.45


class Visits(NamedTuple):
    """What visits of nodes cost, for the surrogate; see `visits_surrogate`.

    Parameters
    ----------
    price : float
        Of a node that a token visits, in mean GPU loads; 0: traffic does not count.
    nodes : int
        Nodes between which tokens are sent; divides the GPUs.
    pairs : float64 [experts, experts]
        Share of the tokens that chose both; 0 on the diagonal.
    chosen : float64 [experts]
        Share of the tokens that chose the expert.
    per_assignment, per_pair : float
        Visits of a node for every assignment there, less those for every pair of them.
    pooled : bool
        Whether all windows count as one.
    """

    price: float
    nodes: int
    pairs: FloatArray
    chosen: FloatArray
    per_assignment: float
    per_pair: float
    pooled: bool


# Traffic does not count; set the nodes.
NO_VISITS = Visits(0.0, 1, np.zeros((1, 1)), np.zeros(1), 0.0, 0.0, False)


def visits_surrogate(
    price: float, nodes: int, pairs: FloatArray, chosen: FloatArray, *, pooled: bool
) -> Visits:
    """Make the surrogate for visits of nodes.

    An assignment with m others of its token in the node costs 1 / (1 + m) visits. The slope in
    pairs is that at m = 1.45 times the others' number under random placement, and the line is
    exact for random placement.

    Parameters
    ----------
    price, nodes, pairs, chosen, pooled
        As in `Visits`.
    """
    experts = chosen.size
    choices = max(float(chosen.sum()), 1e-9)
    k = max(round(choices), 1)
    hosted = max(experts // nodes, 1)
    visited = nodes * (1.0 - comb(experts - hosted, k) / comb(experts, k))
    together = choices * (choices - 1.0) / 2.0 * (hosted - 1) / max(experts - 1, 1)
    per_pair = 2.0 / (1.0 + _GATHERED * (choices - 1.0) / nodes) ** 2
    per_assignment = (visited + per_pair * together) / choices
    return Visits(price, nodes, pairs, chosen, per_assignment, per_pair, pooled)


@njit(cache=True, nogil=True)
def copy_shares(hosted: BoolArray, nodes: int, nearest: bool, shares: FloatArray) -> None:
    """Fill what every GPU serves of an expert's tokens, float64 [gpus].

    Parameters
    ----------
    hosted : bool [gpus]
        Where the expert has copies; somewhere.
    nearest : bool
        Whether tokens, held equally by all GPUs, use the copy on their GPU, else those in their
        node, else all, evenly (``nearest-even``); else all copies evenly.
    """
    gpus = hosted.size
    width = gpus // nodes
    count = 0
    covered = 0
    for node in range(nodes):
        before = count
        for gpu in range(node * width, (node + 1) * width):
            count += hosted[gpu]
        covered += count > before
    for node in range(nodes):
        inside = 0
        for gpu in range(node * width, (node + 1) * width):
            inside += hosted[gpu]
        share = 1.0 / count
        if nearest and inside > 0:
            share = (width / inside + (nodes - covered) * width / count) / gpus
        for gpu in range(node * width, (node + 1) * width):
            shares[gpu] = share if hosted[gpu] else 0.0


@njit(cache=True, nogil=True)
def _visit_rows(
    nodes: IntArray,
    many: int,
    visits: Visits,
    scale: float,
    expected: FloatArray,
    assigned: FloatArray,
    node_load: FloatArray,
    rows: FloatArray,
) -> None:
    """Estimate the share of each window's tokens that visits some nodes, one row each.

    Parameters
    ----------
    expected, assigned : float64 [nodes]
        Visits by the line and assignments, per token.
    node_load : float64 [many, windows]
    """
    for k in range(many):
        node = nodes[k]
        # A visit has at most all the choices of a token; the line may be below that.
        least = assigned[node] / scale
        visited = max(expected[node], least)
        if visits.pooled:
            rows[k, 0] = visited
        else:
            rate = visited / max(assigned[node], 1e-300)
            for w in range(rows.shape[1]):
                rows[k, w] = rate * node_load[k, w]


@njit(cache=True, nogil=True)
def anneal_joint(
    tokens: FloatArray,
    weight: FloatArray,
    start: Copies,
    rules: Rules,
    visits: Visits,
    nearest: bool,
    schedule: Schedule,
    seed: int,
) -> tuple[Copies, float]:
    """Anneal one layer for GPU loads and for visits of nodes.

    Parameters
    ----------
    tokens : float64 [experts, windows]
        Loads, each window scaled to a mean GPU load of 1.
    weight : float64 [windows]
        What each window counts; sums to 1.
    start : uint8 [experts, gpus]
        At most one copy of an expert on a GPU.
    rules : Rules
    visits : Visits
    nearest : bool
        Whether copies are served ``nearest-even``; see `copy_shares`.
    schedule : Schedule
        Temperatures in mean GPU loads. Where there are more windows than in a mini-batch,
        another one is drawn at each refresh.
    seed : int

    Returns
    -------
    copies : uint8 [experts, gpus]
        The best of the second half; with more windows than in play, the last.
    cost : float
        Its surrogate: p-norms of GPU loads, and the price of the p-norms of visits.
    """
    group_nodes, low, high, copies_limit = rules
    steps, hot, cold, in_play = schedule
    nodes = visits.nodes
    priced = visits.price > 0.0
    node_of = home_nodes(start, group_nodes)
    experts, all_windows = tokens.shape
    windows = min(all_windows, in_play)
    sampled = all_windows > windows
    batch = np.arange(all_windows)
    every_weight, every_token = weight, tokens
    weight = every_weight[:windows]
    gpus = start.shape[1]
    width, reach = gpus // nodes, gpus // group_nodes
    random = seeded(seed)
    state = state_of(tokens, weight, start, high + 1)
    (hosted, items, filled), loads, rows = state.gpus, state.loads, state.rows
    tokens, count, replicated, _, several = state.experts
    served, load, weight, touched = loads.share, loads.load, loads.weight, rows.touched
    shares = np.zeros((experts, gpus))
    for expert in range(experts):
        copy_shares(hosted[expert], nodes, nearest, shares[expert])

    # Of the nodes: shares of the experts, assignments, expected visits, pairs with every expert.
    of_node = np.zeros((experts, nodes))
    assigned, expected = np.zeros(nodes), np.zeros(nodes)
    partners = np.zeros((nodes, experts))
    choices = max(visits.chosen.sum(), 1e-300)
    visit_windows = 1 if visits.pooled else windows
    node_load = np.zeros((nodes, windows))
    visited = WindowLoads(
        np.zeros((1, visit_windows)),
        np.zeros((nodes, visit_windows)),
        np.zeros((nodes, visit_windows)),
        np.zeros(visit_windows),
        np.empty(visit_windows),
        np.empty((2, visit_windows)),
    )
    every_node = np.arange(nodes)

    cost = load_cost = np.inf  # computed at the first step
    best_cost = np.inf
    best_items, best_filled = items.copy(), filled.copy()

    # A proposal: experts, each of which leaves a GPU, comes to one, or both; -1 = none.
    changed, leaves, enters = np.empty(3, np.int64), np.empty(3, np.int64), np.empty(3, np.int64)
    fresh_shares, shift = np.empty((3, gpus)), np.empty((3, nodes))
    moved_nodes = np.empty(nodes + 1, dtype=np.int64)
    fresh_expected, fresh_assigned = np.empty(nodes), np.empty(nodes)
    fresh_load = np.empty((nodes, windows))
    visit_rows = Rows(np.empty((nodes, visit_windows)), moved_nodes, every_node)

    cooling = (cold / hot) ** (1.0 / max(steps, 1))
    temperature = hot
    for step in range(steps):
        temperature *= cooling
        if step % _REFRESH == 0:
            if sampled:
                for k in range(windows):
                    other = k + draw(random, all_windows - k)
                    batch[k], batch[other] = batch[other], batch[k]
                for k in range(windows):
                    weight[k] = every_weight[batch[k]]
                weight /= max(weight.sum(), 1e-300)
                for expert in range(experts):
                    for k in range(windows):
                        tokens[expert, k] = every_token[expert, batch[k]]
            for expert in range(experts):
                served[expert] = tokens[expert] / count[expert]
            load[:] = 0.0
            for gpu in range(gpus):
                for slot in range(filled[gpu]):
                    expert = items[gpu, slot]
                    load[gpu] += tokens[expert] * shares[expert, gpu]
            sum_powers(loads)
            load_cost = cost = norm_cost(loads)
            if priced:
                of_node[:] = 0.0
                node_load[:] = 0.0
                for gpu in range(gpus):
                    of_node[:, gpu // width] += shares[:, gpu]
                    node_load[gpu // width] += load[gpu] * (choices / gpus)
                partners[:] = 0.0
                assigned[:] = 0.0
                expected[:] = 0.0
                for expert in range(experts):
                    for node in range(nodes):
                        for other in range(experts):
                            partners[node, expert] += (
                                visits.pairs[expert, other] * of_node[other, node]
                            )
                        assigned[node] += visits.chosen[expert] * of_node[expert, node]
                        # Every pair is counted from both of its experts.
                        expected[node] -= (
                            0.5 * visits.per_pair
                            * of_node[expert, node] * partners[node, expert]
                        )  # fmt: skip
                expected += visits.per_assignment * assigned
                _visit_rows(
                    every_node, nodes, visits, choices, expected, assigned, node_load, visited.load
                )
                sum_powers(visited)
                # The p-norm over nodes is that of a mean: equal visits give their sum.
                scale = visits.price * nodes ** (1.0 - 1.0 / 8.0)
                for w in range(visit_windows):
                    visited.weight[w] = scale * (1.0 if visits.pooled else weight[w])
                cost += norm_cost(visited)

        # --- propose ---
        first = draw(random, group_nodes) * reach if group_nodes > 1 else 0
        replacing = several[0] > 0 and draw(random, 10) >= 7
        many_changed = 2
        simple = not replacing  # copies serve elsewhere what they did
        if not replacing:
            a = fullest(random, load, first, reach) if draw(random, 10) >= 3 else (
                first + draw(random, reach)
            )  # fmt: skip
            b = first + draw(random, reach)
            if a == b or filled[a] == 0:
                continue
            i = draw(random, filled[a])
            given = items[a, i]
            if hosted[given, b]:
                continue
            # A slot that may stay empty counts like an item in the draw.
            movable = filled[a] > low and filled[b] < high
            j = draw(random, filled[b] + (1 if movable else 0))
            if j == filled[b]:
                if not movable:
                    continue
                many_changed = 1
                taken = NONE
            else:
                taken = items[b, j]
                if hosted[taken, a]:
                    continue
                changed[1], leaves[1], enters[1] = taken, b, a
                simple = simple and not (nearest and count[taken] > 1)
            simple = simple and not (nearest and count[given] > 1)
            changed[0], leaves[0], enters[0] = given, a, b
        else:
            # A copy of ``drop`` leaves GPU a; a copy of ``add`` comes to a, or to b, whose
            # item goes to a.
            drop = replicated[draw(random, several[0])]
            nth = draw(random, count[drop])
            a = 0
            while not hosted[drop, a] or nth > 0:
                if hosted[drop, a]:
                    nth -= 1
                a += 1
            first = a // reach * reach
            if draw(random, 10) < 7:
                full = fullest(random, load, first, reach)
                if filled[full] == 0:
                    continue
                add = items[full, draw(random, filled[full])]
            else:
                add = draw(random, experts)
            if add == drop or count[add] >= copies_limit or node_of[add] != node_of[drop]:
                continue
            b = a
            if draw(random, 10) < 6:
                b = first + draw(random, reach)
                if b == a or filled[b] == 0:
                    continue
                j = draw(random, filled[b])
                moved = items[b, j]
                if moved in (drop, add) or hosted[moved, a]:
                    continue
                changed[2], leaves[2], enters[2] = moved, b, a
                many_changed = 3
            if hosted[add, b]:
                continue
            changed[0], leaves[0], enters[0] = drop, a, -1
            changed[1], leaves[1], enters[1] = add, -1, b

        # --- what it costs ---
        bound = cost - temperature * np.log(uniform(random))
        for c in range(many_changed):
            if leaves[c] >= 0:
                hosted[changed[c], leaves[c]] = False
            if enters[c] >= 0:
                hosted[changed[c], enters[c]] = True
        many_touched = 0
        if simple:
            exchange = Step(a, b, i, j, given, taken, NONE, NONE)
            fresh_load_cost = norm_cost_of_exchange(exchange, loads)
        else:
            for c in range(many_changed):
                copy_shares(hosted[changed[c]], nodes, nearest, fresh_shares[c])
            for gpu in range(gpus):
                differs = False
                for c in range(many_changed):
                    less = fresh_shares[c, gpu] - shares[changed[c], gpu]
                    if less != 0.0:
                        if not differs:
                            differs = True
                            touched[many_touched] = gpu
                            rows.load[many_touched] = load[gpu]
                        for w in range(windows):
                            rows.load[many_touched, w] += tokens[changed[c], w] * less
                many_touched += differs
            touched[many_touched] = NONE
            fresh_load_cost = norm_cost_of_rows(loads, rows)
        fresh = fresh_load_cost
        # Traffic costs something, so a load cost above the bound decides.
        accepted = fresh <= bound
        if accepted and simple:
            for c in range(many_changed):
                fresh_shares[c] = shares[changed[c]]
                fresh_shares[c, enters[c]] = fresh_shares[c, leaves[c]]
                fresh_shares[c, leaves[c]] = 0.0
            many_touched = 2
            touched[0], touched[1] = a, b
            for w in range(windows):
                rows.load[0, w] = load[a, w] + (served[taken, w] - served[given, w])
                rows.load[1, w] = load[b, w] - (served[taken, w] - served[given, w])
        many_moved = 0
        if accepted and priced and simple and a // width == b // width:
            fresh += cost - load_cost
            accepted = fresh <= bound
        elif accepted and priced:
            shift[:] = 0.0
            for c in range(many_changed):
                for gpu in range(gpus):
                    shift[c, gpu // width] += fresh_shares[c, gpu] - shares[changed[c], gpu]
            for node in range(nodes):
                moves = False
                for c in range(many_changed):
                    moves = moves or abs(shift[c, node]) > 1e-12
                if moves:
                    moved_nodes[many_moved] = node
                    many_moved += 1
            if many_moved > 0:
                for k in range(many_moved):
                    node = moved_nodes[k]
                    fresh_expected[node] = expected[node]
                    fresh_assigned[node] = assigned[node]
                    for c in range(many_changed):
                        expert, more = changed[c], shift[c, node]
                        fresh_assigned[node] += visits.chosen[expert] * more
                        fresh_expected[node] += visits.per_assignment * visits.chosen[expert] * more
                        together = partners[node, expert]
                        for d in range(c):
                            together += visits.pairs[expert, changed[d]] * shift[d, node]
                        fresh_expected[node] -= visits.per_pair * more * together
                    if not visits.pooled:
                        fresh_load[k] = node_load[node]
                if not visits.pooled:
                    for t in range(many_touched):
                        for k in range(many_moved):
                            if touched[t] // width == moved_nodes[k]:
                                fresh_load[k] += (rows.load[t] - load[touched[t]]) * (
                                    choices / gpus
                                )
                _visit_rows(
                    moved_nodes, many_moved, visits, choices, fresh_expected, fresh_assigned,
                    fresh_load, visit_rows.load,
                )  # fmt: skip
                moved_nodes[many_moved] = NONE
                fresh += norm_cost_of_rows(visited, visit_rows)
            else:
                fresh += cost - load_cost
            accepted = fresh <= bound
        if not accepted:
            for c in range(many_changed):
                if enters[c] >= 0:
                    hosted[changed[c], enters[c]] = False
                if leaves[c] >= 0:
                    hosted[changed[c], leaves[c]] = True
            continue

        # --- accept ---
        for t in range(many_touched):
            set_load(touched[t], rows.load[t], loads)
        for k in range(many_moved):
            node = moved_nodes[k]
            expected[node], assigned[node] = fresh_expected[node], fresh_assigned[node]
            if not visits.pooled:
                node_load[node] = fresh_load[k]
            set_load(node, visit_rows.load[k], visited)
            for c in range(many_changed):
                of_node[changed[c], node] += shift[c, node]
                for other in range(experts):
                    partners[node, other] += visits.pairs[changed[c], other] * shift[c, node]
        for c in range(many_changed):
            shares[changed[c]] = fresh_shares[c]
        if replacing:
            slot = 0
            while items[a, slot] != drop:
                slot += 1
            items[a, slot] = add
            if many_changed == 3:
                items[a, slot], items[b, j] = changed[2], add
            count_replacement(drop, add, state)
        elif many_changed == 2:
            items[a, i], items[b, j] = changed[1], given
        else:
            filled[a] -= 1
            items[a, i] = items[a, filled[a]]
            items[b, filled[b]] = given
            filled[b] += 1
        cost, load_cost = fresh, fresh_load_cost
        if not sampled and cost < best_cost and 2 * step >= steps:
            best_cost = cost
            best_items[:] = items
            best_filled[:] = filled
    if best_cost == np.inf:
        best_items, best_filled, best_cost = items, filled, cost
    result = np.zeros((experts, gpus), dtype=np.uint8)
    for gpu in range(gpus):
        for slot in range(best_filled[gpu]):
            result[best_items[gpu, slot], gpu] = 1
    return result, best_cost
