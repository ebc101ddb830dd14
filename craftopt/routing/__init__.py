"""Which copy serves: a batch of tokens, the plan, and a rule."""

from __future__ import annotations

from craftopt.routing.batch import (
    COUNT_DISPATCHES,
    DECODE_COST,
    DISPATCHES,
    Dispatch,
    Routing,
    check_witness,
    route,
)

__all__ = [
    "COUNT_DISPATCHES",
    "DECODE_COST",
    "DISPATCHES",
    "Dispatch",
    "Routing",
    "check_witness",
    "route",
]
