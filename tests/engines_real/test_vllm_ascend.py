"""craftopt inside vllm-ascend's own worker, from its sdist; torch_npu is not there."""

from __future__ import annotations

import importlib.util
import os
import sys
import types
import unittest.mock
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import craftopt as co
from craftopt.engines import vllm_ascend as ours

SOURCE = os.environ.get("VLLM_ASCEND_SOURCE", "")
if not Path(SOURCE, "vllm_ascend").is_dir():
    pytest.skip("VLLM_ASCEND_SOURCE is no unpacked sdist of vllm-ascend", allow_module_level=True)

pytest.importorskip("vllm.model_executor.layers.fused_moe.expert_map_manager")

# The package imports the NPU's runtime on the way to the worker, which needs none of it. (After
# vLLM: transformers would take the stub for an NPU. Not on sys.path, where processes that other
# tests spawn would find its plugin for vLLM.)
package = types.ModuleType("vllm_ascend")
package.__path__ = [str(Path(SOURCE, "vllm_ascend"))]
groups = types.ModuleType("vllm_ascend.distributed.parallel_state")
groups.get_dynamic_eplb_group = lambda: SimpleNamespace(rank_in_group=0)
sys.modules |= {
    "torch_npu": types.ModuleType("torch_npu"),
    "vllm_ascend": package,
    "vllm_ascend.distributed": types.ModuleType("vllm_ascend.distributed"),
    groups.__name__: groups,
}

from vllm_ascend.eplb.core import eplb_utils, eplb_worker  # noqa: E402
from vllm_ascend.eplb.core.policy.policy_factory import PolicyFactory  # noqa: E402

LAYERS, EXPERTS, DEVICES, SLOTS, ROUNDS = 5, 64, 8, 10, 4


def rounds(policy: object, policy_type: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the worker plan from the loads of a round; return max/mean after each, unseen ones."""
    monkeypatch.setattr(eplb_worker, "get_ep_group", lambda: SimpleNamespace(rank_in_group=0))
    monkeypatch.setattr(PolicyFactory, "generate_policy", staticmethod(lambda _: policy))
    start = np.arange(DEVICES * SLOTS).reshape(DEVICES, SLOTS) % EXPERTS
    maps = np.full((LAYERS, DEVICES, EXPERTS), -1)
    for device in range(DEVICES):
        maps[:, device, start[device]] = np.arange(SLOTS)
    shared = {"expert_maps": torch.tensor(maps), "moe_load": None}
    worker = eplb_worker.EplbWorker(shared, policy_type)
    rng = np.random.default_rng(11)
    mean = rng.lognormal(sigma=1.0, size=(LAYERS, EXPERTS)) * 300
    found = []
    for _ in range(ROUNDS):
        mean = mean * rng.lognormal(sigma=0.2, size=mean.shape)
        table = placement(shared["expert_maps"])
        windows = [split(rng.poisson(mean), table) for _ in range(4)]
        load = np.stack(windows, axis=0) if worker.multi_stage else sum(windows)
        shared["moe_load"] = torch.tensor(np.asarray(load))
        worker.do_update()
        table = placement(shared["expert_maps"])
        assert all(set(layer.ravel()) == set(range(EXPERTS)) for layer in table)
        after = split(rng.poisson(mean), table).sum(axis=2)
        found.append(float((after.max(axis=1) / after.mean(axis=1)).mean()))
    return found


def placement(maps: torch.Tensor) -> np.ndarray:
    """Experts by slot, [layers, devices, slots], from slots by expert."""
    table = np.full((LAYERS, DEVICES, SLOTS), -1)
    layer, device, expert = np.nonzero(maps.numpy() >= 0)
    table[layer, device, maps.numpy()[layer, device, expert]] = expert
    return table


def split(tokens: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Split each expert's tokens evenly over its copies, [layers, devices, slots]."""
    result = np.zeros(table.shape)
    for layer in range(LAYERS):
        count = np.bincount(table[layer].ravel(), minlength=EXPERTS)
        result[layer] = (tokens[layer] / count)[table[layer]]
    return result


def test_the_worker_refuses_no_layer_and_balances_as_flashlb(monkeypatch, capsys):
    flash = PolicyFactory.generate_policy(3)
    with monkeypatch.context() as patch:
        theirs = rounds(flash, 3, patch)
    with monkeypatch.context() as patch:
        errors: list = []
        patch.setattr(eplb_worker.logger, "error", lambda *words: errors.append(words))
        mine = rounds(ours.CraftoptEplbPolicy(), 1, patch)
    assert errors == []
    with capsys.disabled():
        print(f"\nmax/mean by round: craftopt {np.round(mine, 3)}, FlashLB {np.round(theirs, 3)}")
    assert max(mine) < 1.15


@pytest.mark.parametrize("policy", ["swift_balance", "flashlb"])
def test_craftopts_policy_passes_vllm_ascends_own_tests_of_its(policy, monkeypatch):
    monkeypatch.setattr(torch, "npu", SimpleNamespace(device_count=lambda: 16), raising=False)
    monkeypatch.setattr(
        PolicyFactory, "generate_policy", staticmethod(lambda _: ours.CraftoptEplbPolicy())
    )
    file = Path(SOURCE, "tests", "ut", "eplb", "core", "policy", "test_policy_factory.py")
    spec = importlib.util.spec_from_file_location("their_tests", file)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    result = unittest.TestResult()
    theirs.TestEplbRebalancePolicies(f"test_{policy}_rebalance_experts").run(result)
    assert result.wasSuccessful(), result.failures + result.errors
    assert result.testsRun == 1


def test_an_exported_map_is_loaded_as_planned(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "npu", lambda self: self, raising=False)
    rng = np.random.default_rng(0)
    loads = co.Loads(rng.lognormal(sigma=1.0, size=(LAYERS, EXPERTS)) * 100)
    extra = DEVICES * SLOTS - EXPERTS
    plan = co.solve(co.Problem(loads, DEVICES, slots="uniform", replicas_per_layer=extra)).plan
    co.export(plan, "vllm-ascend", tmp_path / "map.json")
    config = SimpleNamespace(
        expert_map_path=str(tmp_path / "map.json"), dynamic_eplb=False, num_redundant_experts=0
    )
    table = plan.phy2log().reshape(LAYERS, DEVICES, SLOTS)
    for layer, rank in np.ndindex(LAYERS, DEVICES):
        moe = SimpleNamespace(num_experts=EXPERTS, ep_size=DEVICES, ep_rank=rank)
        every, mine, log2phy, redundant = eplb_utils.init_eplb_config(config, layer, moe)
        assert redundant == extra
        assert torch.equal(every[rank], mine)
        assert mine[table[layer, rank]].tolist() == list(range(SLOTS))
        assert (plan.phy2log()[layer][log2phy] == np.arange(EXPERTS)).all()
