"""What plans cost, what witnesses prove, and the bound on whole plans, all in fractions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import chain
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from craftopt.errors import VerificationError
from craftopt.plan import Plan
from craftopt.problem import Problem
from craftopt.verification.checks import FITS, Witness, fraction, require
from craftopt.verification.witnesses import (
    Box,
    heaviest_copies,
    layer_cost,
    line_of_credits,
    window_cost,
)

# A layer, by position, and its number of replicas.
Cell = tuple[int, int]
Value = TypeVar("Value", int, Fraction)
# A bound on a layer's cost with any number of replicas, start - price x replicas: (start, price).
Line = tuple[Fraction, Fraction]

# Summed balancedness is a multiple of 1/_STEPS, rounded against the claim (a plan's down, a proof's
# up): of many windows, exact fractions have more digits than Python reads.
_STEPS = 2**80


class ExactProblem:
    """A problem in whole numbers: what plans cost and what witnesses prove.

    Costs of a layer are sums over windows of largest GPU loads, in units of ``1/unit`` tokens
    (objective time), or minus sums of balancedness, rounded against the claim to 24 digits.

    Parameters
    ----------
    problem : Problem
    """

    def __init__(self, problem: Problem) -> None:
        problem.goal.require_even_dispatch("verify")
        self.problem = problem
        self.time = problem.objective == "time"
        tokens = problem.loads.tokens
        if (tokens == np.floor(tokens)).all() and tokens.max() < 2**53:
            self.unit = 1
            self._weights: npt.NDArray[np.int64 | np.object_] = tokens.astype(np.int64)
        else:
            ratios = [value.as_integer_ratio() for value in tokens.ravel().tolist()]
            self.unit = max(below for _, below in ratios)
            units = [above * (self.unit // below) for above, below in ratios]
            self._weights = np.array(units, dtype=object).reshape(tokens.shape)
        # Replicas that one layer can take are 0, step, ..., limit.
        most = min(problem.replicas, problem.loads.experts * (problem.copies_limit - 1))
        self._limit = most - most % problem.replica_step
        self._even = problem.slots != "free" or problem.loads.layers == 1
        # Tokens of every layer and window, and of all.
        self._sums: list[list[int]] = [
            [sum(row) for row in rows] for rows in self._weights.transpose(1, 0, 2).tolist()
        ]
        self._tokens = sum(map(sum, self._sums))
        # Experts of every group, where there are groups.
        self._members: list[list[int]] = [
            np.flatnonzero(problem.group_of == group).tolist()
            for group in range(problem.groups if problem.group_nodes > 1 else 0)
        ]

    def plan_cost(self, layer: int, plan: Plan) -> Fraction:
        """Compute a layer's cost under even dispatch."""
        copies = plan.copies[layer]
        counts = plan.replica_counts[layer]
        common = math.lcm(*set(counts.tolist()))
        shares = self._weights[:, layer].astype(object) * (common // counts.astype(object))
        loads = [shares[:, np.flatnonzero(hosted)].sum(axis=1) for hosted in copies.T]
        largest = [Fraction(max(of_window), common) for of_window in zip(*loads, strict=True)]
        means = self._means(layer)
        pairs = zip(largest, means, strict=True)
        cost = sum((window_cost(load, mean, self.time) for load, mean in pairs), Fraction(0))
        return cost if self.time else Fraction(math.ceil(cost * _STEPS), _STEPS)

    def plan_costs(self, plan: Plan) -> list[Fraction]:
        """Compute the cost of every layer."""
        return [self.plan_cost(layer, plan) for layer in range(self.problem.loads.layers)]

    def cells(self, steps: int) -> list[tuple[int, list[int]]]:
        """List every layer of every window, with its tokens in whole ``1/(steps * unit)``."""
        rows = self._weights.astype(object) * steps
        return [(layer, row) for window in rows.tolist() for layer, row in enumerate(window)]

    def objective(self, costs: Sequence[Fraction]) -> Fraction:
        """Compute the objective from the costs of all layers."""
        total = sum(costs, Fraction(0))
        if not self.time:
            return -total / (self.problem.loads.windows * self.problem.loads.layers)
        return total * Fraction(self.problem.gpus, self._tokens) if self._tokens else Fraction(1)

    def layer_objective(self, layer: int, cost: Fraction) -> Fraction:
        """Compute the objective of one layer by itself."""
        if not self.time:
            return -cost / self.problem.loads.windows
        tokens = sum(self._sums[layer])
        return cost * Fraction(self.problem.gpus, tokens) if tokens else Fraction(1)

    def gap(self, value: Fraction, bound: Fraction) -> Fraction:
        """Compute how far a value is from its bound, relative; below 0 if it is better."""
        return (value - bound) / bound if self.time else (bound - value) / value

    def proven_cost(self, layer: int, replicas: int, witness: Witness) -> Fraction:
        """Bound a layer's cost with exactly ``replicas`` replicas by what a witness proves.

        Raises
        ------
        VerificationError
            The witness proves nothing, or says what it proves in a wrong way.
        """
        name = self._name(layer, replicas)
        require(
            0 <= replicas <= self._limit and replicas % self.problem.replica_step == 0,
            f"{name}: no layer can have that number",
        )
        try:
            cost = layer_cost(witness, self._box(layer, replicas))
        except VerificationError as error:
            raise VerificationError(f"{name}: {error}") from None
        if not isinstance(cost, Fraction):
            raise VerificationError(f"{name}: the witness leaves no choice of copies at all")
        return self._rounded_down(cost)

    def proven_line(self, layer: int, witness: Witness) -> Line:
        """Bound a layer's cost with any number of replicas by credits.

        Raises
        ------
        VerificationError
            As `proven_cost`.
        """
        name = self._name(layer, "any number of")
        require(witness["kind"] == "credits", f"{name}: only credits hold for all of them")
        problem = self.problem
        least = -problem.loads.experts % problem.gpus if problem.slots == "uniform" else 0
        try:
            start, price = line_of_credits(witness, self._box(layer, least))
        except VerificationError as error:
            raise VerificationError(f"{name}: {error}") from None
        return self._rounded_down(start), price

    def claimed_cost(self, layer: int, replicas: int, claim: Witness) -> Fraction:
        """Read what a solver claims of a layer's cost.

        Raises
        ------
        VerificationError
            A claim of nobody, or of more than any placement costs.
        """
        name = self._name(layer, replicas)
        require(0 <= replicas <= self._limit, f"{name}: no layer can have that number")
        named = isinstance(claim["solver"], str) and isinstance(claim["version"], str)
        require(claim["kind"] == "solver" and named, f"{name}: a claim must name its solver")
        cost = fraction(claim["cost"]) * (self.unit if self.time else 1)
        # All tokens on one GPU cost most.
        most = sum(self._sums[layer]) if self.time else 0
        require(cost <= most, f"{name}: {claim['solver']} claims more than any placement costs")
        return cost

    def least_objective(
        self, proven: Mapping[Cell, Fraction], lines: Mapping[int, Sequence[Line]]
    ) -> Fraction:
        """Bound the objective of every plan: mean, heaviest copy, and what is proven besides.

        Every layer's cost with every number of replicas, rounded down to whole units, goes
        into a knapsack over the layers.

        Parameters
        ----------
        proven : mapping
            Bounds on the cost of a layer with a number of replicas.
        lines : mapping
            By layer, bounds on its cost with any number of them.
        """
        problem = self.problem
        windows, layers = problem.loads.windows, problem.loads.layers
        if self.time and not self._tokens:
            return Fraction(1)
        # Summed, relative time is at most gpus and balancedness at most windows x layers.
        largest = problem.gpus if self.time else windows * layers
        units = 1 << (61 - largest.bit_length())
        scale = Fraction(units)
        if self.time:
            scale *= Fraction(problem.gpus, self._tokens)
        curves = [self._curve(layer, scale, lines.get(layer, ())) for layer in range(layers)]
        sharper: list[dict[int, int]] = [{} for _ in range(layers)]
        for (layer, replicas), cost in proven.items():
            known = _at(curves[layer], replicas)
            sharper[layer][replicas] = max(known, math.floor(cost * scale))
        total = self._least(curves, sharper)
        if self.time:
            return max(Fraction(1), Fraction(total, units))
        return min(Fraction(1), Fraction(-total, units * windows * layers))

    def least_sum(self, curves: Sequence[Mapping[int, Fraction]], most: int) -> Fraction:
        """Bound a sum over the layers, at most ``most``, given its bounds by their replicas."""
        units = 1 << (61 - most.bit_length())
        rounded = [{r: math.floor(of * units) for r, of in curve.items()} for curve in curves]
        return Fraction(self._least([[0]] * len(rounded), rounded), units)

    def _least(self, curves: list[list[int]], sharper: list[dict[int, int]]) -> int:
        """Minimise a sum over the layers under the budget: curves, or what is known to be more."""
        if self.problem.slots == "uniform":
            return self._least_uniform(curves, sharper)
        return self._least_within_budget(curves, sharper)

    def _curve(self, layer: int, scale: Fraction, lines: Sequence[Line]) -> list[int]:
        """List a layer's cost by mean, heaviest copy and lines, with 0, 1, ... replicas.

        Rounded down; with more replicas than are listed it stays as it is.
        """
        curve = [0]
        for window, (mean, floor) in enumerate(
            zip(self._means(layer), self._floors(layer), strict=True)
        ):
            loads = self._heaviest(layer, window, floor)
            listed = [_units(window_cost(load, mean, self.time), scale) for load in loads]
            while len(curve) < len(listed):
                curve.append(curve[-1])
            curve = [cost + _at(listed, replicas) for replicas, cost in enumerate(curve)]
        flat = curve[-1]
        for start, price in lines:
            for replicas in range(self._limit + 1):
                cost = _units(start - price * replicas, scale)
                if replicas < len(curve):
                    curve[replicas] = max(curve[replicas], cost)
                elif cost > flat:
                    curve.append(cost)
                else:
                    break
        return [*curve, flat]

    def _heaviest(self, layer: int, window: int, floor: Fraction) -> list[Fraction]:
        """List the least possible heaviest copy with 0, 1, ... replicas, down to a floor.

        Under groups also of every group by itself, with its node's share of the replicas.
        """
        weights, nodes = self._weights[window, layer], self.problem.group_nodes
        heavy = weights * self.problem.gpus > self._sums[layer][window]
        found = self._heaviest_of(weights[heavy].tolist(), floor)
        for members in self._members:
            part = self._heaviest_of(weights[members][heavy[members]].tolist(), floor)
            found = [
                max(_at(found, replicas), _at(part, replicas // nodes))
                for replicas in range(max(len(found), len(part) * nodes))
            ]
        return found

    def _heaviest_of(self, heavy: list[int], floor: Fraction) -> list[Fraction]:
        copies = heaviest_copies(heavy, [1] * len(heavy), [self.problem.copies_limit] * len(heavy))
        found: list[Fraction] = []
        for load in chain(copies, () if heavy else (floor,)):
            if load <= floor:
                return [*found, floor]
            found.append(load)
        return found

    def _least_uniform(self, curves: list[list[int]], sharper: list[dict[int, int]]) -> int:
        """Choose the slots that all GPUs have in all layers."""
        problem = self.problem
        experts, layers = problem.loads.experts, problem.loads.layers
        totals = []
        for slots in range(-(-experts // problem.gpus), experts * problem.copies_limit + 1):
            replicas = slots * problem.gpus - experts
            if replicas * layers > problem.replicas or replicas > self._limit:
                break
            totals.append(
                sum(
                    known.get(replicas, _at(curve, replicas))
                    for curve, known in zip(curves, sharper, strict=True)
                )
            )
        return min(totals)

    def _least_within_budget(self, curves: list[list[int]], sharper: list[dict[int, int]]) -> int:
        """Solve the multiple-choice knapsack: best[b] = least cost of the layers so far with b."""
        step = self.problem.replica_step
        most = self._limit * self.problem.loads.layers
        budget = min(self.problem.replicas, most) // step
        best = np.zeros(budget + 1, dtype=np.int64)
        for curve, known in zip(curves, sharper, strict=True):
            # Of the choices that are all alike at the end, the first is as good as any.
            last = max(len(curve) - 1, *known) + step
            fresh: npt.NDArray[np.int64] = np.full(budget + 1, FITS)
            for units in range(min(self._limit, last) // step + 1):
                replicas = units * step
                cost = known.get(replicas, _at(curve, replicas))
                fresh[units:] = np.minimum(fresh[units:], best[: budget + 1 - units] + cost)
            best = fresh
        return int(best[-1])

    def _means(self, layer: int) -> tuple[Fraction, ...]:
        """Compute the mean GPU load of every window."""
        return tuple(Fraction(tokens, self.problem.gpus) for tokens in self._sums[layer])

    def _floors(self, layer: int) -> tuple[Fraction, ...]:
        """Bound the largest load of every window by means: of all GPUs, or of a node's groups."""
        problem, means = self.problem, self._means(layer)
        nodes, each = problem.group_nodes, problem.groups // problem.group_nodes
        if nodes == 1:
            return means
        floors = []
        for weights, mean in zip(self._weights[:, layer].tolist(), means, strict=True):
            sums = [0] * problem.groups
            for group, weight in zip(problem.group_of.tolist(), weights, strict=True):
                sums[group] += weight
            sums.sort()
            # Of the j N + 1 heaviest groups, j + 1 share a node, with the lightest others at least.
            node = max(
                sum(sums[: each - 1 - j])
                + sum(sums[problem.groups - j * nodes - 1 : problem.groups - j * nodes + j])
                for j in range(each)
            )
            floors.append(max(mean, Fraction(node, problem.gpus_per_node)))
        return tuple(floors)

    def _box(self, layer: int, replicas: int) -> Box:
        experts = self.problem.loads.experts
        return Box(
            weights=self._weights[:, layer],
            means=self._means(layer),
            floors=self._floors(layer),
            gpus=self.problem.gpus,
            copies=experts + replicas,
            unit=self.unit,
            time=self.time,
            even=self._even,
            lower=(1,) * experts,
            upper=(self.problem.copies_limit,) * experts,
            groups=tuple(map(tuple, self._members)),
            nodes=self.problem.group_nodes,
        )

    def _rounded_down(self, cost: Fraction) -> Fraction:
        return cost if self.time else Fraction(math.floor(cost * _STEPS), _STEPS)

    def _name(self, layer: int, replicas: int | str) -> str:
        return f"layer {self.problem.loads.layer_ids[layer]} with {replicas} replicas"


def _units(cost: Fraction, scale: Fraction) -> int:
    """Round ``cost * scale`` down, without reducing the fraction."""
    return cost.numerator * scale.numerator // (cost.denominator * scale.denominator)


def _at(curve: Sequence[Value], replicas: int) -> Value:
    return curve[min(replicas, len(curve) - 1)]
