"""Annealing for balance and traffic together, or for dispatch that depends on the token's home.

Like `anneal`, with two additions. What a copy serves of its expert may depend on where the other
copies are (``nearest-even`` dispatch), so that an exchange can change more GPUs than two. And nodes
may have a price, by the surrogate of `craftopt.search.visits`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from craftopt.jit import njit
from craftopt.loads import BoolArray, FloatArray
from craftopt.plan import Copies
from craftopt.search.annealing import REFRESH, draw_batch, draw_exchange
from craftopt.search.fronts import count_moves
from craftopt.search.kernels import (
    NONE,
    Rules,
    Schedule,
    draw,
    eighth_power,
    exponential,
    fall,
    home_nodes,
    seeded,
)
from craftopt.search.surrogate import (
    MOST_SAVED,
    Experts,
    Gpus,
    Rows,
    Step,
    WindowLoads,
    change_by_exchange,
    change_by_rows,
    change_of_root,
    copies_of,
    draw_replacement,
    is_possible,
    norm_cost,
    set_load,
    state_of,
    sum_powers,
    take,
)
from craftopt.search.visits import (
    Change,
    Visits,
    list_moved_nodes,
    new_nodes,
    sum_node,
    sum_visits,
    take_visits,
    visits_of,
)


class Moves(NamedTuple):
    """What moved copies cost, in mean GPU loads each, and where a copy is none."""

    price: float
    previous: BoolArray  # [experts, gpus]


NO_MOVES = Moves(0.0, np.zeros((1, 1), dtype=np.bool_))


@njit()
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


@njit()
def anneal_joint(
    tokens: FloatArray,
    weight: FloatArray,
    start: Copies,
    rules: Rules,
    visits: Visits,
    nearest: bool,
    moves: Moves,
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
    moves : Moves
    schedule : Schedule
        Temperatures in mean GPU loads. Where there are more windows than in a mini-batch,
        another one is drawn at each refresh.
    seed : int

    Returns
    -------
    copies : uint8 [experts, gpus]
        The best of the second half; with more windows than in play, the last.
    cost : float
        Its surrogate: p-norms of GPU loads, and the price of the p-norms of visits and of moves.
    """
    steps, hot, cold, in_play = schedule
    all_windows, gpu_count = tokens.shape[1], start.shape[1]
    sampled = all_windows > in_play
    nodes, priced, choices = visits.nodes, visits.price > 0.0, visits.chosen.sum()
    width, reach = gpu_count // nodes, gpu_count // rules.nodes
    node_of = home_nodes(start, rules.nodes)
    state = state_of(tokens, weight[: min(all_windows, in_play)], start, rules.high)
    gpus, experts, loads, rows = state
    hosted, count = gpus.hosted, experts.copies
    shares = np.zeros((count.size, gpu_count))
    for expert in range(count.size):
        copy_shares(hosted[expert], nodes, nearest, shares[expert])
    windows = loads.weight.size
    nodes_held = new_nodes(count.size, nodes, windows, visits.pooled)
    change = Change(
        np.empty(2, dtype=np.int64), np.empty(2, dtype=np.int64), np.empty(2, dtype=np.int64),
        np.empty((2, gpu_count)), np.empty((2, nodes)), np.empty(nodes), np.empty(nodes),
        np.empty((nodes, windows)),
        Rows(
            np.empty((nodes, nodes_held.visited.weight.size)),
            np.empty(nodes + 1, dtype=np.int64),
        ),
    )  # fmt: skip
    changed, shift, touched = change.expert, change.shift, change.rows.touched
    fresh_assigned, fresh_expected = change.assigned, change.expected
    fresh_load, visit_rows = change.load, change.rows.load
    partners, assigned, expected = nodes_held.partners, nodes_held.assigned, nodes_held.expected
    node_load, share = nodes_held.load, loads.share
    visit_power, visit_slope = nodes_held.visited.power, nodes_held.visited.slope
    visit_norm = nodes_held.visited.norm
    size = visit_slope.size
    pairs, chosen, pooled = visits.pairs, visits.chosen, visits.pooled
    per_assignment, per_pair = visits.per_assignment, visits.per_pair
    per_load = choices / gpu_count
    batch = np.arange(all_windows)
    random = seeded(seed)
    load_cost = visit_cost = 0.0  # known from the first step on
    limited, dearer, moved_cost = moves.price > 0.0, 0.0, 0.0
    if limited:
        moved_cost = moves.price * np.sum(hosted & ~moves.previous)
    best_cost, best = np.inf, gpus.items.copy()
    cooling = fall(hot, cold, steps)
    temperature = hot
    for turn in range(steps):
        temperature *= cooling
        if turn % REFRESH == 0:
            if sampled:
                draw_batch(random, batch, tokens, weight, state)
            _sum_shared_loads(gpus, experts, shares, loads)
            load_cost = norm_cost(loads)
            if priced:
                sum_visits(visits, shares, loads, nodes_held)
                visit_cost = norm_cost(nodes_held.visited)
        first = draw(random, rules.nodes) * reach if rules.nodes > 1 else 0
        if experts.several[0] == 0 or draw(random, 10) < 7:
            step = draw_exchange(random, gpus, loads.load, rules, first)
        else:
            step = draw_replacement(random, state, node_of, rules)
        if not is_possible(step, hosted):
            continue
        allowed = temperature * exponential(random)
        if limited:
            dearer = moves.price * count_moves(step, moves.previous)
            allowed -= dearer
        many = _list_changes(step, change)
        # Whether copies serve elsewhere what they did, so that only two GPUs change.
        simple = step.drop < 0
        if nearest:
            for c in range(many):
                simple = simple and count[change.expert[c]] == 1
        if simple:
            change_of_cost = change_by_exchange(step, loads)
        else:
            _set_shared_rows(many, change, hosted, nodes, nearest, shares, experts, loads, rows)
            change_of_cost = change_by_rows(loads, rows)
        # No step saves more visits than this.
        if change_of_cost - (visit_cost * MOST_SAVED if simple else visit_cost) > allowed:
            continue
        moved = 0
        if priced:
            if not simple:
                moved = list_moved_nodes(many, change, width, shares)
            elif step.a // width != step.b // width:
                moved = 2
                touched[0], touched[1], touched[2] = step.a // width, step.b // width, NONE
                for c in range(many):
                    part = shares[changed[c], change.leaves[c]]
                    shift[c, touched[c]] = -part
                    shift[c, touched[1 - c]] = part
            # This runs in most steps, and calls take time to hand arrays over: so it is here.
            for k in range(moved):
                node = touched[k]
                held, visited = assigned[node], expected[node]
                for c in range(many):
                    expert, more = changed[c], shift[c, node]
                    together = partners[node, expert]
                    for d in range(c):
                        together += pairs[expert, changed[d]] * shift[d, node]
                    held += chosen[expert] * more
                    visited += (per_assignment * chosen[expert] - per_pair * together) * more
                fresh_assigned[k], fresh_expected[k] = held, visited
                rate = visits_of(held, visited, choices) / max(held, 1e-300)
                if pooled:
                    fresh_load[k, 0] = held
                elif simple:
                    sign = per_load if k == 0 else -per_load
                    up, down = step.taken, step.given
                    for w in range(windows):
                        fresh_load[k, w] = node_load[node, w] + sign * (
                            share[up, w] - share[down, w]
                        )
                else:
                    sum_node(node, width, per_load, node_load, loads.load, rows, fresh_load[k])
                for w in range(size):
                    visit_rows[k, w] = rate * fresh_load[k, w]
            if moved == 2:
                node1, node2 = touched[0], touched[1]
                for w in range(size):
                    both = eighth_power(visit_rows[0, w]) + eighth_power(visit_rows[1, w])
                    before = visit_power[node1, w] + visit_power[node2, w]
                    change_of_cost += change_of_root(visit_slope[w], visit_norm[w], both - before)
            elif moved:
                change_of_cost += change_by_rows(nodes_held.visited, change.rows)
        if change_of_cost > allowed:
            continue
        for c in range(many):
            expert = change.expert[c]
            if simple:
                shares[expert, change.enters[c]] = shares[expert, change.leaves[c]]
                shares[expert, change.leaves[c]] = 0.0
            else:
                for gpu in range(gpu_count):
                    shares[expert, gpu] = change.shares[c, gpu]
        if moved:
            take_visits(many, moved, change, visits, nodes_held)
        take(step, state)
        if step.drop < 0 and not simple:  # the exchange was taken as if shares went with copies
            for k in range(gpu_count):
                if rows.touched[k] < 0:
                    break
                set_load(rows.touched[k], rows.load[k], loads)
        load_cost = norm_cost(loads)
        if moved:
            visit_cost = norm_cost(nodes_held.visited)
        cost = load_cost + visit_cost
        moved_cost += dearer
        if not sampled and cost + moved_cost < best_cost and 2 * turn >= steps:
            best_cost = cost + moved_cost
            best[:] = gpus.items
    if best_cost == np.inf:
        best_cost = load_cost + visit_cost + moved_cost
        best = gpus.items
    return copies_of(best, count.size), best_cost


