"""Methods side by side: what is planned is never what is served unseen."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import craftopt as co
from craftopt.cli import app
from craftopt.windows import without_domain

WINDOWS = 7


def made(windows: int = WINDOWS, layers: int = 3, experts: int = 16, seed: int = 0) -> co.Loads:
    rng = np.random.default_rng(seed)
    tokens = np.round(rng.lognormal(sigma=0.9, size=(windows, layers, experts)) * 1000)
    return co.Loads(tokens, window_names=[f"step {window}" for window in range(windows)])


@pytest.fixture(scope="module")
def loads():
    return made()


# --- holdout --------------------------------------------------------------------------------


def test_odd_even_plans_on_odd_positions(loads):
    planned, served = co.holdout(loads, "odd-even")
    assert planned.window_names == ("step 1", "step 3", "step 5")
    assert served.window_names == ("step 0", "step 2", "step 4", "step 6")


def test_first_half_plans_on_the_smaller_half_of_an_odd_number(loads):
    planned, served = co.holdout(loads, "first-half")
    assert planned.window_names == ("step 0", "step 1", "step 2")
    assert served.window_names == ("step 3", "step 4", "step 5", "step 6")


def test_second_half_is_first_half_the_other_way_round(loads):
    planned, served = co.holdout(loads, "first-half")
    assert co.holdout(loads, "second-half") == (served, planned)


DOMAINS = ("chat/00", "chat/01", "code/00", "law", "chat/02", "code/01", "law")


@pytest.fixture(scope="module")
def mixed():
    return co.Loads(made().tokens, window_names=DOMAINS)


@pytest.mark.parametrize(
    ("domain", "positions"), [("chat", [0, 1, 4]), ("code", [2, 5]), ("law", [3, 6])]
)
def test_a_domain_is_the_name_up_to_the_first_slash(mixed, domain, positions):
    planned, served = co.holdout(mixed, f"domain:{domain}")
    assert np.array_equal(served.tokens, mixed.tokens[positions])
    assert planned.windows + served.windows == mixed.windows


@pytest.mark.parametrize("domain", ["cha", "chat/00", "", "Chat"])
def test_an_unknown_domain_is_named_with_those_there_are(mixed, domain):
    with pytest.raises(co.InputError, match=r"chat, code, law") as caught:
        co.holdout(mixed, f"domain:{domain}")
    assert repr(domain) in str(caught.value)


def test_the_only_domain_cannot_be_left_out(mixed):
    chat = mixed.select([0, 1, 4])
    for leave_out in (
        lambda: co.holdout(chat, "domain:chat"),
        lambda: co.compare_domains(co.Problem(chat, gpus=4), ["trivial"]),
    ):
        with pytest.raises(co.InputError, match=r"'chat'.*two or more"):
            leave_out()


@pytest.mark.parametrize(
    "text", ["step 2\nstep 5\n", "\n  step 5 \r\nstep 2", "step 2\n" * 2 + "step 5"]
)
def test_a_file_names_the_windows_to_serve(loads, tmp_path, text):
    file = tmp_path / "served.txt"
    file.write_bytes(text.encode())
    planned, served = co.holdout(loads, str(file))
    assert served.window_names == ("step 2", "step 5")
    assert planned.window_names == ("step 0", "step 1", "step 3", "step 4", "step 6")
    assert np.array_equal(served.tokens, loads.tokens[[2, 5]])


@given(
    windows=st.integers(2, 9),
    rule=st.sampled_from(["odd-even", "first-half", "second-half", "domain:step 1", "file"]),
    data=st.data(),
)
@settings(deadline=None)
def test_every_window_is_planned_or_served_never_both(windows, rule, data, tmp_path_factory):
    loads = made(windows)
    if rule == "file":
        most = windows - 1
        names = data.draw(
            st.lists(st.sampled_from(loads.window_names), min_size=1, max_size=most, unique=True)
        )
        file = tmp_path_factory.mktemp("holdout") / "served.txt"
        file.write_text("\n".join(names), encoding="utf-8")
        rule = str(file)
    planned, served = co.holdout(loads, rule)
    assert not set(planned.window_names) & set(served.window_names)
    assert set(planned.window_names) | set(served.window_names) == set(loads.window_names)


@pytest.mark.parametrize("rule", ["even-odd", "", "no/such/file", "."])
def test_an_unknown_rule_is_named_with_those_there_are(loads, rule):
    with pytest.raises(co.InputError, match=r"odd-even.*first-half.*file") as caught:
        co.holdout(loads, rule)
    assert repr(rule) in str(caught.value)


def test_a_file_that_is_no_text_is_no_rule(loads, tmp_path):
    file = tmp_path / "loads.npz"
    file.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(co.InputError, match="neither"):
        co.holdout(loads, str(file))


def test_a_name_that_no_window_has_is_named(loads, tmp_path):
    file = tmp_path / "served.txt"
    file.write_text("step 1\nstep 70\n", encoding="utf-8")
    with pytest.raises(co.InputError, match="'step 70'"):
        co.holdout(loads, str(file))


@pytest.mark.parametrize("text", ["", "\n\n", "\n".join(f"step {w}" for w in range(WINDOWS))])
def test_a_file_that_leaves_a_side_empty_is_refused(loads, tmp_path, text):
    file = tmp_path / "served.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(co.InputError, match="at least one"):
        co.holdout(loads, str(file))


@pytest.mark.parametrize("rule", ["odd-even", "first-half", "second-half", "domain:step 0"])
def test_one_window_cannot_be_held_out(rule):
    with pytest.raises(co.InputError, match="at least 2"):
        co.holdout(made(windows=1), rule)


# --- blend ----------------------------------------------------------------------------------


def shares_of(blended, loads):
    """Recover how much of each window a blend holds, by least squares."""
    flat = loads.tokens.reshape(loads.windows, -1)
    parts = (flat / flat.sum(axis=1, keepdims=True)).T
    mixed = blended.tokens.reshape(blended.windows, -1)
    return np.linalg.lstsq(parts, (mixed / mixed.sum(axis=1, keepdims=True)).T, rcond=None)[0].T


@pytest.mark.parametrize("alpha", [0.01, 0.3, 1, 50, 1000])
def test_blends_are_mixtures_of_the_windows(loads, alpha):
    blended = co.blend(loads, alpha, windows=40)
    assert (blended.windows, blended.layers, blended.experts) == (40, 3, 16)
    tokens = blended.tokens.sum(axis=(1, 2))
    np.testing.assert_allclose(tokens, loads.tokens.sum() / loads.windows)
    shares = shares_of(blended, loads)
    assert shares.min() > -1e-9
    np.testing.assert_allclose(shares.sum(axis=1), 1)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_are_dirichlet_and_drift(loads, alpha):
    """Mean and variance of Dirichlet(alpha), and steps far below those between strangers."""
    shares = shares_of(co.blend(loads, alpha, windows=20_000), loads)
    parts = loads.windows
    variance = (parts - 1) / parts**2 / (parts * alpha + 1)
    np.testing.assert_allclose(shares.mean(axis=0), 1 / parts, rtol=0.2)
    np.testing.assert_allclose(shares.var(axis=0).mean(), variance, rtol=0.1)
    step = np.abs(np.diff(shares, axis=0)).mean()
    stranger = np.abs(shares[1000:] - shares[:-1000]).mean()
    assert step < 0.4 * stranger


def test_a_seed_makes_the_same_blends(loads):
    assert co.blend(loads, 0.5, seed=1) == co.blend(loads, 0.5, seed=1)
    assert co.blend(loads, 0.5, seed=1) != co.blend(loads, 0.5, seed=2)


@pytest.mark.parametrize("alpha", [0, -1, 0.001, 1e4, float("nan"), float("inf")])
def test_alpha_out_of_range_is_refused(loads, alpha):
    with pytest.raises(co.InputError, match=f"alpha={alpha}"):
        co.blend(loads, alpha)


def test_blends_need_a_window_and_tokens_in_each(loads):
    with pytest.raises(co.InputError, match="windows=0"):
        co.blend(loads, 1.0, windows=0)
    idle = co.Loads([[[1, 2]], [[0, 0]]], window_names=["busy", "idle"])
    with pytest.raises(co.InputError, match="'idle'"):
        co.blend(idle, 1.0)


# --- compare --------------------------------------------------------------------------------


def test_no_row_depends_on_the_served_windows(loads):
    """Whatever is served, plans and planned scores stay the same."""
    planned, served = co.holdout(loads, "odd-even")
    problem = co.Problem(planned, gpus=4, replicas=9)
    other = co.Loads(served.tokens[:, :, ::-1], window_names=served.window_names)
    first, second, alone = (co.compare(problem, seen) for seen in (served, other, None))
    for rows in zip(first.rows, second.rows, alone.rows, strict=True):
        assert len({row.method for row in rows}) == 1
        assert len({row.planned for row in rows}) == 1
        assert len({row.gap for row in rows}) == 1
    assert first.bound == second.bound == alone.bound
    assert [row.served for row in first.rows] != [row.served for row in second.rows]
    assert {row.served for row in alone.rows} == {None}


def test_scores_are_those_of_evaluate(loads):
    planned, served = co.holdout(loads, "odd-even")
    problem = co.Problem(planned, gpus=4, replicas_per_layer=4, slots="uniform")
    for row in co.compare(problem, served, ["trivial", "placement", "eplb"]).rows:
        plan = co.solve(problem, row.method).plan
        for scores, windows in ((row.planned, planned), (row.served, served)):
            evaluation = co.evaluate(plan, windows)
            assert scores.balancedness == evaluation.mean_balancedness
            assert scores.relative_time == evaluation.relative_time
            assert scores.worst_layer == evaluation.worst_layer
        assert row.replicas == plan.replicas
        assert row.slots_per_gpu == (plan.slots.sum(0).min(), plan.slots.sum(0).max())
        assert row.duplicates == plan.duplicates


def test_all_methods_stand_in_their_order(loads):
    rows = co.compare(co.Problem(loads, gpus=4, replicas_per_layer=4)).rows
    quick = tuple(name for name in co.methods() if name != "exact")  # it may take minutes
    assert tuple(row.method for row in rows) == quick


def test_engines_default_is_the_last_row_where_the_budget_is_below_it(loads):
    problem = co.Problem(loads, gpus=4, replicas=5)
    rows = co.compare(problem, names=["trivial", "eplb"]).rows
    assert [row.method for row in rows] == ["trivial", "eplb", "eplb (+4 per layer)"]
    reference = rows[-1]
    assert reference.replicas == 4 * loads.layers > problem.replicas
    assert reference.gap is None
    assert "over the budget" in reference.note


def test_engines_default_fills_whole_slots():
    """18 experts on 4 GPUs: 5 slots each hold them, so engines add 2 per layer."""
    rows = co.compare(co.Problem(made(experts=18), gpus=4, slots="even"), names=["eplb"]).rows
    assert [row.method for row in rows] == ["eplb", "eplb (+2 per layer)"]
    assert rows[-1].slots_per_gpu == (15, 15)


@pytest.mark.parametrize(
    ("budget", "names"),
    [(12, ["eplb"]), (13, ["eplb"]), (5, ["trivial", "placement"])],
    ids=["budget reaches it", "budget is above it", "eplb is not compared"],
)
def test_no_reference_row_otherwise(loads, budget, names):
    rows = co.compare(co.Problem(loads, gpus=4, replicas=budget), names=names).rows
    assert [row.method for row in rows] == names


def test_with_groups_the_reference_is_hierarchical(loads):
    problem = co.Problem(loads, gpus=4, nodes=2, expert_groups=4)
    rows = co.compare(problem, names=["eplb", "eplb-hierarchical"]).rows
    assert rows[-1].method == "eplb-hierarchical (+4 per layer)"
    assert rows[0].planned is None
    assert "groups" in rows[0].note


def test_plans_that_break_rules_have_no_gap():
    """EPLB puts both copies of the hottest expert on one GPU here."""
    loads = co.Loads([[600, 560, 120, 120, 20, 10, 10, 10]])
    problem = co.Problem(loads, gpus=8, replicas=8, slots="uniform")
    broken, kept = co.compare(problem, names=["eplb", "trivial"]).rows
    assert broken.duplicates > 0
    assert broken.gap is None
    assert broken.planned is not None
    assert kept.duplicates == 0
    assert kept.gap >= 0


def test_the_gap_is_to_the_bound_on_the_planned_windows(loads):
    for objective in ("time", "balancedness"):
        problem = co.Problem(loads, gpus=4, replicas=5, slots="even", objective=objective)
        result = co.compare(problem, names=["trivial", "placement"])
        for row in result.rows:
            if objective == "time":
                gap = row.planned.relative_time / result.bound - 1
            else:
                gap = result.bound / row.planned.balancedness - 1
            assert row.gap == pytest.approx(gap)


def test_methods_without_a_plan_keep_a_row_that_says_why(loads):
    (row,) = co.compare(co.Problem(loads, gpus=4), names=["eplb-hierarchical"]).rows
    assert row.status == "not found"
    assert (row.planned, row.served, row.gap, row.replicas, row.duplicates) == (None,) * 5
    assert "expert_groups" in row.note


def test_the_bound_stands_even_where_no_method_has_a_plan(loads):
    result = co.compare(co.Problem(loads, gpus=4), names=["eplb-hierarchical"])
    assert result.bound >= 1


def test_an_unknown_method_stops_before_anything_is_planned(loads):
    seen: list[str] = []
    with pytest.raises(co.InputError, match="'placement'"):
        co.compare(co.Problem(loads, gpus=4), names=["eplb", "placment"], progress=seen.append)
    assert seen == []


def test_progress_hears_every_row_before_it_is_planned(loads):
    seen: list[str] = []
    result = co.compare(co.Problem(loads, gpus=4, replicas=1), progress=seen.append)
    assert seen == [row.method for row in result.rows]


def test_a_comparison_is_plain_values(loads):
    planned, served = co.holdout(loads, "first-half")
    result = co.compare(co.Problem(planned, gpus=4, replicas=5), served)
    document = json.loads(json.dumps(result.to_dict()))
    assert document["planned_windows"] == list(planned.window_names)
    assert document["served_windows"] == list(served.window_names)
    assert [row["method"] for row in document["rows"]] == [row.method for row in result.rows]


def test_served_loads_of_another_model_are_refused(loads):
    with pytest.raises(co.InputError, match="same model"):
        co.compare(co.Problem(loads, gpus=4), made(experts=8), ["trivial"])


def test_dispatch_changes_scores_and_nothing_else(loads):
    planned, served = co.holdout(loads, "odd-even")
    problem = co.Problem(planned, gpus=4, replicas_per_layer=4, slots="uniform")
    even = co.compare(problem, served, ["trivial", "eplb"])
    best = co.compare(problem, served, ["trivial", "eplb"], dispatch="lp")
    assert (even.dispatch, best.dispatch) == ("even", "lp")
    assert best.to_dict()["dispatch"] == "lp"
    assert even.bound == best.bound
    for row, other in zip(even.rows, best.rows, strict=True):
        assert (row.method, row.gap, row.replicas) == (other.method, other.gap, other.replicas)
        plan = co.solve(problem, row.method).plan
        for scores, windows in ((other.planned, planned), (other.served, served)):
            assert scores.balancedness == co.evaluate(plan, windows, "lp").mean_balancedness
    assert best.rows[1].served.balancedness > even.rows[1].served.balancedness


def test_an_unknown_dispatch_stops_before_anything_is_planned(loads):
    seen: list[str] = []
    with pytest.raises(co.InputError, match=r"'fair'.*even, hash, "):
        co.compare(co.Problem(loads, gpus=4), dispatch="fair", progress=seen.append)
    assert seen == []


def test_every_domain_is_left_out_in_turn(mixed):
    problem = co.Problem(mixed, gpus=4, replicas=9)
    seen: list[str] = []
    results = co.compare_domains(problem, ["trivial", "placement"], progress=seen.append)
    assert list(results) == ["chat", "code", "law"]
    assert seen == ["without chat", "without code", "without law"]
    for domain, result in results.items():
        planned, served = co.holdout(mixed, f"domain:{domain}")
        alone = co.compare(problem.replace(loads=planned), served, ["trivial", "placement"])
        assert (result.problem.loads, result.served) == (planned, served)
        assert [row.served for row in result.rows] == [row.served for row in alone.rows]


# --- on the command line --------------------------------------------------------------------


@pytest.fixture
def file(mixed, tmp_path):
    path = tmp_path / "loads.npz"
    np.savez(path, counts=mixed.tokens, step_names=mixed.window_names)
    return str(path)


def printed(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None:
        raise done.exception
    return done.output


def test_compare_prints_a_column_per_domain_and_the_mean(file, mixed):
    options = ("compare", file, "--gpus", 4, "--methods", "trivial,placement")
    table = printed(*options, "--holdout", "domains")
    results = co.compare_domains(co.Problem(mixed, gpus=4), ["trivial", "placement"])
    for word in ("chat", "code", "law", "mean"):
        assert word in table
    for index in range(2):
        scores = [result.rows[index].served.balancedness for result in results.values()]
        line = " ".join(f"{score:.4f}" for score in (*scores, np.mean(scores)))
        assert line in " ".join(table.split())
    document = json.loads(printed(*options, "--holdout", "domains", "--json"))
    assert list(document) == list(results)
    for domain, result in results.items():
        expected = [row["served"] for row in result.to_dict()["rows"]]
        assert [row["served"] for row in document[domain]["rows"]] == expected


def test_compare_serves_blends_of_the_windows_held_out(file, mixed):
    options = ("compare", file, "--gpus", 4, "--methods", "trivial", "--json")
    document = json.loads(
        printed(*options, "--holdout", "domain:chat", "--blend", 0.5, "--seed", 3)
    )
    _, served = co.holdout(mixed, "domain:chat")
    blended = co.blend(served, 0.5, seed=3)
    assert document["served_windows"] == list(blended.window_names)
    assert document["planned_windows"] == ["code/00", "law", "code/01", "law"]
    plan = co.solve(co.Problem(mixed.select([2, 3, 5, 6]), gpus=4), "trivial").plan
    score = co.evaluate(plan, blended).mean_balancedness
    assert document["rows"][0]["served"]["balancedness"] == score


@pytest.mark.parametrize("holdout", [(), ("--holdout", "domains")])
def test_blend_needs_one_holdout(file, holdout):
    with pytest.raises(co.InputError, match=r"--blend.*--holdout"):
        printed("compare", file, "--gpus", 4, "--blend", 0.5, *holdout)


def test_dispatch_is_an_option_of_evaluate_and_compare(file, mixed, tmp_path):
    plan = co.solve(co.Problem(mixed, gpus=4, replicas=12), "placement").plan
    plan = co.Plan(np.maximum(plan.copies, plan.copies[:, ::-1]))
    plan.save(tmp_path / "plan.json")
    for dispatch in ("even", "LP"):
        scored = json.loads(
            printed("evaluate", tmp_path / "plan.json", file, "--dispatch", dispatch, "--json")
        )
        expected = co.evaluate(plan, mixed, dispatch.lower()).mean_balancedness
        assert scored["mean_balancedness"] == expected
    options = ("compare", file, "--gpus", 4, "--methods", "trivial", "--dispatch", "lp")
    assert json.loads(printed(*options, "--json"))["dispatch"] == "lp"
    assert "dispatch lp" in " ".join(printed(*options).split())
    with pytest.raises(co.InputError, match="fair"):
        printed("evaluate", tmp_path / "plan.json", file, "--dispatch", "fair")


def test_a_foreign_domain_and_windows_that_may_hold_it_are_kept_apart(mixed):
    names = ["chat/0", "mixed/1", *mixed.window_names[2:]]
    others, foreign = without_domain(
        co.Loads(mixed.tokens, mixed.layer_ids, names), names[2].split("/")[0]
    )
    kept = {*others.window_names, *foreign.window_names}
    assert kept == set(names) - {"mixed/1"}
    assert {name.split("/")[0] for name in foreign.window_names} == {names[2].split("/")[0]}


def test_foreign_windows_are_scored_by_the_same_plan(mixed):
    others, foreign = without_domain(mixed, "law")
    planned, served = co.holdout(others, "odd-even")
    problem = co.Problem(planned, gpus=4, replicas=9)
    result = co.compare(problem, served, ["placement"], foreign=foreign)
    plan = co.solve(problem, "placement").plan
    row = result.rows[0]
    assert row.foreign.relative_time == co.evaluate(plan, foreign).relative_time
    assert row.served.relative_time == co.evaluate(plan, served).relative_time
    assert "foreign: " in str(result)
    assert result.to_dict()["foreign_windows"] == list(foreign.window_names)


def test_compare_prints_foreign_and_traffic_of_a_measured_example():
    table = printed(
        "compare", "gpt-oss-20b", "--batch", 2048, "--trace", "gpt-oss-20b", "--gpus", 8, "--nodes",
        2, "--methods", "trivial", "--holdout", "odd-even", "--foreign", "sorry_bench_base",
    )  # fmt: skip
    assert "foreign: 2 windows of a domain that no plan has seen" in table
    assert table.count(" foreign") == 4  # balanced, time, nodes per token, critical
    assert "standard error 0.006. Critical: received" in table


@pytest.mark.filterwarnings("ignore::craftopt.errors.CraftoptWarning")
def test_info_says_what_is_synthetic_and_how_many_windows_are_enough():
    table = printed("info", "qwen3-235b")
    for text in ("an example, synthetic", "enough windows", "looks made up"):
        assert text in table
    assert "looks made up" not in printed("info", "gpt-oss-20b")
    with pytest.warns(co.CraftoptWarning, match="synthetic example, not measured"):
        printed("info", "qwen3-235b")


def test_eplb_is_planned_on_equal_windows_too_where_each_counts_once():
    small, large = [[10, 1, 1, 10]], [[100, 900, 100, 100]]
    loads = co.Loads([small, small, small, large])
    problem = co.Problem(loads, gpus=2, slots="uniform", objective="balancedness")
    labels = [row.method for row in co.compare(problem, names=["eplb", "placement"]).rows]
    assert labels[:3] == ["eplb", "placement", "eplb (equal windows)"]
    rows = {row.method: row for row in co.compare(problem, names=["eplb"]).rows}
    equal = rows["eplb (equal windows)"]
    assert equal.planned.balancedness > rows["eplb"].planned.balancedness
    assert "equal tokens" in equal.note
    assert equal.gap is not None
    scaled = problem.replace(loads=co.Loads([small, small, small, large]), objective="time")
    assert "eplb (equal windows)" not in str(co.compare(scaled, names=["eplb"]))
    alike = problem.replace(loads=co.Loads([small, small]))
    assert "eplb (equal windows)" not in str(co.compare(alike, names=["eplb"]))
