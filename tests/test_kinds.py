"""Kinds of traffic: which windows tell of the last."""

from __future__ import annotations

import numpy as np

from craftopt.kinds import near_latest


def of_kind(kind: int, windows: int, seed: int = 0) -> np.ndarray:
    """Windows [windows, 3, 32] of 4,000 tokens a layer, drawn from one popularity."""
    share = np.random.default_rng(kind).dirichlet(np.full(32, 0.5), size=3)
    draw = np.random.default_rng([seed, kind])
    return np.stack([[draw.multinomial(4000, of) for of in share] for _ in range(windows)]) * 1.0


def test_windows_of_an_earlier_kind_are_left_out_as_soon_as_one_is_of_another():
    tokens = np.concatenate([of_kind(1, 12), of_kind(2, 1)])
    assert near_latest(tokens).tolist() == [False] * 12 + [True]


def test_windows_of_a_kind_that_comes_back_are_kept():
    tokens = np.concatenate([of_kind(1, 6), of_kind(2, 6), of_kind(1, 2, seed=9)])
    assert near_latest(tokens).tolist() == [True] * 6 + [False] * 6 + [True] * 2


def test_all_windows_are_kept_where_kinds_take_turns_or_nothing_changes():
    turns = np.stack([of_kind(1 + window % 2, 1, window)[0] for window in range(10)])
    assert near_latest(turns).all()
    assert near_latest(of_kind(1, 10)).all()
    assert near_latest(np.ones((4, 2, 8))).all()
    assert near_latest(of_kind(1, 1)).tolist() == [True]


def test_windows_without_tokens_tell_nothing_of_a_kind():
    tokens = np.concatenate([of_kind(1, 6), of_kind(2, 3)])
    with_idle = np.insert(tokens, [0, 4, 9], 0.0, axis=0)
    busy = with_idle.any(axis=(1, 2))
    assert near_latest(with_idle)[busy].tolist() == near_latest(tokens).tolist()
    assert near_latest(with_idle)[~busy].all()
    assert near_latest(0.0 * tokens).all()
