"""``.npy``: one array, in numpy's own layout."""

from __future__ import annotations

import io
import math
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from craftopt.errors import FormatError
from craftopt.formats._bare import BareArray
from craftopt.formats._contents import Contents
from craftopt.formats._text import brief

_MAGIC = b"\x93NUMPY"


def matches(head: bytes) -> bool:
    """Tell from its first bytes whether a file is ``.npy``."""
    return head.startswith(_MAGIC)


def recognise(stream: BinaryIO) -> Contents:
    """Read the array, and judge by its values what it is.

    Raises
    ------
    InputError
        A damaged file.
    """
    return BareArray("an array", parse_npy(stream.read()))


def parse_npy(data: bytes) -> npt.NDArray[Any]:
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
        raise FormatError(f"damaged or truncated .npy header: {brief(error)}") from error
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
