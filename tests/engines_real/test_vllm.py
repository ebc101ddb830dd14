"""craftopt inside vLLM's own code: plug-in, policy, and EplbState that moves real weights."""

from __future__ import annotations

import inspect
import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from craftopt.engines import vllm as ours

vllm = pytest.importorskip("vllm")

LAYERS, EXPERTS, PER_RANK, STEPS, IDLE_FROM = 3, 16, 12, 32, 16


@pytest.mark.parametrize(
    ("switch", "name"), [("", "DefaultEplbPolicy"), ("1", "CraftoptEplbPolicy")]
)
def test_vllms_own_loader_finds_the_plugin(switch, name):
    code = (
        "from vllm.plugins import load_general_plugins; load_general_plugins();"
        "from vllm.distributed.eplb import eplb_state;"
        "print(eplb_state.EPLB_POLICIES['default'].__name__)"
    )
    environment = {**os.environ, ours.SWITCH: switch}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == name


def test_the_policy_takes_what_vllm_hands():
    from vllm.distributed.eplb.policy import AbstractEplbPolicy  # noqa: PLC0415

    theirs = inspect.signature(AbstractEplbPolicy.rebalance_experts).parameters
    mine = inspect.signature(ours.CraftoptEplbPolicy.rebalance_experts).parameters
    assert [(p.name, p.kind, p.default) for p in mine.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


class Layer:
    """A MoE layer: every slot's weight is its expert's number, so that moves can be checked."""

    def __init__(self, index: int, experts: torch.Tensor) -> None:
        self.weight = experts.float().view(-1, 1) + 100 * index

    def get_expert_weights(self) -> list[torch.Tensor]:
        return [self.weight]

    def set_eplb_state(self, **state: object) -> None:
        pass


def model(rank: int, ranks: int) -> SimpleNamespace:
    """The names of a MixtureOfExperts that EplbState reads."""
    slots = PER_RANK * ranks
    start = torch.arange(slots) % EXPERTS
    layers = [Layer(i, start[rank * PER_RANK : (rank + 1) * PER_RANK]) for i in range(LAYERS)]
    return SimpleNamespace(
        num_moe_layers=LAYERS,
        num_expert_groups=1,
        num_logical_experts=EXPERTS,
        num_routed_experts=EXPERTS,
        num_physical_experts=slots,
        num_local_physical_experts=PER_RANK,
        num_redundant_experts=slots - EXPERTS,
        num_shared_experts=0,
        moe_layers=layers,
        expert_weights=[layer.get_expert_weights() for layer in layers],
        set_eplb_state=lambda *state: None,
    )


def serve(rank: int, ranks: int, port: int, background: bool, results: object) -> None:
    """Run EplbState on one rank: count tokens, let it rearrange, check the weights."""
    os.environ[ours.SWITCH] = "1"
    import vllm_on_cpu  # noqa: PLC0415
    from vllm.config import VllmConfig, set_current_vllm_config  # noqa: PLC0415
    from vllm.distributed import parallel_state  # noqa: PLC0415
    from vllm.distributed.eplb import eplb_state  # noqa: PLC0415
    from vllm.plugins import load_general_plugins  # noqa: PLC0415

    load_general_plugins()
    vllm_on_cpu.install()
    config = VllmConfig()
    with set_current_vllm_config(config):
        parallel_state.init_distributed_environment(
            ranks, rank, f"tcp://127.0.0.1:{port}", rank, backend="gloo"
        )
        parallel_state._EP, parallel_state._EPLB = (
            parallel_state.init_model_parallel_group(
                [list(range(ranks))], rank, "gloo", group_name=name
            )
            for name in ("ep", "eplb")
        )
        parallel_state._NODE_COUNT = 1
        parallel = config.parallel_config
        options = parallel.eplb_config
        options.use_async, options.window_size, options.step_interval = background, 4, 8
        options.communicator = "torch_gloo"
        state = eplb_state.EplbState(parallel, torch.device("cpu"))
        held = model(rank, ranks)
        state.add_model(held, SimpleNamespace(compute_hash=lambda: "tiny"), "tiny")
        (of_model,) = state.model_states.values()
        if background:
            state.start_async_loop()
        rng, moved = np.random.default_rng(0), []
        for step in range(STEPS):
            if step % 8 == 0:
                mean = rng.lognormal(sigma=1.0, size=(LAYERS, EXPERTS)) * 50
            before = of_model.physical_to_logical_map.clone()
            tokens = rng.poisson(mean) * (step < IDLE_FROM)
            count = torch.stack([(row[:, None] == torch.arange(EXPERTS)).sum(0) for row in before])
            share = torch.tensor(tokens) / count
            of_model.expert_load_pass.copy_(share.gather(1, before)[:, :].int() // ranks)
            while of_model.rebalanced and of_model.pending_result is None:
                assert state.async_worker.is_alive()
                time.sleep(0.01)  # until the thread has moved a layer
            state.step()
            after = of_model.physical_to_logical_map
            moved.append(int((after != before).sum()))
            mine = after[:, rank * PER_RANK : (rank + 1) * PER_RANK]
            for layer in range(LAYERS):
                expected = mine[layer].float().view(-1, 1) + 100 * layer
                assert torch.equal(held.moe_layers[layer].weight, expected)
        results.put((rank, after.tolist(), moved))  # type: ignore[attr-defined]


@pytest.mark.parametrize(("ranks", "background"), [(2, False), (4, False), (2, True)])
def test_eplb_state_moves_the_right_weights_on_every_rank(ranks, background):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(serve, (ranks, port, background, results), nprocs=ranks)
    found = [results.get() for _ in range(ranks)]
    assert len({str(table) for _, table, _ in found}) == 1
    moved = found[0][2]
    assert sum(moved[:16]) > 0
    assert sum(moved[24:]) == 0  # windows without tokens keep the map
    for row in found[0][1]:
        for gpu in np.array(row).reshape(ranks, -1):
            assert len(set(gpu.tolist())) == PER_RANK
        assert set(row) == set(range(EXPERTS))


def test_scaling_down_and_up_as_vllm_asks():
    policy = ours.CraftoptEplbPolicy.rebalance_experts
    load = torch.randint(1, 99, (LAYERS, EXPERTS))
    old = policy(load, 48, 1, 1, 4)
    down = policy(load, 24, 1, 1, 2, old)
    assert down.shape == (LAYERS, 24)
    padded = torch.nn.functional.pad(down, (0, 24), value=-1)
    up = policy(load, 48, 1, 1, 4, padded)
    assert up.dtype == torch.int64
    assert (up[:, :24] == down).float().mean() > 0.5
