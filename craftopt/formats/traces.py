"""Read token traces from files, recognised by content."""

from __future__ import annotations

from craftopt.formats import recognised, warn_of
from craftopt.formats._source import Source
from craftopt.traces import Trace


def read_trace(source: Source, experts: int | None = None) -> Trace:
    """Read a token trace from a file or folder, recognised by content.

    - ``.npz``: ``topk_ids`` (or ``routed_experts``) [tokens, layers, k], and if they are there
      ``layer_ids`` [layers], the domain of every token (``domain``, ``step`` or ``task``) with
      the ``domain_names`` (or ``step_names``), and the ``sequence`` (or ``seq``) of every token.
    - ``.npy`` and JSON: the ids alone, such as ``routed_experts`` of vLLM's outputs.
    - SGLang's recorder, mode ``per_token``: a ``.pt`` file, or the folder of all ranks' files.
      Slots are mapped back to experts, and refused where the map changed.

    Layers in which no token has an expert (-1 everywhere, as for dense layers) are dropped
    with a `CraftoptWarning`. Nothing is ever unpickled.

    Parameters
    ----------
    source : str, os.PathLike or binary stream
        Path of a file or folder, or a stream open for reading bytes.
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
    with recognised(source, "read_trace", "co.Trace takes arrays") as contents:
        trace, notes = contents.trace(experts), contents.notes
    warn_of(source, notes)
    return trace
