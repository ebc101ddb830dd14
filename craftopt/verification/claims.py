"""Check what a certificate claims, one claim after the other."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from craftopt.errors import CraftoptError, VerificationError
from craftopt.verification.checks import fraction, require, whole
from craftopt.verification.costs import Cell, ExactProblem, Line
from craftopt.verification.document import Certificate, plan_digest
from craftopt.verification.logs import check_log, read_log
from craftopt.verification.refutation import BetterPlan
from craftopt.verification.rules import check_rules
from craftopt.verification.traffic import ExactTraffic, Proof, visits_proof


def verify(
    certificate: Certificate | str | os.PathLike[str],
    *,
    log: str | os.PathLike[str] | None = None,
) -> None:
    """Check every claim of a certificate in exact arithmetic.

    The plan keeps every rule; its objective, all witnesses, every layer's and the whole plan's
    bound and gap are as stated, in time and in nodes that tokens visit; loads and plan are those
    that the digests name.

    Parameters
    ----------
    certificate : Certificate or path
    log : path, optional
        A proof log (``.pbp``, or ``.pbp.xz``) that no plan is better than this one: check that it
        derives a contradiction from `craftopt.verification.refutation.BetterPlan`.

    Raises
    ------
    VerificationError
        A claim that is false; the message names the first one.
    FormatError
        A file that is no certificate, or one of a version that this one cannot read; a log that
        cannot be read.

    Examples
    --------
    >>> import craftopt as co
    >>> problem = co.Problem(co.Loads([[600, 560, 120, 120, 20, 10, 10, 10]]), gpus=4)
    >>> certificate = co.certify(problem, co.solve(problem, "nominal").plan)
    >>> co.verify(certificate)
    """
    if isinstance(certificate, str | os.PathLike):
        certificate = Certificate.load(certificate)
    else:  # what its file would say
        certificate = Certificate.from_json(certificate.to_json())
    lines = None if log is None else read_log(log)
    try:
        _verify(certificate)
        if lines is not None:
            value = fraction(certificate.document["value"])
            check_log(BetterPlan(certificate.problem, value).formula, lines)
    except VerificationError:
        raise
    except CraftoptError as error:
        raise VerificationError(f"the certificate cannot be true: {error}") from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise VerificationError(
            f"the certificate is damaged: {type(error).__name__}: {error}"
        ) from None
    except RecursionError:
        raise VerificationError("a witness branches deeper than can be followed") from None


def _verify(certificate: Certificate) -> None:
    document, loads = certificate.document, certificate.loads
    require(
        document["loads"]["digest"] == loads.digest,
        "the loads are not those that the digest names",
    )
    require(
        document["plan_digest"] == plan_digest(certificate.plan),
        "the plan is not the one the digest names",
    )
    check_rules(certificate.problem, certificate.plan)
    exact = ExactProblem(certificate.problem)
    costs = exact.plan_costs(certificate.plan)
    nodes, fewest = _verify_traffic(certificate, exact)
    _check_number("the plan's objective", document["value"], exact.objective(costs) + nodes)
    proven = _verify_layers(certificate, exact, costs)
    layer_of = {int(layer_id): layer for layer, layer_id in enumerate(loads.layer_ids)}
    lines: dict[int, list[Line]] = defaultdict(list)
    for entry in document["allocation"]:
        layer = layer_of[whole(entry["layer_id"])]
        if entry["replicas"] is None:
            lines[layer].append(exact.proven_line(layer, entry["witness"]))
        else:
            cell = layer, whole(entry["replicas"])
            _keep_best(proven, cell, exact.proven_cost(*cell, entry["witness"]))
    least = exact.least_objective(proven, lines) + fewest
    _check_bound("the whole plan", document, least, maximised=not exact.time)
    if not document["claims"]:
        require(
            document["solver_bound"] is None and document["solver_gap"] is None,
            "a solver's bound is stated and no solver's claim",
        )
        return
    for entry in document["claims"]:
        cell = layer_of[whole(entry["layer_id"])], whole(entry["replicas"])
        _keep_best(proven, cell, exact.claimed_cost(*cell, entry["witness"]))
    least = exact.least_objective(proven, lines) + fewest
    name = "the whole plan, solvers believed"
    _check_bound(name, document, least, maximised=not exact.time, prefix="solver_")


def _verify_layers(
    certificate: Certificate, exact: ExactProblem, costs: list[Fraction]
) -> dict[Cell, Fraction]:
    """Check what is stated of every layer; return what the witnesses prove."""
    loads, entries = certificate.loads, certificate.document["layers"]
    require(len(entries) == loads.layers, f"{len(entries)} layers are stated of {loads.layers}")
    proven: dict[Cell, Fraction] = {}
    for layer, entry in enumerate(entries):
        name = f"layer {loads.layer_ids[layer]}"
        replicas = int(certificate.plan.layer_replicas[layer])
        require(
            whole(entry["layer_id"]) == loads.layer_ids[layer],
            f"{name} is stated as layer {entry['layer_id']}",
        )
        require(
            whole(entry["replicas"]) == replicas,
            f"{name} is said to have {entry['replicas']} replicas, and has {replicas}",
        )
        value = exact.layer_objective(layer, costs[layer])
        _check_number(f"the objective of {name}", entry["value"], value)
        proven[layer, replicas] = cost = exact.proven_cost(layer, replicas, entry["witness"])
        bound = exact.layer_objective(layer, cost)
        name = f"{name} with {replicas} replicas"
        _check_bound(name, entry, bound, maximised=not exact.time)
    return proven


def _verify_traffic(certificate: Certificate, exact: ExactProblem) -> tuple[Fraction, Fraction]:
    """Check what is stated of node visits; return what they add to objective and bound."""
    document, plan = certificate.document, certificate.plan
    if document.get("traffic") is None:
        return Fraction(0), Fraction(0)
    stated, entries = document["traffic"], document["traffic_layers"]
    price = fraction(stated["price"])
    require(price == 0 or (price > 0 and exact.time), "traffic has a price in time alone")
    traffic = ExactTraffic(certificate.problem, document["tokens"], document["token_windows"])
    if stated["windows_of_loads"] is not False:
        require(traffic.has_loads(), "the loads are not those of the tokens in their windows")
    layer_ids = plan.layer_ids.tolist()
    require([whole(entry["layer_id"]) for entry in entries] == layer_ids, "other layers are stated")
    proofs: list[list[Proof]] = [[] for _ in layer_ids]
    for entry in document["traffic_allocation"]:
        layer = layer_ids.index(whole(entry["layer_id"]))
        case = traffic.case(layer, whole(entry["replicas"]))
        proofs[layer].append(visits_proof(case, entry["witness"]))
    visits = busiest = Fraction(0)
    for layer, entry in enumerate(entries):
        name = f"nodes per token in layer {layer_ids[layer]}"
        of_layer, of_busiest = traffic.plan_visits(layer, plan)
        _check_number(name, entry["value"], traffic.per_token(layer, of_layer))
        case = traffic.case(layer, int(plan.layer_replicas[layer]))
        require(whole(entry["replicas"]) == case.replicas, f"{name}: other replicas are stated")
        proof = visits_proof(case, entry["witness"])
        proven = traffic.per_token(layer, proof(case.replicas, case.sizes[1]))
        _check_bound(name, entry, proven)
        proofs[layer].insert(0, proof)
        visits, busiest = visits + of_layer, busiest + of_busiest
    _check_number("nodes per token", stated["value"], visits / traffic.tokens)
    _check_number("critical nodes", stated["critical_nodes"], busiest / traffic.tokens)
    _check_bound("nodes per token", stated, traffic.least_per_token(exact, proofs))
    return price * busiest / traffic.tokens, price * fraction(stated["bound"])


def _keep_best(proven: dict[Cell, Fraction], cell: Cell, cost: Fraction) -> None:
    proven[cell] = max(cost, proven.get(cell, cost))


def _check_number(name: str, stated: Any, true: Fraction) -> None:
    number = fraction(stated)
    require(number == true, f"{name} is stated as {float(number):.12g}, and is {float(true):.12g}")


def _check_bound(
    name: str,
    entry: Mapping[str, Any],
    proven: Fraction,
    *,
    maximised: bool = False,
    prefix: str = "",
) -> None:
    value, bound = fraction(entry["value"]), fraction(entry[f"{prefix}bound"])
    require(
        bound >= proven if maximised else bound <= proven,
        f"{name}: the bound is stated as {float(bound):.12g}, and {float(proven):.12g} is proven",
    )
    require(bound > 0 and value > 0, f"{name}: a bound or an objective of 0 is none")
    gap = (bound - value) / value if maximised else (value - bound) / bound
    require(  # solvers can be wrong
        gap >= 0,
        f"{name}: the plan, at {float(value):.12g}, is better than its bound, {float(bound):.12g}",
    )
    _check_number(f"the gap of {name}", entry[f"{prefix}gap"], gap)
