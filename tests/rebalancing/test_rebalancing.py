"""Rebalancing: few moves, no broken rule, and steps that can be carried out."""

from __future__ import annotations

import functools
import itertools
import json
import re
import sys
import warnings

import numpy as np
import pytest
from files import measured
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference.rules import broken_rules
from reference.scores import slow_objective
from strategies import copies_arrays, problems, quiet

import craftopt as co
from craftopt.rebalancing import (
    Migration,
    arrange_slots,
    count_moves,
    plan_migration,
    rebalance,
    relabel,
)

# Annealing steps of a layer: enough to move copies, few enough for many tests.
WORK = 2000
OBJECTIVES = ("time", "balancedness")


def slow_moves(plan: co.Plan, old: co.Plan) -> int:
    pairs = zip(plan.copies.ravel().tolist(), old.copies.ravel().tolist(), strict=True)
    return sum(max(0, new - before) for new, before in pairs)


def of_gpus(plan: co.Plan, alive: np.ndarray) -> co.Plan:
    return co.Plan(plan.copies[:, :, alive], plan.layer_ids)


@st.composite
def tasks(draw: st.DrawFn, **sizes) -> tuple[co.Problem, co.Plan]:
    """Draw a problem and an old plan: of a method on other loads, or any there is."""
    problem = draw(problems(**sizes))
    loads = problem.loads
    if draw(st.booleans()):
        copies = draw(copies_arrays(loads.layers, loads.experts, problem.gpus))
        return problem, co.Plan(copies)
    seed = draw(st.integers(0, 9))
    other = co.Loads(np.random.default_rng(seed).lognormal(3, 1, loads.tokens.shape))
    budget = draw(st.sampled_from([problem.replicas, problem.replicas // 2, 0]))
    try:
        old = quiet(lambda: problem.replace(loads=other, replicas=budget))
    except co.InfeasibleError:
        old = problem.replace(loads=other)
    return problem, co.solve(old, draw(st.sampled_from(["nominal", "trivial"]))).plan


# --- plans ----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(tasks(), st.none() | st.integers(0, 12), st.integers(0, 3))
def test_plans_keep_every_rule_and_the_moves(task, max_moves, seed):
    problem, old = task
    found = quiet(lambda: rebalance(problem, old, max_moves, seed=seed, work_limit=WORK, workers=1))
    if not found.has_plan:
        assert found.status is co.Status.NOT_FOUND
        needed = int(re.search(r"need (\d+) moves", found.message)[1])
        enough = quiet(lambda: rebalance(problem, old, needed, work_limit=WORK, workers=1))
        assert needed > max_moves
        assert slow_moves(enough.plan, old) <= needed
        return
    checked = quiet(lambda: problem.replace(previous=old, max_moves=max_moves))
    assert broken_rules(found.plan, checked) == set()
    assert found.violations == ()
    assert found.moves == slow_moves(found.plan, old)
    planned_for = found.problem  # the windows of the last kind of traffic
    assert found.objective == pytest.approx(slow_objective(found.plan, planned_for), rel=1e-9)
    if broken_rules(old, problem) == set():
        before = slow_objective(old, planned_for)
        assert found.previous_objective == pytest.approx(before, rel=1e-9)
        if problem.objective == "time":
            assert found.objective <= before * (1 + 1e-9)
        else:
            assert found.objective >= before * (1 - 1e-9)


@settings(max_examples=40)
@given(tasks(), st.data())
def test_dead_gpus_host_nothing_and_no_expert_is_lost(task, data):
    problem, old = task
    alive = np.array(data.draw(st.lists(st.booleans(), min_size=old.gpus, max_size=old.gpus)))
    assume(alive.any())
    max_moves = data.draw(st.none() | st.integers(0, 40))
    try:
        found = quiet(
            lambda: rebalance(problem, old, max_moves, active=alive, work_limit=WORK, workers=1)
        )
    except co.InfeasibleError as error:  # too few slots left for the rule, or for the groups
        assert problem.slots == "uniform" or problem.expert_groups is not None, error  # noqa: PT017
        return
    except co.InputError as error:
        assert problem.expert_groups is not None, error  # noqa: PT017
        return
    assume(found.has_plan)
    assert not found.plan.copies[:, :, ~alive].any()
    assert found.plan.replica_counts.min() >= 1
    rest = of_gpus(found.plan, alive)
    assert broken_rules(rest, found.problem) == set()
    assert found.objective == pytest.approx(slow_objective(rest, found.problem), rel=1e-9)
    # Survivors get more slots only where theirs are too few for the experts, or the rule.
    slots = old.slots[:, alive]
    if problem.slots != "uniform" and not alive.all() and slots.sum() >= old.layers * old.experts:
        assert rest.slots.sum() <= slots.sum()
    carry_out(found.migration(), old, found.plan, alive)


def test_plans_are_the_same_bytes_for_any_workers_and_in_every_run():
    problem, old = drifted(objective="time")
    texts = {rebalance(problem, old, 40, workers=w).plan.to_json() for w in (1, 2, 3, 1)}
    assert len(texts) == 1
    assert rebalance(problem, old, 40, seed=1).plan.to_json() not in texts


# --- quality --------------------------------------------------------------------------------


@functools.cache
def drifted(windows: int = 6, **options) -> tuple[co.Problem, co.Plan]:
    """Make a problem of three layers, and a plan for other topics than its own."""
    example = co.load_example("deepseek-r1")
    before = co.Loads(example.tokens[:windows, ::20])
    problem = co.Problem(before, 32, replicas_per_layer=32, slots="uniform", **options)
    old = co.solve(problem, "fast", work_limit=50_000).plan
    return problem.replace(loads=co.Loads(example.tokens[24 : 24 + windows, ::20])), old


def best_by_moves(tokens: np.ndarray, old: np.ndarray, moves: int) -> float:
    """Find the least sum of the largest loads over all plans with so many moves, one layer.

    A move takes the slot of a copy: every set of (GPU, expert that goes, expert that comes).
    """
    gpus = old.shape[1]
    singles = [
        (gpu, gone, come)
        for gpu in range(gpus)
        for gone in np.flatnonzero(old[:, gpu])
        for come in np.flatnonzero(old[:, gpu] == 0)
    ]
    best = float((tokens / old.sum(axis=1) @ old).max(axis=1).sum())
    for count in range(1, moves + 1):
        chosen = itertools.combinations(singles, count)
        while block := list(itertools.islice(chosen, 20_000)):
            steps = np.array(block)
            copies = np.repeat(old[np.newaxis].astype(np.int8), len(block), axis=0)
            row = np.arange(len(block))
            for gpu, gone, come in steps.transpose(1, 2, 0):
                np.add.at(copies, (row, gone, gpu), -1)
                np.add.at(copies, (row, come, gpu), 1)
            fits = (copies.min(axis=(1, 2)) >= 0) & (copies.max(axis=(1, 2)) <= 1)
            fits &= copies.sum(axis=2).min(axis=1) >= 1
            copies = copies[fits]
            share = tokens / copies.sum(axis=2)[:, np.newaxis]
            loads = np.einsum("nwe,neg->nwg", share, copies)
            best = min(best, float(loads.max(axis=2).sum(axis=1).min(initial=np.inf)))
    return best


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(s, marks=pytest.mark.slow) for s in (2, 3))])
@pytest.mark.parametrize(("windows", "replicas"), [(1, 0), (1, 4), (3, 0), (3, 4)])
def test_two_moves_are_the_best_two_moves(windows, replicas, seed):
    rng = np.random.default_rng(seed)
    before, after = np.round(rng.lognormal(5, 1, (1, 32))), rng.lognormal(5, 1, (windows, 1, 32))
    after = np.round(after)
    problem = co.Problem(co.Loads(before), 4, replicas=replicas, slots="uniform")
    old = co.solve(problem, "nominal").plan
    problem = problem.replace(loads=co.Loads(after))
    found = rebalance(problem, old, max_moves=2)
    reached = co.evaluate(found.plan, problem.loads).max_load.sum()
    assert reached == pytest.approx(best_by_moves(after[:, 0], old.copies[0], 2), rel=1e-12)
    assert found.moves <= 2


