"""What sending costs where links differ: between racks, over rails, or inside a node."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from craftopt.errors import InputError
from craftopt.loads import FloatArray, as_array, read_only

# Rules under which the GPU of a choice follows from the expert and the token's home alone.
LINK_RULES = ("even", "nearest", "nearest-even")


def valid_link_cost(link_cost: npt.ArrayLike, gpus: int, nodes: int) -> FloatArray:
    """Check a matrix of costs, and spell one of nodes out for their GPUs, [gpus, gpus].

    Raises
    ------
    InputError
        A matrix of another shape, or costs that are negative or not finite.
    """
    cost = as_array("link_cost", link_cost)
    if cost.dtype.kind not in "iuf" or cost.shape not in {(gpus, gpus), (nodes, nodes)}:
        raise InputError(
            f"link_cost has shape {cost.shape} and type {cost.dtype}; pass numbers for every pair "
            f"of GPUs, shape ({gpus}, {gpus}), or of nodes, ({nodes}, {nodes})"
        )
    if not np.isfinite(cost).all() or cost.min() < 0:
        raise InputError("link_cost holds costs that are negative or not finite; pass 0 or more")
    width = gpus // len(cost)
    return read_only(cost.astype(np.float64).repeat(width, axis=0).repeat(width, axis=1))
