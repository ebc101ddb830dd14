"""Windows drawn from token traces hold every token once; files are read safely or refused."""

from __future__ import annotations

import io
import pickle
import zipfile

import numpy as np
import pytest
from files import measured
from hypothesis import given
from hypothesis import strategies as st
from strategies import quiet

import craftopt as co

NAMES = ("chat", "code", "law")


@st.composite
def traces(draw, labelled=True):
    """Draw a trace with padding; with domains and sequences, or without."""
    tokens, layers = draw(st.integers(1, 30)), draw(st.integers(1, 3))
    k = draw(st.integers(1, 3))
    experts = draw(st.integers(k, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from([np.uint8, np.uint16, np.int8, np.int32, np.int64, ">u2", ">i4"]))
    ids = rng.permuted(np.tile(np.arange(experts), (tokens, layers, 1)), axis=2)[:, :, :k]
    if np.dtype(dtype).kind == "i":
        ids[rng.random(ids.shape) < 0.2] = -1
    ids = ids.astype(dtype)
    return co.Trace(
        ids,
        experts,
        domain=rng.integers(0, 3, tokens) if labelled else None,
        domain_names=NAMES if labelled else None,
        sequence=rng.integers(0, 5, tokens) if labelled else None,
    )


def plain_counts(trace, positions):
    """Count the choices of the tokens at some positions, one by one."""
    counts = np.zeros((trace.layers, trace.experts))
    for position in positions:
        for layer in range(trace.layers):
            for expert in trace.topk_ids[position, layer].tolist():
                if expert >= 0:
                    counts[layer, expert] += 1
    return counts


def plain_windows(trace, key):
    """Group the positions of tokens by a key, in order of first appearance."""
    groups: dict[object, list[int]] = {}
    for position in range(trace.tokens):
        groups.setdefault(key(position), []).append(position)
    return groups


# --- windows --------------------------------------------------------------------------------


@given(traces(), st.integers(1, 35))
def test_recorded_batches_are_runs_of_tokens(trace, size):
    loads = trace.batches(size)
    assert loads.windows == -(-trace.tokens // size)
    for window in range(loads.windows):
        positions = range(window * size, min((window + 1) * size, trace.tokens))
        assert np.array_equal(loads.tokens[window], plain_counts(trace, positions))
        domains = {NAMES[trace.domain[position]] for position in positions}
        front = domains.pop() if len(domains) == 1 else "mixed"
        assert loads.window_names[window] == f"{front}/{window:05d}"


@given(traces(), st.integers(1, 35), st.integers(0, 99))
def test_random_batches_hold_every_token_once(trace, size, seed):
    loads = trace.batches(size, "random", seed)
    everything = plain_counts(trace, range(trace.tokens))
    assert np.array_equal(loads.total().tokens[0], everything)
    assert loads == trace.batches(size, "random", seed)
    if trace.topk_ids.min() >= 0:
        width = trace.layers * trace.topk_ids.shape[2]
        sizes = loads.tokens.sum(axis=(1, 2)) / width
        assert (sizes[:-1] == size).all()
        assert 0 < sizes[-1] <= size


def test_random_batches_mix_and_follow_the_seed():
    trace = co.Trace(np.arange(64).reshape(64, 1, 1), 64)
    first, second = (trace.batches(8, "random", seed) for seed in (1, 2))
    assert first != trace.batches(8)
    assert first != second


@given(traces())
def test_a_window_per_sequence_of_a_domain(trace):
    """Two domains may number their sequences alike: they stay apart."""
    loads = trace.by_sequence()
    key = lambda token: f"{NAMES[trace.domain[token]]}/{trace.sequence[token]}"  # noqa: E731
    groups = plain_windows(trace, key)
    assert loads.window_names == tuple(groups)
    for tokens, positions in zip(loads.tokens, groups.values(), strict=True):
        assert np.array_equal(tokens, plain_counts(trace, positions))


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=20),
    shuffle=st.randoms(use_true_random=False),
    data=st.data(),
)
def test_sequence_batches_hold_different_and_whole_sequences(sizes, shuffle, data):
    """Sequence s chooses expert s alone, so a window tells which sequences it holds."""
    sequence = [s for s, size in enumerate(sizes) for _ in range(size)]
    shuffle.shuffle(sequence)
    domain = np.array(sequence) % 2
    trace = co.Trace(
        np.reshape(sequence, (-1, 1, 1)), len(sizes),
        domain=domain, domain_names=NAMES, sequence=sequence,
    )  # fmt: skip
    n, seed = data.draw(st.integers(1, len(sizes))), data.draw(st.integers(0, 9))
    loads = trace.sequence_batches(n, count=6, seed=seed)
    assert loads == trace.sequence_batches(n, count=6, seed=seed)
    for index, (tokens, name) in enumerate(
        zip(loads.tokens[:, 0], loads.window_names, strict=True)
    ):
        held = np.flatnonzero(tokens)
        assert len(held) == n
        assert np.array_equal(tokens[held], np.array(sizes)[held])
        domains = {NAMES[s % 2] for s in held}
        assert name == f"{domains.pop() if len(domains) == 1 else 'mixed'}/{index:05d}"


