"""Logarithm, exponential and powers that are the same on every processor, to the last bit.

Those of numpy and of the system's mathematical library depend on the processor's instructions in
the last bit, and one bit is enough for a search to end elsewhere. These are made of steps that
IEEE 754 rounds in one way; their error is a few units in the last place.
"""

from __future__ import annotations

import math

import numpy as np

from craftopt.loads import FloatArray

# ln 2, the first part of it short enough that a whole multiple up to 2048 is exact.
_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")
_LN2 = float.fromhex("0x1.62e42fefa39efp-1")
_ROOT_HALF = 0.7071067811865476
# Below this the exponential is 0.
_LEAST = -745.2


def log(value: float) -> float:
    """Compute the natural logarithm of a positive number.

    Examples
    --------
    >>> from craftopt.portable import log
    >>> log(10.0)
    2.302585092994046
    """
    part, exponent = math.frexp(value)
    if part < _ROOT_HALF:
        part *= 2.0
        exponent -= 1
    # ln x = 2 artanh((x - 1) / (x + 1)), by its series.
    ratio = (part - 1.0) / (part + 1.0)
    square = ratio * ratio
    series = 0.0
    for order in range(21, 0, -2):
        series = series * square + 1.0 / order
    return exponent * _LN2_HIGH + (exponent * _LN2_LOW + 2.0 * ratio * series)


def exp(value: float) -> float:
    """Compute the exponential of a number below 709.

    Examples
    --------
    >>> from craftopt.portable import exp
    >>> exp(-1.0)
    0.36787944117144233
    """
    if value < _LEAST:
        return 0.0
    whole = math.floor(value / _LN2 + 0.5)
    rest = (value - whole * _LN2_HIGH) - whole * _LN2_LOW
    series = 1.0
    for order in range(14, 0, -1):
        series = 1.0 + series * rest / order
    return math.ldexp(series, int(whole))


def power(base: float, exponent: float) -> float:
    """Raise a positive number to a power.

    Examples
    --------
    >>> from craftopt.portable import power
    >>> power(4.0, 0.5)
    2.0
    """
    return exp(exponent * log(base))


def exp_array(values: FloatArray) -> FloatArray:
    """Compute `exp` of every number of an array."""
    whole = np.floor(np.maximum(values, _LEAST) / _LN2 + 0.5)
    rest = (np.maximum(values, _LEAST) - whole * _LN2_HIGH) - whole * _LN2_LOW
    series = np.ones_like(values)
    for order in range(14, 0, -1):
        series = 1.0 + series * rest / order
    result: FloatArray = np.where(values < _LEAST, 0.0, np.ldexp(series, whole.astype(np.int64)))
    return result
