"""Inputs mean what they say: what is ambiguous, partial or unfit is refused or said, never guessed.

The files in ``data/cases`` are small, made for these tests, each of the kind of a public report.
"""

from __future__ import annotations

import io
import itertools
import json
import shutil

import numpy as np
import pytest
from engine_files import PHY2LOG, per_pass, per_token, torch_file
from files import DATA, npy, npz, routed, text
from strategies import quiet

import craftopt as co

CASES = DATA / "cases"
# Other notes than the one that a test is about.
noted = pytest.mark.filterwarnings("ignore::craftopt.errors.CraftoptWarning")


# --- a guess by content never ends as loads by default --------------------------------------------


@pytest.mark.parametrize("name", ["routed.npy", "routed.npz", "moe_only_last_token_zero.npy"])
def test_a_trace_with_unwritten_places_is_no_loads(name, run):
    file = CASES / "trace_taken_for_loads" / name
    with pytest.raises(co.FormatError, match=r"token trace, not loads.*--batch N"):
        co.read_loads(file)
    with pytest.warns(co.CraftoptWarning, match=r"dropped (layers .*: 0|1 of 200 tokens)"):
        trace = co.read_trace(file)
    assert (trace.layers, trace.experts) == (5, 32)
    code, out, err = run("info", file, "--json")
    assert (code, json.loads(out)["kind"]) == (0, "trace")
    assert "dropped" in err
    assert run("plan", file, "--gpus", 4)[0] == 2


def unclear() -> dict[str, np.ndarray]:
    alike = np.repeat(routed(60, 1, 16, 4), 3, axis=1)  # dummy weights: all layers choose alike
    return {
        "few tokens": routed(2, 3, 64, 4),
        "one layer": routed(20, 1, 64, 4),
        "layers that choose alike": alike,
        "floating-point ids": routed(2, 3, 64, 4).astype(np.float32),
        "a dense layer of a few tokens": np.concatenate(
            [np.zeros((2, 1, 4), int), routed(2, 2, 64, 4)], axis=1
        ),
        "a small map": np.array([[0, 1, 2, 3], [1, 0, 3, 2]]),
        "a map of many copies": np.array([[0, 1, 0, 1, 0, 1, 0, 1]]),
        "rows that no model has": np.ones((300, 4), int),
        "tokens of one layer": routed(40, 1, 64, 4)[:, 0],
        "one damaged token": np.concatenate([routed(60, 3, 64, 4), np.full((1, 3, 4), 7)]),
        "unused places that are 0": np.concatenate(
            [routed(60, 3, 64, 4), np.zeros((60, 3, 2), int)], axis=2
        ),
        "unused places that are 255": np.concatenate(
            [routed(60, 3, 64, 4), np.full((60, 3, 2), 255)], axis=2
        ).astype(np.uint8),
    }


@pytest.mark.parametrize("name", unclear())
def test_what_may_be_loads_or_not_is_refused_until_it_is_said(name, tmp_path, run):
    array = unclear()[name]
    with pytest.raises(co.FormatError, match=r"may hold loads or .*--as loads.*kind="):
        co.read_loads(npy(array))
    assert quiet(lambda: co.read_loads(npy(array), kind="loads")).experts == array.shape[-1]
    file = tmp_path / "array.npy"
    np.save(file, array)
    code, out, err = run("plan", file, "--gpus", 2)
    assert (code, out) == (2, "")
    assert "--as loads" in err
    assert run("info", file, "--as", "loads")[0] == 0
    if array.ndim == 3 and not {"damaged", "places"} & set(name.split()):
        kind = json.loads(run("info", file, "--as", "trace", "--json")[1])["kind"]
        assert kind == "trace"
        assert run("plan", file, "--gpus", 2, "--batch", 1, "--method", "trivial")[0] == 0


def test_what_tells_itself_is_taken_for_it():
    table = np.tile(np.arange(8), (10, 1))
    for shape, gpus in (((10, 8), 2), ((10, 2, 4), None)):
        plan = co.read_plan(npy(table.reshape(shape)), gpus)
        assert plan == co.Plan.from_phy2log(table, 2)
        with pytest.raises(co.FormatError, match="it holds a plan, not loads"):
            co.read_loads(npy(table.reshape(shape)))
    with pytest.raises(co.FormatError, match=r"holds 200 layers of 6 tokens.*swap the first two"):
        co.read_trace(npy(routed(6, 200, 64, 8)))
    one_layer = routed(40, 1, 64, 4)
    assert co.read_trace(npy(one_layer[:, 0]), 64).topk_ids.tolist() == one_layer.tolist()


