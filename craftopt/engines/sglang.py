"""SGLang: ``rebalance_experts`` of its ``eplb_algorithms``, and the plugin that replaces it."""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from craftopt.engines._tensors import as_numpy, like
from craftopt.errors import InputError
from craftopt.loads import BoolArray
from craftopt.slot_tables import slots_of_experts

SWITCH = "CRAFTOPT_SGLANG_EPLB"


def rebalance_experts(
    tokens_per_expert: Any,
    num_physical_experts: int,
    num_local_physical_experts: int,
    num_groups: int | None,
    num_nodes: int,
    algorithm: Any = None,
) -> tuple[Any, Any, Any]:
    """Plan as SGLang asks its EPLB algorithms to.

    Steps are windows: the plan is made for each of them rather than for their sum.

    Parameters
    ----------
    tokens_per_expert : tensor or array [steps, layers, experts]
        Also [layers, experts]. Steps that the buffer did not use are zero.
    num_physical_experts : int
        Slots of a layer.
    num_local_physical_experts : int
        Slots of a GPU.
    num_groups : int or None
        Expert groups. They stay within nodes where the algorithm's name ends in
        ``_hierarchical``, or without one where the nodes divide them, as SGLang's ``auto`` does.
    num_nodes : int
    algorithm : str or enum, optional
        ``elasticity_aware``: ranks that SGLang says are dead get expert 0 in all of their slots,
        as in its own, and no expert lives on them.

    Returns
    -------
    physical_to_logical_map : int64 [layers, slots]
    logical_to_all_physical_map : int64 [layers, experts, most copies]
        -1 padded.
    expert_count : int64 [layers, experts]
        Tensors on the CPU if a tensor came in, else arrays.

    Raises
    ------
    InputError
        Counts that do not divide, or loads that are negative or not finite.

    Examples
    --------
    >>> from craftopt.engines.sglang import rebalance_experts
    >>> steps = [[[8, 4, 2, 2]], [[2, 2, 4, 8]]]
    >>> phy2log, log2phy, count = rebalance_experts(steps, 6, 3, None, 1)
    >>> phy2log.shape, int(count.sum())
    ((1, 6), 6)
    """
    from craftopt.engines._planning import plan_slots  # noqa: PLC0415 (it loads numba)

    tokens = as_numpy(tokens_per_expert)
    if tokens.ndim == 2:
        tokens = tokens[np.newaxis]
    if num_local_physical_experts < 1 or num_physical_experts % num_local_physical_experts:
        raise InputError(
            f"{num_physical_experts} slots do not divide into GPUs of "
            f"num_local_physical_experts={num_local_physical_experts}"
        )
    gpus = num_physical_experts // num_local_physical_experts
    name = str(getattr(algorithm, "name", algorithm or "auto"))
    hierarchical = name == "auto" or name.endswith("_hierarchical")
    groups = (num_groups or 1) if hierarchical else 1
    elastic = name.startswith("elasticity_aware")
    active = _active_ranks(gpus) if elastic else np.ones(gpus, dtype=np.bool_)
    phy2log = plan_slots(tokens, num_physical_experts, gpus, num_nodes, groups, active=active)
    held = np.flatnonzero(np.repeat(active, num_local_physical_experts))
    log2phy, count = slots_of_experts(phy2log[:, held], tokens.shape[2])
    log2phy = np.where(log2phy >= 0, held[log2phy], -1)
    return (
        like(phy2log, tokens_per_expert),
        like(log2phy, tokens_per_expert),
        like(count, tokens_per_expert),
    )


def register() -> None:
    """Replace SGLang's ``rebalance_experts``, if ``CRAFTOPT_SGLANG_EPLB=1`` is set.

    SGLang calls this in every process (entry point ``sglang.srt.plugins``), schedulers, which it
    spawns, among them. Without the switch nothing happens.
    """
    if os.environ.get(SWITCH) != "1":
        return
    hooks = importlib.import_module("sglang.srt.plugins.hook_registry")
    target = "sglang.srt.eplb.eplb_algorithms.rebalance_experts"
    hooks.HookRegistry.register(target, rebalance_experts, hooks.HookType.REPLACE)


def _active_ranks(gpus: int) -> BoolArray:
    """Ask SGLang which ranks are alive, as its own algorithm does."""
    manager = importlib.import_module("sglang.srt.elastic_ep.elastic_ep").ElasticEPStateManager
    state = manager.instance()
    ranks = manager.healthy_rank_state() if state is None else state.active_ranks
    active: BoolArray = as_numpy(ranks)[:gpus].astype(np.bool_)
    return active
