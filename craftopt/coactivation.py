"""Coactivation: how many tokens chose two experts together, pair by pair."""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from craftopt.display import Displayed
from craftopt.documents import write_atomically
from craftopt.errors import InputError, number, whole
from craftopt.loads import IntArray, as_array, name_layers, read_only, valid_layer_ids

# Arrays of the file that `Coactivation.save` writes and a recorder may write.
COACTIVATION_KEYS = ("pairs", "assignments", "tokens", "top_k", "layer_ids")

# Sampling error of nodes per token, measured on DeepSeek-V2-Lite (33,279 tokens) and gpt-oss-20b
# (215,438): the standard deviation between tokens, and by how much the variance of a mean is
# greater than that of independent tokens, because tokens of one sequence are alike (3.6 to 5.4).
_TOKEN_DEVIATION = 0.74
_DESIGN_EFFECT = 4.5
# On the same traces, plans made from 2,000 tokens of a layer are within .5 % of the plateau.
_ENOUGH_TOKENS = 2000

_MOST = 2**53  # whole numbers beyond are not exact in floating point


@dataclass(frozen=True, eq=False)
class Coactivation(Displayed):
    """Hold the tokens that chose two experts together, validated and read-only.

    An engine can count pairs where it cannot keep tokens: ``top_k * (top_k - 1) / 2`` counters
    per token, or one matrix product per batch.

    Parameters
    ----------
    pairs : array_like of int, shape [layers, experts, experts]
        Tokens that chose both experts; symmetric. The diagonal may hold the assignments and is
        kept as 0.
    assignments : array_like of int, shape [layers, experts], optional
        Tokens that chose each expert; the diagonal of ``pairs`` by default.
    tokens : int or array_like of int, shape [layers], optional
        Tokens seen, with at least one choice; the assignments over ``top_k`` by default.
    top_k : int
        Experts that a token chooses at most.
    layer_ids : sequence of int, shape [layers], optional
        The model's own numbers of the layers; 0, 1, ... by default.

    Raises
    ------
    InputError
        Arrays of a wrong shape or type; counts that no tokens with ``top_k`` choices could give.

    Examples
    --------
    Three tokens chose experts (0, 1), (0, 1) and (1, 2):

    >>> import craftopt as co
    >>> pairs = co.Coactivation([[[2, 2, 0], [2, 3, 1], [0, 1, 1]]], top_k=2)
    >>> pairs
    Coactivation(layers=1, experts=3, top_k=2, tokens=3)
    >>> pairs.assignments, (pairs + pairs).tokens
    (array([[2, 3, 1]]), array([6]))
    """

    pairs: IntArray
    assignments: IntArray
    tokens: IntArray
    top_k: int
    layer_ids: IntArray

    def __init__(
        self,
        pairs: npt.ArrayLike,
        assignments: npt.ArrayLike | None = None,
        tokens: npt.ArrayLike | None = None,
        *,
        top_k: int,
        layer_ids: npt.ArrayLike | None = None,
    ) -> None:
        top_k = whole("top_k", top_k, 1)
        counts = _valid_counts("pairs", pairs, 3)
        layers, experts, columns = counts.shape
        if columns != experts:
            raise InputError(f"pairs has shape {counts.shape}; pass [layers, experts, experts]")
        diagonal = np.diagonal(counts, axis1=1, axis2=2).copy()
        chosen = diagonal if assignments is None else _valid_counts("assignments", assignments, 2)
        if chosen.shape != (layers, experts):
            raise InputError(
                f"assignments has shape {chosen.shape}; pairs ask for {(layers, experts)}"
            )
        if diagonal.any() and not np.array_equal(diagonal, chosen):
            raise InputError("the diagonal of pairs is neither 0 nor the assignments; pass one")
        counts[:, np.arange(experts), np.arange(experts)] = 0
        seen = _valid_tokens(tokens, chosen, top_k)
        object.__setattr__(self, "pairs", read_only(counts))
        object.__setattr__(self, "assignments", read_only(chosen))
        object.__setattr__(self, "tokens", read_only(seen))
        object.__setattr__(self, "top_k", top_k)
        object.__setattr__(self, "layer_ids", valid_layer_ids(layer_ids, layers))
        self._check_consistency()

    def _check_consistency(self) -> None:
        """Refuse counts that no tokens with at most ``top_k`` different choices could give."""
        for layer, (pairs, chosen, tokens) in enumerate(
            zip(self.pairs, self.assignments, self.tokens, strict=True)
        ):
            where = f"layer {layer} (the model's {self.layer_ids[layer]})"
            if not np.array_equal(pairs, pairs.T):
                e, f = np.argwhere(pairs != pairs.T)[0]
                raise InputError(
                    f"{where}: pairs[{e}, {f}] is {pairs[e, f]} and pairs[{f}, {e}] {pairs[f, e]};"
                    " count every pair both ways"
                )
            beyond = pairs > np.minimum(chosen[:, np.newaxis], chosen)
            if beyond.any():
                e, f = np.argwhere(beyond)[0]
                raise InputError(
                    f"{where}: {pairs[e, f]} tokens chose experts {e} and {f}, but only "
                    f"{min(chosen[e], chosen[f])} one of them; are the assignments of the same run?"
                )
            if chosen.max() > tokens:
                e = int(chosen.argmax())
                raise InputError(f"{where}: {chosen[e]} of {tokens} tokens chose expert {e}")
            # A token with j choices counts each of them in j - 1 pairs. Where all tokens have
            # top_k, every row sums to top_k - 1 times the assignments. A token with fewer leaves
            # j (top_k - j) of these out, at most top_k - 1 for every choice that is missing.
            absent = (self.top_k - 1) * chosen - pairs.sum(axis=1)
            missing = self.top_k * int(tokens) - int(chosen.sum())
            if missing < 0 or absent.min() < 0 or absent.sum() > (self.top_k - 1) * missing:
                e = int(np.abs(absent).argmax())
                raise InputError(
                    f"{where}: {tokens} tokens with top_k={self.top_k} cannot give "
                    f"{chosen.sum()} assignments and {pairs.sum() // 2} pairs: those of expert {e} "
                    f"sum to {pairs[e].sum()} where top_k - 1 times its {chosen[e]} assignments "
                    f"are {(self.top_k - 1) * chosen[e]}; check top_k and tokens"
                )

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self.pairs.shape[0])

    @property
    def experts(self) -> int:
        """Number of logical experts per layer."""
        return int(self.pairs.shape[1])

    @property
    def standard_error(self) -> float:
        """Standard error of nodes per token in the layer with the fewest tokens."""
        return standard_error(int(self.tokens.min()))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over counts, ``top_k`` and layer ids: equal counts, equal digest."""
        parts = hashlib.sha256(repr((self.pairs.shape, self.top_k)).encode())
        for array in (self.pairs, self.assignments, self.tokens, self.layer_ids):
            parts.update(array.astype("<i8").tobytes())
        return parts.hexdigest()

    def select(self, layers: Sequence[int]) -> Coactivation:
        """Return the layers at the given 0-based positions, in that order.

        Raises
        ------
        InputError
            No position, or one outside the layers.
        """
        positions = as_array("layers", layers)
        if positions.ndim != 1 or positions.size == 0 or positions.dtype.kind not in "iu":
            raise InputError("select takes a non-empty list of layer positions (whole numbers)")
        if positions.min() < 0 or positions.max() >= self.layers:
            raise InputError(f"layer positions must be 0..{self.layers - 1}, not {layers}")
        return self.with_layers(positions.tolist(), self.layer_ids[positions])

    def with_layers(self, positions: Sequence[int], layer_ids: npt.ArrayLike) -> Coactivation:
        """Return the layers at these 0-based positions, under these numbers."""
        chosen = list(positions)
        return Coactivation(
            self.pairs[chosen],
            self.assignments[chosen],
            self.tokens[chosen],
            top_k=self.top_k,
            layer_ids=layer_ids,
        )

    def thinned(self, share: float) -> Coactivation:
        """Keep a share of the counts, so that older traffic counts for less.

        Every count is scaled and rounded, up and down in turn, so that sums are kept: rare pairs
        do not vanish. Roundings leave some tokens with fewer than ``top_k`` choices.

        Parameters
        ----------
        share : float
            Above 0, at most 1.

        Raises
        ------
        InputError
            A share outside its range.

        Examples
        --------
        >>> import craftopt as co
        >>> old = co.Coactivation([[[200, 200, 0], [200, 300, 100], [0, 100, 100]]], top_k=2)
        >>> (old.thinned(0.5) + old).tokens
        array([450])
        """
        share = number("share", share, above=0, most=1)
        if share == 1:
            return self
        upper = np.triu_indices(self.experts, 1)
        pairs = np.zeros_like(self.pairs)
        for layer in range(self.layers):
            # Systematic rounding: differences of the rounded running sum.
            running = np.floor(np.cumsum(self.pairs[layer][upper]) * share + 0.5)
            pairs[layer][upper] = np.diff(running, prepend=0.0).astype(np.int64)
        pairs += pairs.transpose(0, 2, 1)
        rows = pairs.sum(axis=2)
        others = max(self.top_k - 1, 1)
        chosen = np.maximum(-(-rows // others), np.rint(self.assignments * share).astype(np.int64))
        chosen = np.maximum(chosen, pairs.max(axis=2))
        absent = ((self.top_k - 1) * chosen - rows).sum(axis=1)
        least = -(-(chosen.sum(axis=1) + -(-absent // others)) // self.top_k)
        seen = np.maximum(np.rint(self.tokens * share).astype(np.int64), least)
        seen = np.maximum(seen, chosen.max(axis=1))
        return Coactivation(pairs, chosen, seen, top_k=self.top_k, layer_ids=self.layer_ids)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain values, for JSON: all but the counts."""
        return {
            "layers": self.layers,
            "experts": self.experts,
            "top_k": self.top_k,
            "tokens": self.tokens.tolist(),
            "layer_ids": self.layer_ids.tolist(),
            "digest": self.digest,
            "standard_error": self.standard_error,
        }

    def summary(self) -> dict[str, str]:
        """Return the facts in words, for a table."""
        least, most = int(self.tokens.min()), int(self.tokens.max())
        return {
            "layers": name_layers(self.layer_ids),
            "experts per token": str(self.top_k),
            "experts": str(self.experts),
            "tokens per layer": f"{least:,}" if least == most else f"{least:,} to {most:,}",
            "standard error": name_error(self.standard_error),
            "digest": self.digest[:16],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the counts to an ``.npz`` file: whole or not at all.

        Examples
        --------
        >>> import craftopt as co, tempfile, os
        >>> pairs = co.Coactivation([[[3000, 3000], [3000, 3000]]], top_k=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = os.path.join(folder, "pairs.npz")
        ...     pairs.save(file)
        ...     co.read_coactivation(file) == pairs
        True
        """
        stream = io.BytesIO()
        np.savez_compressed(stream, **{name: getattr(self, name) for name in COACTIVATION_KEYS})
        write_atomically(path, stream.getvalue())

    def __add__(self, other: Coactivation) -> Coactivation:
        """Add up recordings of the same model, such as those of all ranks."""
        if not isinstance(other, Coactivation):
            return NotImplemented
        mine, others = self._shape(), other._shape()
        if mine != others:
            raise InputError(
                f"pair counts of layers {mine[0]}, {mine[1]} experts, top_k={mine[2]} and of "
                f"layers {others[0]}, {others[1]} experts, top_k={others[2]} do not add up"
            )
        return Coactivation(
            self.pairs + other.pairs,
            self.assignments + other.assignments,
            self.tokens + other.tokens,
            top_k=self.top_k,
            layer_ids=self.layer_ids,
        )

    def _shape(self) -> tuple[list[int], int, int]:
        return self.layer_ids.tolist(), self.experts, self.top_k

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles are built by the constructor, so that they are read-only too.
        return _restored, tuple(getattr(self, name) for name in COACTIVATION_KEYS)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Coactivation):
            return NotImplemented
        return self._shape() == other._shape() and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        fewest, most = int(self.tokens.min()), int(self.tokens.max())
        seen = f"{fewest}" if fewest == most else f"{fewest}..{most}"
        return (
            f"Coactivation(layers={self.layers}, experts={self.experts}, top_k={self.top_k}, "
            f"tokens={seen})"
        )


def standard_error(tokens: int) -> float:
    """Estimate the standard error of a layer's nodes per token from a sample of tokens.

    Examples
    --------
    >>> from craftopt.coactivation import standard_error
    >>> round(standard_error(2000), 3), round(standard_error(10_000), 3)
    (0.035, 0.016)
    """
    return _TOKEN_DEVIATION * math.sqrt(_DESIGN_EFFECT / tokens) if tokens else math.inf


def name_error(error: float) -> str:
    """Say what a standard error is of."""
    return f"{error:.3f} nodes per token, in one layer"


def few_tokens(tokens: int) -> str:
    """Say what a small sample of a layer's tokens means; nothing where it is large enough."""
    if tokens >= _ENOUGH_TOKENS:
        return ""
    return (
        f"{tokens} tokens in a layer: the standard error of nodes per token is "
        f"{standard_error(tokens):.3f}; record at least {_ENOUGH_TOKENS:,} tokens"
    )


def _restored(
    pairs: IntArray, assignments: IntArray, tokens: IntArray, top_k: int, layer_ids: IntArray
) -> Coactivation:
    return Coactivation(pairs, assignments, tokens, top_k=top_k, layer_ids=layer_ids)


def _valid_counts(name: str, values: npt.ArrayLike, rank: int) -> IntArray:
    """Copy an array of counts of some rank."""
    counts = as_array(name, values)
    if counts.dtype.kind not in "iu" or counts.ndim != rank or 0 in counts.shape:
        raise InputError(
            f"{name} has shape {counts.shape} and type {counts.dtype}; pass whole numbers with "
            f"{rank} dimensions, none of them 0"
        )
    if counts.min() < 0 or counts.max() > _MOST:
        raise InputError(
            f"{name} holds {counts.min()}..{counts.max()}; counts must be within 0..2**53"
        )
    return np.array(counts, dtype=np.int64, order="C")


def _valid_tokens(tokens: npt.ArrayLike | None, chosen: IntArray, top_k: int) -> IntArray:
    total: IntArray = chosen.sum(axis=1)
    if tokens is None:
        if (total % top_k).any():
            layer = int((total % top_k).argmax())
            raise InputError(
                f"the {total[layer]} assignments of layer {layer} are no multiple of "
                f"top_k={top_k}, so some tokens had fewer choices; pass tokens="
            )
        return total // top_k
    seen = as_array("tokens", tokens)
    if seen.ndim == 0:
        seen = np.repeat(seen, len(total))
    seen = _valid_counts("tokens", seen, 1)
    if seen.shape != total.shape:
        raise InputError(f"tokens has shape {seen.shape}; pass one number, or {total.shape}")
    return seen
