"""Advice on budgets: what it recommends, that its figures are its plans', and the command."""

from __future__ import annotations

import io
import json
import sys
import warnings

import numpy as np
import pytest
from rich.console import Console

import craftopt as co
from craftopt import cli
from craftopt.planners.windowed import WindowedSearch
from craftopt.reporting.plots import plot_budgets
from craftopt.reporting.serving import advice_tables
from craftopt.result import Options
from craftopt.rules import violations
from craftopt.serving import (
    Deployment,
    find_gpu,
    find_model,
    memory_for_copies,
    memory_of,
    profile_of,
    read_facts,
    service_of,
)
from craftopt.serving.deployment import TIE

LAYERS, EXPERTS, GPUS = 4, 16, 4


def model(**changes):
    """Qwen3-235B's layer, few of them, so that experts weigh and plans are quick."""
    shape = {"layers": LAYERS, "moe_layers": LAYERS, "experts": EXPERTS, "top_k": 4}
    return find_model("qwen3-235b").replace(**shape, vocabulary=1000, **changes)


def gpu(cache_tokens, kv_bytes=LAYERS * 2048):
    """An H200 that leaves so many tokens of cache beside a plan without replicas."""
    h200 = find_gpu("h200")
    taken = memory_for_copies(Deployment(model(), h200, GPUS), LAYERS * EXPERTS // GPUS).used
    return h200.replace(memory=taken + cache_tokens * kv_bytes)


def loads(skew, windows=8, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.lognormal(sigma=skew, size=(1, LAYERS, EXPERTS))
    tokens = tokens * rng.lognormal(sigma=skew / 4, size=(windows, LAYERS, EXPERTS))
    return co.Loads(np.round(tokens * 1000))


AMPLE, SCARCE = 2_000_000, 30_000


@pytest.fixture(scope="module")
def advice():
    return co.advise(loads(1.5), model(), gpu(AMPLE), GPUS)


def test_skewed_traffic_and_ample_memory_call_for_replicas(advice):
    assert advice.recommended.plan.replicas > 0
    assert advice.recommended.goodput > advice.candidates[-1].goodput * (1 + TIE)
    assert advice.ratio_to_eplb > 1


def test_even_traffic_calls_for_none():
    advised = co.advise(loads(0.0), model(), gpu(AMPLE), GPUS)
    assert advised.recommended.name == "none"
    assert advised.recommended.plan.replicas == 0
    assert any("no replica earns its memory" in reason for reason in advised.reasons)


def test_scarce_memory_calls_for_fewer(advice):
    """30,000 tokens of cache are 234 MiB, and a copy takes 36 MiB."""
    scarce = co.advise(loads(1.5), model(), gpu(SCARCE), GPUS)
    assert scarce.recommended.memory.replicas < advice.recommended.memory.replicas
    most = max(budget.copies_per_gpu for budget in scarce.curve)
    assert most < max(budget.copies_per_gpu for budget in advice.curve)
    held = scarce.recommended.served.concurrency * 4352
    assert 4352 <= held <= scarce.recommended.memory.kv_tokens


def test_plans_keep_their_rules_and_what_the_budget_says(advice):
    planned, _ = co.holdout(loads(1.5), "odd-even")
    for candidate in advice.candidates:
        plan = candidate.plan
        problem = co.Problem(planned, GPUS, replicas=plan.replicas, slots=candidate.slots)
        assert candidate.problem.to_dict() == problem.to_dict()
        assert not violations(plan, problem), candidate.name
        budget = next(
            budget
            for budget in advice.curve
            if budget.slots == candidate.slots and budget.replicas == plan.replicas
        )
        assert candidate.memory.replicas == pytest.approx(budget.memory)
        layers = plan.replica_counts.sum(axis=1) - EXPERTS
        assert tuple(layers.tolist()) == budget.allocation


def test_figures_are_those_of_the_plans(advice):
    planned, served = co.holdout(loads(1.5), "odd-even")
    for candidate in (*advice.candidates, advice.eplb):
        memory = memory_of(advice.deployment, candidate.plan)
        for windows, claimed, time in (
            (planned, candidate.planned, candidate.relative_time_planned),
            (served, candidate.served, candidate.relative_time_served),
        ):
            profile = profile_of(candidate.plan, windows)
            service = service_of(advice.deployment, profile, memory, advice.workload)
            assert claimed == service
            assert time == co.evaluate(candidate.plan, windows).relative_time


def test_eplb_is_what_engines_do_by_default(advice):
    planned, _ = co.holdout(loads(1.5), "odd-even")
    problem = co.Problem(planned, GPUS, replicas_per_layer=GPUS, slots="uniform")
    assert advice.eplb.plan == co.solve(problem, "eplb").plan


def test_the_answer_is_the_best_up_to_the_tie(advice):
    most = max(candidate.goodput for candidate in advice.candidates)
    assert advice.recommended.goodput >= most * (1 - TIE)
    assert advice.recommended is advice.candidates[0]
    others = [candidate.goodput for candidate in advice.candidates[1:]]
    assert others == sorted(others, reverse=True)
    assert advice.runner_up is advice.candidates[1]
    assert advice.loadable.loadable
    assert advice.loadable.goodput <= most
    assert {candidate.name for candidate in advice.candidates} >= {"none"}


def test_budgets_are_counted_in_copies_of_the_fullest_gpu(advice):
    per_copy = advice.deployment.expert_bytes
    for budget in advice.curve:
        assert budget.memory == budget.copies_per_gpu * per_copy
        assert budget.replicas <= budget.copies_per_gpu * GPUS
        assert sum(budget.allocation) == budget.replicas
    even = [budget for budget in advice.curve if budget.slots == "even"]
    assert [budget.copies_per_gpu for budget in even] == sorted(
        {budget.copies_per_gpu for budget in even}
    )
    # More budget cannot be worse for balance: the knapsack may leave it unused.
    times = [budget.relative_time for budget in even]
    assert times[-1] < times[0]


def test_every_budget_around_the_best_was_answered(advice):
    even = {
        budget.copies_per_gpu: budget.requests_per_second
        for budget in advice.curve
        if budget.slots == "even"
    }
    best = max(even, key=even.get)
    for neighbour in (best - 1, best + 1):
        assert neighbour in even or not 0 <= neighbour <= max(even)


def test_engines_are_told_about_plans_that_they_can_load(advice):
    extra = advice.loadable.plan.replicas // LAYERS
    assert f"--ep-num-redundant-experts {extra}" in advice.flags()["sglang"]
    assert f"num_slots: {EXPERTS + extra}" in advice.flags()["tensorrt-llm"]


def test_plans_that_no_engine_loads_are_said_to_be():
    advised = co.advise(loads(2.5), model(), gpu(200_000), GPUS, slots=["even"])
    assert {budget.slots for budget in advised.curve} == {"even"}
    assert np.ptp(advised.recommended.plan.slots) == 1
    assert not advised.recommended.loadable
    assert any("no engine can load" in reason for reason in advised.reasons)
    assert advised.loadable.name == "none"


def test_the_same_on_any_number_of_threads(advice):
    again = co.advise(loads(1.5), model(), gpu(AMPLE), GPUS, workers=1)
    assert json.dumps(again.to_dict()) == json.dumps(advice.to_dict())
    assert again.recommended.plan == advice.recommended.plan


def test_flips_hold_on_both_sides(advice):
    """At a flip's value the named candidate wins; the constant alone is changed."""
    checked = 0
    for row in advice.sensitivity:
        if row.constant not in ("reserve", "input_tokens", "output_tokens", "kv_dtype"):
            continue
        for text, name in row.flips:
            number = text.replace(",", "").replace(" GiB", "")
            value = text if row.constant == "kv_dtype" else float(number)
            if text.endswith("GiB"):
                value *= 2**30
            change = {row.constant: int(value) if row.constant.endswith("tokens") else value}
            of_workload = row.constant in ("input_tokens", "output_tokens")
            deployment = advice.deployment.replace(**({} if of_workload else change))
            workload = advice.workload.replace(**(change if of_workload else {}))
            scores = {}
            for candidate in advice.candidates:
                memory = memory_of(deployment, candidate.plan)
                fits = memory.concurrency(workload.context) > 0
                scores[candidate.name] = (
                    service_of(deployment, candidate.profile, memory, workload).requests_per_second
                    if fits
                    else 0.0
                )
            # Printed to three digits, so the tie is allowed a little more.
            assert scores[name] >= max(scores.values()) * (1 - TIE) * 0.99
            checked += 1
    assert checked or not any(row.flips for row in advice.sensitivity)


def test_drift_that_takes_the_gain_away_flips_to_none(advice):
    row = advice.sensitivity[-1]
    assert row.constant == "balance gain kept on live traffic"
    assert row.flips
    assert 0 <= float(row.flips[0][0].rstrip("%")) < 100


@pytest.mark.parametrize("prefill_elsewhere", [True, False])
def test_limits_on_waiting_are_kept(prefill_elsewhere):
    advised = co.advise(
        loads(1.5), model(), gpu(AMPLE), GPUS, tpot=0.02, ttft=5.0, input_tokens=500,
        prefill_elsewhere=prefill_elsewhere,
    )  # fmt: skip
    for candidate in advised.candidates:
        assert candidate.served.tpot <= 0.02 * 1.001
        assert candidate.served.ttft <= 5.0 * 1.001


def test_node_groups_are_kept():
    advised = co.advise(loads(1.5), model(), gpu(AMPLE), GPUS, nodes=2, expert_groups=4)
    planned, _ = co.holdout(loads(1.5), "odd-even")
    for candidate in advised.candidates:
        problem = co.Problem(
            planned, GPUS, nodes=2, expert_groups=4,
            replicas=candidate.plan.replicas, slots=candidate.slots,
        )  # fmt: skip
        assert not violations(candidate.plan, problem), candidate.name


def test_experts_that_the_gpus_do_not_divide():
    """16 experts on 3 GPUs, 4 layers: two slots are free in any layout."""
    advised = co.advise(loads(1.0), model(), gpu(AMPLE), 3)
    for candidate in advised.candidates:
        totals = candidate.plan.slots.sum(axis=0)
        assert totals.max() - totals.min() <= 1
    assert advised.candidates
    # 8 experts on 3 GPUs, 2 layers: a uniform layout takes more replicas than two per GPU.
    small = model().replace(layers=2, moe_layers=2, experts=8)
    tokens = loads(1.0).tokens[:, :2, :8]
    assert 7 in {budget.replicas // 2 for budget in co.advise(
        co.Loads(tokens), small, gpu(AMPLE), 3
    ).curve}  # fmt: skip


def test_given_allocations_are_planned_as_they_are():
    planned, _ = co.holdout(loads(1.0), "odd-even")
    problem = co.Problem(planned, GPUS, replicas=10, slots="even")
    copies = WindowedSearch(problem, Options(workers=1)).plan(np.array([4, 0, 1, 5]))
    plan = problem.plan(copies, "fast")
    assert (plan.replica_counts.sum(axis=1) - EXPERTS).tolist() == [4, 0, 1, 5]
    assert not violations(plan, problem)


# --- traffic ----------------------------------------------------------------------------------


def themes(tokens=4800, seed=0):
    """Draw tokens that choose four of the experts 0, 4, 8, 12, or 1, 5, 9, 13, ..., and one other.

    Themes are not equally frequent, and experts of a theme are 4 apart.
    """
    rng = np.random.default_rng(seed)
    chosen = np.empty((tokens, LAYERS, 4), dtype=int)
    for layer in range(LAYERS):
        theme = rng.choice(4, size=tokens, p=[0.32, 0.27, 0.22, 0.19])
        chosen[:, layer] = theme[:, np.newaxis] + 4 * np.arange(4)
        swapped = rng.random(tokens) < 0.3
        chosen[swapped, layer, 0] = (theme[swapped] + 1) % 4
    return co.Trace(chosen, EXPERTS)


@pytest.fixture(scope="module")
def traced():
    trace = themes()
    return co.advise(trace.batches(600), model(), gpu(AMPLE), GPUS, 2, coactivation=trace)


def said(advice, text):
    return any(text in reason for reason in advice.reasons)


def test_tokens_that_choose_experts_together_call_for_a_plan_for_traffic(traced):
    best, none = traced.recommended, next(c for c in traced.candidates if c.name == "none")
    assert best.price == traced.price.price == traced.deployment.traffic_price().price > 0
    assert best.profile.traffic.critical_nodes < 0.9 * none.profile.traffic.critical_nodes
    assert best.goodput > none.goodput * (1 + TIE)
    assert said(traced, "planning for traffic pays here")
    assert said(traced, f"costs {traced.price.price:.2f} mean GPU loads")
    assert said(traced, f"{best.name}: the exchange takes")


def test_figures_with_traffic_are_those_of_the_plans(traced):
    trace = themes()
    planned, served = co.holdout(trace.batches(600), "odd-even")
    for candidate in traced.candidates:
        for windows, claimed in ((planned, candidate.planned), (served, candidate.served)):
            scored = co.evaluate(candidate.plan, windows, candidate.dispatch, trace=trace)
            profile = profile_of(candidate.plan, windows, scored.traffic, candidate.dispatch)
            share = scored.max_load / windows.tokens.sum(axis=2)
            assert profile.fullest == pytest.approx(share)
            service = service_of(traced.deployment, profile, candidate.memory, traced.workload)
            assert claimed == service


def test_both_dispatches_are_weighed_where_there_are_replicas(traced):
    by_dispatch = {candidate.dispatch for candidate in traced.candidates}
    assert by_dispatch == {"even", "nearest-even"}
    for candidate in traced.candidates:
        assert candidate.dispatch == "even" or candidate.plan.replicas > 0
    assert said(traced, "serving tokens by their nearest copies")


def test_plans_never_saw_the_tokens_that_they_are_served(traced):
    """Other tokens in the served windows: the same plans, other figures.

    Which budgets are planned for traffic, too, their goodput on the served windows decides.
    """
    trace, other = themes(), themes(seed=1)
    window = np.arange(trace.tokens) // 600
    ids = np.where((window % 2 == 1)[:, np.newaxis, np.newaxis], trace.topk_ids, other.topk_ids)
    swapped = co.Trace(ids, EXPERTS)
    planned, _ = co.holdout(swapped.batches(600), "odd-even")
    assert (planned.tokens == co.holdout(trace.batches(600), "odd-even")[0].tokens).all()
    advised = co.advise(swapped.batches(600), model(), gpu(AMPLE), GPUS, 2, coactivation=swapped)
    before = {candidate.name: candidate for candidate in traced.candidates}
    alike = [candidate for candidate in advised.candidates if candidate.name in before]
    assert {c.name for c in alike} >= {name for name in before if ", traffic" not in name}
    assert any(candidate.price > 0 for candidate in alike)
    for candidate in alike:
        assert candidate.plan == before[candidate.name].plan
        assert candidate.planned == before[candidate.name].planned
    changed = [c for c in alike if c.served != before[c.name].served]
    assert changed


@pytest.mark.parametrize(
    ("nodes", "constants", "reason"),
    [
        (2, {"exchange": "low-latency"}, "once per expert"),
        (1, {}, "all GPUs are in one node"),
    ],
)
def test_where_traffic_has_no_price_only_balance_is_planned(nodes, constants, reason):
    trace = themes()
    advised = co.advise(
        trace.batches(1200), model(), gpu(AMPLE), GPUS, nodes, coactivation=trace, **constants
    )
    assert advised.price.price == 0
    assert {candidate.price for candidate in advised.candidates} == {0}
    assert said(advised, f"traffic has no price: {advised.price.reason}")
    assert reason in advised.price.reason


def test_without_tokens_the_assumption_is_said():
    advised = co.advise(themes().batches(1200), model(), gpu(AMPLE), GPUS, 2)
    assert advised.price is None
    # 4 choices on 2 nodes by chance: 1 - 1/16.
    assert said(advised, "every plan is taken to need 0.94 remote nodes per token")


def test_pair_counts_are_said_not_to_be_held_out():
    trace = themes()
    pairs = trace.coactivation()
    advised = co.advise(trace.batches(1200), model(), gpu(AMPLE), GPUS, 2, coactivation=pairs)
    assert advised.recommended.profile.traffic.estimated
    assert said(advised, "pair counts are not held out")


def test_loads_of_another_trace_are_refused():
    with pytest.raises(co.InputError, match="not windows of the trace"):
        co.advise(themes(seed=1).batches(1200), model(), gpu(AMPLE), GPUS, 2, coactivation=themes())


# --- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "qwen3-235b"}, "94 MoE layers of 128 experts, and here are 4 of 16"),
        ({"gpu": "h300"}, "did you mean"),
        ({"slots": ["odd"]}, "uniform, even, free"),
        ({"slots": "uniform"}, "slots='uniform'; pass a list"),
        ({"loads": [[1, 2]]}, "loads is a list"),
        ({"tpot": 1e-9}, "no plan keeps ttft=None and tpot=1e-09"),
        ({"ttft": 1e-9}, "no plan keeps ttft=1e-09 and tpot=None"),
        ({"kv_type": "fp8"}, "did you mean 'kv_dtype'"),
        ({"input_token": 9}, "did you mean 'input_tokens'"),
        ({"input_tokens": 0}, "input_tokens=0"),
        ({"holdout": "even-odd"}, "odd-even"),
        ({"gpu": gpu(4000)}, "a sequence takes 4352"),
    ],
)
def test_mistakes_are_named(changes, says):
    fixed = {"loads": loads(1.0), "model": model(), "gpu": gpu(AMPLE), "gpus": GPUS}
    with pytest.raises(co.InputError, match=says):
        co.advise(**{**fixed, **changes})


