"""JSON's text, lines and nested lists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO, NoReturn

import numpy as np

from craftopt.errors import FormatError
from craftopt.formats._contents import AnyArray, check_rank
from craftopt.formats._text import decoded

_MOST_LINE = 2**26  # bytes; a step of 94 layers and 512 slots has some 500,000


def records(stream: BinaryIO) -> Iterator[dict[str, Any]]:
    """Yield the objects of JSONL, line by line.

    Raises
    ------
    FormatError
        A line that is no object, or too long.
    """
    number = 0
    while line := stream.readline(_MOST_LINE):
        number += 1
        if not line.strip():
            continue
        if len(line) >= _MOST_LINE:
            raise FormatError(f"line {number} has over {_MOST_LINE} bytes; no step does")
        try:
            record = parse(line)
        except FormatError as error:
            raise FormatError(f"line {number}: {error}") from error
        if type(record) is not dict:
            raise FormatError(f"line {number} is no record, but {type(record).__name__}")
        yield record


def parse(data: bytes) -> Any:
    """Parse JSON text; NaN and infinities are refused.

    Raises
    ------
    FormatError
        No UTF-8 text, or no JSON.
    """
    try:
        return json.loads(decoded(data), parse_constant=_no_constant)
    except FormatError:
        raise
    except json.JSONDecodeError as error:
        raise FormatError(f"damaged or truncated JSON: {error}") from error
    except RecursionError as error:
        raise FormatError("JSON nested too deeply; loads have 2 or 3 levels of lists") from error
    except ValueError as error:  # Python's limit on the digits of a whole number
        raise FormatError("holds a number of thousands of digits; no token count is") from error


def _no_constant(constant: str) -> NoReturn:
    raise FormatError(f"holds {constant}; token counts must be finite and at least 0")


def of_lists(what: str, value: object) -> AnyArray:
    """Return nested lists as an array.

    Looked through before numpy sees them: it would turn text into numbers, truths into
    counts, and one long string into gigabytes of padding.

    Raises
    ------
    FormatError
        Lists that differ in length, or that hold anything but numbers.
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
    if len(shape) > 1:
        check_rank(what, tuple(shape))
    try:
        return np.array(level, dtype=np.float64).reshape(shape)
    except OverflowError as error:
        raise FormatError(f"{what} holds a whole number above 1.8e308") from error
