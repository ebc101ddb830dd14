"""What every check rests on: a claim that must hold, and numbers as certificates write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from craftopt.errors import VerificationError

Witness = Mapping[str, Any]

# Sums of this size fit 64 bits with a sign; beyond, arrays hold Python's whole numbers.
FITS = 2**62
_FRACTION = re.compile(r"-?[0-9]+(/[0-9]+)?")


def require(holds: bool, otherwise: str) -> None:
    """Refuse a claim that does not hold.

    Raises
    ------
    VerificationError
        With ``otherwise`` as its message.
    """
    if not holds:
        raise VerificationError(otherwise)


def whole(value: Any) -> int:
    """Read an int, and no other type."""
    if type(value) is not int:
        raise VerificationError(f"{value!r} was given for a whole number")
    return value


def fraction(value: Any) -> Fraction:
    """Read an int or a text "p/q"; what else fractions could be ("1e999999999") takes forever."""
    if type(value) is not int and not (type(value) is str and _FRACTION.fullmatch(value)):
        raise VerificationError(f"{value!r} was given for a whole number or a text p/q")
    return Fraction(value)
