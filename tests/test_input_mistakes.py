"""Mistakes that strangers made with files and commands: each is said, refused or mended.

The kinds are those of ``test_inputs``; the inputs are of another hand.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from engine_files import torch_file
from files import npy, npz, routed, text
from strategies import quiet

import craftopt as co

COUNTS = np.random.default_rng(3).integers(1, 60, (4, 3, 8))
LOADS = co.Loads(COUNTS, [3, 4, 5])
noted = pytest.mark.filterwarnings("ignore::craftopt.errors.CraftoptWarning")


@pytest.fixture
def files(tmp_path, monkeypatch) -> co.Plan:
    """A plan and loads of the same layers, in the folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    problem = co.Problem(LOADS, 4, replicas_per_layer=4, slots="uniform")
    plan = co.solve(problem, "nominal").plan
    plan.save("p.json")
    np.savez("l.npz", counts=COUNTS, layer_ids=[3, 4, 5])
    return plan


# --- a guess by content never ends as loads -------------------------------------------------------


def padded_by(value: int) -> np.ndarray:
    return np.concatenate([routed(60, 3, 64, 4), np.full((60, 3, 2), value)], axis=2)


@pytest.mark.parametrize(
    ("array", "either"),
    [
        (padded_by(64), "loads or a token trace"),
        (padded_by(2**31 - 1), "loads or a token trace"),
        (-np.sort(-np.random.default_rng(1).random((30, 3, 8))), "loads or a token trace"),
        (np.array([[0, 1, 2, 4, 5, 6, 7, 0]]), "loads or a plan"),
        (np.array([[0, 1, 2, 3, -1, -1], [3, 2, 1, 0, -1, 1]]), "a plan or a token trace"),
    ],
    ids=["unused places", "places of the type's most", "weights", "a map with a hole", "empty"],
)
def test_ids_and_weights_are_not_taken_for_loads(array, either):
    with pytest.raises(co.FormatError, match=f"may hold {either}"):
        co.read_loads(npy(array))


def test_an_array_without_a_name_in_an_npz_is_a_bare_one():
    assert np.array_equal(co.read_loads(npz(arr_0=COUNTS)).tokens, COUNTS)
    with pytest.raises(co.FormatError, match="token trace, not loads"):
        co.read_loads(npz(arr_0=routed(60, 3, 64, 4)))
    with pytest.raises(co.FormatError, match="its keys are expert_load: name loads 'counts'"):
        co.read_loads(npz(expert_load=COUNTS))


# --- arrays side by side --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ({"tokens": COUNTS}, "tokens"),
        ({"phy2log": np.tile(np.arange(8), (3, 1)), "p2l_map": COUNTS[0]}, "p2l_map"),
    ],
)
@noted
def test_a_second_array_of_loads_or_slots_is_named(beside, named):
    with pytest.warns(co.CraftoptWarning, match=f"holds {named} beside 'counts'"):
        co.read_loads(npz(counts=COUNTS, **beside))


def test_totals_beside_counts_are_no_second_array():
    for tokens in (COUNTS.sum(axis=(1, 2)), 400):
        assert co.read_loads(npz(counts=COUNTS, tokens=tokens)).windows == 4


def test_columns_and_objects_that_are_not_read_are_named():
    with pytest.warns(co.CraftoptWarning, match="has the columns rank, which are not read"):
        co.read_loads(text("layer,expert,tokens,rank\n0,0,5,0\n0,1,6,1\n"))
    with pytest.warns(co.CraftoptWarning, match="holds meta beside 'counts'"):
        co.read_loads(text(json.dumps({"counts": COUNTS.tolist(), "meta": {"heat": [1]}})))


def test_counts_of_copies_that_contradict_the_map_are_refused():
    table = [[0, 1, 2, 0]]
    assert co.read_plan(npz(phy2log=table, logcnt=[[2, 1, 1]]), 2).replicas == 1
    with pytest.raises(co.FormatError, match="'phy2log' has other copies"):
        co.read_plan(npz(phy2log=table, logcnt=[[1, 1, 2]]), 2)
    shared = quiet(lambda: co.read_plan(npz(phy2log=table[0]), 2, [3, 4]))
    assert shared.layer_ids.tolist() == [3, 4]


