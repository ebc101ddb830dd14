"""The JSONL of vLLM's open pull request 41141: experimental, no released vLLM writes it.

``eplb_load_stats`` records hold counts per slot [layers, slots] with the map of that step;
``eplb_initial_mapping`` is a map for vLLM to start with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from craftopt.errors import FormatError
from craftopt.formats._contents import Contents, plan_of
from craftopt.formats._json import records
from craftopt.formats._text import shorten
from craftopt.loads import FloatArray, IntArray, Loads
from craftopt.plan import Plan
from craftopt.slot_tables import to_logical

EXPERIMENTAL = (
    "the JSONL of vLLM's open pull request 41141 is experimental: no released vLLM writes it, "
    "and its fields may still change"
)
_MAPPING = "eplb_initial_mapping"


def matches(head: bytes) -> bool:
    """Tell from its first bytes whether a file begins with a record of that kind."""
    start = head.lstrip()[:200]
    return start.startswith(b"{") and b'"record_type"' in start and b'"eplb_' in start


def recognise(stream: BinaryIO) -> Contents:
    """Look at the first record.

    Raises
    ------
    FormatError
        A damaged record, or one of a later version.
    """
    first = next(_records(stream), None)
    if first is None:
        raise FormatError("holds no record")
    stream.seek(0)
    contents = _Mapping(first) if first["record_type"] == _MAPPING else _Statistics(stream)
    contents.notes.append(EXPERIMENTAL)
    return contents


class _Statistics(Contents):
    def __init__(self, stream: BinaryIO) -> None:
        super().__init__("expert load statistics of vLLM's pull request 41141", "loads")
        self._stream = stream

    def loads(self) -> Loads:
        """Map every step's slots back to experts, by the map of that step."""
        windows: list[FloatArray] = []
        steps: list[str] = []
        for record in _records(self._stream):
            if record["record_type"] != "eplb_load_stats":
                continue
            counts = _table(record, "expert_load").astype(np.float64)
            logical = to_logical(counts[np.newaxis], _table(record, "p2l_map"))[0]
            if windows and logical.shape != windows[0].shape:
                raise FormatError(
                    f"steps differ in [layers, experts]: {windows[0].shape} and {logical.shape}"
                )
            windows.append(logical)
            steps.append(str(record.get("step"))[:40])
            if steps[-1] in steps[:-1]:
                raise FormatError(f"holds step {steps[-1]} twice; pass the file of one rank")
        if not windows:
            raise FormatError("holds no eplb_load_stats record, only others")
        return Loads(np.array(windows), window_names=steps)


class _Mapping(Contents):
    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__("an initial mapping of vLLM's pull request 41141", "plan")
        self._record = record

    def plan(self, gpus: int | None) -> Plan:
        """Read the map; layers count the MoE layers, not the model's."""
        assignments = self._record.get("initial_global_assignments")
        if type(assignments) is not dict or not assignments:
            raise FormatError("damaged: initial_global_assignments is no object of layers")
        expected = {str(layer) for layer in range(len(assignments))}
        if set(assignments) != expected:
            raise FormatError(
                f"the layers {shorten(sorted(assignments))} are not 0..{len(assignments) - 1}"
            )
        rows = [assignments[str(layer)] for layer in range(len(assignments))]
        return plan_of(_table({_MAPPING: rows}, _MAPPING), gpus)


def _records(stream: BinaryIO) -> Iterator[dict[str, Any]]:
    """Yield the records of version 1."""
    for number, record in enumerate(records(stream), 1):
        if type(record.get("record_type")) is not str:
            raise FormatError(f"record {number} has no record_type")
        if record.get("version") != 1:
            raise FormatError(
                f"record {number} has version {str(record.get('version'))[:20]}; version 1 is read"
            )
        yield record


def _table(record: dict[str, Any], key: str) -> IntArray:
    rows = record.get(key)
    if (
        type(rows) is not list
        or not rows
        or any(type(row) is not list or len(row) != len(rows[0]) or not row for row in rows)
        or {type(cell) for row in rows for cell in row} != {int}
    ):
        raise FormatError(f"damaged: {key!r} is no table of whole numbers")
    try:
        return np.array(rows, dtype=np.int64)
    except OverflowError as error:
        raise FormatError(f"damaged: {key!r} holds a number beyond 64 bits") from error
