"""Read token traces from files: ``.npz`` with ``topk_ids`` [tokens, layers, k]."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from craftopt.errors import CraftoptWarning, FormatError, InputError
from craftopt.formats import npz
from craftopt.formats._arrays import AnyArray, parse_npy, shorten
from craftopt.formats.npz import _content, _names
from craftopt.traces import Trace

_HEAD = 8  # bytes to recognise a format by, so that a foreign file is not read whole
_ALIASES = {
    "domain": ("domain", "step", "task"),
    "domain_names": ("domain_names", "step_names"),
    "sequence": ("sequence", "seq"),
}


def read_trace(source: str | os.PathLike[str] | BinaryIO, experts: int | None = None) -> Trace:
    """Read a token trace from an ``.npz`` file, recognised by content.

    Its arrays are ``topk_ids`` [tokens, layers, k], and if they are there ``layer_ids``
    [layers], the domain of every token (``domain``, ``step`` or ``task``) with the
    ``domain_names`` (or ``step_names``), and the ``sequence`` (or ``seq``) of every token.
    Layers in which no token has an expert (-1 everywhere, as for dense layers) are dropped
    with a `CraftoptWarning`. Nothing is ever unpickled.

    Parameters
    ----------
    source : str, os.PathLike or binary stream
        Path of a file, or a stream open for reading bytes.
    experts : int, optional
        Logical experts per layer; the highest id in the trace plus 1 by default.

    Raises
    ------
    InputError
        A source that cannot be opened or read.
    FormatError
        A file that is damaged, unsafe or in another format, or whose values are no trace;
        the message names the file.

    Examples
    --------
    >>> import io
    >>> import numpy as np
    >>> import craftopt as co
    >>> file = io.BytesIO()
    >>> np.savez(file, topk_ids=[[[0, 2]], [[1, 2]]], seq=[0, 1])
    >>> _ = file.seek(0)
    >>> co.read_trace(file).by_sequence().tokens[:, 0]
    array([[1., 0., 1.],
           [0., 1., 1.]])
    """
    name = _name(source)
    try:
        arrays = _arrays(_bytes(source))
        ids, layer_ids = arrays["topk_ids"], arrays.get("layer_ids")
        # Kinds and ranks that are wrong are left for Trace to name.
        if ids.ndim == 3 and ids.dtype.kind == "i":
            active = (ids >= 0).any(axis=(0, 2))
            if active.any() and not active.all():
                numbers = np.arange(ids.shape[1])
                if layer_ids is not None and layer_ids.shape == numbers.shape:
                    numbers = layer_ids
                warnings.warn(
                    f"{name}: dropped {(~active).sum()} layer(s) without experts, such as dense "
                    f"layers: {shorten(numbers[~active].tolist())}",
                    CraftoptWarning,
                    stacklevel=2,
                )
                ids, layer_ids = ids[:, active], numbers[active]
        domain, names = arrays.get("domain"), arrays.get("domain_names")
        return Trace(
            ids,
            experts,
            layer_ids,
            domain,
            None if names is None else _names("domain_names", names),
            arrays.get("sequence"),
        )
    except InputError as error:
        raise FormatError(f"{name}: {error}") from error
    except (OSError, ValueError) as error:  # a closed stream and a NUL in a path: ValueError
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: cannot be read: {reason}") from error
    except MemoryError as error:
        raise InputError(f"{name}: does not fit into memory; split it by tokens") from error


def _name(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source) or "''"
    if not hasattr(source, "read"):
        raise InputError(
            "read_trace takes a path or a stream open for reading bytes, "
            f"not {type(source).__name__}; co.Trace takes arrays"
        )
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "<stream>"


def _bytes(source: str | os.PathLike[str] | BinaryIO) -> bytes:
    if not isinstance(source, str | os.PathLike):
        return _bytes_of(source)
    path = Path(os.fsdecode(source))
    if path.is_dir():
        raise FormatError("is a folder; pass an .npz file")
    with path.open("rb") as stream:
        return _bytes_of(stream)


def _bytes_of(stream: BinaryIO) -> bytes:
    head = stream.read(_HEAD)
    if not isinstance(head, bytes):
        raise FormatError(f"gives {type(head).__name__}, not bytes; open it in mode 'rb'")
    if not npz.matches(head):
        raise FormatError(
            f"is no .npz file with 'topk_ids' [tokens, layers, k]; it starts with {head!r}"
        )
    return head + stream.read()


def _arrays(data: bytes) -> dict[str, AnyArray]:
    """Return the arrays of the archive that traces use; others are not even decompressed."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        entries = {info.filename: info for info in archive.infolist()}
    except Exception as error:  # zipfile raises a dozen types on damaged archives
        raise FormatError(f"damaged or truncated zip archive: {error}") from error
    keys = {name.removesuffix(".npy") for name in entries if name.endswith(".npy")}
    if any(name.endswith(".pkl") for name in entries):
        raise FormatError(
            "a zip archive around a pickle, as PyTorch writes, which can run code when it is "
            "opened, so craftopt never unpickles; save the arrays with numpy.savez"
        )
    if "topk_ids" not in keys:
        if keys & {"counts", "tokens"}:
            raise FormatError("holds loads, not a token trace; co.read_loads reads loads")
        raise FormatError(
            f"does not hold 'topk_ids'; its arrays are {shorten(sorted(keys)) or 'none'}"
        )
    wanted = {"topk_ids": ("topk_ids",), "layer_ids": ("layer_ids",), **_ALIASES}
    arrays = {}
    for name, aliases in wanted.items():
        key = next((alias for alias in aliases if alias in keys), None)
        if key is None:
            continue
        try:
            arrays[name] = parse_npy(_content(archive, entries[f"{key}.npy"], len(data)))
        except FormatError as error:
            raise FormatError(f"array {key!r}: {error}") from error
    return arrays
