"""Arrays that no key names: loads, the choices of tokens, or experts per slot, by their values.

Loads are [windows, layers, experts] or [layers, experts]; vLLM's ``routed_experts`` is
[tokens, layers, k]; a map of slots is [layers, slots], or [slots] for all layers alike.
"""

from __future__ import annotations

import numpy as np

from craftopt.errors import FormatError
from craftopt.formats._contents import (
    WORDS,
    AnyArray,
    Contents,
    Kind,
    check_rank,
    plan_of,
    with_gpus,
    written,
)
from craftopt.loads import Loads
from craftopt.plan import Plan
from craftopt.traces import Trace, repeated

# A bare array of whole numbers is taken for a token trace or a map of slots only where it is
# large enough, and its ids small enough, that loads do not look so by chance.
_ENOUGH_ROWS, _MOST_CHOICES, _MOST_EXPERTS, _ENOUGH_SLOTS = 8, 32, 4096, 8
# With one layer there are no sums to compare.
_ENOUGH_TOKENS, _FEW_EXPERTS = 64, 512
_MOST_IDS = 0.75  # of which a table of ids, and hardly one of counts, holds as many
_DAMAGED = 0.1  # of a trace's rows, which may have one expert twice
_MOST_LAYERS = 256  # of a model; more rows of two dimensions are windows or tokens

_NAMES = {
    "loads": "",
    "trace": " of expert ids per token (such as routed_experts)",
    "plan": " of experts per slot (phy2log)",
}


class BareArray(Contents):
    """An array that no key names; layers and windows are numbered from 0.

    What its values do not tell, `take_as` has to say: nothing is taken for loads by default.
    """

    def __init__(self, name: str, array: AnyArray) -> None:
        self._array = as_whole(array)
        self._what, self._possible = name, _kinds_of(self._array)
        super().__init__(name + _NAMES[self._possible[0]], self._possible[0])

    def take_as(self, kind: Kind | None) -> None:
        """Settle what the array is; without a word from the caller, its values must tell.

        Raises
        ------
        FormatError
            Values that may be one thing or another.
        """
        if kind is not None and kind in _NAMES:
            self.kind, self.name = kind, self._what + _NAMES[kind]
        elif kind is None and len(self._possible) > 1:
            either = " or ".join(WORDS[other] for other in self._possible)
            raise FormatError(
                f"is {self._what} of shape {self._array.shape}, which may hold {either}; say which "
                f"with --as {' or --as '.join(self._possible)} (kind= in co.read_loads), or save "
                "it in an .npz as 'counts', 'topk_ids' or 'phy2log'"
            )
        else:
            super().take_as(kind)

    def loads(self) -> Loads:
        """Take the array for loads, unless it looks like something else.

        Raises
        ------
        InputError
            An array that is not loads.
        """
        if self.kind != "loads":
            raise FormatError(
                f"{self.refusal('loads')}; if these are loads, pass --as loads (kind='loads'), or "
                "save them as 'counts' in an .npz"
            )
        check_rank(f"the {self._what.split()[-1]}", self._array.shape)
        return Loads(self._array)

    def trace(self, experts: int | None) -> Trace:
        """Take the array for a trace; two dimensions are the tokens of one layer."""
        ids = self._array
        return self.active_trace(ids[:, np.newaxis] if ids.ndim == 2 else ids, experts)

    def plan(self, gpus: int | None) -> Plan:
        """Take the array for a map of slots; one for all layers makes a plan of one layer."""
        if self._array.ndim == 3:  # GPU by GPU
            layers, devices, _ = self._array.shape
            return with_gpus(plan_of(self._array.reshape(layers, -1), devices), gpus)
        return self.plan_of_slots(self._array, gpus)


def as_whole(array: AnyArray) -> AnyArray:
    """Make whole numbers of floating-point ones that hold nothing else."""
    if array.dtype.kind != "f":
        return array
    values = array.astype(np.float64)
    whole = (np.abs(values) < 2**53).all() and (values % 1 == 0).all()
    return values.astype(np.int64) if whole else array


