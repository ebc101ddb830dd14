"""Token traces as the recorders leave them: with layers in which no token has an expert."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from craftopt.formats._arrays import AnyArray, shorten
from craftopt.traces import Trace


def active_trace(
    notes: list[str],
    ids: AnyArray,
    experts: int | None,
    layer_ids: AnyArray | None = None,
    domain: AnyArray | None = None,
    domain_names: Sequence[str] | None = None,
    sequence: AnyArray | None = None,
) -> Trace:
    """Make a trace of the layers that have experts; note which were dropped."""
    # Kinds and ranks that are wrong are left for Trace to name.
    if ids.ndim == 3 and ids.dtype.kind == "i":
        active = (ids >= 0).any(axis=(0, 2))
        if active.any() and not active.all():
            numbers = np.arange(ids.shape[1])
            if layer_ids is not None and layer_ids.shape == numbers.shape:
                numbers = layer_ids
            dropped = shorten(numbers[~active].tolist())
            notes.append(f"dropped layers without experts, such as dense layers: {dropped}")
            ids, layer_ids = ids[:, active], numbers[active]
    return Trace(ids, experts, layer_ids, domain, domain_names, sequence)
