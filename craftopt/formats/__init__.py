"""Read loads from files: one module per format, recognised by content, never by name.

A format is a module with ``matches(head)`` and ``read(data)``, named in ``_FORMATS``.
"""

from __future__ import annotations

import warnings
from typing import BinaryIO

from craftopt.errors import CraftoptWarning, FormatError
from craftopt.formats import csv_, json_, npy, npz
from craftopt.formats._arrays import shorten
from craftopt.formats._source import Source, errors_named, name_of, opened, read_head
from craftopt.loads import Loads

__all__ = ["read_loads"]

_FORMATS = (npz, npy, json_, csv_)
_READ = ".npz, .npy, JSON, and CSV with columns window, layer, expert, tokens"
_HEAD = 2**16  # bytes to recognise a format by, so that a foreign file is not read whole


def read_loads(source: Source) -> Loads:
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
    name = name_of(source, "read_loads", "co.Loads takes arrays")
    with errors_named(name):
        with opened(source, _READ) as stream:
            loads = _read(stream)
        active = loads.tokens.any(axis=(0, 2))
        if not active.any():
            raise FormatError("holds no tokens: every cell of every window is 0")
        if active.all():
            return loads
        idle = loads.layer_ids[~active].tolist()
        kept = Loads(loads.tokens[:, active], loads.layer_ids[active], loads.window_names)
    warnings.warn(
        f"{name}: dropped {len(idle)} layer(s) without tokens, such as dense layers: "
        f"{shorten(idle)}",
        CraftoptWarning,
        stacklevel=2,
    )
    return kept


def _read(stream: BinaryIO) -> Loads:
    head = read_head(stream, _HEAD)
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
