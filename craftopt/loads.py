"""Loads: how many tokens every expert of every layer received, window by window."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from craftopt.display import Displayed
from craftopt.errors import InputError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# Beyond this range, sums and quotients of loads leave the floating-point numbers.
_LEAST, _MOST = 1e-30, 1e30


@dataclass(frozen=True, eq=False)
class Loads(Displayed):
    """Hold expert loads per window and layer, validated and read-only.

    Parameters
    ----------
    tokens : array_like, shape [windows, layers, experts] or [layers, experts]
        Token assignments: how many (token, choice) pairs the router sent to each
        expert. Finite and at least 0. A 2-D array is one window.
    layer_ids : sequence of int, shape [layers], optional
        The model's own numbers of the layers; 0, 1, ... by default.
    window_names : sequence of str, shape [windows], optional
        A name per window; ``"0"``, ``"1"``, ... by default.

    Raises
    ------
    InputError
        Tokens that are not numbers, not finite or negative; a wrong rank; no
        window, layer or expert; ids of a wrong length or repeated; names of a wrong length.

    Examples
    --------
    >>> import craftopt as co
    >>> loads = co.Loads([[[8, 4, 2, 2]], [[2, 2, 4, 8]]])
    >>> loads
    Loads(windows=2, layers=1, experts=4, tokens=32)
    >>> loads.total().tokens
    array([[[10.,  6.,  6., 10.]]])
    """

    tokens: FloatArray
    layer_ids: IntArray
    window_names: tuple[str, ...]

    def __init__(
        self,
        tokens: npt.ArrayLike,
        layer_ids: npt.ArrayLike | None = None,
        window_names: Sequence[str] | None = None,
    ) -> None:
        values = _valid_tokens(tokens)
        windows, layers, _ = values.shape
        object.__setattr__(self, "tokens", values)
        object.__setattr__(self, "layer_ids", valid_layer_ids(layer_ids, layers))
        object.__setattr__(self, "window_names", _valid_names(window_names, windows))

    @property
    def windows(self) -> int:
        """Number of windows."""
        return int(self.tokens.shape[0])

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self.tokens.shape[1])

    @property
    def experts(self) -> int:
        """Number of logical experts per layer."""
        return int(self.tokens.shape[2])

    @cached_property
    def digest(self) -> str:
        """SHA-256 over shape, tokens and layer ids: equal loads, equal digest."""
        parts = hashlib.sha256(repr(self.tokens.shape).encode())
        parts.update(self.tokens.astype("<f8").tobytes())
        parts.update(self.layer_ids.astype("<i8").tobytes())
        return parts.hexdigest()

    def total(self) -> Loads:
        """Return the loads summed into one window (the nominal problem).

        Examples
        --------
        >>> import craftopt as co
        >>> co.Loads([[[1, 2]], [[3, 4]]]).total().windows
        1
        """
        return Loads(self.tokens.sum(axis=0), self.layer_ids, ("total",))

    def select(self, windows: npt.ArrayLike) -> Loads:
        """Return the windows at the given 0-based positions, in that order.

        Raises
        ------
        InputError
            No position, or one outside the windows.
        """
        positions = as_array("windows", windows)
        if positions.ndim != 1 or positions.size == 0 or positions.dtype.kind not in "iu":
            raise InputError("select takes a non-empty list of window positions (whole numbers)")
        if positions.min() < 0 or positions.max() >= self.windows:
            raise InputError(
                f"window position {positions[(positions < 0) | (positions >= self.windows)][0]} "
                f"is outside 0..{self.windows - 1}"
            )
        names = tuple(self.window_names[int(position)] for position in positions)
        return Loads(self.tokens[positions], self.layer_ids, names)

    def split(self, mask: npt.ArrayLike) -> tuple[Loads, Loads]:
        """Split the windows in two: where ``mask`` is true (train), and the rest (test).

        Parameters
        ----------
        mask : array_like of bool, shape [windows]

        Raises
        ------
        InputError
            A mask of another shape or type, or one that leaves a side empty.

        Examples
        --------
        >>> import craftopt as co
        >>> train, test = co.Loads([[[1, 2]], [[3, 4]], [[5, 6]]]).split([True, False, True])
        >>> train.window_names, test.window_names
        (('0', '2'), ('1',))
        """
        chosen = as_array("mask", mask)
        if chosen.dtype != np.bool_ or chosen.shape != (self.windows,):
            raise InputError(
                f"mask has shape {chosen.shape} and type {chosen.dtype}; "
                f"split takes one bool per window, shape ({self.windows},)"
            )
        if chosen.all() or not chosen.any():
            raise InputError(
                f"mask puts all {self.windows} windows on one side; both sides need at least one"
            )
        return self.select(np.flatnonzero(chosen)), self.select(np.flatnonzero(~chosen))

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain values, for JSON: all but the tokens of every expert."""
        return {
            "windows": self.windows,
            "layers": self.layers,
            "experts": self.experts,
            "tokens": float(self.tokens.sum()),
            "layer_ids": self.layer_ids.tolist(),
            "window_names": list(self.window_names),
            "digest": self.digest,
        }

    def summary(self) -> dict[str, str]:
        """Return the facts in words, for a table."""
        names = ", ".join(self.window_names[:3]) + (", ..." if self.windows > 3 else "")
        return {
            "windows": f"{self.windows} ({names})",
            "layers": name_layers(self.layer_ids),
            "experts": str(self.experts),
            "token assignments": f"{self.tokens.sum():,.{0 if self.tokens.sum() >= 10 else 4}f}",
        }

    def with_layers(self, positions: Sequence[int], layer_ids: npt.ArrayLike) -> Loads:
        """Return the layers at these 0-based positions, under these numbers."""
        return Loads(self.tokens[:, list(positions)], layer_ids, self.window_names)

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles go through the constructor, so that they are read-only too.
        return Loads, (self.tokens, self.layer_ids, self.window_names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Loads):
            return NotImplemented
        return (
            np.array_equal(self.tokens, other.tokens)
            and np.array_equal(self.layer_ids, other.layer_ids)
            and self.window_names == other.window_names
        )

    def __hash__(self) -> int:
        return hash((self.digest, self.window_names))

    def __repr__(self) -> str:
        return (
            f"Loads(windows={self.windows}, layers={self.layers}, experts={self.experts}, "
            f"tokens={self.tokens.sum():.0f})"
        )


