"""Where files come from: a path or a stream, and errors that name it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from craftopt.errors import FormatError, InputError

Source = str | os.PathLike[str] | BinaryIO


def name_of(source: object, function: str, instead: str) -> str:
    """Name a path or stream in messages; refuse what is neither."""
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source) or "''"
    if not hasattr(source, "read"):
        raise InputError(
            f"{function} takes a path or a stream open for reading bytes, "
            f"not {type(source).__name__}; {instead}"
        )
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "<stream>"


@contextmanager
def errors_named(name: str) -> Iterator[None]:
    """Turn whatever reading raises into one error that names the source."""
    try:
        yield
    except InputError as error:
        raise FormatError(f"{name}: {error}") from error
    except (OSError, ValueError) as error:  # a closed stream and a NUL in a path: ValueError
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: cannot be read: {reason}") from error
    except MemoryError as error:
        raise InputError(f"{name}: does not fit into memory; split it") from error


@contextmanager
def opened(source: Source, reads: str) -> Iterator[BinaryIO]:
    """Open a path; leave a stream open."""
    if not isinstance(source, str | os.PathLike):
        yield source
        return
    path = Path(os.fsdecode(source))
    if path.is_dir():
        raise FormatError(f"is a folder, and folders are not read yet; pass a file ({reads})")
    with path.open("rb") as stream:
        yield stream


def read_head(stream: BinaryIO, size: int) -> bytes:
    """Read the first bytes, to recognise a format by, so that no foreign file is read whole."""
    head = b""
    while len(head) < size:
        piece = stream.read(size - len(head))
        if not isinstance(piece, bytes):
            raise FormatError(f"gives {type(piece).__name__}, not bytes; open it in mode 'rb'")
        if not piece:
            break
        head += piece
    return head
