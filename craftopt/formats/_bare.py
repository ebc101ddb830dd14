"""Arrays that no key names: loads, the choices of tokens, or experts per slot, by their values.

Loads are [windows, layers, experts] or [layers, experts]; vLLM's ``routed_experts`` is
[tokens, layers, k]; a map of slots is [layers, slots].
"""

from __future__ import annotations

import numpy as np

from craftopt.errors import FormatError
from craftopt.formats._contents import AnyArray, Contents, check_rank, plan_of
from craftopt.loads import Loads
from craftopt.plan import Plan
from craftopt.traces import Trace

# A bare array of whole numbers is taken for a token trace or a map of slots only where it is
# large enough, and its ids small enough, that loads do not look so by chance.
_ENOUGH_ROWS, _MOST_CHOICES, _MOST_EXPERTS, _ENOUGH_SLOTS = 8, 32, 4096, 8
# With one layer there are no sums to compare.
_ENOUGH_TOKENS, _FEW_EXPERTS = 64, 512


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
                f"{self.refusal('loads')}; if these are loads, save them as 'counts' in an .npz"
            )
        check_rank("the array", self._array.shape)
        return Loads(self._array)

    def trace(self, experts: int | None) -> Trace:
        """Take the array for a trace."""
        return self.active_trace(self._array, experts)

    def plan(self, gpus: int | None) -> Plan:
        """Take the array for a map of slots."""
        return plan_of(self._array, gpus)


def looks_like_trace(array: AnyArray) -> bool:
    """Tell whether an array [tokens, layers, k] holds different expert ids in every row.

    Recorded loads do not look so: all layers of a window share one sum, and hundreds of cells
    repeat values.
    """
    if array.ndim != 3 or array.dtype.kind not in "iu" or array.size == 0:
        return False
    choices = array.shape[2]
    if choices > _MOST_CHOICES or array.size < _ENOUGH_ROWS * choices:
        return False
    if array.min() < -1 or array.max() >= _MOST_EXPERTS:
        return False
    if choices == 1:
        return True  # loads of a single expert make no sense
    ordered = np.sort(array, axis=2)
    if ((ordered[:, :, 1:] == ordered[:, :, :-1]) & (ordered[:, :, 1:] >= 0)).any():
        return False
    if array.shape[1] == 1:
        return len(array) >= _ENOUGH_TOKENS and int(array.max()) < _FEW_EXPERTS
    sums = array.sum(axis=2, dtype=np.int64)
    return bool((sums != sums[:, :1]).any())


def looks_like_map(array: AnyArray) -> bool:
    """Tell whether an array [layers, slots] holds every expert id from 0 in every row."""
    if array.ndim != 2 or array.dtype.kind not in "iu" or array.shape[1] < _ENOUGH_SLOTS:
        return False
    least, most = int(array.min(initial=0)), int(array.max(initial=0))
    # Small counts reach 0, 1, 2, ... as well, but not up to half as many values as experts.
    if least < 0 or not array.shape[1] <= 2 * (most + 1) <= 2 * array.shape[1]:
        return False
    present = np.zeros((array.shape[0], most + 1), dtype=np.bool_)
    present[np.arange(array.shape[0])[:, np.newaxis], array.astype(np.int64)] = True
    return bool(present.all())
