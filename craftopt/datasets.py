"""Example loads: measured traffic, and synthetic traffic with the shapes of real models."""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from craftopt.errors import choice
from craftopt.loads import Loads
from craftopt.traces import Trace

_SHARDS = 8
_TOKENS = 24_576
_TOP_K = 8

# Frozen, like the recipes: docs/research/example_loads.md derives them, and results are quoted
# against these loads, so other numbers need another name. Spreads are in natural log of rate.
_TOPIC_SPREAD = {"a": 1.08, "b": 0.62, "c": 0.72, "d": 1.07, "e": 0.83}
_DRIFT_SPREAD = {"a": 0.33, "b": 0.30, "c": 0.37, "d": 0.09, "e": 0.53}
_AVERSION = 0.83  # how much rarer specialised experts are
_TAIL = 0.32  # spread of specialisation over experts
_RAMP = 10.0  # layers in which the first layers' lack of skew shrinks to 1/e


@dataclass(frozen=True)
class _Recipe:
    """Shape, seed and parameters of one example."""

    seed: int
    first_layer: int
    layers: int
    experts: int
    popularity: float  # spread over experts that all windows share
    topic: float  # factor on _TOPIC_SPREAD
    drift: float  # factor on _DRIFT_SPREAD
    early: float  # first layer's scale over a deep layer's
    wander: float  # spread of the layers' own scale


_RECIPES = {
    "deepseek-r1": _Recipe(18, 3, 58, 256, 0.37, 0.99, 0.70, 0.37, 0.04),
    "glm-5.2": _Recipe(4, 3, 75, 256, 0.35, 1.00, 1.00, 0.22, 0.05),
    "kimi-k2": _Recipe(12, 1, 60, 384, 0.36, 0.96, 0.68, 0.40, 0.04),
    "qwen3-235b": _Recipe(23, 0, 94, 128, 0.59, 0.65, 1.07, 0.23, 0.17),
}


# Loads that others measured, under Apache-2.0; NOTICE has sources and commits.
_MEASURED = ("gpt-oss-20b", "olmoe-1b-7b")
_TRACES = ("gpt-oss-20b",)


def example_names() -> tuple[str, ...]:
    """List the names that `load_example` knows.

    Examples
    --------
    >>> import craftopt as co
    >>> co.example_names()
    ('deepseek-r1', 'glm-5.2', 'gpt-oss-20b', 'kimi-k2', 'olmoe-1b-7b', 'qwen3-235b')
    """
    return tuple(sorted((*_RECIPES, *_MEASURED)))


def is_synthetic(name: str) -> bool:
    """Say whether an example is made up, whatever the case of its name."""
    return name.casefold() in _RECIPES


def load_example(name: str) -> Loads:
    """Load measured traffic of a model, or make synthetic traffic of a named model's shape.

    **Measured**: ``gpt-oss-20b`` has a window per benchmark (11 windows, 24 layers x 32 experts,
    top-4, 215,438 decoded tokens of 703 sequences); ``olmoe-1b-7b`` a window per data set (8
    windows, layers 0, 7 and 15 x 64 experts, top-8, 1,660,209 tokens). Both are under Apache-2.0;
    NOTICE names sources and commits. `load_example_trace` has tokens of gpt-oss-20b.

    **Synthetic**, the same on every machine: ``deepseek-r1`` 58 layers x 256 experts, ``glm-5.2``
    75 x 256, ``kimi-k2`` 60 x 384, ``qwen3-235b`` 94 x 128. Each has 40 windows: 8 consecutive
    shards of 5 made-up topics, ``"synthetic-a/0"`` to ``"synthetic-e/7"``, of 24,576 tokens that
    pick 8 experts in every layer. Counts are whole, every (window, layer) sums to 196,608, and no
    expert gets more than 24,576.

    Parameters
    ----------
    name : str
        One of `example_names`, in upper or lower case.

    Returns
    -------
    Loads
        Shape [windows, layers, experts]. ``layer_ids`` are the models' own.

    Raises
    ------
    InputError
        A name that is not an example.

    Notes
    -----
    Of synthetic loads, only the shapes are the models' own. Skew and drift come from a seeded
    generator calibrated to published counts, of GLM-5.2 itself for ``glm-5.2`` and of other
    models for the rest; docs/research/example_loads.md has the figures and the limits.

    Examples
    --------
    >>> import craftopt as co
    >>> co.load_example("gpt-oss-20b")
    Loads(windows=11, layers=24, experts=32, tokens=20682048)

    Plan on the odd shards, serve the even ones:

    >>> loads = co.load_example("DeepSeek-R1")
    >>> loads
    Loads(windows=40, layers=58, experts=256, tokens=456130560)
    >>> train, test = co.holdout(loads, "odd-even")
    >>> train.window_names[:3]
    ('synthetic-a/1', 'synthetic-a/3', 'synthetic-a/5')
    """
    name = choice("example", name, example_names())
    if name in _MEASURED:
        held = _packaged(f"{name}.npz")
        return Loads(held["counts"], held["layer_ids"], held["window_names"].tolist())
    recipe = _RECIPES[name]
    layer_ids = np.arange(recipe.first_layer, recipe.first_layer + recipe.layers)
    names = [f"synthetic-{topic}/{shard}" for topic in _TOPIC_SPREAD for shard in range(_SHARDS)]
    return Loads(_counts(_log_rates(recipe)), layer_ids, names)


