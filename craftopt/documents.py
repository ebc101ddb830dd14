"""Documents: versioned JSON with a table a row a line, and files written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from craftopt.errors import FormatError, InputError


def write_json(head: Mapping[str, Any], tables: Mapping[str, Iterable[Any]]) -> str:
    """Write fields, then tables with one row a line, so that two versions compare line by line.

    Examples
    --------
    >>> print(write_json({"format": "example", "version": 1}, {"rows": [[1, 2], [3]]}), end="")
    {
      "format": "example",
      "version": 1,
      "rows": [
        [1, 2],
        [3]
      ]
    }
    """
    parts = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for key, rows in tables.items():
        body = ",\n".join(f"    {json.dumps(row)}" for row in rows)
        parts.append(f"  {json.dumps(key)}: [\n{body}\n  ]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read_json(text: str, kind: str, format_name: str, version: int) -> dict[str, Any]:
    """Read a document and check its envelope.

    Parameters
    ----------
    text : str
    kind : str
        What a user calls it: "plan", "certificate", ...
    format_name : str
        What ``"format"`` must say.
    version : int
        What ``"version"`` must say.

    Raises
    ------
    FormatError
        No JSON, a document of another format, or of another version.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"this is no JSON: {error}") from None
    return check_envelope(document, kind, format_name, version)


def check_envelope(document: Any, kind: str, format_name: str, version: int) -> dict[str, Any]:
    """Return a document of the wanted format and version.

    Raises
    ------
    FormatError
        A document of another format, or of another version.
    """
    if not isinstance(document, dict) or document.get("format") != format_name:
        raise FormatError(f'this is no {kind}: the key "format" must be "{format_name}"')
    if document.get("version") != version:
        raise FormatError(
            f"the {kind} has version {document.get('version')!r}; "
            f"this craftopt reads version {version}"
        )
    return document


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one; text in UTF-8.

    Raises
    ------
    InputError
        The folder is missing or may not be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}") from None
