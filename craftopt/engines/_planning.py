"""What the engines' interfaces share: tables of slots from loads, and tensors in and out."""

from __future__ import annotations

import importlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from craftopt.coactivation import Coactivation
from craftopt.errors import InputError, divide_gpus, whole
from craftopt.formats.reading import read_coactivation
from craftopt.loads import FloatArray, IntArray, Loads
from craftopt.plan import Plan
from craftopt.planners.fast import plan_fast
from craftopt.planners.layers import Layers
from craftopt.planners.windowed import plan_windowed
from craftopt.problem import Problem
from craftopt.rebalancing import arrange_slots
from craftopt.rebalancing.relabelling import relabel_copies
from craftopt.result import Options

# Consecutive windows are added up until no more than these are left; work grows with them.
WINDOWS = 32
# Annealing steps over all layers, which take some 0.2 s of one processor.
STEPS = 300_000
# Environment variables: a file of pair counts, what a node that a token visits costs in mean GPU
# loads, and how copies serve (nearest-even is SGLang's dynamic dispatch).
PAIRS, TRAFFIC, DISPATCH = "CRAFTOPT_COACTIVATION", "CRAFTOPT_TRAFFIC", "CRAFTOPT_DISPATCH"
# Engines run a rank per GPU on the same machine.
THREADS = 8


