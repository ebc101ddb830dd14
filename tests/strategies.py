"""What the tests share: random small inputs, and slow, obviously right recomputations.

`broken_rules` is the one validator of plans in the tests. It is written in plain Python from the
rules of `craftopt.Problem`, shares no code with the package, and must agree with
`craftopt.evaluation.violations`.
"""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from fractions import Fraction
from math import fsum
from typing import Any

import numpy as np
from hypothesis import strategies as st

import craftopt as co

# --- random inputs --------------------------------------------------------------------------

# Ties, idle experts and spikes are where planners go wrong; loads below 1e-30 are refused.
_COUNTS = st.one_of(st.integers(0, 3), st.integers(0, 1000), st.floats(1e-6, 1e6), st.just(0))


@st.composite
def token_arrays(
    draw: st.DrawFn,
    windows: tuple[int, int] = (1, 3),
    layers: tuple[int, int] = (1, 3),
    experts: tuple[int, int] = (1, 8),
) -> np.ndarray:
    """Draw tokens [windows, layers, experts]."""
    shape = tuple(draw(st.integers(*sizes)) for sizes in (windows, layers, experts))
    size = int(np.prod(shape))
    kind = draw(st.sampled_from(["any", "any", "any", "equal", "idle window"]))
    if kind == "equal":
        return np.full(shape, draw(_COUNTS), dtype=np.float64)
    values = draw(st.lists(_COUNTS, min_size=size, max_size=size))
    tokens = np.array(values, dtype=np.float64).reshape(shape)
    if kind == "idle window":
        tokens[draw(st.integers(0, shape[0] - 1))] = 0
    return tokens


