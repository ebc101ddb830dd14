"""read_loads: what is read, what is refused, and that nothing else ever happens."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
import struct
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
from files import measured
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import craftopt as co

COUNTS = np.array([[[8, 4, 2, 2], [1, 2, 3, 4]], [[2, 2, 4, 8], [5, 0, 5, 0]]])
IDS = [3, 4]
NAMES = ["chat", "code"]


def npy(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(**arrays) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def zip_of(entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name)  # of 1980: the bytes do not depend on the clock
            archive.writestr(entry, content, method)
    return stream.getvalue()


def npy_claiming(shape, descr: str = "'<i8'", version: int = 1) -> bytes:
    """A .npy header of any claim, with 64 bytes behind it."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + bytes(64)


def table(*rows: str, header: str = "window,layer,expert,tokens") -> bytes:
    return "\n".join([header, *rows, ""]).encode()


def csv_of(loads: co.Loads, columns=("window", "layer", "expert", "tokens")) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns)
    writer.writeheader()
    for window, layer, expert in np.ndindex(loads.tokens.shape):
        writer.writerow(
            {
                "window": loads.window_names[window],
                "layer": loads.layer_ids[layer],
                "expert": expert,
                "tokens": repr(float(loads.tokens[window, layer, expert])),
            }
        )
    return stream.getvalue().encode()


def doc(**fields) -> bytes:
    return json.dumps(fields).encode()


def read(data: bytes) -> co.Loads:
    return co.read_loads(io.BytesIO(data))


LOADS = co.Loads(COUNTS, IDS, NAMES)
VALID = {
    "npz": npz(counts=COUNTS, layer_ids=IDS, step_names=NAMES),
    "npy": npy(COUNTS),
    "json": doc(counts=COUNTS.tolist(), layer_ids=IDS, step_names=NAMES),
    "csv": csv_of(LOADS),
}

# --- what is read -------------------------------------------------------------------------

names = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)


@st.composite
def random_loads(draw) -> co.Loads:
    shape = draw(st.tuples(*[st.integers(1, 4)] * 3))
    dtype, cells = draw(
        st.sampled_from(
            [
                (np.float64, st.one_of(st.just(0.0), st.floats(1e-30, 1e30))),
                (np.int64, st.integers(0, 2**50)),
                (np.uint8, st.integers(0, 200)),
            ]
        )
    )
    tokens = draw(hnp.arrays(dtype, shape, elements=cells))
    tokens[0, :, 0] += dtype(1)  # no layer is idle
    ids = draw(st.lists(st.integers(0, 10**17), min_size=shape[1], max_size=shape[1], unique=True))
    texts = st.lists(
        names.map(str.strip).filter(bool), min_size=shape[0], max_size=shape[0], unique=True
    )
    return co.Loads(tokens, ids, draw(texts))


@given(random_loads(), st.sampled_from(["counts", "tokens"]), st.booleans())
def test_npz_gives_back_what_was_written(loads, key, compressed):
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(
        stream,
        **{key: loads.tokens},
        layer_ids=loads.layer_ids,
        step_names=np.array(loads.window_names),
    )
    assert read(stream.getvalue()) == loads


@given(random_loads(), st.sampled_from("CF"), st.sampled_from("<>"))
def test_npy_gives_back_what_was_written(loads, order, byte_order):
    array = np.array(loads.tokens, dtype=f"{byte_order}f8", order=order)
    assert co.read_loads(io.BytesIO(npy(array)), kind="loads") == co.Loads(loads.tokens)


@given(random_loads(), st.sampled_from(["counts", "tokens"]), st.booleans())
def test_json_gives_back_what_was_written(loads, key, ascii_only):
    document = {
        key: loads.tokens.tolist(),
        "layer_ids": loads.layer_ids.tolist(),
        "window_names": loads.window_names,
    }
    assert read(json.dumps(document, ensure_ascii=ascii_only).encode()) == loads


