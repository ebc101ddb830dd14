"""Read loads from files: one module per format, recognised by content, never by name.

A format is a module with ``matches(head)`` and ``read(data)``, named in ``_FORMATS``.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import BinaryIO

from craftopt.errors import CraftoptWarning, FormatError, InputError
from craftopt.formats import csv_, json_, npy, npz
from craftopt.formats._arrays import shorten
from craftopt.loads import Loads

__all__ = ["read_loads"]

_FORMATS = (npz, npy, json_, csv_)
_READ = ".npz, .npy, JSON, and CSV with columns window, layer, expert, tokens"
_HEAD = 2**16  # bytes to recognise a format by, so that a foreign file is not read whole


def read_loads(source: str | os.PathLike[str] | BinaryIO) -> Loads:
    r"""Read expert loads from a file, whichever of the supported formats it is in.

    - ``.npz``: array ``counts``, else ``tokens``, [windows, layers, experts] or
      [layers, experts]; optional ``layer_ids`` [layers] and ``step_names`` (or
      ``window_names``) [windows].
    - ``.npy``: the array alone.
    - JSON: nested lists alone, or an object with the keys of ``.npz``.
    - CSV: a row per cell, columns ``window``, ``layer``, ``expert``, ``tokens`` in any
      order. Cells without a row are 0; experts are numbered from 0 to the greatest id, so
      give the last expert a row even if it is idle.

    Layers without a token in any window (dense layers, in many recorders) are dropped with
    a `CraftoptWarning`; windows without tokens are kept. Nothing is ever unpickled.

    Parameters
    ----------
    source : str, os.PathLike or binary stream
        Path of a file, or a stream open for reading bytes, such as ``sys.stdin.buffer``;
        a stream is read to its end and left open.

    Raises
    ------
    InputError
        A source that cannot be opened or read.
    FormatError
        A file that is damaged, unsafe or in another format, or whose values are not loads;
        the message names the file.

    Examples
    --------
    >>> import io
    >>> import craftopt as co
    >>> table = b"window,layer,expert,tokens\nchat,3,0,6\nchat,3,1,2\n"
    >>> loads = co.read_loads(io.BytesIO(table))
    >>> loads
    Loads(windows=1, layers=1, experts=2, tokens=8)
    >>> loads.layer_ids
    array([3])
    """
    name = _name(source)
    try:
        loads = _read(source)
        active = loads.tokens.any(axis=(0, 2))
        if not active.any():
            raise FormatError("holds no tokens: every cell of every window is 0")
        if not active.all():
            idle = loads.layer_ids[~active].tolist()
            warnings.warn(
                f"{name}: dropped {len(idle)} layer(s) without tokens, such as dense layers: "
                f"{shorten(idle)}",
                CraftoptWarning,
                stacklevel=2,
            )
            loads = Loads(loads.tokens[:, active], loads.layer_ids[active], loads.window_names)
    except InputError as error:
        raise FormatError(f"{name}: {error}") from error
    except (OSError, ValueError) as error:  # a closed stream and a NUL in a path: ValueError
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: cannot be read: {reason}") from error
    except MemoryError as error:
        raise InputError(f"{name}: does not fit into memory; split it by windows") from error
    return loads


def _name(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source) or "''"
    if not hasattr(source, "read"):
        raise InputError(
            "read_loads takes a path or a stream open for reading bytes, "
            f"not {type(source).__name__}; co.Loads takes arrays"
        )
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "<stream>"


def _read(source: str | os.PathLike[str] | BinaryIO) -> Loads:
    if not isinstance(source, str | os.PathLike):
        return _read_stream(source)
    path = Path(os.fsdecode(source))
    if path.is_dir():
        raise FormatError(f"is a folder, and folders are not read yet; pass a file ({_READ})")
    with path.open("rb") as stream:
        return _read_stream(stream)


def _read_stream(stream: BinaryIO) -> Loads:
    head = b""
    while len(head) < _HEAD:
        piece = stream.read(_HEAD - len(head))
        if not isinstance(piece, bytes):
            raise FormatError(f"gives {type(piece).__name__}, not bytes; open it in mode 'rb'")
        if not piece:
            break
        head += piece
    for module in _FORMATS:
        if module.matches(head):
            loads: Loads = module.read(head + stream.read())
            return loads
    raise FormatError(_refusal(head))


def _refusal(head: bytes) -> str:
    """Say why a file that no module recognises is not read."""
    if not head.strip():
        return f"is empty; craftopt reads {_READ}"
    if head.startswith(b"\x80"):
        return (
            "is a Python pickle, which can run code when it is opened, so craftopt never "
            "unpickles; save the array with numpy.save or numpy.savez"
        )
    if head.startswith(b"\x1f\x8b"):
        return "is compressed by gzip; decompress it first (gunzip)"
    first_line = head.splitlines()[0][:60]
    return f"is in no format that craftopt reads ({_READ}); it starts with {first_line!r}"
