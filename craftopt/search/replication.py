"""Greedy min-max replication: which experts of a layer get the extra copies."""

from __future__ import annotations

import numpy as np

from craftopt.heap import TOP, argsort, sift_down
from craftopt.jit import njit
from craftopt.loads import FloatArray, IntArray


@njit()
def replicate(weight: FloatArray, replicas: int, copies_limit: int) -> IntArray:
    """Copy the expert with the heaviest copies, ``replicas`` times over.

    No choice of copies has a lighter heaviest copy (`craftopt.bounds.max_copy_load`). An
    expert at its limit is passed over.

    Parameters
    ----------
    weight : float64 [experts]
    replicas : int
        At most ``experts * (copies_limit - 1)``.
    copies_limit : int
        Most copies of one expert.

    Returns
    -------
    int64 [experts]
        Copies of every expert.
    """
    heap = argsort(-weight)
    load = weight.copy()
    count = np.ones(weight.size, dtype=np.int64)
    for _ in range(replicas):
        while count[heap[0]] == copies_limit:
            load[heap[0]] = -1.0
            sift_down(heap, load, TOP)
        top = heap[0]
        count[top] += 1
        load[top] = weight[top] / count[top]
        sift_down(heap, load, TOP)
    return count