def test_sequences_are_drawn_alike():
    sequence = np.arange(10)
    loads = co.Trace(sequence.reshape(-1, 1, 1), sequence=sequence).sequence_batches(3, 10_000)
    np.testing.assert_allclose(loads.tokens.mean(axis=(0, 1)), 0.3, atol=0.02)


@given(traces(), st.sets(st.sampled_from(NAMES), min_size=1))
def test_select_keeps_the_tokens_of_the_domains(trace, domains):
    positions = [p for p in range(trace.tokens) if NAMES[trace.domain[p]] in domains]
    if not positions:
        with pytest.raises(co.InputError, match="no token"):
            trace.select(domains)
        return
    part = trace.select(list(domains))
    assert np.array_equal(part.topk_ids, trace.topk_ids[positions])
    assert part.experts == trace.experts
    assert part.domain_names == tuple(name for name in NAMES if name in domains)
    assert [part.domain_names[d] for d in part.domain] == [
        NAMES[trace.domain[p]] for p in positions
    ]
    assert np.array_equal(part.sequence, trace.sequence[positions])


@given(traces(labelled=False), st.integers(1, 9))
def test_without_domains_windows_are_numbered(trace, size):
    names = trace.batches(size).window_names
    assert names == tuple(f"{index:05d}" for index in range(len(names)))
    one = co.Trace(trace.topk_ids, trace.experts, sequence=np.full(trace.tokens, 7))
    assert one.by_sequence().window_names == ("7",)


def test_layer_ids_go_with_the_windows():
    trace = co.Trace([[[0], [1]], [[1], [0]]], layer_ids=[3, 9], sequence=[0, 1])
    for loads in (trace.batches(1), trace.by_sequence(), trace.sequence_batches(1, 2)):
        assert loads.layer_ids.tolist() == [3, 9]


def test_what_a_trace_lacks_is_said():
    trace = co.Trace([[[0]], [[1]]])
    for call in (trace.by_sequence, lambda: trace.sequence_batches(1, 1)):
        with pytest.raises(co.InputError, match="no sequences"):
            call()
    with pytest.raises(co.InputError, match="no domains"):
        trace.select(["chat"])


@pytest.mark.parametrize(
    ("call", "message"),
    {
        "size 0": (lambda t: t.batches(0), "size=0"),
        "size 1.5": (lambda t: t.batches(1.5), "size=1.5"),
        "order": (lambda t: t.batches(2, "sorted"), r"'sorted'.*recorded, random"),
        "n 0": (lambda t: t.sequence_batches(0, 1), "n=0"),
        "n 3": (lambda t: t.sequence_batches(3, 1), r"n=3 .* n <= 2"),
        "count 0": (lambda t: t.sequence_batches(1, 0), "count=0"),
        "unknown domain": (lambda t: t.select(["law"]), r"'law'.*chat, code"),
        "a text": (lambda t: t.select("chat"), "list of names"),
    }.values(),
)
def test_wrong_arguments_are_named(call, message):
    trace = co.Trace([[[0]], [[1]]], domain=[0, 1], domain_names=["chat", "code"], sequence=[0, 0])
    with pytest.raises(co.InputError, match=message):
        call(trace)


# --- the trace itself -----------------------------------------------------------------------


