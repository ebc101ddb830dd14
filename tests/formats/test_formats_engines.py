"""What engines record is read, what they load is written and read back, and the rest refused."""

from __future__ import annotations

import base64
import io
import json
import os
import shlex
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from engine_files import COUNTS, PHY2LOG, safetensors, stat, statistics, torch_file
from files import SAMPLES
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import copies_arrays, quiet

import craftopt as co
from craftopt.cli import main

UNIFORM = co.Plan.from_phy2log(PHY2LOG[1:], gpus=2, layer_ids=[1, 2])
RAGGED = co.Plan([[[1, 0], [0, 1], [1, 1]], [[1, 0], [0, 1], [1, 0]]], [3, 4])
ENGINES = ("sglang", "tensorrt-llm", "vllm-ascend", "vllm", "deepseek")
MAP = "map.json"  # a name that every engine takes


def read(source) -> co.Loads:
    return quiet(lambda: co.read_loads(source))


def stream(content: bytes | str | dict | list) -> io.BytesIO:
    if isinstance(content, dict | list):
        content = json.dumps(content)
    return io.BytesIO(content.encode() if isinstance(content, str) else content)


# --- TensorRT-LLM's statistics -------------------------------------------------------------------


@pytest.fixture
def trtllm(tmp_path):
    def write(ranks: dict[str, bytes], meta: object = {"num_experts": 4}) -> Path:
        (tmp_path / "meta_info.json").write_text(json.dumps(meta))
        for name, data in ranks.items():
            (tmp_path / name).write_bytes(data)
        return tmp_path

    return write


def test_tensorrt_llm_adds_ranks_up(trtllm):
    ranks = [statistics(0), statistics(1)]
    files = {f"rank{rank}.safetensors": safetensors(part) for rank, part in enumerate(ranks)}
    loads = co.read_loads(trtllm({**files, "rank0_raw.safetensors": b"not looked at"}))
    assert loads.layer_ids.tolist() == [3, 5]
    assert loads.window_names == ("100", "101", "102")
    for window, iteration in enumerate((100, 101, 102)):
        for layer, number in enumerate((3, 5)):
            expected = sum(part[f"{iteration}_{number}"] for part in ranks)
            assert np.array_equal(loads.tokens[window, layer], expected)


def _without(key: str) -> dict[str, np.ndarray]:
    return {name: counts for name, counts in statistics(0).items() if name != key}


def _with_offsets(start: int, end: int):
    def change(header: dict) -> None:
        header["100_3"]["data_offsets"] = [start, end]

    return change


def _all_of_the_same_bytes(header: dict) -> None:
    for entry in header.values():
        entry["data_offsets"] = [0, 32]


GOOD = safetensors(statistics(0))
BAD_STATISTICS = {
    "a missing rank": ({"rank1.safetensors": GOOD}, "no file of rank 0; pass"),
    "no rank": ({}, "no file of rank 0; pass"),
    "a missing layer": ({"rank0.safetensors": safetensors(_without("101_5"))}, "lack layers"),
    "a gap": (
        {"rank0.safetensors": safetensors({"1_0": np.ones(4, int), "3_0": np.ones(4, int)})},
        "1, 3 are not contiguous",
    ),
    "ranks that differ": (
        {"rank0.safetensors": GOOD, "rank1.safetensors": safetensors(_without("102_5"))},
        "rank1.safetensors and the files before it.*102_5",
    ),
    "other names": ({"rank0.safetensors": safetensors({"w": np.ones(4, int)})}, "holds 'w'"),
    "a key twice": (
        {"rank0.safetensors": safetensors({"1_0": np.ones(4, int), "01_0": np.ones(4, int)})},
        "twice",
    ),
    "other experts": ({"rank0.safetensors": safetensors({"1_0": np.ones(5, int)})}, "4 experts"),
    "fractions": (
        {"rank0.safetensors": safetensors({"1_0": np.ones(4, np.float32)})},
        "type F32; counts are whole",
    ),
    "two dimensions": (
        {"rank0.safetensors": safetensors({"1_0": np.ones((4, 1), int)})},
        "shape and place do not fit",
    ),
    "offsets beyond": (
        {"rank0.safetensors": safetensors(statistics(0), _with_offsets(2**40, 2**40 + 32))},
        "shape and place do not fit",
    ),
    "offsets reversed": (
        {"rank0.safetensors": safetensors(statistics(0), _with_offsets(64, 32))},
        "shape and place do not fit",
    ),
    "the same bytes for all": (
        {"rank0.safetensors": safetensors(statistics(0), _all_of_the_same_bytes)[:-150]},
        "claim more bytes",
    ),
    "a header of terabytes": (
        {"rank0.safetensors": (2**43).to_bytes(8, "little") + GOOD[8:]},
        "a header of 8796093022208 bytes in a file of",
    ),
    "a cut header": ({"rank0.safetensors": GOOD[:60]}, "damaged or truncated: a header"),
    "a cut tail": ({"rank0.safetensors": GOOD[:-8]}, "shape and place do not fit"),
    "a header of no JSON": ({"rank0.safetensors": GOOD[:8] + b"!" + GOOD[9:]}, "header is damaged"),
    "a list": ({"rank0.safetensors": (2).to_bytes(8, "little") + b"[]"}, "no object"),
    "nothing": ({"rank0.safetensors": (2).to_bytes(8, "little") + b"{}"}, "holds no counts"),
}