def load_example_trace(name: str) -> Trace:
    """Load the measured token trace of an example: with it, traffic can be measured.

    ``gpt-oss-20b``: 74,915 decoded tokens, all tokens of 224 of the 703 published sequences: of
    every benchmark 24 whole sequences, drawn with numpy's ``default_rng(0)`` benchmark by
    benchmark, or all 4 where there are no more, in the order recorded. Domains are the
    benchmarks. A token's experts are sorted by number, not by weight.

    Parameters
    ----------
    name : str
        In upper or lower case.

    Raises
    ------
    InputError
        A name that is not an example with a trace.

    Examples
    --------
    >>> import craftopt as co
    >>> trace = co.load_example_trace("gpt-oss-20b")
    >>> trace
    Trace(tokens=74915, layers=24, k=4, experts=32, domains=11)
    >>> trace.batches(1024).window_names[20]
    'gpqa_extended/00020'
    """
    held = _packaged(f"{choice('example with a trace', name, _TRACES)}-trace.npz")
    return Trace(
        held["topk_ids"],
        domain=held["domain"],
        domain_names=held["domain_names"].tolist(),
        sequence=held["sequence"],
    )


def _packaged(file: str) -> dict[str, npt.NDArray[Any]]:
    source = files("craftopt").joinpath("data", file).read_bytes()
    with np.load(io.BytesIO(source), allow_pickle=False) as held:
        return {name: held[name] for name in held.files}


def _log_rates(recipe: _Recipe) -> npt.NDArray[np.float64]:
    """Draw log(rate) [windows, layers, experts], free up to a constant per (window, layer)."""
    from scipy.special import ndtri  # noqa: PLC0415  (slow to import)

    source = np.random.PCG64(recipe.seed)

    def normal(*shape: int) -> npt.NDArray[np.float64]:
        # numpy promises the raw stream for ever, but not what its Generator makes of it.
        raw = source.random_raw(int(np.prod(shape))) >> np.uint64(11)
        values: npt.NDArray[np.float64] = ndtri((raw + 0.5) / 2.0**53).reshape(shape)
        return values

    def spreads(by_topic: dict[str, float]) -> npt.NDArray[np.float64]:
        return np.reshape(list(by_topic.values()), (-1, 1, 1, 1))

    cells = (recipe.layers, recipe.experts)
    topics = len(_TOPIC_SPREAD)
    scale = np.exp(recipe.wander * normal(recipe.layers))
    scale *= 1 - (1 - recipe.early) * np.exp(-np.arange(recipe.layers) / _RAMP)
    special = np.exp(_TAIL * normal(*cells) - _TAIL**2)  # mean square 1
    shared = recipe.popularity * (normal(*cells) - _AVERSION * special)
    topic = recipe.topic * spreads(_TOPIC_SPREAD) * normal(topics, 1, *cells)
    drift = recipe.drift * spreads(_DRIFT_SPREAD) * normal(topics, _SHARDS, *cells)
    logs = scale[:, np.newaxis] * (shared + special * (topic + drift))
    return logs.reshape(-1, *cells)


def _counts(log_rates: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Turn rates into whole counts: k per token, no expert twice for one token."""
    rates = np.exp(log_rates)
    # An expert with rate w is among a token's choices with probability 1 - exp(-x w). The sum
    # over experts is concave in x, so Newton's steps from below rise to x without overshoot;
    # 5 were needed to get within 1e-13.
    x = _TOP_K / rates.sum(axis=-1, keepdims=True)
    for _ in range(8):
        missed = np.exp(-x * rates)
        excess = missed.shape[-1] - missed.sum(axis=-1, keepdims=True) - _TOP_K
        x -= excess / (rates * missed).sum(axis=-1, keepdims=True)
    chance = -np.expm1(-x * rates)
    # Rounding the running sum keeps the total and moves each count by less than 1.
    running = np.rint(_TOKENS * np.cumsum(chance, axis=-1))
    return np.diff(running, axis=-1, prepend=0.0)
