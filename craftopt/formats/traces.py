"""Read token traces from files: ``.npz`` with ``topk_ids`` [tokens, layers, k]."""

from __future__ import annotations

import warnings
from typing import BinaryIO

import numpy as np

from craftopt.errors import CraftoptWarning, FormatError
from craftopt.formats import npz
from craftopt.formats._arrays import AnyArray, shorten
from craftopt.formats._source import Source, errors_named, name_of, opened, read_head
from craftopt.traces import Trace

_HEAD = 8  # bytes to recognise a format by, so that a foreign file is not read whole
_ALIASES = {
    "domain": ("domain", "step", "task"),
    "domain_names": ("domain_names", "step_names"),
    "sequence": ("sequence", "seq"),
}


def read_trace(source: Source, experts: int | None = None) -> Trace:
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
    name = name_of(source, "read_trace", "co.Trace takes arrays")
    dropped = ""
    with errors_named(name):
        with opened(source, "an .npz file") as stream:
            arrays = _read(stream)
        ids, layer_ids = arrays["topk_ids"], arrays.get("layer_ids")
        # Kinds and ranks that are wrong are left for Trace to name.
        if ids.ndim == 3 and ids.dtype.kind == "i":
            active = (ids >= 0).any(axis=(0, 2))
            if active.any() and not active.all():
                numbers = np.arange(ids.shape[1])
                if layer_ids is not None and layer_ids.shape == numbers.shape:
                    numbers = layer_ids
                dropped = shorten(numbers[~active].tolist())
                ids, layer_ids = ids[:, active], numbers[active]
        names = arrays.get("domain_names")
        trace = Trace(
            ids,
            experts,
            layer_ids,
            arrays.get("domain"),
            None if names is None else npz.texts("domain_names", names),
            arrays.get("sequence"),
        )
    if dropped:
        warnings.warn(
            f"{name}: dropped layers without experts, such as dense layers: {dropped}",
            CraftoptWarning,
            stacklevel=2,
        )
    return trace


def _read(stream: BinaryIO) -> dict[str, AnyArray]:
    """Read the arrays of the archive that traces use."""
    head = read_head(stream, _HEAD)
    if not npz.matches(head):
        raise FormatError(
            f"is no .npz file with 'topk_ids' [tokens, layers, k]; it starts with {head!r}"
        )
    archive = npz.Archive(head + stream.read())
    if "topk_ids" not in archive.keys:
        if archive.keys & {"counts", "tokens"}:
            raise FormatError("holds loads, not a token trace; co.read_loads reads loads")
        raise FormatError(
            f"does not hold 'topk_ids'; its arrays are {shorten(sorted(archive.keys))}"
        )
    wanted = {"topk_ids": ("topk_ids",), "layer_ids": ("layer_ids",), **_ALIASES}
    arrays = {}
    for name, aliases in wanted.items():
        key = next((alias for alias in aliases if alias in archive.keys), None)
        if key is not None:
            arrays[name] = archive.array(key)
    return arrays
