"""Kinds of traffic: how far windows are from each other, and which of them tell of the last."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from craftopt.loads import BoolArray, FloatArray

# Windows are of one kind of traffic within this many usual distances: see `near_latest`.
NEAR = 1.6


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
    busy = np.asarray(tokens.any(axis=(1, 2)))
    near = np.ones(len(tokens), dtype=bool)
    roots = [root_shares(window) for window in tokens[busy]]
    steps = [hellinger(before, after) for before, after in pairwise(roots)]
    if steps:
        within = NEAR * float(np.median(steps))
        near[busy] = [hellinger(root, roots[-1]) <= within for root in roots[:-1]] + [True]
    return near
