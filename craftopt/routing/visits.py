"""Which GPUs and nodes the tokens of a layer visit, under rules that look at no load.

Under these rules a token draws one copy for each of its experts, independently, with probabilities
that depend on the GPU that holds the token (its *source*) alone. So it visits a target, a node or a
GPU, with probability ``1 - prod_e (1 - q[e, target])`` over its experts e: exact, without drawing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from craftopt.jit import inner, njit
from craftopt.loads import BoolArray, FloatArray, IntArray
from craftopt.plan import Plan
from craftopt.routing.fixed import nearest_places
from craftopt.routing.hosts import Int32Array, layer_hosts
from craftopt.traces import Trace

_EVEN, _NEAREST, _NEAREST_EVEN = 0, 1, 2
_NUMBERS = {"even": _EVEN, "nearest": _NEAREST, "nearest-even": _NEAREST_EVEN}


class Tokens(NamedTuple):
    """Hold the tokens of a layer as the kernels take them."""

    ids: Int32Array  # [tokens, k]: experts, -1 = none
    window: IntArray  # [tokens]: position of the window, -1 = in none of them
    home: IntArray  # [tokens]: GPU that holds the token, -1 = all equally likely
    windows: int


class Visits(NamedTuple):
    """Say which share of a layer's tokens visits every node and GPU."""

    by_node: FloatArray  # [windows, nodes]
    by_gpu: FloatArray  # [windows, gpus]
    by_home: FloatArray  # [nodes, nodes]: of the tokens at home in a node (row), all windows
    at_home: FloatArray  # [windows]: their own node


class Draws(NamedTuple):
    """Say where the tokens of every source go: targets and probabilities, expert by expert."""

    first: Int32Array  # [sources * experts + 1]: draws of a source and expert
    target: Int32Array  # [draws]: GPU or node
    probability: FloatArray  # [draws]
    new: BoolArray  # [sources * experts]: whether they differ from those of the source before


def tokens_of(
    trace: Trace,
    layer: int,
    window: IntArray | None = None,
    windows: int = 1,
    home: IntArray | None = None,
) -> Tokens:
    """Take the tokens of one layer; one window and all homes equally likely by default."""
    ids = np.ascontiguousarray(trace.topk_ids[:, layer], dtype=np.int32)
    window = np.zeros(trace.tokens, dtype=np.int64) if window is None else window
    home = np.full(trace.tokens, -1, dtype=np.int64) if home is None else home
    # A token without experts goes nowhere, and is not counted.
    return Tokens(ids, np.where((ids >= 0).any(axis=1), window, -1), home, windows)


def layer_visits(plan: Plan, layer: int, tokens: Tokens, rule: str = "even") -> Visits:
    """Compute the share of a layer's tokens that visits every node and GPU, in closed form.

    Parameters
    ----------
    plan : Plan
    layer : int
        Position of the layer.
    tokens : Tokens
    rule : {"even", "nearest", "nearest-even"}
    """
    gpus_per_node = plan.gpus // plan.nodes
    known = tokens.home.max() >= 0
    found = []
    for group, nodes in ((gpus_per_node, True), (1, False)):
        targets = plan.gpus // group
        draws = draws_of(plan, layer, group, rule)
        # Under even dispatch homes make no difference to what is visited.
        alike = rule == "even" and not (known and nodes)
        homes = 1 if alike else targets
        home = np.full_like(tokens.home, -1) if alike or not known else tokens.home // group
        by_target = np.zeros((tokens.windows, targets))
        by_home = np.zeros((homes if nodes else 0, targets))
        at_home = np.zeros(tokens.windows)
        count_visits(
            tokens.ids, tokens.window, home, draws, homes, plan.experts,
            by_target, by_home, at_home,
        )  # fmt: skip
        if alike:
            at_home = by_target.sum(axis=1) / targets
        found.append((by_target, by_home, at_home))
    (by_node, by_home, at_home), (by_gpu, _, _) = found
    return shares_of(plan, tokens, by_node, by_gpu, by_home, at_home)


