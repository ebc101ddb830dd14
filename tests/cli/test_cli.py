"""The command line: every command, its JSON, and one clear line for every mistake."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import craftopt as co
from craftopt import cli

WINDOWS, LAYERS, EXPERTS = 6, 3, 16


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    return np.round(rng.lognormal(sigma=0.8, size=(WINDOWS, LAYERS, EXPERTS)) * 1000)


@pytest.fixture(scope="module")
def loads_file(tokens, tmp_path_factory):
    file = tmp_path_factory.mktemp("loads") / "loads.npz"
    np.savez(file, counts=tokens, step_names=[f"step-{w}" for w in range(WINDOWS)])
    return str(file)


@pytest.fixture
def plan_file(run, loads_file, tmp_path):
    file = tmp_path / "plan.json"
    assert run("plan", loads_file, "--gpus", "4", "-o", file).code == 0
    return str(file)


class Finished:
    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(monkeypatch, capsys):
    """Run craftopt in this process, as its console script does."""

    def run(*arguments: object, stdin: bytes | None = None) -> Finished:
        monkeypatch.setattr(sys, "argv", ["craftopt", *map(str, arguments)])
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        # main() sends warnings to stderr; pytest's own rules must come back afterwards
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return Finished(code, *capsys.readouterr())

    return run


def shell(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run craftopt as a program of its own, all streams piped."""
    command = [sys.executable, "-m", "craftopt", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=120)


# --- what the commands do -------------------------------------------------------------------


def test_plan_writes_a_plan_that_keeps_the_rules(run, loads_file, tmp_path):
    file = tmp_path / "plan.json"
    done = run(
        "plan", loads_file, "--gpus", 4, "--replicas", 5, "--method", "placement", "-o", file
    )
    assert done.code == 0, done.err
    assert str(file) in done.out
    plan = co.read_plan(file)
    assert (plan.layers, plan.experts, plan.gpus) == (LAYERS, EXPERTS, 4)


def test_plan_json_agrees_with_the_library(run, loads_file):
    options = ("--gpus", 4, "--replicas-per-layer", 4, "--slots", "uniform", "--method", "eplb")
    printed = json.loads(run("plan", loads_file, *options, "--json").out)
    problem = co.Problem(co.read_loads(loads_file), gpus=4, replicas_per_layer=4, slots="uniform")
    result = co.solve(problem, "eplb")
    assert printed["replicas"] == result.plan.replicas == 4 * LAYERS
    assert printed["objective"] == result.objective
    assert printed["bound"] == result.bound
    assert printed["gap"] == result.gap
    assert printed["violations"] == list(result.violations)
    assert printed["status"] == result.status.value


def test_plan_without_a_plan_fails(run, loads_file):
    done = run("plan", loads_file, "--gpus", 4, "--method", "eplb-hierarchical", "--json")
    assert done.code != 0
    assert json.loads(done.out)["status"] == "not found"


def test_plan_rules_ignore_case(run, loads_file):
    done = run("plan", loads_file, "--gpus", 4, "--slots", "Even", "--objective", "TIME", "--json")
    assert done.code == 0, done.err


def quick_methods() -> list[str]:
    return [name for name in co.methods() if name != "exact"]


def test_compare_shows_planned_and_served_side_by_side(run, loads_file):
    done = run("compare", loads_file, "--gpus", 4, "--replicas", 5, "--holdout", "odd-even")
    assert done.code == 0, done.err
    for word in ("planned", "served", "gap", *quick_methods()):
        assert word in done.out
    assert "exact" not in done.out


def test_compare_runs_the_exact_method_where_all_are_asked_for(run, loads_file):
    done = run("compare", loads_file, "--gpus", 4, "--methods", "all", "--json")
    assert {row["method"] for row in json.loads(done.out)["rows"]} >= set(co.methods())


def test_compare_json_names_the_windows_of_both_sides(run, loads_file):
    done = run("compare", loads_file, "--gpus", 4, "--holdout", "first-half", "--json")
    printed = json.loads(done.out)
    assert printed["planned_windows"] == ["step-0", "step-1", "step-2"]
    assert printed["served_windows"] == ["step-3", "step-4", "step-5"]
    assert {row["method"] for row in printed["rows"]} >= set(quick_methods())
    assert all({"planned", "served", "gap"} <= set(row) for row in printed["rows"])


