"""Optima of tiny problems, by listing every plan."""

from __future__ import annotations

import itertools

import numpy as np
from numba import njit
from reference.rules import groups_kept

import craftopt as co


def best_by_enumeration(problem: co.Problem) -> float | None:
    """Find the best objective over all valid plans of a tiny problem; None where there is none.

    Every layer's placements are listed in full; of those with the same slots per GPU only the
    best matters to the rules that couple layers, and these are combined in every way.
    """
    layers = [
        _layer_choices(problem, problem.loads.tokens[:, layer])
        for layer in range(problem.loads.layers)
    ]
    best = None
    experts = problem.loads.experts
    for chosen in itertools.product(*(choices.items() for choices in layers)):
        slots = np.array([key for key, _ in chosen])
        totals = slots.sum(axis=0)
        if totals.sum() - experts * len(layers) > problem.replicas:
            continue
        if totals.max() - totals.min() > 1:
            continue
        if problem.slots == "uniform" and slots.min() != slots.max():
            continue
        cost = sum(cost for _, cost in chosen)
        best = cost if best is None else min(best, cost)
    if best is None:
        return None
    if problem.objective == "balancedness":
        return -best / (problem.loads.windows * problem.loads.layers)
    mean = problem.loads.tokens.sum() / problem.gpus
    return float(best / mean) if mean > 0 else 1.0


def _layer_choices(problem: co.Problem, tokens: np.ndarray) -> dict[tuple[int, ...], float]:
    """List a layer's valid slot vectors with the least cost of each."""
    rows = [
        row
        for row in itertools.product((0, 1), repeat=problem.gpus)
        if 1 <= sum(row) <= (problem.max_copies or problem.gpus)
    ]
    table = np.array(list(itertools.product(rows, repeat=tokens.shape[1])))
    slots = table.sum(axis=1)
    keep = slots.sum(axis=1) - tokens.shape[1] <= problem.replicas
    if problem.slots != "free":
        keep &= np.ptp(slots, axis=1) <= (1 if problem.slots == "even" else 0)
    table, slots = table[keep], slots[keep]
    if problem.expert_groups is not None:
        fits = [
            groups_kept(problem, placed.tolist(), filled.tolist())
            for placed, filled in zip(table, slots, strict=True)
        ]
        table, slots = table[fits], slots[fits]
    share = table / table.sum(axis=2, keepdims=True)
    largest = np.einsum("neg,we->nwg", share, tokens).max(axis=2)
    if problem.objective == "time":
        costs = largest.sum(axis=1)
    else:
        mean = np.broadcast_to(tokens.sum(axis=1) / problem.gpus, largest.shape)
        ratio = np.divide(mean, largest, out=np.ones_like(largest), where=largest > 0)
        costs = -ratio.sum(axis=1)
    choices: dict[tuple[int, ...], float] = {}
    for key, cost in zip(map(tuple, slots.tolist()), costs.tolist(), strict=True):
        choices[key] = min(cost, choices.get(key, cost))
    return choices


@njit(cache=True)
def least_max_load(tokens, replicas, gpus, copies_limit):
    """Enumerate all even placements with exactly ``replicas`` extra copies.

    Expert by expert, every set of GPUs (as bits) is tried; a branch ends only where its load is
    no better than the best, where slots are overfilled or where copies do not work out.
    """
    experts = tokens.size
    copies = experts + replicas
    floor, fuller = copies // gpus, copies % gpus
    sets = 2**gpus
    size = np.zeros(sets, dtype=np.int64)
    for bits in range(sets):
        for gpu in range(gpus):
            size[bits] += bits >> gpu & 1
    best = np.inf
    load = np.zeros((experts + 1, gpus))
    slots = np.zeros((experts + 1, gpus), dtype=np.int64)
    left = np.empty(experts + 1, dtype=np.int64)
    left[0] = copies
    tried = np.zeros(experts, dtype=np.int64)  # the last set tried for every expert
    depth = 0
    while depth >= 0:
        if depth == experts:
            if left[depth] == 0 and slots[depth].min() >= floor:
                best = min(best, load[depth].max())
            depth -= 1
            continue
        tried[depth] += 1
        bits = tried[depth]
        if bits == sets:
            tried[depth] = 0
            depth -= 1
            continue
        count = size[bits]
        rest = left[depth] - count
        if count > copies_limit or rest < experts - depth - 1:
            continue
        share = tokens[depth] / count
        over, heaviest = 0, 0.0
        for gpu in range(gpus):
            hosted = bits >> gpu & 1
            load[depth + 1, gpu] = load[depth, gpu] + share * hosted
            slots[depth + 1, gpu] = slots[depth, gpu] + hosted
            heaviest = max(heaviest, load[depth + 1, gpu])
            over += max(0, slots[depth + 1, gpu] - floor)
            if slots[depth + 1, gpu] > floor + 1:
                over = fuller + 1
        if heaviest < best and over <= fuller:
            left[depth + 1] = rest
            depth += 1
    return best
