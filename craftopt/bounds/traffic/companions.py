"""The companion bound: what tokens save where one node serves two of their experts.

A token that pays a price for every pair of its experts that one node serves visits, with these
prices, at least the least of all partitions of its experts (`least_partition`). So

    visits  >=  sum_t intercept_t  -  sum_{e<f} weights_ef Z_ef,

with weights_ef the prices that tokens pay for the pair and Z_ef how often one node serves it.
Z is positive semidefinite; its diagonal, its rows and its total are bound by the slots of a node.
The bound is the best over all prices: a saddle point, to which Chambolle's and Pock's primal-dual
algorithm leads, alternating between tokens (a linear program over the blocks of each, whose duals
are the prices) and Z. What it ends with is rounded to whole numbers, and proven by
`craftopt.verification`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np

from craftopt.bounds.traffic.tokens import TokenSets
from craftopt.errors import InputError
from craftopt.loads import FloatArray
from craftopt.verification.traffic import proven_visits
from craftopt.verification.witnesses.companions import MOST_CHOICES

# Witnesses are whole multiples of that part of a visit; prices of tokens coarser ones.
_SCALE, _COARSE = 1 << 20, 1 << 10


@dataclass(frozen=True, eq=False)
class CompanionBound:
    """What the companion bound proves of a layer.

    Parameters
    ----------
    visits : Fraction
        In no placement do the tokens visit fewer nodes, all together.
    witness : dict
        The proof, as `craftopt.verification` reads it.
    """

    visits: Fraction
    witness: dict[str, Any]


def companion_bound(
    sets: TokenSets,
    nodes: int,
    size: int,
    *,
    replicas: int = 0,
    dispatch: Literal["even", "any"] = "even",
    rounds: int = 1000,
) -> CompanionBound:
    """Bound the nodes that tokens visit, for layers of any size, with replicas or without.

    Parameters
    ----------
    sets : TokenSets
        Of at most 10 experts.
    nodes : int
        At least 2.
    size : int
        Most copies on a node (`node_sizes`).
    replicas : int
        Extra copies of the layer.
    dispatch : {"even", "any"}
        Whether all copies of an expert serve its tokens equally often, or as is best for each
        token. Without replicas it is the same.
    rounds : int
        Steps of the search; more make the bound a little better.

    Raises
    ------
    InputError
        Fewer than two nodes, too few slots, or too many experts per token.

    References
    ----------
    Chambolle, Pock: A first-order primal-dual algorithm for convex problems with applications to
    imaging (2011).

    Examples
    --------
    >>> from craftopt.bounds.traffic import companion_bound, token_sets
    >>> sets = token_sets([[0, 1], [0, 1], [2, 3], [1, 2]], experts=4)
    >>> companion_bound(sets, nodes=2, size=2).visits
    Fraction(5, 1)
    """
    experts, k = sets.experts, sets.members.shape[1]
    if nodes < 2 or nodes * size < experts + replicas or k > MOST_CHOICES:
        raise InputError(
            f"the companion bound takes at least 2 nodes with room for all copies and tokens of "
            f"at most {MOST_CHOICES} experts; here nodes={nodes} of size={size}, "
            f"{experts + replicas} copies, {k} experts per token"
        )
    case = sets.case(nodes, (0, size), replicas, dispatch)
    size = min(size, experts)
    if k < 2:
        witness: dict[str, Any] = {"kind": "capacity"}
    else:
        witness = _Saddle(sets, nodes, size, replicas, dispatch).solve(rounds)
    return CompanionBound(proven_visits(case, witness), witness)


class _Dual(NamedTuple):
    """Dual values of the matrix: of its diagonal, its rows, their total, and its sign."""

    experts: FloatArray
    rows: FloatArray
    total: float
    cells: FloatArray


class _Saddle:
    """The saddle point of tokens and matrix, and the way towards it."""

    def __init__(
        self, sets: TokenSets, nodes: int, size: int, replicas: int, dispatch: str
    ) -> None:
        k = sets.members.shape[1]
        self.nodes, self.size, self.replicas = nodes, size, replicas
        self.any = replicas > 0 and dispatch == "any"
        # With one copy each: as if experts that no token chooses filled the nodes up.
        self.n = sets.experts if replicas else nodes * size
        self.k, self.sets = k, sets
        self.counts = sets.counts.astype(np.float64)[:, np.newaxis]
        pairs = np.array(list(combinations(range(k), 2)))
        self.first, self.second = sets.members[:, pairs[:, 0]], sets.members[:, pairs[:, 1]]
        self.chosen = self.first >= 0
        blocks = np.array([[flags >> e & 1 for e in range(k)] for flags in range(1, 1 << k)])
        blocks = blocks[blocks.sum(axis=1) <= size]
        inside = blocks[:, pairs[:, 0]] * blocks[:, pairs[:, 1]]
        self.blocks = np.hstack((blocks, -inside)).astype(np.float64)
        # Squares of the loads of nodes sum to most where loads differ most.
        full, rest = divmod(sets.experts, size)
        self.total = full * size**2 + rest**2 - sets.experts + replicas / 2

    def solve(self, rounds: int) -> dict[str, Any]:
        """Step towards the saddle point, and make a witness of the mean of the later half."""
        n, k = self.n, self.k
        step = 0.7 / np.linalg.norm(self.blocks, 2)
        matrix_step = 0.175 / (step * self._weights(np.ones(self.first.shape)).max())
        own = self.nodes * self.size / n if self.any else 1.0
        pairs = np.full((n, n), own * (self.size - 1) / (n - 1))
        np.fill_diagonal(pairs, own)
        mass = np.zeros((len(self.counts), len(self.blocks)))
        # Of every token: what its experts are worth, and what its pairs cost.
        duals = np.hstack((np.full(self.sets.members.shape, 0.7), 0.3 * self.chosen))
        dual = _Dual(np.zeros(n), np.zeros(n), 0.0, np.zeros((n, n)))
        sums: list[Any] = [0.0] * 5
        for done in range(rounds):
            new_mass = np.maximum(mass - step * (1 - duals @ self.blocks.T), 0.0)
            values, vectors = np.linalg.eigh(pairs - matrix_step * self._slack(duals[:, k:], dual))
            vectors = vectors[:, values > 0] * np.sqrt(values[values > 0])
            new_pairs = vectors @ vectors.T
            ahead = 2 * new_pairs - pairs
            missed = -(2 * new_mass - mass) @ self.blocks
            missed[:, :k] += 1.0
            missed[:, k:] -= ahead[self.first, self.second]
            missed[:, k:] *= self.chosen
            duals = duals + step * missed
            if self.any:
                np.maximum(duals[:, k:], 0.0, out=duals[:, k:])
            dual = self._raise(dual, ahead, 0.25 / matrix_step)
            mass, pairs = new_mass, new_pairs
            if 2 * done >= rounds:
                sums = [a + b for a, b in zip(sums, (duals[:, k:], *dual), strict=True)]
        prices, *means = (of / (rounds - (rounds + 1) // 2) for of in sums)
        return self._witness(prices, _Dual(*means))

    def _weights(self, prices: FloatArray) -> FloatArray:
        """Sum what all tokens pay for each pair, half of it on each side of the diagonal."""
        cells = (self.first * self.n + self.second)[self.chosen]
        paid = np.bincount(cells, (self.counts * prices)[self.chosen], self.n**2)
        half: FloatArray = (paid.reshape(self.n, self.n) + paid.reshape(self.n, self.n).T) / 2
        return half

    def _slack(self, prices: FloatArray, dual: _Dual) -> FloatArray:
        """Compute the matrix that must be positive semidefinite."""
        matrix = np.add.outer(dual.rows, dual.rows) / 2 + dual.total
        matrix -= self._weights(prices) + dual.cells
        own = dual.experts - (self.size - 1) * dual.rows if self.any else dual.experts
        np.fill_diagonal(matrix, own)
        return matrix

    def _raise(self, dual: _Dual, pairs: FloatArray, step: float) -> _Dual:
        """Raise the dual values of what a matrix breaks."""
        own = np.diag(pairs)
        others = pairs.sum(axis=1) - own
        cells = np.maximum(dual.cells - step * pairs, 0.0)
        np.fill_diagonal(cells, 0.0)
        experts = dual.experts + step * own
        if self.any:
            most = self.nodes * self.size
            experts -= step * _nearest(experts / step, 1.0, self.nodes, most)
            beyond = others - (self.size - 1) * own
            return _Dual(experts, dual.rows + step / (self.n + self.size**2) * beyond, 0.0, cells)
        experts -= step
        rows = dual.rows + step / self.n * (others - (self.size - 1))
        if not self.replicas:
            return _Dual(experts, rows, 0.0, cells)
        total = max(dual.total + step / self.n**2 * (others.sum() - self.total), 0.0)
        return _Dual(np.maximum(experts, 0.0), np.maximum(rows, 0.0), total, cells)

    def _witness(self, prices: FloatArray, dual: _Dual) -> dict[str, Any]:
        """Round prices and dual values, and shift the matrix until it is semidefinite for sure."""
        coarse = np.rint(prices * (_SCALE // _COARSE)) * _COARSE
        dual = _Dual(
            np.rint(dual.experts * _SCALE),
            np.rint(dual.rows * _SCALE),
            round(dual.total * _SCALE),
            np.rint(dual.cells * _SCALE),
        )
        least = np.linalg.eigvalsh(self._slack(coarse, dual))[0]
        # The matrix of the witness is twice this one.
        shift = int(max(0.0, -2.0 * least)) + 4 * self.n
        return {
            "kind": "companions",
            "scale": _SCALE,
            "grain": _COARSE,
            "prices": [
                (row[chosen] / _COARSE).astype(np.int64).tolist()
                for row, chosen in zip(coarse, self.chosen, strict=True)
            ],
            "experts": dual.experts.astype(np.int64).tolist(),
            "rows": dual.rows.astype(np.int64).tolist(),
            "total": dual.total,
            "cells": [
                (2 * row[e + 1 :]).astype(np.int64).tolist()
                for e, row in enumerate(dual.cells[:-1])
            ],
            "shift": shift,
        }


def _nearest(values: FloatArray, low: float, high: float, total: float) -> FloatArray:
    """Shift values equally and clip them, so that they sum to a total."""
    least, most = values.min() - high, values.max() - low
    for _ in range(60):
        middle = (least + most) / 2
        if np.clip(values - middle, low, high).sum() > total:
            least = middle
        else:
            most = middle
    nearest: FloatArray = np.clip(values - most, low, high)
    return nearest