def test_compare_takes_chosen_methods_in_their_order(run, loads_file):
    done = run("compare", loads_file, "--gpus", 4, "--methods", "placement, trivial", "--json")
    assert [row["method"] for row in json.loads(done.out)["rows"]] == ["placement", "trivial"]


def test_evaluate_agrees_with_the_library(run, plan_file, loads_file):
    printed = json.loads(run("evaluate", plan_file, loads_file, "--json").out)
    scored = co.evaluate(co.read_plan(plan_file), co.read_loads(loads_file))
    assert printed["mean_balancedness"] == scored.mean_balancedness
    assert printed["relative_time"] == scored.relative_time
    assert printed["engine_metrics"] == scored.engine_metrics
    assert printed["balancedness"] == scored.balancedness.tolist()


def test_evaluate_prints_a_table(run, plan_file, loads_file):
    done = run("evaluate", plan_file, loads_file)
    assert done.code == 0, done.err
    assert "relative time" in done.out


def test_info_says_what_the_file_holds(run, loads_file, tokens):
    printed = json.loads(run("info", loads_file, "--json").out)
    assert (printed["windows"], printed["layers"], printed["experts"]) == tokens.shape
    assert printed["tokens"] == tokens.sum()
    assert printed["window_names"][0] == "step-0"
    assert printed["digest"] == co.read_loads(loads_file).digest
    assert f"{tokens.sum():,.0f}" in run("info", loads_file).out


@pytest.mark.filterwarnings("ignore::craftopt.errors.CraftoptWarning")
def test_examples_go_by_name_in_any_case(run):
    printed = json.loads(run("info", "DeepSeek-R1", "--json").out)
    assert (printed["layers"], printed["experts"]) == (58, 256)