@pytest.mark.parametrize("case", BAD_STATISTICS)
def test_damaged_statistics_are_refused(case, trtllm):
    files, message = BAD_STATISTICS[case]
    folder = trtllm(files)
    with pytest.raises(co.FormatError, match=message) as caught:
        co.read_loads(folder)
    assert str(caught.value).startswith(str(folder))


@pytest.mark.parametrize("meta", [{}, [], {"num_experts": "4"}, {"num_experts": 0}, "x" * 2**21])
def test_damaged_meta_info_is_refused(trtllm, meta):
    with pytest.raises(co.FormatError, match=r"meta_info\.json (is damaged|has 2\d+ bytes)"):
        co.read_loads(trtllm({"rank0.safetensors": GOOD}, meta))


def test_one_ranks_statistics_alone_are_refused():
    with pytest.raises(co.FormatError, match="pass the folder"):
        co.read_loads(stream(GOOD))


# --- MindIE's hotspots ---------------------------------------------------------------------------


@pytest.fixture
def mindie(tmp_path):
    def write(**phases: list[str]) -> Path:
        for phase, ranks in phases.items():
            (tmp_path / phase).mkdir(exist_ok=True)
            for rank, text in enumerate(ranks):
                (tmp_path / phase / f"{phase}_{rank}.csv").write_text(text, encoding="latin-1")
        return tmp_path

    return write


def test_hotspots_without_redundancy_need_the_layers_alone(mindie):
    folder = mindie(decode=["12,7\n5,9\n1,2\n3,4\n", "3,1\n11,4\n5,6\n7,8\n"])
    (folder / "decode" / "decode_0_bak.csv").write_text("junk")
    with pytest.raises(co.FormatError, match=r"put the expert map.*or pass layers="):
        co.read_loads(folder)
    for place in (folder, folder / "decode"):
        loads = co.read_loads(place, layers=2)
        assert loads.window_names == ("decode/00000", "decode/00001")
        assert loads.tokens.tolist() == [
            [[12, 7, 3, 1], [5, 9, 11, 4]],
            [[1, 2, 5, 6], [3, 4, 7, 8]],
        ]


def test_hotspots_are_mapped_back_by_the_expert_map_beside_them(mindie):
    folder = mindie(prefill=["1,2,3\n4,5,6\n", "7,8,9\n10,11,12\n"], decode=["1,1,1\n" * 4] * 2)
    co.export(UNIFORM, "vllm-ascend", folder / MAP)
    (folder / "other.json").write_text("{}")
    table = UNIFORM.phy2log()
    expected = np.zeros((2, 4))
    for layer, row in enumerate([[1, 2, 3, 7, 8, 9], [4, 5, 6, 10, 11, 12]]):
        np.add.at(expected[layer], table[layer], row)
    loads = co.read_loads(folder)
    assert loads.window_names == ("decode/00000", "decode/00001", "prefill/00000")
    assert np.array_equal(loads.tokens[2], expected)


@pytest.mark.parametrize(
    ("ranks", "layers", "message"),
    [
        (["1,2\n", "1,x\n"], 1, "decode_1.csv, line 1: 'x' is not a token count"),
        (["1,2\n1\n"], 1, "decode_0.csv, line 2 has 1 numbers, the lines above 2"),
        (["1,-2\n"], 1, "'-2' is not"),
        (["1," + "9" * 30 + "\n"], 1, "is not a token count"),
        (["1,2\n", ""], 1, "decode_1.csv is empty"),
        (["1,2\n", "1,2,3\n"], 1, "differ in their number of experts"),
        (["1,2\n"], 2, "no whole block of 2 layers"),
        (["\xff\xfe\n"], 1, "decode_0.csv, line 1: .* is not a token count"),
        (["1,2\n"], 0, "layers=0 is below 1; pass at least 1"),
        (["1,2\n"], -1, "layers=-1"),
        (["1,2\n"], 1.5, "layers=1.5"),
    ],
)
def test_damaged_hotspots_are_refused(mindie, ranks, layers, message):
    with pytest.raises(co.FormatError, match=message):
        co.read_loads(mindie(decode=ranks), layers=layers)


