"""What people see of values: summaries and tables as text, as HTML in notebooks, as data frames."""

from __future__ import annotations

import html
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from craftopt.errors import InputError

_BARS = "▁▂▃▄▅▆▇█"


class Displayed:
    """Base of the values that a notebook shows as a table."""

    def summary(self) -> dict[str, str]:
        """Return what there is to say in words, for a table."""
        raise NotImplementedError

    def table(self) -> Table:
        """Lay the value out as a table."""
        return Table(type(self).__name__, (), tuple(self.summary().items()))

    def _repr_html_(self) -> str:
        return self.table().html()


@dataclass(frozen=True)
class Table:
    """Hold text by rows and columns, the first of which names the rows; pairs need no header.

    Examples
    --------
    >>> table = Table("plans", ("method", "gap"), [("fast", "3.1%"), ("eplb", "17.0%")])
    >>> print(table)
    plans
    method    gap
    fast     3.1%
    eplb    17.0%
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        heads = [name.split("\n") for name in self.header]
        depth = max(map(len, heads), default=0)
        lines = [*zip(*([""] * (depth - len(head)) + head for head in heads), strict=True)]
        lines += [tuple(row) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        align = str.rjust if self.header else str.ljust
        texts = [
            "  ".join([first.ljust(widths[0]), *map(align, others, widths[1:])]).rstrip()
            for first, *others in lines
        ]
        return "\n".join([*filter(None, [self.title]), *texts, *self.notes])

    def html(self) -> str:
        """Write the table as HTML: escaped, in the colours of the page that shows it."""
        side = "right" if self.header else "left"

        def row(cells: Sequence[str], tag: str) -> str:
            first, *others = (html.escape(cell) for cell in cells)
            style = f'style="text-align:{side};white-space:pre-line"'
            values = "".join(f"<{tag} {style}>{text}</{tag}>" for text in others)
            return f'<tr><th scope="row" style="text-align:left">{first}</th>{values}</tr>'

        head = f"<thead>{row(self.header, 'th')}</thead>" if self.header else ""
        body = "".join(row(cells, "td") for cells in self.rows)
        caption = '<caption style="text-align:left;white-space:pre-line">'
        return (
            f"<table>{caption}{html.escape(self.title)}</caption>{head}<tbody>{body}</tbody></table>"
            + "".join(f"<div>{html.escape(note)}</div>" for note in self.notes)
        )


def data_frame(rows: Iterable[Mapping[str, Any]]) -> Any:
    """Make a pandas data frame; what is nested gets columns like ``planned_balancedness``.

    Raises
    ------
    InputError
        pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError:
        raise InputError("to_frame needs pandas: pip install pandas") from None
    return pandas.DataFrame([_flat(row) for row in rows])


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    cells = {}
    for name, value in row.items():
        nested = isinstance(value, Mapping)
        cells.update(_flat(value, f"{prefix}{name}_") if nested else {prefix + name: value})
    return cells


def sparkline(values: npt.ArrayLike) -> str:
    """Draw one bar per value, from the least to the most.

    Examples
    --------
    >>> sparkline([0, 1, 2, 3])
    '▁▃▆█ (0 to 3)'
    """
    array = np.asarray(values, dtype=np.float64)
    low, high = float(array.min()), float(array.max())
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    bars = "".join(_BARS[round((value - low) * scale)] for value in array.tolist())
    return f"{bars} ({low:.3g} to {high:.3g})"