def test_a_file_wins_over_an_example_of_its_name(run, loads_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glm-5.2").write_bytes(Path(loads_file).read_bytes())
    assert json.loads(run("info", "glm-5.2", "--json").out)["experts"] == EXPERTS


# --- stdin ----------------------------------------------------------------------------------


def test_loads_come_from_stdin(run, loads_file, tokens):
    data = json.dumps(tokens.tolist()).encode()
    assert json.loads(run("info", "-", "--json", stdin=data).out)["experts"] == EXPERTS
    for command in ("plan", "compare"):
        assert run(command, "-", "--gpus", 4, "--json", stdin=data).code == 0


def test_plan_or_loads_come_from_stdin_but_not_both(run, plan_file, loads_file):
    named = run("evaluate", plan_file, loads_file, "--json").out
    with open(plan_file, "rb") as plan, open(loads_file, "rb") as loads:  # noqa: PTH123
        assert run("evaluate", "-", loads_file, "--json", stdin=plan.read()).out == named
        assert run("evaluate", plan_file, "-", "--json", stdin=loads.read()).out == named
    both = run("evaluate", "-", "-", stdin=b"{}")
    assert both.code == 2
    assert "not both" in both.err


# --- mistakes -------------------------------------------------------------------------------

MISTAKES = {
    "missing file": (["plan", "nowhere.npz", "--gpus", 4], "nowhere.npz"),
    "missing file to evaluate": (["evaluate", "nowhere.json", "LOADS"], "nowhere.json"),
    "loads as a plan": (["evaluate", "LOADS", "LOADS"], "plan"),
    "plan as loads": (["plan", "PLAN", "--gpus", 4], "plan"),
    "nearest method": (["plan", "LOADS", "--gpus", 4, "--method", "epbl"], "'eplb'"),
    "nearest method to compare": (
        ["compare", "LOADS", "--gpus", 4, "--methods", "trivial,placment"],
        "'placement'",
    ),
    "gpus over nodes": (["plan", "LOADS", "--gpus", 60, "--nodes", 8], "gpus=60"),
    "no gpu": (["plan", "LOADS", "--gpus", 0], "gpus=0"),
    "negative budget": (["plan", "LOADS", "--gpus", 4, "--replicas", -1], "replicas=-1"),
    "both budgets": (
        ["plan", "LOADS", "--gpus", 4, "--replicas", 4, "--replicas-per-layer", 4],
        "pass one of them",
    ),
    "infeasible slots": (
        ["plan", "LOADS", "--gpus", 5, "--slots", "uniform"],
        "pass replicas=12",
    ),
    "unknown slots": (["plan", "LOADS", "--gpus", 4, "--slots", "odd"], "uniform, even, free"),
    "unknown objective": (["plan", "LOADS", "--gpus", 4, "--objective", "x"], "balancedness"),
    "unknown holdout": (["compare", "LOADS", "--gpus", 4, "--holdout", "even-odd"], "odd-even"),
    "no time": (["plan", "LOADS", "--gpus", 4, "--time-limit", 0], "time_limit=0"),
    "no folder": (["plan", "LOADS", "--gpus", 4, "-o", "no/such/plan.json"], "no/such/plan.json"),
    "no plan to write": (
        ["plan", "LOADS", "--gpus", 4, "--method", "eplb-hierarchical", "-o", "plan.json"],
        "expert_groups",
    ),
}


@pytest.mark.parametrize(("arguments", "says"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_end_with_one_clear_line(run, loads_file, plan_file, arguments, says):
    files = {"LOADS": loads_file, "PLAN": plan_file}
    done = run(*(files.get(argument, argument) for argument in arguments))
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("craftopt: ")
    assert done.err.count("\n") == 1
    assert says in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "LOADS"],
        ["plan", "LOADS", "--gpus", "four"],
        ["plan", "LOADS", "--gpus", "4.5"],
        ["plan", "LOADS", "--gpus", 4, "--replica"],
        ["plan"],
        ["plam"],
        ["info", "LOADS", "more"],
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_bad_usage_ends_with_one_clear_line(run, loads_file, arguments):
    done = run(*(loads_file if argument == "LOADS" else argument for argument in arguments))
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("craftopt: ")
    assert done.err.count("\n") == 1


def test_damaged_files_are_refused_by_name(run, tmp_path):
    file = tmp_path / "damaged.npz"
    file.write_bytes(b"PK\x03\x04 nothing")
    done = run("info", file)
    assert done.code == 2
    assert str(file) in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("command", [("plan", "{}", "--gpus", 2), ("info", "{}")])
def test_a_name_too_long_for_a_file_is_one_clear_error(run, command):
    done = run(*(str(word).format("x" * 5000) for word in command))
    assert done.code == 2
    assert "there is no file xxx" in done.err or "cannot read" in done.err
    assert done.err.count("\n") == 1


def test_a_failed_write_keeps_the_old_plan(run, loads_file, plan_file, tmp_path, monkeypatch):
    before = co.read_plan(plan_file)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    done = run("plan", loads_file, "--gpus", 2, "-o", plan_file)
    assert done.code == 2
    assert "No space left" in done.err
    assert co.read_plan(plan_file) == before
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


# --- as a program of its own ----------------------------------------------------------------


def test_pipes_get_no_progress_and_no_colour(loads_file):
    done = shell("compare", loads_file, "--gpus", 4, "--replicas", 5, "--holdout", "odd-even")
    assert done.returncode == 0
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"\r" not in done.stdout + done.stderr
    assert done.stderr == b""
    assert b"eplb-counts" in done.stdout


def test_binary_loads_come_through_a_pipe(loads_file):
    with open(loads_file, "rb") as loads:  # noqa: PTH123
        done = shell("info", "-", "--json", stdin=loads.read())
    assert json.loads(done.stdout)["windows"] == WINDOWS


def test_notes_go_to_stderr_in_one_line(loads_file):
    options = ("--gpus", 4, "--replicas", 2, "--slots", "uniform", "--json")
    done = shell("plan", loads_file, *options)
    assert done.returncode == 0
    assert json.loads(done.stdout)["replicas"] == 0
    assert done.stderr.startswith(b"note: replicas=2 buys no whole slot")
    assert done.stderr.count(b"\n") == 1


def test_a_closed_pipe_is_no_error(loads_file):
    command = f"{sys.executable} -m craftopt info {loads_file} | head -c 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, check=False
    )
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


def test_help_names_every_command():
    done = shell("--help")
    assert done.returncode == 0
    for command in ("plan", "compare", "evaluate", "info"):
        assert command.encode() in done.stdout


# --- what GPUs send ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory):
    """Write a trace, the loads of its windows, its pair counts, and a plan on 2 nodes."""
    folder = tmp_path_factory.mktemp("traffic")
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((3000, 2, 8)), axis=2)[:, :, :2]
    np.savez(folder / "trace.npz", topk_ids=ids)
    trace = co.Trace(ids)
    windows = trace.batches(1000)
    np.savez(folder / "loads.npz", counts=windows.tokens, step_names=list(windows.window_names))
    trace.coactivation().save(folder / "pairs.npz")
    co.Plan(np.eye(8, dtype=int)[[range(8)] * 2], nodes=4).save(folder / "plan.json")
    return lambda name: str(folder / f"{name}.npz" if name != "plan" else folder / "plan.json")


