"""What the searches of one layer share: the rules they keep and the schedule they cool by.

A change here is not noticed by numba's cache of the kernels in other files: delete the cache
(``NUMBA_CACHE_DIR``, or the ``__pycache__`` folders) after editing this file.
"""

from __future__ import annotations

from typing import Final, NamedTuple, cast

import numpy as np
from numba import njit

from craftopt.loads import IntArray
from craftopt.plan import Copies

# No slot, no expert. A literal -1 would have kernels compiled once for it and once for numbers.
NONE: Final = cast("int", np.int64(-1))


class Rules(NamedTuple):
    """What the copies of a layer must keep, whichever way they are exchanged.

    Every expert stays in the node where the start of the search has it.

    Parameters
    ----------
    nodes : int
        Nodes that copies do not leave; divides the GPUs.
    low, high : int
        Fewest and most copies of a GPU.
    copies_limit : int
        Most copies of an expert.
    """

    nodes: int
    low: int
    high: int
    copies_limit: int


class Schedule(NamedTuple):
    """Geometric cooling, and the mini-batch of windows that counts at a time.

    Parameters
    ----------
    steps : int
    hot, cold : float
        First and last temperature, in the unit of the cost.
    in_play : int
        Windows of a mini-batch; all of them where there are no more.
    """

    steps: int
    hot: float
    cold: float
    in_play: int = 1 << 62


@njit(cache=True, nogil=True)
def home_nodes(copies: Copies, nodes: int) -> IntArray:
    """Find the node of every expert, int64 [experts]: that of its first copy."""
    experts, gpus = copies.shape
    node_of = np.zeros(experts, dtype=np.int64)
    for expert in range(experts):
        for gpu in range(gpus):
            if copies[expert, gpu]:
                node_of[expert] = gpu // (gpus // nodes)
                break
    return node_of
