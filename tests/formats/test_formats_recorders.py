"""Recordings of tokens and totals: lmdeploy's dumps, Megatron's traces, responses of APIs."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from engine_files import torch_file
from strategies import quiet

import craftopt as co


def routed(tokens: int, layers: int, experts: int, k: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.argsort(rng.random((tokens, layers, experts)), axis=2)[:, :, :k].astype(np.int32)


def document(value: object) -> io.BytesIO:
    return io.BytesIO(json.dumps(value).encode())


def lines(values: list[object]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


# --- lmdeploy ------------------------------------------------------------------------------------

WINDOWS = np.random.default_rng(1).integers(1, 50, (3, 2, 8))


def dump(counts: np.ndarray, step: int, rank: int = 0) -> bytes:
    balance = np.ones(len(counts), np.float32)
    return torch_file({"counts": counts, "balancedness": balance, "step": step, "rank": rank})


@pytest.fixture
def dumps(tmp_path):
    def write(*parts: tuple[np.ndarray, int, int]):
        for counts, step, rank in parts:
            (tmp_path / f"rank{rank}_step{step}_expert_counts.pt").write_bytes(
                dump(counts, step, rank)
            )
        return tmp_path

    return write


def test_lmdeploys_totals_become_windows(dumps):
    totals = WINDOWS.cumsum(axis=0)
    folder = dumps((totals[0], 2, 0), (totals[2], 110, 0), (totals[1], 30, 0))
    with pytest.warns(co.CraftoptWarning, match="a window is what came between two"):
        loads = co.read_loads(folder, range(3, 5))
    assert np.array_equal(loads.tokens, WINDOWS)
    assert loads.window_names == ("2", "30", "110")
    assert loads.layer_ids.tolist() == [3, 4]
    alone = co.read_loads(folder / "rank0_step110_expert_counts.pt")
    assert np.array_equal(alone.tokens[0], totals[2])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([(WINDOWS[0] + 9, 2, 0), (WINDOWS[0], 3, 0)], "these are several recordings"),
        ([(WINDOWS[0], 2, 0), (WINDOWS[0], 3, 1)], "the ranks 0, 1, each of which adds up all"),
        ([(WINDOWS[0], 2, 0), (WINDOWS[0][:, :4].copy(), 3, 0)], "differ in layers or experts"),
        ([(WINDOWS, 2, 0)], r"damaged: 'counts' has shape \(3, 2, 8\)"),
        ([(WINDOWS[0], "x", 0)], "step is 'x'"),
        ([(WINDOWS[0] + 0.5, 2, 0)], "'counts' holds float64, not whole numbers"),
    ],
)
def test_dumps_that_are_no_one_recording_are_refused(parts, message, dumps):
    with pytest.raises(co.FormatError, match=message):
        co.read_loads(dumps(*parts))


# --- Megatron ------------------------------------------------------------------------------------


def megatron(ids: np.ndarray, step: int = 0, rank: int = 0, **more: object) -> list[dict]:
    return [
        {"step": step, "stage": "pre_dispatch", "block": "decoder", "layer": layer, "rank": rank,
         "num_tokens": len(ids), "topk": ids.shape[2], "top_indices": ids[:, at].tolist()} | more
        for at, layer in enumerate(range(3, 3 + ids.shape[1]))
    ]  # fmt: skip


def test_a_routing_trace_of_megatron_is_read_rank_by_rank(tmp_path):
    one, two, other = (routed(n, 2, 16, 4, n) for n in (5, 7, 6))
    draft = megatron(one[:, :1], block="mtp", mtp_idx=0)
    for rank, ids in enumerate([np.concatenate([one, two]), other, other]):
        steps = [ids[:5], ids[5:]]
        found = [record for step, part in enumerate(steps) for record in megatron(part, step, rank)]
        (tmp_path / f"router_trace_rank{rank}.jsonl").write_bytes(lines([*found, *draft]))
    with pytest.warns(co.CraftoptWarning) as notes:
        trace = co.read_trace(tmp_path, 16)
    assert np.array_equal(trace.topk_ids, np.concatenate([one, two, other]))
    assert trace.layer_ids.tolist() == [3, 4]
    said = " ".join(str(note.message) for note in notes)
    assert "left out 3 record(s) of multi-token prediction" in said
    assert "3 ranks were taken for data-parallel ones; rank(s) 2 repeat one before" in said
    alone = quiet(lambda: co.read_trace(tmp_path / "router_trace_rank1.jsonl", 16))
    assert np.array_equal(alone.topk_ids, other)
    with pytest.raises(co.FormatError, match=r"holds a token trace, not loads.*--batch N"):
        co.read_loads(tmp_path)


@pytest.mark.filterwarnings("ignore::craftopt.errors.CraftoptWarning")
def test_micro_batches_and_a_last_step_that_was_cut_off():
    first, second, cut = (routed(4, 2, 16, 2, seed) for seed in range(3))
    found = [*megatron(first), *megatron(second), *megatron(cut, 1)[:1]]
    with pytest.warns(co.CraftoptWarning, match="left out step 1 of rank 0, which was cut off"):
        trace = co.read_trace(io.BytesIO(lines(found)), 16)
    assert np.array_equal(trace.topk_ids, np.concatenate([first, second]))
    idle = megatron(np.zeros((0, 2, 2), int), 7)
    assert quiet(lambda: co.read_trace(io.BytesIO(lines([*found[:4], *idle])), 16)).tokens == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_indices": [[0, 1], [2]]}, "record 1: damaged: 'top_indices' is no table"),
        ({"top_indices": [[0, "1"]]}, "no table of expert ids"),
        ({"top_indices": None}, "no table of expert ids"),
        ({"top_indices": [[2**40]]}, "no table of expert ids"),
        ({"step": None}, r"step, layer and rank are \[None, 3, 0\]"),
        ({"block": "mtp"}, "holds no record of a layer"),
        ({"layer": 9}, "does not hold the same tokens in every layer"),
    ],
)
def test_damaged_records_are_refused(change, message):
    records = megatron(routed(4, 2, 16, 2))
    for record in records if "block" in change else records[:1]:
        record.update(change)
    records += megatron(routed(4, 2, 16, 2), 1) if "layer" in change else []
    with pytest.raises(co.FormatError, match=message):
        quiet(lambda: co.read_trace(io.BytesIO(lines(records))))


def test_stages_of_a_pipeline_are_refused_where_they_show(tmp_path):
    for rank, layers in enumerate([2, 3]):
        found = lines(megatron(routed(4, layers, 16, 2, rank), rank=rank))
        (tmp_path / f"router_trace_rank{rank}.jsonl").write_bytes(found)
    with pytest.raises(co.FormatError, match="different layers, as stages of a pipeline do"):
        co.read_trace(tmp_path)


# --- responses -----------------------------------------------------------------------------------


def sglang(ids: np.ndarray, **more: object) -> dict:
    text = base64.b64encode(ids.astype("<i4").tobytes()).decode()
    info = {"prompt_tokens": 3, "completion_tokens": len(ids) - 2, "routed_experts": text}
    return {"text": "", "meta_info": info | more}


def test_sglangs_routed_experts_get_their_shape_from_the_layers():
    ids = routed(6, 4, 16, 2)
    ids[:, 0] = 0  # a dense layer
    for layers in (4, range(4)):
        trace = quiet(lambda given=layers: co.read_trace(document(sglang(ids)), 16, given))
        assert np.array_equal(trace.topk_ids, ids[:, 1:])
        assert trace.layer_ids.tolist() == [1, 2, 3]
    other = routed(9, 4, 16, 2, 5)
    for several in (document([sglang(ids), sglang(other)]),
                    io.BytesIO(lines([sglang(ids), sglang(other)]))):  # fmt: skip
        trace = quiet(lambda held=several: co.read_trace(held, 16, [10, 11, 12, 13]))
        assert trace.sequence.tolist() == [0] * 6 + [1] * 9
        assert trace.layer_ids.tolist() == [10, 11, 12, 13]


@pytest.mark.parametrize("place", ["sglext", "sgl_ext", "choice"])
def test_sglangs_experts_stand_beside_openais_choices_or_in_them(place):
    ids = routed(6, 4, 16, 2)
    held = sglang(ids)["meta_info"]
    extension = {"routed_experts": held.pop("routed_experts")}
    response: dict = {"choices": [{"text": ""}], "usage": held}
    if place == "choice":
        response["choices"][0]["sglext"] = extension
    else:
        response[place] = extension
    assert np.array_equal(co.read_trace(document(response), 16, 4).topk_ids, ids)


@pytest.mark.parametrize(
    ("layers", "more", "message"),
    [
        (None, {}, r"8 numbers a token without a shape.*--layers 48"),
        (3, {}, "which layers=3 do not divide"),
        (0, {}, "layers=0"),
        (4, {"prompt_tokens": None}, "no prompt_tokens and completion_tokens"),
        (4, {"prompt_tokens": 4}, r"48 numbers for 7 tokens.*routed_experts_start_len=0"),
        (4, {"routed_experts": "%%"}, "damaged routed_experts"),
        (4, {"routed_experts": 5}, "damaged routed_experts"),
        (4, {"routed_experts": None}, "return_routed_experts"),
        (4, {"routed_experts": ""}, "0 numbers for 6 tokens"),
    ],
)
def test_numbers_without_a_shape_are_never_guessed(layers, more, message):
    with pytest.raises(co.FormatError, match=message):
        co.read_trace(document(sglang(routed(6, 4, 16, 2), **more)), 16, layers)


def test_vllms_lists_of_prompt_and_choices_are_one_sequence():
    prompt, first, second = (routed(n, 2, 16, 2, n) for n in (5, 3, 4))
    response = {
        "choices": [{"routed_experts": first.tolist()}, {"routed_experts": second.tolist()}],
        "prompt_routed_experts": prompt.tolist(),
    }
    trace = co.read_trace(document(response), 16)
    assert np.array_equal(trace.topk_ids, np.concatenate([prompt, first, second]))
    assert trace.sequence.tolist() == [0] * 8 + [1] * 4
    only = quiet(
        lambda: co.read_trace(document({**response, "choices": [{"routed_experts": None}]}), 16)
    )
    assert np.array_equal(only.topk_ids, prompt)
    ragged = {"choices": [{"routed_experts": [[[1, 2]], [[3]]]}]}
    with pytest.raises(co.FormatError, match="choice 0, routed_experts is ragged"):
        co.read_trace(document(ragged))


# --- a pool of slots -----------------------------------------------------------------------------

RAGGED = [[[0, 1, 2], [2, 3, 0]], [[0, 1], [2, 3]]]  # layers, GPUs, experts


def plan_of(layers: list[list[list[int]]]) -> co.Plan:
    copies = np.zeros((len(layers), 4, len(layers[0])), int)
    for layer, gpus in enumerate(layers):
        for gpu, experts in enumerate(gpus):
            copies[layer, experts, gpu] += 1
    return co.Plan(copies)


def test_a_pool_holds_different_slots_in_different_layers(tmp_path):
    plan, file = plan_of(RAGGED), tmp_path / "m.json"
    with pytest.raises(co.InputError, match="equally many on every GPU in every layer"):
        co.export(plan, "vllm-ascend", file)
    exported = co.export(plan, "vllm-ascend-pool", file)
    assert exported.padding == 0
    assert "experimental" in exported.notes[0]
    written = json.loads(file.read_text())
    assert (written["pool_mode"], written["pool_start"]) == (True, 2)
    assert [layer["pool_size"] for layer in written["layer_list"]] == [1, 0]
    assert [
        [device["device_expert"] for device in layer["device_list"]]
        for layer in written["layer_list"]
    ] == [[sorted(experts) for experts in gpus] for gpus in RAGGED]
    assert co.read_plan(file) == plan


def test_a_pool_is_filled_up_within_a_layer_alone(tmp_path):
    plan, file = plan_of([[[0, 1, 2], [2, 3]], [[0, 1], [2, 3]]]), tmp_path / "m.json"
    with pytest.raises(co.InputError, match="equally many on every GPU of a layer"):
        co.export(plan, "vllm-ascend-pool", file)
    exported = co.export(plan, "vllm-ascend-pool", file, pad=True)
    assert exported.padding == 1
    assert "hosts 2 to 3 in each of 2 layers" in exported.notes[0]
    assert co.read_plan(file).slots.tolist() == [[3, 3], [2, 2]]


def test_what_a_pool_cannot_hold_is_refused(tmp_path):
    thin = co.Plan([[[1, 0], [0, 1], [1, 0]]])
    with pytest.raises(co.InputError, match="wants 3 experts to divide among 2 GPUs"):
        co.export(thin, "vllm-ascend-pool", tmp_path / "m.json", pad=True)
    twice = co.Plan([[[2, 0], [0, 1], [0, 1]]])
    with pytest.raises(co.InputError, match="finds only one of them"):
        co.export(twice, "vllm-ascend-pool", tmp_path / "m.json")


def test_an_unequal_map_of_devices_is_a_plan(tmp_path):
    file = tmp_path / "m.json"
    layers = [[[0, 1, 2], [3]], [[0], [1, 2, 3]]]
    devices = [{"device_list": [{"device_expert": held} for held in gpus]} for gpus in layers]
    file.write_text(json.dumps({"layer_list": devices}))
    assert co.read_plan(file) == plan_of(layers)