def test_said_wrongly_is_refused(run):
    file = CASES / "shares" / "probs.npz"
    assert "it holds loads, not a token trace" in run("info", file, "--as", "trace")[2]
    assert "pass one of loads, trace, plan" in run("info", file, "--as", "weights")[2]
    assert "pass --batch N" in run("plan", file, "--gpus", 2, "--as", "trace")[2]


def test_a_token_has_different_experts():
    with pytest.raises(co.InputError, match=r"topk_ids\[1, 0\] is \[2, 2\], one expert twice"):
        co.Trace([[[0, 1]], [[2, 2]]])
    assert co.Trace([[[0, -1, -1]], [[2, 1, -1]]]).experts == 3
    with pytest.raises(co.FormatError, match="one expert twice"):
        co.read_trace(npz(topk_ids=[[[0, 1]], [[3, 3]]]))


@pytest.mark.parametrize("empty", [0, -1])
def test_unwritten_places_are_dropped_with_their_columns(empty):
    ids = routed(40, 3, 8, 2)
    ids[:, 1] = empty
    ids[5:9] = empty
    ids[20, 2] = empty  # a token that is missing in one layer alone
    with pytest.warns(co.CraftoptWarning) as notes:
        trace = co.read_trace(npz(topk_ids=ids, seq=np.arange(40)), experts=8)
    assert [str(note.message).partition(": ")[2] for note in notes] == [
        "dropped layers without experts, such as dense layers: 1",
        "dropped 4 of 40 tokens, which have no expert in any layer",
    ]
    assert trace.layer_ids.tolist() == [0, 2]
    assert trace.sequence.tolist() == [*range(5), *range(9, 40)]
    assert trace.topk_ids[16, 1].tolist() == [-1, -1]
    assert np.array_equal(trace.topk_ids[:, 0], np.delete(ids[:, 0], range(5, 9), axis=0))


# --- arrays beside the one that is read -----------------------------------------------------------


@noted
@pytest.mark.parametrize("name", ["window.npz", "window.json"])
def test_counts_of_slots_are_mapped_back_by_the_map_beside_them(name):
    file = CASES / "physical_counts_with_map" / name
    with pytest.warns(co.CraftoptWarning, match="counts slots; they were added up by expert"):
        loads = co.read_loads(file)
    with np.load(CASES / "physical_counts_with_map" / "window.npz") as arrays:
        counts, table = arrays["counts"], arrays["physical_to_logical_map"]
    expected = np.zeros((*counts.shape[:2], 8))
    for layer, slot in np.ndindex(table.shape):
        expected[:, layer, table[layer, slot]] += counts[:, layer, slot]
    assert np.array_equal(loads.tokens, expected)


def test_counts_that_a_map_leaves_open_are_refused_by_name():
    counts, swapped = np.ones((2, 1, 4)), [[1, 0, 2, 3]]
    with pytest.raises(co.FormatError, match=r"'counts' .* beside 'phy2log' .*slots or of exp"):
        co.read_loads(npz(counts=counts, phy2log=swapped))
    with pytest.raises(co.FormatError, match=r"'counts' .* beside 'phy2log'"):
        co.read_loads(npz(counts=np.ones((2, 1, 5)), phy2log=swapped))
    with pytest.warns(co.CraftoptWarning, match="'counts' counts experts already"):
        assert co.read_loads(npz(counts=counts, phy2log=[[0, 1, 2, 3]])).experts == 4
    with pytest.warns(co.CraftoptWarning, match="counts slots"):
        loads = co.read_loads(npz(physical_count=[[[1, 2, 3, 4]]], phy2log=swapped))
    assert loads.tokens.tolist() == [[[2, 1, 3, 4]]]
    with pytest.raises(co.FormatError, match="'physical_count' without"):
        co.read_loads(npz(physical_count=counts))
    with pytest.raises(co.FormatError, match="'topk_ids' beside 'phy2log', so its ids may be slot"):
        co.read_trace(npz(topk_ids=routed(9, 1, 4, 2), phy2log=swapped))


