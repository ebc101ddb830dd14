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
from craftopt.verification.rules import check_rules


def verify(certificate: Certificate | str | os.PathLike[str]) -> None:
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
    if isinstance(certificate, str | os.PathLike):
        certificate = Certificate.load(certificate)
    else:  # what its file would say
        certificate = Certificate.from_json(certificate.to_json())
    try:
        _verify(certificate)
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
    costs = [exact.plan_cost(layer, certificate.plan) for layer in range(loads.layers)]
    _check_number("the plan's objective", document["value"], exact.objective(costs))
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
    _check_bound("the whole plan", document, exact, exact.least_objective(proven, lines))
    if not document["claims"]:
        require(
            document["solver_bound"] is None and document["solver_gap"] is None,
            "a solver's bound is stated and no solver's claim",
        )
        return
    for entry in document["claims"]:
        cell = layer_of[whole(entry["layer_id"])], whole(entry["replicas"])
        _keep_best(proven, cell, exact.claimed_cost(*cell, entry["witness"]))
    believed = exact.least_objective(proven, lines)
    _check_bound("the whole plan, solvers believed", document, exact, believed, "solver_")


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
        _check_bound(f"{name} with {replicas} replicas", entry, exact, bound)
    return proven


def _keep_best(proven: dict[Cell, Fraction], cell: Cell, cost: Fraction) -> None:
    proven[cell] = max(cost, proven.get(cell, cost))


def _check_number(name: str, stated: Any, true: Fraction) -> None:
    number = fraction(stated)
    require(number == true, f"{name} is stated as {float(number):.12g}, and is {float(true):.12g}")


def _check_bound(
    name: str, entry: Mapping[str, Any], exact: ExactProblem, proven: Fraction, prefix: str = ""
) -> None:
    value, bound = fraction(entry["value"]), fraction(entry[f"{prefix}bound"])
    require(
        bound <= proven if exact.time else bound >= proven,
        f"{name}: the bound is stated as {float(bound):.12g}, and {float(proven):.12g} is proven",
    )
    require(bound > 0 and value > 0, f"{name}: a bound or an objective of 0 is none")
    gap = exact.gap(value, bound)
    require(  # solvers can be wrong
        gap >= 0,
        f"{name}: the plan, at {float(value):.12g}, is better than its bound, {float(bound):.12g}",
    )
    _check_number(f"the gap of {name}", entry[f"{prefix}gap"], gap)
