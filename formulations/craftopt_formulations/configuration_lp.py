"""Configuration LP: can every GPU of one layer stay below a load T? Solved by column generation.

A *configuration* is what one GPU may hold: a set P of experts, each with the number of copies c
that it would have in the whole layer, light enough, ``sum_{(e,c) in P} t_e / c < T``, and with
as many members as the slot rule fills. With variables lambda_P >= 0, how many GPUs hold P::

    min   sum_P lambda_P
    s.t.  cover[e]:  sum_P lambda_P * sum_{(e,c) in P} 1/c >= 1     for every expert
          slots:     sum_P lambda_P * |P|                  <= n     copies in all
          fuller:    sum_{|P| = q+1} lambda_P              <= n mod G   (even slots)

Every placement with all loads below T is a solution with G configurations. So if the optimum
exceeds G, T or more is the largest load of every placement. Duals sigma_e, beta, gamma >= 0 need
not be optimal for that: with D the most that ``sum sigma_e/c - beta |P| - gamma [|P| = q+1]``
reaches over all configurations (the pricing problem: a multiple-choice knapsack with a
cardinality), ``sum sigma_e - beta n - gamma (n mod G) > G D`` is a proof (Farley's bound). Here
duals are rounded to whole numbers and D is computed exactly, by dynamic programming over sizes
rounded down to a grid; nothing that the LP solver says is trusted.

===================  ==============================================
master problem       GLOP, through OR-Tools' ``pywraplp``
pricing              own compiled dynamic program, whole numbers
===================  ==============================================

References
----------
Gilmore, Gomory: A linear programming approach to the cutting-stock problem (1961);
Farley: A note on bounding a class of linear programming problems (1990);
Wentges: Weighted Dantzig-Wolfe decomposition for linear mixed-integer programming (1997).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm
from typing import Any

import numpy as np

from craftopt.jit import njit
from craftopt.loads import FloatArray, IntArray

# Experts, and the copies that each has in the whole layer.
Configuration = tuple[IntArray, IntArray]

# Whole units that a dual value of 1 is rounded to.
UNITS = 10**9
# Sizes are rounded down to multiples of T / grid; the grid has at most this many steps.
MOST_STEPS = 1024
# How much of the best duals so far goes into those that are priced (Wentges' smoothing).
PULL = 0.7
# A column must improve the master by more than this to be worth another round.
IMPROVEMENT = 1e-7


@dataclass(frozen=True)
class Layer:
    """One layer and window, in exact numbers, with limits on the copies of every expert.

    Parameters
    ----------
    tokens : tuple of Fraction, [experts]
    gpus, copies : int
        GPUs, and copies in all.
    lower, upper : tuple of int, [experts]
        Least and most copies.
    even : bool
        Every GPU holds floor or ceil of copies/gpus; otherwise any number.
    """

    tokens: tuple[Fraction, ...]
    gpus: int
    copies: int
    lower: tuple[int, ...]
    upper: tuple[int, ...]
    even: bool = True

    @classmethod
    def of(
        cls, tokens: FloatArray | Sequence[float], gpus: int, replicas: int, *, even: bool = True
    ) -> Layer:
        """Make a layer of an array, with 1 to ``gpus`` copies of every expert."""
        exact = tuple(Fraction(float(count)) for count in tokens)
        ones, most = (1,) * len(exact), (gpus,) * len(exact)
        return cls(exact, gpus, len(exact) + replicas, ones, most, even)

    @property
    def least_slots(self) -> int:
        """Copies on the GPU that holds the fewest."""
        return self.copies // self.gpus if self.even else 0

    @property
    def fuller(self) -> int:
        """GPUs that hold one copy more than the others, under even slots."""
        return self.copies % self.gpus if self.even else 0

    def below(self, load: Fraction) -> Layer | None:
        """Tighten the limits for placements with all loads below ``load``; None = there are none.

        A copy must be lighter than ``load``, and all copies together are ``copies``.
        """
        # Most that a copy count can be, given that everyone else takes their least, and so on.
        lower = [
            max(least, count // load + 1)
            for least, count in zip(self.lower, self.tokens, strict=True)
        ]
        spare = self.copies - sum(lower)
        upper = [min(most, least + spare) for most, least in zip(self.upper, lower, strict=True)]
        room = sum(upper) - self.copies
        lower = [max(least, most - room) for least, most in zip(lower, upper, strict=True)]
        if spare < 0 or room < 0 or any(a > b for a, b in zip(lower, upper, strict=True)):
            return None
        return Layer(
            self.tokens, self.gpus, self.copies, tuple(lower), tuple(upper), even=self.even
        )


@dataclass(frozen=True)
class Priced:
    """What column generation found at one load.

    Parameters
    ----------
    witness : dict or None
        The dual as a witness of kind ``configuration``; None where nothing was proven.
    copies : float64 [experts]
        Copies of every expert in the last solution of the master; what to branch on.
    rounds : int
        Masters solved.
    """

    witness: dict[str, Any] | None
    copies: FloatArray
    rounds: int


def configuration_bound(
    layer: Layer, proven: float, reached: float, *, tolerance: float = 1e-4, rounds: int = 400
) -> tuple[float, dict[str, Any] | None]:
    """Raise a lower bound on the largest GPU load by bisection.

    Parameters
    ----------
    layer : Layer
    proven, reached : float
        A lower bound, and the largest load of a placement.
    tolerance : float
        Stop when the two are this close, relative.
    rounds : int
        Most masters to solve for one load.

    Returns
    -------
    bound : float
    witness : dict or None
        Its proof; None where ``proven`` could not be raised.

    Examples
    --------
    >>> from craftopt_formulations.configuration_lp import Layer, configuration_bound
    >>> layer = Layer.of([600, 560, 120, 120, 20, 10, 10, 10], gpus=8, replicas=8)
    >>> bound, witness = configuration_bound(layer, proven=181.25, reached=197)
    >>> 191 < bound < 192
    True
    """
    witness = None
    while reached - proven > tolerance * proven:
        # Few digits keep the fractions of the witness short.
        load = Fraction(f"{(proven + reached) / 2:.9e}")
        found = price_configurations(layer, load, rounds=rounds).witness
        if found is None:
            reached = float(load)
        else:
            proven, witness = float(load), found
    return proven, witness


def price_configurations(layer: Layer, load: Fraction, *, rounds: int = 400) -> Priced:
    """Generate configurations until one load is proven impossible, or the LP allows it.

    Parameters
    ----------
    layer : Layer
    load : Fraction
    rounds : int
        Most masters to solve.

    Returns
    -------
    Priced
    """
    tight = layer.below(load)
    hosted = np.ones(len(layer.tokens))
    if tight is None:  # the heaviest copy proves it already
        return Priced(None, hosted, 0)
    options = _Options.of(tight, load)
    master = _Master(tight)
    centre, closest = np.zeros(hosted.size + 2), -1.0
    for count in range(1, rounds + 1):
        value, duals, hosted = master.solve()
        if value <= layer.gpus:  # G configurations are enough
            break
        useful: list[Configuration] = []
        # Duals jump from round to round; nearer to the best ones so far, columns are better.
        for pull in (PULL, 0.0) if closest > 0 else (0.0,):
            mixed = np.rint(UNITS * (pull * centre + (1 - pull) * duals)).astype(np.int64)
            best, found = options.price(mixed[:-2], int(mixed[-2]), int(mixed[-1]))
            total = int(mixed[:-2].sum() - mixed[-2] * layer.copies - mixed[-1] * layer.fuller)
            if total > layer.gpus * best:
                return Priced(_witness(load, mixed, best, options.grid), hosted, count)
            if total > closest * best:
                centre, closest = mixed / UNITS, total / best
            useful = [one for one in found if _worth(one, duals, tight) > 1 + IMPROVEMENT]
            if useful:
                break
        if not useful:
            break
        for one in useful:
            master.add(one)
    return Priced(None, hosted, count)


class _Master:
    """The LP over the configurations so far, one column each."""

    def __init__(self, layer: Layer) -> None:
        from ortools.linear_solver import pywraplp  # noqa: PLC0415 (an optional dependency)

        self._layer = layer
        self._lp: Any = pywraplp.Solver.CreateSolver("GLOP")
        infinity = self._lp.infinity()
        experts = len(layer.tokens)
        self._cover = [self._lp.Constraint(1.0, infinity, f"cover[{e}]") for e in range(experts)]
        self._slots = self._lp.Constraint(-infinity, float(layer.copies), "slots")
        self._fuller = self._lp.Constraint(-infinity, float(layer.fuller), "fuller")
        self._lp.Objective().SetMinimization()
        self._columns: list[tuple[Any, IntArray]] = []
        for e, row in enumerate(self._cover):  # so that there is a solution: costly, soon dropped
            spare = self._lp.NumVar(0.0, infinity, f"spare[{e}]")
            row.SetCoefficient(spare, 1.0)
            self._lp.Objective().SetCoefficient(spare, layer.gpus + 1.0)

    def add(self, configuration: Configuration) -> None:
        members, copies = configuration
        column = self._lp.NumVar(0.0, self._lp.infinity(), f"configuration[{len(self._columns)}]")
        for e, c in zip(members.tolist(), copies.tolist(), strict=True):
            self._cover[e].SetCoefficient(column, 1.0 / c)
        self._slots.SetCoefficient(column, float(members.size))
        self._fuller.SetCoefficient(column, float(_is_fuller(members, self._layer)))
        self._lp.Objective().SetCoefficient(column, 1.0)
        self._columns.append((column, members))

    def solve(self) -> tuple[float, FloatArray, FloatArray]:
        """Return the value, the duals (sigma, then beta and gamma), and everyone's copies."""
        self._lp.Solve()
        rows = (*self._cover, self._slots, self._fuller)
        hosted = np.zeros(len(self._cover))
        for column, members in self._columns:
            hosted[members] += column.solution_value()
        duals = np.array([abs(row.dual_value()) for row in rows])
        return float(self._lp.Objective().Value()), duals, hosted


