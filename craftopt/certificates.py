"""Certificates: how far a plan is from the best, with all that is needed to check it."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from craftopt.bounds import (
    cardinality_bound,
    common_copies_curve,
    common_copies_witness,
    cost_table,
    least_cost,
    max_copy_load,
    shared_cost_table,
)
from craftopt.documents import write_atomically
from craftopt.errors import InputError, VerificationError
from craftopt.evaluation import violations
from craftopt.loads import FloatArray, IntArray, Loads
from craftopt.plan import Plan
from craftopt.problem import Problem
from craftopt.verification import (
    CERTIFICATE_FORMAT,
    CERTIFICATE_VERSION,
    ExactProblem,
    Witness,
    exact_gap,
    parse_certificate,
    plan_digest,
)

# A layer (by position) with a number of replicas; its witnesses and solvers' claims.
Cell = tuple[int, int]
Evidence = Mapping[Cell, Sequence[Witness]]

# Loads in witnesses are rounded down to so many bits, so that their check stays quick; what
# rounding of the price has cost is made good by lowering the load, first by nothing.
_BITS = 40
_SLACKS = (0.0, 1e-10, 1e-8, 1e-6)
# Halvings of the range of prices for a replica.
_HALVINGS = 50
# A layer this close to its bound, relative, is closed.
_CLOSED = Fraction(1, 10**10)


@dataclass(frozen=True)
class LayerCertificate:
    """Say how far one layer is from the best placement with as many copies.

    Parameters
    ----------
    layer_id : int
        The model's own number of the layer.
    replicas : int
        Extra copies that the plan has there.
    value, bound : float
        The problem's objective on this layer alone, and what no placement of the layer with
        exactly so many replicas, under the slot rule, can better.
    gap : float
        Their distance, relative.
    kind : str
        What the witness argues with: mean, copies, cardinality, configuration, branch, ...
    witness : dict
        The proof, as `craftopt.verification` describes it.
    """

    layer_id: int
    replicas: int
    value: float
    bound: float
    gap: float
    kind: str
    witness: Witness


@dataclass(frozen=True, eq=False)
class Certificate:
    """Hold a plan, its loads, a bound on all plans, and the proof; made by `certify`.

    Parameters
    ----------
    document : dict
        What the file holds: all numbers exact, as ints or texts "p/q".
    """

    document: Mapping[str, Any]

    @property
    def value(self) -> float:
        """The plan's objective: relative time or mean balancedness."""
        return _float(self.document["value"])

    @property
    def bound(self) -> float:
        """No plan under the problem's rules has a better objective."""
        return _float(self.document["bound"])

    @property
    def gap(self) -> float:
        """Relative distance of value and bound, by certified bounds alone."""
        return _float(self.document["gap"])

    @property
    def solver_bound(self) -> float | None:
        """The bound if the claims of solvers are believed; None where there are none."""
        stated = self.document["solver_bound"]
        return None if stated is None else _float(stated)

    @property
    def solver_gap(self) -> float | None:
        """The gap if the claims of solvers are believed; None where there are none."""
        stated = self.document["solver_gap"]
        return None if stated is None else _float(stated)

    @property
    def solvers(self) -> tuple[str, ...]:
        """The solvers that claim something, with their versions."""
        claims = [entry["witness"] for entry in self.document["claims"]]
        return tuple(sorted({f"{claim['solver']} {claim['version']}" for claim in claims}))

    @cached_property
    def layers(self) -> tuple[LayerCertificate, ...]:
        """What is certified of every layer."""
        return tuple(
            LayerCertificate(
                layer_id=entry["layer_id"],
                replicas=entry["replicas"],
                value=_float(entry["value"]),
                bound=_float(entry["bound"]),
                gap=_float(entry["gap"]),
                kind=entry["witness"]["kind"],
                witness=entry["witness"],
            )
            for entry in self.document["layers"]
        )

    def to_json(self) -> str:
        """Write the certificate as versioned JSON, long lists one entry a line."""
        lines = []
        for key, value in self.document.items():
            if key in ("layers", "allocation", "claims") and value:
                rows = ",\n    ".join(json.dumps(row) for row in value)
                lines.append(f"  {json.dumps(key)}: [\n    {rows}\n  ]")
            else:
                lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        """Read what `to_json` wrote, without checking its claims: that is `verify`.

        Raises
        ------
        FormatError
            Text that is no certificate, or one of a version that this one cannot read.
        """
        return cls(parse_certificate(text))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the certificate to a file: whole or not at all."""
        write_atomically(path, self.to_json())

    def __repr__(self) -> str:
        return (
            f"Certificate(value={self.value:.6g}, bound={self.bound:.6g}, gap={self.gap:.4%}, "
            f"layers={len(self.document['layers'])})"
        )


def certify(
    problem: Problem,
    plan: Plan,
    *,
    evidence: Evidence | None = None,
    time_limit: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> Certificate:
    """Bound how far a plan is from the best one, with a proof that `verify` can check.

    For every layer the cheapest bound comes first: mean load, heaviest copy, cardinality (where
    slots are even), with several windows the copies that they share, then the evidence; a layer
    whose bound is attained is done. The whole plan's bound is a knapsack over all numbers of
    replicas that layers could have.

    Parameters
    ----------
    problem : Problem
        The certificate refers to its windows, rules, budget and objective.
    plan : Plan
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
        A plan that breaks rules of the problem.
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
    >>> certificate.layers[0].kind, certificate.gap < 1e-9
    ('cardinality', True)
    """
    problem.goal.require_even_dispatch("certify")
    broken = violations(plan, problem)
    if broken:
        raise InputError(f"a plan that breaks rules cannot be certified: {broken[0]}")
    loads = problem.loads
    # Plans from engines' maps number their layers from 0.
    plan = Plan(plan.copies, loads.layer_ids, plan.nodes, plan.method, plan.loads_digest)
    prover = _Prover(problem, evidence or {}, time_limit)
    exact = prover.exact
    in_time = problem.objective == "time"
    costs = [exact.plan_cost(layer, plan) for layer in range(loads.layers)]
    replicas = plan.replica_counts.sum(axis=1) - loads.experts
    layers = []
    for layer, (count, cost) in enumerate(zip(replicas.tolist(), costs, strict=True)):
        witness, bound_cost = prover.prove(layer, count, cost)
        value = exact.layer_objective(layer, cost)
        bound = exact.layer_objective(layer, bound_cost)
        entry = {
            "layer_id": int(loads.layer_ids[layer]),
            "replicas": count,
            "value": str(value),
            "bound": str(bound),
            "gap": str(exact_gap(value, bound, in_time)),
            "witness": witness,
        }
        layers.append(entry)
        if progress is not None:
            progress((layer + 1) / loads.layers)
    if problem.even_slots or evidence:
        least_cost(problem, prover.table, prover.sharpen)
        if prover.claims:
            least_cost(problem, prover.table, prover.sharpen_with_claims)
    # Of the other cells, those that mean and heaviest copy bound as well need no witness.
    own = set(enumerate(replicas.tolist()))
    sharp = [key for key in sorted(prover.witnesses) if key not in own and prover.is_sharp(key)]
    proven = {key: prover.costs[key] for key in [*own, *sharp]}
    value = exact.objective(costs)
    bound = exact.least_objective(proven, prover.lines)
    solver_bound = None
    if prover.claims:
        solver_bound = exact.least_objective(prover.with_claims(proven), prover.lines)
        if exact_gap(value, solver_bound, in_time) < 0:
            raise VerificationError(
                f"solvers claim a bound of {float(solver_bound):.12g}, and the plan, at "
                f"{float(value):.12g}, is better; round claims down, and look at who claims what"
            )
    return Certificate(
        {
            "format": CERTIFICATE_FORMAT,
            "version": CERTIFICATE_VERSION,
            "value": str(value),
            "bound": str(bound),
            "gap": str(exact_gap(value, bound, in_time)),
            "solver_bound": None if solver_bound is None else str(solver_bound),
            "solver_gap": (
                None if solver_bound is None else str(exact_gap(value, solver_bound, in_time))
            ),
            "problem": _problem_document(problem),
            "layers": layers,
            "allocation": [
                *(
                    _entry(loads, (layer, None), witness)
                    for layer, witness in prover.credits.items()
                ),
                *(_entry(loads, key, prover.witnesses[key]) for key in sharp),
            ],
            "claims": [_entry(loads, key, claim) for key, claim in prover.claims],
            "plan_digest": plan_digest(plan),
            "plan": json.loads(plan.to_json()),
            "loads": _loads_document(loads),
        }
    )


class _Prover:
    """Finds witnesses for layers with numbers of replicas, and remembers them."""

    def __init__(self, problem: Problem, evidence: Evidence, time_limit: float | None) -> None:
        self.problem = problem
        self.exact = ExactProblem(problem)
        self.witnesses: dict[Cell, Witness] = {}
        self.costs: dict[Cell, Fraction] = {}
        self.claims = [
            (key, witness)
            for key, witnesses in evidence.items()
            for witness in witnesses
            if witness["kind"] == "solver"
        ]
        self._evidence = {
            key: [witness for witness in witnesses if witness["kind"] != "solver"]
            for key, witnesses in evidence.items()
        }
        self._even = problem.even_slots
        # What holds for any number of replicas: by layer, a witness and what it proves.
        self.credits: dict[int, Witness] = {}
        self.lines: dict[int, list[tuple[Fraction, Fraction]]] = {}
        self.table = cost_table(problem)
        if problem.loads.windows > 1:
            self._share_copies()
        self._end = math.inf if time_limit is None else time.monotonic() + time_limit

    def prove(
        self, layer: int, replicas: int, goal: Fraction | None = None
    ) -> tuple[Witness, Fraction]:
        """Find the best witness for a layer; stop where the goal, a plan's cost, is attained."""
        key = layer, replicas
        if key not in self.costs:
            witness, cost = self._analytic(layer, replicas, sharp=False)
            if self._even and not _closed(cost, goal) and time.monotonic() < self._end:
                witness, cost = self._analytic(layer, replicas, sharp=True)
            others = self._evidence.get(key, [])
            if goal is not None and self.problem.loads.windows > 1:
                others = [self._shared(layer, self._saving(layer, replicas)), *others]
            for other in others:
                if _closed(cost, goal):
                    break
                proven = self.exact.proven_cost(layer, replicas, other)
                if proven > cost:
                    witness, cost = other, proven
            self.witnesses[key], self.costs[key] = witness, cost
        return self.witnesses[key], self.costs[key]

    def sharpen(self, layers: IntArray, replicas: IntArray) -> FloatArray:
        """Bound costs for the knapsack, in tokens."""
        cells = list(zip(layers.tolist(), replicas.tolist(), strict=True))
        return np.array([self._cost_in_tokens(self.prove(*cell)[1]) for cell in cells])

    def sharpen_with_claims(self, layers: IntArray, replicas: IntArray) -> FloatArray:
        """Bound costs for the knapsack, in tokens, where solvers are believed."""
        costs = self.sharpen(layers, replicas)
        claimed = self.with_claims(self.costs)
        cells = zip(layers.tolist(), replicas.tolist(), strict=True)
        return np.array(
            [
                max(cost, self._cost_in_tokens(claimed[cell]))
                for cell, cost in zip(cells, costs, strict=True)
            ]
        )

    def with_claims(self, proven: Mapping[Cell, Fraction]) -> dict[Cell, Fraction]:
        """Raise proven costs by what solvers claim."""
        costs = dict(proven)
        for key, claim in self.claims:
            cost = self.exact.claimed_cost(*key, claim)
            costs[key] = max(cost, costs.get(key, cost))
        return costs

    def is_sharp(self, cell: Cell) -> bool:
        """Whether the witness says more than what needs none: mean, heaviest copy, lines."""
        layer, replicas = cell
        for start, price in self.lines.get(layer, ()):
            if self.costs[cell] <= start - price * replicas:
                return False
        witness = self.witnesses[cell]
        parts = witness["windows"] if witness["kind"] == "windows" else [witness]
        return any(part["kind"] not in ("mean", "copies") for part in parts)

    def _share_copies(self) -> None:
        """Bound every layer by the copies that all windows share, for any number of replicas."""
        problem = self.problem
        choices = problem.replica_choices
        table = shared_cost_table(problem)
        if problem.slots == "uniform":  # so many in every layer
            replicas = int(choices[table.sum(axis=0).argmin()])
            prices = [self._saving(layer, replicas) for layer in range(problem.loads.layers)]
        else:
            prices = [_budget_price(table, choices, problem.replicas)] * problem.loads.layers
        for layer, price in enumerate(prices):
            witness = self._shared(layer, price)
            start, saving = line = self.exact.proven_line(layer, witness)
            costs = self._cost_in_tokens(start) - self._cost_in_tokens(saving) * choices
            if (costs > self.table[layer]).any():
                self.credits[layer], self.lines[layer] = witness, [line]
                np.maximum(self.table[layer], costs, out=self.table[layer])

    def _shared(self, layer: int, price: float) -> Witness:
        problem = self.problem
        tokens = np.ascontiguousarray(problem.loads.tokens[:, layer])
        return common_copies_witness(
            tokens, problem.gpus, problem.copies_limit, price, problem.objective
        )

    def _saving(self, layer: int, replicas: int) -> float:
        """Say what one more replica saves a layer, by the copies that its windows share."""
        problem = self.problem
        tokens = np.ascontiguousarray(problem.loads.tokens[:, layer])
        choices = np.array([replicas, replicas + 1])
        costs = common_copies_curve(
            tokens, problem.gpus, problem.copies_limit, choices, problem.objective
        )
        return float(costs[0] - costs[1])

    def _cost_in_tokens(self, cost: Fraction) -> float:
        return float(cost / self.exact.unit if self.exact.time else cost)

    def _analytic(self, layer: int, replicas: int, *, sharp: bool) -> tuple[Witness, Fraction]:
        """Bound every window by mean and heaviest copy and, if ``sharp``, by cardinality."""
        problem = self.problem
        limit = problem.copies_limit
        bounds = []
        for tokens in problem.loads.tokens[:, layer]:
            mean = float(tokens.sum()) / problem.gpus
            heaviest = float(max_copy_load(tokens, replicas, limit, mean)[-1])
            load, price = max(mean, heaviest), 0.0
            if sharp:
                load, price = cardinality_bound(tokens, replicas, problem.gpus, limit, load)
            bounds.append((load, price, "copies" if heaviest > mean else "mean"))
        for slack in _SLACKS:
            windows = [
                _cardinality_witness(load * (1.0 - slack), price) if price else {"kind": kind}
                for load, price, kind in bounds
            ]
            witness: Witness = {"kind": "windows", "windows": windows}
            if len(windows) == 1:
                witness = windows[0]
            try:
                return witness, self.exact.proven_cost(layer, replicas, witness)
            except VerificationError:
                continue
        return self._analytic(layer, replicas, sharp=False)