def plan_slots(
    tokens: FloatArray,
    slots: int,
    gpus: int,
    nodes: int = 1,
    groups: int = 1,
    old: IntArray | None = None,
) -> IntArray:
    """Plan equally many slots on every GPU, all of them filled.

    Parameters
    ----------
    tokens : float64 [windows, layers, experts]
        Windows without tokens do not count. One window is planned by placement and exchanges;
        several are planned for each of them, added up to `WINDOWS` at most.
    slots : int
        Physical slots of a layer.
    gpus, nodes : int
    groups : int
        Equal groups of consecutive experts; where the nodes divide them, every group stays in
        one node, as in DeepSeek's EPLB.
    old : int64 [layers, slots], optional
        Experts of the slots now, -1 = empty: GPUs are relabelled so that the most copies stay,
        and those stay in their slots. Experts may be missing, as after the loss of GPUs.

    Returns
    -------
    int64 [layers, slots]

    Raises
    ------
    InputError
        Counts that do not divide, loads that are negative or not finite, or an old map of
        another shape or of other experts; an environment that `configured` refuses.
    """
    windows = _windows(tokens)
    layers, experts = windows.shape[1:]
    _check(experts, slots, gpus, nodes, groups)
    together = groups > 1 and nodes > 1 and groups % nodes == 0
    sent = configured(layers) if nodes > 1 else {}
    problem = Problem(
        Loads(windows),
        gpus,
        nodes=nodes if together or sent else 1,
        replicas_per_layer=slots - experts,
        slots="uniform",
        expert_groups=groups if together else None,
        **sent,
    )
    options = Options(work_limit=STEPS // layers, workers=min(THREADS, os.cpu_count() or 1))
    planned = None
    if not problem.balance_alone:
        planned = plan_fast(problem, options).plan
    elif len(windows) > 1:
        planned = plan_windowed(problem, options).plan
    if planned is not None and planned.replicas == problem.replicas:
        copies = planned.copies
    else:  # one window, or fewer copies would be better for the loads: the slots are to be filled
        frame = Layers(problem, options)
        placed = frame.each(lambda layer: frame.place(frame.total[layer], slots - experts), layers)
        copies = np.stack([of_layer for of_layer, _ in placed])
    if old is None:
        return Plan(copies).phy2log()
    if old.shape != (layers, slots) or old.max() >= experts:
        raise InputError(
            f"the old map has shape {old.shape} and experts up to {old.max(initial=-1)}; pass "
            f"[layers, slots] = {(layers, slots)} of experts 0..{experts - 1}, -1 = empty"
        )
    before = np.zeros((layers, experts, gpus), dtype=np.uint8)
    layer, slot = np.nonzero(old >= 0)
    np.add.at(before, (layer, old[layer, slot], slot // (slots // gpus)), 1)
    return arrange_slots(Plan(relabel_copies(copies, before, problem.whole_nodes)), old)


def configured(layers: int) -> dict[str, Any]:
    """Read what the environment says of traffic and dispatch, as arguments of `Problem`.

    Engines do not hand the tokens' choices to their planners, so pair counts come from a file.

    Raises
    ------
    InputError
        One of the file and the price without the other, a price that is no number, pair counts of
        another number of layers.
    """
    found: dict[str, Any] = {}
    dispatch = os.environ.get(DISPATCH)
    if dispatch and dispatch != "even":
        found["dispatch"] = dispatch
    file, price = os.environ.get(PAIRS), os.environ.get(TRAFFIC)
    if not file and not price:
        return found
    if not (file and price):
        raise InputError(f"set {PAIRS} (file of pair counts) and {TRAFFIC} (price) together")
    try:
        found["traffic"] = float(price)
    except ValueError:
        raise InputError(f"{TRAFFIC}={price!r}; set mean GPU loads, such as 0.7") from None
    pairs = _pairs_of(file, Path(file).stat().st_mtime_ns)
    if pairs.layers != layers:
        raise InputError(f"{PAIRS}={file} has {pairs.layers} layers, the engine {layers}")
    return found | {"coactivation": pairs}


@lru_cache(maxsize=1)
def _pairs_of(file: str, _changed: int) -> Coactivation:
    """Read pair counts, once until the file changes; layers by position, as engines have them."""
    pairs = read_coactivation(file)
    every = range(pairs.layers)
    return pairs.with_layers(every, every)


def as_numpy(tensor: Any) -> Any:
    """Make a numpy array of a tensor on any device, or of what numpy takes."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu().numpy()
    return np.asarray(tensor)


def like(array: IntArray, tensor: Any) -> Any:
    """Return the array as a tensor on the CPU if PyTorch's is what came in."""
    if hasattr(tensor, "detach"):
        return importlib.import_module("torch").from_numpy(array)
    return array


def _windows(tokens: FloatArray) -> FloatArray:
    """Leave out windows without tokens, and add up neighbours to `WINDOWS` at most."""
    values = np.asarray(tokens)
    if values.ndim != 3 or 0 in values.shape or values.dtype.kind not in "iuf":
        raise InputError(
            f"tokens have shape {values.shape} and type {values.dtype}; pass numbers "
            "[windows, layers, experts], none of them 0"
        )
    used = np.flatnonzero(values.any(axis=(1, 2)))
    if not used.size:
        return np.zeros((1, *values.shape[1:]))
    count = min(used.size, WINDOWS)
    ends = np.arange(1, count + 1) * used.size // count
    starts = np.concatenate([[0], ends[:-1]])
    return np.stack(
        [
            values[used[start:end]].sum(axis=0, dtype=np.float64)
            for start, end in zip(starts, ends, strict=True)
        ]
    )


def _check(experts: int, slots: int, gpus: int, nodes: int, groups: int) -> None:
    if gpus < 1 or slots % gpus:
        raise InputError(f"{slots} slots do not divide into {gpus} GPUs")
    divide_gpus(gpus, whole("nodes", nodes, 1))
    if slots < experts:
        raise InputError(f"{slots} slots cannot host {experts} experts")
    if groups > 1 and groups % nodes == 0 and experts % groups:
        raise InputError(f"{experts} experts do not divide into {groups} groups")
    reach = experts // nodes if nodes > 1 and groups > 1 and groups % nodes == 0 else experts
    if slots // gpus > reach:
        raise InputError(
            f"{slots // gpus} slots per GPU are more than the {reach} experts that it may host; "
            "use fewer redundant experts"
        )