def _kinds_of(array: AnyArray) -> tuple[Kind, ...]:
    """List what the values may be; one kind where they tell."""
    if array.size == 0 or not 1 <= array.ndim <= 3 or array.dtype.kind not in "iuf":
        return ("loads",)
    if array.dtype.kind == "f":  # weights of a token's choices are sorted; hundreds of cells never
        with np.errstate(invalid="ignore"):  # inf - inf; loads refuse it
            rows = np.diff(array.reshape(-1, array.shape[-1]), axis=1)
        few = len(rows) >= _ENOUGH_ROWS and 2 < array.shape[-1] <= _MOST_CHOICES
        return ("loads", "trace") if few and (rows <= 0).all() else ("loads",)
    kinds = _kinds(array)
    if kinds == ("loads",) and array.ndim > 1:
        if array.min() == -1 and (array == -1).sum() > 1:  # empty slots, places without expert
            return ("plan", "trace")
        # The greatest value in several places of a row may fill up those that are not used.
        top = array == array.max()
        if array.shape[-1] <= _MOST_CHOICES and (top.sum(axis=-1) > 1).any():
            rest = np.where(top, -1, array.astype(np.int64))
            if "trace" in _kinds(rest):
                return ("loads", "trace")
    return kinds


def _kinds(array: AnyArray) -> tuple[Kind, ...]:
    share = _ids_present(array)
    if share == 1:
        # Small counts reach 0, 1, 2, ... as well, but not up to half as many values as experts.
        slots = array.size if array.ndim == 1 else array.size // len(array)
        if array.ndim == 1 or _ENOUGH_SLOTS <= slots <= 2 * (int(array.max()) + 1):
            return ("plan",)
        if array.ndim == 2:
            return ("loads", "plan")
    if share >= _MOST_IDS and array.ndim == 2 and array.shape[-1] >= _ENOUGH_SLOTS:
        return ("loads", "plan")  # a map that lacks experts
    if array.ndim == 1 or array.shape[-1] > _MOST_CHOICES:
        return ("loads",)
    if array.min() < -1 or array.max() >= _MOST_EXPERTS:
        return ("loads",)
    return _kinds_of_tokens(array) if array.ndim == 3 else _kinds_of_rows(array)


def _ids_present(array: AnyArray) -> float:
    """Return the share of expert ids from 0 on that every layer holds, 1 for a map of slots."""
    table = array.reshape(1 if array.ndim == 1 else len(array), -1)
    most = int(table.max())
    if int(table.min()) != 0 or not 0 < most < table.shape[1]:
        return 0.0
    present = np.zeros((len(table), most + 1), dtype=np.bool_)
    present[np.arange(len(table))[:, np.newaxis], table.astype(np.int64)] = True
    return float(present.mean(axis=1).min())


def _kinds_of_tokens(array: AnyArray) -> tuple[Kind, ...]:
    """Tell loads from a trace, [tokens, layers, k] with different ids in every row.

    Recorded loads do not look so: all layers of a window share one sum, and hundreds of cells
    repeat values. Rows of dense layers and of tokens that were not written say nothing.
    """
    held = written(array)
    if array.shape[2] == 1:  # loads of a single expert make no sense
        return ("trace",)
    if not held.any():
        return ("loads",)
    sums = array.sum(axis=2, dtype=np.int64)
    least = np.where(held, sums, np.iinfo(np.int64).max).min(axis=1)
    most = np.where(held, sums, -1).max(axis=1)
    several = bool((held.sum(axis=1) > 1).any())
    differ = bool((least < most).any())
    # Layers that choose alike, as with dummy weights, have one sum, too.
    if several and not differ and not (array == array[:, :1]).all():
        return ("loads",)
    rows = array[held]
    if _repeating(rows) > _DAMAGED:
        return ("loads",)
    if differ:
        sure = len(rows) >= _ENOUGH_ROWS
    else:
        sure = not several and len(rows) >= _ENOUGH_TOKENS and int(rows.max()) < _FEW_EXPERTS
    return ("trace",) if sure and not repeated(rows).any() else ("loads", "trace")


def _kinds_of_rows(array: AnyArray) -> tuple[Kind, ...]:
    """Tell loads [layers, experts], of which all layers share one sum, from rows of tokens."""
    if len(array) > _MOST_LAYERS:
        return ("loads", "trace")
    sums = array.sum(axis=1, dtype=np.int64)
    alike = len(array) < _ENOUGH_ROWS or (sums == sums[0]).all() or _repeating(array) >= 0.5
    return ("loads",) if alike else ("loads", "trace")


def _repeating(rows: AnyArray) -> float:
    """Return the share of rows that repeat a value, but for those that fill unused places."""
    filled = np.where((rows == 0) | (rows == np.iinfo(rows.dtype).max), -1, rows.astype(np.int64))
    return float(repeated(filled).mean())
