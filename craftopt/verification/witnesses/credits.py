"""Check credits: what windows that share their copies pay for them."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction

from craftopt.errors import VerificationError
from craftopt.verification.checks import Witness, fraction, require, whole
from craftopt.verification.witnesses.box import Box


def line_of_credits(witness: Witness, box: Box) -> tuple[Fraction, Fraction]:
    """Compute what credits prove: the cost without replicas, and what each replica may save.

    Raises
    ------
    VerificationError
        A window gives more credits than its loads cost, or an expert takes more than the price.
    """
    # One unit of the witness in units of the cost.
    scale = fraction(witness["scale"]) / (box.unit if box.time else 1)
    price = whole(witness["price"])
    require(scale > 0 and price >= 0, f"scale {witness['scale']} and price {price} make no sense")
    windows = {_position(key): rows for key, rows in witness["windows"].items()}
    require(
        all(window < len(box.means) for window in windows), "credits are of windows that are none"
    )
    base = Fraction(0)
    total = 0
    of_step: dict[tuple[int, int], int] = defaultdict(int)
    for window, mean in enumerate(box.means):
        tokens = box.weights[window].tolist()
        # The heaviest copy, if every expert had its most.
        heavy = [
            Fraction(count, most)
            for count, most in zip(tokens, box.upper, strict=True)
            if count * mean.denominator > mean.numerator * most
        ]
        floor = box.cost(window, max(heavy, default=mean))
        base += floor
        levels = []
        for expert, step, credit in windows.get(window, ()):
            require(
                whole(credit) >= 0 and whole(step) >= 2 and 0 <= whole(expert) < len(tokens),
                f"[{expert}, {step}, {credit}] is no credit",
            )
            levels.append((Fraction(tokens[expert], step - 1), credit))
            of_step[expert, step] += credit
        spent = 0
        for load, credit in sorted(levels):
            spent += credit
            if credit and spent > (box.cost(window, load) - floor) * scale:
                raise VerificationError(
                    f"window {window} gives {spent} credits below the load "
                    f"{float(load / box.unit):.6g}, more than that costs"
                )
        total += spent
    taken: dict[int, int] = defaultdict(int)
    for (expert, step), credit in sorted(of_step.items()):
        taken[expert] += credit
        require(
            taken[expert] <= price * (step - 1),
            f"expert {expert} takes {taken[expert]} credits for {step} copies, more than the price",
        )
    return base + total / scale, price / scale


def _position(key: str) -> int:
    require(key.isdecimal(), f"{key!r} was given for the position of a window")
    return int(key)
