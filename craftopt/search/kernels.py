"""What all searches of one layer share: rules, schedule and random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt

from craftopt import portable
from craftopt.jit import inner, njit
from craftopt.loads import FloatArray, IntArray
from craftopt.plan import Copies

# State of the generator of random numbers.
Random = npt.NDArray[np.uint64]

Function = TypeVar("Function", bound=Callable[..., Any])

# No slot, no expert. A literal -1 would have kernels compiled once for it and once for numbers.
NONE: Final = cast("int", np.int64(-1))


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


def step_kernel(function: Function, *, inline: bool = False) -> Function:
    """Compile what every step of a search calls.

    Without counts of references to arrays, which would take longer than the arithmetic; so it
    must not make arrays.
    """
    return inner(forceinline=inline, _nrt=False)(function)


def inlined(function: Function) -> Function:
    """Compile what every step of a search calls, as part of its caller; see `step_kernel`."""
    return step_kernel(function, inline=True)


# --- random numbers -------------------------------------------------------------------------


@njit()
def seeded(seed: int) -> Random:
    """Make the state of the generator, which is never 0."""
    state = np.empty(1, dtype=np.uint64)
    state[0] = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x2545F4914F6CDD1D)
    if state[0] == 0:
        state[0] = np.uint64(1)
    return state


@inlined
def draw_word(random: Random) -> np.uint64:
    """Draw 64 bits (xorshift64*), the same everywhere."""
    x = random[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    random[0] = x
    word: np.uint64 = x * np.uint64(2685821657736338717)
    return word


@inlined
def field(word: np.uint64, k: int, below: int) -> int:
    """Turn one of the four parts of a word into a whole number below a limit, at most 65536."""
    part = (word >> np.uint64(16 * k)) & np.uint64(0xFFFF)
    return int(np.int64((part * np.uint64(below)) >> np.uint64(16)))


@inlined
def draw(random: Random, below: int) -> int:
    """Draw a whole number below a limit."""
    return int(np.int64(((draw_word(random) >> np.uint64(33)) * np.uint64(below)) >> np.uint64(31)))


@inlined
def uniform(random: Random) -> float:
    """Draw a number in (0, 1)."""
    return (draw(random, 1 << 30) + 0.5) / (1 << 30)


_log, _exp = step_kernel(portable.log), step_kernel(portable.exp)


@inlined
def exponential(random: Random) -> float:
    """Draw an exponentially distributed number of mean 1, below 22."""
    return -_log(uniform(random))


@step_kernel
def fall(first: float, last: float, steps: int) -> float:
    """Compute the factor by which to go from the first to the last in so many steps."""
    return _exp(_log(last / first) / max(steps, 1))


@inlined
def accepts(random: Random, change: float, temperature: float) -> bool:
    """Decide by the Metropolis rule: gains are taken, losses at random."""
    if change <= 0.0:
        return True
    return change < 22.0 * temperature and change <= temperature * exponential(random)


# --- placements and loads -------------------------------------------------------------------


@njit()
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


@inlined
def fullest(random: Random, load: FloatArray, first: int, width: int) -> int:
    """Pick the fullest of six random GPUs of a node, in a random window."""
    word = draw_word(random)
    return fullest_in(field(word, 0, load.shape[1]), word, random, load, first, width)


@inlined
def fullest_in(
    window: int, word: np.uint64, random: Random, load: FloatArray, first: int, width: int
) -> int:
    """Pick the fullest of six random GPUs of a node in a window, by a word's middle and more."""
    more = draw_word(random)
    best = first + field(word, 1, width)
    most = load[best, window]
    for k in range(5):
        gpu = first + (field(more, k, width) if k < 4 else field(word, 2, width))
        # Without branches: they would be guessed wrong.
        fuller, most = load[gpu, window] > most, max(load[gpu, window], most)
        best = gpu if fuller else best
    return best


@inlined
def eighth_power(value: float) -> float:
    """Compute the 8th power."""
    value *= value
    value *= value
    return value * value


@inlined
def root(value: float) -> float:
    """Compute the 8th root."""
    return float(np.sqrt(np.sqrt(np.sqrt(value))))
