"""Clusters change: GPUs die, leave and come, and nothing of it is forgotten or lost."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from files import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.rules import broken_rules
from strategies import quiet

import craftopt as co
from craftopt.cli import main
from craftopt.engines import sglang, vllm, vllm_ascend

CASE = DATA / "cases" / "dead_gpu"


def tables(windows: int, layers: int, experts: int, seed: int) -> co.Loads:
    return co.Loads(np.random.default_rng(seed).integers(1, 99, size=(windows, layers, experts)))


def carried_out(old: np.ndarray, migration: co.rebalancing.Migration) -> np.ndarray:
    """Take every step; no expert that has a copy may lose the last one."""
    hosted = np.zeros((*old.shape[:2], migration.gpus), dtype=int)
    hosted[:, :, : old.shape[2]] = old
    before = hosted.any(axis=2)
    for step in migration.steps:
        if step.action == "receive":
            assert (step.source is None) == (not before[step.layer, step.expert])
            hosted[step.layer, step.expert, step.gpu] += 1
        else:
            hosted[step.layer, step.expert, step.gpu] -= 1
        assert hosted.min() >= 0
        assert hosted.any(axis=2)[before].all()
    return hosted


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_another_number_of_gpus_loses_no_expert_and_keeps_the_rules(before, after, spare, seed):
    loads = tables(2, 2, 8, seed)
    width = [min(8, -(-8 // gpus) + spare) for gpus in (before, after)]

    def problem(gpus: int, width: int) -> co.Problem:
        return co.Problem(loads, gpus, slots="uniform", replicas_per_layer=gpus * width - 8)

    old = quiet(lambda: co.solve(problem(before, width[0]), "nominal")).plan
    task = quiet(lambda: problem(after, width[1]))
    found = quiet(lambda: co.rebalance(task, old, work_limit=500, workers=1))
    assert found.plan.gpus == after
    assert broken_rules(found.plan, task) == set()
    hosted = carried_out(old.copies, found.migration())
    assert np.array_equal(hosted[:, :, :after], found.plan.copies)
    assert not hosted[:, :, after:].any()
    shared = min(before, after)
    new = np.maximum(found.plan.copies.astype(int)[:, :, :shared] - old.copies[:, :, :shared], 0)
    assert found.moves == new.sum() + found.plan.copies[:, :, shared:].sum()


def test_within_few_moves_the_gpus_that_stay_keep_what_they_have():
    loads = tables(3, 3, 16, 1)
    old = co.solve(co.Problem(loads, 8, slots="uniform", replicas_per_layer=16)).plan
    task = co.Problem(loads, 6, slots="uniform", replicas_per_layer=8)
    lost = int((~old.copies[:, :, :6].any(axis=2)).sum())
    found = co.rebalance(task, old, lost)
    assert found.moves == lost
    grown = co.rebalance(
        co.Problem(loads, 8, slots="uniform", replicas_per_layer=16), found.plan, 24
    )
    assert grown.moves == 24  # two new GPUs of four slots in three layers, and nothing else
    assert np.array_equal(grown.plan.copies[:, :, :6], found.plan.copies)


def test_a_plan_remembers_its_dead_gpus():
    loads = co.read_loads(CASE / "l.npz")
    old = co.read_plan(CASE / "p.json")
    task = co.Problem(loads, 4, slots="uniform", replicas=old.replicas)
    plan = co.rebalance(task, old, active=[True, True, True, False]).plan
    assert plan.dead == (3,)
    assert co.Plan.from_json(plan.to_json()) == plan
    assert plan.with_layers([0], [7]).dead == (3,)
    rest = plan.survivors()
    assert (rest.gpus, rest.dead) == (3, ())
    for dispatch in ("even", "exact", "nearest-even"):
        scores = [co.evaluate(p, loads, dispatch).relative_time for p in (plan, rest)]
        assert scores[0] == scores[1]
    again = co.rebalance(task, plan)
    assert again.plan.dead == (3,)
    assert again.moves == 0
    back = co.rebalance(task, plan.survivors())
    assert back.plan.dead == ()
    assert back.plan.copies[:, :, 3].any()


def test_nodes_are_told_apart_while_they_have_equally_many_gpus():
    copies = np.zeros((1, 2, 6), dtype=int)
    copies[0, 0, 0] = copies[0, 1, 5] = 1
    assert co.Plan(copies, nodes=2, dead=[1, 4]).survivors().nodes == 2
    assert co.Plan(copies, nodes=2, dead=[1]).survivors().nodes == 1
    assert co.Plan(copies, nodes=3, dead=[2, 3]).survivors().nodes == 2


@pytest.mark.parametrize(
    ("dead", "message"),
    [([2], "GPUs are 0..1"), ([0], "GPU 0 is dead and hosts copies"), ([-1], "dead=-1")],
)
def test_dead_gpus_that_cannot_be_are_refused(dead, message):
    with pytest.raises(co.InputError, match=message):
        co.Plan([[[1, 0]]], dead=dead)


@pytest.fixture
def dead(tmp_path, capsys, monkeypatch):
    """The case's plan after GPU 3 died, and a way to run commands on it."""

    def run(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["craftopt", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None)
        return capsys.readouterr().out

    plan = tmp_path / "s.json"
    run("rebalance", CASE / "p.json", CASE / "l.npz", "--dead", 3, "-o", plan)
    return plan, run


@pytest.mark.filterwarnings("ignore::craftopt.errors.CraftoptWarning")
def test_every_command_is_about_the_gpus_that_are_alive(dead, tmp_path):
    plan, run = dead
    loads = CASE / "l.npz"
    time = co.evaluate(co.read_plan(plan), co.read_loads(loads)).relative_time
    assert time < 1.03
    assert f"{time:.4f}" in run("evaluate", plan, loads)
    assert f"{time:.6f}" in run("certify", plan, loads)
    assert "exact" in run("route", plan, loads)
    assert "Balanced already" in run("diagnose", loads, "--gpus", 4, "--map", plan)
    assert "dead GPUs" in run("info", plan)
    said = run("export", plan, "--engine", "sglang", "-o", tmp_path / "m.json")
    assert "--ep-size 3" in said
    assert "GPU(s) 3 are dead: the file is for the 3 others" in said
    assert co.read_plan(tmp_path / "m.json", 3).slots.min() > 0
    run("rebalance", plan, loads, "-o", tmp_path / "again.json")
    assert co.read_plan(tmp_path / "again.json").dead == (3,)


def test_survivors_whose_slots_would_not_fill_all_gpus_are_planned_again(dead, tmp_path):
    _, run = dead
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "l.npz", counts=rng.integers(1, 99, (4, 2, 18)))
    slots = np.arange(20) % 18  # 5 slots on 4 GPUs; 3 need 6 for the 18 experts, and 4 need 20
    co.Plan.from_phy2log([slots, slots], gpus=4).save(tmp_path / "p.json")
    run("rebalance", tmp_path / "p.json", tmp_path / "l.npz", "--dead", 1, "-o", tmp_path / "s")
    run("rebalance", tmp_path / "s", tmp_path / "l.npz", "-o", tmp_path / "again")
    assert co.read_plan(tmp_path / "again").slots.tolist() == [[6, 0, 6, 6]] * 2


