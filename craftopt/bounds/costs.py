"""The cost of a window, compiled."""

from __future__ import annotations

from craftopt.jit import njit


@njit()
def window_cost(load: float, mean: float, time: bool) -> float:
    """Compute what a window adds to a layer's cost, from its largest and its mean GPU load.

    As `craftopt.objective.Objective.costs`: the largest load (``time``), or minus balancedness,
    which is 1 without tokens.
    """
    if time:
        return load
    return -mean / load if load > 0 else -1.0
