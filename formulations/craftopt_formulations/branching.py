"""Branching over copy counts: prove that every placement of a layer has a largest load of T.

Every leaf of the tree is a box, limits on the copies of every expert, in which one bound proves
the load T on its own: the mean load, the heaviest copy, or the configuration LP
(`craftopt_formulations.configuration_lp`). A box in which none does is split where the
configuration LP is undecided: into "at most k copies of e" and "at least k + 1". Counts are
whole numbers, so that nothing is lost between the two.

The tree is a witness: nested dicts with ``kind`` "branch", "mean", "copies", "configuration" or
"empty", which can be checked leaf by leaf in exact arithmetic, without searching.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from craftopt_formulations.configuration_lp import Layer, price_configurations


@dataclass(frozen=True)
class Tree:
    """A proof by branching, or how far it came.

    Parameters
    ----------
    witness : dict or None
        The tree; None where it was not proven.
    boxes : int
        Boxes looked at, leaves and branches.
    """

    witness: dict[str, Any] | None
    boxes: int


def prove_load(layer: Layer, load: Fraction, *, work_limit: int = 2000) -> Tree:
    """Prove that no placement has all GPU loads below ``load``.

    Parameters
    ----------
    layer : Layer
        Its limits are the root of the tree.
    load : Fraction
    work_limit : int
        Most boxes to look at.

    Returns
    -------
    Tree

    Examples
    --------
    FlashLB's example: 590/3 is the least possible largest load on 8 GPUs of 2 slots.

    >>> from fractions import Fraction
    >>> from craftopt_formulations.branching import prove_load
    >>> from craftopt_formulations.configuration_lp import Layer
    >>> layer = Layer.of([600, 560, 120, 120, 20, 10, 10, 10], gpus=8, replicas=8)
    >>> prove_load(layer, Fraction(590, 3)).witness is not None
    True
    >>> prove_load(layer, Fraction(591, 3)).witness is None
    True
    """
    search = _Search(load, work_limit)
    return Tree(search.prove(layer), search.boxes)


class _Search:
    def __init__(self, load: Fraction, work_limit: int) -> None:
        self._load = load
        self._limit = work_limit
        self.boxes = 0

    def prove(self, box: Layer) -> dict[str, Any] | None:
        """Prove one box, depth first; None as soon as a part of it cannot be proven."""
        self.boxes += 1
        if sum(box.tokens) >= self._load * box.gpus:
            return {"kind": "mean"}
        if not sum(box.lower) <= box.copies <= sum(box.upper):
            return {"kind": "empty"}
        tight = box.below(self._load)
        if tight is None:
            return {"kind": "copies"}
        priced = price_configurations(tight, self._load)
        if priced.witness is not None:
            return priced.witness
        split = _split(tight, priced.copies)
        if split is None or self.boxes + 2 > self._limit:
            return None
        expert, copies = split
        below = self.prove(_limited(tight, expert, tight.lower[expert], copies))
        if below is None:
            return None
        above = self.prove(_limited(tight, expert, copies + 1, tight.upper[expert]))
        if above is None:
            return None
        return {
            "kind": "branch",
            "expert": expert,
            "copies": copies,
            "below": below,
            "above": above,
        }


def _split(box: Layer, hosted: np.ndarray) -> tuple[int, int] | None:
    """Choose the expert whose copies the LP is least decided on, weighed by its tokens."""
    best, chosen = 0.0, None
    for expert, (least, most) in enumerate(zip(box.lower, box.upper, strict=True)):
        if least == most:
            continue
        copies = min(max(int(hosted[expert]), least), most - 1)
        part = min(max(hosted[expert] - copies, 0.01), 0.99)
        score = float(box.tokens[expert] / copies) * min(part, 1 - part)
        if score > best:
            best, chosen = score, (expert, copies)
    return chosen


def _limited(box: Layer, expert: int, least: int, most: int) -> Layer:
    lower, upper = list(box.lower), list(box.upper)
    lower[expert], upper[expert] = least, most
    return replace(box, lower=tuple(lower), upper=tuple(upper))