@pytest.mark.parametrize("gpus", [2, 3, 4, 5])
def test_a_plan_is_rebalanced_to_fewer_or_more_gpus(dead, tmp_path, gpus):
    plan, run = dead
    run("rebalance", plan, CASE / "l.npz", "--gpus", gpus, "-o", tmp_path / "n.json")
    new = co.read_plan(tmp_path / "n.json")
    assert (new.gpus, new.dead) == (gpus, ())
    assert new.slots.min() >= 1


def test_an_elastic_sequence_loses_nothing_and_hooks_plan_at_every_step():
    example = co.load_example("glm-5.2")
    loads = co.Loads(example.tokens[:8, :2])
    width = -(-loads.experts // 6) + 2

    def task(step: int, gpus: int) -> co.Problem:
        window = loads.select([2 * step, 2 * step + 1])
        return co.Problem(window, gpus, slots="uniform", replicas_per_layer=width * gpus - 256)

    plan = co.solve(task(0, 8), work_limit=2000).plan
    slots = vllm.CraftoptEplbPolicy.rebalance_experts(loads.tokens[0], 8 * width, 1, 1, 8)
    for step, gpus in enumerate([7, 6, 8], 1):
        found = co.rebalance(task(step, gpus), plan, move_price=1e-3, work_limit=2000)
        hosted = carried_out(plan.copies, found.migration())
        assert np.array_equal(hosted[:, :, :gpus], found.plan.copies)
        assert found.plan.replica_counts.min() >= 1
        plan = found.plan
        weight = loads.tokens[2 * step]
        old, slots = (
            slots,
            vllm.CraftoptEplbPolicy.rebalance_experts(weight, gpus * width, 1, 1, gpus, slots),
        )
        stay = min(old.shape[1], slots.shape[1])
        assert (old[:, :stay] == slots[:, :stay]).any()
        planned = co.Plan.from_phy2log(slots, gpus, 256)
        by_slot = np.take_along_axis(weight / planned.replica_counts, slots, 1)
        table = slots.reshape(2, gpus, width)
        moved = vllm_ascend.CraftoptEplbPolicy().rebalance_experts(
            table, by_slot.reshape(table.shape)
        )
        tables = [
            slots,
            sglang.rebalance_experts(weight, gpus * width, width, None, 1, "deepseek")[0],
            np.asarray(moved[2]).reshape(slots.shape),
        ]
        for hosts in (co.Plan.from_phy2log(each, gpus, 256) for each in tables):
            assert hosts.duplicates == 0
            assert hosts.replica_counts.min() >= 1
