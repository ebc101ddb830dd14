"""Certificates of node visits: the best bound that a layer's size allows, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt

from craftopt.bounds.traffic.columns import column_bound
from craftopt.bounds.traffic.companions import companion_bound
from craftopt.bounds.traffic.tokens import TokenSets, token_sets
from craftopt.plan import Plan
from craftopt.traces import Trace
from craftopt.traffic import SERVED_WINDOWS, token_windows
from craftopt.verification import ExactProblem, ExactTraffic, visits_proof
from craftopt.verification.witnesses.columns import MOST_SETS
from craftopt.verification.witnesses.companions import MOST_CHOICES


def visits_witness(
    sets: TokenSets,
    nodes: int,
    sizes: tuple[int, int],
    *,
    replicas: int = 0,
    start: npt.ArrayLike | None = None,
) -> dict[str, Any]:
    """Bound the nodes that tokens visit: by columns where there are few, else by companions.

    Parameters
    ----------
    sets : TokenSets
    nodes : int
        At least 2.
    sizes : (int, int)
        The fewest and the most copies that a node may hold.
    replicas : int
    start : array_like of int [experts], optional
        As in `column_bound`.

    Returns
    -------
    dict
        A witness as `craftopt.verification` describes it.

    Examples
    --------
    >>> from craftopt.bounds.traffic import token_sets, visits_witness
    >>> from craftopt.verification.traffic import proven_visits
    >>> sets = token_sets([[0, 1], [0, 1], [2, 3], [1, 2]], experts=4)
    >>> witness = visits_witness(sets, nodes=2, sizes=(2, 2))
    >>> witness["kind"], proven_visits(sets.case(2, (2, 2)), witness)
    ('columns', Fraction(5, 1))
    """
    few = sum(comb(sets.experts, size) for size in range(sizes[0], sizes[1] + 1)) <= MOST_SETS
    if replicas == 0 and sizes[0] > 0 and few:
        return column_bound(sets, nodes, sizes, start).witness
    if sizes[1] >= sets.experts or sets.members.shape[1] > MOST_CHOICES:
        return {"kind": "capacity"}
    return companion_bound(sets, nodes, sizes[1], replicas=replicas).witness


def certify_traffic(
    exact: ExactProblem,
    plan: Plan,
    trace: Trace,
    in_time: Callable[[], bool],
    report: Callable[[int], None] | None = None,
) -> tuple[dict[str, Any], Fraction, Fraction]:
    """Bound how far the node visits of a plan are from the fewest, with a proof.

    Parameters
    ----------
    exact : ExactProblem
        On several nodes.
    plan : Plan
    trace : Trace
    in_time : callable
        Whether bounds are still to be sharpened.
    report : callable, optional
        Called with the number of layers done.

    Returns
    -------
    dict
        The fields of a certificate: ``traffic`` and what it rests on.
    Fraction, Fraction
        What traffic adds to the objective, and to its bound.
    """
    problem = exact.problem
    plan.check_layers(trace, "trace")
    window, _, name = token_windows(trace, problem.loads)
    ids, window = trace.topk_ids[window >= 0].astype(np.int64), window[window >= 0]
    traffic = ExactTraffic(problem, ids, window)
    layers, others, proofs = [], [], []
    visits = busiest = Fraction(0)
    for layer, replicas in enumerate(plan.layer_replicas.tolist()):
        of_layer, of_busiest = traffic.plan_visits(layer, plan)
        visits, busiest = visits + of_layer, busiest + of_busiest
        sets = token_sets(ids[:, layer], problem.loads.experts)
        start = plan.copies[layer].argmax(axis=1) // problem.gpus_per_node
        # Witnesses without replicas say nothing of layers with some: these need one more.
        asked = [replicas]
        if replicas == 0 and problem.layer_replicas_limit > 0:
            asked.append(max(1, problem.replicas // problem.loads.layers))
        found = []
        for number in asked:
            case = traffic.case(layer, number)
            witness: dict[str, Any] = {"kind": "capacity"}
            if in_time():
                witness = visits_witness(sets, case.nodes, case.sizes, replicas=number, start=start)
            found.append((number, case.sizes[1], witness, visits_proof(case, witness)))
        (_, size, own, proof), *further = found
        value = traffic.per_token(layer, of_layer)
        bound = traffic.per_token(layer, proof(replicas, size))
        layer_id = int(plan.layer_ids[layer])
        layers.append(
            {"layer_id": layer_id, "replicas": replicas, **_figures(value, bound), "witness": own}
        )
        others += [
            {"layer_id": layer_id, "replicas": number, "witness": witness}
            for number, _, witness, _ in further
        ]
        proofs.append([proof for *_, proof in found])
        if report is not None:
            report(layer + 1)
    price = Fraction(problem.traffic_price)
    bound = traffic.least_per_token(exact, proofs)
    fields = {
        "traffic": {
            "price": str(price),
            "critical_nodes": str(busiest / traffic.tokens),
            **_figures(visits / traffic.tokens, bound),
            "windows_of_loads": name == SERVED_WINDOWS,
        },
        "traffic_layers": layers,
        "traffic_allocation": others,
        "token_windows": window.tolist(),
        "tokens": ids.tolist(),
    }
    return fields, price * busiest / traffic.tokens, price * bound


def _figures(value: Fraction, bound: Fraction) -> dict[str, str]:
    return {"value": str(value), "bound": str(bound), "gap": str(value / bound - 1)}
