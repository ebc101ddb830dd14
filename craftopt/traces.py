"""Token traces: which experts every token chose, and the windows drawn from them."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from craftopt.coactivation import Coactivation, few_tokens, name_error, standard_error
from craftopt.display import Displayed
from craftopt.errors import CraftoptWarning, InputError, choice, unknown, whole
from craftopt.loads import (
    BoolArray,
    FloatArray,
    IntArray,
    Loads,
    as_array,
    name_layers,
    read_only,
    valid_layer_ids,
)

Order = Literal["recorded", "random"]

# Far above any model; an id beyond is damage, and the loads would not fit into memory.
MOST_EXPERTS = 2**16
# Pairs of experts, over all layers, that are counted: 2 GB. 100 layers of 896 experts have a third.
MOST_PAIRS = 2**28


@dataclass(frozen=True, eq=False)
class Trace(Displayed):
    """Hold the experts that the router chose, token by token, validated and read-only.

    Parameters
    ----------
    topk_ids : array_like of int, shape [tokens, layers, k]
        Experts of every token in every layer, kept in the type given; -1 = no expert.
    experts : int, optional
        Logical experts per layer; the highest id plus 1 by default. Give it for short traces,
        in which the last expert may be idle.
    layer_ids : sequence of int, shape [layers], optional
        The model's own numbers of the layers; 0, 1, ... by default.
    domain : array_like of int, shape [tokens], optional
        Position in ``domain_names`` of every token's domain (task, data set, tenant).
    domain_names : sequence of str, optional
        ``"0"``, ``"1"``, ... by default.
    sequence : array_like of int, shape [tokens], optional
        Number of the sequence (request) that a token belongs to. Numbers may be used again in
        another domain.

    Raises
    ------
    InputError
        Ids that are no whole numbers, below -1 or not below ``experts``; a token that has one
        expert twice in a layer, which no router does; a wrong rank; no token,
        layer or choice; columns of a wrong length; a domain without name.

    Examples
    --------
    >>> import craftopt as co
    >>> trace = co.Trace([[[0, 2]], [[1, 2]], [[2, 3]]], domain=[0, 0, 1],
    ...                  domain_names=["chat", "code"], sequence=[0, 0, 1])
    >>> trace
    Trace(tokens=3, layers=1, k=2, experts=4, domains=2)
    >>> trace.batches(2).window_names
    ('chat/00000', 'code/00001')
    >>> trace.by_sequence().tokens
    array([[[1., 1., 2., 0.]],
    <BLANKLINE>
           [[0., 0., 1., 1.]]])
    """

    topk_ids: npt.NDArray[Any]
    experts: int
    layer_ids: IntArray
    domain: IntArray | None
    domain_names: tuple[str, ...]
    sequence: IntArray | None

    def __init__(
        self,
        topk_ids: npt.ArrayLike,
        experts: int | None = None,
        layer_ids: npt.ArrayLike | None = None,
        domain: npt.ArrayLike | None = None,
        domain_names: Sequence[str] | None = None,
        sequence: npt.ArrayLike | None = None,
    ) -> None:
        ids, count = _valid_ids(topk_ids, experts)
        tokens, layers, _ = ids.shape
        domains = None if domain is None else _valid_column("domain", domain, tokens)
        names = _valid_domain_names(domain_names, domains)
        object.__setattr__(self, "topk_ids", ids)
        object.__setattr__(self, "experts", count)
        object.__setattr__(self, "layer_ids", valid_layer_ids(layer_ids, layers))
        object.__setattr__(self, "domain", domains)
        object.__setattr__(self, "domain_names", names)
        object.__setattr__(
            self,
            "sequence",
            None if sequence is None else _valid_column("sequence", sequence, tokens),
        )

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return int(self.topk_ids.shape[0])

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self.topk_ids.shape[1])

    def select(self, domains: Sequence[str]) -> Trace:
        """Return the tokens of the given domains, in their order.

        Raises
        ------
        InputError
            A domain that the trace does not have, or none that has tokens.

        Examples
        --------
        >>> import craftopt as co
        >>> trace = co.Trace([[[0]], [[1]]], 2, domain=[0, 1], domain_names=["chat", "code"])
        >>> trace.select(domains=["code"])
        Trace(tokens=1, layers=1, k=1, experts=2, domains=1)
        """
        if isinstance(domains, str):
            raise InputError(f"domains={domains!r} is one text; pass a list of names")
        if self.domain is None:
            raise InputError("this trace has no domains; pass domain= and domain_names= to Trace")
        for name in domains:
            if name not in self.domain_names:
                raise unknown("domain", name, self.domain_names)
        kept = [name in domains for name in self.domain_names]
        chosen = np.array(kept, dtype=bool)[self.domain]
        if not chosen.any():
            raise InputError(f"there is no token in domains={list(domains)}")
        return Trace(
            self.topk_ids[chosen],
            self.experts,
            self.layer_ids,
            (np.cumsum(kept) - 1)[self.domain[chosen]],
            [name for name in self.domain_names if name in domains],
            None if self.sequence is None else self.sequence[chosen],
        )

    def with_layers(self, positions: Sequence[int], layer_ids: npt.ArrayLike) -> Trace:
        """Return the layers at these 0-based positions, under these numbers."""
        return Trace(
            self.topk_ids[:, list(positions)],
            self.experts,
            layer_ids,
            self.domain,
            self.domain_names if self.domain is not None else None,
            self.sequence,
        )

    def batches(self, size: int, order: Order = "recorded", seed: int = 0) -> Loads:
        """Cut the trace into windows of ``size`` tokens.

        Every token is in exactly one window; the last one holds what is left and may be short
        (``select`` of `Loads` drops it). Windows of one domain are named ``domain/00012``,
        after their position, windows of several ``mixed/00012``.

        Parameters
        ----------
        size : int
            Tokens per window, at least 1.
        order : {"recorded", "random"}
            One after the other as recorded, like prefill, or drawn at random from the whole
            trace, like decode over many requests.
        seed : int
            For ``"random"``.

        Raises
        ------
        InputError
            A size below 1, an unknown order.

        Examples
        --------
        >>> import craftopt as co
        >>> co.Trace([[[0]], [[1]], [[1]]]).batches(2).tokens[:, 0]
        array([[1., 1.],
               [0., 1.]])
        """
        window = np.arange(self.tokens) // whole("size", size, 1)
        if choice("order", order, get_args(Order)) == "random":
            window = np.random.default_rng(seed).permuted(window)
        return self._windows(window, [f"{index:05d}" for index in range(int(window.max()) + 1)])

    def by_sequence(self) -> Loads:
        """Make one window per sequence, in order of first tokens, named ``domain/sequence``.

        Raises
        ------
        InputError
            A trace without sequences.
        """
        window, first, numbers = self._sequences()
        return self._windows(window, [str(number) for number in numbers[first]])

    def sequence_batches(self, n: int, count: int, seed: int = 0) -> Loads:
        """Draw windows of ``n`` whole sequences at random, as concurrent requests would be.

        A sequence is at most once in a window and may be in many. Named as in `batches`.
        `select` first, to draw from some domains only.

        Parameters
        ----------
        n : int
            Sequences per window, at most as many as there are.
        count : int
            Windows to draw.
        seed : int

        Raises
        ------
        InputError
            A trace without sequences, or with fewer than ``n``; ``n`` or ``count`` below 1.

        Examples
        --------
        >>> import craftopt as co
        >>> trace = co.Trace([[[0]], [[1]], [[1]]], sequence=[7, 8, 9])
        >>> trace.sequence_batches(n=2, count=5).tokens.sum(axis=2).ravel()
        array([2., 2., 2., 2., 2.])
        """
        whole("n", n, 1)
        whole("count", count, 1)
        window, first, _ = self._sequences()
        if n > first.size:
            raise InputError(
                f"n={n} sequences cannot be drawn from {first.size}; "
                f"pass n <= {first.size}, or select more domains"
            )
        single = self._count(window, first.size)
        generator = np.random.default_rng(seed)
        drawn = np.array([generator.choice(first.size, n, replace=False) for _ in range(count)])
        tokens = np.array([single[chosen].sum(axis=0) for chosen in drawn])
        names = [f"{index:05d}" for index in range(count)]
        if self.domain is not None:
            one_hot = np.eye(len(self.domain_names))
            names = self._named(names, one_hot[self.domain[first[drawn]]].sum(axis=1))
        return Loads(tokens, self.layer_ids, names)

    def coactivation(self) -> Coactivation:
        """Count the tokens that chose two experts together, pair by pair.

        A token without any choice in a layer (-1 in all places) is not counted there.

        Returns
        -------
        Coactivation
            With a `CraftoptWarning` where the tokens are too few to plan traffic from.

        Raises
        ------
        InputError
            More pairs of experts than fit into 2 GB, as of a damaged id.

        Examples
        --------
        >>> import craftopt as co
        >>> ids = [[[0, 1]], [[0, 1]], [[1, 2]]] * 1000
        >>> co.Trace(ids).coactivation().pairs
        array([[[   0, 2000,    0],
                [2000,    0, 1000],
                [   0, 1000,    0]]])
        """
        width = self.experts + 1  # the first row and column collect -1
        if self.layers * width**2 > MOST_PAIRS:
            raise InputError(
                f"experts={self.experts} in {self.layers} layers make more than the {MOST_PAIRS:,} "
                "pairs that are counted; look for damaged ids, or select layers"
            )
        pairs = np.zeros((self.layers, width, width), dtype=np.int64)
        assignments = np.empty((self.layers, width), dtype=np.int64)
        tokens = np.empty(self.layers, dtype=np.int64)
        k = self.topk_ids.shape[2]
        for layer in range(self.layers):
            cells = np.sort(self.topk_ids[:, layer].astype(np.int64), axis=1) + 1
            assignments[layer] = np.bincount(cells.ravel(), minlength=width)
            tokens[layer] = np.count_nonzero(cells.any(axis=1))
            for i in range(k):
                for j in range(i + 1, k):
                    both = cells[:, i] * width + cells[:, j]
                    pairs[layer] += np.bincount(both, minlength=width**2).reshape(width, width)
        counts = pairs[:, 1:, 1:]
        text = few_tokens(int(tokens.min()))
        if text:
            warnings.warn(text, CraftoptWarning, stacklevel=2)
        return Coactivation(
            counts + counts.transpose(0, 2, 1),
            assignments[:, 1:],
            tokens,
            top_k=k,
            layer_ids=self.layer_ids,
        )

    def windows_of(self, loads: Loads) -> IntArray | None:
        """Find the window of every token, for loads whose windows were cut from this trace.

        Known are windows that follow one another as recorded, such as `batches` makes, some of
        them (by their names), and windows of whole sequences or domains by name. What is found is
        counted again and equals the loads.

        Returns
        -------
        int64 [tokens] or None
            Position of the window, -1 for tokens in none of them; None where these loads were
            not cut from this trace in such a way.

        Examples
        --------
        >>> import craftopt as co
        >>> trace = co.Trace([[[0]], [[1]], [[1]], [[2]]])
        >>> trace.windows_of(trace.batches(2).select([1]))
        array([-1, -1,  0,  0])
        """
        if (loads.layers, loads.experts) != (self.layers, self.experts):
            return None
        for window in self._possible_windows(loads):
            if np.array_equal(self._count(window + 1, loads.windows + 1)[1:], loads.tokens):
                return window
        return None

    def _possible_windows(self, loads: Loads) -> Iterator[IntArray]:
        """Guess the window of every token, in four ways."""
        choices = np.count_nonzero(self.topk_ids >= 0, axis=(1, 2))
        totals = loads.tokens.sum(axis=(1, 2))
        # One after the other, from the first token on.
        window = np.searchsorted(np.cumsum(totals), np.cumsum(choices) - 0.5)
        yield np.where(window < loads.windows, window, -1)
        # Some of equally many tokens, by the positions in their names.
        numbers = [re.search(r"(?:^|/)(\d+)$", name) for name in loads.window_names]
        if all(numbers) and choices.max() > 0:
            size = round(totals.max() / choices.max())
            if size >= 1:
                positions = [str(int(found[1])) for found in numbers if found]
                window = np.arange(self.tokens) // size
                yield _positions(positions, [str(number) for number in window.tolist()])
        names = list(loads.window_names)
        if self.domain is not None:
            yield _positions(names, self.domain_names)[self.domain]
        if self.sequence is not None:
            window, first, numbers_of = self._sequences()
            wanted = [str(number) for number in numbers_of[first]]
            if self.domain is not None:
                wanted = [
                    f"{self.domain_names[domain]}/{name}"
                    for domain, name in zip(self.domain[first], wanted, strict=True)
                ]
            yield _positions(names, wanted)[window]

    def _sequences(self) -> tuple[IntArray, IntArray, IntArray]:
        """Give every sequence a number, in order of first tokens.

        Returns
        -------
        position : int64 [tokens]
            Which sequence a token belongs to.
        first : int64 [sequences]
            First token of every sequence.
        numbers : int64 [tokens]
            `sequence`, which is there.
        """
        if self.sequence is None:
            raise InputError(
                "this trace has no sequences; pass sequence= to Trace, or use batches(size)"
            )
        _, key = np.unique(self.sequence, return_inverse=True)
        if self.domain is not None:
            key = key * len(self.domain_names) + self.domain
        _, first, key = np.unique(key, return_index=True, return_inverse=True)
        rank = np.empty_like(first)
        rank[np.argsort(first)] = np.arange(first.size)
        return rank[key], np.sort(first), self.sequence

    def _windows(self, window: IntArray, names: Sequence[str]) -> Loads:
        """Make loads of a window per token; names get the domain in front, if there are any."""
        if self.domain is not None:
            domains = len(self.domain_names)
            cells = np.bincount(window * domains + self.domain, minlength=len(names) * domains)
            names = self._named(names, cells.reshape(-1, domains))
        return Loads(self._count(window, len(names)), self.layer_ids, names)

    def _named(self, names: Sequence[str], held: npt.NDArray[Any]) -> list[str]:
        """Put the domain in front, by what windows hold of each, [windows, domains]."""
        pure = (held > 0).sum(axis=1) == 1
        return [
            f"{self.domain_names[domain] if one else 'mixed'}/{name}"
            for domain, one, name in zip(held.argmax(axis=1), pure, names, strict=True)
        ]

    def _count(self, window: IntArray, windows: int) -> FloatArray:
        """Count the choices of every expert, float64 [windows, layers, experts]."""
        result = np.empty((windows, self.layers, self.experts))
        width = self.experts + 1  # the first cell collects -1
        start = (window * width + 1)[:, np.newaxis]
        for layer in range(self.layers):
            cells = (start + self.topk_ids[:, layer].astype(np.int64)).ravel()
            counts = np.bincount(cells, minlength=windows * width)
            result[:, layer] = counts.reshape(windows, width)[:, 1:]
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles go through the constructor, so that they are read-only too.
        return Trace, (
            self.topk_ids,
            self.experts,
            self.layer_ids,
            self.domain,
            self.domain_names if self.domain is not None else None,
            self.sequence,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain values, for JSON: all but the tokens' choices."""
        return {
            "tokens": self.tokens,
            "layers": self.layers,
            "k": self.topk_ids.shape[2],
            "experts": self.experts,
            "layer_ids": self.layer_ids.tolist(),
            "domain_names": list(self.domain_names),
            "standard_error": standard_error(self.tokens),
        }

    def summary(self) -> dict[str, str]:
        """Return the facts in words, for a table."""
        return {
            "tokens": f"{self.tokens:,}",
            "layers": name_layers(self.layer_ids),
            "experts per token": str(self.topk_ids.shape[2]),
            "experts": str(self.experts),
            "domains": ", ".join(self.domain_names) or "-",
            "sequences": "yes" if self.sequence is not None else "-",
            "standard error": name_error(standard_error(self.tokens)),
        }

    def __repr__(self) -> str:
        domains = f", domains={len(self.domain_names)}" if self.domain is not None else ""
        return (
            f"Trace(tokens={self.tokens}, layers={self.layers}, k={self.topk_ids.shape[2]}, "
            f"experts={self.experts}{domains})"
        )


