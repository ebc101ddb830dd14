"""vllm-ascend: an EPLB policy with the interface of its ``EplbPolicy``."""

from __future__ import annotations

from typing import Any

import numpy as np

from craftopt.engines._planning import plan_slots
from craftopt.engines._tensors import as_numpy
from craftopt.errors import InputError
from craftopt.evaluation import evaluate
from craftopt.loads import IntArray, Loads
from craftopt.plan import Plan
from craftopt.slot_tables import to_logical


class CraftoptEplbPolicy:
    """Plan with the interface of vllm-ascend's ``EplbPolicy``.

    Parameters
    ----------
    config : object, optional
        vllm-ascend's ``DynamicConfig``; nothing of it is needed.
    """

    def __init__(self, config: object = None) -> None:
        self.config = config

    def rebalance_experts(
        self, current_expert_table: Any, expert_workload: Any
    ) -> tuple[int, IntArray, list[list[list[int]]]]:
        """Plan as vllm-ascend asks its policies to.

        Parameters
        ----------
        current_expert_table : tensor or array [layers, devices, slots]
            Experts of every device's slots.
        expert_workload : tensor or array [layers, devices, slots]
            Tokens of every slot; also [windows, layers, devices, slots].

        Returns
        -------
        changed : int
            1 where anything moves, else 0.
        priority : int64 [layers]
            Layers by how much they gain, most first.
        table : list [layers][devices][slots]
            The new table: no expert twice on a device, and experts that stay on a device in
            their slots, which vllm-ascend insists on. Experts move only where that pays.

        Raises
        ------
        InputError
            Shapes that differ, empty slots, or loads that are negative or not finite.

        Examples
        --------
        >>> from craftopt.engines.vllm_ascend import CraftoptEplbPolicy
        >>> table, workload = [[[0, 1], [2, 3]]], [[[8, 8], [1, 1]]]
        >>> CraftoptEplbPolicy().rebalance_experts(table, workload)
        (1, array([0]), [[[0, 3], [2, 1]]])
        """
        table = as_numpy(current_expert_table).astype(np.int64)
        workload = as_numpy(expert_workload).astype(np.float64)
        if workload.ndim == 3:
            workload = workload[np.newaxis]
        if table.ndim != 3 or 0 in table.shape or workload.shape[1:] != table.shape:
            raise InputError(
                f"the table has shape {table.shape}, the workload {workload.shape}; both are "
                "[layers, devices, slots]"
            )
        layers, devices, _ = table.shape
        old = table.reshape(layers, -1)
        tokens = to_logical(workload.reshape(len(workload), layers, -1), old)
        new = plan_slots(tokens, old.shape[1], devices, old=old)
        loads, experts = Loads(tokens), tokens.shape[2]
        before, after = (
            evaluate(Plan.from_phy2log(slots, devices, experts), loads).max_load.sum(axis=0)
            for slots in (old, new)
        )
        ratio = np.divide(after, before, out=np.ones_like(after), where=before > 0)
        changed = int((new != old).any())
        return changed, np.argsort(ratio, kind="stable"), new.reshape(table.shape).tolist()
