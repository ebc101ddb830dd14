"""Documents: versioned JSON with a table a row a line, and files written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from craftopt.errors import FormatError, InputError

# In bytes, with room for what `write_atomically` adds.
_LONGEST_NAME, _LONGEST_PATH = 200, 4000


def write_json(document: Mapping[str, Any], tables: Mapping[str, int]) -> str:
    """Write a document with its tables a row a line, so that two versions compare line by line.

    Parameters
    ----------
    document : mapping
        A field a line, in this order.
    tables : mapping
        Fields that are tables, and how deep in them a line's row lies: 1 for a list of rows, 2 for
        a list of such lists.

    Examples
    --------
    >>> print(write_json({"rows": [[1, 2], [3]], "format": "example"}, {"rows": 1}), end="")
    {
      "rows": [
        [1, 2],
        [3]
      ],
      "format": "example"
    }
    """
    fields = (
        f"  {json.dumps(key)}: {_text(value, tables.get(key, 0), margin=2)}"
        for key, value in document.items()
    )
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _text(value: Any, depth: int, margin: int) -> str:
    if depth == 0 or not isinstance(value, list | tuple) or not value:
        return json.dumps(value)
    rows = (" " * (margin + 2) + _text(row, depth - 1, margin + 2) for row in value)
    return "[\n" + ",\n".join(rows) + "\n" + " " * margin + "]"


def read_json(text: str) -> Any:
    """Read JSON.

    Raises
    ------
    FormatError
        Text that is no JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"this is no JSON: {error}") from None


def check_envelope(document: Any, kind: str, format_name: str, version: int) -> dict[str, Any]:
    """Return a document of the wanted format and version.

    Parameters
    ----------
    document
        What `read_json` returned.
    kind : str
        What a user calls it: "plan", "certificate", ...
    format_name, version : str and int
        What ``"format"`` and ``"version"`` must say.

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


def check_writable(path: str | os.PathLike[str]) -> None:
    """Check that `write_atomically` can write a file, before the work whose result it is to hold.

    Raises
    ------
    InputError
        A folder or device, or a folder that is missing or may not be written.
    """
    target = Path(path)
    reason = ""
    if len(os.fsencode(target.name)) > _LONGEST_NAME or len(os.fsencode(target)) > _LONGEST_PATH:
        reason = "its name is too long"
        target = Path(f"{os.fspath(target)[:40]}...")
    elif target.is_dir():
        reason = f"it is a folder; name a file, such as {target / 'plan.json'}"
    elif target.exists() and not target.is_file():
        reason = "it is no file"
    elif not target.parent.is_dir():
        reason = f"there is no folder {target.parent}; make it first"
    elif not os.access(target.parent, os.W_OK | os.X_OK):
        reason = f"the folder {target.parent} may not be written"
    if reason:
        raise InputError(f"cannot write {target}: {reason}")


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


def write_sealed(path: Path, name: bytes, content: bytes) -> None:
    """Write a file of a cache, so that `read_sealed` knows what it belongs to and if it is whole.

    Raises
    ------
    InputError
        As `write_atomically`.
    """
    write_atomically(path, hashlib.sha256(name + content).digest() + content)


def read_sealed(path: Path, name: bytes) -> bytes | None:
    """Read what `write_sealed` wrote under this name; None if it is missing, damaged or other's."""
    try:
        held = path.read_bytes()
    except OSError:
        return None
    seal, content = held[:32], held[32:]
    return content if hashlib.sha256(name + content).digest() == seal else None