def as_array(name: str, value: npt.ArrayLike) -> npt.NDArray[Any]:
    """Make an array, or say that nested lists are ragged."""
    try:
        return np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{name} is ragged or not numeric: {error}") from None


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the array after forbidding writes to it."""
    array.setflags(write=False)
    return array


def name_layers(layer_ids: IntArray) -> str:
    """Count layers, and say which of the model's they are."""
    return f"{layer_ids.size} (model's {layer_ids.min()}..{layer_ids.max()})"


def layer_text(layer_ids: npt.ArrayLike) -> str:
    """Name layers for a message: ``0-2, 5``.

    Examples
    --------
    >>> from craftopt.loads import layer_text
    >>> layer_text([0, 1, 2, 5])
    '0-2, 5'
    """
    runs: list[list[int]] = []
    for number in np.asarray(layer_ids).tolist():
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return ", ".join(texts if len(texts) <= 8 else [*texts[:7], "...", texts[-1]])


def valid_layer_ids(layer_ids: npt.ArrayLike | None, layers: int) -> IntArray:
    """Check the model's own layer numbers; 0, 1, ... where none are given."""
    if layer_ids is None:
        return read_only(np.arange(layers, dtype=np.int64))
    ids = as_array("layer_ids", layer_ids)
    if ids.dtype.kind not in "iu" or ids.shape != (layers,):
        raise InputError(
            f"layer_ids has shape {ids.shape} and type {ids.dtype}; "
            f"pass one whole number per layer, shape ({layers},)"
        )
    if ids.max() > np.iinfo(np.int64).max:
        raise InputError(f"layer_ids holds {ids.max()}; ids must fit 64 bits with a sign")
    if len(set(ids.tolist())) != layers:
        raise InputError("layer_ids repeats a number; every layer needs its own")
    return read_only(ids.astype(np.int64))


def _valid_tokens(tokens: npt.ArrayLike) -> FloatArray:
    values = as_array("tokens", tokens)
    if values.dtype.kind not in "iuf":
        raise InputError(f"tokens has type {values.dtype}; pass whole or floating-point numbers")
    if values.ndim == 2:
        values = values[np.newaxis]
    if values.ndim != 3:
        raise InputError(
            f"tokens has {values.ndim} dimension(s), shape {values.shape}; "
            "pass [windows, layers, experts] or [layers, experts]"
        )
    for size, name in zip(values.shape, ("windows", "layers", "experts"), strict=True):
        if size == 0:
            raise InputError(f"tokens has 0 {name} (shape {values.shape}); at least 1 is needed")
    # Adding 0 makes -0.0 the same as 0.0, in bytes too.
    values = np.array(values, dtype=np.float64, order="C") + 0.0
    bad = ~np.isfinite(values) | (values < 0)
    if bad.any():
        window, layer, expert = np.argwhere(bad)[0]
        raise InputError(
            f"tokens[{window}, {layer}, {expert}] is {values[window, layer, expert]}; "
            f"token counts must be finite and at least 0 ({bad.sum()} such cell(s))"
        )
    used = values[values > 0]
    if used.size and not (used.min() >= _LEAST and used.max() <= _MOST):
        raise InputError(
            f"tokens span {used.min():.3g} to {used.max():.3g}; counts that are not 0 must lie "
            f"within {_LEAST:g} and {_MOST:g}: scale them"
        )
    return read_only(values)


def _valid_names(names: Sequence[str] | None, windows: int) -> tuple[str, ...]:
    if names is None:
        return tuple(str(window) for window in range(windows))
    if isinstance(names, str):
        raise InputError(f"window_names={names!r} is one text; pass a list of names")
    checked = tuple(str(name) for name in names)
    if len(checked) != windows:
        raise InputError(f"window_names has {len(checked)} names for {windows} windows")
    return checked