# --- tables, plot, command ------------------------------------------------------------------


def test_tables_and_plot_name_every_candidate(advice):
    page = io.StringIO()
    Console(file=page, width=200).print(advice_tables(advice))
    for word in [candidate.name for candidate in advice.candidates]:
        assert word in page.getvalue()
    for word in ("EPLB's default", "what would change the answer", "sglang"):
        assert word in page.getvalue()
    pytest.importorskip("matplotlib").use("Agg")
    ax = plot_budgets(advice)
    assert {text.get_text() for text in ax.texts} >= {advice.recommended.name, "none"}


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    np.savez(tmp_path / "loads.npz", counts=loads(1.5).tokens)
    (tmp_path / "facts.toml").write_text(
        '[model."Small"]\nlayers = 4\nmoe_layers = 4\nexperts = 16\ntop_k = 4\n'
        "hidden_width = 4096\nexpert_width = 1536\nshared_width = 0\ndense_width = 0\n"
        'vocabulary = 1000\nattention = { kind = "gqa", heads = 64, kv_heads = 4, '
        "head_width = 128 }\n"
    )

    def run(*arguments):
        words = ["craftopt", "advise", str(tmp_path / "loads.npz"), "--gpus", "4", *arguments]
        monkeypatch.setattr(sys, "argv", [*words, "--facts", str(tmp_path / "facts.toml")])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


