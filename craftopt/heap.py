"""A binary heap of items by load, the heaviest on top.

Kept by hand: numba's ``heapq`` needs lists of tuples, and would break ties in another order.
"""

from __future__ import annotations

from typing import Final, cast

import numpy as np

from craftopt.jit import inner, njit
from craftopt.loads import FloatArray, IntArray

# The place of the heaviest item, and the gap of values of which few have changed. As literals they
# would have `sift_down` and `sort_places` compiled twice.
TOP: Final = cast("int", np.int64(0))
NEARLY: Final = cast("int", np.int64(2))


@njit()
def sift_down(heap: IntArray, load: FloatArray, place: int) -> None:
    """Restore the heap below a place after the item there became lighter."""
    item = heap[place]
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


@inner()
def sort(values: FloatArray) -> None:
    """Sort ascending, in place (Shell's method; numba's own sort takes seconds to compile)."""
    gap = values.size
    while gap > 1:
        gap = max(1, gap * 4 // 9)
        for place in range(gap, values.size):
            value, left = values[place], place - gap
            while left >= 0 and values[left] > value:
                values[left + gap] = values[left]
                left -= gap
            values[left + gap] = value


@inner()
def argsort(values: FloatArray) -> IntArray:
    """List the places of values, ascending, equal ones in their order; see `sort`."""
    order = np.empty(values.size, dtype=np.int64)
    for place in range(values.size):
        order[place] = place
    sort_places(order, values, values.size)
    return order


@inner()
def sort_places(order: IntArray, values: FloatArray, gap: int) -> None:
    """Sort places as `argsort` does, in place; from gap `NEARLY` where few have changed."""
    while gap > 1:
        gap = max(1, gap * 4 // 9)
        for at in range(gap, order.size):
            place, left = order[at], at - gap
            value = values[place]
            while left >= 0:
                other = order[left]
                if values[other] < value or (values[other] == value and other < place):
                    break
                order[left + gap] = other
                left -= gap
            order[left + gap] = place