def test_what_is_not_read_is_named():
    with pytest.warns(co.CraftoptWarning, match="holds heat beside 'counts', which is not read"):
        co.read_loads(npz(counts=np.ones((1, 1, 4)), heat=[1, 2]))
    assert co.read_loads(npz(counts=np.ones((1, 1, 4)), layer_id=[9])).layer_ids.tolist() == [9]
    with pytest.warns(co.CraftoptWarning, match="holds heat beside 'counts', which is not read"):
        co.read_loads(text('{"counts": [[1, 2]], "heat": [1, 2], "model": "x"}'))


def test_a_trace_in_json_has_its_columns():
    document = {"topk_ids": [[[0]], [[1]]], "layer_ids": [7], "seq": [4, 5], "step": [0, 1],
                "step_names": ["chat", "code"]}  # fmt: skip
    trace = co.read_trace(text(json.dumps(document)))
    assert trace.layer_ids.tolist() == [7]
    assert trace.by_sequence().window_names == ("chat/4", "code/5")


# --- layers are matched by number -----------------------------------------------------------------


def test_layers_without_numbers_are_never_matched_by_position(run):
    folder = CASES / "layers_without_ids"
    command = ("evaluate", folder / "sglang.json", "LOADS", "--gpus", 4, "--json")

    def evaluate(name: str, *more: object) -> tuple[int, str, str]:
        return run(*(folder / name if word == "LOADS" else word for word in command), *more)

    code, out, err = evaluate("no_ids.npz")
    assert (code, out) == (2, "")
    assert "the plan has the layers 0-5 (6), the loads 0-3 (4)" in err
    assert "--layers" in err
    right = json.loads(evaluate("with_ids.npz")[1])["relative_time"]
    assert right == pytest.approx(1.766, abs=1e-3)
    assert json.loads(evaluate("no_ids.npz", "--layers", "2-5")[1])["relative_time"] == right
    assert "has layers 0-5, not 2-9" in evaluate("no_ids.npz", "--layers", "2-9")[2]


def test_a_plan_of_other_layers_is_refused_everywhere():
    plan = co.Plan.from_phy2log([[0, 1, 0, 2]] * 3, gpus=2)
    loads = co.Loads(np.ones((2, 3, 3)), [3, 4, 5])
    message = r"plan has the layers 0-2 \(3\), the .* 3-5 \(3\), and .* such as --layers 3-5 "
    with pytest.raises(co.InputError, match=message):
        co.evaluate(plan, loads)
    with pytest.raises(co.InputError, match=message):
        co.Problem(loads, 2, previous=plan)
    with pytest.raises(co.InputError, match=message):
        co.rebalance(co.Problem(loads, 2, replicas=3), plan)
    with pytest.raises(co.InputError, match=message):
        co.count_moves(plan, co.Plan(plan.copies, [3, 4, 5]))
    trace = co.Trace(routed(9, 3, 3, 2), 3, [3, 4, 5])
    with pytest.raises(co.InputError, match=message):
        co.evaluate(plan, co.Loads(loads.tokens), trace=trace)


def test_layers_can_be_numbered_or_selected_in_every_reader():
    counts = np.ones((1, 3, 4))
    assert co.read_loads(npz(counts=counts), range(3, 6)).layer_ids.tolist() == [3, 4, 5]
    numbered = npz(counts=counts, layer_ids=[3, 4, 5])
    assert co.read_loads(numbered, [4, 5]).tokens.shape == (1, 2, 4)
    table = np.tile(np.arange(8), (3, 1))
    assert co.read_plan(npy(table), 2, [3, 4, 5]).layer_ids.tolist() == [3, 4, 5]
    ids = routed(30, 3, 8, 2)
    assert co.read_trace(npy(ids), 8, [3, 4, 5]).layer_ids.tolist() == [3, 4, 5]
    pairs = quiet(lambda: co.read_coactivation(npy(ids), 8, [3, 4, 5]))
    assert pairs.layer_ids.tolist() == [3, 4, 5]
    for layers, message in [
        (4, "has 3 layers .*, not layers=4"),
        ([4, 3, 5], "in rising order"),
        ([7], "has layers 0-2, not 7"),
        ([-1, 0, 1], "layers=-1 is below 0"),
    ]:
        with pytest.raises(co.FormatError, match=message):
            co.read_loads(npz(counts=counts), layers)


