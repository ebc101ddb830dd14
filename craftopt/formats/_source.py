"""Where files come from: a path or a stream, and errors that name it."""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from craftopt.errors import FormatError, InputError
from craftopt.formats._text import shorten

Source = str | os.PathLike[str] | BinaryIO

_HEAD = 2**16  # bytes to recognise a format by, so that a foreign file is not read whole


def name_of(source: object, function: str, instead: str) -> str:
    """Name a path or stream in messages; refuse what is neither."""
    if isinstance(source, str | os.PathLike):
        if not os.fsdecode(source):  # which would be the current folder
            raise InputError("the path is empty; pass that of a file or folder")
        return os.fsdecode(source)
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
def opened(source: Source) -> Iterator[BinaryIO]:
    """Open a path; leave a stream open."""
    if isinstance(source, str | os.PathLike):
        with Path(os.fsdecode(source)).open("rb") as stream:
            yield stream
    else:
        yield source


def read_head(stream: BinaryIO) -> bytes:
    """Read the first bytes, to recognise a format by, so that no foreign file is read whole."""
    head = b""
    while len(head) < _HEAD:
        piece = stream.read(_HEAD - len(head))
        if not isinstance(piece, bytes):
            raise FormatError(f"gives {type(piece).__name__}, not bytes; open it in mode 'rb'")
        if not piece:
            break
        head += piece
    return head


def rewound(source: Source, stream: BinaryIO, head: bytes) -> BinaryIO:
    """Return the bytes from the first on, seekable: a file as it is, a stream read to its end."""
    if isinstance(source, str | os.PathLike):
        try:
            stream.seek(0)
        except OSError:  # a named pipe
            return io.BytesIO(head + stream.read())
        return stream
    return io.BytesIO(head + stream.read())


def size_of(stream: BinaryIO) -> int:
    """Return the bytes of a seekable stream, and rewind it."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    return size


def check_ranks(ranks: Collection[int], where: str = "") -> None:
    """Refuse a recording without the files of some ranks.

    Raises
    ------
    FormatError
        Ranks from 0 to the highest that are missing; the message begins with ``where``.
    """
    highest = max(ranks, default=0)
    missing = sorted(set(range(highest + 1)) - set(ranks))
    if missing:
        raise FormatError(
            f"{where}there is no file of rank {shorten(missing)}; "
            f"pass the files of all ranks, 0 to {highest}"
        )