def _worth(configuration: Configuration, duals: FloatArray, layer: Layer) -> float:
    """Value a configuration by the master's duals; above 1 it improves the master."""
    members, copies = configuration
    worth = float((duals[members] / copies).sum() - duals[-2] * members.size)
    return worth - float(duals[-1]) * _is_fuller(members, layer)


def _is_fuller(members: IntArray, layer: Layer) -> bool:
    return layer.even and members.size > layer.least_slots


def _witness(load: Fraction, duals: IntArray, scale: int, grid: int) -> dict[str, Any]:
    return {
        "kind": "configuration",
        "load": str(load),
        "experts": duals[:-2].tolist(),
        "slot": int(duals[-2]),
        "extra": int(duals[-1]),
        "scale": scale,
        "grid": grid,
    }


@dataclass(frozen=True)
class _Options:
    """Every (expert, copies) that a configuration can hold, with its size on the grid.

    ``first[e]`` to ``first[e + 1]`` are the options of expert e. Of options of one expert and
    one size only that with the fewest copies is kept: it covers the most.
    """

    first: IntArray
    copies: IntArray
    size: IntArray
    grid: int
    least: int
    most: int
    counted: bool

    @classmethod
    def of(cls, layer: Layer, load: Fraction) -> _Options:
        grid = _grid(layer.tokens, load)
        first, copies, size = [0], [], []
        for count, least, most in zip(layer.tokens, layer.lower, layer.upper, strict=True):
            before = None
            for c in range(least, most + 1):
                steps = int(count * grid / (c * load))
                if steps != before:
                    copies.append(c)
                    size.append(steps)
                before = steps
            first.append(len(copies))
        least, most = layer.least_slots, layer.least_slots + (layer.fuller > 0)
        options = np.array(first), np.array(copies), np.array(size)
        return cls(*options, grid, least, most, layer.even)

    def price(self, sigma: IntArray, beta: int, gamma: int) -> tuple[int, list[Configuration]]:
        """Find the most that a configuration is worth, and the best ones of each size."""
        value = -(-sigma[np.repeat(np.arange(sigma.size), np.diff(self.first))] // self.copies)
        if not self.counted:
            best, chosen = _knapsack(self.first, self.size, value - beta, self.grid, 0)
            return max(0, int(best[0])), [self._members(chosen[0])]
        best, chosen = _knapsack(self.first, self.size, value, self.grid, self.most)
        worth, found = [], []
        for count in range(self.least, self.most + 1):
            if best[count] < 0:  # no configuration of that size is light enough
                continue
            worth.append(int(best[count]) - beta * count - gamma * (count > self.least))
            found.append(self._members(chosen[count]))
        return max(worth, default=0), found

    def _members(self, chosen: IntArray) -> Configuration:
        members = np.flatnonzero(chosen >= 0)
        return members, self.copies[chosen[members]]


def _grid(tokens: tuple[Fraction, ...], load: Fraction) -> int:
    """Choose the steps of sizes, such that loads of exactly T are seen as such where possible."""
    whole = lcm(*(count.denominator for count in tokens))
    unit = Fraction(gcd(*(int(count * whole) for count in tokens)), whole)
    period = (load / unit).numerator if unit else 1
    for factor in (60, 12, 1):  # the copies that experts have divide it
        if period * factor <= MOST_STEPS:
            return MOST_STEPS // (period * factor) * period * factor
    return MOST_STEPS


@njit()
def _knapsack(
    first: IntArray, size: IntArray, value: IntArray, grid: int, most: int
) -> tuple[IntArray, IntArray]:
    """Choose at most one option per expert, sizes summing to less than ``grid``.

    With ``most`` > 0, the best choice of every number of members up to that; with 0, of any
    number.

    Returns
    -------
    best : int64 [most + 1]
        The largest value; -1 where no choice fits.
    chosen : int64 [most + 1, experts]
        The option of every expert, or -1.
    """
    experts = first.size - 1
    counted = most > 0
    nothing = np.int64(-(1 << 60))
    best = np.full((most + 1, grid), nothing)
    best[0, :] = 0
    choice = np.full((experts, most + 1, grid), -1, dtype=np.int32)
    for e in range(experts):
        for count in range(most, 0 if counted else -1, -1):
            old = best[count - 1] if counted else best[0].copy()
            for option in range(first[e], first[e + 1]):
                for room in range(size[option], grid):
                    worth = old[room - size[option]] + value[option]
                    if worth > best[count, room] and worth > nothing // 2:
                        best[count, room] = worth
                        choice[e, count, room] = option
    chosen = np.full((most + 1, experts), -1, dtype=np.int64)
    for total in range(most + 1):
        room, count = grid - 1, total
        if best[total, room] <= nothing // 2:
            continue
        for e in range(experts - 1, -1, -1):
            option = choice[e, count, room]
            if option >= 0:
                chosen[total, e] = option
                room -= size[option]
                count -= 1 if counted else 0
    ends = np.where(best[:, grid - 1] <= nothing // 2, -1, best[:, grid - 1])
    return ends, chosen
