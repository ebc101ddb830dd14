"""Search of one layer in one window: leave a local optimum by random exchanges, and descend."""

from __future__ import annotations

import numpy as np
from numba import njit

from craftopt.loads import FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.search.placement import improve_layer

# GPUs that one kick shuffles copies between, the fullest first.
_SHUFFLED = 4


@njit(cache=True, nogil=True)
def kick_layer(share: FloatArray, copies: Copies, target: float, kicks: int, seed: int) -> Copies:
    """Improve a placement by kicks that keep every GPU's number of copies.

    A kick exchanges random copies between the fullest GPU and some others in turn; exchanges
    on the fullest GPU follow (`improve_layer`). What is no worse is kept.

    Parameters
    ----------
    share : float64 [experts]
        Load of one copy.
    copies : uint8 [experts, gpus]
        At most one copy of an expert on a GPU.
    target : float
        Load of the fullest GPU to stop at.
    kicks, seed : int

    Returns
    -------
    uint8 [experts, gpus]
    """
    gpus = copies.shape[1]
    np.random.seed(seed)  # noqa: NPY002 (numba's own generator, of this thread)
    best = improve_layer(share, copies, target)
    lowest = _loads(share, best).max()
    chain = np.empty(_SHUFFLED, dtype=np.int64)
    for _ in range(kicks):
        if lowest <= target or gpus < 2:
            break
        trial = best.copy()
        chain[0] = np.argmax(_loads(share, trial))
        for k in range(1, _SHUFFLED):
            chain[k] = np.random.randint(gpus)  # noqa: NPY002
        for k in range(1, _SHUFFLED):
            _exchange_any(trial, chain[k - 1], chain[k])
        trial = improve_layer(share, trial, target)
        value = _loads(share, trial).max()
        if value <= lowest:
            best, lowest = trial, value
    return best


@njit(cache=True, nogil=True)
def _loads(share: FloatArray, copies: Copies) -> FloatArray:
    loads = np.zeros(copies.shape[1])
    for gpu in range(copies.shape[1]):
        for expert in range(share.size):
            if copies[expert, gpu]:
                loads[gpu] += share[expert]
    return loads


@njit(cache=True, nogil=True)
def _exchange_any(copies: Copies, first: int, second: int) -> None:
    """Exchange a random copy of one GPU for a random copy of another, where both can."""
    mine = _only(copies, first, second)
    theirs = _only(copies, second, first)
    if mine.size and theirs.size:
        given = mine[np.random.randint(mine.size)]  # noqa: NPY002
        taken = theirs[np.random.randint(theirs.size)]  # noqa: NPY002
        copies[given, first], copies[given, second] = 0, 1
        copies[taken, second], copies[taken, first] = 0, 1


@njit(cache=True, nogil=True)
def _only(copies: Copies, first: int, second: int) -> IntArray:
    """List the experts that one GPU hosts and another does not."""
    found: IntArray = np.flatnonzero((copies[:, first] > 0) & (copies[:, second] == 0))
    return found