def test_hotspots_of_missing_ranks_or_cut_off_blocks(mindie):
    folder = mindie(decode=["1,2\n3,4\n5,6\n"] * 2)
    with pytest.warns(co.CraftoptWarning, match="left out what is behind the last block"):
        assert co.read_loads(folder, layers=2).windows == 1
    (folder / "decode" / "decode_0.csv").unlink()
    with pytest.raises(
        co.FormatError,
        match="decode: there is no file of rank 0; pass the files of all ranks, 0 to 1",
    ):
        co.read_loads(folder, layers=2)


# --- vLLM ----------------------------------------------------------------------------------------

META = {"record_type": "eplb_load_meta", "version": 1, "num_ranks": 2}


def step(number: int, table: np.ndarray, counts: np.ndarray) -> dict:
    return {
        "record_type": "eplb_load_stats",
        "version": 1,
        "step": number,
        "expert_load": counts.tolist(),
        "p2l_map": table.tolist(),
    }


def lines(*records: dict) -> io.BytesIO:
    return stream("".join(json.dumps(record) + "\n" for record in records))


def test_the_experimental_jsonl_is_read_with_each_steps_map_and_a_warning():
    counts = np.arange(12).reshape(2, 6)
    first, second = PHY2LOG[1:], PHY2LOG[1:, ::-1]
    with pytest.warns(co.CraftoptWarning, match="pull request 41141 is experimental"):
        loads = co.read_loads(lines(META, step(3, first, counts), step(9, second, counts)))
    assert loads.window_names == ("3", "9")
    for window, table in enumerate((first, second)):
        expected = np.zeros((2, 4))
        for layer in range(2):
            np.add.at(expected[layer], table[layer], counts[layer])
        assert np.array_equal(loads.tokens[window], expected)


def test_the_experimental_mapping_is_a_plan():
    rows = {str(layer): row for layer, row in enumerate(PHY2LOG.tolist())}
    record = {
        "record_type": "eplb_initial_mapping",
        "version": 1,
        "initial_global_assignments": rows,
    }
    with pytest.warns(co.CraftoptWarning, match="experimental"):
        plan = co.read_plan(lines(record), gpus=2)
    assert plan == co.Plan.from_phy2log(PHY2LOG, gpus=2)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{**META, "version": 2}], "version 2; version 1 is read"),
        ([META], "holds no eplb_load_stats record"),
        ([META, {"step": 3}], "record 2 has no record_type"),
        ([META, step(1, PHY2LOG, np.ones((2, 6), int))], "do not fit the map"),
        ([META, step(1, PHY2LOG, np.ones((3, 6)))], "'expert_load' is no table of whole numbers"),
        ([META, step(1, PHY2LOG - 1, np.ones((3, 6), int))], "do not fit the map"),
        ([META, {**step(1, PHY2LOG, PHY2LOG), "p2l_map": [[2**70] * 6] * 3}], "beyond 64 bits"),
        ([{**META, "record_type": "eplb_initial_mapping"}], "loads|initial_global_assignments"),
    ],
)
@pytest.mark.filterwarnings("ignore::craftopt.errors.CraftoptWarning")
def test_damaged_jsonl_is_refused(records, message):
    with pytest.raises(co.FormatError, match=message):
        co.read_loads(lines(*records))