@pytest.mark.parametrize("seed", [0, 1])
def test_two_moves_are_what_the_solver_proves(seed):
    pytest.importorskip("ortools")
    from craftopt_formulations import rebalancing as formulation  # noqa: PLC0415

    rng = np.random.default_rng(seed)
    before, after = (np.round(rng.lognormal(5, 1, (1, 32))) for _ in range(2))
    problem = co.Problem(co.Loads(before), 4, slots="uniform")
    old = co.solve(problem, "nominal").plan
    found = rebalance(problem.replace(loads=co.Loads(after)), old, max_moves=2)
    proven = formulation.build(after[0], old.copies[0], 0, 2).solve()
    assert proven.status == "optimal"
    reached = co.evaluate(found.plan, co.Loads(after)).max_load.sum()
    assert reached == pytest.approx(proven.objective, rel=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_few_moves_keep_most_of_the_gain(objective):
    problem, old = drifted(objective=objective)
    full = co.solve(problem, "fast")
    every = int(old.slots.sum())
    found = rebalance(problem, old, every // 4)
    gain = full.objective - found.previous_objective
    kept = {}
    for share in (0.05, 0.1, 0.25):
        ((_, reached),) = found.curve([int(every * share)])[-1:]
        kept[share] = (reached - found.previous_objective) / gain
    assert kept[0.05] > 0.5
    assert kept[0.1] > 0.65
    assert kept[0.25] > 0.8


def test_the_curve_rises_and_ends_where_the_plan_is():
    problem, old = drifted(objective="time")
    found = rebalance(problem, old, 60)
    curve = found.curve(range(0, 61, 6))
    assert curve[0] == (0, found.previous_objective)
    assert curve[-1] == (found.moves, found.objective)
    values = [value for _, value in curve]
    assert values == sorted(values, reverse=True)


def test_without_a_limit_it_is_as_good_as_planning_afresh():
    problem, old = drifted(objective="time")
    found = rebalance(problem, old)
    fresh = co.solve(problem, "fast")
    assert found.objective <= fresh.objective * (1 + 1e-12)
    assert found.moves < count_moves(fresh.plan, old)


def test_moves_go_to_the_layer_that_needs_them():
    problem, old = drifted(objective="time")
    tokens = problem.loads.tokens.copy()
    settled = co.Loads(co.load_example("deepseek-r1").tokens[:6, ::20])
    tokens[:, 0], tokens[:, 2] = settled.tokens[:, 0], settled.tokens[:, 2]
    found = rebalance(problem.replace(loads=co.Loads(tokens)), old, 40)
    anew = ((found.plan.copies > 0) & (old.copies == 0)).sum(axis=(1, 2))
    assert anew[1] > 4 * max(anew[0], anew[2])


def test_more_budget_is_used_as_far_as_moves_allow():
    problem, old = drifted(objective="time")
    for slots, moves, replicas in [("even", 30, 126), ("uniform", 50, 96), ("uniform", 96, 192)]:
        more = problem.replace(slots=slots, replicas=192)
        found = rebalance(more, old, moves, work_limit=20_000)
        assert found.plan.replicas == replicas
        assert found.moves <= moves
        assert broken_rules(found.plan, more.replace(previous=old, max_moves=moves)) == set()


# --- limits ---------------------------------------------------------------------------------


def test_bytes_and_seconds_are_kept():
    problem, old = drifted(objective="time")
    link = {"expert_bytes": 44e6, "link_bytes_per_second": 22e9}
    for limit in (0.0, 0.5e9, 2e9):
        found = rebalance(problem, old, max_bytes=limit, expert_bytes=44e6)
        assert found.moves * 44e6 <= limit
    assert found.moves > 40
    for limit in (0.0, 0.003, 0.01):
        found = rebalance(problem, old, max_seconds=limit, **link)
        assert found.migration().seconds(**link) <= limit
    assert found.moves > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_bytes": 1e9}, "needs expert_bytes"),
        ({"max_seconds": 1.0, "expert_bytes": 1e6}, "needs expert_bytes, link_bytes_per_second"),
        ({"max_bytes": -1, "expert_bytes": 1e6}, "at least 0"),
        ({"active": [True]}, "one bool per GPU"),
        ({"active": [False] * 32}, "GPUs are dead; at least one"),
        ({"max_moves": -1}, "max_moves=-1 is below 0"),
        ({"max_bytes": np.inf, "expert_bytes": 1e6}, "max_bytes=inf.*finite"),
        ({"move_price": np.inf}, "move_price=inf"),
        ({"move_price": -1.0}, "move_price=-1"),
        ({"work_limit": -1}, "work_limit=-1 is below 0"),
        ({"workers": 0}, "workers=0 is below 1"),
    ],
)
def test_wrong_limits_are_named(options, message):
    problem, old = drifted(objective="time")
    with pytest.raises(co.InputError, match=message):
        rebalance(problem, old, **options)


