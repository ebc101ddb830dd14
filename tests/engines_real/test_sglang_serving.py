"""craftopt and SGLang's own recorder and EPLB manager, on ranks that count and move weights."""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

import craftopt as co
from craftopt.engines import sglang as ours

pytest.importorskip("sglang")

LAYERS, EXPERTS, RANKS, SLOTS, TOP, PASSES, TOKENS = 3, 16, 2, 24, 2, 5, 20
# SGLang counts for stat_approx in DeepEP's dispatch alone.
MODES = [
    ("none", "stat"),
    ("none", "per_pass"),
    ("none", "per_token"),
    ("deepep", "stat"),
    ("deepep", "stat_approx"),
    ("deepep", "per_pass"),
    ("deepep", "per_token"),
]


def choices(forward: int, rank: int) -> np.ndarray:
    """Draw what the router of a rank chooses in a forward pass, [layers, tokens, k]."""
    rng = np.random.default_rng([forward, rank])
    skew = np.random.default_rng(0).lognormal(size=(LAYERS, EXPERTS))
    keys = rng.exponential(size=(LAYERS, TOKENS, EXPERTS)) / skew[:, np.newaxis]
    return keys.argsort(axis=2)[:, :, :TOP]


class Anything(ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


def without_torchvision() -> None:
    """Let SGLang import torchvision, for the pictures of models that nothing here asks for."""
    from transformers import AutoProcessor, PreTrainedTokenizerFast  # noqa: F401, PLC0415

    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[name] = Anything(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None)


def configure(backend: str, mode: str) -> SimpleNamespace:
    """Publish the configuration that a server would, and stand in for its device."""
    from sglang.srt import runtime_context  # noqa: PLC0415
    from sglang.srt.elastic_ep import elastic_ep  # noqa: PLC0415
    from sglang.srt.eplb import eplb_manager, expert_distribution, expert_location  # noqa: PLC0415

    moe = SimpleNamespace(
        moe_a2a_backend=backend,
        deepep_mode="normal",
        expert_distribution_recorder_mode=mode,
        expert_distribution_recorder_buffer_size=PASSES + 3 if mode == "stat" else -1,
        expert_balancedness_report_mode="off",
        ep_dispatch_algorithm="dynamic",
        eplb_algorithm="auto",
        ep_num_redundant_experts=SLOTS - EXPERTS,
        ep_join_mode="recover",
        elastic_ep_backend=None,
        eplb_rebalance_layers_per_chunk=2,
        eplb_rebalance_num_iterations=PASSES + 3,
    )
    bags = {
        "exec": SimpleNamespace(moe=moe, overlap=SimpleNamespace(enable_two_batch_overlap=False)),
        "device": SimpleNamespace(device="cpu"),
        "schedule": SimpleNamespace(chunked_prefill_size=TOKENS),
    }
    runtime_context.RuntimeContext.config_bag = lambda _, name: bags[name]
    rank = torch.distributed.get_rank()
    parallel = SimpleNamespace(
        ep_size=RANKS, nnodes=1, tp_size=RANKS, tp_rank=rank, elastic_ep_initial_size=None
    )
    for module in (eplb_manager, expert_location):
        module.get_parallel = lambda: parallel
    elastic_ep.elastic_expanded_world_enabled = lambda: False
    expert_distribution.get_device = lambda: "cpu"
    torch.cpu.empty_cache = lambda: None
    model = SimpleNamespace(num_layers=LAYERS, num_logical_experts=EXPERTS, num_groups=None)
    expert_location.ModelConfigForExpertLocation.from_model_config = lambda _: model
    table = torch.arange(SLOTS).repeat(LAYERS, 1) * 5 % EXPERTS
    metadata = expert_location.ExpertLocationMetadata.init_by_mapping(None, table, moe_ep_rank=rank)
    runtime_context.get_resources().expert_location_metadata = metadata
    return metadata


def forward_pass(recorder: object, forward: int, backend: str) -> None:
    """What a model's layers tell the recorder, by SGLang's own dispatch."""
    from sglang.srt.eplb import expert_location_dispatch as dispatch  # noqa: PLC0415
    from sglang.srt.model_executor.forward_batch_info import ForwardMode  # noqa: PLC0415

    rank = torch.distributed.get_rank()
    drawn = torch.tensor(choices(forward, rank if backend == "deepep" else 0))
    batch = SimpleNamespace(
        input_ids=torch.arange(TOKENS) + 100 * (rank if backend == "deepep" else 0),
        positions=torch.arange(TOKENS),
        extend_seq_lens_cpu=[TOKENS],
        forward_mode=ForwardMode.EXTEND,
    )
    with recorder.with_forward_pass(forward, batch):
        for layer in range(LAYERS):
            info = dispatch.ExpertLocationDispatchInfo.init_new(layer)
            slots = dispatch.topk_ids_logical_to_physical(drawn[layer], info)
            count = torch.bincount(slots.flatten(), minlength=SLOTS)
            torch.distributed.all_reduce(count)
            mine = count.view(RANKS, -1)[rank].tolist()
            sent = torch.zeros(RANKS)
            with recorder.with_current_layer(layer):
                recorder.on_select_experts(topk_ids=slots)
                if backend == "deepep":  # what DeepEP's normal mode says after its dispatch
                    recorder.on_deepep_dispatch_normal(mine, sent, None, sent)


def join(rank: int, port: int) -> None:
    without_torchvision()
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS
    )


