"""Certify plans: find the witnesses that bound how far a plan is from the best one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from craftopt.bounds import (
    cardinality_bound_of_nodes,
    common_copies_witness,
    companions_of,
    cost_table,
    least_cost,
    max_copy_load_of_groups,
    mean_loads,
    replica_prices,
    saving,
    shared_cost_table,
)
from craftopt.bounds.traffic import certify_traffic
from craftopt.errors import InputError, VerificationError
from craftopt.loads import FloatArray, IntArray, Loads
from craftopt.plan import Plan
from craftopt.problem import Problem
from craftopt.rules import violations
from craftopt.traces import Trace
from craftopt.verification import Certificate, ExactProblem, Witness

# A layer (by position) with a number of replicas; its witnesses and solvers' claims.
Cell = tuple[int, int]
Evidence = Mapping[Cell, Sequence[Witness]]

# Witness loads keep 40 bits so that checking stays fast; where rounding of the price has cost the
# proof, the load is lowered a little.
_BITS = 40
_SLACKS = (0.0, 1e-10, 1e-8, 1e-6)
# A layer this close to its bound, relative, is closed.
_CLOSED = Fraction(1, 10**10)


def certify(
    problem: Problem,
    plan: Plan,
    *,
    trace: Trace | None = None,
    evidence: Evidence | None = None,
    time_limit: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> Certificate:
    """Bound how far a plan is from the best one, with a proof that `verify` can check.

    For every layer the cheapest bound comes first: mean load, heaviest copy, cardinality (where
    slots are even), with several windows the copies that they share (where slots are even, with
    companions), then the evidence; a layer whose bound is attained is done. The whole plan's bound
    is a knapsack over all numbers of replicas that layers could have.

    Parameters
    ----------
    problem : Problem
        The certificate refers to its windows, rules, budget and objective.
    plan : Plan
    trace : Trace, optional
        Where there are several nodes, tokens whose nodes are bounded as well, and with them an
        objective with a price of ``traffic``: the bound on time plus the price times that on nodes
        per token. By default ``problem.coactivation``, if that is a trace. Seconds to a minute per
        layer.
    evidence : mapping, optional
        ``(layer, replicas) -> witnesses``: stronger proofs, as `craftopt.verification` describes
        them, and solvers' claims (kind ``"solver"``); layers by position.
    time_limit : float, optional
        Seconds after which no bound is sharpened any more.
    progress : callable, optional
        Called with the share of the layers done, 0 to 1.

    Returns
    -------
    Certificate

    Raises
    ------
    InputError
        A plan that breaks rules of the problem; a price of traffic and no tokens; a trace of other
        layers.
    VerificationError
        Evidence that proves nothing.

    Examples
    --------
    >>> import craftopt as co
    >>> loads = co.Loads([[600, 560, 120, 120, 20, 10, 10, 10]])
    >>> problem = co.Problem(loads, gpus=4, slots="even")
    >>> certificate = co.certify(problem, co.solve(problem, "nominal").plan)
    >>> certificate
    Certificate(value=1.68276, bound=1.68276, gap=0.0000%, layers=1)
    >>> print(certificate)
    among plans with        0 replicas, slots even
    relative time           1.682759
    no plan is better than  1.682759
    certified gap           0.0000%
    layers within 0.1%      1 of 1
    worst layer             0.0000%
    layers proven by        cardinality 1
    """
    problem.goal.require_even_dispatch("certify")
    problem.variant(traffic=None, max_slowdown=None).require_even_balance("certify")
    plan = plan.survivors()
    broken = violations(plan, problem)
    if broken:
        raise InputError(f"a plan that breaks rules cannot be certified: {broken[0]}")
    if trace is None and isinstance(problem.coactivation, Trace):
        trace = problem.coactivation
    if problem.nodes == 1:
        trace = None  # all tokens visit the one node there is
    if trace is None and problem.traffic_price > 0:
        raise InputError(
            "certify bounds traffic by tokens, not by pair counts; pass trace=, or "
            "problem.replace(traffic=None) for balance alone"
        )
    loads = problem.loads
    steps = loads.layers * (1 if trace is None else 2)
    prover = _Prover(problem, evidence or {}, time_limit)
    exact = prover.exact
    costs = exact.plan_costs(plan)
    own = list(enumerate(plan.layer_replicas.tolist()))
    layers = []
    for cell, cost in zip(own, costs, strict=True):
        witness, least = prover.prove(cell, cost)
        of, most = (exact.layer_objective(cell[0], one) for one in (cost, least))
        layers.append(_entry(loads, cell, witness, _figures(of, most, exact.gap(of, most))))
        if progress is not None:
            progress((cell[0] + 1) / steps)
    others = prover.prove_others(own)
    proven = {cell: prover.costs[cell] for cell in [*own, *others]}
    value = exact.objective(costs)
    bound = exact.least_objective(proven, prover.lines)
    traffic, nodes, fewest = None, Fraction(0), Fraction(0)
    if trace is not None:
        report = progress and (lambda layer: progress((loads.layers + layer) / steps))
        traffic, nodes, fewest = certify_traffic(exact, plan, trace, prover.in_time, report)
    value, bound = value + nodes, bound + fewest
    believed = None
    if prover.claims:
        believed = exact.least_objective(prover.with_claims(proven), prover.lines) + fewest
        if exact.gap(value, believed) < 0:
            raise VerificationError(
                f"solvers claim a bound of {float(believed):.12g}, and the plan, at "
                f"{float(value):.12g}, is better; round claims down, and look at who claims what"
            )
    figures = {
        **_figures(value, bound, exact.gap(value, bound)),
        "solver_bound": None if believed is None else str(believed),
        "solver_gap": None if believed is None else str(exact.gap(value, believed)),
    }
    return Certificate.of(
        problem,
        plan,
        figures,
        layers=layers,
        allocation=[
            *(_entry(loads, (layer, None), line) for layer, line in prover.credits.items()),
            *(_entry(loads, cell, prover.witnesses[cell]) for cell in others),
        ],
        claims=[_entry(loads, cell, claim) for cell, claim in prover.claims],
        traffic=traffic,
    )


def _figures(value: Fraction, bound: Fraction, gap: Fraction) -> dict[str, str]:
    return {"value": str(value), "bound": str(bound), "gap": str(gap)}


def _entry(
    loads: Loads,
    cell: tuple[int, int | None],
    witness: Witness,
    figures: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    layer, replicas = cell
    layer_id = int(loads.layer_ids[layer])
    return {"layer_id": layer_id, "replicas": replicas, **(figures or {}), "witness": witness}


class _Prover:
    """Finds witnesses for layers with numbers of replicas, and remembers them."""

    def __init__(self, problem: Problem, evidence: Evidence, time_limit: float | None) -> None:
        self.problem = problem
        self.exact = ExactProblem(problem)
        self.witnesses: dict[Cell, Witness] = {}
        self.costs: dict[Cell, Fraction] = {}
        self.claims: list[tuple[Cell, Witness]] = []
        self._evidence: dict[Cell, list[Witness]] = {cell: [] for cell in evidence}
        for cell, witnesses in evidence.items():
            for witness in witnesses:
                if witness["kind"] == "solver":
                    self.claims.append((cell, witness))
                else:
                    self._evidence[cell].append(witness)
        # What holds for any number of replicas: by layer, a witness and what it proves.
        self.credits: dict[int, Witness] = {}
        self.lines: dict[int, list[tuple[Fraction, Fraction]]] = {}
        self._means = mean_loads(problem)
        self._table = cost_table(problem)
        if problem.loads.windows > 1:
            self._share_copies()
        self._end = math.inf if time_limit is None else time.monotonic() + time_limit

    def in_time(self) -> bool:
        """Say whether bounds are still to be sharpened."""
        return time.monotonic() < self._end

    def prove(self, cell: Cell, goal: Fraction | None = None) -> tuple[Witness, Fraction]:
        """Find the best witness for a layer; stop where the goal, a plan's cost, is attained."""
        if cell not in self.costs:
            witness, cost = self._analytic(cell, sharp=False)
            sharpen = self.problem.even_slots and not _closed(cost, goal)
            if sharpen and self.in_time():
                witness, cost = self._analytic(cell, sharp=True)
            others = self._evidence.get(cell, [])
            if goal is not None and self.problem.loads.windows > 1:
                others = [self._credits(cell, saving(self.problem, *cell)), *others]
            for other in others:
                if _closed(cost, goal):
                    break
                proven = self.exact.proven_cost(*cell, other)
                if proven > cost:
                    witness, cost = other, proven
            self.witnesses[cell], self.costs[cell] = witness, cost
        return self.witnesses[cell], self.costs[cell]

    def prove_others(self, own: Sequence[Cell]) -> list[Cell]:
        """Prove what the bound on whole plans depends on; return the cells that need a witness."""
        if self.problem.even_slots or self._evidence:
            least_cost(self.problem, self._table, self._sharpen)
            if self.claims:
                least_cost(self.problem, self._table, self._sharpen_with_claims)
        done = set(own)
        others = (cell for cell in sorted(self.witnesses) if cell not in done)
        return [cell for cell in others if self._says_more(cell)]

    def with_claims(self, proven: Mapping[Cell, Fraction]) -> dict[Cell, Fraction]:
        """Raise proven costs by what solvers claim."""
        costs = dict(proven)
        for cell, claim in self.claims:
            cost = self.exact.claimed_cost(*cell, claim)
            costs[cell] = max(cost, costs.get(cell, cost))
        return costs

    def _sharpen(self, layers: IntArray, replicas: IntArray) -> FloatArray:
        """Bound costs for the knapsack, in tokens."""
        cells = zip(layers.tolist(), replicas.tolist(), strict=True)
        return np.array([self._in_tokens(self.prove(cell)[1]) for cell in cells])

    def _sharpen_with_claims(self, layers: IntArray, replicas: IntArray) -> FloatArray:
        """Bound costs for the knapsack, in tokens, where solvers are believed."""
        proven = self._sharpen(layers, replicas)
        claimed = self.with_claims(self.costs)
        cells = zip(layers.tolist(), replicas.tolist(), strict=True)
        return np.maximum(proven, [self._in_tokens(claimed[cell]) for cell in cells])

    def _says_more(self, cell: Cell) -> bool:
        """Whether the witness says more than what needs none: mean, heaviest copy, lines."""
        layer, replicas = cell
        lines = self.lines.get(layer, ())
        if any(self.costs[cell] <= start - price * replicas for start, price in lines):
            return False
        witness = self.witnesses[cell]
        parts = witness["windows"] if witness["kind"] == "windows" else [witness]
        return any(part["kind"] not in ("mean", "copies") for part in parts)

    def _share_copies(self) -> None:
        """Bound every layer by the copies that all windows share, for any number of replicas."""
        problem = self.problem
        choices = problem.replica_choices
        for layer, price in enumerate(replica_prices(problem, shared_cost_table(problem))):
            witness = self._credits((layer, int(choices[0])), price)
            start, fall = line = self.exact.proven_line(layer, witness)
            costs = self._in_tokens(start) - self._in_tokens(fall) * choices
            if (costs > self._table[layer]).any():
                self.credits[layer], self.lines[layer] = witness, [line]
                np.maximum(self._table[layer], costs, out=self._table[layer])

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

    def _in_tokens(self, cost: Fraction) -> float:
        return float(cost / self.exact.unit if self.exact.time else cost)

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
