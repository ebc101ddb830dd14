"""Layers side by side: each for itself, so that threads change nothing but the time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Found = TypeVar("Found")


def in_threads(work: Callable[[int], Found], count: int, workers: int) -> list[Found]:
    """Call ``work`` with 0, 1, ..., count - 1 and list what it returns, in that order."""
    if workers == 1:
        return [work(index) for index in range(count)]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, range(count)))
