"""Check credits: what windows that share their copies pay for them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction

from craftopt.errors import VerificationError
from craftopt.verification.checks import Witness, fraction, require, whole
from craftopt.verification.witnesses.box import Box

# Of a window: tokens, price of a companion, and what a token on the fullest GPU costs at most, in
# units of the witness.
Rebate = tuple[list[int], Fraction, Fraction]


def line_of_credits(witness: Witness, box: Box) -> tuple[Fraction, Fraction]:
    """Compute what credits prove: the cost without replicas, and what each replica may save.

    Credits and rebates of an expert beyond the price come off; see `craftopt.verification`.

    Raises
    ------
    VerificationError
        A window gives more credits than its loads cost.
    """
    # One unit of the witness in units of the cost.
    scale = fraction(witness["scale"]) / (box.unit if box.time else 1)
    price = whole(witness["price"])
    require(scale > 0 and price >= 0, f"scale {witness['scale']} and price {price} make no sense")
    windows = {_position(key): rows for key, rows in witness["windows"].items()}
    require(
        all(window < len(box.means) for window in windows), "credits are of windows that are none"
    )
    prices = [Fraction(0)] * len(box.means)
    for key, stated in witness.get("companions", {}).items():
        require(_position(key) < len(prices), "companions have a price in a window that is none")
        prices[int(key)] = fraction(stated) * box.unit
    require(min(prices) >= 0, "a price of companions is below 0")
    require(box.even or not any(prices), "prices of companions need even slots")
    others = box.slots[0] - 1  # beside a copy on its GPU, at least
    base = Fraction(0)
    credited = 0
    of_step: list[dict[int, int]] = [defaultdict(int) for _ in box.upper]
    rebates: list[Rebate] = []
    for window, (mean, companion) in enumerate(zip(box.means, prices, strict=True)):
        tokens = box.weights[window].tolist()
        # The heaviest copy, if every expert had its most.
        heavy = [
            Fraction(count, most)
            for count, most in zip(tokens, box.upper, strict=True)
            if count * mean.denominator > mean.numerator * most
        ]
        load = max(heavy, default=mean)
        floor = box.cost(window, load)
        base += floor
        lacking = Fraction(0)
        if companion:
            lacking = sum((companion - t for t in tokens if t < companion), Fraction(0))
            saved = Fraction(1) if box.time else mean / load**2 if load else Fraction(0)
            rebates.append((tokens, companion, saved * scale))
        # In multiples of 1/common every load is a whole number: quick to compare.
        given = windows.get(window, ())
        common = companion.denominator * math.lcm(*(max(1, whole(row[1]) - 1) for row in given))
        lack, share = int(lacking * common), others * int(companion * common)
        levels = []
        for expert, step, credit in given:
            require(
                whole(credit) >= 0 and whole(step) >= 2 and 0 <= whole(expert) < len(tokens),
                f"[{expert}, {step}, {credit}] is no credit",
            )
            rest = tokens[expert] * common - lack
            beside = share + min(rest, rest // (step - 1))
            levels.append((max(tokens[expert] * (common // (step - 1)), beside), credit))
            of_step[expert][step] += credit
        spent = 0
        for load, credit in sorted(levels):
            spent += credit
            if credit and spent > (box.cost(window, Fraction(load, common)) - floor) * scale:
                raise VerificationError(
                    f"window {window} gives {spent} credits below the load "
                    f"{load / common / box.unit:.6g}, more than that costs"
                )
        credited += spent
    over = sum(
        _beyond_price(expert, steps, most, price, rebates)
        for expert, (steps, most) in enumerate(zip(of_step, box.upper, strict=True))
    )
    return base + (credited - over) / scale, price / scale


def _beyond_price(
    expert: int,
    credits: Mapping[int, int],
    most: int,
    price: int,
    rebates: Sequence[Rebate],
) -> int | Fraction:
    """Compute by how much credits and rebates of an expert exceed the price of its copies.

    With k copies: the credits for steps up to k, and what k copies take off its weight as a
    companion, (v - max(t, v)/k)+ in every window with a price v. The worst k counts. All in units
    of the witness.
    """
    beyond: int | Fraction = 0
    taken = 0
    total, off = sum(credits.values()), sum(saved * companion for _, companion, saved in rebates)
    for copies in range(2, most + 1):
        # No rebate is more than (1 - 1/k) v, so with further copies nothing exceeds any more.
        if total * copies + off * (copies - 1) <= price * (copies - 1) * copies:
            break
        taken += credits.get(copies, 0)
        rebate = sum(
            saved * max(Fraction(0), companion - max(Fraction(tokens[expert]), companion) / copies)
            for tokens, companion, saved in rebates
        )
        beyond = max(beyond, taken + rebate - price * (copies - 1))
    return beyond


def _position(key: str) -> int:
    require(key.isdecimal(), f"{key!r} was given for the position of a window")
    return int(key)