def routed(tokens: int, layers: int, experts: int, k: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.argsort(rng.random((tokens, layers, experts)), axis=2)[:, :, :k]


def npy(array: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    np.save(file, array)
    file.seek(0)
    return file


@pytest.mark.parametrize("dtype", ["i2", "i4", "u1", "i8"])
@pytest.mark.parametrize("shape", [(5, 2, 4, 2), (50, 3, 64, 8), (90, 1, 128, 4), (9, 2, 8, 1)])
def test_routed_experts_are_a_trace_and_never_loads(shape, dtype):
    ids = routed(*shape).astype(dtype)
    trace = co.read_trace(npy(ids), experts=shape[2])
    assert np.array_equal(trace.topk_ids, ids)
    with pytest.raises(co.FormatError, match=r"expert ids per token.*co.read_trace.*'counts' in"):
        co.read_loads(npy(ids))
    named = stream({"routed_experts": ids.tolist()})
    assert co.read_trace(named, experts=shape[2]).tokens == shape[0]


@given(
    st.integers(1, 12),
    st.integers(1, 6),
    st.integers(2, 32),
    st.integers(50, 3000),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=100)
def test_loads_whose_layers_see_the_same_tokens_are_not_taken_for_a_trace(w, layers, e, n, seed):
    rng = np.random.default_rng(seed)
    tokens = rng.multinomial(n, rng.dirichlet(np.ones(e), size=layers), size=(w, layers))
    if layers > 1:
        assert read(npy(tokens)).windows == w


# --- maps are plans ------------------------------------------------------------------------------


def test_tables_of_slots_are_plans_in_every_dress():
    table = np.concatenate([PHY2LOG, PHY2LOG[:, :2]], axis=1)
    packed = io.BytesIO()
    np.savez(packed, phy2log=table, layer_ids=[7, 8, 9])
    packed.seek(0)
    assert co.read_plan(packed, gpus=2).layer_ids.tolist() == [7, 8, 9]
    for source in (
        npy(table),
        stream(table.tolist()),
        stream({"physical_to_logical_map": table.tolist()}),
        stream({"phy2log": table.tolist()}),
    ):
        assert co.read_plan(source, gpus=2) == co.Plan.from_phy2log(table, gpus=2)
    with pytest.raises(co.FormatError, match=r"experts per slot \(phy2log\): it holds a plan"):
        co.read_loads(npy(table))


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_written_is_read_back(engine, tmp_path):
    exported = co.export(UNIFORM, engine.upper(), tmp_path / MAP)
    assert exported.padding == 0
    assert exported.engine == engine
    assert [file.name for file in tmp_path.iterdir()] == [MAP]
    gpus = None if engine == "vllm-ascend" else 2
    plan = co.read_plan(tmp_path / MAP, gpus)
    if engine == "sglang":
        assert plan.phy2log()[0].tolist() == [0, 1, 2, 0, 1, 3]  # the dense layer: SGLang's start
        assert np.array_equal(plan.copies[1:], UNIFORM.copies)
    else:
        assert np.array_equal(plan.copies, UNIFORM.copies)
    assert plan.layer_ids.tolist() == {
        "sglang": [0, 1, 2],
        "tensorrt-llm": [1, 2],
    }.get(engine, [0, 1])


@given(st.data())
@settings(max_examples=60)
def test_any_plan_is_padded_and_read_back_or_refused(tmp_path_factory, data):
    layers, experts, gpus = (data.draw(st.integers(1, n)) for n in (3, 8, 4))
    plan = co.Plan(data.draw(copies_arrays(layers, experts, gpus, most=2)))
    file = tmp_path_factory.mktemp("export") / MAP
    for engine in ENGINES:
        if not _room(plan) or (plan.duplicates and engine == "vllm-ascend"):
            with pytest.raises(co.InputError, match="duplicates"):
                co.export(plan, engine, file, pad=True)
            continue
        exported = co.export(plan, engine, file, pad=True)
        back = co.read_plan(file, gpus)
        assert (back.copies >= plan.copies).all()
        assert back.slots.min() == back.slots.max() == plan.slots.max()
        assert exported.padding == back.replicas - plan.replicas
        assert back.duplicates == plan.duplicates
        assert (exported.padding == 0) == (plan.slots.min() == plan.slots.max())


def _room(plan: co.Plan) -> bool:
    """Tell whether every GPU lacks as many experts as it has slots to fill."""
    lacking = (plan.copies == 0).sum(axis=1)
    return bool((lacking >= plan.slots.max() - plan.slots).all())


def test_the_tables_of_deepseek_are_consistent(tmp_path):
    co.export(UNIFORM, "deepseek", tmp_path / "eplb.npz")
    with np.load(tmp_path / "eplb.npz") as tables:
        phy2log, log2phy, logcnt = (tables[key] for key in ("phy2log", "log2phy", "logcnt"))
    assert {array.dtype for array in (phy2log, log2phy, logcnt)} == {np.dtype(np.int64)}
    assert np.array_equal(logcnt, UNIFORM.replica_counts)
    for layer, expert in np.ndindex(logcnt.shape):
        slots = np.flatnonzero(phy2log[layer] == expert).tolist()
        padding = [-1] * (log2phy.shape[2] - len(slots))
        assert log2phy[layer, expert].tolist() == slots + padding


def test_yaml_is_what_a_yaml_library_reads(tmp_path):
    yaml = pytest.importorskip("yaml", reason="compares with PyYAML where it is installed")
    file = tmp_path / "balancer.yaml"
    co.export(UNIFORM, "tensorrt-llm", file)
    document = yaml.safe_load(file.read_text())
    assert document == {
        "initial_global_assignments": {1: [0, 1, 2, 0, 1, 3], 2: [0, 1, 2, 0, 2, 3]},
        "layer_updates_per_iter": 0,
        "num_slots": 6,
    }
    for flow in (None, False, True):
        for width in (20, 80):
            text = yaml.safe_dump(document, default_flow_style=None, width=width)
            if flow is False:
                text = yaml.safe_dump(document, default_flow_style=False)
            assert co.read_plan(stream(text), gpus=2) == UNIFORM


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("initial_global_assignments:\n", "lists no layer"),
        ("initial_global_assignments: {1: [0, 1]}\n", "put every layer"),
        ("initial_global_assignments:\n  1: [0, 1]\n", "num_slots is missing"),
        ("num_slots: 3\ninitial_global_assignments:\n  1: [0, 1]\n", "num_slots is 3.*list 2"),
        ("num_slots: 2\ninitial_global_assignments:\n  1: [0, x]\n", "no list of whole numbers"),
        ("num_slots: 2\ninitial_global_assignments:\n  1: &a [*a, 1]\n", "no list of whole"),
        ("num_slots: 2\ninitial_global_assignments:\n  1: [0, -1]\n", "no list of whole numbers"),
        (
            "num_slots: 1\ninitial_global_assignments:\n  1: [0]\n  1: [0]\n",
            "layer 1 is there twice",
        ),
        ("num_slots: 1\ninitial_global_assignments:\n  - 1\n", "belongs to no layer"),
        ("initial_global_assignments:\n<tag>\n", "line 2 is no 'key: value'"),
        ("num_slots: 2\ninitial_global_assignments:\n  1: [0, 9]\n", "2 slots cannot host"),
        ("num_slots: 3\ninitial_global_assignments:\n  1: [0, 1, 0]\n", "do not divide into gpus"),
    ],
)
def test_damaged_yaml_is_refused(text, message):
    with pytest.raises(co.FormatError, match=message):
        co.read_plan(stream(text), gpus=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["layer_list"][0]["device_list"][0]["device_expert"].pop(), "on no GPU"),
        (lambda d: d["layer_list"][0].update(layer_id=7), "lists layer_id 7, 1, and .* sort it"),
        (lambda d: d["layer_list"].pop(), "claims 2 MoE layers and lists 1"),
        (lambda d: d["layer_list"][0].pop("device_list"), "'device_list' is missing"),
        (lambda d: d.update(layer_list=3), "damaged"),
        (lambda d: d.update(layer_list=[], moe_layer_count=0), "damaged"),
        (
            lambda d: d["layer_list"][0]["device_list"][0]["device_expert"].__setitem__(0, 2**70),
            "damaged",
        ),
        (
            lambda d: d["layer_list"][0]["device_list"][0]["device_expert"].__setitem__(0, 10**9),
            "cannot host",
        ),
        (
            lambda d: d["layer_list"][0]["device_list"][0]["device_expert"].__setitem__(0, "1"),
            "whole numbers",
        ),
    ],
)
def test_damaged_expert_maps_are_refused(change, message, tmp_path):
    co.export(UNIFORM, "vllm-ascend", tmp_path / MAP)
    document = json.loads((tmp_path / MAP).read_text())
    change(document)
    with pytest.raises(co.FormatError, match=message):
        co.read_plan(stream(document))


