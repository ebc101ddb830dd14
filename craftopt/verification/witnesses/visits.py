"""What a witness of node visits is about: a layer's tokens, and what its nodes can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from craftopt.verification.checks import require

# Of numbers up to that, all sums of the checks fit 64 bits.
FITS = 2**50


@dataclass(frozen=True)
class VisitsCase:
    """State what is to be bounded: the nodes that a layer's tokens visit.

    Nodes stand for whatever holds copies: with GPUs in their place, it is GPUs that tokens visit.

    Parameters
    ----------
    experts, nodes : int
    sizes : (int, int)
        The fewest and the most copies that a node may hold.
    replicas : int
        Extra copies of the layer.
    tokens : sequence of tuple of int
        Distinct sets of experts, ascending.
    counts : sequence of int
        Tokens that chose exactly this set.
    dispatch : {"even", "any"}
        Whether every copy serves its expert equally often, drawn for every token and expert, or
        as is best for each token.

    Raises
    ------
    VerificationError
        Tokens, sizes or copies that no layer has.
    """

    experts: int
    nodes: int
    sizes: tuple[int, int]
    replicas: int
    tokens: Sequence[tuple[int, ...]]
    counts: Sequence[int]
    dispatch: Literal["even", "any"] = "even"

    def __post_init__(self) -> None:
        least, most = self.sizes
        require(self.experts >= 1 and self.nodes >= 2, "visits need an expert and two nodes")
        require(self.replicas >= 0 and 0 <= least <= most, "the copies of the nodes are no numbers")
        require(
            self.nodes * least <= self.experts + self.replicas <= self.nodes * most,
            "the nodes do not hold all copies",
        )
        for token, count in zip(self.tokens, self.counts, strict=True):
            ascending = all(e < f for e, f in pairwise(token))
            require(
                len(token) > 0 and ascending and token[0] >= 0 and token[-1] < self.experts,
                f"{list(token)} is no set of experts, ascending",
            )
            require(count > 0, f"{count} tokens have the experts {list(token)}")

    @property
    def size(self) -> int:
        """Most experts on a node, and in a block of a token's partition."""
        return self.block(self.sizes[1])

    @property
    def any_dispatch(self) -> bool:
        """Whether dispatch makes a difference, and is what is best for each token."""
        return self.replicas > 0 and self.dispatch == "any"

    def block(self, most: int) -> int:
        """Most experts on a node that holds so many copies."""
        return min(most, self.experts)

    def capacity(self, most: int) -> int:
        """Bound the visits by the room alone: k experts take k / size nodes, rounded up."""
        size = self.block(most)
        pairs = zip(self.tokens, self.counts, strict=True)
        return sum(count * -(-len(token) // size) for token, count in pairs)
