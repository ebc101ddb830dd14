"""The tokens of a layer as distinct expert sets, and what nodes a placement makes them visit."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from craftopt.errors import InputError
from craftopt.loads import BoolArray, IntArray
from craftopt.verification.witnesses import VisitsCase


class TokenSets(NamedTuple):
    """The distinct expert sets of a layer's tokens.

    Parameters
    ----------
    members : int64 [sets, k]
        Experts, ascending, each once; sets smaller than the largest have -1 in front.
    counts : int64 [sets]
        Tokens that chose exactly this set.
    experts : int
        Experts of the layer.
    """

    members: IntArray
    counts: IntArray
    experts: int

    @property
    def tokens(self) -> int:
        """Number of tokens that chose an expert."""
        return int(self.counts.sum())

    def has(self) -> BoolArray:
        """Say which set has which expert, bool [sets, experts]."""
        flags = np.zeros((len(self.counts), self.experts + 1), dtype=np.bool_)
        np.put_along_axis(flags, self.members, True, axis=1)
        return flags[:, :-1]  # the last one is for -1

    def as_tuples(self) -> list[tuple[int, ...]]:
        """List the sets."""
        return [tuple(e for e in row if e >= 0) for row in self.members.tolist()]

    def case(
        self,
        nodes: int,
        sizes: tuple[int, int],
        replicas: int = 0,
        dispatch: Literal["even", "any"] = "even",
    ) -> VisitsCase:
        """State what is to be bounded, for the check."""
        tokens, counts = self.as_tuples(), self.counts.tolist()
        return VisitsCase(self.experts, nodes, sizes, replicas, tokens, counts, dispatch)


def token_sets(topk_ids: npt.ArrayLike, experts: int) -> TokenSets:
    """Collect the distinct expert sets of tokens.

    Parameters
    ----------
    topk_ids : array_like of int [tokens, k]
        Experts of every token in one layer; -1 = no expert.
    experts : int

    Examples
    --------
    >>> from craftopt.bounds.traffic import token_sets
    >>> token_sets([[2, 0], [0, 2], [1, -1]], experts=3)
    TokenSets(members=array([[-1,  1],
           [ 0,  2]]), counts=array([1, 2]), experts=3)
    """
    ids = np.sort(np.asarray(topk_ids, dtype=np.int64), axis=1)
    if ids.size == 0 or ids.min() < -1 or ids.max() >= experts:
        raise InputError(
            f"topk_ids has shape {ids.shape} and must hold ids from -1 to experts - 1 = "
            f"{experts - 1}; pass the choices of at least one token"
        )
    ids[:, 1:][ids[:, 1:] == ids[:, :-1]] = -1  # an expert that is named twice counts once
    members, counts = np.unique(np.sort(ids, axis=1), axis=0, return_counts=True)
    members, counts = members[members[:, -1] >= 0], counts[members[:, -1] >= 0]
    return TokenSets(members[:, (members >= 0).any(axis=0)], counts.astype(np.int64), experts)


def count_visits(sets: TokenSets, node_of: npt.ArrayLike) -> int:
    """Sum over the tokens the nodes that hold their experts, one copy per expert.

    Examples
    --------
    >>> from craftopt.bounds.traffic import count_visits, token_sets
    >>> count_visits(token_sets([[0, 2], [0, 1]], experts=4), node_of=[0, 0, 1, 1])
    3
    """
    # The place of -1, the last, is a node of its own, which is not counted.
    nodes = np.append(np.asarray(node_of, dtype=np.int64), -1)
    visited = np.sort(nodes[sets.members], axis=1)
    new = np.diff(visited, axis=1, prepend=-1) != 0
    return int(new.sum(axis=1) @ sets.counts)
