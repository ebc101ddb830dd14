"""JSON: nested lists, an object with the keys of ``.npz``, a plan, or an engine's map."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any, BinaryIO, NoReturn

import numpy as np

from craftopt.errors import FormatError
from craftopt.formats import ascend
from craftopt.formats._bare import BareArray
from craftopt.formats._contents import AnyArray, Contents, Kind, check_rank, plan_of, with_gpus
from craftopt.formats._keys import key_of, kind_of, names_key, window_names
from craftopt.formats._text import decoded
from craftopt.loads import Loads
from craftopt.plan import PLAN_FORMAT, Plan
from craftopt.traces import Trace


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
        array = _array("the list", document)
        whole = array.astype(np.int64) if _is_whole(array) else array
        return BareArray("a JSON list", whole)
    if document.get("format") == PLAN_FORMAT:
        return _SavedPlan(decoded(data))
    if ascend.describes(document):
        return ascend.ExpertMap(document)
    return _NamedLists(document)


class _SavedPlan(Contents):
    """What `Plan.save` wrote."""

    def __init__(self, text: str) -> None:
        super().__init__("a craftopt plan", "plan")
        self._text = text

    def plan(self, gpus: int | None) -> Plan:
        """Read the plan; ``gpus``, where given, must be its own."""
        return with_gpus(Plan.from_json(self._text), gpus)


class _NamedLists(Contents):
    """Nested lists under the keys of ``.npz``."""

    def __init__(self, document: dict[str, Any]) -> None:
        # null is how many writers say "not given"
        self._fields = {key: value for key, value in document.items() if value is not None}
        kind = kind_of(self._fields)
        table = " of experts per slot, such as SGLang's" if kind == "plan" else ""
        super().__init__(f"a JSON document{table}", kind)

    def loads(self) -> Loads:
        """Read loads from the lists.

        Raises
        ------
        InputError
            Values that are not loads.
        """
        fields = self._fields
        tokens = self._array("loads")
        layer_ids = _layer_ids(fields["layer_ids"]) if "layer_ids" in fields else None
        name_key = names_key(fields)
        names = None
        if name_key is not None:
            if not isinstance(fields[name_key], list):
                raise FormatError(f"{name_key!r} is not a list; pass one name per window")
            names = window_names(name_key, fields[name_key])
        return Loads(tokens, layer_ids, names)

    def trace(self, experts: int | None) -> Trace:
        """Read expert ids [tokens, layers, k]."""
        return self.active_trace(self._ids("trace"), experts)

    def plan(self, gpus: int | None) -> Plan:
        """Read experts per slot [layers, slots]."""
        ids = self._ids("plan")
        layer_ids = _layer_ids(self._fields["layer_ids"]) if "layer_ids" in self._fields else None
        return plan_of(ids, gpus, layer_ids)

    def _array(self, wanted: Kind) -> AnyArray:
        key = key_of(wanted, self._fields)
        if key is None or self.kind != wanted:
            raise self.refusal(wanted)
        return _array(repr(key), self._fields[key])

    def _ids(self, wanted: Kind) -> AnyArray:
        array = self._array(wanted)
        if not _is_whole(array):
            key = key_of(wanted, self._fields)
            raise FormatError(f"{key!r} holds numbers that are no expert ids")
        return array.astype(np.int64)


def _is_whole(array: AnyArray) -> bool:
    return bool((np.abs(array) < 2**53).all() and (array == np.floor(array)).all())


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
