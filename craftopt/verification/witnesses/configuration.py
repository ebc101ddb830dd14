"""Check configuration witnesses: duals of the configuration LP, by dynamic programming."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from craftopt.verification.checks import FITS, Witness, require, whole
from craftopt.verification.witnesses.box import Box

# A configuration's loads are counted in at most this many steps.
_FINEST_GRID = 1_000_000


def check_configuration(witness: Witness, box: Box, window: int, load: Fraction) -> None:
    """Check that no configuration is worth more than stated, and that all GPUs need more.

    Parameters
    ----------
    witness : dict
        Of kind ``configuration``.
    box, window, load
        As in `check_cardinality`.

    Raises
    ------
    VerificationError
        The duals prove nothing.
    """
    profit = [whole(value) for value in witness["experts"]]
    slot, extra, most = (whole(witness[key]) for key in ("slot", "extra", "scale"))
    grid = whole(witness["grid"])
    experts = len(box.lower)
    require(len(profit) == experts, f"{len(profit)} profits are stated of {experts} experts")
    require(1 <= grid <= _FINEST_GRID, f"grid={grid} is outside 1 and {_FINEST_GRID}")
    slots, fuller = box.slots
    require(
        sum(profit) - slot * box.copies - extra * fuller > box.gpus * most,
        "the profits of all experts are no more than the GPUs can have",
    )
    largest = max(map(abs, [*profit, slot, extra, most]))
    require(
        4 * (slots + 2 if box.even else experts + 1) * largest < FITS,
        "the profits are too large to be checked; scale them down",
    )
    members = slots + 1 if fuller else slots
    # best[k, s]: the most that k experts of rounded size s together are worth; without even
    # slots, best[0, s] that of any number of experts. -FITS: there is no such configuration.
    best = np.full((members + 1, grid), -FITS, dtype=np.int64)
    best[0, 0] = 0
    spare = box.copies - sum(box.lower)
    for expert, weight in enumerate(box.weights[window].tolist()):
        options: dict[int, int] = {}
        first = box.lower[expert]
        for count in range(first, min(box.upper[expert], first + spare) + 1):
            size = weight * grid * load.denominator // (count * load.numerator)
            worth = -(-profit[expert] // count) - slot
            options[size] = max(worth, options.get(size, worth))
        before = best if box.even else best.copy()
        for filled in range(members - 1, -1, -1) if box.even else (-1,):
            for size, worth in options.items():
                if size < grid:
                    target = best[filled + 1, size:]
                    np.maximum(target, before[filled, : grid - size] + worth, out=target)
    require(
        best[slots].max() <= most and not (fuller and best[slots + 1].max() - extra > most),
        f"a configuration below the load {witness['load']} is worth more than stated",
    )
