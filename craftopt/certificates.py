"""Certify plans: find the witnesses that bound how far a plan is from the best one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from craftopt.bounds import (
    cost_table,
    least_cost,
    replica_prices,
    shared_cost_table,
    with_companions,
)
from craftopt.bounds.traffic import certify_traffic
from craftopt.errors import InputError, VerificationError
from craftopt.executors import Executor, run_in_order
from craftopt.loads import FloatArray, IntArray, Loads
from craftopt.plan import Plan
from craftopt.problem import Problem
from craftopt.proving import Cell, LayerProver
from craftopt.result import Options
from craftopt.rules import violations
from craftopt.traces import Trace
from craftopt.verification import Certificate, Witness

# Witnesses and solvers' claims by layer, by position, and number of replicas.
Evidence = Mapping[Cell, Sequence[Witness]]


def certify(
    problem: Problem,
    plan: Plan,
    *,
    trace: Trace | None = None,
    evidence: Evidence | None = None,
    time_limit: float | None = None,
    workers: int | Executor | None = None,
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
    workers : int or Executor, optional
        As in `solve`; the certificate does not depend on it.
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
    prover = _Prover(problem, evidence or {}, Options(time_limit=time_limit, workers=workers))
    exact = prover.exact
    costs = exact.plan_costs(plan)
    own = list(enumerate(plan.layer_replicas.tolist()))
    prover.prove(own, costs, progress and (lambda part: progress(part * loads.layers / steps)))
    layers = []
    for cell, cost in zip(own, costs, strict=True):
        least = prover.costs[cell]
        of, most = (exact.layer_objective(cell[0], one) for one in (cost, least))
        gap = exact.gap(of, most)
        layers.append(_entry(loads, cell, prover.witnesses[cell], _figures(of, most, gap)))
    others = prover.prove_others(own)
    proven = {cell: prover.costs[cell] for cell in [*own, *others]}
    value = exact.objective(costs)
    bound = exact.least_objective(proven, prover.lines)
    traffic, nodes, fewest = None, Fraction(0), Fraction(0)
    if trace is not None:
        report = progress and (lambda layer: progress((loads.layers + layer) / steps))
        traffic, nodes, fewest = certify_traffic(exact, plan, trace, prover.layers.in_time, report)
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

    def __init__(self, problem: Problem, evidence: Evidence, options: Options) -> None:
        self.problem = problem
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
        self.layers = LayerProver(problem, self._evidence, options)
        self.exact = self.layers.exact
        # What holds for any number of replicas: by layer, a witness and what it proves.
        self.credits: dict[int, Witness] = {}
        self.lines: dict[int, list[tuple[Fraction, Fraction]]] = {}
        self._table = cost_table(problem)
        self._prices: dict[Cell, float] = {}
        self._each = partial(run_in_order, options.executor)
        if problem.loads.windows > 1:
            self._share_copies()

    def prove(
        self,
        cells: Sequence[Cell],
        goals: Sequence[Fraction] | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Find the best witness for every layer; goals, a plan's costs, need not be exceeded."""
        missing = [place for place, cell in enumerate(cells) if cell not in self.costs]
        items = [
            (cells[place], None, None)
            if goals is None
            else (cells[place], goals[place], self._prices.get(cells[place]))
            for place in missing
        ]
        found = self._each(self.layers.find, *zip(*items, strict=True), progress=progress)
        for place, (witness, cost) in zip(missing, found, strict=True):
            self.witnesses[cells[place]], self.costs[cells[place]] = witness, Fraction(*cost)

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
        cells = list(zip(layers.tolist(), replicas.tolist(), strict=True))
        self.prove(cells)
        return np.array([self.layers.in_tokens(self.costs[cell]) for cell in cells])

    def _sharpen_with_claims(self, layers: IntArray, replicas: IntArray) -> FloatArray:
        """Bound costs for the knapsack, in tokens, where solvers are believed."""
        proven = self._sharpen(layers, replicas)
        claimed = self.with_claims(self.costs)
        cells = zip(layers.tolist(), replicas.tolist(), strict=True)
        return np.maximum(proven, [self.layers.in_tokens(claimed[cell]) for cell in cells])

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
        problem, table, each = self.problem, self._table, self._each
        choices, layers = problem.replica_choices, range(problem.loads.layers)
        if choices.size > 1 or problem.slots != "uniform":  # else the price is that of the choice
            table = with_companions(problem, shared_cost_table(problem, each), each)
        prices = replica_prices(problem, table, each)
        if problem.slots == "uniform":
            replicas = int(choices[table.sum(axis=0).argmin()])
            self._prices = {(layer, replicas): prices[layer] for layer in layers}
        for layer, (witness, *line) in enumerate(each(self.layers.line, layers, prices)):
            start, fall = (Fraction(*one) for one in line)
            costs = self.layers.in_tokens(start) - self.layers.in_tokens(fall) * choices
            if (costs > self._table[layer]).any():
                self.credits[layer], self.lines[layer] = witness, [(start, fall)]
                np.maximum(self._table[layer], costs, out=self._table[layer])
