"""Certificates of node visits: the best bound that a layer's size allows, and its proof."""

from __future__ import annotations

from fractions import Fraction
from math import comb
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from craftopt.bounds.traffic.columns import column_bound
from craftopt.bounds.traffic.companions import companion_bound
from craftopt.bounds.traffic.tokens import TokenSets
from craftopt.verification_traffic import MOST_SETS, joint_bound, placement_visits


def certify_visits(
    sets: TokenSets,
    copies: npt.ArrayLike,
    sizes: tuple[int, int],
    *,
    dispatch: Literal["even", "any"] = "even",
    time_bound: Fraction | None = None,
    traffic: Fraction = Fraction(0),
    rounds: int = 1000,
) -> dict[str, Any]:
    """Bound how far the node visits of a placement are from the fewest, with a proof.

    Parameters
    ----------
    sets : TokenSets
    copies : array_like of int [experts, nodes]
        How many copies of every expert every node holds.
    sizes : (int, int)
        The fewest and the most copies that a node may hold (`node_sizes`).
    dispatch : {"even", "any"}
        What the bound is for: even dispatch, or whatever is best for every token.
    time_bound : Fraction, optional
        A proven bound on the relative time of the layer, for one on the joint objective.
    traffic : Fraction
        The price of a node per token, in mean GPU loads.
    rounds : int
        As in `companion_bound`.

    Returns
    -------
    dict
        A certificate as `craftopt.verification_traffic.check_visits` reads it.

    Examples
    --------
    >>> from craftopt.bounds.traffic import certify_visits, token_sets
    >>> from craftopt.verification_traffic import check_visits
    >>> sets = token_sets([[0, 1], [0, 1], [2, 3], [1, 2]], experts=4)
    >>> certificate = certify_visits(sets, [[1, 0], [0, 1], [1, 0], [0, 1]], sizes=(2, 2))
    >>> certificate["visits"], certificate["bound"], certificate["gap"]
    ('8', '5', '3/5')
    >>> check_visits(certificate)
    """
    held = np.asarray(copies, dtype=np.int64)
    nodes, replicas = held.shape[1], int(held.sum()) - sets.experts
    case = sets.case(nodes, sizes, replicas, dispatch)
    counted = sum(comb(sets.experts, size) for size in range(sizes[0], sizes[1] + 1))
    if replicas == 0 and sizes[0] > 0 and counted <= MOST_SETS:
        columns = column_bound(sets, nodes, sizes, start=held.argmax(axis=1))
        bound, witness = Fraction(columns.visits), columns.witness
    else:
        companions = companion_bound(
            sets, nodes, sizes[1], replicas=replicas, dispatch=dispatch, rounds=rounds
        )
        bound, witness = companions.visits, companions.witness
    visits = placement_visits(case, held.tolist())
    certificate = {
        "case": case,
        "copies": held.tolist(),
        "visits": str(visits),
        "bound": str(bound),
        "gap": str(visits / bound - 1),
        "witness": witness,
    }
    if time_bound is not None:
        certificate["joint"] = {
            "traffic": str(traffic),
            "time_bound": str(time_bound),
            "bound": str(joint_bound(time_bound, traffic, bound, sets.tokens)),
        }
    return certificate