def test_the_command_says_what_the_library_says(run, tmp_path):
    file = tmp_path / "plan.json"
    code, out, err = run(
        "--model", "SMALL", "--gpu", "H200", "--json", "-o", str(file),
        "--set", "kv_dtype=fp8", "--set", "compute-efficiency=0.4",
    )  # fmt: skip
    assert code == 0, err
    printed = json.loads(out)
    small = find_model("small", read_facts(tmp_path / "facts.toml")[0])
    advised = co.advise(
        loads(1.5), small, "h200", 4, kv_dtype="fp8", compute_efficiency=0.4
    )  # fmt: skip
    assert printed == json.loads(json.dumps(advised.to_dict()))
    assert printed["deployment"]["kv_dtype"] == "fp8"
    assert co.read_plan(file) == co.solve(advised.recommended.problem, "fast").plan


def test_the_plan_saved_has_the_steps_of_fast_not_of_a_comparison(run, tmp_path, monkeypatch):
    monkeypatch.setattr("craftopt.serving.advice.WORK", 0)
    file = tmp_path / "plan.json"
    code, out, err = run("--model", "small", "--gpu", "h200", "-o", str(file))
    assert code == 0, err
    small = find_model("small", read_facts(tmp_path / "facts.toml")[0])
    best = co.advise(loads(1.5), small, "h200", 4).recommended
    saved, planned = co.read_plan(file), best.problem.loads
    assert saved == co.solve(best.problem, "fast").plan
    assert saved.replicas == best.plan.replicas
    time = co.evaluate(saved, planned).relative_time
    assert time < best.relative_time_planned
    assert f"{time:.3f} (above {best.relative_time_planned:.3f})" in " ".join(out.split())


