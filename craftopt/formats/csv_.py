"""CSV: one cell a row, columns ``window``, ``layer``, ``expert``, ``tokens``.

Older SGLang writes ``layer_id``, ``expert_id``, ``count``. A table without windows is one window.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from craftopt.errors import FormatError
from craftopt.formats._contents import Contents
from craftopt.formats._text import decoded, shorten
from craftopt.loads import IntArray, Loads

_COLUMNS = ("window", "layer", "expert", "tokens")
_OTHER_NAMES = {"layer_id": "layer", "expert_id": "expert", "count": "tokens"}
_MAX_DIGITS = 18  # of an id; what fits 64 bits
# A row costs the reader some 300 bytes, a cell of the array 8. Windows of one token that
# chooses 1 of 128 experts fill 1 cell in 128; the rest of the factor is room.
_CELLS_ALWAYS = 2**20
_CELLS_PER_ROW = 256


def matches(head: bytes) -> bool:
    """Tell from its first bytes whether a file is a table with these columns."""
    if b"\0" in head:
        return False
    return set(_COLUMNS[1:]) <= set(_fields(_first_line(head)))


def hint(head: bytes) -> str:
    """Say what to change of a table that is not read; nothing of what is no table."""
    line = _first_line(head)
    mark = next((mark for mark in ";\t|" if {"layer", "expert"} <= set(_fields(line, mark))), ",")
    fields = _fields(line, mark)
    if b"\0" in head or len(fields) < 2 or not (mark != "," or line.isascii()):
        return ""
    if mark != ",":
        return f"is a table separated by {mark!r}; separate its columns by commas"
    return (
        f"is a table with the columns {shorten([repr(field) for field in fields], 5)}; pass "
        "window, layer, expert and tokens (or layer_id, expert_id, count), a row per cell"
    )


def recognise(stream: BinaryIO) -> Contents:
    """Take a table with these columns for loads."""
    return _Table(stream)


class _Table(Contents):
    def __init__(self, stream: BinaryIO) -> None:
        super().__init__("a CSV table", "loads")
        self._stream = stream

    def loads(self) -> Loads:
        """Read the table."""
        data = self._stream.read()
        loads, cells = read(data)
        line = _first_line(data[: 2**16])
        if foreign := sorted(set(_fields(line)).difference(_COLUMNS)):
            self.notes.append(f"has the columns {shorten(foreign)}, which are not read")
        if "layer_id" in line:
            self.notes.append(
                "older SGLang writes such a table per rank; where there are several, add them up"
            )
        if cells < loads.tokens.size:
            self.inferred = "greatest id in the table, and some cells have no row"
        return loads


def read(data: bytes) -> tuple[Loads, int]:
    """Read loads from the rows, and count these; cells without a row are 0.

    Windows are in order of first appearance, layers in ascending order; there are as
    many experts as the greatest expert id says. Further columns are ignored.

    Raises
    ------
    InputError
        Text that is not UTF-8 or not a table, a bad or repeated cell, or ids so great
        that the array would dwarf the table.
    """
    windows: dict[str, int] = {}
    cells: list[tuple[int, int, int]] = []
    values: list[float] = []
    lines: list[int] = []
    for line, (window, layer, expert, tokens) in _rows(decoded(data)):
        if not window:
            raise FormatError(f"line {line}, column window: empty; name the window")
        cells.append(
            (
                windows.setdefault(window, len(windows)),
                _whole(layer, line, "layer"),
                _whole(expert, line, "expert"),
            )
        )
        values.append(_count(tokens, line))
        lines.append(line)
    if not cells:
        raise FormatError("a table without rows: 0 windows; at least 1 is needed")

    window_at, layer_id, expert_at = np.array(cells, dtype=np.int64).T
    layer_ids, layer_at = np.unique(layer_id, return_inverse=True)
    shape = (len(windows), len(layer_ids), int(expert_at.max()) + 1)
    limit = max(_CELLS_ALWAYS, _CELLS_PER_ROW * len(lines))
    if math.prod(shape) > limit:
        raise FormatError(
            f"{len(lines)} row(s) would need {math.prod(shape)} cells "
            f"({shape[0]} windows x {shape[1]} layers x {shape[2]} experts), above the limit "
            f"of {limit} for so few rows; check the expert ids (greatest: {shape[2] - 1}) "
            "or save the array as .npz"
        )
    cell = (window_at * shape[1] + layer_at) * shape[2] + expert_at
    _refuse_repeats(cell, lines, cells, list(windows))
    array = np.zeros(math.prod(shape))
    array[cell] = values
    return Loads(array.reshape(shape), layer_ids, list(windows)), len(lines)


def _first_line(head: bytes) -> str:
    return next(iter(head.decode("utf-8-sig", errors="replace").splitlines()), "")


def _fields(line: str, mark: str = ",") -> list[str]:
    try:
        return _named(next(csv.reader([line], strict=True, delimiter=mark), []))
    except csv.Error:
        return []


def _named(header: list[str]) -> list[str]:
    fields = [field.strip().casefold() for field in header]
    return [_OTHER_NAMES.get(field, field) for field in fields]


def _rows(text: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield line number and the four fields of each row that is not blank."""
    table = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = _named(next(table))
        columns = _COLUMNS if "window" in header else _COLUMNS[1:]
        for column in columns:
            if header.count(column) != 1:
                raise FormatError(f"line 1 names column {column} {header.count(column)} times")
        at = [header.index(column) for column in columns]
        for row in table:
            if not row:
                continue
            if len(row) != len(header):
                raise FormatError(
                    f"line {table.line_num} has {len(row)} field(s) for {len(header)} columns; "
                    "the file may be truncated"
                )
            cells = [row[i].strip() for i in at]
            yield table.line_num, tuple(cells if len(cells) == len(_COLUMNS) else ["0", *cells])
    except csv.Error as error:
        raise FormatError(f"line {table.line_num} is damaged or truncated: {error}") from error


def _whole(text: str, line: int, column: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise FormatError(
            f"line {line}, column {column}: {text[:40]!r} is not a whole number from 0 "
            f"of at most {_MAX_DIGITS} digits"
        )
    return int(text)


def _count(text: str, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # float() takes 1_000 for 1000; a table that holds it was not meant so
    if not (math.isfinite(value) and value >= 0) or "_" in text:
        raise FormatError(
            f"line {line}, column tokens: {text[:40]!r} is not a finite number of at least 0"
        )
    return value


def _refuse_repeats(
    cell: IntArray, lines: list[int], cells: list[tuple[int, int, int]], windows: list[str]
) -> None:
    order = np.argsort(cell, kind="stable")
    repeats = order[1:][np.diff(cell[order]) == 0]
    if repeats.size:
        row = int(repeats.min())
        window, layer, expert = cells[row]
        raise FormatError(
            f"line {lines[row]} repeats the cell of window {windows[window]!r}, layer {layer}, "
            f"expert {expert}, first on line {lines[cells.index(cells[row])]}; "
            "add the rows up or name the windows apart"
        )