# --- no command drops a layer ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loads", "idle", "budget"),
    [("new.npz", 61, 5), ("new.npz", 61, None), ("one layer more.npz", 61, 5)],
)
def test_rebalance_keeps_layers_without_tokens_as_they_are(loads, idle, budget, run, tmp_path):
    folder = CASES / "idle_layer_in_rebalance"
    with np.load(folder / "new.npz") as arrays:
        counts, numbers = arrays["counts"], arrays["layer_ids"]
    file = folder / loads
    if loads != "new.npz":  # a recording that lacks the layer
        file = tmp_path / loads
        np.savez(file, counts=counts[:, :3], layer_ids=numbers[:3])
    limit = () if budget is None else ("--max-moves", budget)
    new = tmp_path / "new.json"
    code, _, err = run("rebalance", folder / "p.json", file, *limit, "-o", new)
    assert code == 0, err
    assert f"the layers {idle} of the plan have no tokens and stay as they are" in err
    before, after = co.read_plan(folder / "p.json"), co.read_plan(new)
    assert after.layer_ids.tolist() == before.layer_ids.tolist()
    position = before.layer_ids.tolist().index(idle)
    assert np.array_equal(after.copies[position], before.copies[position])
    if budget is not None:
        assert co.count_moves(after, before) <= budget


def test_rebalance_of_an_engines_map_keeps_its_idle_layer(run, tmp_path):
    folder = CASES / "idle_layer_in_rebalance"
    new = tmp_path / "new.json"
    arguments = ("rebalance", folder / "serving.json", folder / "new2.npz", "--gpus", 4)
    code, _, err = run(*arguments, "--max-moves", 5, "-o", new)
    assert code == 0, err
    before, after = co.read_plan(folder / "serving.json", 4), co.read_plan(new)
    assert np.array_equal(after.copies[1], before.copies[1])
    assert co.count_moves(after, before) <= 5


# --- partial and duplicated recordings ------------------------------------------------------------


@noted
def test_parts_of_ranks_are_added_up():
    with pytest.warns(co.CraftoptWarning, match="added up the dumps of 4 ranks"):
        loads = co.read_loads(CASES / "ranks_that_dump_apart")
    assert loads.windows == 4
    assert loads.tokens.sum() == quiet(
        lambda: sum(
            co.read_loads(file).tokens.sum() for file in (CASES / "ranks_that_dump_apart").iterdir()
        )
    )


def test_missing_and_unequal_parts_are_refused(tmp_path):
    folder = shutil.copytree(CASES / "ranks_that_dump_apart", tmp_path / "dumps")
    next(folder.glob("*_1.pt")).unlink()
    with pytest.raises(co.FormatError, match="no file of rank 1; pass the files of all ranks"):
        co.read_loads(folder)
    counts = np.ones((2, 3, 4), np.int32)
    (tmp_path / "uneven").mkdir()
    for rank, steps in enumerate((2, 1)):
        dump = torch_file({"rank": rank, "logical_count": counts[:steps]})
        (tmp_path / "uneven" / f"x_{rank}.pt").write_bytes(dump)
    with pytest.raises(co.FormatError, match="ranks 0 to 1 differ in their dumps or steps"):
        co.read_loads(tmp_path / "uneven")


@noted
@pytest.mark.parametrize("mode", ["stat", "per_pass", "per_token"])
def test_ranks_that_record_the_same_tokens_are_counted_once(mode, tmp_path):
    document = {
        "stat": {"rank": 0, "logical_count": np.arange(1, 13, dtype=np.int32).reshape(1, 3, 4)},
        "per_pass": per_pass(0),
        "per_token": per_token(0),
    }[mode]
    (tmp_path / "x_0.pt").write_bytes(torch_file(document))
    alone = quiet(lambda: co.read_loads(tmp_path / "x_0.pt"))
    document["rank"] = 1
    for record in document.get("records", []):
        record["rank"] = 1
    (tmp_path / "x_1.pt").write_bytes(torch_file(document))
    with pytest.warns(co.CraftoptWarning, match=r"rank\(s\) 1 recorded the same tokens"):
        both = co.read_loads(tmp_path)
    assert np.array_equal(both.tokens, alone.tokens)
    if mode == "per_token":
        trace = quiet(lambda: co.read_trace(tmp_path))
        assert np.array_equal(trace.batches(100).tokens.sum(axis=0), alone.total().tokens[0])


