"""What a recognised file holds; what it does not hold is refused in the same words everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from craftopt.coactivation import Coactivation
from craftopt.errors import FormatError
from craftopt.formats._text import shorten
from craftopt.loads import BoolArray, Loads
from craftopt.plan import Plan
from craftopt.traces import Trace

AnyArray = npt.NDArray[Any]
# Where as many tokens choose one expert, or as many cells have one share, it is no chance.
_ENOUGH_TOKENS, _ENOUGH_CELLS, _FEW_TOKENS = 64, 8, 16
_MOST_LAYERS = 128  # of a model
_FEW_EXPERTS = 8  # of fewer, one may well have half of the tokens
Kind = Literal["loads", "trace", "plan", "coactivation"]
WORDS: dict[Kind, str] = {
    "loads": "loads",
    "trace": "a token trace",
    "plan": "a plan",
    "coactivation": "pair counts",
}


class Contents:
    """Hold an opened file whose format is known, not yet read.

    A format overrides those of `loads`, `trace`, `plan` and `coactivation` that it can give, in its
    module's ``recognise(stream)``. Readers append what they drop or doubt to ``notes``.
    """

    def __init__(self, name: str, kind: Kind) -> None:
        self.name = name
        self.kind = kind
        self.notes: list[str] = []
        # What the caller says of the layers; a reader that numbers them by it sets it to None.
        self.layers: int | Sequence[int] | None = None
        # How the number of experts was inferred where the file does not say it and may lack some.
        self.inferred = ""
        self.repeated = False  # a plan's one layer is to be repeated for all

    def take_as(self, kind: Kind | None) -> None:
        """Refuse to be taken for something else than the file says."""
        if kind not in (None, self.kind):
            raise self.refusal(kind)

    def loads(self) -> Loads:
        """Read loads, layers without tokens included."""
        raise self.refusal("loads")

    def trace(self, experts: int | None) -> Trace:
        """Read a token trace; layers without experts are dropped."""
        raise self.refusal("trace")

    def plan(self, gpus: int | None) -> Plan:
        """Read a plan; ``gpus`` is needed where the file does not say it."""
        raise self.refusal("plan")

    def coactivation(self) -> Coactivation:
        """Read pair counts; layers without tokens are dropped."""
        raise self.refusal("coactivation")

    def active_trace(
        self,
        ids: AnyArray,
        experts: int | None,
        layer_ids: AnyArray | None = None,
        domain: AnyArray | None = None,
        domain_names: Sequence[str] | None = None,
        sequence: AnyArray | None = None,
    ) -> Trace:
        """Make a trace of the tokens and layers that have experts; note what is dropped.

        Recorders write dense layers, and tokens that they missed, as -1 or, in all places, as 0.
        """
        # Kinds and ranks that are wrong are left for Trace to name.
        if ids.ndim == 3 and ids.shape[1] > max(_MOST_LAYERS, ids.shape[0]):
            raise FormatError(
                f"holds {ids.shape[1]} layers of {ids.shape[0]} tokens, more layers than any model "
                "has; ids are [tokens, layers, k], so swap the first two axes"
            )
        if ids.ndim == 3 and ids.size and ids.dtype.kind in "iu":
            held = written(ids)
            layers = np.asarray(held.any(axis=0))
            tokens = np.asarray(held.any(axis=1))
            if layers.any() and not layers.all():
                numbers = np.arange(ids.shape[1])
                if layer_ids is not None and layer_ids.shape == numbers.shape:
                    numbers = layer_ids
                dropped = shorten(numbers[~layers].tolist())
                self.notes.append(
                    f"dropped layers without experts, such as dense layers: {dropped}"
                )
                ids, held, layer_ids = ids[:, layers], held[:, layers], numbers[layers]
            if tokens.any() and not tokens.all():
                self.notes.append(
                    f"dropped {np.count_nonzero(~tokens)} of {len(tokens)} tokens, which have no "
                    "expert in any layer"
                )
                ids, held = ids[tokens], held[tokens]
                if domain is not None and domain.shape == tokens.shape:
                    domain = domain[tokens]
                if sequence is not None and sequence.shape == tokens.shape:
                    sequence = sequence[tokens]
            if layers.any() and not held.all():
                ids = np.where(held[:, :, np.newaxis], ids, np.int32(-1))
            if experts is None and len(set(ids.max(axis=(0, 2)).tolist())) > 1:
                self.inferred = "highest id in the trace"
        trace = Trace(ids, experts, layer_ids, domain, domain_names, sequence)
        self.notes += odd_choices(trace)
        return trace

    def plan_of_slots(
        self, table: AnyArray, gpus: int | None, layer_ids: AnyArray | None = None
    ) -> Plan:
        """Make a plan of a table of slots; one for all layers makes a plan of one layer."""
        if table.ndim == 1:
            self.notes.append(
                "is one map for all layers, such as vLLM's: a plan of one layer, unless --layers "
                "(layers=) says which layers there are"
            )
            self.repeated = True
        return plan_of(np.atleast_2d(table), gpus, layer_ids)

    def refusal(self, wanted: Kind) -> FormatError:
        """Make the error that says what the file holds instead."""
        cut = ", and --batch N cuts it into windows" if wanted == "loads" else ""
        return FormatError(
            f"is {self.name}: it holds {WORDS[self.kind]}, not {WORDS[wanted]}; "
            f"co.read_{self.kind} reads it{cut if self.kind == 'trace' else ''}"
        )


def written(ids: AnyArray) -> BoolArray:
    """Tell which tokens have an expert in which layer, [tokens, layers].

    A row without one is -1 or, since no token has one expert twice, 0 in all of several places.
    """
    places = np.moveaxis(ids, 2, 0)  # place by place, which is faster than row by row
    empty: BoolArray = np.logical_and.reduce([place < 0 for place in places])
    if len(places) > 1:
        empty |= np.logical_and.reduce([place == 0 for place in places])
    return ~empty


def odd_choices(trace: Trace) -> list[str]:
    """Say where an expert is chosen by every token: no router does that."""
    if trace.tokens < _ENOUGH_TOKENS or trace.experts <= trace.topk_ids.shape[2]:
        return []
    # The most first: of four ranks alike, two halves are alike as well.
    parts = range(min(16, trace.tokens // _FEW_TOKENS), 1, -1)
    for times in (n for n in parts if not trace.tokens % n):
        each = trace.topk_ids.reshape(times, -1, *trace.topk_ids.shape[1:])
        if (each == each[0]).all():
            return [f"holds the same tokens {times} times, as of ranks that recorded alike"]
    found = []
    for layer, number in enumerate(trace.layer_ids.tolist()):
        ids = trace.topk_ids[:, layer]
        first = ids[int((ids[:, 0] >= 0).argmax())]
        # Most experts are ruled out by few tokens.
        found += [
            f"{expert} in layer {number}"
            for expert in first[first >= 0].tolist()
            if all(_in_every_row(expert, part) for part in (ids[:_ENOUGH_TOKENS], ids))
        ]
    if not found:
        return []
    return [
        f"every token chooses expert {shorten(found, 3)}: a shared expert, or a layer that is not "
        "routed; leave it out, since every GPU hosts shared experts"
    ]


def _in_every_row(expert: int, ids: AnyArray) -> bool:
    return bool(((ids == expert).any(axis=1) | (ids < 0).all(axis=1)).all())


def odd_loads(loads: Loads) -> list[str]:
    """Say where counts are not what a router gives to the experts of a model."""
    notes = []
    tokens, active = loads.tokens, loads.tokens.any(axis=(0, 1))
    sums = tokens.sum(axis=2)
    half = loads.windows // 2
    first, second = tokens[:half], tokens[half:]
    if loads.experts >= _FEW_EXPERTS:
        if half > 1 and np.array_equal(first, second) and not (first == first[0]).all():
            notes.append("its second half repeats the first: is one recording there twice?")
        used = np.flatnonzero(active)
        size = int(used[-1] - used[0]) + 1
        if size == used.size <= loads.experts // 2 and not used[0] % size:
            notes.append(
                f"only experts {used[0]} to {used[-1]} of {loads.experts} have tokens, in all "
                "layers: this may be the part of one rank; pass the files of all ranks"
            )
        total = tokens.sum(axis=0)
        shares = total.max(axis=1) / np.maximum(total.sum(axis=1), 1e-300)
        layer = int(shares.argmax())
        if shares[layer] > 0.5:
            notes.append(
                f"expert {int(total[layer].argmax())} of layer {loads.layer_ids[layer]} has "
                f"{shares[layer]:.1%} of the tokens, which is impossible where a token chooses two "
                "or more experts"
            )
    # An expert that every token chooses has one k-th of all assignments, everywhere.
    held = sums > 0
    if np.count_nonzero(held) >= _ENOUGH_CELLS:
        shared = []
        for expert in np.flatnonzero((tokens[held] > 0).all(axis=0)).tolist():
            k = sums[held] / tokens[..., expert][held]
            if k[0] == round(k[0]) and 2 <= k[0] < loads.experts and (k == k[0]).all():
                shared.append(f"{expert} (1/{k[0]:.0f})")
        if shared:
            notes.append(
                f"expert {shorten(shared)} has one share of the tokens in every layer and window: "
                "a shared expert; leave it out, since every GPU hosts shared experts"
            )
    return notes


def check_rank(what: str, shape: tuple[int, ...]) -> None:
    """Refuse loads which are not 2-D or 3-D.

    Raises
    ------
    FormatError
        Another number of dimensions.
    """
    if len(shape) not in (2, 3):
        raise FormatError(
            f"{what} has {len(shape)} dimension(s), shape {shape}; "
            "loads have [windows, layers, experts] or [layers, experts]"
        )


def plan_of(
    phy2log: AnyArray,
    gpus: int | None,
    layer_ids: AnyArray | Sequence[int] | None = None,
) -> Plan:
    """Make a plan of a table of experts per slot, for as many GPUs as the caller says.

    Raises
    ------
    InputError
        No number of GPUs, or a table that is no plan.
    """
    if gpus is None:
        raise FormatError(
            f"lists experts by slot, shape {phy2log.shape}, and does not say how many GPUs share "
            "the slots; pass gpus= (--gpus)"
        )
    return Plan.from_phy2log(phy2log, gpus, layer_ids=layer_ids)


def with_gpus(plan: Plan, gpus: int | None) -> Plan:
    """Check the number of GPUs that the caller says against the file's own.

    Raises
    ------
    FormatError
        Another number.
    """
    if gpus not in (None, plan.gpus):
        raise FormatError(f"is for {plan.gpus} GPUs, not gpus={gpus}; pass gpus={plan.gpus}")
    return plan