def test_flags_can_be_pasted_whatever_the_path(tmp_path):
    place = tmp_path / "b c's map.json"
    (_, option, *_) = co.export(UNIFORM, "sglang", place).flags
    assert shlex.split(option) == ["--init-expert-location", str(place)]
    words = shlex.split(co.export(UNIFORM, "vllm-ascend", place).flags[0])
    assert json.loads(words[-1])["eplb_config"]["expert_map_path"] == str(place)


def test_what_is_no_plan_and_no_engine_is_not_exported(tmp_path):
    with pytest.raises(co.InputError, match=r"takes a Plan, not str; co\.read_plan"):
        co.export("plan.json", "sglang", tmp_path / MAP)
    with pytest.raises(co.InputError, match="engine=None is unknown"):
        co.export(UNIFORM, None, tmp_path / MAP)


def test_gpus_that_contradict_the_file_are_refused(tmp_path):
    co.export(UNIFORM, "vllm-ascend", tmp_path / MAP)
    UNIFORM.save(tmp_path / "plan.json")
    for name in (MAP, "plan.json"):
        assert co.read_plan(tmp_path / name, gpus=2).gpus == 2
        with pytest.raises(co.FormatError, match="is for 2 GPUs, not gpus=3"):
            co.read_plan(tmp_path / name, gpus=3)


