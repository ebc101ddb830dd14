"""Search of one layer in one window: leave a local optimum by random exchanges, and descend."""

from __future__ import annotations

import numpy as np

from craftopt.jit import njit
from craftopt.loads import FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.search.descent import Packing, empty_packing, fill, improve

# GPUs that one kick shuffles copies between, the fullest first.
_SHUFFLED = 4


def kick_layer(share: FloatArray, copies: Copies, target: float, kicks: int, seed: int) -> Copies:
    """Improve a placement by kicks that keep every GPU's number of copies.

    A kick exchanges random copies between the fullest GPU and some others in turn; exchanges
    on the fullest GPU follow (`craftopt.search.descent`). What is no worse is kept: an iterated
    local search.

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
    slots = copies.sum(axis=0, dtype=np.int64)
    packing = empty_packing(share, slots.size, int(slots.max()))
    best = np.array(copies, dtype=np.uint8)
    _search(packing, best, slots, target, kicks, seed)
    return best


@njit()
def _search(
    packing: Packing, best: Copies, slots: IntArray, target: float, kicks: int, seed: int
) -> None:
    share, gpus = packing.share, slots.size
    np.random.seed(seed)  # noqa: NPY002 (numba's own generator, of this thread)
    chain = np.empty(_SHUFFLED, dtype=np.int64)
    lowest = np.inf
    for turn in range(kicks + 1):
        if lowest <= target or (turn > 0 and gpus < 2):
            break
        trial = best.copy()
        if turn > 0:
            chain[0] = np.argmax(_loads(share, trial))
            for k in range(1, _SHUFFLED):
                chain[k] = np.random.randint(gpus)  # noqa: NPY002
            for k in range(1, _SHUFFLED):
                _exchange_any(trial, chain[k - 1], chain[k])
        fill(packing, trial)
        improve(packing, slots, slots, target)
        trial[:] = packing.hosted
        value = _loads(share, trial).max()
        if value <= lowest:
            best[:] = trial
            lowest = value


@njit()
def _loads(share: FloatArray, copies: Copies) -> FloatArray:
    loads = np.zeros(copies.shape[1])
    for gpu in range(copies.shape[1]):
        for expert in range(share.size):
            if copies[expert, gpu]:
                loads[gpu] += share[expert]
    return loads


@njit()
def _exchange_any(copies: Copies, first: int, second: int) -> None:
    """Exchange a random copy of one GPU for a random copy of another, where both can."""
    mine = _only(copies, first, second)
    theirs = _only(copies, second, first)
    if mine.size and theirs.size:
        given = mine[np.random.randint(mine.size)]  # noqa: NPY002
        taken = theirs[np.random.randint(theirs.size)]  # noqa: NPY002
        copies[given, first], copies[given, second] = 0, 1
        copies[taken, second], copies[taken, first] = 0, 1


@njit()
def _only(copies: Copies, first: int, second: int) -> IntArray:
    """List the experts that one GPU hosts and another does not."""
    found: IntArray = np.flatnonzero((copies[:, first] > 0) & (copies[:, second] == 0))
    return found
