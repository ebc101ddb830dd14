"""What the formats share: arrays in numpy's own layout, and which key holds what."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from craftopt.errors import FormatError

AnyArray = npt.NDArray[Any]

NPY_MAGIC = b"\x93NUMPY"


def parse_npy(data: bytes) -> AnyArray:
    """Return the array of a ``.npy`` file, a read-only view of ``data``.

    The header is only a claim: it is held against the bytes that are there before
    anything of the claimed size is made.

    Raises
    ------
    FormatError
        A damaged header, an array that is not plain numbers or text, or a length
        other than the header's.
    """
    stream = io.BytesIO(data)
    try:
        version = npy_format.read_magic(stream)
        if version == (1, 0):
            header = npy_format.read_array_header_1_0(stream)
        elif version == (2, 0):
            header = npy_format.read_array_header_2_0(stream)
        else:
            raise FormatError(
                f".npy version {version[0]}.{version[1]}; versions 1.0 and 2.0 are read"
            )
    except FormatError:
        raise
    except Exception as error:  # numpy evaluates the header as a literal: many types
        raise FormatError(f"damaged or truncated .npy header: {_brief(error)}") from error
    shape, fortran_order, dtype = header
    if dtype.hasobject:
        raise FormatError(
            "holds Python objects, that is, a pickle; craftopt never unpickles. "
            "Save an array of numbers"
        )
    if dtype.kind not in "iufUS" or dtype.itemsize == 0:
        raise FormatError(
            f"holds values of type {dtype}; save whole or floating-point numbers instead"
        )
    if any(size < 0 for size in shape):
        raise FormatError(f"damaged .npy header: shape {shape}")
    start = stream.tell()
    count = math.prod(shape)
    claimed, there = count * dtype.itemsize, len(data) - start
    if claimed != there:
        raise FormatError(
            f"damaged or truncated: the header claims shape {shape} of {dtype}, "
            f"{claimed} bytes, and {there} follow it"
        )
    try:
        if count == 0:
            return np.zeros(shape, dtype)
        values = np.frombuffer(data, dtype, count, start)
        return values.reshape(shape, order="F" if fortran_order else "C")
    except ValueError as error:
        raise FormatError(f"damaged .npy header: shape {shape}: {error}") from error


def tokens_key(keys: Collection[str]) -> str:
    """Return the key of the loads: ``counts``, else ``tokens``.

    Raises
    ------
    FormatError
        Neither is there; the message names what is.
    """
    for key in ("counts", "tokens"):
        if key in keys:
            return key
    if "topk_ids" in keys:
        raise FormatError("holds 'topk_ids', a token trace, not loads; co.read_trace reads traces")
    raise FormatError(
        f"holds neither 'counts' nor 'tokens'; its keys are {shorten(sorted(keys)) or 'none'}"
    )


def names_key(keys: Collection[str]) -> str | None:
    """Return the key of the window names, or None where there is none."""
    return next((key for key in ("window_names", "step_names") if key in keys), None)


def check_rank(what: str, shape: tuple[int, ...]) -> None:
    """Refuse loads which are not 2-D or 3-D.

    Raises
    ------
    FormatError
        Another number of dimensions.
    """
    if len(shape) not in (2, 3):
        raise FormatError(
            f"{what} has {len(shape)} dimension(s), shape {shape}; "
            "loads have [windows, layers, experts] or [layers, experts]"
        )


def window_names(key: str, values: Sequence[object]) -> list[str]:
    """Check window names: text, or whole numbers such as step numbers.

    Raises
    ------
    FormatError
        Anything else, or text that cannot be written in UTF-8.
    """
    names = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise FormatError(f"{key!r} holds {_brief(value)}; pass one name per window")
        names.append(str(value))
    try:
        "".join(names).encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"{key!r} holds text that is not valid Unicode") from error
    return names


def shorten(items: Sequence[object], limit: int = 8) -> str:
    """Return the items separated by commas, the middle left out where there are many."""
    texts = [str(item)[:60] for item in items]
    if len(texts) > limit:
        texts = [*texts[: limit - 1], "...", texts[-1]]
    return ", ".join(texts)


def _brief(value: object) -> str:
    text = str(value) if isinstance(value, Exception) else repr(value)
    text = " ".join(text.split()) or type(value).__name__
    return text if len(text) <= 100 else text[:97] + "..."
