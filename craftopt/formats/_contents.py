"""What a recognised file holds; what it does not hold is refused in the same words everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from craftopt.coactivation import Coactivation
from craftopt.errors import FormatError
from craftopt.formats._text import shorten
from craftopt.loads import Loads
from craftopt.plan import Plan
from craftopt.traces import Trace

AnyArray = npt.NDArray[Any]
Kind = Literal["loads", "trace", "plan", "coactivation"]
_WORDS = {
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
        """Make a trace of the layers in which a token has an expert; note which are dropped."""
        # Kinds and ranks that are wrong are left for Trace to name.
        if ids.ndim == 3 and ids.dtype.kind == "i":
            active = (ids >= 0).any(axis=(0, 2))
            if active.any() and not active.all():
                numbers = np.arange(ids.shape[1])
                if layer_ids is not None and layer_ids.shape == numbers.shape:
                    numbers = layer_ids
                dropped = shorten(numbers[~active].tolist())
                self.notes.append(
                    f"dropped layers without experts, such as dense layers: {dropped}"
                )
                ids, layer_ids = ids[:, active], numbers[active]
        return Trace(ids, experts, layer_ids, domain, domain_names, sequence)

    def refusal(self, wanted: Kind) -> FormatError:
        """Make the error that says what the file holds instead."""
        return FormatError(
            f"is {self.name}: it holds {_WORDS[self.kind]}, not {_WORDS[wanted]}; "
            f"co.read_{self.kind} reads it"
        )


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
        raise FormatError(f"is for {plan.gpus} GPUs, not gpus={gpus}; leave gpus out")
    return plan
