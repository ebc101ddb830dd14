"""What a recording tells of itself: whether its windows are enough, whether it looks made up."""

from __future__ import annotations

import math

import numpy as np

from craftopt.loads import FloatArray, Loads
from craftopt.windows import in_mean_loads

# Fewer windows say little, however alike they are.
LEAST_WINDOWS = 8
# How many are needed is said up to so many times as many as there are, and not beyond.
FARTHEST = 4
# How well it is to be known how much of a window the others foresee: plus or minus this.
FORESEEN_MARGIN = 0.05
# Loads look made up by names of windows with these words, by a variance over that of chance below
# this, and by a rank correlation of load and expert number above this.
MADE_UP_NAMES = ("synthetic", "mock", "dummy", "random")
CHANCE, ORDERED = 1.1, 0.9


def foreseen(loads: Loads) -> tuple[FloatArray, float]:
    """Compute how much of a window's skew the mean of the other windows shows.

    Skew is the squared distance of the experts' shares from equal ones.

    Returns
    -------
    by_window : float64 [windows]
        1 where all windows are alike, 0 or below where the others tell nothing.
    overall : float
        The same over all windows together.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.recordings import foreseen
    >>> foreseen(co.Loads([[[3, 1]], [[30, 10]]]))[1], foreseen(co.Loads([[[3, 1]], [[1, 3]]]))[1]
    (1.0, -3.0)
    """
    share = in_mean_loads(loads.tokens, loads.experts)[0]
    others = (share.sum(axis=0) - share) / max(1, loads.windows - 1)
    busy = share.any(axis=2, keepdims=True)
    missed = ((share - others) ** 2 * busy).sum(axis=(1, 2))
    skew = ((share - 1.0) ** 2 * busy).sum(axis=(1, 2))
    by_window = 1.0 - missed / np.maximum(skew, 1e-300) * (skew > 0)
    total = float(skew.sum())
    return by_window, 1.0 - float(missed.sum()) / total if total > 0 else 1.0


def windows_needed(windows: int, half_width: float, margin: float) -> int:
    """Estimate how many windows are enough to know a mean, at least `LEAST_WINDOWS`.

    An estimate of many times the windows that there are would be a guess: it ends at one more
    than `farthest`.

    Parameters
    ----------
    windows : int
        How many there are.
    half_width : float
        Of the 90 % interval that these give; it shrinks with the square root of their number.
    margin : float
        Half of the width that is enough.

    Examples
    --------
    >>> from craftopt.recordings import windows_needed
    >>> windows_needed(20, half_width=0.015, margin=0.01), windows_needed(20, 0.1, margin=0.01)
    (45, 81)
    """
    needed = max(LEAST_WINDOWS, math.ceil(windows * (half_width / margin) ** 2))
    return min(needed, farthest(windows) + 1)


def farthest(windows: int) -> int:
    """Compute the most windows that so many let one estimate as needed."""
    return max(LEAST_WINDOWS, FARTHEST * windows)


def in_words(needed: int, windows: int) -> str:
    """Say what `windows_needed` estimated from so many windows.

    Examples
    --------
    >>> from craftopt.recordings import in_words
    >>> in_words(45, windows=20), in_words(81, windows=20)
    ('about 45', 'more than 80')
    """
    most = farthest(windows)
    return f"about {needed}" if needed <= most else f"more than {most}"


def windows_enough(loads: Loads) -> int:
    """Estimate how many windows tell how well they foresee each other, to `FORESEEN_MARGIN`.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.recordings import windows_enough
    >>> windows_enough(co.Loads([[[8, 2]]] * 4))
    8
    """
    values = foreseen(loads)[0]
    if values.size < 2:
        return LEAST_WINDOWS
    error = float(values.std(ddof=1)) / math.sqrt(values.size)
    return windows_needed(values.size, 1.645 * error, FORESEEN_MARGIN)


def few_windows(loads: Loads) -> str:
    """Say that windows are too few to count on a gain over EPLB; empty where they are enough.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.recordings import few_windows
    >>> few_windows(co.Loads([[[8, 2]], [[7, 3]]]))
    'windows=2 are few (more than 8 are needed): on other windows EPLB may do as well'
    """
    enough = windows_enough(loads)
    if loads.windows >= enough:
        return ""
    return (
        f"windows={loads.windows} are few ({in_words(enough, loads.windows)} are needed): "
        "on other windows EPLB may do as well"
    )


def looks_made_up(loads: Loads) -> str | None:
    """Say what makes loads look synthetic or mock; None where they look measured."""
    if any(word in name.casefold() for name in loads.window_names for word in MADE_UP_NAMES):
        return "the names of the windows say so"
    tokens = loads.tokens
    if loads.windows > 1 and (tokens == tokens[0]).all():
        return "all windows are the same"
    if loads.experts < 8:
        return None
    mean = tokens.mean(axis=2, keepdims=True)
    cells = int((mean > 0).sum()) * (loads.experts - 1)
    if not (tokens % 1).any() and cells:
        chance = float(((tokens - mean) ** 2 / np.maximum(mean, 1e-300)).sum()) / cells
        if chance < CHANCE:
            return "experts are as equally loaded as if drawn at random"
    total = tokens.sum(axis=0)
    hottest = np.bincount(total.argmax(axis=1))
    if loads.layers >= 4 and hottest.max() > loads.layers / 2:
        return f"expert {hottest.argmax()} is the hottest in most layers"
    ranks = total.argsort(axis=1).argsort(axis=1)
    order = np.corrcoef(np.vstack([np.arange(loads.experts), ranks]))[0, 1:]
    if np.median(np.abs(order)) > ORDERED:
        return "loads rise or fall with the number of the expert"
    return None
