"""Pair counts equal a plain count, keep their invariants, and impossible ones are refused."""

from __future__ import annotations

import io
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import quiet

import craftopt as co
from craftopt.coactivation import standard_error


@st.composite
def traces(draw, k=(1, 4), missing=True):
    """Draw a trace with different choices per token; some are missing (-1), if wanted."""
    tokens, layers = draw(st.integers(1, 25)), draw(st.integers(1, 3))
    choices = draw(st.integers(*k))
    experts = draw(st.integers(choices, choices + 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = np.argsort(rng.random((tokens, layers, experts)), axis=2)[:, :, :choices]
    if missing:
        ids[rng.random(ids.shape) < draw(st.sampled_from([0, 0, 0.2, 0.6]))] = -1
        ids[0, :, 0] = 0
        ids[0, :, 1:] = np.where(ids[0, :, 1:] == 0, -1, ids[0, :, 1:])
    return co.Trace(ids.astype(draw(st.sampled_from([np.int8, np.int64]))), experts)


def counted(trace):
    return quiet(trace.coactivation)


def recorded(counts, /, **changes):
    """Write what a recorder would, with changes; None leaves an array out."""
    arrays = {
        "pairs": counts.pairs,
        "assignments": counts.assignments,
        "tokens": counts.tokens,
        "top_k": counts.top_k,
        "layer_ids": counts.layer_ids,
    } | changes
    file = io.BytesIO()
    np.savez(file, **{name: value for name, value in arrays.items() if value is not None})
    file.seek(0)
    return file


BASE = co.Coactivation([[[6000, 6000, 0], [6000, 9000, 3000], [0, 3000, 3000]]], top_k=2)

# --- counting -------------------------------------------------------------------------------


@given(traces())
def test_pairs_of_a_trace_equal_a_plain_count(trace):
    pairs = counted(trace)
    expected = np.zeros((trace.layers, trace.experts, trace.experts), dtype=int)
    assignments = np.zeros((trace.layers, trace.experts), dtype=int)
    tokens = np.zeros(trace.layers, dtype=int)
    for token, layer in itertools.product(range(trace.tokens), range(trace.layers)):
        chosen = {int(e) for e in trace.topk_ids[token, layer] if e >= 0}
        tokens[layer] += bool(chosen)
        for e in chosen:
            assignments[layer, e] += 1
        for e, f in itertools.permutations(chosen, 2):
            expected[layer, e, f] += 1
    assert np.array_equal(pairs.pairs, expected)
    assert np.array_equal(pairs.assignments, assignments)
    assert np.array_equal(pairs.tokens, tokens)
    assert pairs.top_k == trace.topk_ids.shape[2]


@given(traces(missing=False))
def test_rows_of_full_tokens_sum_to_the_other_choices(trace):
    pairs = counted(trace)
    assert np.array_equal(pairs.pairs.sum(axis=2), (pairs.top_k - 1) * pairs.assignments)
    assert (pairs.pairs <= pairs.assignments[:, np.newaxis]).all()


@given(traces(), st.integers(1, 24))
def test_partial_recordings_add_up(trace, cut):
    parts = [trace.topk_ids[:cut], trace.topk_ids[cut:]]
    whole = counted(trace)
    sums = [counted(co.Trace(part, trace.experts)) for part in parts if len(part)]
    assert sum(sums[1:], sums[0]) == whole


def test_a_matrix_with_assignments_on_its_diagonal_says_everything():
    hot = np.array([[1, 1, 0], [1, 1, 0], [0, 1, 1]])
    pairs = co.Coactivation([hot.T @ hot], top_k=2)
    assert pairs == counted(co.Trace([[[0, 1]], [[0, 1]], [[1, 2]]]))


def test_other_models_do_not_add_up():
    with pytest.raises(co.InputError, match="do not add up"):
        _ = BASE + co.Coactivation(BASE.pairs, BASE.assignments, top_k=2, layer_ids=[7])


# --- thinning, selection ----------------------------------------------------------------------


@given(traces(), st.floats(0.01, 1))
def test_thinned_counts_are_counts_that_tokens_could_give(trace, share):
    pairs = counted(trace)
    thinned = pairs.thinned(share)  # the constructor checks it
    upper = np.triu_indices(pairs.experts, 1)
    for layer in range(pairs.layers):
        assert abs(thinned.pairs[layer][upper].sum() - share * pairs.pairs[layer][upper].sum()) <= 1
    assert (thinned.pairs <= np.ceil(pairs.pairs * share)).all()


def test_thinning_keeps_shares_of_large_counts():
    thinned = BASE.thinned(0.1)
    assert thinned == co.Coactivation(BASE.pairs // 10, BASE.assignments // 10, top_k=2)
    assert BASE.thinned(1) is BASE
    for share in (0, 1.5, float("nan")):
        with pytest.raises(co.InputError, match="share="):
            BASE.thinned(share)


@given(traces())
def test_selected_layers_are_theirs(trace):
    pairs = counted(trace)
    chosen = pairs.select([pairs.layers - 1, 0] if pairs.layers > 1 else [0])
    assert chosen.layer_ids[-1] == pairs.layer_ids[0]
    assert np.array_equal(chosen.pairs[-1], pairs.pairs[0])
    for wrong in ([], [pairs.layers], [-1]):
        with pytest.raises(co.InputError, match="position"):
            pairs.select(wrong)


# --- what is refused --------------------------------------------------------------------------

SQUARE = [[[0, 2], [2, 0]]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": [[0, 1]]}, "3 dimensions"),
        ({"pairs": [[[0, 1]]]}, "experts, experts"),
        ({"pairs": [[[0.5]]]}, "whole numbers"),
        ({"pairs": [[[0, -1], [-1, 0]]]}, "within 0"),
        ({"pairs": SQUARE, "top_k": 0}, "top_k=0"),
        ({"pairs": SQUARE, "top_k": True}, "top_k=True"),
        ({"pairs": [[[2, 2], [1, 2]]]}, "count every pair both ways"),
        ({"pairs": SQUARE, "assignments": [[1, 3]]}, "only 1 one of them"),
        ({"pairs": [[[5, 2], [2, 2]]], "assignments": [[2, 2]]}, "diagonal"),
        ({"pairs": SQUARE, "assignments": [[2, 2, 2]]}, "pairs ask for"),
        ({"pairs": SQUARE, "assignments": [[2, 2]], "tokens": 1}, "2 of 1 tokens"),
        ({"pairs": SQUARE, "assignments": [[2, 2]], "tokens": [2, 2]}, r"pass one number, or \(1,"),
        ({"pairs": SQUARE, "assignments": [[2, 3]]}, "no multiple of top_k=2"),
        ({"pairs": SQUARE, "assignments": [[2, 2]], "top_k": 1, "tokens": 4}, "check top_k"),
        # Pairs counted for half of the tokens, assignments for all.
        ({"pairs": SQUARE, "assignments": [[4, 4]], "tokens": 4}, "check top_k and tokens"),
        ({"pairs": SQUARE, "assignments": [[2, 2]], "layer_ids": [1, 2]}, "layer_ids"),
    ],
)
def test_counts_that_no_tokens_could_give_are_refused(arguments, message):
    with pytest.raises(co.InputError, match=message):
        co.Coactivation(**{"top_k": 2, **arguments})


def test_counts_cannot_be_changed():
    for pairs in (BASE, pickle.loads(pickle.dumps(BASE))):
        for array in (pairs.pairs, pairs.assignments, pairs.tokens, pairs.layer_ids):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 7


def test_equal_counts_are_equal():
    same = co.Coactivation(BASE.pairs, BASE.assignments, top_k=2)
    assert same == BASE
    assert (hash(same), same.digest) == (hash(BASE), BASE.digest)
    assert BASE + BASE != BASE
    assert pickle.loads(pickle.dumps(BASE)) == BASE


# --- files ------------------------------------------------------------------------------------


@given(traces())
def test_what_is_saved_is_read(tmp_path_factory, trace):
    pairs = counted(trace)
    file = tmp_path_factory.mktemp("pairs") / "pairs.npz"
    pairs.save(file)
    assert quiet(lambda: co.read_coactivation(file)) == pairs


def test_saving_twice_writes_the_same_bytes(tmp_path):
    for name in ("a.npz", "b.npz"):
        BASE.save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_a_recorder_may_leave_out_what_follows():
    full = BASE.pairs + np.eye(3, dtype=int) * BASE.assignments[0]
    file = recorded(BASE, pairs=full, assignments=None, tokens=None, layer_ids=None)
    assert co.read_coactivation(file) == BASE
    assert co.read_coactivation(recorded(BASE, tokens=9000)) == BASE


def test_layers_without_tokens_are_dropped_with_a_note():
    two = co.Coactivation(
        np.stack([np.zeros((3, 3), dtype=int), BASE.pairs[0]]),
        [[0, 0, 0], BASE.assignments[0]],
        top_k=2,
        layer_ids=[0, 3],
    )
    with pytest.warns(co.CraftoptWarning, match="dropped layers without tokens"):
        read = co.read_coactivation(recorded(two))
    assert read == co.Coactivation(BASE.pairs, BASE.assignments, top_k=2, layer_ids=[3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"secret": [1]}, "holds secret beside the pairs"),
        ({"top_k": None}, "without 'top_k'"),
        ({"top_k": [2, 2]}, "'top_k' has shape"),
        ({"top_k": 2.0}, "'top_k' has shape"),
        ({"pairs": [[[1.5]]]}, "whole numbers"),
        ({"tokens": 8000}, "9000 of 8000 tokens"),
        ({"pairs": [[[0]]], "assignments": [[0]], "tokens": 0, "layer_ids": None}, "no tokens"),
    ],
)
def test_files_that_hold_something_else_are_refused(changes, message):
    with pytest.raises(co.FormatError, match=message):
        co.read_coactivation(recorded(BASE, **changes))