def test_the_command_prints_tables(run):
    code, out, err = run("--model", "small", "--gpu", "h200", "--slots", "uniform")
    assert code == 0, err
    for word in ("recommended", "requests/s", "EPLB's default", "what would change the answer"):
        assert word in out or word == "recommended"


def test_the_command_takes_a_trace_and_a_clusters_name(run, tmp_path):
    trace, file = themes(), tmp_path / "trace.npz"
    np.savez(file, topk_ids=trace.topk_ids)
    np.savez(tmp_path / "loads.npz", counts=trace.batches(1200).tokens)
    words = ("--model", "small", "--cluster", "h100-400g", "--nodes", "2", "--json")
    code, out, err = run(*words, "--trace", str(file))
    assert code == 0, err
    small = find_model("small", read_facts(tmp_path / "facts.toml")[0])
    advised = co.advise(trace.batches(1200), small, "h100", 4, 2, coactivation=trace)
    assert json.loads(out) == json.loads(json.dumps(advised.to_dict()))
    code, _, err = run(*words, "--trace", str(file), "--coactivation", str(file))
    assert code == 2
    assert "--trace and --coactivation are both given" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "smal", "--gpu", "h2000"], "'H20'"),
        (["--model", "smalll", "--gpu", "h200"], "'Small'"),
        (["--model", "small", "--gpu", "h200", "--set", "kv_dtype"], "NAME=VALUE"),
        (["--model", "small", "--gpu", "h200", "--set", "gpux=3"], "gpux"),
        (["--model", "small"], "--gpu"),
    ],
)
def test_mistakes_end_with_one_clear_line(run, arguments, says):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("craftopt: ")
    assert err.count("\n") == 1
    assert says in err
