"""JSON: nested lists, an object with the keys of ``.npz``, a plan, or an engine's map."""

from __future__ import annotations

import io
import re
from typing import Any, BinaryIO

import numpy as np

from craftopt.errors import FormatError
from craftopt.formats import ascend
from craftopt.formats._bare import BareArray
from craftopt.formats._contents import AnyArray, Contents, with_gpus
from craftopt.formats._json import of_lists, parse, records
from craftopt.formats._named import NamedArrays, checked_names
from craftopt.formats._text import decoded
from craftopt.formats.responses import Responses, describes
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
    lines = re.search(rb"}\s*\n\s*{", data) is not None  # never in one document
    document = list(records(io.BytesIO(data))) if lines else parse(data)
    responses = document if isinstance(document, list) else [document]
    if responses and all(map(describes, responses)):
        return Responses(responses)
    if isinstance(document, list):
        return BareArray("a JSON list", of_lists("the list", document))
    if document.get("format") == PLAN_FORMAT:
        return _SavedPlan(decoded(data))
    if "certificate" in str(document.get("format"))[:40]:
        raise FormatError("is a certificate; craftopt verify (co.Certificate.load) reads it")
    if ascend.describes(document):
        return ascend.ExpertMap(document)
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
        self.tables = [key for key, value in self._fields.items() if isinstance(value, list | dict)]

    def array(self, key: str) -> AnyArray:
        """Read nested lists."""
        return of_lists(repr(key), self._fields[key])

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
