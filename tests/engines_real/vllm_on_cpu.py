"""What vLLM's EPLB needs of a GPU, replaced so that it runs on a CPU; each with its reason."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import torch
from vllm.config import parallel
from vllm.distributed.eplb import async_worker, eplb_state
from vllm.model_executor.layers.fused_moe.experts import cpu_moe
from vllm.model_executor.layers.fused_moe.router import base_router
from vllm.v1.worker.cpu_worker import CPUWorker

# No accelerator that could be waited for, or whose time could be taken.
STREAM = SimpleNamespace(
    record=lambda *_: None,
    wait=lambda *_: None,
    synchronize=lambda: None,
    elapsed_time=lambda _: 0.0,
)


class Platform:
    """The CPU, which says that it is like CUDA: `ParallelConfig` allows EPLB on nothing else."""

    def __init__(self, real: object) -> None:
        self.real = real

    def is_cuda_alike(self) -> bool:
        return True

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)


def map_and_record(
    topk_ids: torch.Tensor,
    expert_load_view: torch.Tensor,
    logical_to_physical_map: torch.Tensor,
    logical_replica_count: torch.Tensor,
    record_enabled: torch.Tensor,
    num_unpadded_tokens: torch.Tensor,
) -> torch.Tensor:
    """What vLLM's Triton kernel does: choose the copy by a hash of the row, count the tokens."""
    row = torch.arange(len(topk_ids)).unsqueeze(1) * 2654435769 & 0xFFFFFFFF
    expert = topk_ids.long()
    slots = logical_to_physical_map[expert, row % logical_replica_count[expert]]
    if record_enabled:
        counted = slots[: int(num_unpadded_tokens)].flatten()
        expert_load_view += torch.bincount(counted, minlength=len(expert_load_view)).int()
    return slots.to(topk_ids.dtype)


def local_experts(kernel: object) -> object:
    """Leave out other ranks' experts, which the CPU's MoE kernel takes for its own."""

    def apply(self, *, topk_weights, topk_ids, expert_map, **rest):
        if expert_map is not None:
            topk_ids = expert_map[topk_ids.long()].to(topk_ids.dtype)
            topk_weights = topk_weights.masked_fill(topk_ids < 0, 0)
            topk_ids = topk_ids.clamp(min=0)
        kernel(self, topk_weights=topk_weights, topk_ids=topk_ids, expert_map=expert_map, **rest)

    return apply


def start_thread(state: object, is_profile: bool = False) -> threading.Thread:
    """Start vLLM's own loop, which moves experts in the background, without a device's stream."""
    thread = threading.Thread(
        target=async_worker.transfer_run_periodically, args=(state, STREAM, is_profile), daemon=True
    )
    thread.start()
    return thread


def allow() -> None:
    """Let a configuration enable EPLB."""
    parallel.current_platform = Platform(parallel.current_platform)


def install() -> None:
    """Replace what needs a GPU, in this process."""
    allow()
    torch.Event = lambda **_: STREAM
    torch.accelerator.current_stream = lambda *_: STREAM
    torch.accelerator.set_stream = lambda *_: None
    base_router.eplb_map_to_physical_and_record = map_and_record
    cpu_moe.CPUUnquantizedExperts.apply = local_experts(cpu_moe.CPUUnquantizedExperts.apply)
    eplb_state.start_async_worker = start_thread


class Worker(CPUWorker):
    """vLLM's worker; its CPU model runner does not hand its model to EPLB, as the GPU's does."""

    def load_model(self, **options: object) -> None:
        install()
        super().load_model(**options)
        runner = self.model_runner
        if not self.parallel_config.enable_eplb:
            return
        runner._moe_model = runner.model
        runner.eplb_state = eplb_state.EplbState(self.parallel_config, self.device)
        runner.eplb_state.add_model(runner.model, self.model_config)
        self.start, self.weights = self.slots(), self.gather()
        if runner.eplb_state.is_async:
            runner.eplb_state.start_async_loop()

    def slots(self) -> torch.Tensor:
        (state,) = self.model_runner.eplb_state.model_states.values()
        return state.physical_to_logical_map.clone()

    def gather(self) -> torch.Tensor:
        """Sum up every slot's weights of all ranks, [layers, slots]."""
        mine = torch.stack(
            [
                sum(w.double().flatten(1).sum(1) for w in layer)
                for layer in self.model_runner.model.expert_weights
            ]
        )
        group = eplb_state.get_ep_group().device_group
        every = [torch.empty_like(mine) for _ in range(group.size())]
        torch.distributed.all_gather(every, mine, group=group)
        return torch.cat(every, dim=1)

    def report(self) -> dict[str, object]:
        """Say what moved; hold every slot's weights against its expert's at the start."""
        table = self.slots()
        of_expert = torch.empty(len(table), int(table.max()) + 1, dtype=torch.float64)
        of_expert.scatter_(1, self.start, self.weights)
        expected = of_expert.gather(1, table)
        return {
            "map": table.tolist(),
            "moved": int((table != self.start).sum()),
            "wrong_at_start": int((of_expert.gather(1, self.start) != self.weights).sum()),
            "wrong": int((self.gather() != expected).sum()),
        }
