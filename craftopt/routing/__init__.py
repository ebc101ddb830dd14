"""Which copy serves: a batch of tokens, the plan, and a rule."""

from __future__ import annotations

from craftopt.routing.batch import (
    DECODE_COST,
    DISPATCHES,
    Dispatch,
    Routing,
    check_witness,
    route,
)

__all__ = ["DECODE_COST", "DISPATCHES", "Dispatch", "Routing", "check_witness", "route"]
