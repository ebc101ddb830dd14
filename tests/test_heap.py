"""Sorting by kernels is numpy's stable sorting."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from craftopt.heap import argsort, sort, sort_places
from craftopt.jit import njit


@njit()
def sorted_by_kernels(values, changed):
    order = argsort(values)
    again = order.copy()
    sort_places(again, changed, 2)
    in_place = values.copy()
    sort(in_place)
    return order, again, in_place


@given(st.lists(st.integers(0, 9), max_size=40), st.randoms())
def test_kernels_sort_as_numpy_does_stably(numbers, random):
    values = np.array(numbers, dtype=np.float64)
    changed = values.copy()
    for place in random.sample(range(values.size), min(2, values.size)):
        changed[place] = random.randint(0, 9)
    order, again, in_place = sorted_by_kernels(values, changed)
    assert order.tolist() == np.argsort(values, kind="stable").tolist()
    assert again.tolist() == np.argsort(changed, kind="stable").tolist()
    assert in_place.tolist() == sorted(numbers)