def test_plans_of_another_shape_are_refused():
    problem, old = drifted(objective="time")
    with pytest.raises(co.InputError, match=r"the plan has the layers 0 \(1\), the loads 0-2"):
        rebalance(problem, co.Plan(old.copies[:1]))
    with pytest.raises(co.InputError, match="a Problem and a Plan, not Plan and Problem"):
        rebalance(old, problem)


def test_plans_of_other_layers_are_refused_and_unnumbered_ones_too():
    table = [[0, 1], [1, 0]]
    plans = [co.Plan.from_phy2log(table, 2, layer_ids=ids) for ids in ([3, 4], [4, 3], None)]
    for compare in (co.count_moves, co.relabel, plan_migration):
        for one, other in itertools.permutations(plans, 2):
            with pytest.raises(co.InputError, match="and layers are matched by number"):
                compare(one, other)
    problem = co.Problem(co.Loads([[1, 2], [2, 1]], layer_ids=[3, 4]), 2)
    for plan in plans[1:]:
        with pytest.raises(co.InputError, match="and layers are matched by number"):
            rebalance(problem, plan)
    assert rebalance(problem, plans[0]).plan.layer_ids.tolist() == [3, 4]


def test_slots_are_arranged_after_whole_numbers_alone():
    plan = co.Plan.from_phy2log([[0, 1]], 2)
    with pytest.raises(co.InputError, match="type float64; pass whole numbers"):
        arrange_slots(plan, [[0.0, 1.0]])


