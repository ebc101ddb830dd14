"""Columns: what single nodes can do; the visits of the best partition, proven in whole numbers.

The proof stands in ``formulations/README.md``, "Columns".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt

from craftopt.verification.checks import Witness, require, whole
from craftopt.verification.witnesses.visits import FITS, VisitsCase

Integers = npt.NDArray[Any]

# Sets that a node may hold are counted one by one, up to that many; and those that may be in a
# better partition, up to that many.
MOST_SETS = 20_000_000
MOST_COLUMNS = 20_000


def count_touched(tokens: Mapping[tuple[int, ...], int], experts: int, size: int) -> list[Integers]:
    """Count the tokens that have an expert in common with a set, for all sets up to a size.

    Parameters
    ----------
    tokens : mapping
        Expert set, ascending, to number of tokens.
    experts, size : int

    Returns
    -------
    list of int64 arrays
        For every s = 0..size, over the sets of s experts in colexicographic order: the sets whose
        last expert is e follow those of the experts before e.

    Notes
    -----
    A set with last expert e, and B before it, is touched by the tokens that B touches, and by
    those with e that B does not touch. Tokens with e, what is left of them before e, are
    counted in the same way.

    Examples
    --------
    The sets of two experts are 01, 02, 12:

    >>> from craftopt.verification.witnesses.columns import count_touched
    >>> count_touched({(0, 1): 2, (2,): 5}, experts=3, size=2)[2]
    array([2, 7, 7])
    """
    touched = [np.zeros(comb(experts, s), dtype=np.int64) for s in range(size + 1)]
    having = [0] * experts
    links: list[dict[tuple[int, ...], int]] = [defaultdict(int) for _ in range(experts)]
    for token, count in tokens.items():
        for at, e in enumerate(token):
            having[e] += count
            if at:
                links[e][token[:at]] += count
    if size == 1:
        touched[1][:] = having
        return touched
    for e in range(experts):
        most = min(size, e + 1)
        link = count_touched(links[e], e, most - 1) if links[e] else None
        for s in range(1, most + 1):
            sets = touched[s - 1][: comb(e, s - 1)] + having[e]
            if link is not None:
                sets -= link[s - 1]
            touched[s][comb(e, s) : comb(e + 1, s)] = sets
    return touched


def sets_at(places: Integers, size: int) -> Integers:
    """List the sets at places in colexicographic order, int64 [places, size], ascending.

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt.verification.witnesses.columns import sets_at
    >>> sets_at(np.array([0, 3, 4]), 2).tolist()
    [[0, 1], [0, 3], [1, 3]]
    """
    members = np.empty((len(places), size), dtype=np.int64)
    left = np.array(places, dtype=np.int64)
    for s in range(size, 0, -1):
        below = [comb(s - 1, s)]  # sets of s experts before each expert
        while below[-1] <= left.max(initial=0):
            below.append(comb(s - 1 + len(below), s))
        members[:, s - 1] = s - 2 + np.searchsorted(below, left, side="right")
        left -= np.array(below)[members[:, s - 1] - (s - 1)]
    return members


def check_columns(case: VisitsCase, witness: Witness) -> int:
    """Check that no partition of the experts has fewer visits than stated."""
    require(case.replicas == 0, "columns prove nothing about replicas")
    require(case.sizes[0] >= 1, "columns prove nothing where nodes may be empty")
    scale, least = whole(witness["scale"]), whole(witness["least"])
    prices = [whole(price) for price in witness["prices"]]
    visits = whole(witness["visits"])
    require(len(prices) == case.experts and scale > 0, "there must be a price for every expert")
    sizes = range(case.sizes[0], case.size + 1)
    count = sum(comb(case.experts, size) for size in sizes)
    require(count <= MOST_SETS, f"{count} sets are too many to count")
    tokens: dict[tuple[int, ...], int] = defaultdict(int)
    for token, number in zip(case.tokens, case.counts, strict=True):
        tokens[token] += scale * number
    for e, price in enumerate(prices):
        tokens[e,] -= price
    require(sum(map(abs, tokens.values())) <= FITS, "the numbers are too large to add up")
    # What the sets of a better partition may cost above the least, all together.
    slack = (visits - 1) * scale - sum(prices) - case.nodes * least
    costs = count_touched(tokens, case.experts, case.size)
    near: list[list[tuple[int, int]]] = [[] for _ in range(case.experts)]
    for size in sizes:
        cheapest = int(costs[size].min())
        require(cheapest >= least, f"a set costs {cheapest}, less than {least}")
        places = np.flatnonzero(costs[size] <= least + slack)
        require(len(places) <= MOST_COLUMNS, f"{len(places)} sets are too many to combine")
        for place, members in zip(places, sets_at(places, size).tolist(), strict=True):
            flags = sum(1 << e for e in members)
            if members:
                near[members[0]].append((int(costs[size][place]) - least, flags))
    for columns in near:
        columns.sort()
    require(
        not _has_partition(near, case.nodes, (1 << case.experts) - 1, slack),
        f"a partition has fewer visits than {visits}",
    )
    return visits


def _has_partition(
    near: list[list[tuple[int, int]]], nodes: int, uncovered: int, slack: int
) -> bool:
    """Whether some sets, of at most so much excess in all, cover every expert just once."""
    if nodes == 0 or uncovered == 0:
        return nodes == 0 and uncovered == 0
    first = (uncovered & -uncovered).bit_length() - 1
    for excess, flags in near[first]:
        if excess > slack:
            break
        if flags & ~uncovered == 0 and _has_partition(
            near, nodes - 1, uncovered ^ flags, slack - excess
        ):
            return True
    return False