# --- plans that engines cannot hold --------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_unequal_slots_are_refused_or_padded_at_a_stated_cost(engine, tmp_path):
    with pytest.raises(co.InputError, match=r"1 to 2 slots.*--slots uniform.*pad=True \(--pad\)"):
        co.export(RAGGED, engine, tmp_path / MAP)
    assert list(tmp_path.iterdir()) == []
    exported = co.export(RAGGED, engine, tmp_path / MAP, pad=True)
    assert exported.padding == 1
    assert "the memory of 0 experts per GPU" in str(exported)
    assert "every GPU hosts 2 in each of 2 layers, 4 in all" in exported.notes[0]


def test_duplicates_break_vllm_ascend_and_are_noted_elsewhere(tmp_path):
    plan = co.Plan.from_phy2log([[0, 0, 1, 2]], gpus=2)
    with pytest.raises(co.InputError, match=r"1 copies share.*such as fast"):
        co.export(plan, "vllm-ascend", tmp_path / MAP)
    assert "1 slots are wasted" in str(co.export(plan, "sglang", tmp_path / MAP))


@pytest.mark.parametrize(("engine", "hint"), [("sglan", "did you mean 'sglang'"), ("trt", "pass")])
def test_unknown_engines_are_refused(engine, hint, tmp_path):
    with pytest.raises(co.InputError, match=hint):
        co.export(UNIFORM, engine, tmp_path / MAP)


@pytest.mark.parametrize("engine", ["sglang", "vllm-ascend", "vllm"])
def test_names_that_engines_refuse_are_refused(engine, tmp_path):
    with pytest.raises(co.InputError, match=r"do not end in \.json, such as .*pass .*map\.json"):
        co.export(UNIFORM, engine, tmp_path / "map")
    assert list(tmp_path.iterdir()) == []


def test_layers_that_the_model_cannot_have_are_refused_for_sglang(tmp_path):
    plan = co.Plan(UNIFORM.copies, [5, 10**12])
    with pytest.raises(co.InputError, match="a row for every layer of the model"):
        co.export(plan, "sglang", tmp_path / MAP)


def test_a_failed_export_keeps_the_old_file(tmp_path, monkeypatch):
    (tmp_path / MAP).write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(co.InputError, match="No space left"):
        co.export(UNIFORM, "deepseek", tmp_path / MAP)
    assert [file.name for file in tmp_path.iterdir()] == [MAP]
    assert (tmp_path / MAP).read_text() == "old"
    with pytest.raises(co.InputError, match=r"cannot write .*No such file"):
        co.export(UNIFORM, "sglang", tmp_path / "no" / MAP)


# --- the command line ----------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["craftopt", *map(str, arguments)])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        capsys.readouterr()
        try:
            co_main()
        except SystemExit as stop:
            return stop.code or 0, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


# main() prints them, as outside of pytest.
shown = pytest.mark.filterwarnings("default::craftopt.errors.CraftoptWarning")


def co_main() -> None:
    from craftopt import cli  # noqa: PLC0415

    cli.main()


@shown
def test_an_engines_current_map_is_evaluated_on_its_recording(run, tmp_path):
    recording, location = tmp_path / "dump.pt", tmp_path / "location.json"
    recording.write_bytes(torch_file(stat()))
    location.write_text(json.dumps({"physical_to_logical_map": PHY2LOG.tolist()}))
    code, out, err = run("evaluate", location, recording, "--gpus", 2, "--json")
    assert code == 0, err
    expected = co.evaluate(UNIFORM, co.Loads(COUNTS[[0, 2], 1:], [1, 2]))
    assert json.loads(out)["relative_time"] == expected.relative_time
    code, out, err = run("evaluate", location, recording)
    assert (code, out) == (2, "")
    assert "--gpus" in err


def test_export_prints_the_flags_and_writes(run, tmp_path):
    UNIFORM.save(tmp_path / "plan.json")
    file = tmp_path / "location.json"
    code, out, err = run("export", tmp_path / "plan.json", "--engine", "SGLang", "-o", file)
    assert code == 0, err
    assert f"--init-expert-location {file}" in out
    assert "--ep-size 2 --ep-num-redundant-experts 2" in out
    assert list(json.loads(file.read_text())) == ["physical_to_logical_map"]
    RAGGED.save(tmp_path / "plan.json")
    code, out, err = run("export", tmp_path / "plan.json", "--engine", "sglang", "-o", file)
    assert code == 2
    assert "--pad" in err
    code, out, err = run(
        "export", tmp_path / "plan.json", "--engine", "sglang", "-o", file, "--pad", "--json"
    )
    assert json.loads(out)["padding"] == 1


