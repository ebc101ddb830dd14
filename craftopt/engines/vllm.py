"""vLLM: an EPLB policy, and the plugin that puts it in the place of the default one."""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from craftopt.engines._tensors import as_numpy, like

SWITCH = "CRAFTOPT_VLLM_EPLB"


class CraftoptEplbPolicy:
    """Plan with the interface of vLLM's ``AbstractEplbPolicy`` (0.33.0)."""

    @classmethod
    def rebalance_experts(
        cls,
        weight: Any,
        num_replicas: int,
        num_groups: int,
        num_nodes: int,
        num_ranks: int,
        old_global_expert_indices: Any = None,
    ) -> Any:
        """Plan as vLLM asks its policies to.

        Parameters
        ----------
        weight : tensor or array [layers, experts]
            Loads; also [windows, layers, experts].
        num_replicas : int
            Slots of a layer.
        num_groups, num_nodes, num_ranks : int
            Groups stay within nodes where the nodes divide them; 0 groups are none.
        old_global_expert_indices : tensor or array [layers, old slots], optional
            Experts of the slots now, -1 = empty. Ranks may have gone at the end, or come. Copies
            stay where they are unless moves pay, all of them where there are no loads.

        Returns
        -------
        int64 [layers, slots]
            Expert of every slot; a tensor on the CPU if a tensor came in, else an array.

        Raises
        ------
        InputError
            Counts that do not divide, loads that are negative or not finite, or an old map of
            other layers.

        Examples
        --------
        >>> from craftopt.engines.vllm import CraftoptEplbPolicy
        >>> CraftoptEplbPolicy.rebalance_experts([[6, 1, 1, 2]], 6, 1, 1, 2, [[0, 1, 2, 3, 0, 1]])
        array([[0, 3, 2, 3, 0, 1]])
        """
        # It loads numba, which the plugin must not: vLLM's CPU workers do not start with it loaded.
        from craftopt.engines._planning import plan_slots  # noqa: PLC0415

        tokens = as_numpy(weight)
        if tokens.ndim == 2:
            tokens = tokens[np.newaxis]
        old = None
        if old_global_expert_indices is not None:
            old = as_numpy(old_global_expert_indices).astype(np.int64)
        phy2log = plan_slots(tokens, num_replicas, num_ranks, num_nodes, num_groups or 1, old)
        return like(phy2log, weight)


def register() -> None:
    """Put the policy in the place of vLLM's default one, if ``CRAFTOPT_VLLM_EPLB=1`` is set.

    vLLM calls this in every process (entry point ``vllm.general_plugins``). Without the switch
    nothing happens: that craftopt is installed must not change how a model is served.
    """
    if os.environ.get(SWITCH) != "1":
        return
    policies = importlib.import_module("vllm.distributed.eplb.policy").EPLB_POLICIES
    # The one name that vLLM's configuration accepts.
    policies["default"] = CraftoptEplbPolicy
