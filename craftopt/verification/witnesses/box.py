"""A layer, limits on the copies of its experts, and what these alone prove."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy.typing as npt

Integers = npt.NDArray[Any]  # int64, or Python's whole numbers where these are too large
# A number, or math.inf where there is nothing to bound.
Bound = Fraction | float


@dataclass(frozen=True)
class Box:
    """A layer with a number of copies in all, and limits on the copies of every expert.

    Parameters
    ----------
    weights : int [windows, experts]
        Tokens, in whole units.
    means : tuple of Fraction, [windows]
        Mean GPU loads.
    floors : tuple of Fraction, [windows]
        What the fullest GPU carries at least, by mean loads: of all GPUs or, under expert groups,
        of the node that carries most.
    gpus, copies : int
    unit : int
        One token in units of the weights.
    time : bool
        Whether a window costs its largest load, rather than minus its balancedness.
    even : bool
        Whether every GPU hosts floor or ceil of copies/gpus.
    lower, upper : tuple of int, [experts]
    groups : tuple of (tuple of int)
        The experts of every group, as many of each; empty without groups.
    nodes : int
        Nodes that share the groups, with as many copies each.
    """

    weights: Integers
    means: tuple[Fraction, ...]
    floors: tuple[Fraction, ...]
    gpus: int
    copies: int
    unit: int
    time: bool
    even: bool
    lower: tuple[int, ...]
    upper: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...] = ()
    nodes: int = 1

    @property
    def empty(self) -> bool:
        """Whether no numbers of copies lie in the box."""
        crossed = any(low > high for low, high in zip(self.lower, self.upper, strict=True))
        return crossed or sum(self.lower) > self.copies or sum(self.upper) < self.copies

    @property
    def slots(self) -> tuple[int, int]:
        """Copies on the emptiest GPU, and GPUs with one more; 0 unless slots are even."""
        return divmod(self.copies, self.gpus) if self.even else (0, 0)

    def cost(self, window: int, load: Fraction) -> Fraction:
        """Compute what a window adds to the layer's cost."""
        return window_cost(load, self.means[window], self.time)

    def heaviest_copy(self, window: int) -> Bound:
        """Compute the least possible heaviest copy, at least the floor; math.inf if empty."""
        if self.empty:
            return math.inf
        heaviest = self.floors[window]
        for part in (self, *map(self.of_group, range(len(self.groups)))):
            spare = part.copies - sum(part.lower)
            if spare < 0:
                return math.inf
            weights = part.weights[window].tolist()
            *_, load = islice(heaviest_copies(weights, part.lower, part.upper), spare + 1)
            heaviest = max(heaviest, load)
        return heaviest

    def of_group(self, group: int) -> Box:
        """Take a group's experts on the GPUs of its node, with the most copies they can have.

        Exactly that many where the node hosts no other group.
        """
        members = self.groups[group]
        # The other groups of its node have a copy of every expert at least.
        others = (len(self.groups) // self.nodes - 1) * len(members)
        return replace(
            self,
            weights=self.weights[:, members],
            gpus=self.gpus // self.nodes,
            copies=self.copies // self.nodes - others,
            lower=tuple(self.lower[expert] for expert in members),
            upper=tuple(self.upper[expert] for expert in members),
            groups=(),
        )

    def below(self, window: int, load: Fraction) -> Box | None:
        """Shrink the box to what leaves all copies lighter than a load; None if nothing does."""
        weights = self.weights[window].tolist()
        # weight / copies < load, so copies > weight / load
        lower = [
            max(low, weight * load.denominator // load.numerator + 1)
            for weight, low in zip(weights, self.lower, strict=True)
        ]
        # All together have a given number of copies: what one has is what the others leave.
        spare = self.copies - sum(lower)
        upper = [min(high, low + spare) for low, high in zip(lower, self.upper, strict=True)]
        room = sum(upper) - self.copies
        lower = [max(low, high - room) for low, high in zip(lower, upper, strict=True)]
        box = replace(self, lower=tuple(lower), upper=tuple(upper))
        return None if spare < 0 or room < 0 or box.empty else box


def window_cost(load: Fraction, mean: Fraction, time: bool) -> Fraction:
    """Compute what a window adds to a layer's cost, from its largest and its mean GPU load."""
    if time:
        return load
    return -mean / load if load else Fraction(-1)


def heaviest_copies(
    weights: Sequence[int], lower: Sequence[int], upper: Sequence[int]
) -> Iterator[Fraction]:
    """Yield the least possible heaviest copy with 0, 1, ... copies beyond the lower limits.

    Copies the expert with the heaviest copies, until that one is at its limit.
    """
    # In multiples of 1/common every copy weighs a whole number: quick to compare.
    common = math.lcm(*range(1, max(upper, default=1) + 1))
    heap = [
        (-weight * (common // count), expert)
        for expert, (weight, count) in enumerate(zip(weights, lower, strict=True))
    ]
    heapq.heapify(heap)
    count = list(lower)
    while heap:
        load, expert = heap[0]
        yield Fraction(-load, common)
        if count[expert] >= upper[expert]:
            return
        count[expert] += 1
        heapq.heapreplace(heap, (-weights[expert] * (common // count[expert]), expert))