@shown
def test_info_says_what_a_file_is_and_holds(run, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(torch_file(stat()))
    code, out, err = run("info", file)
    assert code == 0, err
    assert "SGLang's recorder, mode stat" in out
    assert "too few tokens" in out
    assert "dropped 1 layer(s) without tokens" in err
    printed = json.loads(run("info", file, "--json")[1])
    assert (printed["kind"], printed["windows"], printed["layer_ids"]) == ("loads", 2, [1, 2])
    file.write_bytes(npy(routed(9, 2, 8, 2)).getvalue())
    assert json.loads(run("info", file, "--json")[1])["kind"] == "trace"
    assert "experts per token" in run("info", file)[1]
    UNIFORM.save(file)
    assert json.loads(run("info", file, "--json")[1])["kind"] == "plan"
    assert "slots per GPU" in run("info", file)[1]


def test_enough_tokens_are_not_called_too_few(run, tmp_path):
    file = tmp_path / "file.npy"
    np.save(file, np.full((1, 2, 4), 100_000))
    assert "too few" not in run("info", file)[1]


# --- the samples --------------------------------------------------------------------------


SUM = [[40, 20, 6, 4], [18, 5, 37, 10]]  # what the toy recordings hold, as init_logical_count says


@pytest.mark.parametrize(
    ("name", "layers", "total"),
    [
        ("sglang/stat", None, SUM),
        ("sglang/per_pass", None, None),
        ("sglang/per_token", None, None),
        ("sglang/init_logical_count.json", None, SUM),
        ("trtllm/expert_statistic", None, [[41, 21, 5, 5], [17, 5, 37, 9]]),
        ("vllm/pr41141_stats.UNMERGED.jsonl", None, SUM),
        ("ascend/mindie_hotspot", 2, [[24, 14, 6, 2], [10, 18, 22, 8]]),
        ("deepseek_eplb/readme_example.npz", None, None),
    ],
)
def test_sample_recordings_are_read(name, layers, total):
    path = SAMPLES / name
    loads = quiet(lambda: co.read_loads(path, layers))
    assert loads.layers == 2
    if total is not None:
        assert loads.total().tokens[0].tolist() == total


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("sglang/init_mapping.json", "sglang"),
        ("sglang/init_mapping.pt", "sglang"),
        ("trtllm/moe_load_balancer.yaml", "tensorrt-llm"),
        ("ascend/expert_map.json", "vllm-ascend"),
        ("deepseek_eplb/readme_example.npz", "deepseek"),
        ("vllm/pr41141_mapping.UNMERGED.jsonl", "sglang"),
    ],
)
def test_sample_maps_are_read_written_and_read_again(name, engine, tmp_path):
    path = SAMPLES / name
    plan = quiet(lambda: co.read_plan(path, gpus=2))
    co.export(plan, engine, tmp_path / MAP)
    assert co.read_plan(tmp_path / MAP, gpus=2) == plan


def test_sample_traces_are_read():
    path = SAMPLES / "vllm/routed_experts_seq5_layers2_topk2.npy"
    assert co.read_trace(path).topk_ids.shape == (5, 2, 2)
    token = SAMPLES / "sglang/per_token"
    assert quiet(lambda: co.read_trace(token)).topk_ids.shape == (3, 2, 2)


def test_sample_folders_may_lie_anywhere(tmp_path):
    shutil.copytree(SAMPLES / "trtllm/expert_statistic", tmp_path / "elsewhere")
    assert co.read_loads(tmp_path / "elsewhere").windows == 2


def test_a_load_balancer_inside_moe_config_is_read():
    text = """
max_batch_size: 8
moe_config:
  backend: WIDEEP
  load_balancer:
    num_slots: 6
    initial_global_assignments:
      3: [0, 1, 2, 3, 0, 1]

      4:
      - 3
      - 2
      - 1
      - 0
      - 3
      - 2
    layer_updates_per_iter: 0
  max_num_tokens: 4096
enable_attention_dp: true
"""
    plan = co.read_plan(io.BytesIO(text.encode()), 3)
    assert plan.layer_ids.tolist() == [3, 4]
    assert plan.phy2log().tolist() == [[0, 1, 2, 3, 0, 1], [2, 3, 0, 1, 2, 3]]


