"""Prove what one layer costs at least: the cheapest bounds, as witnesses."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from craftopt.bounds import (
    cardinality_bound_of_nodes,
    common_copies_witness,
    companions_of,
    max_copy_load_of_groups,
    mean_loads,
    saving,
)
from craftopt.errors import VerificationError
from craftopt.problem import Problem
from craftopt.result import Options
from craftopt.verification import ExactProblem, Witness

# A layer, by position, with a number of replicas.
Cell = tuple[int, int]

# Witness loads keep 40 bits so that checking stays fast; where rounding of the price has cost the
# proof, the load is lowered a little.
_BITS = 40
_SLACKS = (0.0, 1e-10, 1e-8, 1e-6)
# A layer this close to its bound, relative, is closed.
_CLOSED = Fraction(1, 10**10)


class LayerProver:
    """Finds witnesses for one layer at a time, here or in an executor."""

    def __init__(
        self, problem: Problem, evidence: Mapping[Cell, Sequence[Witness]], options: Options
    ) -> None:
        self.problem, self.exact = problem, ExactProblem(problem)
        self._evidence, self._means = evidence, mean_loads(problem)
        self._end = options.deadline()

    def __getstate__(self) -> dict[str, Any]:  # clocks differ between machines
        return {**self.__dict__, "_end": self._end - time.monotonic()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._end += time.monotonic()

    def in_time(self) -> bool:
        """Say whether bounds are still to be sharpened."""
        return time.monotonic() < self._end

    def in_tokens(self, cost: Fraction) -> float:
        """Turn a cost into the unit of `craftopt.bounds.layer_costs`."""
        return float(cost / self.exact.unit if self.exact.time else cost)

    def find(
        self, cell: Cell, goal: Fraction | None, price: float | None
    ) -> tuple[Witness, tuple[int, int]]:
        """Find the best witness and what it proves; stop where the goal, if any, is attained.

        With a goal also by the copies that windows share, at a price of a replica.
        """
        sharp = self.problem.even_slots and self.in_time()
        witness, cost = self._analytic(cell, sharp=sharp)
        others = self._evidence.get(cell, ())
        if goal is not None and self.problem.loads.windows > 1:
            price = saving(self.problem, *cell) if price is None else price
            others = [self._credits(cell, price), *others]
        for other in others:
            if _closed(cost, goal):
                break
            proven = self.exact.proven_cost(*cell, other)
            if proven > cost:
                witness, cost = other, proven
        return witness, cost.as_integer_ratio()

    def line(self, layer: int, price: float) -> tuple[Witness, tuple[int, int], tuple[int, int]]:
        """Prove a layer's cost with any number of replicas: witness, start and fall."""
        witness = self._credits((layer, int(self.problem.replica_choices[0])), price)
        start, fall = self.exact.proven_line(layer, witness)
        return witness, start.as_integer_ratio(), fall.as_integer_ratio()

    def _credits(self, cell: Cell, price: float) -> Witness:
        """Write what copies that windows share prove, with as many replicas or more."""
        problem = self.problem
        companions, _ = companions_of(problem, *cell, price)
        return common_copies_witness(
            problem.loads.tokens[:, cell[0]],
            problem.gpus,
            problem.copies_limit,
            price,
            problem.objective,
            companions,
        )

    def _analytic(self, cell: Cell, *, sharp: bool) -> tuple[Witness, Fraction]:
        """Bound every window by mean and heaviest copy and, if ``sharp``, by cardinality."""
        problem = self.problem
        layer, replicas = cell
        limit, groups = problem.copies_limit, (problem.group_of, problem.group_nodes)
        bounds = []
        for tokens, mean in zip(
            problem.loads.tokens[:, layer], self._means[:, layer].tolist(), strict=True
        ):
            heaviest = float(max_copy_load_of_groups(tokens, *groups, replicas, limit, mean)[-1])
            load, price, group = max(mean, heaviest), 0.0, -1
            if sharp:
                load, price, group = cardinality_bound_of_nodes(
                    tokens, *groups, replicas, problem.gpus, limit, load
                )
            bounds.append((load, price, group, "copies" if heaviest > mean else "mean"))
        for slack in _SLACKS:
            windows = [
                _cardinality_witness(load * (1.0 - slack), price, group)
                if price
                else {"kind": kind}
                for load, price, group, kind in bounds
            ]
            witness: Witness = {"kind": "windows", "windows": windows}
            if len(windows) == 1:
                witness = windows[0]
            try:
                return witness, self.exact.proven_cost(layer, replicas, witness)
            except VerificationError:
                continue
        return self._analytic(cell, sharp=False)


def _closed(cost: Fraction, goal: Fraction | None) -> bool:
    return goal is not None and goal - cost <= _CLOSED * abs(goal)


def _cardinality_witness(load: float, price: float, group: int) -> Witness:
    """Write a load, rounded down to few bits, and the price that refutes it on a group's node."""
    mantissa, exponent = math.frexp(load)
    rounded = Fraction(math.floor(math.ldexp(mantissa, _BITS))) * Fraction(2) ** (exponent - _BITS)
    # Prices are quotients of tokens and copies: mostly of small denominators.
    simple = Fraction(price).limit_denominator(1000)
    if abs(simple - Fraction(price)) > abs(price) * 1e-14:
        simple = Fraction(price)
    witness = {"kind": "cardinality", "load": str(rounded), "price": str(simple)}
    return witness if group < 0 else {**witness, "group": group}