@given(traces())
def test_traces_are_read_only_copies_and_so_are_their_pickles(trace):
    for held in (trace, pickle.loads(pickle.dumps(trace))):
        assert held.topk_ids.dtype.isnative
        assert np.array_equal(held.topk_ids, trace.topk_ids)
        assert held.domain_names == trace.domain_names
        for array in (held.topk_ids, held.layer_ids, held.domain, held.sequence):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0


def test_ids_keep_their_type_and_their_source_stays_free():
    ids = np.zeros((4, 2, 1), dtype=np.uint16)
    trace = co.Trace(ids)
    ids[:] = 9
    assert trace.topk_ids.dtype == np.uint16
    assert not trace.topk_ids.any()


def test_experts_default_to_the_highest_id_seen():
    assert co.Trace([[[4]], [[-1]]]).experts == 5
    assert co.Trace([[[4]]], experts=8).batches(1).experts == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    {
        "fractions": ({"topk_ids": [[[0.5]]]}, "whole numbers"),
        "ragged": ({"topk_ids": [[[0]], [[0, 1]]]}, "ragged"),
        "two dimensions": ({"topk_ids": [[0, 1]]}, r"\(1, 2\)"),
        "no token": ({"topk_ids": np.zeros((0, 1, 1), int)}, "0 tokens"),
        "no choice": ({"topk_ids": np.zeros((1, 1, 0), int)}, "0 choices"),
        "id -2": ({"topk_ids": [[[-2]], [[1]]]}, "-2"),
        "id too high": ({"topk_ids": [[[8]]], "experts": 8}, r"0\.\.7"),
        "only padding": ({"topk_ids": [[[-1]]]}, "only -1"),
        "no experts": ({"topk_ids": [[[0]]], "experts": 0}, "experts=0"),
        "absurd id": ({"topk_ids": [[[2**31]]]}, "65536"),
        "layer ids": ({"topk_ids": [[[0]]], "layer_ids": [1, 2]}, "layer_ids"),
        "domain length": ({"topk_ids": [[[0]]], "domain": [0, 1]}, "one whole number per token"),
        "domain -1": ({"topk_ids": [[[0]]], "domain": [-1]}, "-1"),
        "domain unnamed": ({"topk_ids": [[[0]]], "domain": [1], "domain_names": ["a"]}, "1 domain"),
        "names alone": ({"topk_ids": [[[0]]], "domain_names": ["a"]}, "without domain"),
        "a text": ({"topk_ids": [[[0]]], "domain": [0], "domain_names": "a"}, "list of names"),
        "one name twice": (
            {"topk_ids": [[[0]]], "domain": [0], "domain_names": ["a", "a"]},
            "repeats",
        ),
        "sequence kind": ({"topk_ids": [[[0]]], "sequence": [0.5]}, "sequence"),
    }.values(),
)
def test_what_is_no_trace_is_refused(arguments, message):
    with pytest.raises(co.InputError, match=message):
        co.Trace(**arguments)


# --- files ----------------------------------------------------------------------------------


def archive(**arrays):
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


IDS = np.array([[[0, 2]], [[1, 2]], [[2, 3]]], dtype=np.uint8)


@pytest.mark.parametrize("domain", ["domain", "step", "task"])
@pytest.mark.parametrize("names", ["domain_names", "step_names"])
@pytest.mark.parametrize("sequence", ["sequence", "seq"])
def test_files_name_their_columns_in_several_ways(tmp_path, domain, names, sequence):
    file = tmp_path / "trace.bin"
    columns = {domain: [0, 0, 1], names: ["chat", "code"], sequence: [5, 5, 6]}
    file.write_bytes(archive(topk_ids=IDS, layer_ids=[7], other=np.zeros(3), **columns))
    with file.open("rb") as stream:
        for source in (file, str(file), stream):
            with pytest.warns(co.CraftoptWarning, match="holds other beside 'topk_ids'"):
                trace = co.read_trace(source, experts=4)
            assert trace.topk_ids.dtype == np.uint8
            assert trace.experts == 4
            assert trace.layer_ids.tolist() == [7]
            assert trace.by_sequence().window_names == ("chat/5", "code/6")


def test_experts_may_be_given_for_a_short_trace():
    assert co.read_trace(io.BytesIO(archive(topk_ids=IDS)), experts=8).experts == 8


