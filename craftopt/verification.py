"""Verify certificates in exact arithmetic, trusting nothing but the rules of the problem.

A certificate says of a plan: it keeps every rule, its objective is ``value``, and no plan under
the rules has an objective better than ``bound``. This module re-checks every word of it with
whole numbers and fractions. It shares no code with the bounds, the models and the search.

**What a witness proves.** A witness belongs to a layer l and to a number of replicas r, so to
placements of ``n = experts + r`` copies exactly, and to a *box*: lower and upper limits on the
copies ``c_e`` of every expert, at first 1 and `Problem.copies_limit`. It is a dict with a
``kind``; numbers are ints, or fractions written ``"p/q"``. The proofs that the checks below
suffice stand in ``formulations/README.md``.

*Window witnesses* prove of one window that no placement in the box has all GPU loads **below**
a number T, so that the largest GPU load is at least T:

``{"kind": "mean"}``
    T is the mean GPU load.
``{"kind": "copies"}``
    T is the least possible heaviest copy, ``min max_e t_e/c_e`` over all c in the box with
    ``sum c <= n``.
``{"kind": "cardinality", "load": T, "price": "p/q"}``
    Even slots only (rules even and uniform, and free with one layer). With ``q = n // G`` the
    least number of copies on a GPU, the price is 0 or more and at most T/q, and
    ``sum_e max(0, t_e - c_e (T - (q-1) price)) > sum_e max(0, price c_e - t_e)``
    for all c in the box with ``c_e > t_e/T`` and ``sum c = n``.
``{"kind": "configuration", "load": T, ...}``
    With ``"experts": [int sigma_e]``, ``"slot": int beta``, ``"extra": int gamma``, ``"scale":
    int D`` and ``"grid": int``. A configuration P is a set of experts, each with a number of
    copies ``c`` that the box (with ``c_e > t_e/T`` and ``sum c = n``) allows, with ``sum t_e/c <
    T`` and, under even slots, with q members, or q + 1 where G does not divide n. Every
    configuration must have ``sum sigma_e/c - beta |P| - gamma [|P| = q+1] <= D``, and ``sum
    sigma_e - beta n - gamma (n mod G) > G D`` must hold; without even slots, gamma counts as 0.
    The check rounds ``t_e/c`` down to multiples of T/grid (sums must stay at ``grid - 1`` or
    less) and ``sigma_e/c`` up to whole numbers: so scale sigma, beta, gamma and D up, to about
    1e9.

*Layer witnesses* prove a lower bound on the layer's cost: the sum over windows of the largest
GPU load (objective time), or minus the sum over windows of balancedness. With one window, every
window witness is a layer witness too. With several:

``{"kind": "windows", "windows": [window witness, ...]}``
    One for every window; costs add up.
``{"kind": "credits", "price": int, "scale": "p/q", "windows": {"w": [[e, step, int], ...]}}``
    One choice of copies serves all windows ("common copies"). A credit is for window w (its
    position, as a text) and for a step, the step-th copy of e, which window w must have to stay
    below ``t_we/(step - 1)``. With ``floor_w = max(m_w, max_e t_we/upper_e)`` and the cost of a
    load (the load itself for time, ``-m_w/load`` for balancedness), two things must hold, with
    price and credits in units of 1/scale:

    - the credits of a window for loads of L or less sum to at most cost(L) - cost(floor_w), for
      every L;
    - the credits of all windows for steps 2..k of an expert sum to at most price (k - 1), for
      every k.

    Then the layer costs at least ``sum_w cost(floor_w) + sum of credits - price r``, for
    **every** number of replicas r.

Both may branch, to any depth:

``{"kind": "branch", "expert": e, "copies": k, "below": witness, "above": witness}``
    ``below`` proves it for ``c_e <= k``, ``above`` for ``c_e >= k + 1``; the worse counts.
``{"kind": "empty"}``
    No counts in the box sum to n, so that there is nothing to prove.

``{"kind": "solver", "cost": "p/q", "solver": name, "version": text}`` is no witness but a
solver's word that the layer's cost is at least that; it counts for `Certificate.solver_gap` alone.
It is refused where the plan itself shows that it is false.
"""

from __future__ import annotations

import heapq
import json
import math
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from craftopt.errors import CraftoptError, CraftoptWarning, FormatError, VerificationError
from craftopt.loads import Loads
from craftopt.plan import Plan
from craftopt.problem import Problem

CERTIFICATE_FORMAT = "craftopt-certificate"
CERTIFICATE_VERSION = 1

# Sums of this size fit 64 bits with a sign; beyond, arrays hold Python's whole numbers.
_FITS = 2**62
# Summed balancedness is a multiple of 1/_STEPS, rounded against the claim (a plan's down, a proof's
# up): of many windows, exact fractions have more digits than Python reads.
_STEPS = 2**80
_NUMBER = re.compile(r"-?[0-9]+(/[0-9]+)?")
# A configuration's loads are counted in at most that many steps.
_FINEST_GRID = 1_000_000