def _valid_ids(topk_ids: npt.ArrayLike, experts: int | None) -> tuple[npt.NDArray[Any], int]:
    ids = as_array("topk_ids", topk_ids)
    if ids.dtype.kind not in "iu" or ids.ndim != 3:
        raise InputError(
            f"topk_ids has shape {ids.shape} and type {ids.dtype}; "
            "pass whole numbers [tokens, layers, k]"
        )
    for size, name in zip(ids.shape, ("tokens", "layers", "choices"), strict=True):
        if size == 0:
            raise InputError(f"topk_ids has 0 {name} (shape {ids.shape}); at least 1 is needed")
    highest = int(ids.max())
    if experts is None and highest < 0:
        raise InputError("topk_ids holds no expert, only -1; drop such traces")
    count = highest + 1 if experts is None else whole("experts", experts, 1)
    if count > MOST_EXPERTS:
        raise InputError(
            f"topk_ids holds ids up to {highest} (experts={count}); at most {MOST_EXPERTS} "
            "experts per layer are read, so the file is damaged or these are no expert ids"
        )
    if ids.min() < -1 or highest >= count:
        raise InputError(
            f"topk_ids holds ids {ids.min()}..{highest}; with experts={count} they must be "
            f"-1 (no expert) or 0..{count - 1}"
        )
    for layer in range(ids.shape[1]):
        twice = repeated(ids[:, layer])
        if twice.any():
            token = int(twice.argmax())
            raise InputError(
                f"topk_ids[{token}, {layer}] is {ids[token, layer].tolist()}, one expert twice, "
                f"which no router chooses ({twice.sum()} token(s) of this layer); these are no "
                "expert ids, or places without expert, which must be -1"
            )
    return read_only(np.array(ids, dtype=ids.dtype.newbyteorder("="), order="C")), count


