"""Kinds of traffic: how far windows are from each other, and which of them tell of the last."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from craftopt.loads import BoolArray, FloatArray

# Windows are of one kind of traffic within this many usual distances: see `near_latest`.
NEAR = 1.6
# Blends of earlier windows, and rounds of fitting their shares.
BLENDS, ROUNDS = 8, 100


def root_shares(tokens: FloatArray) -> FloatArray:
    """Compute the square roots of the experts' shares over all layers: a vector of length 1.

    Parameters
    ----------
    tokens : float64 [layers, experts]

    Returns
    -------
    float64 [layers x experts]
    """
    total = tokens.sum(axis=1, keepdims=True)
    share = np.divide(tokens, total, out=np.zeros_like(tokens), where=total > 0)
    root: FloatArray = np.sqrt(share / max(1, int((total > 0).sum()))).ravel()
    return root


def hellinger(root: FloatArray, mean_root: FloatArray) -> float:
    """Compute the Hellinger distance of a window to others.

    Parameters
    ----------
    root, mean_root : float64 [layers x experts]
        `root_shares` of the window, and a weighted mean of those of the others.
    """
    length = float(np.sqrt(np.einsum("c,c->", mean_root, mean_root)))
    if length == 0.0:
        return 0.0
    return float(np.sqrt(max(0.0, 1.0 - np.einsum("c,c->", root, mean_root) / length)))


def near_latest(tokens: FloatArray) -> BoolArray:
    """Tell which windows are of the same kind of traffic as the last one.

    Those no farther from it, by the Hellinger distance, than 1.6 times the median distance of
    consecutive windows. Where kinds take turns from window to window, that is all of them.
    Windows without tokens are of any kind.

    Parameters
    ----------
    tokens : float64 [windows, layers, experts]
        In the order of time.

    Returns
    -------
    bool [windows]
    """
    return _near(tokens)[0]


def like_latest(tokens: FloatArray) -> tuple[BoolArray, FloatArray]:
    """Choose the windows that tell of the last one's kind of traffic, and blend those that mix.

    Where some windows are not near the last, the traffic may be a new mixture of earlier kinds.
    The shares in which the windows before the last near ones mix in the mean of these are fitted
    by expectation maximisation. Where that mixture is near, in the sense of `near_latest`, blends
    of these windows are drawn, their shares varied by the Bayesian bootstrap (Rubin, 1981).

    Parameters
    ----------
    tokens : float64 [windows, layers, experts]
        In the order of time.

    Returns
    -------
    near : bool [windows]
        See `near_latest`.
    blends : float64 [0 or 8, layers, experts]
    """
    near, within = _near(tokens)
    busy = tokens.any(axis=(1, 2))
    first = 1 + int(np.flatnonzero(~near).max(initial=-1))  # of the last windows in a row
    latest, earlier = tokens[first:][busy[first:]], tokens[:first][busy[:first]]
    if not len(earlier):
        return near, earlier
    # einsum, not @: sums in one order, whatever the threads of numpy's libraries.
    parts = np.array([root_shares(window) ** 2 for window in earlier])
    target = np.mean([root_shares(window) ** 2 for window in latest], axis=0)
    share = np.full(len(parts), 1.0 / len(parts))
    for _ in range(ROUNDS):
        mixed = np.einsum("w,wc->c", share, parts)
        excess = np.divide(target, mixed, out=np.zeros_like(target), where=mixed > 0)
        share *= np.einsum("wc,c->w", parts, excess)
    if hellinger(np.sqrt(target), np.sqrt(np.einsum("w,wc->c", share, parts))) > within:
        return near, earlier[:0]
    drawn = share * np.random.default_rng(0).exponential(size=(BLENDS, share.size))
    drawn /= drawn.sum(axis=1, keepdims=True)
    blends = np.einsum("bw,wc->bc", drawn, parts).reshape(BLENDS, *tokens.shape[1:])
    # As many tokens of a layer as the last windows have on average.
    wanted, made = latest.sum(axis=2).mean(axis=0), blends.sum(axis=2)
    scale = np.divide(wanted, made, out=np.zeros_like(made), where=made > 0)
    return near, blends * scale[:, :, np.newaxis]


def _near(tokens: FloatArray) -> tuple[BoolArray, float]:
    """Tell the windows near the last one, and within what distance they are."""
    busy = tokens.any(axis=(1, 2))
    near = np.ones(len(tokens), dtype=bool)
    roots = [root_shares(window) for window in tokens[busy]]
    steps = [hellinger(before, after) for before, after in pairwise(roots)]
    if not steps:
        return near, 0.0
    within = NEAR * float(np.median(steps))
    near[busy] = [hellinger(root, roots[-1]) <= within for root in roots[:-1]] + [True]
    return near, within
