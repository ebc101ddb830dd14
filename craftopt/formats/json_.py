"""JSON: nested lists, or an object with ``counts`` or ``tokens`` and optional names."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any, NoReturn

import numpy as np

from craftopt.errors import FormatError
from craftopt.formats._arrays import (
    AnyArray,
    check_rank,
    names_key,
    tokens_key,
    window_names,
)
from craftopt.loads import Loads


def matches(head: bytes) -> bool:
    """Tell from its first bytes whether a file is a JSON object or list."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"{", b"["))


def read(data: bytes) -> Loads:
    """Read loads from a bare nested list or from an object's keys.

    Raises
    ------
    InputError
        No valid JSON, a plan, none of the keys, or values that are not loads.
    """
    document = _parse(data)
    if isinstance(document, list):
        return Loads(_array("the list", document))
    if document.get("format") == "craftopt-plan":
        raise FormatError(
            "is a craftopt plan, not loads; co.read_plan and 'craftopt evaluate' read plans"
        )
    # null is how many writers say "not given"
    fields = {key: value for key, value in document.items() if value is not None}
    key = tokens_key(fields)
    tokens = _array(repr(key), fields[key])
    layer_ids = _layer_ids(fields["layer_ids"]) if "layer_ids" in fields else None
    name_key = names_key(fields)
    names = None
    if name_key is not None:
        if not isinstance(fields[name_key], list):
            raise FormatError(f"{name_key!r} is not a list; pass one name per window")
        names = window_names(name_key, fields[name_key])
    return Loads(tokens, layer_ids, names)


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"), parse_constant=_no_constant)
    except FormatError:
        raise
    except UnicodeDecodeError as error:
        raise FormatError(f"is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise FormatError(f"damaged or truncated JSON: {error}") from error
    except RecursionError as error:
        raise FormatError("JSON nested too deeply; loads have 2 or 3 levels of lists") from error
    except ValueError as error:  # Python's limit on the digits of a whole number
        raise FormatError("holds a number of thousands of digits; no token count is") from error


def _no_constant(constant: str) -> NoReturn:
    raise FormatError(f"holds {constant}; token counts must be finite and at least 0")


def _array(what: str, value: object) -> AnyArray:
    """Return nested lists as an array.

    Looked through before numpy sees them: it would turn text into numbers, truths into
    counts, and one long string into gigabytes of padding.
    """
    if not isinstance(value, list):
        raise FormatError(f"{what} is not a list; pass [windows][layers][experts] counts")
    shape: list[int] = []
    level: list[Any] = [value]
    while level and isinstance(level[0], list) and len(shape) < 4:
        sizes = {len(item) if isinstance(item, list) else -1 for item in level}
        if len(sizes) > 1:
            raise FormatError(
                f"{what} is ragged: lists at level {len(shape) + 1} differ in length; "
                "every window needs the same layers and every layer the same experts"
            )
        shape.append(sizes.pop())
        level = list(chain.from_iterable(level))
    if not level:
        raise FormatError(
            f"{what} is empty, shape {tuple(shape)}; "
            "at least 1 window, 1 layer and 1 expert are needed"
        )
    if not set(map(type, level)) <= {int, float}:
        odd = next(item for item in level if type(item) not in (int, float))
        raise FormatError(f"{what} holds {json.dumps(odd)[:60]}, which is not a number")
    check_rank(what, tuple(shape))
    try:
        return np.array(level, dtype=np.float64).reshape(shape)
    except OverflowError as error:
        raise FormatError(f"{what} holds a whole number above 1.8e308") from error


def _layer_ids(value: object) -> AnyArray:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise FormatError("'layer_ids' is not a list of whole numbers; pass one per layer")
    try:
        return np.array(value, dtype=np.int64)
    except OverflowError as error:
        raise FormatError("'layer_ids' holds a number beyond 64 bits") from error