@pytest.mark.parametrize("source", ["trace", "coactivation"])
def test_evaluate_and_info_say_what_gpus_send(run, tokens_file, source):
    given = (f"--{source}", tokens_file("trace" if source == "trace" else "pairs"))
    plan, loads = tokens_file("plan"), tokens_file("loads")
    printed = run("evaluate", plan, loads, *given).out
    # Two of eight experts at random on 4 nodes of 2: the same node in 1 of 7 cases.
    scored = json.loads(run("evaluate", plan, loads, *given, "--json").out)["traffic"]
    assert scored["nodes_per_token"] == pytest.approx(2 - 1 / 7, abs=0.02)
    assert scored["estimated"] == (source == "coactivation")
    assert f"{scored['nodes_per_token']:.4f}" in printed
    assert f"{scored['critical_nodes']:.4f}" in printed
    held = json.loads(run("info", plan, *given, "--json").out)["traffic"]
    assert held["nodes_per_token"] == pytest.approx(scored["nodes_per_token"], abs=1e-3)
    assert "nodes per token" in run("info", plan, *given).out


def test_compare_says_what_gpus_send(run, tokens_file):
    arguments = ("compare", tokens_file("loads"), "--gpus", 8, "--nodes", 4)
    arguments += ("--methods", "trivial", "--holdout", "odd-even")
    given = (*arguments, "--trace", tokens_file("trace"))
    row = json.loads(run(*given, "--json").out)["rows"][0]
    for windows in ("planned", "served"):
        assert 1 < row[windows]["nodes_per_token"] <= row[windows]["critical_nodes"]
    assert row["planned"]["nodes_per_token"] != row["served"]["nodes_per_token"]
    assert "critical" in run(*given).out
    assert "not measured; pass a trace or pair counts" in run(*arguments).out


@pytest.mark.parametrize("source", ["trace", "coactivation"])
def test_plan_and_rebalance_weigh_traffic_as_the_library_does(run, tokens_file, source):
    given = (f"--{source}", tokens_file("trace" if source == "trace" else "pairs"))
    given += ("--traffic", 0.7, "--workers", 1)
    arguments = ("plan", tokens_file("loads"), "--gpus", 4, "--nodes", 2, *given)
    said = json.loads(run(*arguments, "--json").out)
    assert said["traffic_price"] == 0.7
    total = said["relative_time"] + 0.7 * said["traffic"]["critical_nodes"]
    assert said["objective"] == pytest.approx(total)
    printed = run(*arguments).out
    for text in ("0.7 mean GPU loads per node visited", "critical nodes", "GPUs per token"):
        assert text in printed
    moved = run("rebalance", tokens_file("plan"), tokens_file("loads"), *given)
    assert moved.code == 0, moved.err
    assert "critical nodes" in moved.out