def response(*arrays: np.ndarray | None) -> io.BytesIO:
    """A response of vLLM's API, with an aborted choice for None."""
    choices = []
    for array in arrays:
        stream = io.BytesIO()
        if array is not None:
            np.save(stream, array)
        text = base64.b64encode(stream.getvalue()).decode()
        choices.append({"text": "", "routed_experts": text if array is not None else None})
    return io.BytesIO(json.dumps({"object": "text_completion", "choices": choices}).encode())


def test_a_response_of_vllms_api_is_a_trace():
    rng = np.random.default_rng(2)
    first, second = (
        np.array([[rng.permutation(8)[:2] for _ in range(3)] for _ in range(n)], dtype=np.uint8)
        for n in (5, 4)
    )
    first[:, 0] = second[:, 0] = 0  # a dense layer
    held = quiet(lambda: co.read_trace(response(first, None, second), experts=8))
    assert held.layer_ids.tolist() == [1, 2]
    assert np.array_equal(held.topk_ids, np.concatenate([first, second])[:, 1:])
    assert held.sequence.tolist() == [0] * 5 + [1] * 4
    with pytest.raises(co.FormatError, match="holds a token trace, not loads"):
        co.read_loads(response(first))


@pytest.mark.parametrize("text", ["%%%", "AAAA", "é", ""])
def test_a_damaged_response_is_one_clear_error(text):
    document = json.dumps({"choices": [{"routed_experts": text}]}).encode()
    with pytest.raises(co.FormatError, match="choice 0: damaged routed_experts"):
        co.read_trace(io.BytesIO(document))


def test_a_response_without_experts_names_the_option_that_records_them():
    with pytest.raises(co.FormatError, match="start vLLM or SGLang with --enable-return-routed"):
        co.read_trace(response(None, None))


def test_choices_that_differ_in_layers_are_refused():
    with pytest.raises(co.FormatError, match=r"choices hold \(2, 3, 2\), \(2, 1, 2\)"):
        co.read_trace(response(np.ones((2, 3, 2), int), np.ones((2, 1, 2), int)))


# --- what engines make of a map ------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["tensorrt-llm", "sglang", "vllm", "vllm-ascend"])
def test_layers_outside_the_recording_are_filled_by_rule(engine, tmp_path):
    plan = co.Plan.from_phy2log([[3, 1, 0, 2, 0, 3]], gpus=3, layer_ids=[1])
    file = tmp_path / ("m.yaml" if engine == "tensorrt-llm" else "m.json")
    exported = co.export(plan, engine, file, fill=[2, 0, 1])
    assert exported.padding == 0
    assert "not planned: layers 0, 2, the experts in order" in exported.notes
    back = co.read_plan(file, 3)
    assert back.layer_ids.tolist() == [0, 1, 2]
    assert back.with_layers([1], [1]).copies.tolist() == plan.copies.tolist()
    start = co.Plan.from_phy2log([[0, 1, 2, 3, 0, 1]], gpus=3)
    assert [back.copies[layer].tolist() for layer in (0, 2)] == [start.copies[0].tolist()] * 2


def test_the_command_fills_layers_and_plans_for_the_nearest_copies(tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "l.npz", counts=np.random.default_rng(3).integers(1, 99, (2, 2, 8)))
    words = f"plan {tmp_path}/l.npz --gpus 4 --nodes 2 --replicas-per-layer 4 --slots uniform"

    def run(text: str) -> str:
        monkeypatch.setattr("sys.argv", ["craftopt", *text.split()])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None)
        return capsys.readouterr().out

    run(f"{words} --dispatch nearest-even -o {tmp_path}/p.json")
    loads = co.read_loads(tmp_path / "l.npz")
    problem = co.Problem(
        loads, 4, nodes=2, replicas_per_layer=4, slots="uniform", dispatch="nearest-even"
    )
    assert co.read_plan(tmp_path / "p.json") == co.solve(problem).plan
    figures = [
        co.evaluate(co.solve(problem).plan, loads, d).relative_time
        for d in ("nearest-even", "even")
    ]
    said = run(
        f"export {tmp_path}/p.json --engine sglang -o {tmp_path}/m.json --loads {tmp_path}/l.npz"
    )
    assert "relative time {:.3f} by the nearest copies, {:.3f} evenly".format(*figures) in said
    said = run(f"export {tmp_path}/p.json --engine tensorrt-llm -o {tmp_path}/m.yaml --fill 3-4")
    assert "not planned: layers 3-4" in said
