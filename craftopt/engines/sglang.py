"""SGLang: ``rebalance_experts`` with the signature of its ``eplb_algorithms``."""

from __future__ import annotations

from typing import Any

import numpy as np

from craftopt.engines._planning import as_numpy, like, plan_slots
from craftopt.errors import InputError
from craftopt.slot_tables import slots_of_experts


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
    phy2log = plan_slots(tokens, num_physical_experts, gpus, num_nodes, groups)
    log2phy, count = slots_of_experts(phy2log, tokens.shape[2])
    return (
        like(phy2log, tokens_per_expert),
        like(log2phy, tokens_per_expert),
        like(count, tokens_per_expert),
    )