@njit()
def _sum_shared_loads(gpus: Gpus, experts: Experts, shares: FloatArray, loads: WindowLoads) -> None:
    """Sum loads and powers from what copies serve: corrected by differences, they drift."""
    tokens, load = experts.tokens, loads.load
    for gpu in range(load.shape[0]):
        for w in range(load.shape[1]):
            load[gpu, w] = 0.0
        for slot in range(gpus.filled[gpu]):
            expert = gpus.items[gpu, slot]
            for w in range(load.shape[1]):
                load[gpu, w] += tokens[expert, w] * shares[expert, gpu]
    sum_powers(loads)


@njit(forceinline=True)
def _list_changes(step: Step, change: Change) -> int:
    """List the experts whose copies a step changes; return how many."""
    expert, leaves, enters = change.expert, change.leaves, change.enters
    if step.drop >= 0:
        expert[0], leaves[0], enters[0] = step.drop, step.a, NONE
        expert[1], leaves[1], enters[1] = step.add, NONE, step.a
        return 2
    expert[0], leaves[0], enters[0] = step.given, step.a, step.b
    expert[1], leaves[1], enters[1] = step.taken, step.b, step.a
    return 1 if step.taken < 0 else 2


@njit(forceinline=True)
def _set_shared_rows(
    many: int,
    change: Change,
    hosted: BoolArray,
    nodes: int,
    nearest: bool,
    shares: FloatArray,
    experts: Experts,
    loads: WindowLoads,
    rows: Rows,
) -> None:
    """Compute what copies serve after a step, and the loads of the GPUs that this changes."""
    for c in range(many):
        here = hosted[change.expert[c]]
        left, entered = change.leaves[c], change.enters[c]
        if left >= 0:
            here[left] = False
        if entered >= 0:
            here[entered] = True
        copy_shares(here, nodes, nearest, change.shares[c])
        if entered >= 0:
            here[entered] = False
        if left >= 0:
            here[left] = True
    touched = 0
    for gpu in range(loads.load.shape[0]):
        differs = False
        for c in range(many):
            expert = change.expert[c]
            more = change.shares[c, gpu] - shares[expert, gpu]
            if more == 0.0:
                continue
            row = rows.load[touched]
            if not differs:
                differs = True
                rows.touched[touched] = gpu
                for w in range(row.size):
                    row[w] = loads.load[gpu, w]
            for w in range(row.size):
                row[w] += experts.tokens[expert, w] * more
        touched += differs
    rows.touched[touched] = NONE