@noted
def test_only_ranks_that_repeat_each_other_are_left_out(tmp_path):
    """Two groups of two ranks, each group with tokens of its own."""
    parts = []
    for rank in range(4):
        document = per_pass(rank // 2)
        for record in document["records"]:
            record["rank"] = rank
        (tmp_path / f"x_{rank}.pt").write_bytes(torch_file(document))
        parts.append(sum(record["global_physical_count"].sum() for record in document["records"]))
    with pytest.warns(co.CraftoptWarning, match=r"rank\(s\) 1, 3 recorded the same"):
        loads = co.read_loads(tmp_path)
    assert loads.tokens.sum() == parts[0] + parts[2]
    assert PHY2LOG.max() + 1 == loads.experts


# --- plausibility ---------------------------------------------------------------------------------


def test_what_no_router_does_is_said():
    rng = np.random.default_rng(0)
    share = rng.integers(50, 99, (4, 3, 16))
    notes = {
        r"expert 15 \(1/9\) has one share of the tokens .* a shared expert": np.concatenate(
            [share[..., :15] * 0 + 8, np.full((4, 3, 1), 15)], axis=2
        ),
        r"only experts 8 to 11 of 16 have tokens.*the part of one rank": share
        * (np.arange(16) // 4 == 2),
        r"expert 3 of layer 1 has 9\d\.\d% of the tokens, which is impossible": share
        + 20_000 * (np.arange(16) == 3) * (np.arange(3) == 1)[:, None],
    }
    assert co.read_loads(npz(counts=share)).experts == 16  # and nothing is said
    for message, counts in notes.items():
        with pytest.warns(co.CraftoptWarning, match=message):
            co.read_loads(npz(counts=counts))
    ids = np.concatenate([routed(99, 2, 8, 2), np.full((99, 2, 1), 8)], axis=2)
    with pytest.warns(co.CraftoptWarning, match="every token chooses expert 8 in layer 0, 8 in la"):
        co.read_trace(npz(topk_ids=ids))


@noted
@pytest.mark.parametrize("name", ["sparse.csv", "sglang_old.csv"])
def test_an_inferred_number_of_experts_is_said_and_can_be_given(name, run):
    file = CASES / "sparse_csv" / name
    with pytest.warns(co.CraftoptWarning, match=r"experts, 7, is inferred .*--experts"):
        loads = co.read_loads(file)
    assert loads.layer_ids.tolist() == [3, 4]
    assert loads.tokens.tolist() == [[[50, 20, 0, 0, 0, 90, 0], [10, 0, 70, 0, 0, 0, 40]]]
    assert quiet(lambda: co.read_loads(file, experts=8)).experts == 8
    code, out, err = run("info", file, "--experts", 8, "--json")
    assert (code, json.loads(out)["experts"]) == (0, 8)
    assert "inferred" not in err
    with pytest.raises(co.FormatError, match="has 7 experts, not experts=6"):
        co.read_loads(file, experts=6)
    with pytest.raises(co.FormatError, match="has 2 experts, not experts=9"):
        co.read_loads(npz(counts=[[1, 2]]), experts=9)
    with pytest.raises(co.FormatError, match="experts=1000000000 is above"):
        co.read_loads(file, experts=10**9)


def test_a_short_trace_may_lack_experts():
    ids = np.array([[[0, 1], [2, 5]], [[3, 1], [4, 0]]])
    with pytest.warns(co.CraftoptWarning, match="experts, 6, is inferred from the highest id"):
        assert co.read_trace(npz(topk_ids=ids)).experts == 6
    assert co.read_trace(npz(topk_ids=ids), experts=8).experts == 8


def test_shares_draw_no_statement_on_sampling(run):
    file = CASES / "shares" / "probs.npz"
    out = run("info", file)[1]
    assert "no counts" in out
    assert "too few tokens" not in out
    assert "known to" not in out
    assert json.loads(run("info", file, "--json")[1])["share_error"] is None


# --- torch's tensors ------------------------------------------------------------------------------


def test_whole_numbers_are_counts_in_every_type_of_torch():
    folder = CASES / "torch_tensors"
    plain, *others = (
        quiet(lambda file=file: co.read_loads(folder / file))
        for file in ("plain_tensor.pt", "stat_f32.pt", "stat_bf16.pt")
    )
    assert plain.tokens.sum() == 20129
    for loads in others:
        assert np.array_equal(loads.tokens, plain.tokens)


def test_tensors_of_other_programs_are_read_by_name_and_value():
    counts = np.arange(24, dtype=np.int64).reshape(1, 3, 8) + 9000
    for document in ({"counts": counts}, counts, counts.astype(np.float32)):
        loads = co.read_loads(io.BytesIO(torch_file(document)))
        assert np.array_equal(loads.tokens, counts)
    ids = routed(40, 3, 16, 4)
    assert co.read_trace(io.BytesIO(torch_file(ids)), experts=16).tokens == 40
    with pytest.raises(co.FormatError, match="token trace, not loads"):
        co.read_loads(io.BytesIO(torch_file(ids)))
    with pytest.raises(co.FormatError, match=r"of a list, none of SGLang's; save a tensor"):
        co.read_loads(io.BytesIO(torch_file([1, 2])))
    fractions = {"rank": 0, "logical_count": np.full((1, 2, 4), 0.3)}
    with pytest.raises(co.FormatError, match=r"not whole numbers.*numpy\.savez"):
        co.read_loads(io.BytesIO(torch_file(fractions)))


# --- one map for all layers -----------------------------------------------------------------------


def test_one_map_for_all_layers_is_a_plan(run, tmp_path):
    file, loads = CASES / "vllm_map" / "shared.json", CASES / "vllm_map" / "l.npz"
    with pytest.raises(co.FormatError, match="it holds a plan, not loads"):
        co.read_loads(file)
    plan = co.read_plan(file, 4, layers=3)
    assert (plan.layers, plan.experts, plan.replicas) == (3, 16, 12)
    with pytest.warns(co.CraftoptWarning, match=r"one map for all layers.*--layers"):
        assert co.read_plan(file, 4).layers == 1
    code, out, err = run("evaluate", file, loads, "--gpus", 4, "--layers", "0-2", "--json")
    assert code == 0, err
    expected = co.evaluate(plan, co.read_loads(loads)).relative_time
    assert json.loads(out)["relative_time"] == expected
    assert "--layers" in run("evaluate", file, loads, "--gpus", 4)[2]
    exported = co.export(plan, "vllm", tmp_path / "map.json")
    assert json.loads((tmp_path / "map.json").read_text()) == plan.phy2log().tolist()
    assert '"num_redundant_experts": 4' in exported.flags[0]
    assert "experimental" in exported.notes[0]


# --- the command line -----------------------------------------------------------------------------

WRITERS = {
    "plan": ("plan", "LOADS", "--gpus", 4, "-o"),
    "rebalance": ("rebalance", "PLAN", "LOADS", "-o"),
    "rebalance steps": ("rebalance", "PLAN", "LOADS", "--steps"),
    "certify": ("certify", "PLAN", "LOADS", "-o"),
    "export": ("export", "PLAN", "--engine", "sglang", "-o"),
    "export-model": ("export-model", "joint", "LOADS", "--gpus", 4, "-o"),
    "report": ("report", "LOADS", "--gpus", 4, "-o"),
    "advise": ("advise", "LOADS", "--model", "deepseek-r1", "--gpu", "h200", "--gpus", 8, "-o"),
}  # fmt: skip


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (".", "it is a folder"),
        ("no/such/plan.json", "there is no folder"),
        ("/dev/null", "no file"),
    ],
)
def test_outputs_are_checked_before_the_inputs_are_read(command, place, reason, run, tmp_path):
    files = {"LOADS": tmp_path / "missing.npz", "PLAN": tmp_path / "missing.json"}
    words = [files.get(word, word) for word in WRITERS[command]]
    code, out, err = run(*words, place)
    assert (code, out) == (2, "")
    assert f"cannot write {place}: " in err
    assert reason in err