def test_readers_name_each_other(tmp_path):
    BASE.save(tmp_path / "pairs.npz")
    with pytest.raises(co.FormatError, match=r"pair counts, not loads; co\.read_coactivation"):
        co.read_loads(tmp_path / "pairs.npz")
    np.savez(tmp_path / "loads.npz", counts=[[1, 2]])
    with pytest.raises(co.FormatError, match=r"loads, not pair counts; co\.read_loads"):
        co.read_coactivation(tmp_path / "loads.npz")


@pytest.mark.filterwarnings("ignore:.*holds the same tokens")  # of three rows, over and over
def test_a_trace_is_counted_by_the_reader(tmp_path):
    ids = np.tile([[[0, 1]], [[1, 2]], [[2, 0]]], (1000, 1, 1))
    np.savez(tmp_path / "trace.npz", topk_ids=ids)
    assert co.read_coactivation(tmp_path / "trace.npz") == co.Trace(ids).coactivation()
    assert co.read_coactivation(tmp_path / "trace.npz", experts=5).experts == 5


# --- sampling error ---------------------------------------------------------------------------


def test_one_damaged_id_does_not_fill_the_memory():
    trace = co.Trace([[[0, 1]], [[1, 60_000]]])
    with pytest.raises(co.InputError, match=r"experts=60001 in 1 layers .*; look for damaged ids"):
        trace.coactivation()


def test_the_standard_error_is_that_of_alike_tokens():
    assert BASE.standard_error == standard_error(9000) == pytest.approx(0.74 * (4.5 / 9000) ** 0.5)
    assert standard_error(0) == np.inf


def test_few_tokens_are_warned_of(tmp_path):
    few = co.Trace([[[0, 1]]] * 1999)
    with pytest.warns(co.CraftoptWarning, match=r"1999 tokens in a layer.* is 0\.035; record at"):
        pairs = few.coactivation()
    pairs.save(tmp_path / "pairs.npz")
    with pytest.warns(co.CraftoptWarning, match="1999 tokens"):
        co.read_coactivation(tmp_path / "pairs.npz")
    assert co.Trace([[[0, 1]]] * 2000).coactivation().tokens.tolist() == [2000]