def repeated(ids: npt.NDArray[Any]) -> BoolArray:
    """Tell which rows hold an expert twice, [rows] of ids [rows, k]; -1 may be repeated."""
    ordered = np.sort(ids, axis=1)
    twice = np.zeros(len(ids), dtype=np.bool_)
    for left, right in itertools.pairwise(ordered.T):  # faster than row by row
        twice |= (left == right) & (right >= 0)
    return twice


def _valid_column(name: str, values: npt.ArrayLike, tokens: int) -> IntArray:
    column = as_array(name, values)
    if column.dtype.kind not in "iu" or column.shape != (tokens,):
        raise InputError(
            f"{name} has shape {column.shape} and type {column.dtype}; "
            f"pass one whole number per token, shape ({tokens},)"
        )
    if column.min() < 0 or column.max() > np.iinfo(np.int64).max:
        raise InputError(
            f"{name} holds {column.min()}..{column.max()}; numbers must be 0..2**63 - 1"
        )
    return read_only(column.astype(np.int64))


def _valid_domain_names(names: Sequence[str] | None, domain: IntArray | None) -> tuple[str, ...]:
    if domain is None:
        if names is not None:
            raise InputError("domain_names without domain; pass the domain of every token, too")
        return ()
    highest = int(domain.max())
    if names is None:
        if highest >= domain.size:
            raise InputError(f"domain holds {highest}; without domain_names number them 0, 1, ...")
        return tuple(str(index) for index in range(highest + 1))
    if isinstance(names, str):
        raise InputError(f"domain_names={names!r} is one text; pass a list of names")
    checked = tuple(str(name) for name in names)
    if highest >= len(checked):
        raise InputError(f"domain holds {highest}, but there are {len(checked)} domain_names")
    if len(set(checked)) != len(checked):
        raise InputError("domain_names repeats a name; every domain needs its own")
    return checked


def _positions(names: Sequence[str], wanted: Sequence[str]) -> IntArray:
    """Look names up in a list: int64 [wanted], -1 where one is not in it."""
    position = {name: index for index, name in enumerate(names)}
    return np.array([position.get(name, -1) for name in wanted], dtype=np.int64)
