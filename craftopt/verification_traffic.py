"""Verify bounds on node visits in whole numbers, trusting nothing but the tokens.

Every token visits the nodes that serve its experts; *visits* are summed over the tokens of a
layer. A bound on them is proven by a *witness* for a *case*, both plain data.

**A case** is a dict of ``experts`` E; ``nodes`` N, at least 2; ``sizes`` [least, most] copies on a
node; ``replicas`` R, extra copies of the layer; ``dispatch``, ``"even"`` (every copy serves its
expert equally often, drawn for every token and expert) or ``"any"``; ``tokens``, a list of
expert sets, ascending, and ``counts``, how many tokens have each. Nodes stand for whatever holds
copies: with GPUs in their place, all this holds for GPUs that tokens visit.

**A certificate** is a dict of ``case``; ``copies``, a placement [experts][nodes]; its ``visits``, a
``bound`` on those of all placements and the relative ``gap`` between, as texts "p/q"; and a
``witness`` of the bound. Visits of a placement are those of even dispatch, the bound is for the
dispatch of the case. Where ``joint`` stands beside, it says that relative time plus ``traffic``
x critical nodes per token is at least its ``bound``, given a proven ``time_bound``.

**A witness** is a dict with a ``kind``; its numbers are whole, in units of 1/``scale`` visits.

``{"kind": "capacity"}``
    A token with k experts visits at least k / most nodes, rounded up.
``{"kind": "columns", "scale", "prices": [E], "least", "visits"}``
    Without replicas. ``scale touched(A) - prices(A) >= least`` for every set A that a node may
    hold, where ``touched(A)`` tokens have an expert in A; and no partition into N such sets has
    fewer visits than stated.
``{"kind": "companions", "scale", "prices": [[pairs] of every token], "experts": [n], "rows": [n],
"total", "cells": [[n - 1], ..., [1]], "shift"}``
    Prices are for pairs of a token's experts that one node serves. A token visits at least the
    least of all partitions of its experts into blocks that a node can hold, blocks and prices
    counted, minus its prices. What the prices of all tokens sum to is bounded by dual values of
    a semidefinite program over all pairs.

The proofs stand in ``formulations/README.md``, "Node visits".
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import combinations, pairwise
from math import comb, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from craftopt.errors import VerificationError

Case = Mapping[str, Any]
Witness = Mapping[str, Any]
Integers = npt.NDArray[Any]

# Sets that a node may hold are counted one by one, up to that many; and those that may be in a
# better partition, up to that many.
MOST_SETS = 20_000_000
MOST_COLUMNS = 20_000
# Experts of a token: all its partitions are compared.
MOST_CHOICES = 10
# Of numbers up to that, all sums here fit 64 bits.
_FITS = 2**50
_NUMBER = re.compile(r"-?[0-9]+(/[0-9]+)?")
# Factors of matrices are rounded to multiples of 2**-_BITS.
_BITS = 40


class _Layer:
    """A case, read and checked."""

    def __init__(self, case: Case) -> None:
        self.experts, self.nodes = _whole(case["experts"]), _whole(case["nodes"])
        self.least, self.most = (_whole(size) for size in case["sizes"])
        self.replicas = _whole(case["replicas"])
        self.any_dispatch = case["dispatch"] == "any"
        _claim(case["dispatch"] in ("even", "any"), f"{case['dispatch']!r} is no dispatch")
        _claim(self.experts >= 1 and self.nodes >= 2, "a case needs an expert and two nodes")
        _claim(0 <= self.least <= self.most, "the sizes of nodes are no sizes")
        # Most experts on a node, and in a block of a token's partition.
        self.size = min(self.most, self.experts)
        _claim(self.replicas >= 0, "replicas are negative")
        _claim(
            self.nodes * self.least <= self.experts + self.replicas <= self.nodes * self.most,
            "the nodes do not hold all copies",
        )
        self.tokens = [tuple(_whole(e) for e in token) for token in case["tokens"]]
        self.counts = [_whole(count) for count in case["counts"]]
        _claim(len(self.tokens) == len(self.counts) > 0, "tokens and counts differ in length")
        for token, count in zip(self.tokens, self.counts, strict=True):
            ascending = all(e < f for e, f in pairwise(token))
            _claim(
                len(token) > 0 and ascending and token[0] >= 0 and token[-1] < self.experts,
                f"{list(token)} is no set of experts, ascending",
            )
            _claim(count > 0, f"{count} tokens have the experts {list(token)}")


def check_visits(certificate: Mapping[str, Any]) -> None:
    """Check all that a certificate of node visits states.

    Raises
    ------
    VerificationError
        A claim that is false; the message names the first one.

    Examples
    --------
    >>> from craftopt.verification_traffic import check_visits
    >>> case = {"experts": 3, "nodes": 2, "sizes": [1, 2], "replicas": 0, "dispatch": "even",
    ...         "tokens": [[0, 1, 2]], "counts": [5]}
    >>> certificate = {"case": case, "copies": [[1, 0], [1, 0], [0, 1]], "visits": "10",
    ...                "bound": "10", "gap": "0", "witness": {"kind": "capacity"}}
    >>> check_visits(certificate)
    >>> check_visits(certificate | {"bound": "11"})
    Traceback (most recent call last):
    craftopt.errors.VerificationError: the bound is stated as 11, and 10 is proven
    """
    with _damage_named("certificate"):
        case = certificate["case"]
        visits, bound = _number(certificate["visits"]), _number(certificate["bound"])
        true = placement_visits(case, certificate["copies"])
        _claim(visits == true, f"the visits are stated as {visits}, and are {true}")
        proven = proven_visits(case, certificate["witness"])
        _claim(bound <= proven, f"the bound is stated as {bound}, and {proven} is proven")
        _claim(0 < bound <= visits, "the bound is no bound for the placement")
        gap = visits / bound - 1
        _claim(_number(certificate["gap"]) == gap, f"the gap is not {certificate['gap']} but {gap}")
        if (joint := certificate.get("joint")) is not None:
            terms = _number(joint["time_bound"]), _number(joint["traffic"])
            _claim(min(terms) >= 0, "a term of the joint bound is below 0")
            least = joint_bound(*terms, bound, sum(case["counts"]))
            _claim(_number(joint["bound"]) <= least, f"the joint bound is no more than {least}")


def proven_visits(case: Case, witness: Witness) -> Fraction:
    """Bound the visits of all tokens from below by what a witness proves.

    Raises
    ------
    VerificationError
        The witness proves nothing, or says what it proves in a wrong way.

    Examples
    --------
    >>> from craftopt.verification_traffic import proven_visits
    >>> case = {"experts": 4, "nodes": 2, "sizes": [2, 2], "replicas": 0, "dispatch": "even",
    ...         "tokens": [[0, 1, 2], [2, 3]], "counts": [5, 1]}
    >>> proven_visits(case, {"kind": "capacity"})
    Fraction(11, 1)
    """
    with _damage_named("witness"):
        layer, kind = _Layer(case), witness["kind"]
        if kind == "capacity":
            sizes = zip(layer.tokens, layer.counts, strict=True)
            return Fraction(sum(count * -(-len(token) // layer.size) for token, count in sizes))
        if kind == "columns":
            return Fraction(_columns(layer, witness))
        _claim(kind == "companions", f"{kind!r} is no kind of witness")
        return _companions(layer, witness)


def placement_visits(case: Case, copies: Sequence[Sequence[int]]) -> Fraction:
    """Sum the visits of all tokens under even dispatch, exactly.

    Parameters
    ----------
    case : Case
    copies : sequence [experts][nodes]
        How many copies of every expert every node holds.

    Raises
    ------
    VerificationError
        A placement that the case does not allow.

    Examples
    --------
    >>> from craftopt.verification_traffic import placement_visits
    >>> case = {"experts": 2, "nodes": 2, "sizes": [1, 2], "replicas": 1, "dispatch": "even",
    ...         "tokens": [[0, 1]], "counts": [10]}
    >>> placement_visits(case, [[1, 1], [1, 0]])
    Fraction(15, 1)
    """
    with _damage_named("placement"):
        layer = _Layer(case)
        rows = [[_whole(number) for number in row] for row in copies]
        _claim(
            len(rows) == layer.experts and all(len(row) == layer.nodes for row in rows),
            "the placement is for other experts or nodes",
        )
        _claim(all(min(row) >= 0 and sum(row) > 0 for row in rows), "an expert has no copy")
        held = [sum(column) for column in zip(*rows, strict=True)]
        _claim(
            sum(held) == layer.experts + layer.replicas
            and layer.least <= min(held)
            and max(held) <= layer.most,
            "the nodes hold other numbers of copies than the case allows",
        )
        copies_of = [sum(row) for row in rows]
        elsewhere = [[of - here for here in row] for of, row in zip(copies_of, rows, strict=True)]
        total = Fraction(0)
        for token, count in zip(layer.tokens, layer.counts, strict=True):
            # Of all ways to draw a copy for each expert, those that do not visit a node.
            missed = sum(map(prod, zip(*(elsewhere[e] for e in token), strict=True)))
            total += count * (layer.nodes - Fraction(missed, prod(copies_of[e] for e in token)))
        return total


def joint_bound(time_bound: Fraction, traffic: Fraction, visits: Fraction, tokens: int) -> Fraction:
    """Bound the joint objective of a layer: relative time plus ``traffic`` x critical nodes.

    Parameters
    ----------
    time_bound : Fraction
        No placement of the layer has a smaller relative time.
    traffic : Fraction
        The price of a node per token, in mean GPU loads, at least 0.
    visits : Fraction
        No placement has fewer visits, of this many tokens in all windows.
    tokens : int

    Notes
    -----
    In a window of T_w tokens the busiest node of N receives T_w c_w / N of them, c_w the critical
    nodes per token. All nodes receive no more than N times that, which is T_w c_w, and no less
    than the visits of the window. Weighted with T_w, critical nodes are at least visits / tokens.
    """
    return time_bound + traffic * visits / tokens


# --- columns: what single nodes can do ------------------------------------------------------


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

    >>> from craftopt.verification_traffic import count_touched
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
    >>> from craftopt.verification_traffic import sets_at
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


def _columns(layer: _Layer, witness: Witness) -> int:
    """Check that no partition of the experts has fewer visits than stated."""
    _claim(layer.replicas == 0, "columns prove nothing about replicas")
    _claim(layer.least >= 1, "columns prove nothing where nodes may be empty")
    scale, least = _whole(witness["scale"]), _whole(witness["least"])
    prices = [_whole(price) for price in witness["prices"]]
    visits = _whole(witness["visits"])
    _claim(len(prices) == layer.experts and scale > 0, "there must be a price for every expert")
    sizes = range(layer.least, layer.size + 1)
    count = sum(comb(layer.experts, size) for size in sizes)
    _claim(count <= MOST_SETS, f"{count} sets are too many to count")
    tokens: dict[tuple[int, ...], int] = defaultdict(int)
    for token, number in zip(layer.tokens, layer.counts, strict=True):
        tokens[token] += scale * number
    for e, price in enumerate(prices):
        tokens[e,] -= price
    _claim(sum(map(abs, tokens.values())) <= _FITS, "the numbers are too large to add up")
    # What the sets of a better partition may cost above the least, all together.
    slack = (visits - 1) * scale - sum(prices) - layer.nodes * least
    costs = count_touched(tokens, layer.experts, layer.size)
    near: list[list[tuple[int, int]]] = [[] for _ in range(layer.experts)]
    for size in sizes:
        cheapest = int(costs[size].min())
        _claim(cheapest >= least, f"a set costs {cheapest}, less than {least}")
        places = np.flatnonzero(costs[size] <= least + slack)
        _claim(len(places) <= MOST_COLUMNS, f"{len(places)} sets are too many to combine")
        for place, members in zip(places, sets_at(places, size).tolist(), strict=True):
            flags = sum(1 << e for e in members)
            if members:
                near[members[0]].append((int(costs[size][place]) - least, flags))
    for columns in near:
        columns.sort()
    _claim(
        not _has_partition(near, layer.nodes, (1 << layer.experts) - 1, slack),
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


# --- companions: what tokens save where two of their experts are served together -----------------


def _companions(layer: _Layer, witness: Witness) -> Fraction:
    """Bound visits by the tokens' intercepts, less the most that all prices can sum to."""
    scale = _whole(witness["scale"])
    _claim(0 < scale <= _FITS, "the scale is not above 0, or too large")
    _claim(len(witness["prices"]) == len(layer.tokens), "every token needs its prices")
    tokens_of: dict[int, list[int]] = defaultdict(list)
    for at, token in enumerate(layer.tokens):
        tokens_of[len(token)].append(at)
    most = _FITS // sum(layer.counts)
    visits = 0
    weights = np.zeros((layer.experts, layer.experts), dtype=np.int64)
    for k, chosen in tokens_of.items():
        _claim(k <= MOST_CHOICES, f"tokens of {k} experts have too many partitions to compare")
        prices = np.array([_row(witness["prices"][at], comb(k, 2), most) for at in chosen])
        prices = prices.astype(np.int64).reshape(len(chosen), comb(k, 2))
        if layer.replicas and layer.any_dispatch:
            _claim(int(prices.min(initial=0)) >= 0, "a price is below 0")
        counts = [layer.counts[at] for at in chosen]
        intercepts = least_partition(prices, k, layer.size, scale).tolist()
        visits += sum(map(prod, zip(counts, intercepts, strict=True)))
        members = np.array([layer.tokens[at] for at in chosen])
        paid = prices * np.array(counts)[:, np.newaxis]
        for pair, (i, j) in enumerate(combinations(range(k), 2)):
            np.add.at(weights, (members[:, i], members[:, j]), paid[:, pair])
    bound = (visits - _most_paid(layer, weights + weights.T, witness)) / scale
    return bound if layer.replicas else Fraction(-(-bound // 1))


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
    >>> from craftopt.verification_traffic import least_partition
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


def _most_paid(layer: _Layer, weights: Integers, witness: Witness) -> Fraction:
    """Bound the sum of weights[e, f] over the pairs e < f that are served on one node.

    The matrix Z of how often pairs are is positive semidefinite, with bounds on its diagonal,
    its rows and their total. Dual values of these, cells above 0 and a shift that makes the rest
    positive semidefinite bound the sum, for which Z counts every pair twice.
    """
    size, nodes, replicas = layer.size, layer.nodes, layer.replicas
    # With one copy each: as if experts that no token chooses filled the nodes up.
    n = layer.experts if replicas else nodes * size
    experts, rows = _row(witness["experts"], n), _row(witness["rows"], n)
    total, shift = _whole(witness["total"]), _whole(witness["shift"])
    cells = [_row(row, n - 1 - e) for e, row in enumerate(witness["cells"])]
    _claim(len(cells) == n - 1 and shift >= 0, "the dual solution has a wrong size or shift")
    _claim(all(cell >= 0 for row in cells for cell in row), "a cell is below 0")
    diagonal = [2 * value for value in experts]
    trace = n
    if replicas and layer.any_dispatch:
        # c_e nodes host e, from 1 to N, and size N together. Z_ee = c_e, rows are size c_e.
        _claim(total == 0, "the total is bound by the rows already")
        full, rest = divmod(nodes * size - n, nodes - 1)
        dearest = [*sorted(experts, reverse=True), 0]
        twice = 2 * (sum(experts) + (nodes - 1) * sum(dearest[:full]) + rest * dearest[full])
        diagonal = [value - 2 * (size - 1) * row for value, row in zip(diagonal, rows, strict=True)]
        trace = nodes * size
    else:
        twice = 2 * sum(experts) + 2 * (size - 1) * sum(rows)
        if replicas:
            # Z_ee <= 1, rows <= size. Loads of the nodes sum to E, each at most size, so that
            # their squares are largest where they differ most.
            _claim(min(total, *experts, *rows) >= 0, "a dual value is below 0")
            full, rest = divmod(n, size)
            twice += total * (2 * full * size**2 + 2 * rest**2 - 2 * n + replicas)
        else:
            _claim(total == 0, "the total is bound by the rows already")
    matrix = np.add.outer(np.array(rows, dtype=object), np.array(rows, dtype=object)) + 2 * total
    matrix[: layer.experts, : layer.experts] -= weights
    for e, row in enumerate(cells):
        matrix[e, e + 1 :] -= row
        matrix[e + 1 :, e] -= row
    np.fill_diagonal(matrix, [value + shift for value in diagonal])
    _claim(_is_semidefinite(matrix), "the dual matrix is not positive semidefinite")
    return Fraction(twice + shift * trace, 2)


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


# --- small things ---------------------------------------------------------------------------


def _claim(holds: bool, otherwise: str) -> None:
    if not holds:
        raise VerificationError(otherwise)


@contextmanager
def _damage_named(part: str) -> Iterator[None]:
    """Say that a part is damaged where it has a shape that no code expects."""
    try:
        yield
    except VerificationError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise VerificationError(f"the {part} is damaged: {type(error).__name__}: {error}") from None
    except (RecursionError, MemoryError):
        raise VerificationError(f"the {part} is larger than can be checked") from None


def _number(value: Any) -> Fraction:
    """Read an int or a text "p/q"; what else fractions could be ("1e999999999") takes forever."""
    _claim(
        type(value) is int or (type(value) is str and _NUMBER.fullmatch(value) is not None),
        f"{value!r} stands where a whole number or a text p/q must",
    )
    return Fraction(value)


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise VerificationError(f"{value!r} stands where a whole number must")
    return value


def _row(values: Any, length: int, most: int | None = None) -> list[int]:
    row = [_whole(value) for value in values]
    _claim(len(row) == length, f"{len(row)} numbers stand where {length} must")
    _claim(most is None or max(map(abs, row), default=0) <= most, "a number is too large")
    return row
