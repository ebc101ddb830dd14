"""craftopt inside SGLang's own code: plug-in, location tables, and ranks that are dead."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import craftopt as co
from craftopt.engines import sglang as ours
from craftopt.evaluation import gpu_loads

pytest.importorskip("sglang")

from sglang.srt.elastic_ep import elastic_ep
from sglang.srt.eplb import eplb_algorithms, expert_location

LAYERS, EXPERTS, GPUS, SLOTS = 3, 16, 4, 24

# As an engine's scheduler: a process that is spawned and calls load_plugins by itself.
SCHEDULER = """
import multiprocessing

def scheduler(queue):
    from sglang.srt.plugins import load_plugins
    load_plugins()
    from sglang.srt.eplb import expert_location, eplb_algorithms
    planner = eplb_algorithms.rebalance_experts
    queue.put(getattr(planner, "__wrapped__", None) is not None)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=scheduler, args=(queue,))
    process.start()
    print(queue.get())
    process.join()
"""


@pytest.mark.parametrize("switch", ["", "1"])
def test_the_plugin_reaches_a_spawned_scheduler(switch, tmp_path):
    (tmp_path / "launch.py").write_text(SCHEDULER)
    done = subprocess.run(
        [sys.executable, tmp_path / "launch.py"],
        env={**os.environ, ours.SWITCH: switch},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == str(switch == "1")


@pytest.fixture
def engine(monkeypatch):
    """The configuration that SGLang's location code asks for, which a server would publish."""
    moe = SimpleNamespace(
        moe_a2a_backend="none",
        ep_dispatch_algorithm="dynamic",
        eplb_algorithm="auto",
        ep_num_redundant_experts=SLOTS - EXPERTS,
        ep_join_mode="recover",
        elastic_ep_backend=None,
    )
    parallel = SimpleNamespace(ep_size=GPUS, nnodes=1, tp_size=GPUS, elastic_ep_initial_size=None)
    monkeypatch.setattr(expert_location, "get_exec", lambda: SimpleNamespace(moe=moe))
    monkeypatch.setattr(expert_location, "get_parallel", lambda: parallel)
    monkeypatch.setattr(expert_location, "get_device", lambda: SimpleNamespace(device="cpu"))
    monkeypatch.setattr(elastic_ep, "elastic_expanded_world_enabled", lambda: False)
    model = SimpleNamespace(num_layers=LAYERS, num_logical_experts=EXPERTS, num_groups=None)
    monkeypatch.setattr(
        expert_location.ModelConfigForExpertLocation, "from_model_config", lambda _: model
    )
    return SimpleNamespace(moe=moe, parallel=parallel)


def loads(seed: int = 0) -> co.Loads:
    rng = np.random.default_rng(seed)
    return co.Loads(np.round(rng.lognormal(sigma=1.0, size=(4, LAYERS, EXPERTS)) * 100))


def served(held: co.Loads, ranks: list) -> np.ndarray:
    """Every rank sends an equal part of the tokens, evenly over its candidates."""
    result = np.zeros((held.windows, LAYERS, GPUS))
    for metadata in ranks:
        table = metadata.logical_to_all_physical_map.numpy()
        valid = metadata.logical_to_all_physical_map_num_valid.numpy()
        for layer, expert in np.ndindex(LAYERS, EXPERTS):
            slots = table[layer, expert, : valid[layer, expert]]
            part = held.tokens[:, layer, expert] / GPUS / slots.size
            for slot in slots:
                result[:, layer, slot // (SLOTS // GPUS)] += part
    return result


@pytest.mark.parametrize(("backend", "dispatch"), [("none", "even"), ("deepep", "nearest-even")])
def test_a_map_is_taken_as_written_and_served_as_evaluated(engine, tmp_path, backend, dispatch):
    engine.moe.moe_a2a_backend = backend
    held = loads()
    problem = co.Problem(held, GPUS, slots="uniform", replicas_per_layer=SLOTS - EXPERTS)
    plan = co.solve(problem).plan
    co.export(plan, "sglang", tmp_path / "m.json")
    engine.moe.init_expert_location = str(tmp_path / "m.json")
    ranks = [
        expert_location.compute_initial_expert_location_metadata(None, moe_ep_rank=rank)
        for rank in range(GPUS)
    ]
    for metadata in ranks:
        assert metadata.physical_to_logical_map.tolist() == plan.phy2log().tolist()
    assert np.allclose(served(held, ranks), gpu_loads(plan, held, dispatch))


def test_the_planner_in_sglangs_place_makes_tables_that_it_takes(engine, monkeypatch):
    monkeypatch.setattr(eplb_algorithms, "rebalance_experts", ours.rebalance_experts)
    held = loads()
    metadata = expert_location.ExpertLocationMetadata.init_by_eplb(
        None, torch.tensor(held.tokens).int()
    )
    plan = co.Plan.from_phy2log(metadata.physical_to_logical_map.numpy(), GPUS, EXPERTS)
    assert plan.duplicates == 0
    assert np.allclose(served(held, [metadata] * GPUS), gpu_loads(plan, held))


@pytest.mark.parametrize("dead", [[2], [0, 3], []])
def test_no_expert_lives_on_a_dead_rank(monkeypatch, dead):
    active = torch.ones(GPUS, dtype=torch.int32)
    active[dead] = 0
    state = elastic_ep.ElasticEPState(active, active.clone(), active.clone())
    monkeypatch.setattr(elastic_ep.ElasticEPStateManager, "_instance", state)
    tokens = torch.tensor(loads().tokens).int()
    call = (tokens, 48, 12, None, 1, eplb_algorithms.EplbAlgorithm.elasticity_aware)
    theirs, mine = eplb_algorithms.rebalance_experts(*call), ours.rebalance_experts(*call)
    for one in (theirs, mine):
        phy2log, log2phy, count = (table.numpy() for table in one)
        on = {int(slot) // 12 for slot in log2phy[log2phy >= 0]}
        assert on == set(range(GPUS)) - set(dead)
        assert (count >= 1).all()
        assert phy2log.shape == (LAYERS, 48)
        assert not phy2log.reshape(LAYERS, GPUS, 12)[:, dead].any()


def test_the_planner_takes_what_sglang_hands():
    theirs = inspect.signature(eplb_algorithms.rebalance_experts).parameters
    assert list(theirs) == list(inspect.signature(ours.rebalance_experts).parameters)
