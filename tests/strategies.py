"""What the tests share: random small inputs, and slow, obviously right recomputations.

`broken_rules` is the one validator of plans in the tests. It is written in plain Python from the
rules of `craftopt.Problem`, shares no code with the package, and must agree with
`craftopt.rules.violations`.
"""

from __future__ import annotations

import warnings
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
