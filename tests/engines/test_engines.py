"""Drop-in planners keep every promise of the interface that they stand in for."""

from __future__ import annotations

import enum
import subprocess
import sys
import tomllib
import types
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.rules import broken_rules
from strategies import quiet

import craftopt as co
from craftopt.engines import _planning, vllm, vllm_ascend
from craftopt.engines import sglang as sglang_engine


class Tensor:
    """Stands in for PyTorch's: what the planners may use of it."""

    def __init__(self, array: np.ndarray, device: str = "cuda") -> None:
        self._array, self.device = array, device

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return Tensor(self._array, "cpu")

    def numpy(self) -> np.ndarray:
        assert self.device == "cpu", "tensors of a GPU have no numpy()"
        return self._array


@pytest.fixture
def torch(monkeypatch):
    """A module torch, and what was asked of it."""
    module = types.ModuleType("torch")
    module.from_numpy = lambda array: Tensor(array, "cpu")
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


def loads(windows: int = 1, layers: int = 3, experts: int = 16, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.round(rng.lognormal(sigma=1.0, size=(windows, layers, experts)) * 100)


def entry_point(group: str):
    """What an engine calls in every process: the plugin of that group that pyproject.toml names."""
    project = tomllib.loads((Path(co.__file__).parents[1] / "pyproject.toml").read_text())[
        "project"
    ]
    (value,) = project["entry-points"][group].values()
    return metadata.EntryPoint("craftopt_eplb", value, group).load()


@st.composite
def calls(draw: st.DrawFn) -> dict:
    """Draw loads, slots, GPUs, nodes and groups that fit each other."""
    nodes = draw(st.integers(1, 3))
    gpus = nodes * draw(st.integers(1, 3))
    groups = draw(st.sampled_from([0, 1, nodes, 2 * nodes]))
    unit = max(groups, 1)
    experts = unit * draw(st.integers(1, 4))
    within = experts // nodes if groups > 1 and groups % nodes == 0 and nodes > 1 else experts
    least = -(-experts // gpus)
    per_gpu = draw(st.integers(least, max(least, min(within, least + 3))))
    per_gpu = min(per_gpu, within)
    tokens = loads(draw(st.integers(1, 4)), draw(st.integers(1, 3)), experts, draw(st.integers(0)))
    if draw(st.booleans()):
        tokens[:, 0] = 0  # a dense layer
    if draw(st.booleans()):
        tokens[0] = 0  # a step that the buffer did not use
    return {
        "tokens": tokens, "slots": per_gpu * gpus, "gpus": gpus, "nodes": nodes, "groups": groups
    }  # fmt: skip


def assert_keeps_the_rules(phy2log: np.ndarray, call: dict) -> None:
    tokens, gpus, nodes, groups = (call[key] for key in ("tokens", "gpus", "nodes", "groups"))
    experts = tokens.shape[2]
    assert phy2log.dtype == np.int64
    assert phy2log.shape == (tokens.shape[1], call["slots"])
    plan = co.Plan.from_phy2log(phy2log, gpus, experts)
    problem = quiet(
        lambda: co.Problem(
            co.Loads(tokens),
            gpus,
            nodes=nodes,
            replicas_per_layer=call["slots"] - experts,
            slots="uniform",
            expert_groups=groups if groups > 1 and groups % nodes == 0 else None,
        )
    )
    assert not broken_rules(plan, problem)


@given(calls())
@settings(max_examples=120)
def test_every_slot_is_filled_and_every_rule_kept(call):
    phy2log = _planning.plan_slots(**{**call, "groups": call["groups"] or 1})
    assert_keeps_the_rules(phy2log, call)


@given(calls(), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_vllm_keeps_the_rules_and_what_it_can_in_place(call, seed):
    arguments = (call["slots"], call["groups"], call["nodes"], call["gpus"])
    other = loads(1, call["tokens"].shape[1], call["tokens"].shape[2], seed)[0]
    old = vllm.CraftoptEplbPolicy.rebalance_experts(other, *arguments)
    weight = call["tokens"].sum(axis=0)
    fresh = vllm.CraftoptEplbPolicy.rebalance_experts(weight, *arguments)
    kept = vllm.CraftoptEplbPolicy.rebalance_experts(weight, *arguments, old)
    assert_keeps_the_rules(kept, call)
    plans = [co.Plan.from_phy2log(table, call["gpus"]) for table in (kept, fresh, old)]
    moved = [np.maximum(plan.copies.astype(int) - plans[2].copies, 0) for plan in plans]
    assert (kept != old).sum() == moved[0].sum()  # whatever stays on a GPU stays in its slot
    mean = weight.sum(axis=1) / call["gpus"]
    costs = []
    for plan, moves in zip(plans, moved, strict=True):
        share = moves.sum(axis=(1, 2)) / call["slots"]
        price = _planning.CHANGE_PRICE * (share > 0) + _planning.MOVE_PRICE * share
        costs.append(co.evaluate(plan, co.Loads(weight)).max_load[0] + mean * price)
    assert (costs[0] <= np.minimum(costs[1], costs[2]) * (1 + 1e-9)).all()


def test_the_same_loads_move_nothing():
    weight = loads(1)[0]
    old = vllm.CraftoptEplbPolicy.rebalance_experts(weight, 24, 1, 1, 4)
    shuffled = np.concatenate([old[:, 12:], old[:, :12]], axis=1)
    again = vllm.CraftoptEplbPolicy.rebalance_experts(weight, 24, 1, 1, 4, shuffled)
    assert np.array_equal(again, shuffled)


def test_the_same_loads_move_nothing_though_a_short_search_missed_moves_that_pay():
    mean = np.random.default_rng(503).lognormal(sigma=0.9, size=(60, 384))
    weight = np.round(mean * 16_500 / mean.mean())
    plan = vllm.CraftoptEplbPolicy.rebalance_experts
    first = plan(weight, 432, 1, 1, 48, np.tile(np.arange(432) % 384, (60, 1)))
    assert np.array_equal(plan(weight, 432, 1, 1, 48, first), first)


@pytest.mark.parametrize("shape", [(58, 256, 32, 288), (3, 64, 8, 80)])
def test_noise_moves_at_most_a_part_in_twenty_of_the_slots_of_a_first_plan(shape):
    layers, experts, gpus, slots = shape
    rng = np.random.default_rng(4)
    mean = rng.lognormal(sigma=1.0, size=(layers, experts))
    mean *= 16_500 / mean.mean()
    plan = vllm.CraftoptEplbPolicy.rebalance_experts
    start = np.tile(np.arange(slots) % experts, (layers, 1))
    first = plan(np.round(mean), slots, 1, 1, gpus, start)
    noisy = np.round(mean) + rng.poisson(100, size=mean.shape)
    again = plan(noisy, slots, 1, 1, gpus, first)
    assert (again != first).sum() <= 0.05 * (first != start).sum()


def test_a_move_that_pays_is_made():
    old = np.array([[0, 1, 2, 3]])
    new = vllm.CraftoptEplbPolicy.rebalance_experts([[9, 9, 1, 1]], 4, 1, 1, 2, old)
    assert co.evaluate(co.Plan.from_phy2log(new, 2), co.Loads([[9, 9, 1, 1]])).relative_time == 1


def test_without_tokens_the_old_map_stays():
    """In the layers without any, and in all of them where an engine is idle."""
    old = np.stack([np.random.default_rng(seed).permutation(24) % 16 for seed in range(2)])
    old = _planning.plan_slots(loads(1, 2), 24, 4, old=old)
    weight = loads(1, 2, seed=1)[0]
    weight[0] = 0
    plan = vllm.CraftoptEplbPolicy.rebalance_experts
    assert np.array_equal(plan(weight * 0, 24, 1, 1, 4, old), old)
    new = plan(weight, 24, 1, 1, 4, old)
    assert np.array_equal(new[0], old[0])
    assert not np.array_equal(new[1], old[1])


@given(calls(), st.integers(1, 9), st.data())
@settings(max_examples=60)
def test_any_old_map_is_planned_from(call, ranks, data):
    """Of fewer ranks or more, with empty slots, lost experts, and numbers that are none."""
    layers, experts = call["tokens"].shape[1:]
    per_gpu = call["slots"] // call["gpus"]
    rng = np.random.default_rng(data.draw(st.integers(0)))
    old = rng.integers(-2, experts + 2, size=(layers, per_gpu * ranks))
    plan = vllm.CraftoptEplbPolicy.rebalance_experts
    arguments = (call["slots"], call["groups"], call["nodes"], call["gpus"])
    assert_keeps_the_rules(plan(call["tokens"].sum(axis=0), *arguments, old), call)


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4), (5, 4), (4, 6), (8, 7)])
def test_ranks_that_stay_keep_their_copies_when_others_come_or_go(before, after):
    plan, weight = vllm.CraftoptEplbPolicy.rebalance_experts, loads(1, 3, 16)[0]
    old = plan(weight, 8 * before, 1, 1, before)
    new = plan(weight, 8 * after, 1, 1, after, old)
    fresh = plan(weight, 8 * after, 1, 1, after)
    width = 8 * min(before, after)
    assert (new[:, :width] != old[:, :width]).sum() < (fresh[:, :width] != old[:, :width]).sum()
    assert_keeps_the_rules(
        new, {"tokens": weight[None], "slots": 8 * after, "gpus": after, "nodes": 1, "groups": 1}
    )