@given(random_loads(), st.permutations(["window", "layer", "expert", "tokens"]), st.booleans())
def test_csv_gives_back_what_was_written(loads, columns, bom):
    order = np.argsort(loads.layer_ids)
    expected = co.Loads(loads.tokens[:, order], loads.layer_ids[order], loads.window_names)
    data = csv_of(loads, columns)
    assert read(b"\xef\xbb\xbf" + data if bom else data) == expected


@pytest.mark.parametrize("format_", VALID)
def test_path_text_path_and_stream_give_the_same_whatever_the_name(format_, tmp_path):
    path = tmp_path / "loads.dat"
    path.write_bytes(VALID[format_])
    with path.open("rb") as stream, path.open("rb", buffering=0) as raw:
        loads = co.read_loads(stream)
        assert co.read_loads(raw) == loads
        assert not stream.closed
    assert co.read_loads(path) == co.read_loads(str(path)) == loads
    assert loads == (co.Loads(COUNTS) if format_ == "npy" else LOADS)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("glm52_five_domains", (40, 75, 256)),
        ("gpt_oss_20b_benchmarks", (11, 24, 32)),
        ("deepseek_v2_lite_esft", (4, 26, 64)),
        ("olmoe_1b7b_allenai", (8, 3, 64)),
    ],
)
def test_recorded_files_are_read_as_numpy_reads_them(name, shape):
    path = measured(name)
    loads = co.read_loads(path)
    with np.load(path, allow_pickle=False) as arrays:
        expected = co.Loads(
            arrays["counts"], arrays["layer_ids"], tuple(map(str, arrays["step_names"]))
        )
    assert loads == expected
    assert loads.tokens.shape == shape


def test_recorded_trace_is_refused_as_a_trace():
    path = measured("deepseek_v2_lite_esft_trace")
    with pytest.raises(co.FormatError, match=r"token trace.*read_trace"):
        co.read_loads(path)


@pytest.mark.parametrize("make", [npz, doc], ids=["npz", "json"])
def test_counts_come_before_tokens(make):
    data = make(counts=COUNTS.tolist(), tokens=[27686, 27904])
    assert read(data) == co.Loads(COUNTS)


def test_json_list_alone_and_null_and_blanks_and_bom_are_read():
    assert read(b"\xef\xbb\xbf \n" + json.dumps(COUNTS.tolist()).encode()) == co.Loads(COUNTS)
    assert read(doc(counts=COUNTS.tolist(), layer_ids=None, step_names=None)) == co.Loads(COUNTS)


def test_names_may_be_step_numbers_or_bytes():
    assert read(npz(counts=COUNTS, step_names=[10, 20])).window_names == ("10", "20")
    assert read(npz(counts=COUNTS, step_names=np.array([b"a", b"b"]))).window_names == ("a", "b")
    assert read(doc(counts=COUNTS.tolist(), step_names=[10, 20])).window_names == ("10", "20")


def test_two_dimensions_are_one_window():
    for data in (npz(tokens=COUNTS[0]), npy(COUNTS[0]), doc(tokens=COUNTS[0].tolist())):
        assert read(data) == co.Loads(COUNTS[0])


@pytest.mark.filterwarnings("ignore:.*the columns note, which are not read")
def test_csv_fills_missing_cells_and_sorts_layers_and_ignores_further_columns():
    data = table(
        "b,7, 2 ,1.5,x", "", "a,3,0,2e1,y", "b,3,1,4,z", header=" window,layer,expert,tokens,note"
    )
    expected = np.zeros((2, 2, 3))
    expected[0, 1, 2], expected[1, 0, 0], expected[0, 0, 1] = 1.5, 20, 4
    with pytest.warns(co.CraftoptWarning, match=r"experts, 3, is inferred.*--experts"):
        assert read(data) == co.Loads(expected, [3, 7], ["b", "a"])