@st.composite
def groupings(draw: st.DrawFn, nodes: int, most: int) -> tuple[int, int | list[int]]:
    """Draw a number of experts and equal groups of them that the nodes divide."""
    count = nodes * draw(st.integers(1, max(1, min(3, most // nodes))))
    size = draw(st.integers(1, max(1, most // count)))
    if draw(st.booleans()):
        return count * size, count
    names = draw(st.lists(st.integers(-9, 99), min_size=count, max_size=count, unique=True))
    return count * size, draw(st.permutations(names * size))


@st.composite
def problems(
    draw: st.DrawFn,
    windows: tuple[int, int] = (1, 3),
    layers: tuple[int, int] = (1, 3),
    most_experts: int = 8,
    most_gpus: int = 8,
    most_cells: int | None = None,
) -> co.Problem:
    """Draw a problem that has a plan; at most ``most_cells`` (experts x GPUs) where given."""
    nodes = draw(st.integers(1, min(3, most_gpus)))
    gpus = nodes * draw(st.integers(1, most_gpus // nodes))
    if most_cells is not None:
        most_experts = max(1, min(most_experts, most_cells // gpus))
    groups: int | list[int] | None = None
    if most_experts >= nodes and draw(st.booleans()):
        experts, groups = draw(groupings(nodes, most_experts))
    else:
        experts = draw(st.integers(1, most_experts))
    tokens = draw(token_arrays(windows, layers, (experts, experts)))
    rule = draw(st.sampled_from(["uniform", "even", "free"]))
    max_copies = draw(st.none() | st.integers(1, gpus))
    forced = 0
    if rule == "uniform":
        forced = -experts % gpus
        reach = gpus if groups is None else gpus // nodes
        if max_copies is not None and experts + forced > experts * min(reach, max_copies):
            max_copies = None
    budget: dict[str, int] = {}
    if draw(st.booleans()):
        budget["replicas_per_layer"] = forced + draw(st.integers(0, 2 * gpus))
    else:
        most = tokens.shape[1] * experts * gpus
        least = forced * tokens.shape[1]
        budget["replicas"] = least + draw(st.integers(0, 8) | st.integers(0, most + 8))
    return quiet(
        lambda: co.Problem(
            co.Loads(tokens),
            gpus,
            nodes=nodes,
            slots=rule,
            objective=draw(st.sampled_from(["time", "balancedness"])),
            expert_groups=groups,
            max_copies=max_copies,
            **budget,
        )
    )


def token_ids(rng: np.random.Generator, shape: tuple[int, int, int], experts: int) -> np.ndarray:
    """Draw different experts for every token and layer, [tokens, layers, k]; some are -1."""
    tokens, layers, k = shape
    every = np.concatenate([np.arange(experts), np.full(k, -1)])
    return rng.permuted(np.tile(every, (tokens, layers, 1)), axis=2)[:, :, :k]


@st.composite
def copies_arrays(
    draw: st.DrawFn, layers: int, experts: int, gpus: int, most: int = 3
) -> np.ndarray:
    """Draw copies [layers, experts, gpus] with every expert somewhere, and some duplicates."""
    size = layers * experts * gpus
    cell = st.sampled_from([0, 0, 0, 1, 1, most])
    values = draw(st.lists(cell, min_size=size, max_size=size))
    copies = np.array(values, dtype=np.int64).reshape(layers, experts, gpus)
    for layer, expert in np.argwhere(copies.sum(axis=2) == 0):
        copies[layer, expert, draw(st.integers(0, gpus - 1))] = 1
    return copies


@st.composite
def plans(draw: st.DrawFn) -> co.Plan:
    """Draw any plan, valid or not, with layer ids, a method and a digest."""
    layers, experts = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    nodes = draw(st.integers(1, 3))
    gpus = nodes * draw(st.integers(1, 3))
    most = draw(st.sampled_from([1, 2, 3, 255]))
    ids = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 99)
    return co.Plan(
        draw(copies_arrays(layers, experts, gpus, most)),
        draw(st.none() | st.lists(ids, min_size=layers, max_size=layers, unique=True)),
        nodes,
        draw(st.text(max_size=5)),
        draw(st.text(max_size=5)),
    )


def quiet(make: Any) -> Any:
    """Call without the warning about a budget that buys nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", co.CraftoptWarning)
        return make()


# --- plain recomputation --------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """Objectives in exact arithmetic, [windows][layers] where they are tables."""

    largest: list[list[Fraction]]
    mean: list[list[Fraction]]

    @property
    def balancedness(self) -> list[list[Fraction]]:
        return [
            [mean / most if most else Fraction(1) for most, mean in zip(*rows, strict=True)]
            for rows in zip(self.largest, self.mean, strict=True)
        ]

    @property
    def mean_balancedness(self) -> Fraction:
        cells = [cell for row in self.balancedness for cell in row]
        return sum(cells) / Fraction(len(cells))

    @property
    def relative_time(self) -> Fraction:
        mean = sum(cell for row in self.mean for cell in row)
        return sum(cell for row in self.largest for cell in row) / mean if mean else Fraction(1)


def slow_scores(copies: list[Any], tokens: list[Any]) -> Scores:
    """Recompute the GPU loads: each of the c copies of an expert serves 1/c of its tokens."""
    largest: list[list[Fraction]] = []
    means: list[list[Fraction]] = []
    for window in tokens:
        largest.append([])
        means.append([])
        for hosted, counts in zip(copies, window, strict=True):
            loads = [Fraction(0)] * len(hosted[0])
            for row, count in zip(hosted, counts, strict=True):
                for gpu, number in enumerate(row):
                    loads[gpu] += Fraction(count) * number / sum(row)
            largest[-1].append(max(loads))
            means[-1].append(sum(loads) / len(loads))
    return Scores(largest, means)


def slow_objective(plan: co.Plan, problem: co.Problem) -> float:
    """Recompute the problem's objective in plain floats."""
    times, means, balances = [], [], []
    for window in problem.loads.tokens.tolist():
        for hosted, counts in zip(plan.copies.tolist(), window, strict=True):
            loads = [
                fsum(count * row[gpu] / sum(row) for row, count in zip(hosted, counts, strict=True))
                for gpu in range(problem.gpus)
            ]
            times.append(max(loads))
            means.append(fsum(counts) / problem.gpus)
            balances.append(means[-1] / times[-1] if times[-1] > 0 else 1.0)
    if problem.objective == "balancedness":
        return fsum(balances) / len(balances)
    return fsum(times) / fsum(means) if fsum(means) > 0 else 1.0


def broken_rules(plan: co.Plan, problem: co.Problem) -> set[str]:
    """Name the rules that a plan breaks, by plain loops over its copies."""
    copies = plan.copies.tolist()
    broken = set()
    replicas = moves = 0
    totals = [0] * problem.gpus
    sizes = set()
    for layer, experts in enumerate(copies):
        slots = [0] * problem.gpus
        for expert, row in enumerate(experts):
            assert sum(row) >= 1, "a plan without an expert can not even be made"
            replicas += sum(row) - 1
            if max(row) > 1:
                broken.add("duplicates")
            if problem.max_copies is not None and sum(row) > problem.max_copies:
                broken.add("max copies")
            for gpu, number in enumerate(row):
                slots[gpu] += number
                if problem.previous is not None:
                    moves += max(0, number - int(problem.previous_copies[layer, expert, gpu]))
        totals = [total + slot for total, slot in zip(totals, slots, strict=True)]
        sizes.update(slots)
        if problem.slots == "even" and max(slots) - min(slots) > 1:
            broken.add("even slots")
        if problem.expert_groups is not None and not _groups_kept(problem, experts, slots):
            broken.add("expert groups")
    if replicas > problem.replicas:
        broken.add("budget")
    if problem.slots == "uniform" and len(sizes) > 1:
        broken.add("uniform slots")
    if max(totals) - min(totals) > 1:
        broken.add("equal totals")
    if problem.max_moves is not None and moves > problem.max_moves:
        broken.add("max moves")
    return broken


def _groups_kept(problem: co.Problem, experts: list[list[int]], slots: list[int]) -> bool:
    assert problem.expert_groups is not None
    width = problem.gpus // problem.nodes
    nodes_of_group: dict[int, set[int]] = {}
    for group, row in zip(problem.expert_groups.tolist(), experts, strict=True):
        hosts = {gpu // width for gpu, number in enumerate(row) if number}
        nodes_of_group.setdefault(group, set()).update(hosts)
    if any(len(nodes) > 1 for nodes in nodes_of_group.values()):
        return False
    homes = [next(iter(nodes)) for nodes in nodes_of_group.values()]
    shares = {homes.count(node) for node in range(problem.nodes)}
    filled = {sum(slots[node * width : (node + 1) * width]) for node in range(problem.nodes)}
    return len(shares) == 1 and len(filled) == 1


def rules_named(texts: tuple[str, ...]) -> set[str]:
    """Return the rules that the package's texts begin with."""
    return {text.split(":")[0] for text in texts}


# --- exhaustive search ----------------------------------------------------------------------


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
            _groups_kept(problem, placed.tolist(), filled.tolist())
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