Witness = Mapping[str, Any]
# A number, or math.inf where there is nothing to bound.
Bound = Fraction | float
# By layer, costs of the form start - price x replicas: (start, price).
Lines = Mapping[int, Sequence[tuple[Fraction, Fraction]]]
Integers = npt.NDArray[Any]  # int64, or Python's whole numbers where these are too large


class Certified(Protocol):
    """What `verify` needs of a certificate that is not in a file."""

    def to_json(self) -> str:
        """Write the certificate."""
        ...


def verify(certificate: Certified | str | os.PathLike[str]) -> None:
    """Check every claim of a certificate in exact arithmetic.

    The plan keeps every rule; its objective, all witnesses, every layer's and the whole plan's
    bound and gap are as stated; loads and plan are those that the digests name.

    Parameters
    ----------
    certificate : Certificate or path

    Raises
    ------
    VerificationError
        A claim that is false; the message names the first one.
    FormatError
        A file that is no certificate, or one of a version that this one cannot read.

    Examples
    --------
    >>> import craftopt as co
    >>> problem = co.Problem(co.Loads([[600, 560, 120, 120, 20, 10, 10, 10]]), gpus=4)
    >>> certificate = co.certify(problem, co.solve(problem, "nominal").plan)
    >>> co.verify(certificate)
    """
    document = _read(certificate)
    try:
        _verify(document)
    except CraftoptError as error:
        if isinstance(error, VerificationError):
            raise
        raise VerificationError(f"the certificate cannot be true: {error}") from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise VerificationError(
            f"the certificate is damaged: {type(error).__name__}: {error}"
        ) from None
    except RecursionError:
        raise VerificationError("a witness branches deeper than can be followed") from None


def _read(certificate: Certified | str | os.PathLike[str]) -> dict[str, Any]:
    if isinstance(certificate, str | os.PathLike):
        try:
            text = Path(certificate).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FormatError(f"cannot read {certificate}: {error}") from None
    else:
        text = certificate.to_json()
    return parse_certificate(text)