def test_csv_of_single_token_windows_is_not_too_sparse():
    rows = [f"{window},{layer},{window % 128},1" for window in range(2000) for layer in range(8)]
    assert co.read_loads(io.BytesIO(table(*rows)), experts=128).tokens.shape == (2000, 8, 128)


# --- idle layers and windows --------------------------------------------------------------


def test_idle_layers_are_dropped_with_a_notice_at_the_callers_line():
    counts = np.zeros((2, 4, 3))
    counts[:, [1, 2]] = 1
    with pytest.warns(co.CraftoptWarning, match=r"<stream>: dropped 2 layer\(s\).*: 0, 9") as seen:
        loads = read(npz(counts=counts, layer_ids=[0, 5, 6, 9]))
    assert loads == co.Loads(counts[:, 1:3], [5, 6])
    assert seen[0].filename == __file__


def test_notice_about_many_idle_layers_stays_short():
    counts = np.zeros((1, 1000, 2))
    counts[0, -1] = 1
    with pytest.warns(co.CraftoptWarning, match=r"999 layer.*: 0, 1, 2.*\.\.\., 998") as seen:
        assert read(npy(counts)).layer_ids.tolist() == [999]
    assert len(str(seen[0].message)) < 200


def test_idle_windows_are_kept():
    counts = COUNTS.copy()
    counts[1] = 0
    assert read(npy(counts)) == co.Loads(counts)


# --- what is refused ----------------------------------------------------------------------


def with_cell(value):
    """Counts that are right but for one cell, in each format."""
    array = COUNTS.astype(np.float64)
    array[1, 0, 2] = value
    return {
        "npz": npz(counts=array),
        "npy": npy(array),
        "json": json.dumps(array.tolist()).encode(),
        "csv": table("a,0,0,1", f"a,0,1,{value}"),
    }


@pytest.mark.parametrize("format_", VALID)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0], ids=str)
def test_not_finite_or_negative_tokens_are_refused(format_, value):
    with pytest.raises(co.FormatError, match=r"finite.* (number of )?at least 0"):
        read(with_cell(value)[format_])


NESTED = COUNTS.tolist()
DEEP = 100_000
OBJECTS = np.array([[[{}]]], dtype=object)
ZIP = VALID["npz"]

