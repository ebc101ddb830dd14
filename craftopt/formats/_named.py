"""Arrays under names: loads, a token trace, a map of slots or pair counts, wherever they stand."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import numpy as np

from craftopt.coactivation import COACTIVATION_KEYS, Coactivation
from craftopt.errors import FormatError
from craftopt.formats._bare import as_whole
from craftopt.formats._contents import AnyArray, Contents, Kind, check_rank
from craftopt.formats._text import brief, shorten
from craftopt.loads import Loads
from craftopt.plan import Plan
from craftopt.slot_tables import to_logical
from craftopt.traces import Trace

# craftopt's own names, then those of SGLang, vLLM and DeepSeek's EPLB.
KEYS: dict[Kind, tuple[str, ...]] = {
    "coactivation": ("pairs",),
    "loads": ("counts", "tokens", "logical_count", "weight", "physical_count"),
    "trace": ("topk_ids", "routed_experts"),
    "plan": ("phy2log", "physical_to_logical_map", "p2l_map"),
}
_COLUMNS = {
    "domain": ("domain", "step", "task"),
    "domain_names": ("domain_names", "step_names"),
    "sequence": ("sequence", "seq"),
}
_LAYER_IDS = ("layer_ids", "layer_id")
_WINDOW_NAMES = ("window_names", "step_names")


class Arrays(Protocol):
    """Give the arrays of a file by their names."""

    @property
    def keys(self) -> Collection[str]:
        """Names of the arrays."""

    @property
    def tables(self) -> Collection[str]:
        """Those of them that hold more than one value."""

    def array(self, key: str) -> AnyArray:
        """Read a table of numbers."""

    def column(self, key: str) -> AnyArray:
        """Read numbers, one per layer or token."""

    def names(self, key: str) -> list[str]:
        """Read names, one per window or domain."""


class NamedArrays(Contents):
    """Loads under ``counts``, a trace under ``topk_ids``, a map under ``phy2log``, or ``pairs``.

    Pair counts come before loads, loads before a trace, a trace before a plan.
    """

    def __init__(self, name: str, arrays: Arrays) -> None:
        self._arrays = arrays
        super().__init__(name, _kind_of(arrays.keys))

    def loads(self) -> Loads:
        """Read loads; counts of slots are mapped back to experts by the map beside them.

        Raises
        ------
        InputError
            Arrays that are not loads, or counts of which the map leaves open what they are of.
        """
        key = self._key("loads")
        tokens = self._arrays.array(key)
        check_rank(repr(key), tokens.shape)
        tokens = self._of_experts(key, tokens)
        names = self._first(_WINDOW_NAMES)
        # Some recorders write the tokens of every window beside the counts.
        sums = "tokens" if self._sums_of(key) else None
        self._note_unread(key, names, sums, self._first(KEYS["plan"]))
        return Loads(tokens, self._layer_ids(), names and self._arrays.names(names))

    def trace(self, experts: int | None) -> Trace:
        """Read a trace: expert ids, and per token its domain and sequence.

        Raises
        ------
        InputError
            Arrays that are no trace.
        """
        key = self._key("trace")
        if table := self._first(KEYS["plan"]):
            raise FormatError(
                f"holds {key!r} beside {table!r}, so its ids may be slots; save the experts, and "
                "leave the map out"
            )
        found = {name: self._first(aliases) for name, aliases in _COLUMNS.items()}
        names = found["domain_names"]
        self._note_unread(key, *found.values())
        domain, sequence = (
            None if column is None else self._arrays.column(column)
            for column in (found["domain"], found["sequence"])
        )
        return self.active_trace(
            as_whole(self._arrays.array(key)),
            experts,
            self._layer_ids(),
            domain,
            names and self._arrays.names(names),
            sequence,
        )

    def plan(self, gpus: int | None) -> Plan:
        """Read a table of experts per slot, such as DeepSeek's EPLB returns.

        Raises
        ------
        InputError
            An array that is no such table.
        """
        key = self._key("plan")
        self._note_unread(key, "log2phy", "logcnt")
        plan = self.plan_of_slots(as_whole(self._arrays.array(key)), gpus, self._layer_ids())
        counts = "logcnt" in self._arrays.keys and self._arrays.array("logcnt")
        if counts is not False and not np.array_equal(counts, plan.replica_counts):
            raise FormatError(f"holds 'logcnt', and {key!r} has other copies of the experts")
        return plan

    def coactivation(self) -> Coactivation:
        """Read pair counts, and nothing beside them that is not known.

        Raises
        ------
        InputError
            Arrays that are no pair counts.
        """
        if self.kind != "coactivation":
            raise self.refusal("coactivation")
        keys = set(self._arrays.keys)
        foreign = sorted(keys.difference(COACTIVATION_KEYS))
        if foreign:
            raise FormatError(
                f"holds {shorten(foreign)} beside the pairs; arrays of pair counts are "
                f"{', '.join(COACTIVATION_KEYS)}"
            )
        if "top_k" not in keys:
            raise FormatError("holds pairs without 'top_k', the experts that a token chooses")
        held = {key: self._arrays.array(key) for key in sorted(keys)}
        top_k = held.pop("top_k")
        if top_k.size != 1 or top_k.dtype.kind not in "iu":
            raise FormatError(f"'top_k' has shape {top_k.shape} and type {top_k.dtype}")
        return active_pairs(
            self.notes, Coactivation(held.pop("pairs"), **held, top_k=int(top_k.item()))
        )

    def _of_experts(self, key: str, tokens: AnyArray) -> AnyArray:
        """Map counts of slots back where a map of slots stands beside the counts."""
        found = self._first(KEYS["plan"])
        if found is None:
            if key == "physical_count":
                raise FormatError(f"holds {key!r} without {KEYS['plan'][1]!r}, the map of slots")
            return tokens
        table = as_whole(self._arrays.array(found))
        if table.ndim == 1:
            table = np.tile(table, (tokens.shape[-2], 1))
        if table.ndim != 2 or table.dtype.kind not in "iu" or not table.size:
            raise FormatError(f"{found!r} has shape {table.shape} and type {table.dtype}")
        slots, experts = table.shape[1], int(table.max()) + 1
        width = tokens.shape[-1]
        logical = width == experts and (
            slots != experts
            or (table == np.arange(slots)).all()
            or key in ("logical_count", "weight")
        )
        if logical and key != "physical_count":
            self.notes.append(f"{key!r} counts experts already, so {found!r} beside it is not used")
            return tokens
        if width != slots or (slots == experts and key != "physical_count"):
            raise FormatError(
                f"holds {key!r} of shape {tokens.shape} beside {found!r} of shape {table.shape} "
                f"for {experts} experts: are they counts of slots or of experts? Save counts of "
                "slots as 'physical_count', or leave the map out"
            )
        self.notes.append(f"{key!r} counts slots; they were added up by expert, by {found!r}")
        return to_logical(tokens.reshape(-1, *tokens.shape[-2:]).astype(np.float64), table)

    def _sums_of(self, key: str) -> bool:
        """Tell whether ``tokens`` beside counts is a sum of them, not counts of its own."""
        if "tokens" not in self._arrays.tables or key == "tokens":
            return True
        try:
            return self._arrays.array("tokens").ndim < 2
        except FormatError:
            return False

    def _layer_ids(self) -> AnyArray | None:
        key = self._first(_LAYER_IDS)
        return None if key is None else self._arrays.column(key)

    def _note_unread(self, key: str, *read: str | None) -> None:
        foreign = sorted({*self._arrays.tables}.difference((key, *_LAYER_IDS, *read)))
        if foreign:
            self.notes.append(f"holds {shorten(foreign)} beside {key!r}, which is not read")

    def _first(self, keys: Collection[str]) -> str | None:
        return next((key for key in keys if key in self._arrays.keys), None)

    def _key(self, wanted: Kind) -> str:
        key = self._first(KEYS[wanted])
        if key is None or self.kind == "coactivation":
            raise self.refusal(wanted)
        return key


def _kind_of(keys: Collection[str]) -> Kind:
    for kind, known in KEYS.items():
        if any(key in keys for key in known):
            return kind
    known_keys = " nor ".join(
        repr(key) for kind, known in KEYS.items() for key in known if kind != "coactivation"
    )
    raise FormatError(
        f"holds neither {known_keys}; its keys are {shorten(sorted(keys)) or 'none'}: name loads "
        "'counts', a trace 'topk_ids' and a map 'phy2log'"
    )


def checked_names(key: str, values: Collection[object]) -> list[str]:
    """Check names of windows: text, or whole numbers such as step numbers.

    Raises
    ------
    FormatError
        Anything else, or text that cannot be written in UTF-8.
    """
    names = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise FormatError(f"{key!r} holds {brief(value)}; pass one name per window")
        names.append(str(value))
    try:
        "".join(names).encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"{key!r} holds text that is not valid Unicode") from error
    return names


def active_pairs(notes: list[str], pairs: Coactivation) -> Coactivation:
    """Keep the layers that have tokens; note which were dropped."""
    active = pairs.tokens > 0
    if not active.any():
        raise FormatError("holds no tokens: 0 in every layer")
    if active.all():
        return pairs
    dropped = shorten(pairs.layer_ids[~active].tolist())
    notes.append(f"dropped layers without tokens, such as dense layers: {dropped}")
    return pairs.select(np.flatnonzero(active).tolist())
