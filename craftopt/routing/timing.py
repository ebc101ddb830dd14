"""What a dispatch rule costs and brings, layer by layer: means over many batches."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np

from craftopt.loads import FloatArray, Loads
from craftopt.plan import Plan
from craftopt.routing.batch import Dispatch, route

_MOST_BATCHES = 512  # of a layer in one call: enough to time it, little to hold
_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class DispatchFigures:
    """Hold a rule's means over batches.

    Parameters
    ----------
    max_activated : float64 [layers]
        Most copies that a GPU reads.
    max_tokens : float64 [layers]
        Most tokens that a GPU serves.
    microseconds : float64 [layers]
        Time to route one batch.
    """

    max_activated: FloatArray
    max_tokens: FloatArray
    microseconds: FloatArray


def measure_dispatch(plan: Plan, batches: Loads, dispatch: Dispatch) -> DispatchFigures:
    """Route every window as a batch, layer by layer, and time it.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.routing.timing import measure_dispatch
    >>> plan = co.Plan.from_phy2log([[0, 1, 0, 2]], gpus=2)
    >>> measure_dispatch(plan, co.Loads([[6, 2, 4]]), "even").max_tokens
    array([7.])
    """
    activated, tokens, seconds = np.zeros((3, plan.layers))
    for layer in range(plan.layers):
        for start in range(0, batches.windows, _MOST_BATCHES):
            some = batches.tokens[start : start + _MOST_BATCHES, layer]
            # The batches are the layers of one call, which adds next to nothing to each.
            repeated = Plan(np.repeat(plan.copies[[layer]], len(some), axis=0), nodes=plan.nodes)
            routing = route(repeated, some, dispatch)  # lists the hosts, and compiles
            times = []
            for _ in range(_ROUNDS):
                begin = time.perf_counter()
                route(repeated, some, dispatch)
                times.append(time.perf_counter() - begin)
            seconds[layer] += statistics.median(times)
            activated[layer] += routing.max_activated.sum()
            tokens[layer] += routing.max_tokens.sum()
    return DispatchFigures(
        activated / batches.windows, tokens / batches.windows, seconds / batches.windows * 1e6
    )