def test_old_duplicates_are_replaced_as_moves():
    loads = co.Loads([[9, 1, 1, 1]])
    old = co.Plan.from_phy2log([[0, 0, 1, 2, 3, 0]], gpus=2)
    problem = co.Problem(loads, 2, replicas=2, slots="uniform")
    assert not rebalance(problem, old, 0).has_plan
    found = rebalance(problem, old, 1)
    assert found.moves == 1
    assert found.violations == ()


# --- relabelling ----------------------------------------------------------------------------


def stayed(plan: co.Plan, old: co.Plan) -> int:
    return int(np.minimum(plan.copies, old.copies).sum())


@settings(max_examples=60)
@given(st.data())
def test_relabelling_uniform_plans_is_optimal(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    nodes = data.draw(st.sampled_from([1, 2]))
    gpus, layers, experts = 4, data.draw(st.integers(1, 2)), 8
    within = data.draw(st.booleans()) and nodes > 1

    def some() -> co.Plan:
        table = np.stack([rng.permutation(experts) for _ in range(layers)])
        return co.Plan.from_phy2log(table, gpus, experts, nodes=nodes)

    new, old = some(), some()
    best = 0
    for layer in range(layers):
        orders = [
            order
            for order in itertools.permutations(range(gpus))
            if not within or order[0] // 2 == order[1] // 2
        ]
        best += max(
            int(np.minimum(new.copies[layer][:, order], old.copies[layer]).sum())
            for order in orders
        )
    found = relabel(new, old, within_nodes=within)
    assert stayed(found, old) == best


@settings(max_examples=60)
@given(tasks())
def test_relabelled_plans_keep_loads_rules_and_no_fewer_copies(task):
    problem, old = task
    new = quiet(lambda: co.solve(problem, "nominal").plan)
    found = relabel(new, old, within_nodes=problem.expert_groups is not None)
    assert broken_rules(found, problem) == broken_rules(new, problem)
    assert stayed(found, old) >= stayed(new, old)
    for layer in range(new.layers):
        columns = [sorted(map(bytes, plan.copies[layer].T)) for plan in (new, found)]
        assert columns[0] == columns[1]
    again = relabel(new, new, within_nodes=problem.expert_groups is not None)
    assert stayed(again, new) == int(new.slots.sum())


def test_slots_keep_the_experts_that_stay():
    old = np.array([[4, 1, 2, 0, 3, -1]])
    plan = co.Plan.from_phy2log([[1, 4, 5, 3, 0, 2]], gpus=2)
    table = arrange_slots(plan, old)
    assert table.tolist() == [[4, 1, 5, 0, 3, 2]]
    assert np.array_equal(co.Plan.from_phy2log(table, 2).copies, plan.copies)
    with pytest.raises(co.InputError, match="2 slots per GPU"):
        arrange_slots(plan, old[:, :4])
    with pytest.raises(co.InputError, match="a multiple of the plan's 2 GPUs"):
        arrange_slots(plan, old[:, :5])


# --- migration ------------------------------------------------------------------------------


def carry_out(
    steps: Migration, old: co.Plan, new: co.Plan, alive: np.ndarray | None = None
) -> None:
    """Carry a migration out step by step, in order, and check every promise on the way."""
    hosted = old.copies.astype(int)
    if alive is not None:
        hosted[:, :, ~alive] = 0
    slots = np.maximum(hosted.sum(axis=1), new.copies.sum(axis=1, dtype=int))
    served = hosted.sum(axis=2) > 0
    current, begun, dropping = -1, hosted.copy(), False
    received = 0
    for step in steps.steps:
        assert step.round >= current
        if step.round > current:
            over = np.maximum(hosted.sum(axis=1) - slots, 0)
            assert not over.any(), "staging slots are empty between rounds"
            current, begun, dropping = step.round, hosted.copy(), False
        if step.action == "receive":
            assert not dropping or step.round == 0, "receptions of a round come before its drops"
            received += 1
            if step.source is None:
                assert not begun[step.layer, step.expert].any()
            else:
                # Side by side: what is sent was there when the round began, and still is.
                assert begun[step.layer, step.expert, step.source] > 0
                assert hosted[step.layer, step.expert, step.source] > 0
            hosted[step.layer, step.expert, step.gpu] += 1
            served[step.layer, step.expert] = True
        else:
            dropping = True
            hosted[step.layer, step.expert, step.gpu] -= 1
        assert hosted.min() >= 0
        assert (hosted.sum(axis=2) > 0)[served].all(), "an expert has lost its last copy"
        over = np.maximum(hosted.sum(axis=1) - slots, 0).sum(axis=0)
        assert over.max() <= steps.staging, "a GPU has more in staging than it may"
    assert np.array_equal(hosted, new.copies)
    assert received == steps.moves
    if alive is None:
        assert received == slow_moves(new, old)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[co.Plan, co.Plan]:
    """Draw two plans of one shape: any, or permutations without a free slot."""
    layers, experts, gpus = (draw(st.integers(1, most)) for most in (3, 6, 5))
    if draw(st.booleans()):
        return tuple(co.Plan(draw(copies_arrays(layers, experts, gpus))) for _ in range(2))
    width = draw(st.integers(1, 4))
    experts = draw(st.integers(max(1, gpus * width // 2), gpus * width))
    tables = []
    for _ in range(2):
        rows = [
            draw(st.permutations([slot % experts for slot in range(gpus * width)]))
            for _ in range(layers)
        ]
        tables.append(co.Plan.from_phy2log(rows, gpus, experts))
    return tables[0], tables[1]


@settings(max_examples=200)
@given(pairs(), st.integers(1, 3))
def test_migrations_can_be_carried_out_with_one_staging_slot(pair, staging):
    old, new = pair
    steps = plan_migration(old, new, staging=staging)
    assert steps.staging <= staging
    carry_out(steps, old, new)


@settings(max_examples=100)
@given(pairs())
def test_without_staging_slots_none_is_used(pair):
    old, new = pair
    try:
        steps = plan_migration(old, new, staging=0)
    except co.InfeasibleError as error:
        assert "staging=1" in str(error)  # noqa: PT017
        return
    assert steps.staging == 0
    carry_out(steps, old, new)


def test_replicas_are_replaced_without_staging_and_last_copies_are_not():
    old = co.Plan.from_phy2log([[0, 1, 0, 2]], gpus=2)
    replaced = co.Plan.from_phy2log([[0, 1, 1, 2]], gpus=2)
    assert plan_migration(old, replaced, staging=0).rounds == 1
    exchanged = co.Plan.from_phy2log([[0, 2, 0, 1]], gpus=2)
    with pytest.raises(co.InfeasibleError, match="pass staging=1"):
        plan_migration(old, exchanged, staging=0)
    assert plan_migration(old, exchanged).staging == 1


def test_a_ring_of_last_copies_turns_in_one_round():
    gpus = 8
    old = co.Plan(np.eye(gpus, dtype=int)[np.newaxis])
    new = co.Plan(np.roll(np.eye(gpus, dtype=int), 1, axis=1)[np.newaxis])
    steps = plan_migration(old, new)
    assert (steps.rounds, steps.moves) == (1, gpus)
    assert steps.seconds(10, 5) == 2.0
    assert steps.traffic().tolist() == [[[1] * gpus] * 2]
    held = json.loads(steps.to_json())
    assert held["rounds"] == 1
    assert len(held["steps"]) == 2 * gpus


def test_experts_that_no_gpu_has_left_come_from_storage():
    old = co.Plan.from_phy2log([[0, 1, 2, 3]], gpus=2)
    problem = co.Problem(co.Loads([[1, 2, 3, 4]]), 2, slots="even")
    found = rebalance(problem, old, active=[True, False])
    assert found.previous_objective is None
    sources = [step.source for step in found.migration().steps if step.action == "receive"]
    assert sources == [None, None]
    with pytest.raises(co.InputError, match="uses GPU 1, which active= calls dead"):
        plan_migration(old, old, active=np.array([True, False]))
    with pytest.raises(co.InputError, match="one bool per GPU"):
        plan_migration(old, old, active=[0, 1])  # numbers of GPUs, by mistake
    with pytest.raises(co.InputError, match="staging=-1"):
        plan_migration(old, old, staging=-1)
    with pytest.raises(co.InputError, match="above 0"):
        plan_migration(old, old).seconds(0, 1)


# --- measured loads -------------------------------------------------------------------------


def test_relabelling_keeps_a_fifth_more_of_eplb_on_measured_windows():
    loads = co.read_loads(measured("glm52_five_domains"))
    loads = co.Loads(loads.tokens[:, ::25])
    plans = [
        co.solve(
            co.Problem(loads.select([window]), 64, replicas_per_layer=64, slots="uniform"), "eplb"
        ).plan
        for window in (0, 1)
    ]
    every = int(plans[0].slots.sum())
    before = count_moves(plans[1], plans[0]) / every
    after = count_moves(relabel(plans[1], plans[0]), plans[0]) / every
    assert before > 0.9
    assert after < before - 0.2


# --- the command line -----------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys):
    """Run ``craftopt rebalance`` in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        from craftopt import cli  # noqa: PLC0415

        monkeypatch.setattr(sys, "argv", ["craftopt", "rebalance", *map(str, arguments)])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return (stop.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def files(tmp_path):
    problem, old = drifted(objective="time")
    old.save(tmp_path / "old.json")
    np.savez(tmp_path / "loads.npz", counts=problem.loads.tokens)
    return tmp_path, problem, old


def test_the_command_writes_what_the_function_finds(run, files):
    folder, problem, old = files
    code, out, err = run(
        folder / "old.json", folder / "loads.npz", "--max-moves", 40, "--json",
        "-o", folder / "new.json", "--steps", folder / "steps.json", "--expert-bytes", 1e6,
    )  # fmt: skip
    assert code == 0, err
    said = json.loads(out)
    new = co.read_plan(folder / "new.json")
    expected = co.rebalance(problem, old, 40)
    assert np.array_equal(new.copies, expected.plan.copies)
    assert said["moves"] == expected.moves == count_moves(new, old)
    assert said["relative_time"] == pytest.approx(expected.objective)
    assert said["relative_time_before"] == pytest.approx(expected.previous_objective)
    assert said["bytes"] == expected.moves * 1e6
    assert said["curve"][-1][0] == expected.moves
    steps = json.loads((folder / "steps.json").read_text())["steps"]
    assert sum(step["action"] == "receive" for step in steps) == expected.moves


@pytest.fixture
def changed(tmp_path):
    """Write windows of the old plan's traffic and, last, two of another kind; tell these."""
    problem, old = drifted(objective="time")
    new = problem.loads.tokens[:2]
    before = co.load_example("deepseek-r1").tokens[:6, ::20]
    problem = problem.replace(loads=co.Loads(np.concatenate([before, new])))
    old.save(tmp_path / "old.json")
    np.savez(tmp_path / "loads.npz", counts=problem.loads.tokens)
    return tmp_path, problem, old, new


def test_windows_of_an_earlier_kind_of_traffic_are_left_out_unless_asked_for(changed):
    _, problem, old, new = changed
    found = rebalance(problem, old, 40, work_limit=WORK)
    alone = rebalance(problem.replace(loads=co.Loads(new)), old, 40, work_limit=WORK)
    assert np.array_equal(found.plan.copies, alone.plan.copies)
    assert found.objective == alone.objective
    assert "planned on 2 of 8 windows" in found.message
    every = rebalance(problem, old, 40, all_windows=True, work_limit=WORK)
    assert every.problem.loads == problem.loads
    assert "windows" not in every.message


def test_the_command_says_which_windows_it_planned_on_and_when_the_moves_pay(run, changed):
    folder, *_ = changed
    link = ("--expert-bytes", 1e6, "--link-bytes-per-second", 1e9)
    call = (folder / "old.json", folder / "loads.npz", "--max-moves", 40)
    _, out, _ = run(*call)
    assert "planned on 2 of 8 windows" in out
    assert "--all-windows uses them" in out
    _, out, _ = run(*call, "--all-windows")
    assert "planned on" not in out
    said = json.loads(run(*call, *link, "--json")[1])
    assert "planned on 2 of 8 windows" in said["note"]
    saved = said["relative_time_before"] / said["relative_time"] - 1
    assert said["seconds_until_it_pays"] * saved == pytest.approx(said["seconds"])


def test_the_command_relabels_and_leaves_dead_gpus_out(run, files):
    folder, problem, _ = files
    co.solve(problem, "eplb").plan.save(folder / "fresh.json")
    code, out, err = run(
        folder / "old.json", folder / "loads.npz", "--to", folder / "fresh.json", "--json"
    )
    assert code == 0, err
    said = json.loads(out)
    assert said["moves"] < said["moves_before_relabelling"]
    code, out, err = run(
        folder / "old.json", folder / "loads.npz", "--dead", "0,5", "-o", folder / "new.json"
    )
    assert code == 0, err
    assert "relative time" in out
    assert not co.read_plan(folder / "new.json").copies[:, :, [0, 5]].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dead", "40"], "the GPUs are 0..31"),
        (["--dead", "0", "--max-moves", "0"], "the rules need"),
        (["--max-seconds", "1"], "needs expert_bytes"),
        (["--to", "old.json", "--dead", "0"], "leave out --dead"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(run, files, monkeypatch, options, message):
    folder, _, _ = files
    monkeypatch.chdir(folder)
    code, _, err = run("old.json", "loads.npz", *options)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
