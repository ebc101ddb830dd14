"""What all searches of one layer share: rules, schedule and random numbers.

Numba's cache of a kernel does not notice changes of what it calls in other files: after editing
this file, delete the caches (the ``__pycache__`` folders, or ``NUMBA_CACHE_DIR``).
"""

from __future__ import annotations

from typing import Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from numba import njit

from craftopt.loads import FloatArray, IntArray
from craftopt.plan import Copies

# State of the generator of random numbers.
Random = npt.NDArray[np.uint64]

# No slot, no expert. A literal -1 would have kernels compiled once for it and once for numbers.
NONE: Final = cast("int", np.int64(-1))
# Of this many GPUs drawn at random, the fullest in a random window gives or gets a copy.
_SAMPLE = 6


class Rules(NamedTuple):
    """What the copies of a layer must keep, whichever way they are exchanged.

    Every expert stays in the node where the start of the search has it.

    Parameters
    ----------
    nodes : int
        Nodes that copies do not leave; divides the GPUs.
    low, high : int
        Fewest and most copies of a GPU.
    copies_limit : int
        Most copies of an expert that gets another one; 0 leaves their numbers as they are.
    """

    nodes: int
    low: int
    high: int
    copies_limit: int


class Schedule(NamedTuple):
    """Geometric cooling, and the mini-batch of windows that counts at a time.

    Parameters
    ----------
    steps : int
    hot, cold : float
        First and last temperature, in the unit of the cost.
    in_play : int
        Windows of a mini-batch; all of them where there are no more.
    """

    steps: int
    hot: float
    cold: float
    in_play: int = 1 << 62


# --- random numbers -------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def seeded(seed: int) -> Random:
    """Make the state of the generator, which is never 0."""
    state = np.empty(1, dtype=np.uint64)
    state[0] = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x2545F4914F6CDD1D)
    if state[0] == 0:
        state[0] = np.uint64(1)
    return state


@njit(cache=True, nogil=True)
def draw(random: Random, below: int) -> int:
    """Draw a whole number below a limit (xorshift64*), the same everywhere."""
    x = random[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    random[0] = x
    high = (x * np.uint64(2685821657736338717)) >> np.uint64(33)
    return int(np.int64((high * np.uint64(below)) >> np.uint64(31)))


@njit(cache=True, nogil=True)
def uniform(random: Random) -> float:
    """Draw a number in (0, 1)."""
    return (draw(random, 1 << 30) + 0.5) / (1 << 30)


@njit(cache=True, nogil=True)
def accepts(random: Random, change: float, temperature: float) -> bool:
    """Decide by the Metropolis rule: gains are taken, losses at random."""
    return change <= 0.0 or change <= -temperature * np.log(uniform(random))


# --- placements and loads -------------------------------------------------------------------


@njit(cache=True, nogil=True)
def home_nodes(copies: Copies, nodes: int) -> IntArray:
    """Find the node of every expert, int64 [experts]: that of its first copy."""
    experts, gpus = copies.shape
    node_of = np.zeros(experts, dtype=np.int64)
    for expert in range(experts):
        for gpu in range(gpus):
            if copies[expert, gpu]:
                node_of[expert] = gpu // (gpus // nodes)
                break
    return node_of


@njit(cache=True, nogil=True)
def fullest(random: Random, load: FloatArray, first: int, width: int) -> int:
    """Pick the fullest of a few GPUs of a node, in a random window."""
    window = draw(random, load.shape[1])
    best = first + draw(random, width)
    for _ in range(_SAMPLE - 1):
        gpu = first + draw(random, width)
        if load[gpu, window] > load[best, window]:
            best = gpu
    return best


@njit(cache=True, nogil=True)
def root(value: float) -> float:
    """Compute the 8th root."""
    return float(np.sqrt(np.sqrt(np.sqrt(value))))
