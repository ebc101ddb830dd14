"""JSON: nested lists, an object with the keys of ``.npz``, a plan, or an engine's map."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any, BinaryIO, NoReturn

import numpy as np

from craftopt.errors import FormatError
from craftopt.formats import ascend, vllm_responses
from craftopt.formats._bare import BareArray
from craftopt.formats._contents import AnyArray, Contents, check_rank, with_gpus
from craftopt.formats._named import NamedArrays, checked_names
from craftopt.formats._text import decoded
from craftopt.plan import PLAN_FORMAT, Plan


def matches(head: bytes) -> bool:
    """Tell from its first bytes whether a file is a JSON object or list."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"{", b"["))


def recognise(stream: BinaryIO) -> Contents:
    """Read the document, and tell by its keys what it is.

    Raises
    ------
    InputError
        No valid JSON, or none of the keys.
    """
    data = stream.read()
    document = parse(data)
    if isinstance(document, list):
        return BareArray("a JSON list", _array("the list", document))
    if document.get("format") == PLAN_FORMAT:
        return _SavedPlan(decoded(data))
    if ascend.describes(document):
        return ascend.ExpertMap(document)
    if vllm_responses.describes(document):
        return vllm_responses.Response(document)
    return NamedArrays("a JSON document", _Lists(document))


class _SavedPlan(Contents):
    """What `Plan.save` wrote."""

    def __init__(self, text: str) -> None:
        super().__init__("a craftopt plan", "plan")
        self._text = text

    def plan(self, gpus: int | None) -> Plan:
        """Read the plan; ``gpus``, where given, must be its own."""
        return with_gpus(Plan.from_json(self._text), gpus)


class _Lists:
    """Nested lists by their names."""

    def __init__(self, document: dict[str, Any]) -> None:
        # null is how many writers say "not given"
        self._fields = {key: value for key, value in document.items() if value is not None}
        self.keys = self._fields.keys()
        self.tables = [key for key, value in self._fields.items() if isinstance(value, list)]

    def array(self, key: str) -> AnyArray:
        """Read nested lists."""
        return _array(repr(key), self._fields[key])

    def column(self, key: str) -> AnyArray:
        """Read a list of whole numbers."""
        value = self._fields[key]
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise FormatError(
                f"{key!r} is not a list of whole numbers; pass one per layer or token"
            )
        try:
            return np.array(value, dtype=np.int64)
        except OverflowError as error:
            raise FormatError(f"{key!r} holds a number beyond 64 bits") from error

    def names(self, key: str) -> list[str]:
        """Read a list of texts or whole numbers."""
        if not isinstance(self._fields[key], list):
            raise FormatError(f"{key!r} is not a list; pass one name per window")
        return checked_names(key, self._fields[key])


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
    if len(shape) > 1:
        check_rank(what, tuple(shape))
    try:
        return np.array(level, dtype=np.float64).reshape(shape)
    except OverflowError as error:
        raise FormatError(f"{what} holds a whole number above 1.8e308") from error
