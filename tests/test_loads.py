"""Loads take what can be used, refuse the rest by name, and cannot be changed afterwards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import token_arrays

import craftopt as co


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[1.0, np.nan]], r"tokens\[0, 0, 1\] is nan"),
        ([[1.0, np.inf]], r"tokens\[0, 0, 1\] is inf"),
        ([[1.0, -np.inf]], r"tokens\[0, 0, 1\] is -inf"),
        ([[[1, 2]], [[3, -1]]], r"tokens\[1, 0, 1\] is -1"),
        ([["a", "b"]], "type <U1"),
        ([[1, None]], "type object"),
        ([[1j, 2]], "type complex128"),
        ([[True, False]], "type bool"),
        ([[10**30, 1]], "type object"),
        ([[1, 2], [3]], "ragged"),
        ([1, 2], r"1 dimension\(s\), shape \(2,\)"),
        (5, r"0 dimension\(s\)"),
        (np.ones((1, 1, 1, 1)), r"4 dimension\(s\)"),
        (np.ones((0, 2, 3)), "0 windows"),
        (np.ones((2, 0, 3)), "0 layers"),
        (np.ones((2, 3, 0)), "0 experts"),
        (np.ones((0, 3)), "0 layers"),
        ([[1e308, 1.0]], "scale them"),
        ([[5e-324, 0.0]], "scale them"),
    ],
)
def test_refuses_tokens_that_are_no_counts(tokens, message):
    with pytest.raises(co.InputError, match=message):
        co.Loads(tokens)


def test_says_how_many_cells_are_bad():
    with pytest.raises(co.InputError, match=r"2 such cell\(s\)"):
        co.Loads([[-1, 2, np.nan]])


@pytest.mark.parametrize(
    "layer_ids", [[0], [0, 1, 2], [[0, 1]], [0.0, 1.0], ["a", "b"], [3, 3], [True, False], [[0], 1]]
)
def test_refuses_layer_ids_that_do_not_name_the_layers(layer_ids):
    with pytest.raises(co.InputError, match="layer_ids"):
        co.Loads([[1, 2], [3, 4]], layer_ids=layer_ids)


@pytest.mark.parametrize("beyond", [2**63, 2**64 - 1, 2**70])
def test_refuses_layer_ids_beyond_int64(beyond):
    with pytest.raises(co.InputError, match="layer_ids"):
        co.Loads([[1, 2]], layer_ids=[beyond])


def test_refuses_window_names_of_a_wrong_length():
    with pytest.raises(co.InputError, match="1 names for 2 windows"):
        co.Loads(np.ones((2, 1, 1)), window_names=["only"])


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int64, np.float16, np.float32, np.float64])
def test_takes_any_whole_or_floating_type_as_float64(kind):
    loads = co.Loads(np.array([[1, 2, 3]], dtype=kind))
    assert loads.tokens.dtype == np.float64
    assert loads.tokens.tolist() == [[[1, 2, 3]]]


def test_two_dimensions_are_one_window():
    loads = co.Loads([[1, 2, 3], [4, 5, 6]])
    assert (loads.windows, loads.layers, loads.experts) == (1, 2, 3)
    assert loads.layer_ids.tolist() == [0, 1]
    assert loads.window_names == ("0",)


def test_arrays_are_copied():
    tokens, layer_ids = np.array([[1.0, 2.0]]), np.array([7])
    loads = co.Loads(tokens, layer_ids)
    tokens[:], layer_ids[:] = 99, 99
    assert loads.tokens.tolist() == [[[1, 2]]]
    assert loads.layer_ids.tolist() == [7]


def test_nothing_can_be_changed():
    loads = co.Loads([[1.0, 2.0]])
    for array in (loads.tokens, loads.layer_ids, loads.total().tokens, loads.select([0]).tokens):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    with pytest.raises(AttributeError):
        loads.tokens = np.ones((1, 1, 2))


def test_total_sums_the_windows_and_keeps_the_layers():
    loads = co.Loads([[[1, 2], [3, 4]], [[10, 20], [30, 40]]], layer_ids=[5, 9])
    assert loads.total().tokens.tolist() == [[[11, 22], [33, 44]]]
    assert loads.total().layer_ids.tolist() == [5, 9]


def test_select_keeps_order_names_and_layers():
    loads = co.Loads(np.arange(6.0).reshape(3, 1, 2), [4], ["a", "b", "c"])
    chosen = loads.select([2, 0])
    assert chosen.window_names == ("c", "a")
    assert chosen.tokens[:, 0, 0].tolist() == [4, 0]
    assert chosen.layer_ids.tolist() == [4]


@pytest.mark.parametrize("windows", [[], [3], [-1], [0.0], [True, False, True], 1, [[0, 1]], "a"])
def test_select_refuses_what_is_no_position(windows):
    with pytest.raises(co.InputError):
        co.Loads(np.ones((3, 1, 2))).select(windows)


@given(token_arrays(windows=(2, 4)), st.data())
def test_split_puts_every_window_on_its_side(tokens, data):
    loads = co.Loads(tokens)
    size = loads.windows
    mask = data.draw(
        st.lists(st.booleans(), min_size=size, max_size=size).filter(lambda m: len(set(m)) == 2)
    )
    train, test = loads.split(mask)
    assert train.tokens.tolist() == [
        row.tolist() for row, on in zip(tokens, mask, strict=True) if on
    ]
    assert test.tokens.tolist() == [
        row.tolist() for row, on in zip(tokens, mask, strict=True) if not on
    ]
    assert set(train.window_names) | set(test.window_names) == set(loads.window_names)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([True, False], r"shape \(2,\)"),
        ([True, False, True, True], r"shape \(4,\)"),
        ([[True, False, True]], r"shape \(1, 3\)"),
        ([1, 0, 1], "type int64"),
        ([0, 2], "type int64"),
        ([True] * 3, "all 3 windows on one side"),
        ([False] * 3, "all 3 windows on one side"),
        (True, r"shape \(\)"),
    ],
)
def test_split_refuses_a_mask_that_does_not_halve(mask, message):
    with pytest.raises(co.InputError, match=message):
        co.Loads(np.ones((3, 1, 2))).split(mask)


@given(token_arrays())
def test_equal_loads_have_equal_digests(tokens):
    first, second = co.Loads(tokens), co.Loads(tokens.copy())
    assert first == second
    assert first.digest == second.digest
    assert hash(first) == hash(second)


@given(token_arrays(), st.data())
def test_any_change_changes_the_digest(tokens, data):
    loads = co.Loads(tokens)
    cell = tuple(data.draw(st.integers(0, size - 1)) for size in tokens.shape)
    changed = tokens.copy()
    changed[cell] += 1
    assert co.Loads(changed).digest != loads.digest
    assert co.Loads(changed) != loads
    assert co.Loads(tokens, loads.layer_ids + 1).digest != loads.digest
    if tokens.shape[0] != tokens.shape[1]:
        assert co.Loads(tokens.swapaxes(0, 1)).digest != loads.digest


def test_minus_zero_is_zero():
    plus, minus = co.Loads([[0.0, 1.0]]), co.Loads([[-0.0, 1.0]])
    assert plus == minus
    assert plus.digest == minus.digest


def test_loads_are_not_equal_to_other_things():
    assert co.Loads([[1]]) != "loads"
    assert co.Loads([[1]], window_names=["a"]) != co.Loads([[1]], window_names=["b"])
