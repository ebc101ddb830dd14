"""Relabel the GPUs of a plan so that what they send goes over cheap links."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from craftopt.evaluation import evaluate, host_shares
from craftopt.links import valid_link_cost
from craftopt.loads import Loads
from craftopt.plan import Plan
from craftopt.rebalancing.relabelling import assign_gpus
from craftopt.routing import Dispatch
from craftopt.traces import Trace
from craftopt.traffic import valid_homes


def relabel_for_links(
    plan: Plan,
    loads: Loads,
    link_cost: npt.ArrayLike,
    dispatch: Dispatch = "even",
    *,
    trace: Trace | None = None,
    homes: npt.ArrayLike | None = None,
    within_nodes: bool = True,
) -> Plan:
    """Permute a plan's GPUs, layer by layer, so that sending costs the least.

    GPU loads are only renamed, so every objective stays as it is. A GPU goes where as many slots
    are. Under even dispatch what a GPU serves comes from the same GPUs wherever it is: a linear
    assignment problem, solved exactly. Another dispatch gets the same permutation if it costs less
    there, too.

    Parameters
    ----------
    plan : Plan
    loads : Loads
    link_cost : array_like of float, shape [gpus, gpus] or [nodes, nodes]
        Cost of sending one choice of a token from the GPU (or node) that holds it, row, to one
        that serves it, column.
    dispatch : {"even", "nearest", "nearest-even"}
    trace, homes : Trace and array_like of int [tokens], optional
        Tokens and the GPUs that hold them; by default every GPU holds as many of all.
    within_nodes : bool
        Move nodes only whole, and GPUs only within their node, so that node visits and other
        dispatches than even stay as they are. False: any GPU may go anywhere.

    Returns
    -------
    Plan
        Never costs more.

    Raises
    ------
    InputError
        As `craftopt.evaluate`.

    Examples
    --------
    The busy expert moves to the GPU that is cheap to reach:

    >>> import craftopt as co
    >>> plan = co.Plan.from_phy2log([[0, 1]], gpus=2)
    >>> loads, cost = co.Loads([[9, 1]]), [[0, 1], [3, 0]]
    >>> better = co.relabel_for_links(plan, loads, cost)
    >>> [co.evaluate(of, loads, link_cost=cost).mean_link_cost for of in (plan, better)]
    [1.4, 0.6]
    """
    cost = valid_link_cost(link_cost, plan.gpus, plan.nodes)

    def paid(of: Plan) -> float:
        scored = evaluate(of, loads, dispatch, trace=trace, homes=homes, link_cost=cost)
        return scored.mean_link_cost

    before = paid(plan)
    home = None if trace is None or homes is None else valid_homes(homes, trace.tokens, plan.gpus)
    copies = np.empty_like(plan.copies)
    for layer, hosted in enumerate(plan.copies):
        chosen = np.tile(loads.tokens[:, layer].sum(axis=0) / plan.gpus, (plan.gpus, 1))
        if home is not None and trace is not None:
            ids = trace.topk_ids[:, layer].astype(np.int64)
            cells = (home[:, np.newaxis] * plan.experts + ids)[ids >= 0]
            chosen = np.bincount(cells, minlength=chosen.size).reshape(chosen.shape)
        # What each set of copies costs in each place.
        of_place = np.einsum(
            "se,ei,sj->ij",
            chosen,
            host_shares(hosted, 1, "even"),
            cost,
            optimize=["einsum_path", (0, 1), (0, 1)],
        )
        slots = hosted.sum(axis=0, dtype=np.int64)
        nodes = plan.nodes if within_nodes else 1
        to, _ = assign_gpus(of_place.max() - of_place, slots, slots, nodes)
        copies[layer][:, to] = hosted
    better = Plan(copies, plan.layer_ids, plan.nodes, plan.method, plan.loads_digest)
    return better if paid(better) < before else plan