def record(rank: int, port: int, folder: str) -> None:
    """Record a few passes in every mode and dump them, as an HTTP request would."""
    join(rank, port)
    from sglang.srt.environ import envs  # noqa: PLC0415
    from sglang.srt.eplb.expert_distribution import ExpertDistributionRecorder  # noqa: PLC0415

    for backend, mode in MODES:
        recorder = ExpertDistributionRecorder.init_new(configure(backend, mode), rank)
        recorder.start_record()
        for forward in range(PASSES):
            forward_pass(recorder, forward, backend)
        with envs.SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR.override(f"{folder}/{backend}-{mode}"):
            recorder.dump_record()


def serve(rank: int, port: int, results: object) -> None:
    """Let SGLang's manager plan and move weights; check them after every pass."""
    os.environ[ours.SWITCH] = "1"
    from sglang.srt.plugins import load_plugins  # noqa: PLC0415

    load_plugins()
    join(rank, port)
    from sglang.srt.eplb.eplb_manager import EPLBManager  # noqa: PLC0415
    from sglang.srt.eplb.expert_distribution import (  # noqa: PLC0415
        ExpertDistributionRecorder,
        set_global_expert_distribution_recorder,
    )
    from sglang.srt.eplb.expert_location_updater import ExpertLocationUpdater  # noqa: PLC0415

    metadata = configure("none", "stat")
    recorder = ExpertDistributionRecorder.init_new(metadata, rank)
    set_global_expert_distribution_recorder(recorder)

    def mine() -> torch.Tensor:
        return metadata.physical_to_logical_map.view(LAYERS, RANKS, -1)[:, rank]

    # The weight of a slot is its expert's number, so that moves can be checked.
    weights = {layer: [row.float().view(-1, 1)] for layer, row in enumerate(mine().clone())}
    model = SimpleNamespace(routed_experts_weights_of_layer=weights)
    updater = ExpertLocationUpdater()
    manager = EPLBManager(
        model_config=None,
        get_model=lambda: model,
        get_expert_location_updater=lambda: updater,
        get_expert_backup_client=lambda: None,
        get_weight_updater=lambda: SimpleNamespace(update_weights_from_disk=None),
    )
    moved = []
    for forward in range(4 * PASSES):
        forward_pass(recorder, forward, "none")
        before = metadata.physical_to_logical_map.clone()
        manager.on_forward_pass_end()
        moved.append(int((metadata.physical_to_logical_map != before).sum()))
        for layer, row in enumerate(mine()):
            assert torch.equal(weights[layer][0], row.float().view(-1, 1))
    results.put((metadata.physical_to_logical_map.tolist(), moved))  # type: ignore[attr-defined]


def spawn(task: object, *arguments: object) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(task, (port, *arguments), nprocs=RANKS)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    spawn(record, str(folder))
    return folder


def chosen(backend: str) -> list[np.ndarray]:
    """What all ranks chose, pass by pass: without all-to-all backend, all have the same tokens."""
    ranks = range(RANKS if backend == "deepep" else 1)
    return [np.concatenate([choices(f, rank) for rank in ranks], axis=1) for f in range(PASSES)]


@pytest.mark.filterwarnings("ignore::craftopt.errors.CraftoptWarning")
@pytest.mark.parametrize(("backend", "mode"), MODES)
def test_loads_are_read_as_recorded(recordings, backend, mode):
    expected = np.array(
        [
            [np.bincount(layer.ravel(), minlength=EXPERTS) for layer in drawn]
            for drawn in chosen(backend)
        ]
    )
    if (backend, mode) == ("none", "stat"):  # SGLang has added up what every rank recorded
        expected = expected * RANKS
    assert co.read_loads(recordings / f"{backend}-{mode}").tokens.tolist() == expected.tolist()


@pytest.mark.filterwarnings("ignore::craftopt.errors.CraftoptWarning")
@pytest.mark.parametrize("backend", ["none", "deepep"])
def test_traces_are_read_as_recorded(recordings, backend):
    trace = co.read_trace(recordings / f"{backend}-per_token")
    expected = np.concatenate(chosen(backend), axis=1).swapaxes(0, 1)
    read, drawn = (
        Counter(str(token.tolist()) for token in np.sort(ids, axis=2))
        for ids in (trace.topk_ids, expected)
    )
    assert read == drawn


def test_the_manager_moves_the_right_weights_on_every_rank():
    results = mp.get_context("spawn").SimpleQueue()
    spawn(serve, results)
    (table, moved), other = results.get(), results.get()
    assert (table, moved) == other
    assert sum(moved) > 0
    for row in table:
        assert set(row) == set(range(EXPERTS))
        for gpu in np.array(row).reshape(RANKS, -1):
            assert len(set(gpu.tolist())) == SLOTS // RANKS