@pytest.mark.parametrize("command", ["plan", "compare"])
def test_sizes_beyond_any_cluster_are_refused_with_the_number_of_experts(command, run):
    loads = CASES / "vllm_map" / "l.npz"
    code, _, err = run(command, loads, "--gpus", 10**8)
    assert code == 2
    assert "gpus=100000000 is far beyond any cluster, and there are 16 experts" in err


@pytest.mark.parametrize(
    ("option", "ours"),
    [
        ("--num-redundant-experts", "--replicas-per-layer"),
        ("--ep-num-redundant-experts", "--replicas-per-layer"),
        ("--ep-size", "--gpus"),
        ("--ep_size", "--gpus"),
        ("--tp-size", "--gpus"),
        ("--tensor-parallel-size", "--gpus"),
        ("--nnodes", "--nodes"),
        ("--num-slots", "--replicas-per-layer"),
        ("--eplb-algorithm", "--method"),
        ("--ep-dispatch-algorithm", "--dispatch"),
    ],
)
def test_options_of_engines_are_answered_with_ours(option, ours, run):
    code, _, err = run("plan", "deepseek-r1", "--gpus", 8, option, 8)
    assert code == 2
    assert option in err
    assert f"{ours} here" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("rebalance PLAN LOADS --gpus 0", "gpus=0 is below 1"),
        ("evaluate PLAN LOADS --gpus 8", "is for 4 GPUs, not gpus=8; pass gpus=4"),
        ("evaluate PLAN LOADS --layers 5-3", "--layers '5-3'; pass numbers"),
        ("certify PLAN LOADS --traffic .5", "--traffic needs the tokens"),
        ("diagnose TRACE --gpus 4 --batch 0", "batch=0 is below 1"),
    ],
)
def test_an_option_that_means_nothing_is_refused_with_its_name(run, tmp_path, words, message):
    folder = CASES / "dead_gpu"
    np.save(tmp_path / "t.npy", routed(9, 3, 16, 2))
    files = {"PLAN": folder / "p.json", "LOADS": folder / "l.npz", "TRACE": tmp_path / "t.npy"}
    code, _, err = run(*(files.get(word, word) for word in words.split()))
    assert code == 2
    assert message in err