def test_a_price_that_the_facts_make_nothing_says_why(run, tokens_file):
    arguments = ("plan", tokens_file("loads"), "--gpus", 8, "--coactivation", tokens_file("pairs"))
    auto = ("--traffic", "auto", "--model", "deepseek-r1", "--gpu")
    slow = ("--set", "exchange=low-latency")
    for more, reason in (
        ((*auto, "h100"), "all GPUs are in one node"),
        (("--nodes", 2, *auto, "nvl72"), "fast links join all 8 GPUs"),
        (("--nodes", 2, *auto, "h100", *slow), "sends a token once per expert"),
    ):
        assert reason in " ".join(run(*arguments, *more).out.split())
    assert "of the visits are remote" in run(*arguments, "--nodes", 2, *auto, "h100").out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--traffic", 0.7), "pass --coactivation"),
        (("--max-slowdown", 0.1), "pass --coactivation"),
        (("--traffic", 0.7, "--max-slowdown", 0.1, "--trace", "trace"), "pass one of them"),
        (("--traffic", 0.7, "--trace", "trace", "--coactivation", "pairs"), "pass one of them"),
        (("--traffic", "auto", "--trace", "trace"), "--model and --gpu"),
        (("--traffic", "auto", "--trace", "trace", "--model", "deepseek-r1"), "pass both"),
        (("--traffic", 0.7, "--trace", "trace", "--gpu", "h100"), "--gpu is for --traffic auto"),
        (("--traffic", "much", "--trace", "trace"), "such as 0.7, or auto"),
        (("--traffic", "-1", "--trace", "trace"), "such as 0.7, or auto"),
        (("--max-slowdown", "-1", "--trace", "trace"), "max_slowdown"),
        (("--dispatch", "metro"), "nearest-even"),
    ],
)
def test_options_of_traffic_that_do_not_go_together_end_with_one_line(
    run, tokens_file, options, says
):
    given = [tokens_file(text) if text in ("trace", "pairs") else text for text in options]
    done = run("plan", tokens_file("loads"), "--gpus", 8, "--nodes", 4, *given)
    assert done.code == 2
    assert says in done.err
    assert done.err.count("\n") == 1


def test_compare_holds_the_tokens_of_served_windows_out_of_planning(tokens_file):
    trace = co.read_trace(tokens_file("trace"))
    planned, served = co.holdout(trace.batches(500), "odd-even")
    problem = co.Problem(planned, 8, nodes=4, coactivation=trace, traffic=0.7)
    found = co.compare(problem, served, ["trivial"], trace=trace)
    assert found.problem.coactivation.tokens == 1500
    assert "served" in str(found.traffic_table())
    pairs = trace.coactivation()
    found = co.compare(problem.replace(coactivation=pairs), served, ["trivial"], coactivation=pairs)
    assert "cannot be held out" in str(found)


def test_what_is_not_measured_is_said(run, tokens_file):
    plan = tokens_file("plan")
    for arguments in (("evaluate", plan, tokens_file("loads")), ("info", plan)):
        assert "not measured; pass a trace or pair counts" in run(*arguments).out
        assert json.loads(run(*arguments, "--json").out)["traffic"] is None


def test_info_knows_pair_counts(run, tokens_file):
    facts = json.loads(run("info", tokens_file("pairs"), "--json").out)
    assert (facts["kind"], facts["top_k"], facts["tokens"]) == ("coactivation", 2, [3000, 3000])
    assert "standard error" in run("info", tokens_file("pairs")).out
    wrong = run("info", tokens_file("pairs"), "--trace", tokens_file("trace"))
    assert wrong.code == 2
    assert "are for plans" in wrong.err


def test_nodes_of_an_engines_map_can_be_given(run, tokens_file, tmp_path):
    np.savez(tmp_path / "map.npz", phy2log=[list(range(8))] * 2)
    arguments = ("evaluate", tmp_path / "map.npz", tokens_file("loads"), "--gpus", 8, "--json")
    arguments += ("--trace", tokens_file("trace"))
    alone, four = (json.loads(run(*arguments, *more).out) for more in ((), ("--nodes", 4)))
    assert alone["traffic"]["nodes_per_token"] == 1
    assert four["traffic"]["nodes_per_token"] > 1.8


# --- warm-up --------------------------------------------------------------------------------


def test_warm_up_compiles_the_methods_that_are_named(run):
    done = run("warm-up", "eplb", "NOMINAL", "--json")
    assert done.code == 0
    assert list(json.loads(done.out)) == ["eplb", "nominal"]
    assert run("warm-up", "eplb").out.startswith("eplb: ")


def test_warm_up_of_an_unknown_method_exits_2(run):
    done = run("warm-up", "eplbb")
    assert done.code == 2
    assert "did you mean 'eplb'" in done.err
