"""SGLang's .pt files are read as written, and no pickle ever makes anything happen."""

from __future__ import annotations

import io
import pickle
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
from engine_files import (
    COUNTS,
    PHY2LOG,
    Pickle,
    per_pass,
    per_token,
    stat,
    to_experts,
    torch_file,
    torch_tensor_file,
    torch_zip,
)

import craftopt as co


def read(data: bytes) -> co.Loads:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", co.CraftoptWarning)
        return co.read_loads(io.BytesIO(data))


def refused(data: bytes, message: str) -> None:
    with pytest.raises(co.FormatError, match=message) as caught:
        read(data)
    assert "\n" not in str(caught.value)


# --- modes stat and stat_approx -----------------------------------------------------------------


def test_stat_keeps_used_steps_and_the_numbers_of_moe_layers():
    data = io.BytesIO(torch_file(stat()))
    with pytest.warns(co.CraftoptWarning, match=r"dropped 1 layer\(s\) without tokens.*: 0$"):
        loads = co.read_loads(data)
    assert loads == co.Loads(COUNTS[[0, 2], 1:], [1, 2], ["0", "2"])


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "i8"])
@pytest.mark.parametrize("order", "CF")
def test_tensors_of_any_whole_type_and_order_are_read(dtype, order):
    counts = np.array(COUNTS[:, 1:], dtype=dtype, order=order)
    assert np.array_equal(read(torch_file(stat(counts))).tokens, counts[[0, 2]])


def test_big_endian_files_and_views_of_a_storage_are_read():
    whole = np.arange(60, dtype=">i4").reshape(5, 3, 4)
    text = Pickle()
    view = text.tensor(whole, offset=12, shape=(3, 3, 4), strides=(12, 4, 1))
    data = torch_zip(text.write({"logical_count": view}), text.storages, b"big")
    assert np.array_equal(read(data).tokens, whole[1:4])


def test_a_dump_from_the_gpu_is_read():
    assert read(torch_tensor_file(COUNTS, location="cuda:0")).windows == 2