# --- no command drops a layer ---------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["vllm", "vllm-ascend", "sglang", "tensorrt-llm"])
def test_an_export_names_layers_that_the_plan_lacks(engine, files, tmp_path):
    gap = files.with_layers([0, 2], [3, 5])
    file = tmp_path / ("m.yaml" if engine == "tensorrt-llm" else "m.json")
    notes = " ".join(co.export(gap, engine, file).notes)
    assert "the plan lacks the layers 4; if they have experts, add them with fill=" in notes
    assert ("rows are read by position" in notes) == engine.startswith("vllm")
    assert "the plan lacks" not in " ".join(co.export(gap, engine, file, fill=[4]).notes)


@pytest.mark.parametrize("command", ["evaluate", "certify", "route"])
def test_layers_left_out_of_a_figure_are_named(command, files, run):
    np.savez("less.npz", counts=COUNTS[:, :2], layer_ids=[3, 4])
    code, _, err = run(command, "p.json", "less.npz")
    assert code == 0
    assert "the layers 5 of the plan have no tokens and are left out" in err


def test_loads_of_more_layers_say_which_to_select(files, run):
    np.savez("more.npz", counts=np.repeat(COUNTS, 2, axis=1), layer_ids=range(2, 8))
    assert "such as --layers 3-5 " in run("evaluate", "p.json", "more.npz")[2]
    assert run("evaluate", "p.json", "more.npz", "--layers", "3-5")[0] == 0


# --- state in the plan ----------------------------------------------------------------------------


def test_dead_gpus_can_be_a_range_and_models_know_of_them(files, run):
    assert run("rebalance", "p.json", "l.npz", "--dead", "2-3", "-o", "s.json")[0] == 0
    assert co.read_plan("s.json").dead == (2, 3)
    model = ("export-model", "rebalancing", "l.npz", "-o", "x.lp", "--previous", "s.json")
    assert "previous plan has shape (3, 8, 2)" in run(*model, "--gpus", 4, "--max-moves", 5)[2]
    replicas = co.read_plan("s.json").replicas
    code, _, err = run(*model, "--gpus", 2, "--max-moves", 5, "--replicas", replicas)
    assert code == 0, err


# --- partial and duplicated recordings ------------------------------------------------------------


def dumps(folder: Path, **files: dict) -> Path:
    folder.mkdir(exist_ok=True)
    for name, document in files.items():
        (folder / f"{name.replace('__', '.')}.pt").write_bytes(torch_file(document))
    return folder


@noted
def test_the_rank_may_stand_in_the_name_or_as_text(tmp_path):
    half = COUNTS // 2
    for rank in ({}, {"rank": "0"}):
        other = {"rank": "1"} if rank else {}
        folder = dumps(
            tmp_path / f"f{len(rank)}",
            recorder_17__5_0={"logical_count": half, **rank},
            recorder_17__5_1={"logical_count": COUNTS - half, **other},
        )
        assert np.array_equal(co.read_loads(folder).tokens, COUNTS)


def test_dumps_that_repeat_or_do_not_belong_together_are_refused(tmp_path):
    one = {"rank": 0, "logical_count": COUNTS}
    with pytest.raises(co.FormatError, match=r"a\.pt and b\.pt hold the same counts; pass one"):
        co.read_loads(dumps(tmp_path / "same", a=one, b=one))
    with pytest.raises(co.FormatError, match=r"b\.pt holds no 'logical_count', as the files"):
        co.read_loads(dumps(tmp_path / "mixed", a=one, b={"records": []}))
    with pytest.warns(co.CraftoptWarning, match="the dumps of rank 1 alone"):
        co.read_loads(dumps(tmp_path / "one", a={**one, "rank": 1}))


def test_a_recording_that_is_there_twice_is_said():
    with pytest.warns(co.CraftoptWarning, match="its second half repeats the first"):
        co.read_loads(npz(counts=np.concatenate([COUNTS, COUNTS])))
    with pytest.warns(co.CraftoptWarning, match="holds the same tokens 3 times"):
        co.read_trace(npz(topk_ids=np.concatenate([routed(30, 2, 16, 4)] * 3)))
    record = {"record_type": "eplb_load_stats", "version": 1, "step": 5}
    line = json.dumps(record | {"expert_load": [[1, 2]], "p2l_map": [[0, 1]]})
    with pytest.raises(co.FormatError, match="holds step 5 twice; pass the file of one rank"):
        quiet(lambda: co.read_loads(text(f"{line}\n{line}\n")))