def node_visits(plan: Plan, layer: int, tokens: Tokens, rule: str = "even") -> FloatArray:
    """Compute what `layer_visits` has as ``by_node`` alone, where all homes are equally likely."""
    draws = draws_of(plan, layer, plan.gpus // plan.nodes, rule)
    by_node = np.zeros((tokens.windows, plan.nodes))
    count_visits(
        tokens.ids, tokens.window, tokens.home, draws, 1 if rule == "even" else plan.nodes,
        plan.experts, by_node, np.zeros((0, plan.nodes)), np.zeros(tokens.windows),
    )  # fmt: skip
    return by_node / np.maximum(count_of(tokens.window, tokens.windows), 1)[:, np.newaxis]


def choice_costs(plan: Plan, layer: int, link_cost: FloatArray, rule: str = "even") -> FloatArray:
    """Compute what a token pays on average for choosing an expert, float64 [gpus, experts].

    Parameters
    ----------
    plan : Plan
    layer : int
        Position.
    link_cost : float64 [gpus, gpus]
        Of sending a token's choice from the GPU that holds it (row) to one that serves it.
    rule : {"even", "nearest", "nearest-even"}
    """
    draws = draws_of(plan, layer, 1, rule)
    first = draws.first[:-1]
    if first.size == plan.experts:  # copies are drawn alike, whoever holds the token
        paid = draws.probability * link_cost[:, draws.target]
        return np.add.reduceat(paid, first, axis=1)
    source = np.repeat(np.arange(first.size) // plan.experts, np.diff(draws.first))
    paid = draws.probability * link_cost[source, draws.target]
    return np.add.reduceat(paid, first).reshape(plan.gpus, plan.experts)


def draws_of(plan: Plan, layer: int, gpus_per_target: int, rule: str) -> Draws:
    """List the draws of one layer, the layer by its position; see `list_draws`."""
    return list_draws(
        *layer_hosts(plan, layer),
        plan.gpus,
        plan.gpus // plan.nodes,
        gpus_per_target,
        _NUMBERS[rule],
    )


def shares_of(
    plan: Plan,
    tokens: Tokens,
    by_node: FloatArray,
    by_gpu: FloatArray,
    by_home: FloatArray,
    at_home: FloatArray,
) -> Visits:
    """Divide what was counted by the tokens of the windows, and of the homes."""
    seen = np.maximum(count_of(tokens.window, tokens.windows), 1)
    home = tokens.home[tokens.window >= 0]
    if home.size and home[0] >= 0:
        held = count_of(home // (plan.gpus // plan.nodes), plan.nodes)
    else:
        held = np.full(plan.nodes, home.size)
    rows = by_home / np.maximum(held, 1)[: len(by_home), np.newaxis]
    return Visits(
        by_node / seen[:, np.newaxis],
        by_gpu / seen[:, np.newaxis],
        np.broadcast_to(rows, (plan.nodes, plan.nodes)),
        at_home / seen,
    )


def count_of(positions: IntArray, size: int) -> IntArray:
    """Count how often each position occurs, int64 [size]; -1 is none."""
    return np.bincount(positions + 1, minlength=size + 1)[1:]


@njit()
def list_draws(
    first: Int32Array,
    gpu: Int32Array,
    copies: Int32Array,
    gpus: int,
    gpus_per_node: int,
    gpus_per_target: int,
    rule: int,
) -> Draws:
    """List the draws of one layer for every source; even dispatch has one source for all.

    Where targets are nodes, ``gpus_per_target`` is that of a node, and sources are nodes, too: all
    their GPUs send to the same nodes.

    Parameters
    ----------
    first : int32 [experts + 1]
        The hosts of an expert are places first[expert]..first[expert + 1] of ``gpu``, ``copies``.
    """
    experts = first.size - 1
    sources = 1 if rule == _EVEN else gpus // gpus_per_target
    begins = np.zeros(sources * experts + 1, dtype=np.int32)
    target = np.empty(sources * (first[experts] - first[0]), dtype=np.int32)
    probability = np.empty(target.size)
    new = np.ones(sources * experts, dtype=np.bool_)
    before = np.full((experts, 2), -1, dtype=np.int64)
    size = 0
    for source in range(sources):
        for expert in range(experts):
            begin, end = first[expert], first[expert + 1]
            if rule != _EVEN:
                near = nearest_places(gpu, begin, end, source * gpus_per_target, gpus_per_node)
                # Unlike the even one, `nearest` takes the first copy in the node alone.
                alone = rule == _NEAREST and gpu[near[0]] // gpus_per_node == (
                    source * gpus_per_target // gpus_per_node
                )
                begin, end = near[0], near[0] + 1 if alone else near[1]
            new[source * experts + expert] = begin != before[expert, 0] or end != before[expert, 1]
            before[expert] = begin, end
            total = 0
            for place in range(begin, end):
                total += copies[place]
            start = size
            for place in range(begin, end):
                here = gpu[place] // gpus_per_target
                if size > start and target[size - 1] == here:
                    probability[size - 1] += copies[place] / total
                else:
                    target[size] = here
                    probability[size] = copies[place] / total
                    size += 1
            begins[source * experts + expert + 1] = size
    return Draws(begins, target[:size], probability[:size], new)


@njit()
def count_visits(
    ids: Int32Array,
    window: IntArray,
    home: IntArray,
    draws: Draws,
    homes: int,
    experts: int,
    by_window: FloatArray,
    by_home: FloatArray,
    at_home: FloatArray,
) -> None:
    """Add up the tokens that visit every target, by window and by home.

    Parameters
    ----------
    ids : int32 [tokens, k]
        Experts of a token, -1 = none.
    window : int64 [tokens]
        Position of the token's window; -1 = in none, not counted.
    home : int64 [tokens]
        The token's home, -1 = every home equally likely.
    by_window : float64 [windows, targets]
    by_home : float64 [homes, targets]
        Where homes are equally likely, every token counts fully for each. Of size 0: not wanted.
    at_home : float64 [windows]
        Visits at home.
    """
    sources = (draws.first.size - 1) // experts
    away = np.ones(by_window.shape[1])  # probability that the token does not visit the target
    touched = np.empty(away.size, dtype=np.int64)
    size = 0
    for t in range(ids.shape[0]):
        if window[t] < 0:
            continue
        low, high = (0, homes) if home[t] < 0 else (home[t], home[t] + 1)
        begin = low  # homes from here on send alike
        for h in range(low, high + 1):
            source = h if sources > 1 else 0
            if low < h < high and not _any_new(ids[t], draws, source * experts):
                continue
            for i in range(size):
                target = touched[i]
                visits = 1.0 - away[target]
                away[target] = 1.0
                by_window[window[t], target] += visits * (h - begin) / (high - low)
                if begin <= target < h:
                    at_home[window[t]] += visits / (high - low)
                if by_home.size > 0:
                    by_home[begin:h, target] += visits
            begin = h
            size = 0
            if h == high:
                break
            for expert in ids[t]:
                if expert < 0:
                    continue
                cell = source * experts + expert
                for place in range(draws.first[cell], draws.first[cell + 1]):
                    target = draws.target[place]
                    if away[target] == 1.0:
                        touched[size] = target
                        size += 1
                    away[target] *= 1.0 - draws.probability[place]


@inner()
def _any_new(chosen: Int32Array, draws: Draws, row: int) -> bool:
    """Tell whether a token's experts are drawn otherwise than for the source before."""
    for expert in chosen:  # noqa: SIM110 (numba)
        if expert >= 0 and draws.new[row + expert]:
            return True
    return False


@njit()
def count_pairs(
    pairs: IntArray,
    chosen: IntArray,
    draws: Draws,
    inside: FloatArray,
    assigned: FloatArray,
) -> None:
    """Add up the assignments that every target serves, and the pairs of them, by source.

    A pair is two choices of one token that the same target serves, in expectation.

    Parameters
    ----------
    pairs : int64 [experts, experts]
    chosen : int64 [experts]
        Assignments.
    inside, assigned : float64 [sources, targets]
    """
    experts = chosen.size
    sources, targets = inside.shape
    size = np.zeros(targets, dtype=np.int64)
    member = np.empty((targets, experts), dtype=np.int64)
    weight = np.empty((targets, experts))
    for source in range(sources):
        size[:] = 0
        for expert in range(experts):
            cell = source * experts + expert
            for place in range(draws.first[cell], draws.first[cell + 1]):
                target = draws.target[place]
                probability = draws.probability[place]
                assigned[source, target] += chosen[expert] * probability
                together = 0.0
                for i in range(size[target]):
                    together += pairs[expert, member[target, i]] * weight[target, i]
                inside[source, target] += together * probability
                member[target, size[target]] = expert
                weight[target, size[target]] = probability
                size[target] += 1
