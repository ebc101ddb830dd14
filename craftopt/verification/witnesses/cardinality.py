"""Check cardinality witnesses: a price per copy at which heavy copies lack companions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from craftopt.verification.checks import FITS, Witness, fraction, require
from craftopt.verification.witnesses.box import Box


def check_cardinality(witness: Witness, box: Box, window: int, load: Fraction) -> None:
    """Check that one price per copy makes all loads below ``load`` impossible.

    Parameters
    ----------
    witness : dict
        Of kind ``cardinality``.
    box : Box
        Of even slots, where all copies are lighter than ``load``.
    window : int
    load : Fraction
        In units of the weights.

    Raises
    ------
    VerificationError
        The price proves nothing.
    """
    price = fraction(witness["price"]) * box.unit
    slots, _ = box.slots
    require(
        0 <= price * slots <= load,
        f"the price {witness['price']} is outside 0 and load / {slots} slots",
    )
    common = math.lcm(load.denominator, price.denominator)
    top, cost = int(load * common), int(price * common)
    room = top - (slots - 1) * cost  # of a heavy copy, at least the price
    size = common * int(box.weights[window].max()) + box.copies * (top + cost)
    kind = np.int64 if size * len(box.lower) < FITS else object
    weights = box.weights[window].astype(kind) * common
    copies = np.array(box.lower, dtype=kind)
    lack = weights - copies * room
    saved = copies * cost - weights
    excess = int(lack[lack > 0].sum()) - int(saved[saved > 0].sum())
    # Spare copies lower the excess by the price at most, but on experts that lack more.
    spare = box.copies - sum(box.lower)
    gains = []
    for expert in np.flatnonzero(lack > cost).tolist():
        missing, count = int(lack[expert]), box.lower[expert]
        while missing > cost and count < box.upper[expert]:
            count += 1
            gains.append(min(missing, room) + max(0, cost * count - int(weights[expert])))
            missing -= room
    gains = sorted(gains, reverse=True)[:spare]
    excess -= sum(gains) + (spare - len(gains)) * cost
    require(excess > 0, f"the price {witness['price']} does not refute the load {witness['load']}")
