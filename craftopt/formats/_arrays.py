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
from craftopt.plan import Plan

AnyArray = npt.NDArray[Any]

NPY_MAGIC = b"\x93NUMPY"

# What arrays are called: craftopt's own names, then those of SGLang, vLLM and DeepSeek's EPLB.
LOADS_KEYS = ("counts", "tokens", "logical_count", "weight")
TRACE_KEYS = ("topk_ids", "routed_experts")
PLAN_KEYS = ("phy2log", "physical_to_logical_map")

# A bare array of whole numbers is taken for a token trace or a map of slots only where it is
# large enough, and its ids small enough, that loads do not look so by chance.
_ENOUGH_ROWS, _MOST_CHOICES, _MOST_EXPERTS, _ENOUGH_SLOTS = 8, 32, 4096, 8
# With one layer there are no sums to compare.
_ENOUGH_TOKENS, _FEW_EXPERTS = 64, 512


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


def tokens_key(keys: Collection[str]) -> str:
    """Return the key of the loads, the first of `LOADS_KEYS`.

    Raises
    ------
    FormatError
        Neither is there; the message names what is.
    """
    for key in LOADS_KEYS:
        if key in keys:
            return key
    known = " nor ".join(repr(key) for key in (*LOADS_KEYS, *TRACE_KEYS, *PLAN_KEYS))
    raise FormatError(f"holds neither {known}; its keys are {shorten(sorted(keys)) or 'none'}")


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


def looks_like_trace(array: AnyArray) -> bool:
    """Tell whether an array [tokens, layers, k] holds different expert ids in every row.

    Recorded loads do not look so: all layers of a window share one sum, and hundreds of cells
    repeat values.
    """
    if array.ndim != 3 or array.dtype.kind not in "iu" or array.size == 0:
        return False
    choices = array.shape[2]
    if choices > _MOST_CHOICES or array.size < _ENOUGH_ROWS * choices:
        return False
    if array.min() < -1 or array.max() >= _MOST_EXPERTS:
        return False
    if choices == 1:
        return True  # loads of a single expert make no sense
    ordered = np.sort(array, axis=2)
    if ((ordered[:, :, 1:] == ordered[:, :, :-1]) & (ordered[:, :, 1:] >= 0)).any():
        return False
    if array.shape[1] == 1:
        return len(array) >= _ENOUGH_TOKENS and int(array.max()) < _FEW_EXPERTS
    sums = array.sum(axis=2, dtype=np.int64)
    return bool((sums != sums[:, :1]).any())


def looks_like_map(array: AnyArray) -> bool:
    """Tell whether an array [layers, slots] holds every expert id from 0 in every row."""
    if array.ndim != 2 or array.dtype.kind not in "iu" or array.shape[1] < _ENOUGH_SLOTS:
        return False
    least, most = int(array.min(initial=0)), int(array.max(initial=0))
    # Small counts reach 0, 1, 2, ... as well, but not up to half as many values as experts.
    if least < 0 or not array.shape[1] <= 2 * (most + 1) <= 2 * array.shape[1]:
        return False
    present = np.zeros((array.shape[0], most + 1), dtype=np.bool_)
    present[np.arange(array.shape[0])[:, np.newaxis], array.astype(np.int64)] = True
    return bool(present.all())


def plan_of(
    phy2log: AnyArray,
    gpus: int | None,
    layer_ids: AnyArray | Sequence[int] | None = None,
) -> Plan:
    """Make a plan of a table of experts per slot, for as many GPUs as the caller says.

    Raises
    ------
    InputError
        No number of GPUs, or a table that is no plan.
    """
    if gpus is None:
        raise FormatError(
            f"lists experts by slot, shape {phy2log.shape}, and does not say how many GPUs share "
            "the slots; pass gpus= (--gpus)"
        )
    return Plan.from_phy2log(phy2log, gpus, layer_ids=layer_ids)


def with_gpus(plan: Plan, gpus: int | None) -> Plan:
    """Check the number of GPUs that the caller says against the file's own.

    Raises
    ------
    FormatError
        Another number.
    """
    if gpus not in (None, plan.gpus):
        raise FormatError(f"is for {plan.gpus} GPUs, not gpus={gpus}; leave gpus out")
    return plan


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
            raise FormatError(f"{key!r} holds {brief(value)}; pass one name per window")
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


def brief(value: object) -> str:
    """Return a value or an error's message on one line, cut where it is long."""
    text = str(value) if isinstance(value, Exception) else repr(value)
    text = " ".join(text.split()) or type(value).__name__
    return text if len(text) <= 100 else text[:97] + "..."
