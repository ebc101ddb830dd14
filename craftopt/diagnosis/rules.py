"""The rules of the verdict, in order, with their constants; docs/diagnose.md says them in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from craftopt.loads import FloatArray, Loads
from craftopt.plan import Plan
from craftopt.recordings import LEAST_WINDOWS, looks_made_up

Verdict = Literal["collect more windows first", "leave it", "place", "replicate"]

# Gains are parts of today's layer time. Less than this is not worth a change.
LEAST_GAIN = 0.02
# The smallest budget with this part of the gain at the largest one is enough.
ENOUGH = 0.9
# Level of the interval of a gain, and the resamples of the windows that it is found by.
LEVEL, RESAMPLES = 0.9, 1000
# When not to: assignments per expert in a window and layer, GPUs, part of the layer time that is
# imbalance, and a single window's part of the imbalance.
FEW_TOKENS, FEW_GPUS, BALANCED, ONE_WINDOW = 32, 4, 0.05, 0.5


@dataclass(frozen=True)
class Gain:
    """Say what a budget gains, in parts of today's layer time.

    Parameters
    ----------
    replicas : int
        Extra copies per layer.
    planned, held_out : float
        On the windows that the plans were made for, and on the others.
    low, high : float
        Interval of ``held_out``, `LEVEL`, by a bootstrap over the windows, expanded for few.
    most : float
        No plan with as many copies gains more on the windows planned: a proven bound.
    """

    replicas: int
    planned: float
    held_out: float
    low: float
    high: float
    most: float


def candidate(gains: Sequence[Gain]) -> Gain:
    """Return what would be done: move alone, or the smallest budget with most of the gain."""
    moving, best = gains[0], max(gains, key=lambda gain: gain.held_out)
    if best.held_out - moving.held_out < LEAST_GAIN:
        return moving
    enough = ENOUGH * max(0.0, gains[-1].held_out)
    return next((gain for gain in gains if gain.held_out >= enough), best)


def decide(gains: Sequence[Gain], windows: int) -> tuple[Verdict, int]:
    """Return the verdict on the `candidate`, by the first rule that applies, and its copies.

    Examples
    --------
    >>> from craftopt.diagnosis import Gain, decide
    >>> decide([Gain(0, 0.3, 0.2, 0.19, 0.21, 0.3), Gain(8, 0.5, 0.4, 0.39, 0.41, 0.5)], 9)
    ('replicate', 8)
    """
    if windows < LEAST_WINDOWS:
        return "collect more windows first", 0
    found = candidate(gains)
    if found.low <= 0 <= found.high and found.high > LEAST_GAIN:
        return "collect more windows first", 0
    if found.held_out < LEAST_GAIN:
        return "leave it", 0
    return ("replicate" if found.replicas else "place"), found.replicas


def margin(gain: Gain) -> float:
    """Return how well a gain must be known: to a tenth, or so that rule 1 cannot apply."""
    return max(LEAST_GAIN / 2, gain.held_out / 10)


def cautions(
    loads: Loads, gpus: int, plan: Plan | None, now: FloatArray, mean: FloatArray
) -> Iterator[str]:
    """Say when not to act on a verdict, as far as it applies.

    Parameters
    ----------
    now, mean : float64 [windows]
        Layer time today, and were all GPUs equally loaded.
    """
    made_up = looks_made_up(loads)
    if made_up:
        yield (
            f"These loads look made up: {made_up}. Synthetic and mock traffic mostly overstates "
            "skew; decide on a recording of real traffic."
        )
    busy = loads.tokens.sum(axis=2) > 0
    per_expert = loads.tokens.sum() / max(1, busy.sum()) / loads.experts
    if (loads.tokens % 1 == 0).all() and per_expert < FEW_TOKENS:
        yield (
            f"Few tokens: a window has {per_expert:.1f} per expert and layer. Much of its "
            "imbalance is chance, which no plan foresees; and with so few tokens in a step, "
            "reading weights takes the time, not computing."
        )
    if gpus <= FEW_GPUS:
        yield (
            f"Few GPUs: on {gpus}, each holds {loads.experts / gpus:.0f} experts or more of every "
            "layer, which evens out much by itself."
        )
    waiting = 1.0 - float(mean.sum() / now.sum())
    if waiting < BALANCED:
        yield f"Balanced already: no plan can save more than {waiting:.1%} of the layer time."
    excess = now - mean
    if loads.windows >= LEAST_WINDOWS and excess.max() > ONE_WINDOW * excess.sum():
        yield (
            f"One window, {loads.window_names[int(excess.argmax())]!r}, has "
            f"{excess.max() / excess.sum():.0%} of all imbalance: find out what it was, and "
            "whether it comes back."
        )
    if plan is None:
        yield (
            "If the engine rebalances by itself while it serves this traffic, these gains are not "
            "on top of that: pass the map that it serves with (--map)."
        )