REFUSED = {
    # not numbers
    "npy of text": (npy(np.array([[["a"]]])), "type <U1"),
    "npy of truths": (npy(COUNTS > 0), "type bool"),
    "npy of complex numbers": (npy(COUNTS * 1j), "type complex128"),
    "npy of dates": (npy(COUNTS.astype("M8[s]")), "type datetime64"),
    "npy of records": (npy(np.zeros((1, 1, 2), "i4,f4")), "holds values of type"),
    "npz of truths": (npz(counts=COUNTS > 0), "'counts'.*type bool"),
    "json of text": (b'[["1", "2"]]', 'holds "1", which is not a number'),
    "json of truths": (b"[[1, true]]", "holds true, which is not a number"),
    "json of null": (b"[[1, null]]", "holds null, which is not a number"),
    "json of objects": (b"[[1, {}]]", "not a number"),
    "json NaN": (b"[[1, NaN]]", "holds NaN"),
    "json Infinity": (b"[[1, -Infinity]]", "holds -Infinity"),
    "json float overflow": (b"[[1, 1e999]]", "is inf; token counts must be finite"),
    "json whole number above all floats": (b"[[1, 1" + b"0" * 400 + b"]]", "above 1.8e308"),
    "json whole number of 5000 digits": (b"[[" + b"1" * 5000 + b"]]", "thousands of digits"),
    "csv of text": (table("a,0,0,many"), "line 2, column tokens: 'many' is not a finite"),
    "csv without a number": (table("a,0,0,1", "a,0,1,"), "line 3, column tokens: ''"),
    "csv with underscores": (table("a,0,0,1_000"), "line 2, column tokens: '1_000'"),
    # wrong rank or shape
    "npy of 1 dimension": (npy(np.ones(4)), r"the array has 1 dimension\(s\), shape \(4,\)"),
    "npy of 4 dimensions": (npy(np.ones((1, 1, 1, 1))), r"4 dimension\(s\)"),
    "npy of 64 dimensions": (npy_claiming((1,) * 63 + (8,)), r"64 dimension\(s\)"),
    "npy of 65 dimensions": (npy_claiming((1,) * 64 + (8,)), "damaged .npy header"),
    "npy without dimensions": (npy(np.float64(3)), r"0 dimension\(s\)"),
    "npz counts of 1 dimension": (npz(counts=np.ones(4)), r"'counts' has 1 dimension\(s\)"),
    "npz tokens of 1 dimension": (npz(tokens=np.ones(4)), r"'tokens' has 1 dimension\(s\)"),
    "npz wrong counts beside good tokens": (npz(counts=np.ones(4), tokens=COUNTS), "'counts' has"),
    "json of 1 level": (b"[1, 2]", r"the list has 1 dimension\(s\)"),
    "json of 4 levels": (b"[[[[1]]]]", r"the list has 4 dimension\(s\)"),
    "json of 100,000 levels": (b"[" * DEEP + b"]" * DEEP, "nested too deeply"),
    "json of 500 levels": (b"[" * 500 + b"1" + b"]" * 500, "not a number"),
    "json tokens of 1 level": (b'{"tokens": [1, 2]}', r"'tokens' has 1 dimension\(s\)"),
    "json counts no list": (b'{"counts": 3}', "'counts' is not a list"),
    "json ragged experts": (b"[[1, 2], [3]]", "the list is ragged"),
    "json ragged layers": (b"[[[1], [2]], [[3]]]", "the list is ragged"),
    "json ragged levels": (b"[[1, 2], 3]", "the list is ragged"),
    # nothing there
    "npy of 0 windows": (npy(np.ones((0, 2, 3))), "0 windows"),
    "npy of 0 layers": (npy(np.ones((2, 0, 3))), "0 layers"),
    "npy of 0 experts": (npy(np.ones((2, 3, 0))), "0 experts"),
    "npz of 0 windows": (npz(counts=np.ones((0, 2, 3))), "0 windows"),
    "npz of 0 layers": (npz(counts=np.ones((2, 0, 3))), "0 layers"),
    "npz of 0 experts": (npz(counts=np.ones((2, 3, 0))), "0 experts"),
    "json of 0 windows": (b"[]", r"is empty, shape \(0,\)"),
    "json of 0 layers": (b"[[], []]", r"is empty, shape \(2, 0\)"),
    "json of 0 experts": (b"[[[], []]]", r"is empty, shape \(1, 2, 0\)"),
    "csv of 0 windows": (table(), "0 windows"),
    "npy without tokens": (npy(np.zeros((2, 2, 2))), "holds no tokens"),
    "csv without tokens": (table("a,0,0,0"), "holds no tokens"),
    "empty file": (b"", "is empty"),
    "blank file": (b" \n\n", "is empty"),
    # damaged
    "npy cut in the magic": (VALID["npy"][:6], "damaged or truncated .npy header"),
    "npy cut in the header": (VALID["npy"][:40], "damaged or truncated .npy header"),
    "npy cut in the data": (VALID["npy"][:-3], "128 bytes, and 125 follow"),
    "npy with bytes behind": (VALID["npy"] + b"123", "128 bytes, and 131 follow"),
    "npy of a future version": (b"\x93NUMPY\x09\x00" + bytes(100), "version 9.0"),
    "npy header no literal": (npy_claiming("__import__('os')"), "damaged or truncated .npy header"),
    "npy header of deep nesting": (npy_claiming("x", "(" * 5000), "damaged or truncated"),
    "npy header of a megabyte": (npy_claiming((1,), " " * 10**6, 2), "damaged or truncated"),
    "npy of negative sizes": (npy_claiming((-2, -4, 1)), r"shape \(-2, -4, 1\)"),
    "npz cut in the data": (ZIP[: len(ZIP) // 2], "damaged or truncated zip archive"),
    "npz cut at the end": (ZIP[:-1], "damaged or truncated zip archive"),
    "npz of four bytes": (ZIP[:4], "damaged or truncated zip archive"),
    "npz with a wrong checksum": (
        zip_of({"counts.npy": npy(COUNTS)}, zipfile.ZIP_STORED).replace(b"NUMPY", b"NUMPX", 1),
        "damaged or truncated zip",
    ),
    "npz whose array is cut": (
        zip_of({"counts.npy": npy(COUNTS)[:-1]}),
        "array 'counts': damaged or truncated: .* 128 bytes, and 127 follow",
    ),
    "npz whose array is no npy": (zip_of({"counts.npy": b"xyz"}), "array 'counts': damaged"),
    "npz compressed by bzip2": (
        zip_of({"counts.npy": npy(COUNTS)}, zipfile.ZIP_BZIP2),
        "method that numpy does not write",
    ),
    "json cut": (VALID["json"][:-5], "damaged or truncated JSON"),
    "json with a tail": (b"[[1]] [[2]]", "damaged or truncated JSON: Extra data"),
    "json no UTF-8": (b'{"counts": "\xff"}', "not UTF-8 text"),
    "csv cut in a row": (table("a,0,0,1", "a,0"), r"line 3 has 2 field\(s\) for 4 columns"),
    "csv cut in quotes": (table("a,0,0,1", '"a,0'), "damaged or truncated"),
    "csv no UTF-8": (table() + b"\xff,0,0,1\n", "not UTF-8 text"),
    "csv with a field of a megabyte": (table("a" * 10**6 + ",0,0,1"), "line 2 is damaged"),
    # claims
    "npy claims gigabytes": (npy_claiming((40, 10**6, 256)), "81920000000 bytes, and 64 follow"),
    "npy claims more than 64 bits": (npy_claiming((2**40, 2**40, 2**40)), "and 64 follow"),
    "npy claims giants times zero": (npy_claiming((0, 2**40, 2**40))[:-64], "damaged .npy header"),
    "npz claims gigabytes": (
        zip_of({"counts.npy": npy_claiming((40, 10**6, 256))}),
        "array 'counts'.*81920000000 bytes",
    ),
    "csv claims an expert 10^12": (table("a,0,1000000000000,1"), "cells.*limit.*save the array"),
    "csv claims many layers": (
        table(*(f"{i},{i},{i},1" for i in range(200))),
        "8000000 cells .*200 windows x 200 layers x 200 experts.*limit of 1048576",
    ),
    # pickles
    "pickle": (pickle.dumps(NESTED), "is a Python pickle.*never unpickles"),
    "pickle of protocol 0": (pickle.dumps(NESTED, 0), "in no format"),
    "npy of objects": (npy(OBJECTS), "a pickle; craftopt never unpickles"),
    "npz of objects": (npz(counts=OBJECTS), "'counts'.*a pickle; craftopt never unpickles"),
    "npz ids of objects": (npz(counts=COUNTS, layer_ids=OBJECTS), "'layer_ids'.*a pickle"),
    "zip around a pickle": (
        zip_of({"archive/data.pkl": pickle.dumps(1), "archive/data/0": b""}),
        "'data.pkl' is compressed; torch.save stores plainly",
    ),
    # keys
    "npz without counts": (npz(heat=COUNTS), "neither 'counts' nor 'tokens'.*are heat"),
    "npz of a trace": (npz(topk_ids=COUNTS), "token trace.*co.read_trace"),
    "zip without arrays": (zip_of({"a.txt": b""}), "without arrays.*holds a.txt"),
    "zip of nothing": (zip_of({}), "without arrays.*holds nothing"),
    "json without counts": (doc(heat=NESTED), "neither 'counts' nor 'tokens'.*are heat"),
    "json object of nothing": (b"{}", "its keys are none"),
    "json plan": (doc(format="craftopt-plan", counts=NESTED), "is a craftopt plan.*read_plan"),
    "csv column missing": (
        table("a,0,1", header="window,layer,tokens"),
        "columns 'window', 'layer', 'tokens'; pass",
    ),
    "csv column twice": (
        table(header="window,layer,expert,tokens,tokens"),
        "names column tokens 2 times",
    ),
    "gzip": (gzip.compress(VALID["csv"]), "gzip; decompress it first"),
    "something else": (b"<html>\n", r"in no format.*\.npz, \.npy, JSON, CSV.*b'<html>'"),
    "binary zeros": (bytes(10**5), "in no format"),
    # ids and names
    "npz ids of a wrong length": (npz(counts=COUNTS, layer_ids=[1]), "layer_ids has shape"),
    "npz ids of fractions": (npz(counts=COUNTS, layer_ids=[1.0, 2.5]), "layer_ids has.*float64"),
    "npz ids repeated": (npz(counts=COUNTS, layer_ids=[1, 1]), "layer_ids repeats"),
    "npz names of a wrong length": (npz(counts=COUNTS, step_names=["a"]), "1 names for 2 windows"),
    "npz names of a wrong rank": (npz(counts=COUNTS, step_names=[["a", "b"]]), "'step_names'"),
    "npz names of fractions": (npz(counts=COUNTS, step_names=[0.5, 1]), "'step_names'"),
    "npz names no Unicode": (
        npz(counts=COUNTS, step_names=np.array([2**31 - 1] * 2, "<u4").view("<U1")),
        "'step_names' holds text that is not valid Unicode",
    ),
    "npz names no UTF-8": (
        npz(counts=COUNTS, step_names=np.array([b"a", b"\xff"])),
        "'step_names' holds text that is not valid Unicode",
    ),
    "json ids of text": (doc(counts=NESTED, layer_ids=["a", "b"]), "'layer_ids' is not a list"),
    "json ids beyond 64 bits": (doc(counts=NESTED, layer_ids=[1, 2**70]), "beyond 64 bits"),
    "json ids no list": (doc(counts=NESTED, layer_ids=3), "'layer_ids' is not a list"),
    "json names no list": (doc(counts=NESTED, step_names="ab"), "'step_names' is not a list"),
    "json names of lists": (doc(counts=NESTED, step_names=[["a"], 1]), r"holds \['a'\]; pass one"),
    "json names half a character": (doc(counts=NESTED, step_names=["a", "\ud800"]), "not valid Un"),
    "csv layer negative": (table("a,-1,0,1"), "line 2, column layer: '-1' is not a whole number"),
    "csv layer a fraction": (table("a,0.5,0,1"), "line 2, column layer: '0.5'"),
    "csv expert of text": (table("a,0,0,1", "a,0,x,1"), "line 3, column expert: 'x'"),
    "csv expert of 5000 digits": (table("a,0," + "1" * 5000 + ",1"), "line 2, column expert"),
    "csv window empty": (table(" ,0,0,1"), "line 2, column window: empty"),
    "csv cell repeated": (
        table("a,3,0,1", "a,4,0,1", "a,3,0,0", "a,4,0,0"),
        "line 4 repeats the cell of window 'a', layer 3, expert 0, first on line 2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_one_clear_line_that_names_the_file(case, tmp_path):
    data, message = REFUSED[case]
    path = tmp_path / "loads.bin"
    path.write_bytes(data)
    with pytest.raises(co.FormatError, match=message) as caught:
        co.read_loads(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) < len(str(path)) + 400


@pytest.mark.parametrize(
    "case", ["npy claims gigabytes", "npz claims gigabytes", "csv claims an expert 10^12"]
)
def test_claims_are_refused_before_anything_is_allocated(case):
    tracemalloc.start()
    try:
        with pytest.raises(co.FormatError):
            read(REFUSED[case][0])
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_decompression_bomb_is_refused():
    data = bytearray(zip_of({"counts.npy": npy(COUNTS)}))
    directory = data.index(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = struct.pack("<I", 2**31)  # size when unpacked
    with pytest.raises(co.FormatError, match=r"claims 2147483648 bytes packed into .*bombs"):
        read(bytes(data))


def test_unused_arrays_are_named_whatever_they_hold():
    data = zip_of({"counts.npy": npy(COUNTS), "tokens.npy": b"junk", "notes.npy": npy(OBJECTS)})
    with pytest.warns(co.CraftoptWarning, match="holds notes, tokens beside 'counts'"):
        assert read(data) == co.Loads(COUNTS)


def test_pickle_is_never_run(tmp_path):
    flag = tmp_path / "run"

    class Trap:
        def __reduce__(self):
            return (flag.touch, ())

    trap = np.array([[[Trap()]]], dtype=object)
    for data in (pickle.dumps(Trap()), npy(trap), npz(counts=trap)):
        with pytest.raises(co.FormatError, match="never unpickles"):
            read(data)
    torch = zip_of({"x/data.pkl": pickle.dumps(Trap(), protocol=2)}, zipfile.ZIP_STORED)
    with pytest.raises(co.FormatError, match="runs no code from files"):
        read(torch)
    assert not flag.exists()


def test_missing_file_is_named():
    with pytest.raises(co.InputError, match=r"no/such/loads\.npz: cannot be read: No such file"):
        co.read_loads("no/such/loads.npz")


def test_folder_is_refused(tmp_path):
    with pytest.raises(co.InputError, match="is a folder, and not of a recording"):
        co.read_loads(tmp_path)


def test_path_with_a_null_is_refused():
    with pytest.raises(co.InputError, match="cannot be read"):
        co.read_loads("loads\0.npz")


@pytest.mark.parametrize("source", [None, 3, COUNTS, b"loads.npz"], ids=type)
def test_neither_path_nor_stream_is_refused(source):
    with pytest.raises(co.InputError, match="takes a path or a stream"):
        co.read_loads(source)


def test_text_stream_is_refused():
    with pytest.raises(co.InputError, match="str, not bytes; open it in mode 'rb'"):
        co.read_loads(io.StringIO("window,layer,expert,tokens\n"))


def test_closed_stream_is_refused():
    stream = io.BytesIO(VALID["npy"])
    stream.close()
    with pytest.raises(co.InputError, match="closed file"):
        co.read_loads(stream)


# --- and nothing else ---------------------------------------------------------------------


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(whole)
    for _ in range(rng.integers(0, 4)):
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    if rng.random() < 0.4:
        del data[rng.integers(len(data)) :]
    return bytes(data)


def give_loads_or_an_error_of_ours(data: bytes) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damage may well make layers idle
        try:
            return isinstance(read(data), co.Loads)
        except co.FormatError as error:
            return str(error).startswith("<stream>: ")


@pytest.mark.parametrize("format_", VALID)
def test_damaged_files_give_loads_or_an_error_of_ours(format_):
    rng = np.random.default_rng(7)
    for _ in range(600):
        assert give_loads_or_an_error_of_ours(damaged(VALID[format_], rng))


def test_damaged_arrays_in_sound_archives_give_loads_or_an_error_of_ours():
    rng = np.random.default_rng(7)
    arrays = {"counts": COUNTS, "layer_ids": IDS, "step_names": NAMES}
    entries = {f"{key}.npy": npy(value) for key, value in arrays.items()}
    for i in range(600):
        name = list(entries)[i % len(entries)]
        changed = {**entries, name: damaged(entries[name], rng)}
        assert give_loads_or_an_error_of_ours(zip_of(changed, zipfile.ZIP_STORED))


@given(st.sampled_from(sorted(VALID)), st.integers(0, 120), st.binary(max_size=60))
def test_foreign_bytes_behind_a_right_beginning_give_loads_or_an_error_of_ours(format_, kept, tail):
    assert give_loads_or_an_error_of_ours(VALID[format_][:kept] + tail)
