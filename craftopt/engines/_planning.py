"""What the engines' interfaces share: tables of slots from loads, and tensors in and out."""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from craftopt.errors import InputError
from craftopt.loads import FloatArray, IntArray, Loads
from craftopt.methods.parallel import in_threads
from craftopt.methods.windowed import plan_fast
from craftopt.plan import Copies, Plan
from craftopt.problem import Problem
from craftopt.rebalancing import arrange_slots
from craftopt.rebalancing.relabelling import relabel_copies
from craftopt.result import Options
from craftopt.search.placement import Layout, place_layer

# More windows are added up to so many, in the order recorded; work grows with their number.
WINDOWS = 32
# Annealing steps over all layers, which take some 0.2 s of one processor.
STEPS = 300_000
# One window: a layer this close to its bound, relative, is done.
TOLERANCE = 1e-3
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
        another shape or of other experts.
    """
    windows = _windows(tokens)
    layers, experts = windows.shape[1:]
    _check(experts, slots, gpus, nodes, groups)
    together = groups > 1 and nodes > 1 and groups % nodes == 0
    nodes_used, group_count = (nodes, groups) if together else (1, 1)
    if len(windows) == 1:
        copies = _place(windows[0], slots, gpus, nodes_used, group_count)
    else:
        problem = Problem(
            Loads(windows),
            gpus,
            nodes=nodes_used,
            replicas_per_layer=slots - experts,
            slots="uniform",
            expert_groups=group_count if together else None,
        )
        outcome = plan_fast(problem, Options(work_limit=STEPS // layers, workers=_threads()))
        assert outcome.plan is not None
        copies = outcome.plan.copies
        if outcome.plan.replicas < layers * (slots - experts):
            # Fewer copies are better for the loads, and the engine's slots are to be filled.
            copies = _place(windows.sum(axis=0), slots, gpus, nodes_used, group_count)
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
    return arrange_slots(Plan(relabel_copies(copies, before, nodes_used)), old)


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
    if nodes < 1 or gpus % nodes:
        raise InputError(f"{gpus} GPUs do not divide into {nodes} nodes")
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


def _place(weight: FloatArray, slots: int, gpus: int, nodes: int, groups: int) -> Copies:
    """Place every layer for one window."""
    layers, experts = Loads(weight).tokens.shape[1:]  # checks the values
    group_of = np.repeat(np.arange(groups), experts // groups)
    layout = Layout(group_of, nodes, gpus, copies_limit=gpus // nodes)

    def one(layer: int) -> Copies:
        return place_layer(weight[layer], slots - experts, layout, TOLERANCE)[0]

    return np.stack(in_threads(one, layers, _threads()))


def _threads() -> int:
    return min(THREADS, os.cpu_count() or 1)
