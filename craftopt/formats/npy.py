"""``.npy``: one array, of loads, of the choices of tokens, or of experts per slot.

Loads are [windows, layers, experts] or [layers, experts]; vLLM's ``routed_experts`` is
[tokens, layers, k]; a map of slots is [layers, slots].
"""

from __future__ import annotations

from typing import BinaryIO

from craftopt.errors import FormatError
from craftopt.formats._arrays import (
    NPY_MAGIC,
    AnyArray,
    check_rank,
    looks_like_map,
    looks_like_trace,
    parse_npy,
    plan_of,
)
from craftopt.formats._contents import Contents
from craftopt.formats._tokens import active_trace
from craftopt.loads import Loads
from craftopt.plan import Plan
from craftopt.traces import Trace


def matches(head: bytes) -> bool:
    """Tell from its first bytes whether a file is ``.npy``."""
    return head.startswith(NPY_MAGIC)


def recognise(stream: BinaryIO) -> Contents:
    """Read the array, and judge by its values what it is.

    Raises
    ------
    InputError
        A damaged file.
    """
    return BareArray("an array", parse_npy(stream.read()))


class BareArray(Contents):
    """An array that no key names; layers and windows are numbered from 0."""

    def __init__(self, name: str, array: AnyArray) -> None:
        if looks_like_trace(array):
            super().__init__(f"{name} of expert ids per token (such as routed_experts)", "trace")
        elif looks_like_map(array):
            super().__init__(f"{name} of experts per slot (phy2log)", "plan")
        else:
            super().__init__(name, "loads")
        self._array = array

    def loads(self) -> Loads:
        """Take the array for loads, unless it looks like something else.

        Raises
        ------
        InputError
            An array that is not loads.
        """
        if self.kind != "loads":
            raise FormatError(
                f"{self._refusal('loads')}; if these are loads, save them as 'counts' in an .npz"
            )
        check_rank("the array", self._array.shape)
        return Loads(self._array)

    def trace(self, experts: int | None) -> Trace:
        """Take the array for a trace."""
        return active_trace(self.notes, self._array, experts)

    def plan(self, gpus: int | None) -> Plan:
        """Take the array for a map of slots."""
        return plan_of(self._array, gpus)