def test_stat_dumps_of_a_folder_follow_each_other(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.pt").write_bytes(torch_file(stat(COUNTS[:, 1:] * ord(name))))
    loads = co.read_loads(tmp_path)
    assert loads.window_names == ("a/0", "a/2", "b/0", "b/2")
    assert np.array_equal(loads.tokens[2:], COUNTS[[0, 2], 1:] * ord("b"))


# --- modes per_pass and per_token ----------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    def write(*documents: dict) -> str:
        for rank, document in enumerate(documents):
            (tmp_path / f"recorder_1.5_{rank}.pt").write_bytes(torch_file(document))
        return str(tmp_path)

    return write


@pytest.mark.filterwarnings("ignore::craftopt.errors.CraftoptWarning")
def test_per_pass_adds_ranks_up_and_maps_slots_back(folder):
    documents = [per_pass(0), per_pass(1)]
    loads = co.read_loads(folder(*documents))
    assert loads.window_names == ("7", "8", "9")
    assert loads.layer_ids.tolist() == [1, 2]
    for window in range(3):
        both = sum(d["records"][window]["global_physical_count"] for d in documents)
        assert np.array_equal(loads.tokens[window], to_experts(both)[1:])


@pytest.mark.filterwarnings("ignore:.*dropped 1 layer:craftopt.errors.CraftoptWarning")
def test_one_ranks_file_alone_is_read_with_a_warning():
    with pytest.warns(co.CraftoptWarning, match="tokens of rank 1 alone; pass the folder"):
        loads = co.read_loads(io.BytesIO(torch_file(per_pass(1))))
    assert loads.windows == 3


@pytest.mark.filterwarnings("ignore:.*dropped 1 layer:craftopt.errors.CraftoptWarning")
def test_passes_that_a_rank_did_not_record_are_left_out_with_a_warning(folder):
    short = per_pass(1)
    del short["records"][2]
    with pytest.warns(co.CraftoptWarning, match=r"left out 1 forward pass\(es\)"):
        assert co.read_loads(folder(per_pass(0), short)).window_names == ("7", "8")


def test_maps_that_differ_between_ranks_are_refused(folder):
    other = per_pass(1, phy2log=PHY2LOG[:, ::-1].copy())
    with pytest.raises(co.FormatError, match=r"_1.pt ends with another map.*--enable-eplb"):
        co.read_loads(folder(per_pass(0), other))


def test_a_map_of_other_slots_is_refused():
    document = per_pass(0, phy2log=np.concatenate([PHY2LOG, PHY2LOG[:, :2]], axis=1))
    refused(torch_file(document), r"shape \(3, 6\), the map \(3, 8\)")


def test_a_map_without_an_expert_or_with_an_empty_slot_is_refused():
    missing, empty = PHY2LOG.copy(), PHY2LOG.copy()
    missing[1, 2] = 3
    empty[1, 0] = -1
    refused(torch_file(per_pass(0, phy2log=missing)), "hosts expert 2 nowhere in layer 1")
    refused(torch_file(per_pass(0, phy2log=empty)), "do not fit the map")


def test_a_missing_rank_and_a_dump_twice_are_refused(folder):
    with pytest.raises(
        co.FormatError, match="no file of rank 1; pass the files of all ranks, 0 to 2"
    ):
        co.read_loads(folder(per_pass(0), per_pass(2)))
    with pytest.raises(co.FormatError, match="forward pass 7 of rank 0 is there twice"):
        co.read_loads(folder(per_pass(0), per_pass(0)))


@pytest.mark.filterwarnings("ignore::craftopt.errors.CraftoptWarning")
def test_per_token_gives_loads_and_a_trace_that_agree(folder):
    path = folder(per_token(0), per_token(1, tokens=4))
    loads, trace = co.read_loads(path), co.read_trace(path)
    assert trace.topk_ids.shape == (18, 2, 2)
    assert trace.layer_ids.tolist() == loads.layer_ids.tolist() == [1, 2]
    assert np.array_equal(trace.batches(100).tokens[0], loads.total().tokens[0])
    assert trace.by_sequence().windows == 8


@pytest.mark.filterwarnings("ignore::craftopt.errors.CraftoptWarning")
def test_per_token_without_counts_or_lengths_is_read():
    document = per_token()
    expected = read(torch_file(document))
    for record in document["records"]:
        del record["global_physical_count"]
        record["extend_seq_lens"] = None
    assert read(torch_file(document)) == expected
    assert co.read_trace(io.BytesIO(torch_file(document))).sequence is None


def test_choices_that_contradict_the_map_are_refused():
    document = per_token()
    moved = PHY2LOG.copy()
    moved[1:, [0, 5]] = moved[1:, [5, 0]]
    chosen = document["records"][0]["topk_ids_of_layer"]
    chosen[1, 0, :2] = 0, 1
    document["last_physical_to_logical_map"] = moved  # both slots host expert 1 now
    refused(torch_file(document), "has one expert twice in layer 1 under the map: the map changed")
    with pytest.raises(co.FormatError, match="one expert twice"):
        co.read_trace(io.BytesIO(torch_file(document)))


def test_per_pass_is_no_trace():
    with pytest.raises(co.FormatError, match="mode per_pass: it holds loads, not a token trace"):
        co.read_trace(io.BytesIO(torch_file(per_pass(0))))


def test_expert_locations_are_plans_for_as_many_gpus_as_are_said():
    data = torch_file({"physical_to_logical_map": PHY2LOG})
    assert np.array_equal(co.read_plan(io.BytesIO(data), gpus=6).phy2log(), PHY2LOG)
    with pytest.raises(co.FormatError, match=r"how many GPUs.*pass gpus= \(--gpus\)"):
        co.read_plan(io.BytesIO(data))
    refused(data, "expert location of SGLang.*co.read_plan")


# --- what is refused ----------------------------------------------------------------------------


def torch_of(text: bytes) -> bytes:
    return torch_zip(b"\x80\x02" + text + b".", [COUNTS.tobytes()])


HOSTILE = {
    "os.system": b"cos\nsystem\n(X\x07\x00\x00\x00touch xtR",
    "builtins.eval": b"c__builtin__\neval\n(X\x01\x00\x00\x001tR",
    "getattr": b"c__builtin__\ngetattr\n(c__builtin__\nint\nX\x04\x00\x00\x00realtR",
    "torch.load": b"ctorch\nload\n(X\x01\x00\x00\x00xtR",
    "numpy": b"cnumpy\nzeros\n(J\xff\xff\xff\x7ftR",
    "instance": b"(X\x01\x00\x00\x00xios\nsystem\n",
    "object": b"(cos\nsystem\nX\x01\x00\x00\x00xo",
    "new object": b"ccollections\nOrderedDict\n)\x81",
    "build": b"}}b",
    "extension": b"\x82\x01",
    "stack global": b"\x8c\x02os\x8c\x06system\x93",
    "reduce of a number": b"K\x01)R",
    "reduce of a text": b"X\x01\x00\x00\x00x)R",
    "dictionary with arguments": b"ccollections\nOrderedDict\n(]tR",
    "persistent text": b"Pstorage\n",
    "persistent number": b"K\x01Q",
    "memo of a giant index": b"Nr\xff\xff\xff\x7fj\xfe\xff\xff\x7f",
    "text of gigabytes": b"X\xff\xff\xff\xffx",
    "number of gigabytes": b"\x8b\xff\xff\xff\x7f\x01",
    "bytes of gigabytes": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
    "frame of gigabytes": b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    "duplicates": b"]2222222222",
    "empty stack": b"0",
    "no mark": b"t",
    "tuple of nothing": b"\x87",
    "items on a number": b"K\x01(K\x01K\x02u",
    "list as a key": b"}]K\x01s",
    "odd items": b"}(K\x01u",
    "memo of nothing": b"h\x05",
    "number of 5000 digits": b"I" + b"1" * 5000 + b"\n",
    "unknown operation": b"\xfe",
    "a list": b"]",
    "nothing": b"",
    "another dictionary": b"}X\x05\x00\x00\x00stateK\x01s",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_and_nothing_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracemalloc.start()
    try:
        refused(torch_of(HOSTILE[name]), "data.pkl|PyTorch file")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("protocol", range(6))
def test_a_trap_is_never_sprung(protocol, tmp_path):
    class Trap:
        def __reduce__(self):
            return ((tmp_path / "run").touch, ())

    text = pickle.dumps({"records": [Trap()]}, protocol)
    refused(torch_zip(text, []), "data.pkl")
    assert list(tmp_path.iterdir()) == []


CLAIMS = {
    "a storage of gigabytes": {"count": 2**31 - 1},
    "a negative storage": {"count": -1},
    "a shape of gigabytes": {"shape": (2**20, 2**10, 4)},
    "repeated values": {"shape": (2**20, 3, 4), "strides": (0, 4, 1)},
    "an offset beyond": {"offset": 30},
    "a negative offset": {"offset": -4},
    "strides beyond": {"strides": (12, 5, 1)},
    "negative strides": {"strides": (12, -4, 1)},
    "too few strides": {"strides": (12, 4)},
    "sizes below 0": {"shape": (-3, -3, 4)},
    "sizes of fractions": {"shape": (3.0, 3, 4)},
    "too many dimensions": {"shape": (1,) * 70, "strides": (1,) * 70},
    "another type": {"storage": "LongStorage"},
    "a type of no numbers": {"storage": "BFloat16Storage"},
    "a module": {"storage": "nn"},
    "a missing storage": {"key": "7"},
    "a path as key": {"key": "../data.pkl"},
    "fractions": {"storage": "FloatStorage"},
    "a location that is no text": {"location": 3},
}


@pytest.mark.parametrize("name", CLAIMS)
def test_false_claims_are_refused_before_anything_is_made(name):
    data = torch_tensor_file(COUNTS, **CLAIMS[name])
    tracemalloc.start()
    try:
        refused(data, "tensor|storage|entry|names|holds float32")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_the_same_bytes_cannot_be_claimed_again_and_again():
    text = Pickle()
    tensor = text.tensor(np.ones((100, 1000), dtype=np.int64))
    map_ = text.tensor(np.tile(np.arange(1000), (100, 1)))
    records = [
        {"forward_pass_id": n, "rank": 0, "global_physical_count": tensor} for n in range(500)
    ]
    data = text.write({"records": records, "last_physical_to_logical_map": map_})
    refused(torch_zip(data, text.storages), "claim more bytes than the")


def test_pickles_of_millions_of_values_are_refused_by_their_number():
    refused(torch_of(b"N" * 3_100_000), "over 3000000 values")
    refused(torch_of(b"]" * 2_000_000), "over 1048576 containers")
    refused(torch_of(b"N" * (2**25 + 1)), "bytes; at most 33554432")


def test_damaged_archives_are_refused():
    whole = torch_file(stat())
    refused(whole[: len(whole) // 2], "damaged or truncated zip")
    refused(whole.replace(COUNTS.tobytes(), bytes(COUNTS.nbytes)), "damaged or truncated zip entry")
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(whole)) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    refused(packed.getvalue(), "is compressed; torch.save stores plainly")
    refused(torch_zip(b"\x80\x02}.", [], b"middle"), "byte order")


def test_the_old_format_is_refused_with_the_command_that_converts_it():
    legacy = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + b"more"
    refused(legacy, r"python -c .*torch\.save\(torch\.load\(.*weights_only=True")


def test_it_reads_as_torch_does(tmp_path):
    torch = pytest.importorskip("torch", reason="compares with torch where it is installed")
    file = tmp_path / "dump.pt"
    for document in (stat(), per_pass(0), per_token()):
        ours = torch_file(document)
        file.write_bytes(ours)
        loaded = torch.load(file, weights_only=True)
        torch.save(loaded, file)
        assert read(file.read_bytes()) == read(ours)