def test_layers_of_padding_are_dropped_with_a_warning():
    ids = np.stack([np.full((3, 2), -1), IDS[:, 0].astype(int)], axis=1)
    with pytest.warns(co.CraftoptWarning, match=r"dropped layers .*: 0"):
        trace = co.read_trace(io.BytesIO(archive(topk_ids=ids)))
    assert trace.layer_ids.tolist() == [1]
    with pytest.warns(co.CraftoptWarning, match=r": 40"):
        trace = co.read_trace(io.BytesIO(archive(topk_ids=ids, layer_ids=[40, 41])))
    assert trace.layer_ids.tolist() == [41]


def _with_entry(data: bytes, name: str, content: bytes) -> bytes:
    stream = io.BytesIO(data)
    with zipfile.ZipFile(stream, "a") as file:
        file.writestr(name, content)
    return stream.getvalue()


def _npy_claiming(shape: str) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    ("data", "message"),
    {
        "empty": (b"", "is empty"),
        "text": (b"window,layer\n", "is a table with the columns"),
        "a pickle": (pickle.dumps([1]), "never unpickles"),
        "torn": (archive(topk_ids=IDS)[:60], "damaged"),
        "loads": (archive(counts=np.ones((1, 2, 3))), "co.read_loads"),
        "other arrays": (archive(weights=np.ones(3)), "weights"),
        "objects": (archive(topk_ids=np.array([{}], dtype=object)), "pickle"),
        "PyTorch's": (_with_entry(archive(topk_ids=IDS), "a/data.pkl", b""), "unpickles"),
        "a false claim": (
            _with_entry(archive(), "topk_ids.npy", _npy_claiming("(9999999, 99999, 9)")),
            "'topk_ids'.*claims",
        ),
        "fractions": (archive(topk_ids=IDS / 2), "whole numbers"),
        "two dimensions": (archive(topk_ids=IDS[0]), "tokens, layers, k"),
        "names alone": (archive(topk_ids=IDS, step_names=["chat"]), "without domain"),
        "numbers too high": (archive(topk_ids=IDS, step=[0, 1, 2], step_names=["a"]), "1 domain"),
        "short column": (archive(topk_ids=IDS, seq=[0, 1]), "sequence"),
    }.values(),
)
def test_a_file_that_is_no_trace_is_refused_by_name(tmp_path, data, message):
    file = tmp_path / "some.npz"
    file.write_bytes(data)
    with pytest.raises(co.FormatError, match=message) as caught:
        co.read_trace(file)
    assert str(caught.value).startswith(str(file))


@given(st.data())
def test_damage_is_a_format_error_or_harmless(data):
    whole = bytearray(archive(topk_ids=IDS, step=[0, 0, 1], step_names=["a", "b"], seq=[0, 1, 2]))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)) | st.just(len(whole)))
    try:
        trace = quiet(lambda: co.read_trace(io.BytesIO(bytes(whole[:cut]))))
    except co.FormatError:
        return
    assert trace.tokens


def test_sources_that_cannot_be_opened(tmp_path):
    with pytest.raises(co.InputError, match="nowhere"):
        co.read_trace(tmp_path / "nowhere.npz")
    with pytest.raises(co.FormatError, match="folder"):
        co.read_trace(tmp_path)
    with pytest.raises(co.InputError, match=r"co\.Trace takes arrays"):
        co.read_trace(IDS)
    with pytest.raises(co.FormatError, match="mode 'rb'"):
        co.read_trace(io.StringIO("PK"))


# --- recorded traces ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt_oss_20b_benchmarks", "deepseek_v2_lite_esft"])
def test_a_recorded_trace_is_the_recorded_loads_token_by_token(name):
    trace, loads = co.read_trace(measured(f"{name}_trace")), co.read_loads(measured(name))
    assert trace.domain_names == loads.window_names
    windows = [trace.batches(64), trace.batches(64, "random"), trace.by_sequence()]
    for drawn in windows:
        assert np.array_equal(drawn.total().tokens, loads.total().tokens)
    for domain, expected in zip(trace.domain_names, loads.tokens, strict=True):
        part = trace.select([domain])
        assert np.array_equal(part.by_sequence().total().tokens[0], expected)
        assert {n.split("/")[0] for n in part.sequence_batches(4, 3).window_names} == {domain}