def _budget_price(table: FloatArray, choices: IntArray, budget: int) -> float:
    """Find the price of a replica at which the layers together want no more than the budget."""
    low, high = 0.0, float(table[:, 0].sum() - table[:, -1].sum())
    for _ in range(_HALVINGS):
        price = 0.5 * (low + high)
        wanted = choices[(table + price * choices).argmin(axis=1)].sum()
        low, high = (price, high) if wanted > budget else (low, price)
    return high


def _closed(cost: Fraction, goal: Fraction | None) -> bool:
    return goal is not None and goal - cost <= _CLOSED * abs(goal)


def _cardinality_witness(load: float, price: float) -> Witness:
    """Write a load, rounded down to few bits, and the price that refutes it."""
    mantissa, exponent = math.frexp(load)
    rounded = Fraction(math.floor(math.ldexp(mantissa, _BITS))) * Fraction(2) ** (exponent - _BITS)
    # Prices are quotients of tokens and copies: mostly of small denominators.
    simple = Fraction(price).limit_denominator(1000)
    if abs(simple - Fraction(price)) > abs(price) * 1e-14:
        simple = Fraction(price)
    return {"kind": "cardinality", "load": str(rounded), "price": str(simple)}


def _entry(loads: Loads, key: tuple[int, int | None], witness: Witness) -> dict[str, Any]:
    layer, replicas = key
    return {"layer_id": int(loads.layer_ids[layer]), "replicas": replicas, "witness": witness}


def _problem_document(problem: Problem) -> dict[str, Any]:
    groups, previous = problem.expert_groups, problem.previous
    return {
        "gpus": problem.gpus,
        "nodes": problem.nodes,
        "replicas": problem.replicas,
        "slots": problem.slots,
        "objective": problem.objective,
        "expert_groups": None if groups is None else groups.tolist(),
        "max_copies": problem.max_copies,
        "max_moves": problem.max_moves,
        "previous": None
        if previous is None
        else json.loads(Plan(problem.previous_copies).to_json()),
    }


def _loads_document(loads: Loads) -> dict[str, Any]:
    return {
        "digest": loads.digest,
        "layer_ids": loads.layer_ids.tolist(),
        "window_names": list(loads.window_names),
        "tokens": [
            [[_exact(value) for value in row] for row in rows] for rows in loads.tokens.tolist()
        ],
    }


def _exact(value: float) -> int | str:
    above, below = value.as_integer_ratio()
    return above if below == 1 else f"{above}/{below}"


def _float(stated: Any) -> float:
    return float(Fraction(stated))