@pytest.mark.parametrize("old", [None, np.tile(np.arange(48) % 16, (3, 1))])
@pytest.mark.parametrize(("nodes", "groups"), [(1, 1), (2, 4)])
def test_more_slots_on_a_gpu_than_experts_hold_some_twice(old, nodes, groups):
    new = vllm.CraftoptEplbPolicy.rebalance_experts(loads()[0], 48, groups, nodes, 2, old)
    held = new.reshape(3, 2, 24)
    expected = [range(16), range(16)] if nodes == 1 else [range(8), range(8, 16)]
    for layer, gpu in np.ndindex(3, 2):
        assert set(held[layer, gpu]) == set(expected[gpu])


def test_windows_are_planned_for_and_not_their_sum():
    tokens = np.full((2, 1, 8), 1.0)
    tokens[0, 0, :2] = tokens[1, 0, 2:4] = 100.0  # their sum says: 0..3 are alike
    phy2log, *_ = sglang_engine.rebalance_experts(tokens, 8, 2, None, 1)
    plan = co.Plan.from_phy2log(phy2log, gpus=4)
    assert co.evaluate(plan, co.Loads(tokens)).max_load.tolist() == [[101.0], [101.0]]


def test_many_steps_are_added_up_in_order_and_unused_ones_left_out():
    steps = loads(100, 2, 4)
    steps[10:20] = 0
    windows = _planning._windows(steps)
    assert len(windows) == _planning.WINDOWS
    assert np.array_equal(windows.sum(axis=0), steps.sum(axis=0))
    used = np.delete(steps, np.s_[10:20], axis=0)
    assert np.array_equal(windows[0], used[: 90 // 32].sum(axis=0))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32, np.uint8])
def test_any_numbers_will_do(dtype):
    tokens = np.minimum(loads(2), 255).astype(dtype)
    expected = sglang_engine.rebalance_experts(tokens.astype(np.float64), 24, 6, None, 1)
    found = sglang_engine.rebalance_experts(tokens, 24, 6, None, 1)
    assert np.array_equal(found[0], expected[0])


# --- SGLang --------------------------------------------------------------------------------------


class EplbAlgorithm(enum.Enum):
    deepseek = enum.auto()
    deepseek_hierarchical = enum.auto()


def test_sglang_gets_its_three_tables():
    phy2log, log2phy, count = sglang_engine.rebalance_experts(
        tokens_per_expert=loads(3),
        num_physical_experts=24,
        num_local_physical_experts=6,
        num_groups=4,
        num_nodes=2,
        algorithm=EplbAlgorithm.deepseek,
    )
    assert count.sum(axis=1).tolist() == [24] * 3
    for layer, slot in np.ndindex(phy2log.shape):
        assert slot in log2phy[layer, phy2log[layer, slot]]
    assert ((log2phy >= 0).sum(axis=2) == count).all()
    assert log2phy.shape[2] == count.max()


@pytest.mark.parametrize(
    ("algorithm", "groups", "together"),
    [
        (EplbAlgorithm.deepseek_hierarchical, 4, True),
        ("deepseek_vec_hierarchical", 4, True),
        ("auto", 4, True),
        (None, 4, True),
        (EplbAlgorithm.deepseek, 4, False),
        ("auto", 3, False),
        ("auto", None, False),
    ],
)
def test_groups_stay_in_a_node_as_the_algorithm_says(algorithm, groups, together):
    tokens = loads(1, 8, 12)
    phy2log, *_ = sglang_engine.rebalance_experts(tokens, 16, 4, groups, 2, algorithm)
    node = np.repeat([0, 1], 8)
    size = 12 // (groups or 4)
    nodes_of_group = [
        {int(n) for n in node[row // size == group]}
        for row in phy2log
        for group in range(12 // size)
    ]
    assert all(len(nodes) == 1 for nodes in nodes_of_group) == together


def stub(monkeypatch, name: str, **names: object) -> None:
    """Stand in for a module of an engine that is not installed, with its few names."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType(parts[-1]))
    vars(sys.modules[name]).update(names)


@pytest.mark.parametrize("running", [True, False])
def test_no_expert_lives_on_a_rank_that_is_dead(monkeypatch, running):
    ranks = np.array([1, 1, 0, 1, 0, 0])  # the last two are no ranks yet

    class ElasticEPStateManager:
        instance = staticmethod(
            lambda: types.SimpleNamespace(active_ranks=ranks) if running else None
        )
        healthy_rank_state = staticmethod(lambda: np.ones(4))

    name = "sglang.srt.elastic_ep.elastic_ep"
    stub(monkeypatch, name, ElasticEPStateManager=ElasticEPStateManager)
    tokens = loads()
    phy2log, log2phy, count = sglang_engine.rebalance_experts(
        tokens, 24, 6, 4, 2, "elasticity_aware_hierarchical"
    )
    dead = slice(12, 18) if running else slice(0, 0)
    assert not phy2log[:, dead].any()
    alive = np.delete(np.arange(24), dead)
    assert_keeps_the_rules(
        phy2log[:, alive],
        {"tokens": tokens, "slots": alive.size, "gpus": alive.size // 6, "nodes": 1, "groups": 1},
    )
    assert np.isin(log2phy, [-1, *alive]).all()
    assert (count.sum(axis=1) == alive.size).all()
    for layer, expert in np.ndindex(count.shape):
        slots = log2phy[layer, expert, : count[layer, expert]]
        assert (phy2log[layer, slots] == expert).all()


def test_sglang_gets_its_hook_only_if_asked(monkeypatch):
    hooks: list = []
    registry = types.SimpleNamespace(register=lambda *call: hooks.append(call))
    name = "sglang.srt.plugins.hook_registry"
    stub(
        monkeypatch, name, HookRegistry=registry, HookType=types.SimpleNamespace(REPLACE="replace")
    )
    monkeypatch.delenv(sglang_engine.SWITCH, raising=False)
    register = entry_point("sglang.srt.plugins")
    register()
    assert hooks == []
    monkeypatch.setenv(sglang_engine.SWITCH, "1")
    register()
    target = "sglang.srt.eplb.eplb_algorithms.rebalance_experts"
    assert hooks == [(target, sglang_engine.rebalance_experts, "replace")]


def test_tensors_come_in_from_a_gpu_and_go_out_on_the_cpu(torch):
    found = sglang_engine.rebalance_experts(Tensor(loads(2)), 24, 6, None, 1)
    assert all(isinstance(table, Tensor) and table.device == "cpu" for table in found)
    expected = sglang_engine.rebalance_experts(loads(2), 24, 6, None, 1)
    for table, array in zip(found, expected, strict=True):
        assert np.array_equal(table.numpy(), array)
    old = Tensor(np.tile(np.arange(24) % 16, (3, 1)))
    policy = vllm.CraftoptEplbPolicy
    assert policy.rebalance_experts(Tensor(loads()[0]), 24, 1, 1, 4, old).device == "cpu"
    table = Tensor(np.tile(np.arange(24) % 16, (3, 1)).reshape(3, 4, 6))
    *_, new = vllm_ascend.CraftoptEplbPolicy().rebalance_experts(table, Tensor(np.ones((3, 4, 6))))
    assert np.array(new).shape == (3, 4, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (loads(), 25, 6, None, 1),
            "25 slots do not divide into GPUs of num_local_physical_experts=6",
        ),
        ((loads(), 12, 3, None, 1), "12 slots cannot host 16 experts"),
        ((loads(), 24, 6, None, 3), "gpus=4 does not divide into nodes=3"),
        ((loads(1, 3, 18), 24, 6, 4, 2), "18 experts do not divide into 4 groups"),
        ((-loads(), 24, 6, None, 1), "at least 0"),
        ((loads() * np.nan, 24, 6, None, 1), "finite"),
        ((loads()[0, 0], 24, 6, None, 1), r"shape \(16,\)"),
        ((np.array([[["a"]]]), 24, 6, None, 1), "pass numbers"),
    ],
)
def test_what_cannot_be_planned_is_one_clear_error(arguments, message):
    with pytest.raises(co.InputError, match=message):
        sglang_engine.rebalance_experts(*arguments)


# --- vLLM ----------------------------------------------------------------------------------------


@pytest.fixture
def policies(monkeypatch):
    """vLLM's table of policies, in a stand-in of its module."""
    stub(monkeypatch, "vllm.distributed.eplb.policy", EPLB_POLICIES={"default": object})
    return sys.modules["vllm.distributed.eplb.policy"].EPLB_POLICIES


def test_the_plugin_replaces_the_default_policy_only_if_asked(policies, monkeypatch):
    register = entry_point("vllm.general_plugins")
    monkeypatch.delenv(vllm.SWITCH, raising=False)
    register()
    assert policies == {"default": object}
    monkeypatch.setenv(vllm.SWITCH, "1")
    register()
    assert policies == {"default": vllm.CraftoptEplbPolicy}
    register()
    assert policies == {"default": vllm.CraftoptEplbPolicy}


def test_an_old_map_of_other_layers_is_refused():
    with pytest.raises(co.InputError, match=r"old map has shape \(4, 24\); .* 3 layers"):
        vllm.CraftoptEplbPolicy.rebalance_experts(loads()[0], 24, 1, 1, 4, np.zeros((4, 24), int))


def test_an_old_map_with_lost_experts_still_keeps_what_it_has():
    """As after the loss of a GPU: its slots are empty, some experts are nowhere."""
    plan = vllm.CraftoptEplbPolicy.rebalance_experts
    whole = plan(loads()[0], 24, 1, 1, 4)
    lost = whole.copy()
    lost[:, 6:12] = -1
    new = plan(loads()[0], 24, 1, 1, 4, lost)
    assert np.array_equal(new[:, :6], whole[:, :6])
    assert np.array_equal(new[:, 12:], whole[:, 12:])
    assert np.array_equal(np.sort(new[:, 6:12]), np.sort(whole[:, 6:12]))


# --- vllm-ascend ---------------------------------------------------------------------------------


def ascend_accepts(old: np.ndarray, new: np.ndarray) -> bool:
    """Check a table as vllm-ascend's worker does before it moves anything."""
    for before, after in zip(old, new, strict=True):
        if set(before.ravel()) != set(after.ravel()):
            return False
        for here, there in zip(before, after, strict=True):
            stay = np.isin(there, here)
            if len(set(there)) != len(there) or not np.array_equal(there[stay], here[stay]):
                return False
    return True


@given(calls(), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_vllm_ascend_accepts_every_table(call, seed):
    layers, experts = call["tokens"].shape[1:]
    old = _planning.plan_slots(loads(1, layers, experts, seed), call["slots"], call["gpus"])
    old = old.reshape(layers, call["gpus"], -1)
    workload = np.take_along_axis(
        call["tokens"].sum(axis=0), old.reshape(layers, -1), axis=1
    ).reshape(old.shape)
    changed, priority, table = vllm_ascend.CraftoptEplbPolicy(object()).rebalance_experts(
        old.tolist(), workload
    )
    new = np.array(table)
    assert ascend_accepts(old, new)
    assert changed in (0, 1)
    assert sorted(priority.tolist()) == list(range(layers))
    if not changed:
        assert np.array_equal(new, old)


def test_vllm_ascend_says_whether_it_is_worth_it():
    table = np.array([[[0, 1], [2, 3]], [[0, 1], [2, 3]]])
    even, skewed = np.ones((2, 2, 2)), np.array([[[9, 9], [1, 1]], [[1, 1], [1, 1]]])
    policy = vllm_ascend.CraftoptEplbPolicy()
    changed, _, same = policy.rebalance_experts(table, even)
    assert (changed, same) == (0, table.tolist())
    changed, priority, new = policy.rebalance_experts(table, skewed)
    assert changed == 1
    assert priority.tolist() == [0, 1]
    assert new[1] == table[1].tolist()
    windows = np.stack([skewed, skewed])
    assert policy.rebalance_experts(table, windows)[2] == new


def test_vllm_ascend_refuses_shapes_that_differ():
    with pytest.raises(co.InputError, match=r"both are \[layers, devices, slots\]"):
        vllm_ascend.CraftoptEplbPolicy().rebalance_experts(np.zeros((1, 2, 2)), np.zeros((1, 2, 3)))


# --- inside an engine ----------------------------------------------------------------------------

SCRIPT = """
import hashlib, sys
import numpy as np
from craftopt.engines import sglang, vllm, vllm_ascend
before = set(sys.modules)
assert not {"torch", "vllm", "sglang", "vllm_ascend"} & before
rng = np.random.default_rng(5)
tokens = np.round(rng.lognormal(sigma=1.0, size=(40, 8, 64)) * 100)
digest = hashlib.sha256()
for array in sglang.rebalance_experts(tokens, 80, 5, 8, 2, "auto"):
    digest.update(array.tobytes())
old = vllm.CraftoptEplbPolicy.rebalance_experts(tokens[0], 80, 1, 2, 16)
digest.update(old.tobytes())
digest.update(vllm.CraftoptEplbPolicy.rebalance_experts(tokens[1], 80, 8, 2, 16, old).tobytes())
print(digest.hexdigest())
"""


@pytest.mark.parametrize("ranks", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_all_ranks_plan_the_same_byte_for_byte(ranks):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdout=subprocess.PIPE,
            text=True,
            env={"NUMBA_NUM_THREADS": str(1 + rank % 2), "PATH": "/usr/bin:/bin"},
        )
        for rank in range(ranks)
    ]
    assert len({process.communicate(timeout=300)[0] for process in processes}) == 1
    assert [process.returncode for process in processes] == [0] * ranks


def test_the_number_of_threads_changes_nothing(monkeypatch):
    tokens = loads(5, 6, 32)
    plans = []
    for threads in (1, 2, 7):
        monkeypatch.setattr("os.cpu_count", lambda threads=threads: threads)
        plans.append(sglang_engine.rebalance_experts(tokens, 40, 5, None, 1)[0].tobytes())
    assert len(set(plans)) == 1
