"""Companions: what tokens save where two of their experts are served together.

The proofs stand in ``formulations/README.md``, "Companions".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations
from math import comb, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from craftopt.verification.checks import Witness, require, whole
from craftopt.verification.witnesses.visits import FITS, VisitsCase

Integers = npt.NDArray[Any]
# Twice what all prices sum to at most, times the scale, by replicas and most experts on a node.
Paid = Callable[[int, int], int]

# Experts of a token: all its partitions are compared.
MOST_CHOICES = 10
# Factors of matrices are rounded to multiples of 2**-_BITS.
_BITS = 40


def check_companions(case: VisitsCase, witness: Witness) -> Callable[[int, int], Fraction]:
    """Check a witness; return what it proves, by replicas and most copies on a node.

    The tokens' intercepts, less the most that all prices can sum to. Without replicas it is for the
    case's own nodes; with them also for other numbers, as long as nodes have no room for larger
    blocks of a token's experts.

    Raises
    ------
    VerificationError
        The witness proves nothing.
    """
    scale, grain = whole(witness["scale"]), whole(witness["grain"])
    require(0 < scale <= FITS and 0 < grain <= FITS, "the scale is not above 0, or too large")
    require(len(witness["prices"]) == len(case.tokens), "every token needs its prices")
    tokens_of: dict[int, list[int]] = defaultdict(list)
    for at, token in enumerate(case.tokens):
        tokens_of[len(token)].append(at)
    most = FITS // sum(case.counts) // grain
    visits = 0
    weights = np.zeros((case.experts, case.experts), dtype=np.int64)
    for k, chosen in tokens_of.items():
        require(k <= MOST_CHOICES, f"tokens of {k} experts have too many partitions to compare")
        rows = [_row(witness["prices"][at], comb(k, 2), most) for at in chosen]
        prices = np.array(rows, dtype=np.int64).reshape(len(chosen), comb(k, 2)) * grain
        if case.any_dispatch:
            require(int(prices.min(initial=0)) >= 0, "a price is below 0")
        counts = [case.counts[at] for at in chosen]
        intercepts = least_partition(prices, k, case.size, scale).tolist()
        visits += sum(map(prod, zip(counts, intercepts, strict=True)))
        members = np.array([case.tokens[at] for at in chosen])
        paid = prices * np.array(counts)[:, np.newaxis]
        for pair, (i, j) in enumerate(combinations(range(k), 2)):
            np.add.at(weights, (members[:, i], members[:, j]), paid[:, pair])
    twice = _most_paid(case, weights + weights.T, witness)
    own = case.replicas, case.sizes[1]
    fits = case.size >= max(tokens_of)

    def proven(replicas: int, copies: int) -> Fraction:
        others = case.replicas > 0 and not case.any_dispatch and (fits or copies <= own[1])
        if not others and (replicas, copies) != own:
            return Fraction(case.capacity(copies))
        bound = (visits - Fraction(twice(replicas, case.block(copies)), 2)) / scale
        return bound if replicas else Fraction(-(-bound // 1))

    return proven


def least_partition(prices: Integers, k: int, size: int, scale: int) -> Integers:
    """Find the least of all partitions of k experts, blocks and pairs inside them counted.

    Parameters
    ----------
    prices : int64 [tokens, k (k - 1) / 2]
        Of pairs in lexicographic order.
    k : int
    size : int
        Most experts in a block.
    scale : int
        What a block counts.

    Returns
    -------
    int64 [tokens]

    Examples
    --------
    All three in one block; each in one; the first two together:

    >>> import numpy as np
    >>> from craftopt.verification.witnesses.companions import least_partition
    >>> prices = np.array([[1, 2, 3], [90, 90, 90], [1, 90, 90]])
    >>> least_partition(prices, 3, size=3, scale=10)
    array([16, 30, 21])
    """
    price = dict(zip(combinations(range(k), 2), prices.T, strict=True))
    # By set of experts, as flags: as one block, and at best.
    block = [np.zeros(len(prices), dtype=np.int64)]
    best = [block[0]]
    for flags in range(1, 1 << k):
        first = (flags & -flags).bit_length() - 1
        others = flags & (flags - 1)
        joined = [price[first, j] for j in range(first + 1, k) if others >> j & 1]
        block.append(sum(joined, start=block[others] + (0 if others else scale)))
        least = np.full(len(prices), np.iinfo(np.int64).max)
        joining = others
        while True:  # all sets that share the block with the first expert
            together = flags & ~others | joining
            if together.bit_count() <= size:
                np.minimum(least, block[together] + best[flags ^ together], out=least)
            if joining == 0:
                break
            joining = (joining - 1) & others
        best.append(least)
    return best[-1]


def _most_paid(case: VisitsCase, weights: Integers, witness: Witness) -> Paid:
    """Bound the sum of weights[e, f] over the pairs e < f that are served on one node.

    The matrix Z of how often pairs are is positive semidefinite, with bounds on its diagonal,
    its rows and their total. Dual values of these, cells above 0 and a shift that makes the rest
    positive semidefinite bound the sum, for which Z counts every pair twice.
    """
    most, nodes = case.size, case.nodes
    # With one copy each: as if experts that no token chooses filled the nodes up.
    n = case.experts if case.replicas else nodes * most
    experts, rows = _row(witness["experts"], n), _row(witness["rows"], n)
    total, shift = whole(witness["total"]), whole(witness["shift"])
    cells = [_row(row, n - 1 - e) for e, row in enumerate(witness["cells"])]
    require(len(cells) == n - 1 and shift >= 0, "the dual solution has a wrong size or shift")
    require(all(cell >= 0 for row in cells for cell in row), "a cell is below 0")
    diagonal = [2 * value for value in experts]
    if case.any_dispatch:
        diagonal = [value - 2 * (most - 1) * row for value, row in zip(diagonal, rows, strict=True)]
    matrix = np.add.outer(np.array(rows, dtype=object), np.array(rows, dtype=object)) + 2 * total
    matrix[: case.experts, : case.experts] -= weights
    for e, row in enumerate(cells):
        matrix[e, e + 1 :] -= row
        matrix[e + 1 :, e] -= row
    np.fill_diagonal(matrix, [value + shift for value in diagonal])
    require(_is_semidefinite(matrix), "the dual matrix is not positive semidefinite")
    even = case.replicas > 0 and not case.any_dispatch
    require(even or total == 0, "the total is bound by the rows already")
    if case.any_dispatch:
        # c_e nodes host e, from 1 to N, and size N together. Z_ee = c_e, rows are size c_e.
        full, rest = divmod(nodes * most - n, nodes - 1)
        dearest = [*sorted(experts, reverse=True), 0]
        further = (nodes - 1) * sum(dearest[:full]) + rest * dearest[full]
        return lambda _, size: 2 * (sum(experts) + further) + shift * nodes * size
    if not case.replicas:
        return lambda _, size: 2 * sum(experts) + 2 * (size - 1) * sum(rows) + shift * n
    # Z_ee <= 1, rows <= size. Loads of the nodes sum to E, each at most size, so that their squares
    # are largest where they differ most.
    require(min(total, *experts, *rows) >= 0, "a dual value is below 0")

    def twice(replicas: int, size: int) -> int:
        full, rest = divmod(n, size)
        squares = 2 * full * size**2 + 2 * rest**2 - 2 * n + replicas
        return 2 * sum(experts) + 2 * (size - 1) * sum(rows) + total * squares + shift * n

    return twice


def _is_semidefinite(matrix: Integers) -> bool:
    """Whether a matrix of whole numbers is positive semidefinite, by some margin.

    Floating point guesses a triangular factor L, a little smaller than it must be; L is rounded
    to fractions, and what matrix - L L' leaves must be diagonally dominant.
    """
    margin = np.diag([len(matrix)] * len(matrix)).astype(object)
    try:
        factor = np.linalg.cholesky((matrix - margin).astype(np.float64))
    except np.linalg.LinAlgError:
        return False
    whole = np.array([[int(x) for x in row] for row in np.ldexp(factor, _BITS)], dtype=object)
    rest = matrix * (1 << 2 * _BITS) - whole @ whole.T
    return bool((2 * np.diag(rest) >= abs(rest).sum(axis=1)).all())


def _row(values: Any, length: int, most: int | None = None) -> list[int]:
    row = [whole(value) for value in values]
    require(len(row) == length, f"{len(row)} numbers stand where {length} must")
    require(most is None or max(map(abs, row), default=0) <= most, "a number is too large")
    return row