def test_a_table_of_older_sglang_may_be_one_of_several():
    with pytest.warns(co.CraftoptWarning, match="such a table per rank; where there are several"):
        co.read_loads(text("layer_id,expert_id,count\n3,0,5\n3,1,6\n"))


# --- the remedy is in the message -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("layer;expert;tokens\n0;0;5\n", "separated by ';'; separate its columns by commas"),
        ("layer\texpert\ttokens\n0\t0\t5\n", "separated by '\\\\t'"),
        ("layer,expert,load\n0,0,5\n", "the columns 'layer', 'expert', 'load'; pass window"),
        ("5,3,2,1\n4,4,2,2\n", "a row per cell"),
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ('{"format": "craftopt-certificate"}', "craftopt verify"),
        ("initial_global_assignments:\n  3: [0, 1]\n", "num_slots is missing"),
    ],
)
def test_a_file_that_is_nearly_right_says_what_to_change(content, message):
    with pytest.raises(co.FormatError, match=message):
        (co.read_plan if "num_slots" in message else co.read_loads)(text(content))


def test_headers_may_be_capitals_and_other_encodings_are_named():
    assert co.read_loads(text("Layer,Expert,Tokens\n0,0,5\n0,1,3\n")).experts == 2
    wide = npy(COUNTS)
    wide.seek(0)
    wide.write("layer,expert,tokens\n".encode("utf-16"))
    wide.seek(0)
    with pytest.raises(co.FormatError, match="is UTF-16 text; save it in UTF-8"):
        co.read_loads(wide)
    with pytest.raises(co.InputError, match="record several, or cut a token trace"):
        co.holdout(co.Loads([[[1, 2]]]), "odd-even")


# --- what an engine loads -------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["layer_id", "device_id"])
def test_maps_out_of_order_are_refused(number):
    devices = [{"device_expert": [0, 1]}, {"device_expert": [1, 0]}]
    layers: list[dict] = [{"device_list": devices}, {"device_list": devices}]
    for one, value in zip(layers if number == "layer_id" else devices, (1, 0), strict=True):
        one[number] = value
    with pytest.raises(co.FormatError, match=f"lists {number} 1, 0, and .*; sort it"):
        co.read_plan(text(json.dumps({"layer_list": layers})))


# --- the command line -----------------------------------------------------------------------------


def test_a_command_never_writes_over_what_it_reads(files, run):
    for command, file in [
        (("plan", "l.npz", "--gpus", 4), "l.npz"),
        (("export", "p.json", "--engine", "vllm"), "p.json"),
        (("certify", "p.json", "l.npz"), "./p.json"),
        (("rebalance", "p.json", "l.npz"), "l.npz"),
    ]:
        before = Path(file).read_bytes()
        assert "reads; name another file" in run(*command, "-o", file)[2]
        assert Path(file).read_bytes() == before
    assert run("rebalance", "p.json", "l.npz", "-o", "p.json")[0] == 0


def test_names_that_are_too_long_are_refused_before_any_work(files, run):
    code, out, err = run("plan", "l.npz", "--gpus", 4, "-o", "a" * 300 + ".json")
    assert (code, out) == (2, "")
    assert "its name is too long" in err
    assert (
        "redundant experts are --replicas-per-layer" in run("plan", "l.npz", "--redundancy", 4)[2]
    )


@pytest.mark.parametrize("given", ["nan", "-1", "inf", "1e300"])
def test_grids_that_no_problem_could_have_are_refused(given, files, run):
    for option in ("--skews", "--shares"):
        code, out, err = run("bench-exact", "-o", "runs.csv", "--shapes", "4x2", option, given)
        assert (code, out) == (2, "")
        assert f"{option[2:]}=" in err
        assert "at least 0, at most 100" in err


@noted
def test_any_whole_number_is_a_seed(files, run):
    assert run("diagnose", "l.npz", "--gpus", 2, "--seed", -1)[0] == 0


def test_infinite_counts_are_refused_and_nothing_else_is_said(files, run):
    np.save("inf.npy", np.full((4, 3, 8), np.inf))
    code, out, err = run("diagnose", "inf.npy", "--gpus", 2)
    assert (code, out) == (2, "")
    assert err.startswith("craftopt: inf.npy: tokens[0, 0, 0] is inf")