def parse_certificate(text: str) -> dict[str, Any]:
    """Read a certificate's JSON.

    Raises
    ------
    FormatError
        Text that is no certificate, or one of a version that this one cannot read.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"this is no JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != CERTIFICATE_FORMAT:
        raise FormatError(f'this is no certificate: "format" must be "{CERTIFICATE_FORMAT}"')
    if document.get("version") != CERTIFICATE_VERSION:
        raise FormatError(
            f"the certificate has version {document.get('version')!r}; "
            f"this craftopt reads version {CERTIFICATE_VERSION}"
        )
    return document


def plan_digest(plan: Plan) -> str:
    """SHA-256 over the plan as it is written: equal plans, equal digest."""
    return sha256(plan.to_json().encode()).hexdigest()


# --- the claims, one by one -----------------------------------------------------------------


def _verify(document: dict[str, Any]) -> None:
    loads = _loads_of(document["loads"])
    plan = Plan.from_json(json.dumps(document["plan"]))
    _claim(document["plan_digest"] == plan_digest(plan), "the plan is not the one the digest names")
    problem = _problem_of(document["problem"], loads)
    check_rules(problem, plan)
    exact = ExactProblem(problem)
    costs = [exact.plan_cost(layer, plan) for layer in range(loads.layers)]
    _check_number("the plan's objective", document["value"], exact.objective(costs))
    proven = _verify_layers(document["layers"], exact, plan, costs)
    layer_of = {int(layer_id): layer for layer, layer_id in enumerate(loads.layer_ids)}
    lines: dict[int, list[tuple[Fraction, Fraction]]] = defaultdict(list)
    for entry in document["allocation"]:
        layer = layer_of[_whole(entry["layer_id"])]
        if entry["replicas"] is None:
            lines[layer].append(exact.proven_line(layer, entry["witness"]))
        else:
            key = layer, _whole(entry["replicas"])
            _keep_best(proven, key, exact.proven_cost(*key, entry["witness"]))
    _check_bound(
        "the whole plan",
        document["value"],
        document["bound"],
        document["gap"],
        exact.least_objective(proven, lines),
        problem.objective == "time",
    )
    if not document["claims"]:
        _claim(
            document["solver_bound"] is None and document["solver_gap"] is None,
            "a solver's bound is stated and no solver's claim",
        )
        return
    for entry in document["claims"]:
        key = layer_of[_whole(entry["layer_id"])], _whole(entry["replicas"])
        _keep_best(proven, key, exact.claimed_cost(*key, entry["witness"]))
    _check_bound(
        "the whole plan, solvers believed",
        document["value"],
        document["solver_bound"],
        document["solver_gap"],
        exact.least_objective(proven, lines),
        problem.objective == "time",
    )


def _verify_layers(
    entries: list[dict[str, Any]], exact: ExactProblem, plan: Plan, costs: list[Fraction]
) -> dict[tuple[int, int], Fraction]:
    """Check what is stated of every layer; return what the witnesses prove."""
    loads = exact.problem.loads
    _claim(len(entries) == loads.layers, f"{len(entries)} layers are stated of {loads.layers}")
    proven: dict[tuple[int, int], Fraction] = {}
    for layer, entry in enumerate(entries):
        name = f"layer {loads.layer_ids[layer]}"
        replicas = int(plan.replica_counts[layer].sum()) - loads.experts
        _claim(
            _whole(entry["layer_id"]) == loads.layer_ids[layer],
            f"{name} is stated as layer {entry['layer_id']}",
        )
        _claim(
            _whole(entry["replicas"]) == replicas,
            f"{name} is said to have {entry['replicas']} replicas, and has {replicas}",
        )
        _check_number(
            f"the objective of {name}",
            entry["value"],
            exact.layer_objective(layer, costs[layer]),
        )
        cost = exact.proven_cost(layer, replicas, entry["witness"])
        _check_bound(
            f"{name} with {replicas} replicas",
            entry["value"],
            entry["bound"],
            entry["gap"],
            exact.layer_objective(layer, cost),
            exact.problem.objective == "time",
        )
        proven[layer, replicas] = cost
    return proven


def _keep_best(
    proven: dict[tuple[int, int], Fraction], key: tuple[int, int], cost: Fraction
) -> None:
    proven[key] = max(cost, proven.get(key, cost))


def _claim(holds: bool, otherwise: str) -> None:
    if not holds:
        raise VerificationError(otherwise)


def _check_number(name: str, stated: Any, true: Fraction) -> None:
    number = _number(stated)
    _claim(number == true, f"{name} is stated as {float(number):.12g}, and is {float(true):.12g}")


def _check_bound(
    name: str, stated_value: Any, stated: Any, stated_gap: Any, proven: Fraction, time: bool
) -> None:
    value, bound = _number(stated_value), _number(stated)
    _claim(
        bound <= proven if time else bound >= proven,
        f"{name}: the bound is stated as {float(bound):.12g}, and {float(proven):.12g} is proven",
    )
    _claim(bound > 0 and value > 0, f"{name}: a bound or an objective of 0 is none")
    gap = exact_gap(value, bound, time)
    _claim(  # solvers can be wrong
        gap >= 0,
        f"{name}: the plan, at {float(value):.12g}, is better than its bound, {float(bound):.12g}",
    )
    _check_number(f"the gap of {name}", stated_gap, gap)


def exact_gap(value: Fraction, bound: Fraction, time: bool) -> Fraction:
    """Compute the relative distance of a value and its bound."""
    return (value - bound) / bound if time else (bound - value) / value


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise VerificationError(f"{value!r} stands where a whole number must")
    return value


def _number(value: Any) -> Fraction:
    """Read an int or a text "p/q"; what else fractions could be ("1e999999999") takes forever."""
    if type(value) is not int and not (type(value) is str and _NUMBER.fullmatch(value)):
        raise VerificationError(f"{value!r} stands where a whole number or a text p/q must")
    return Fraction(value)


# --- what the certificate is about ----------------------------------------------------------


def _loads_of(document: dict[str, Any]) -> Loads:
    tokens = [[[_exact_float(t) for t in row] for row in rows] for rows in document["tokens"]]
    loads = Loads(np.array(tokens), document["layer_ids"], document["window_names"])
    _claim(loads.digest == document["digest"], "the loads are not those that the digest names")
    return loads


def _exact_float(value: Any) -> float:
    if type(value) is int and -(2**53) < value < 2**53:
        return float(value)
    number = _number(value)
    result = number.numerator / number.denominator
    _claim(Fraction(result) == number, f"tokens of {value} are no 64-bit floating-point number")
    return result


def _problem_of(document: dict[str, Any], loads: Loads) -> Problem:
    previous = document["previous"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CraftoptWarning)  # budget left unused: no claim
        return Problem(
            loads,
            document["gpus"],
            nodes=document["nodes"],
            replicas=document["replicas"],
            slots=document["slots"],
            objective=document["objective"],
            expert_groups=document["expert_groups"],
            max_copies=document["max_copies"],
            previous=None if previous is None else Plan.from_json(json.dumps(previous)),
            max_moves=document["max_moves"],
        )


def check_rules(problem: Problem, plan: Plan) -> None:
    """Check every rule of the problem on a plan's copies.

    Raises
    ------
    VerificationError
        The first rule that the plan breaks.
    """
    loads = problem.loads
    copies = plan.copies.astype(np.int64)
    _claim(
        copies.shape == (loads.layers, loads.experts, problem.gpus)
        and plan.layer_ids.tolist() == loads.layer_ids.tolist(),
        "the plan is for other layers, experts or GPUs than the problem",
    )
    counts = copies.sum(axis=2)
    slots = copies.sum(axis=1)
    totals = slots.sum(axis=0)
    _claim(copies.max() == 1, "the plan hosts an expert twice on one GPU")
    _claim(counts.min() >= 1, "the plan leaves an expert out")
    _claim(
        problem.max_copies is None or counts.max() <= problem.max_copies,
        f"the plan has {counts.max()} copies of an expert, more than allowed",
    )
    used = int(counts.sum()) - loads.layers * loads.experts
    _claim(
        used <= problem.replicas,
        f"the plan has {used} replicas where {problem.replicas} are allowed",
    )
    if problem.slots == "uniform":
        _claim(bool(slots.min() == slots.max()), "the plan's slots are not uniform")
    if problem.slots == "even":
        _claim(np.ptp(slots, axis=1).max() <= 1, "the plan's slots are not even")
    _claim(np.ptp(totals) <= 1, "the GPUs' copies over all layers differ by more than 1")
    if problem.expert_groups is not None:
        _check_groups(problem, copies)
    if problem.max_moves is not None and problem.previous is not None:
        moves = int((copies > problem.previous_copies).sum())
        _claim(
            moves <= problem.max_moves,
            f"the plan hosts {moves} copies anew where {problem.max_moves} are allowed",
        )


def _check_groups(problem: Problem, copies: npt.NDArray[np.int64]) -> None:
    groups = problem.expert_groups
    assert groups is not None
    layers, experts, gpus = copies.shape
    in_node = copies.reshape(layers, experts, problem.nodes, gpus // problem.nodes).sum(axis=3)
    slots = in_node.sum(axis=1)
    _claim(np.ptp(slots, axis=1).max() == 0, "nodes have different numbers of slots in a layer")
    for layer in range(layers):
        homes = []
        for group in range(int(groups.max()) + 1):
            nodes = np.flatnonzero(in_node[layer, groups == group].any(axis=0))
            _claim(nodes.size == 1, f"the plan spreads group {group} over {nodes.size} nodes")
            homes.append(int(nodes[0]))
        shares = np.bincount(homes, minlength=problem.nodes)
        _claim(np.ptp(shares) == 0, "nodes have different numbers of groups in a layer")


# --- objectives, and bounds over all plans --------------------------------------------------


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
            self.weights: Integers = tokens.astype(np.int64)
        else:
            ratios = [value.as_integer_ratio() for value in tokens.ravel().tolist()]
            self.unit = max(below for _, below in ratios)
            whole = [above * (self.unit // below) for above, below in ratios]
            self.weights = np.array(whole, dtype=object).reshape(tokens.shape)
        self.limit = self._most_replicas()
        self.even = problem.slots != "free" or problem.loads.layers == 1
        self._sums: list[list[int]] = [
            [sum(row) for row in rows] for rows in self.weights.transpose(1, 0, 2).tolist()
        ]

    def _most_replicas(self) -> int:
        """Count the replicas that one layer can take: its choices are 0, step, ..., limit."""
        problem = self.problem
        most = min(problem.replicas, problem.loads.experts * (problem.copies_limit - 1))
        return most - most % problem.replica_step

    def plan_cost(self, layer: int, plan: Plan) -> Fraction:
        """Compute a layer's cost under even dispatch."""
        copies = plan.copies[layer]
        counts = plan.replica_counts[layer]
        common = math.lcm(*set(counts.tolist()))
        shares = self.weights[:, layer].astype(object) * (common // counts.astype(object))
        loads = [shares[:, np.flatnonzero(hosted)].sum(axis=1) for hosted in copies.T]
        largest = [Fraction(max(of_window), common) for of_window in zip(*loads, strict=True)]
        of_windows = zip(largest, self._sums[layer], strict=True)
        gpus = self.problem.gpus
        costs = [_window_cost(load, Fraction(sums, gpus), self.time) for load, sums in of_windows]
        cost = sum(costs, Fraction(0))
        return cost if self.time else Fraction(math.ceil(cost * _STEPS), _STEPS)

    def objective(self, costs: list[Fraction]) -> Fraction:
        """Compute the objective from the costs of all layers."""
        problem = self.problem
        if not self.time:
            return -sum(costs, Fraction(0)) / (problem.loads.windows * problem.loads.layers)
        tokens = sum(sum(sums) for sums in self._sums)
        total = sum(costs, Fraction(0))
        return total * Fraction(problem.gpus, tokens) if tokens else Fraction(1)

    def layer_objective(self, layer: int, cost: Fraction) -> Fraction:
        """Compute the objective of one layer by itself."""
        if not self.time:
            return -cost / self.problem.loads.windows
        tokens = sum(self._sums[layer])
        return cost * Fraction(self.problem.gpus, tokens) if tokens else Fraction(1)

    def proven_cost(self, layer: int, replicas: int, witness: Witness) -> Fraction:
        """Bound a layer's cost with exactly so many replicas by what a witness proves.

        Raises
        ------
        VerificationError
            The witness proves nothing, or says what it proves in a wrong way.
        """
        name = self._name(layer, replicas)
        _claim(
            0 <= replicas <= self.limit and replicas % self.problem.replica_step == 0,
            f"{name}: so many replicas are no choice",
        )
        try:
            cost = _layer_cost(witness, self._case(layer, replicas))
        except VerificationError as error:
            raise VerificationError(f"{name}: {error}") from None
        if not isinstance(cost, Fraction):
            raise VerificationError(f"{name}: the witness leaves no choice of copies at all")
        return self._rounded_down(cost)

    def proven_line(self, layer: int, witness: Witness) -> tuple[Fraction, Fraction]:
        """Bound a layer's cost with any number of replicas: (start, price) of credits.

        Raises
        ------
        VerificationError
            As `proven_cost`.
        """
        name = self._name(layer, None)
        _claim(witness["kind"] == "credits", f"{name}: only credits hold for all of them")
        try:
            start, price = _credits(witness, self._case(layer, 0))
        except VerificationError as error:
            raise VerificationError(f"{name}: {error}") from None
        return self._rounded_down(start), price

    def _rounded_down(self, cost: Fraction) -> Fraction:
        return cost if self.time else Fraction(math.floor(cost * _STEPS), _STEPS)

    def _name(self, layer: int, replicas: int | None) -> str:
        number = "any number of" if replicas is None else replicas
        return f"layer {self.problem.loads.layer_ids[layer]} with {number} replicas"

    def _case(self, layer: int, replicas: int) -> _Case:
        experts = self.problem.loads.experts
        return _Case(
            weights=self.weights[:, layer],
            means=tuple(Fraction(total, self.problem.gpus) for total in self._sums[layer]),
            gpus=self.problem.gpus,
            copies=experts + replicas,
            unit=self.unit,
            time=self.time,
            even=self.even,
            lower=(1,) * experts,
            upper=(self.problem.copies_limit,) * experts,
        )

    def claimed_cost(self, layer: int, replicas: int, claim: Witness) -> Fraction:
        """Read what a solver claims of a layer's cost."""
        name = self._name(layer, replicas)
        _claim(0 <= replicas <= self.limit, f"{name}: so many replicas are no choice")
        named = isinstance(claim["solver"], str) and isinstance(claim["version"], str)
        _claim(claim["kind"] == "solver" and named, f"{name}: a claim must name its solver")
        cost = _number(claim["cost"]) * (self.unit if self.time else 1)
        # All tokens on one GPU cost most.
        most = sum(self._sums[layer]) if self.time else 0
        _claim(cost <= most, f"{name}: {claim['solver']} claims more than any placement costs")
        return cost

    def least_objective(self, proven: Mapping[tuple[int, int], Fraction], lines: Lines) -> Fraction:
        """Bound the objective of every plan: mean, heaviest copy, and what is proven besides.

        Every layer's cost with every number of replicas, rounded down to whole units, goes
        into a knapsack over the layers.

        Parameters
        ----------
        proven : mapping
            Bounds on the cost of a layer with a number of replicas.
        lines : mapping
            Bounds on the cost of a layer with any number of them.
        """
        problem = self.problem
        windows, layers = problem.loads.windows, problem.loads.layers
        tokens = sum(sum(sums) for sums in self._sums)
        if self.time and not tokens:
            return Fraction(1)
        # Summed, relative time is at most gpus and balancedness at most windows x layers.
        largest = problem.gpus if self.time else windows * layers
        units = 1 << (61 - largest.bit_length())
        scale = Fraction(units)
        if self.time:
            scale *= Fraction(problem.gpus, tokens)
        curves = [self._curve(layer, scale, lines.get(layer, ())) for layer in range(layers)]
        sharper: list[dict[int, int]] = [{} for _ in range(layers)]
        for (layer, replicas), cost in proven.items():
            known = _at(curves[layer], replicas)
            sharper[layer][replicas] = max(known, math.floor(cost * scale))
        if problem.slots == "uniform":
            total = self._least_uniform(curves, sharper)
        else:
            total = self._least_within_budget(curves, sharper)
        if self.time:
            return max(Fraction(1), Fraction(total, units))
        return min(Fraction(1), Fraction(-total, units * windows * layers))

    def _curve(
        self, layer: int, scale: Fraction, lines: Sequence[tuple[Fraction, Fraction]]
    ) -> list[int]:
        """List a layer's cost by mean, heaviest copy and lines, with 0, 1, ... replicas.

        Rounded down; with more replicas than are listed it stays as it is.
        """
        limit = self.problem.copies_limit
        curve = [0]
        for window, tokens in enumerate(self._sums[layer]):
            mean = Fraction(tokens, self.problem.gpus)
            weights = self.weights[window, layer]
            heavy = weights[weights * self.problem.gpus > tokens].tolist()
            listed = []
            copies = _heaviest_copy(heavy, [1] * len(heavy), [limit] * len(heavy))
            for load in chain(copies, () if heavy else (mean,)):
                listed.append(math.floor(_window_cost(max(load, mean), mean, self.time) * scale))
                if load <= mean:
                    break
            while len(curve) < len(listed):
                curve.append(curve[-1])
            curve = [cost + _at(listed, replicas) for replicas, cost in enumerate(curve)]
        flat = curve[-1]
        for start, price in lines:
            for replicas in range(self.limit + 1):
                cost = math.floor((start - price * replicas) * scale)
                if replicas < len(curve):
                    curve[replicas] = max(curve[replicas], cost)
                elif cost > flat:
                    curve.append(cost)
                else:
                    break
        return [*curve, flat]

    def _least_uniform(self, curves: list[list[int]], sharper: list[dict[int, int]]) -> int:
        """Choose the slots that all GPUs have in all layers."""
        problem = self.problem
        experts, layers = problem.loads.experts, problem.loads.layers
        totals = []
        for slots in range(-(-experts // problem.gpus), experts * problem.copies_limit + 1):
            replicas = slots * problem.gpus - experts
            if replicas * layers > problem.replicas or replicas > self.limit:
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
        most = self.limit * self.problem.loads.layers
        budget = min(self.problem.replicas, most) // step
        best = np.zeros(budget + 1, dtype=np.int64)
        for curve, known in zip(curves, sharper, strict=True):
            # Of the choices that are all alike at the end, the first is as good as any.
            last = max(len(curve) - 1, *known) + step
            fresh: npt.NDArray[np.int64] = np.full(budget + 1, _FITS)
            for units in range(min(self.limit, last) // step + 1):
                replicas = units * step
                cost = known.get(replicas, _at(curve, replicas))
                fresh[units:] = np.minimum(fresh[units:], best[: budget + 1 - units] + cost)
            best = fresh
        return int(best[-1])


def _at(curve: list[int], replicas: int) -> int:
    return curve[min(replicas, len(curve) - 1)]


def _window_cost(load: Fraction, mean: Fraction, time: bool) -> Fraction:
    """Compute what a window adds to a layer's cost, from its largest and its mean GPU load."""
    if time:
        return load
    return -mean / load if load else Fraction(-1)


# --- witnesses ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Case:
    """A layer with a number of copies, and the box that their distribution lies in."""

    weights: Integers  # [windows, experts]
    means: tuple[Fraction, ...]  # mean GPU load of every window
    gpus: int
    copies: int
    unit: int  # one token in units of the weights
    time: bool
    even: bool
    lower: tuple[int, ...]
    upper: tuple[int, ...]

    @property
    def empty(self) -> bool:
        """Whether no numbers of copies lie in the box."""
        crossed = any(low > high for low, high in zip(self.lower, self.upper, strict=True))
        return crossed or sum(self.lower) > self.copies or sum(self.upper) < self.copies


def _layer_cost(witness: Witness, case: _Case) -> Bound:
    """Compute the cost that a layer witness proves; math.inf of an empty box."""
    kind = witness["kind"]
    if kind in ("branch", "empty"):
        return _split(witness, case, _layer_cost)
    if kind == "credits":
        start, price = _credits(witness, case)
        return start - price * (case.copies - len(case.lower))
    witnesses = list(witness["windows"]) if kind == "windows" else [witness]
    if len(witnesses) != len(case.means):
        raise VerificationError(
            f"{len(witnesses)} window witness(es) of {kind!r} for {len(case.means)} window(s)"
        )
    total = Fraction(0)
    for window, of_window in enumerate(witnesses):
        load = _window_load(of_window, case, window)
        if not isinstance(load, Fraction):
            return load
        total += _window_cost(load, case.means[window], case.time)
    return total


def _window_load(witness: Witness, case: _Case, window: int) -> Bound:
    """Compute the least largest GPU load that a window witness proves."""
    kind = witness["kind"]
    if kind in ("branch", "empty"):
        return _split(witness, case, lambda part, box: _window_load(part, box, window))
    if kind == "mean":
        return case.means[window]
    if kind == "copies":
        return _copies(case, window)
    if kind not in ("cardinality", "configuration"):
        raise VerificationError(f"a witness of kind {kind!r} proves nothing of a window")
    if kind == "cardinality" and not case.even:
        raise VerificationError("cardinality witnesses need even slots")
    load = _number(witness["load"]) * case.unit
    if load <= 0:
        raise VerificationError(f"a {kind} witness of load {witness['load']} says nothing")
    box = _below(case, window, load)
    if box is not None:
        proof = _cardinality if kind == "cardinality" else _configuration
        proof(witness, box, window, load)
    return max(load, case.means[window])


def _split(witness: Witness, case: _Case, prove: Callable[[Witness, _Case], Bound]) -> Bound:
    """Check both sides of a branch, or that there is nothing to check."""
    if witness["kind"] == "empty":
        if not case.empty:
            raise VerificationError("a box is said to be empty, and is not")
        return math.inf
    expert, copies = _whole(witness["expert"]), _whole(witness["copies"])
    if not 0 <= expert < len(case.lower):
        raise VerificationError(f"there is no expert {expert} to branch on")
    upper, lower = list(case.upper), list(case.lower)
    upper[expert] = min(upper[expert], copies)
    lower[expert] = max(lower[expert], copies + 1)
    below = prove(witness["below"], replace(case, upper=tuple(upper)))
    above = prove(witness["above"], replace(case, lower=tuple(lower)))
    return min(below, above)


def _copies(case: _Case, window: int) -> Bound:
    """Compute the least possible heaviest copy in the box."""
    if case.empty:
        return math.inf
    spare = case.copies - sum(case.lower)
    weights = case.weights[window].tolist()
    *_, load = islice(_heaviest_copy(weights, case.lower, case.upper), spare + 1)
    return max(load, case.means[window])


def _heaviest_copy(
    weights: Sequence[int], lower: Sequence[int], upper: Sequence[int]
) -> Iterator[Fraction]:
    """Yield the least possible heaviest copy with 0, 1, ... copies beyond the lower limits.

    Copies the expert with the heaviest copies, until that one is at its limit.
    """
    # In multiples of 1/common every copy weighs a whole number: quick to compare.
    common = math.lcm(*range(1, max(upper, default=1) + 1))
    heap = [
        (-weight * (common // count), expert)
        for expert, (weight, count) in enumerate(zip(weights, lower, strict=True))
    ]
    heapq.heapify(heap)
    count = list(lower)
    while heap:
        load, expert = heap[0]
        yield Fraction(-load, common)
        if count[expert] >= upper[expert]:
            return
        count[expert] += 1
        heapq.heapreplace(heap, (-weights[expert] * (common // count[expert]), expert))


def _below(case: _Case, window: int, load: Fraction) -> _Case | None:
    """Shrink the box to what leaves all copies lighter than a load; None where nothing does."""
    weights = case.weights[window].tolist()
    # weight / copies < load, so copies > weight / load
    lower = [
        max(low, weight * load.denominator // load.numerator + 1)
        for weight, low in zip(weights, case.lower, strict=True)
    ]
    # All together have a given number of copies: what one has is what the others leave.
    spare = case.copies - sum(lower)
    upper = [min(high, low + spare) for low, high in zip(lower, case.upper, strict=True)]
    room = sum(upper) - case.copies
    lower = [max(low, high - room) for low, high in zip(lower, upper, strict=True)]
    box = replace(case, lower=tuple(lower), upper=tuple(upper))
    return None if spare < 0 or room < 0 or box.empty else box


def _cardinality(witness: Witness, case: _Case, window: int, load: Fraction) -> None:
    """Check that one price per copy makes all loads below ``load`` impossible."""
    price = _number(witness["price"]) * case.unit
    slots = case.copies // case.gpus
    if not 0 <= price * slots <= load:
        raise VerificationError(
            f"the price {witness['price']} is outside 0 and load / {slots} slots"
        )
    common = math.lcm(load.denominator, price.denominator)
    top, cost = int(load * common), int(price * common)
    room = top - (slots - 1) * cost  # of a heavy copy, at least the price
    size = common * int(case.weights[window].max()) + case.copies * (top + cost)
    kind = np.int64 if size * len(case.lower) < _FITS else object
    weights = case.weights[window].astype(kind) * common
    copies = np.array(case.lower, dtype=kind)
    lack = weights - copies * room
    saved = copies * cost - weights
    excess = int(lack[lack > 0].sum()) - int(saved[saved > 0].sum())
    # Spare copies lower the excess by the price at most, but on experts that lack more.
    spare = case.copies - sum(case.lower)
    gains = []
    for expert in np.flatnonzero(lack > cost).tolist():
        missing, count = int(lack[expert]), case.lower[expert]
        while missing > cost and count < case.upper[expert]:
            count += 1
            gains.append(min(missing, room) + max(0, cost * count - int(weights[expert])))
            missing -= room
    gains = sorted(gains, reverse=True)[:spare]
    excess -= sum(gains) + (spare - len(gains)) * cost
    if excess <= 0:
        raise VerificationError(
            f"the price {witness['price']} does not refute the load {witness['load']}"
        )


def _configuration(witness: Witness, case: _Case, window: int, load: Fraction) -> None:
    """Check that no configuration is worth more than stated, and that all GPUs need more."""
    profit = [_whole(value) for value in witness["experts"]]
    slot, extra, most = (_whole(witness[key]) for key in ("slot", "extra", "scale"))
    grid = _whole(witness["grid"])
    experts = len(case.lower)
    if len(profit) != experts:
        raise VerificationError(f"{len(profit)} profits are stated of {experts} experts")
    if not 1 <= grid <= _FINEST_GRID:
        raise VerificationError(f"grid={grid} is outside 1 and {_FINEST_GRID}")
    slots, fuller = divmod(case.copies, case.gpus) if case.even else (0, 0)
    if sum(profit) - slot * case.copies - extra * fuller <= case.gpus * most:
        raise VerificationError("the profits of all experts are no more than the GPUs can have")
    largest = max(map(abs, [*profit, slot, extra, most]))
    if 4 * (slots + 2 if case.even else experts + 1) * largest >= _FITS:
        raise VerificationError("the profits are too large to be checked; scale them down")
    members = slots + 1 if fuller else slots
    nothing = -_FITS  # no such configuration
    # best[k, s]: the most that k experts of rounded size s together are worth; without even
    # slots, best[0, s] that of any number of experts
    best = np.full((members + 1, grid), nothing, dtype=np.int64)
    best[0, 0] = 0
    spare = case.copies - sum(case.lower)
    for expert, weight in enumerate(case.weights[window].tolist()):
        options: dict[int, int] = {}
        first = case.lower[expert]
        for count in range(first, min(case.upper[expert], first + spare) + 1):
            size = weight * grid * load.denominator // (count * load.numerator)
            worth = -(-profit[expert] // count) - slot
            options[size] = max(worth, options.get(size, worth))
        before = best if case.even else best.copy()
        for filled in range(members - 1, -1, -1) if case.even else (-1,):
            for size, worth in options.items():
                if size < grid:
                    target = best[filled + 1, size:]
                    np.maximum(target, before[filled, : grid - size] + worth, out=target)
    if best[slots].max() > most or (fuller and best[slots + 1].max() - extra > most):
        raise VerificationError(
            f"a configuration below the load {witness['load']} is worth more than stated"
        )


def _credits(witness: Witness, case: _Case) -> tuple[Fraction, Fraction]:
    """Compute what credits prove: the cost without replicas, and what each may save."""
    # One unit of the witness in units of the cost.
    scale = _number(witness["scale"]) / (case.unit if case.time else 1)
    price = _whole(witness["price"])
    if scale <= 0 or price < 0:
        raise VerificationError(f"scale {witness['scale']} and price {price} make no sense")
    base = Fraction(0)
    total = 0
    of_step: dict[tuple[int, int], int] = defaultdict(int)
    windows = {_position(key): rows for key, rows in witness["windows"].items()}
    if not all(window < len(case.means) for window in windows):
        raise VerificationError("credits stand on windows that there are not")
    for window, mean in enumerate(case.means):
        tokens = case.weights[window].tolist()
        # The heaviest copy, if every expert had its most.
        heavy = [
            Fraction(count, most)
            for count, most in zip(tokens, case.upper, strict=True)
            if count * mean.denominator > mean.numerator * most
        ]
        floor = _window_cost(max(heavy, default=mean), mean, case.time)
        base += floor
        levels = []
        for expert, step, credit in windows.get(window, ()):
            if _whole(credit) < 0 or _whole(step) < 2 or not 0 <= _whole(expert) < len(tokens):
                raise VerificationError(f"[{expert}, {step}, {credit}] is no credit")
            levels.append((Fraction(tokens[expert], step - 1), credit))
            of_step[expert, step] += credit
        spent = 0
        for load, credit in sorted(levels):
            spent += credit
            if credit and spent > (_window_cost(load, mean, case.time) - floor) * scale:
                raise VerificationError(
                    f"window {window} gives {spent} credits below the load "
                    f"{float(load / case.unit):.6g}, more than that costs"
                )
        total += spent
    taken: dict[int, int] = defaultdict(int)
    for (expert, step), credit in sorted(of_step.items()):
        taken[expert] += credit
        if taken[expert] > price * (step - 1):
            raise VerificationError(
                f"expert {expert} takes {taken[expert]} credits for {step} copies, "
                "more than the price"
            )
    return base + total / scale, price / scale


def _position(key: str) -> int:
    if not key.isdecimal():
        raise VerificationError(f"{key!r} stands where the position of a window must")
    return int(key)
