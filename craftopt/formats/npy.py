"""``.npy``: one array [windows, layers, experts] or [layers, experts]."""

from __future__ import annotations

from craftopt.formats._arrays import NPY_MAGIC, check_rank, parse_npy
from craftopt.loads import Loads


def matches(head: bytes) -> bool:
    """Tell from its first bytes whether a file is ``.npy``."""
    return head.startswith(NPY_MAGIC)


def read(data: bytes) -> Loads:
    """Read the array as loads; layers and windows are numbered from 0.

    Raises
    ------
    InputError
        A damaged file, or an array that is not loads.
    """
    tokens = parse_npy(data)
    check_rank("the array", tokens.shape)
    return Loads(tokens)
