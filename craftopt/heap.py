"""A binary heap of items by load, the heaviest on top.

Kept by hand: numba's ``heapq`` needs lists of tuples, and would break ties in another order.
"""

from __future__ import annotations

from numba import njit

from craftopt.loads import FloatArray, IntArray


@njit(cache=True)
def sift_down(heap: IntArray, load: FloatArray) -> None:
    """Restore the heap after its top became lighter."""
    item = heap[0]
    place = 0
    while True:
        child = 2 * place + 1
        if child >= heap.size:
            break
        if child + 1 < heap.size and load[heap[child + 1]] > load[heap[child]]:
            child += 1
        if load[heap[child]] <= load[item]:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = item