def test_all_gpus_dead_is_said_so(run):
    folder = CASES / "idle_layer_in_rebalance"
    code, _, err = run("rebalance", folder / "p.json", folder / "new.npz", "--dead", "0,1,2,3")
    assert code == 2
    assert "--dead names all 4 GPUs of the plan; at least one must be alive" in err
    plan = co.read_plan(folder / "p.json")
    problem = co.Problem(co.Loads(np.ones((4, 16)), plan.layer_ids), 4, replicas=16)
    with pytest.raises(co.InputError, match="all 4 GPUs are dead"):
        co.rebalance(problem, plan, active=np.zeros(4, bool))


def test_every_command_that_takes_loads_cuts_traces_into_windows(run, tmp_path):
    file, plan = tmp_path / "trace.npy", tmp_path / "plan.json"
    np.save(file, routed(230, 2, 8, 2))
    cut = ("--batch", 50, "--json")
    assert run("plan", file, "--gpus", 2, "-o", plan, *cut)[0] == 0
    printed = json.loads(run("info", file, *cut)[1])
    assert (printed["windows"], printed["tokens"]) == (4, 4 * 50 * 2 * 2)  # the short one dropped
    commands = [
        ("compare", file, "--gpus", 2, "--methods", "trivial"),
        ("evaluate", plan, file),
        ("certify", plan, file),
        ("rebalance", plan, file, "--max-moves", 1),
        ("route", plan, file),
    ]
    for command, order in itertools.product(commands, ("recorded", "random")):
        code, _, err = run(*command, "--order", order, *cut)
        assert code == 0, err
    assert "pass --batch N" in run("plan", file, "--gpus", 2, "--order", "random")[2]
    assert "is an example" in run("plan", "deepseek-r1", "--gpus", 8, "--layers", 5)[2]
    assert "batch=0" in run("plan", file, "--gpus", 2, "--batch", 0)[2]


@pytest.mark.parametrize("given", ["3-", "a", "3,,4", "5-3", "0-100000", "1-2-3", ""])
def test_layers_that_are_no_numbers_are_refused(given, run):
    code, out, err = run("info", CASES / "vllm_map" / "l.npz", "--layers", given)
    assert (code, out) == (2, "")
    assert "layers" in err
