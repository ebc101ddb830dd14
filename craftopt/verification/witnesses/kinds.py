"""From a witness to the cost that it proves: the kinds, one window or several, and branches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from craftopt.verification.checks import Witness, fraction, require, whole
from craftopt.verification.witnesses.box import Bound, Box
from craftopt.verification.witnesses.cardinality import check_cardinality
from craftopt.verification.witnesses.configuration import check_configuration
from craftopt.verification.witnesses.credits import line_of_credits

# What proves that no placement in a box has all loads of a window below a stated one.
_CHECKS = {"cardinality": check_cardinality, "configuration": check_configuration}


def layer_cost(witness: Witness, box: Box) -> Bound:
    """Compute the cost that a layer witness proves; math.inf of an empty box.

    Raises
    ------
    VerificationError
        The witness proves nothing.
    """
    kind = witness["kind"]
    if kind in ("branch", "empty"):
        return _split(witness, box, layer_cost)
    if kind == "credits":
        start, price = line_of_credits(witness, box)
        return start - price * (box.copies - len(box.lower))
    witnesses = list(witness["windows"]) if kind == "windows" else [witness]
    require(
        len(witnesses) == len(box.means),
        f"{len(witnesses)} window witness(es) of {kind!r} for {len(box.means)} window(s)",
    )
    total = Fraction(0)
    for window, of_window in enumerate(witnesses):
        load = _window_load(of_window, box, window)
        if not isinstance(load, Fraction):
            return load
        total += box.cost(window, load)
    return total


def _window_load(witness: Witness, box: Box, window: int) -> Bound:
    """Compute the least largest GPU load that a window witness proves."""
    kind = witness["kind"]
    if kind in ("branch", "empty"):
        return _split(witness, box, lambda part, side: _window_load(part, side, window))
    if kind == "mean":
        return box.floors[window]
    if kind == "copies":
        return box.heaviest_copy(window)
    require(kind in _CHECKS, f"a witness of kind {kind!r} proves nothing of a window")
    require(box.even or kind != "cardinality", "cardinality witnesses need even slots")
    load = fraction(witness["load"]) * box.unit
    require(load > 0, f"a {kind} witness of load {witness['load']} says nothing")
    part = box
    if "group" in witness:
        group = whole(witness["group"])
        require(0 <= group < len(box.groups), f"there is no group {group}")
        require(len(box.groups) == box.nodes, f"group {group} shares its node with others")
        part = box.of_group(group)
    lighter = part.below(window, load)
    if lighter is not None:
        _CHECKS[kind](witness, lighter, window, load)
    return max(load, box.floors[window])


def _split(witness: Witness, box: Box, prove: Callable[[Witness, Box], Bound]) -> Bound:
    """Check both sides of a branch, or that there is nothing to check."""
    if witness["kind"] == "empty":
        require(box.empty, "a box is said to be empty, and is not")
        return math.inf
    expert, copies = whole(witness["expert"]), whole(witness["copies"])
    require(0 <= expert < len(box.lower), f"there is no expert {expert} to branch on")
    upper, lower = list(box.upper), list(box.lower)
    upper[expert] = min(upper[expert], copies)
    lower[expert] = max(lower[expert], copies + 1)
    below = prove(witness["below"], replace(box, upper=tuple(upper)))
    above = prove(witness["above"], replace(box, lower=tuple(lower)))
    return min(below, above)
