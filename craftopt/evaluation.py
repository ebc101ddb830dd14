"""The one place where objectives are computed; `craftopt.rules` has what a plan must keep."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from craftopt.coactivation import Coactivation
from craftopt.display import Displayed, Table, data_frame, sparkline
from craftopt.errors import InputError, choice
from craftopt.links import LINK_RULES, valid_link_cost
from craftopt.loads import FloatArray, IntArray, Loads, read_only
from craftopt.plan import Copies, Plan
from craftopt.problem import Problem
from craftopt.routing import COUNT_DISPATCHES, DISPATCHES, Dispatch, route
from craftopt.traces import Trace
from craftopt.traffic import (
    TRAFFIC_RULES,
    Traffic,
    traffic_of_pairs,
    traffic_of_trace,
    traffic_summary,
    valid_homes,
)


@dataclass(frozen=True, eq=False)
class Evaluation(Displayed):
    """Say how a plan does on loads.

    Parameters
    ----------
    max_load, mean_load : float64 [windows, layers]
        Largest and mean GPU load, in token assignments.
    max_activated : int64 [windows, layers] or None
        Most activated copies on a GPU; None under even dispatch and cover, which are scored in
        tokens alone.
    traffic : Traffic or None
        What GPUs send, where a trace or pair counts are given.
    link_cost : float64 [windows, layers] or None
        Cost of sending a token to the GPU of one of its choices, the mean over the choices of a
        window; 0 without tokens. Known where the costs of links are given.
    """

    max_load: FloatArray
    mean_load: FloatArray
    max_activated: IntArray | None = None
    traffic: Traffic | None = None
    link_cost: FloatArray | None = None

    @cached_property
    def balancedness(self) -> FloatArray:
        """Mean over largest GPU load, float64 [windows, layers], in (0, 1]; 1 without tokens."""
        return read_only(_ratio(self.mean_load, self.max_load, empty=1.0))

    @property
    def mean_balancedness(self) -> float:
        """Mean of `balancedness` over windows and layers (CRAFT's figure)."""
        return float(self.balancedness.mean())

    @property
    def worst_layer(self) -> float:
        """Lowest layer's balancedness, averaged over its windows."""
        return float(self.balancedness.mean(axis=0).min())

    @property
    def relative_time(self) -> float:
        """Sum of the largest over sum of the mean GPU loads, at least 1; 1 without tokens."""
        mean = float(self.mean_load.sum())
        return float(self.max_load.sum()) / mean if mean > 0 else 1.0

    @property
    def mean_link_cost(self) -> float:
        """Mean of `link_cost` over windows and layers, weighted by their choices."""
        if self.link_cost is None:
            raise InputError("the costs of links are not known; pass link_cost= to evaluate")
        total = float(self.mean_load.sum())
        return float((self.link_cost * self.mean_load).sum()) / total if total > 0 else 0.0

    @property
    def engine_metrics(self) -> dict[str, float]:
        """The same loads in the engines' own figures, by engine.

        ``sglang``: mean over layers of (mean + 1e-5)/(max + 1e-5), averaged over windows.
        ``vllm``: sum of means over sum of maxima. ``tensorrt-llm``: mean of (max - mean)/mean,
        lower is better.
        """
        excess = _ratio(self.max_load - self.mean_load, self.mean_load, empty=0.0)
        return {
            "sglang": float(((self.mean_load + 1e-5) / (self.max_load + 1e-5)).mean()),
            "vllm": 1.0 / self.relative_time,
            "tensorrt-llm": float(excess.mean()),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, for JSON."""
        return {
            "mean_balancedness": self.mean_balancedness,
            "worst_layer": self.worst_layer,
            "relative_time": self.relative_time,
            "engine_metrics": self.engine_metrics,
            "balancedness": self.balancedness.tolist(),
            "traffic": self.traffic and self.traffic.to_dict(),
            "link_cost": None if self.link_cost is None else self.mean_link_cost,
        }

    def to_frame(self) -> Any:
        """Return a pandas data frame with a row per window and layer."""
        names = ("balancedness", "max_load", "mean_load", "max_activated")
        arrays = {name: getattr(self, name) for name in names}
        return data_frame(
            {"window": place[0], "layer": place[1]}
            | {name: array[place] for name, array in arrays.items() if array is not None}
            for place in np.ndindex(self.max_load.shape)
        )

    def summary(self) -> dict[str, str]:
        """Return the figures in words, for a table."""
        return {
            "mean balancedness": f"{self.mean_balancedness:.4f}",
            "worst layer": f"{self.worst_layer:.4f}",
            "relative time": f"{self.relative_time:.4f}",
            "by layer": sparkline(self.balancedness.mean(axis=0)),
            **{f"{name} figure": f"{value:.4f}" for name, value in self.engine_metrics.items()},
            **traffic_summary(self.traffic),
            **({} if self.link_cost is None else {"link cost": f"{self.mean_link_cost:.4f}"}),
        }

    def table(self) -> Table:
        """Lay the figures out as a table."""
        windows, layers = self.max_load.shape
        return replace(super().table(), title=f"{windows} windows x {layers} layers")

    def __repr__(self) -> str:
        return (
            f"Evaluation(mean_balancedness={self.mean_balancedness:.4f}, "
            f"relative_time={self.relative_time:.4f})"
        )


def evaluate(
    plan: Plan,
    loads: Loads,
    dispatch: Dispatch = "even",
    *,
    trace: Trace | None = None,
    coactivation: Coactivation | None = None,
    homes: npt.ArrayLike | None = None,
    link_cost: npt.ArrayLike | None = None,
) -> Evaluation:
    """Score a plan on loads, whether it was planned on them or not.

    Parameters
    ----------
    plan : Plan
    loads : Loads
        As many layers and experts as the plan has.
    dispatch : {"even", "hash", "nearest", "nearest-even", "metro", "exact", "lp", "mixed", "cover"}
        How an expert's tokens are split over its copies: equally, or by a rule of `route`, each
        window as a batch. Under ``metro``, ``exact``, ``lp`` and ``mixed`` a second copy on one
        GPU counts for nothing. ``cover`` needs a trace, of which the loads are windows.
    trace : Trace, optional
        Tokens to measure the traffic of, in closed form. Its windows are those of the loads where
        they were cut from it (`Trace.windows_of`), else consecutive batches of as many tokens.
    coactivation : Coactivation, optional
        Pair counts to estimate the traffic from, in place of a trace.
    homes : array_like of int, shape [tokens], optional
        GPU that holds each token of the trace; all equally likely by default. Loads are always
        scored with tokens held equally by all GPUs, but for ``cover``.
    link_cost : array_like of float, shape [gpus, gpus] or [nodes, nodes], optional
        Cost of sending one choice of a token from the GPU (or node) that holds it, row, to one
        that serves it, column: a linear cost, every choice sent by itself. For ``even``,
        ``nearest`` and ``nearest-even``; with ``homes``, the loads must be windows of the trace.

    Returns
    -------
    Evaluation
        Balancedness, relative time and the engines' figures of all windows and layers.

    Raises
    ------
    InputError
        Loads, trace or pair counts of another shape or other layers than the plan's; an unknown
        dispatch; a trace or pair counts with a dispatch other than ``even``, ``nearest``,
        ``nearest-even`` and (trace) ``cover``.

    Examples
    --------
    >>> import craftopt as co
    >>> plan = co.Plan.from_phy2log([[0, 1, 0, 2]], gpus=2)
    >>> co.evaluate(plan, co.Loads([[6, 2, 4]])).balancedness
    array([[0.85714286]])
    >>> co.evaluate(plan, co.Loads([[6, 2, 4]]), dispatch="lp").balancedness
    array([[1.]])
    """
    dispatch = choice("dispatch", dispatch, DISPATCHES)
    plan.check_layers(loads, "loads")
    plan = plan.survivors()
    if homes is not None and trace is None:
        raise InputError("homes without trace; pass the trace whose tokens they hold")
    if trace is not None and coactivation is not None:
        raise InputError("trace and coactivation are both given; pass one of them")
    if (trace is not None or coactivation is not None) and dispatch not in TRAFFIC_RULES:
        raise InputError(
            f"dispatch={dispatch!r} does not follow from a token's experts, so its traffic is not "
            f"known; pass one of {', '.join(TRAFFIC_RULES)}, or neither trace nor coactivation"
        )
    if dispatch not in COUNT_DISPATCHES and trace is None:
        raise InputError(f"dispatch={dispatch!r} asks which experts a token chose; pass trace=")
    traffic, served, activated = None, None, None
    if trace is not None:
        traffic, served = traffic_of_trace(plan, trace, loads, dispatch, homes)
    if served is None and dispatch in ("even", "nearest-even"):
        served = gpu_loads(plan, loads, dispatch)
    if served is None:
        routed = [route(plan, window, dispatch) for window in loads.tokens]
        served = np.array([routing.loads for routing in routed])
        activated = read_only(np.array([routing.max_activated for routing in routed]))
    elif dispatch == "nearest-even":
        activated = read_only(_all_copies_read(plan, loads))
    if coactivation is not None:
        traffic = traffic_of_pairs(plan, coactivation, loads, served, dispatch)
    paid = None
    if link_cost is not None:
        paid = read_only(_link_cost(plan, loads, dispatch, link_cost, trace, homes))
    largest = served.max(axis=2)
    mean = loads.tokens.sum(axis=2) / plan.gpus
    # A load can round to just under the mean of all; the largest never is.
    return Evaluation(
        read_only(np.maximum(largest, mean)), read_only(mean), activated, traffic, paid
    )


def _link_cost(
    plan: Plan,
    loads: Loads,
    dispatch: Dispatch,
    link_cost: npt.ArrayLike,
    trace: Trace | None,
    homes: npt.ArrayLike | None,
) -> FloatArray:
    """Compute the mean cost of sending a choice, [windows, layers]."""
    from craftopt.routing.visits import choice_costs  # noqa: PLC0415 (it loads numba)

    cost = valid_link_cost(link_cost, plan.gpus, plan.nodes)
    if dispatch not in LINK_RULES:
        raise InputError(
            f"dispatch={dispatch!r} sends by the loads, so its link cost is not known; "
            f"pass one of {', '.join(LINK_RULES)}, or no link_cost"
        )
    total = np.zeros((loads.windows, plan.layers))
    window = home = None
    if trace is not None and homes is not None:
        home = valid_homes(homes, trace.tokens, plan.gpus)
        window = trace.windows_of(loads)
        if window is None:
            raise InputError(
                "link_cost with homes needs windows cut from the trace; pass loads such as "
                "trace.batches(1024), or no homes"
            )
    for layer in range(plan.layers):
        of_choice = choice_costs(plan, layer, cost, dispatch)
        if trace is None or home is None or window is None:
            total[:, layer] = (loads.tokens[:, layer] * of_choice.mean(axis=0)).sum(axis=1)
            continue
        ids = trace.topk_ids[:, layer].astype(np.int64)
        paid = np.where(ids >= 0, of_choice[home[:, np.newaxis], ids], 0.0).sum(axis=1)
        total[:, layer] = np.bincount(window + 1, paid, loads.windows + 1)[1:]
    return _ratio(total, loads.tokens.sum(axis=2), empty=0.0)


def gpu_loads(plan: Plan, loads: Loads, dispatch: Dispatch = "even") -> FloatArray:
    """Compute every GPU's load, float64 [windows, layers, gpus].

    Under ``even`` and ``nearest-even`` dispatch, where each host of an expert serves a share of its
    tokens that does not depend on the loads.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.evaluation import gpu_loads
    >>> plan = co.Plan.from_phy2log([[0, 1, 0, 2]], gpus=2)
    >>> gpu_loads(plan, co.Loads([[6, 2, 4]]))
    array([[[5., 7.]]])
    """
    plan.check_layers(loads, "loads")
    result = np.empty((loads.windows, plan.layers, plan.gpus))
    for layer in range(plan.layers):
        result[:, layer] = layer_gpu_loads(
            loads.tokens[:, layer], plan.copies[layer], plan.nodes, dispatch
        )
    return result


def layer_gpu_loads(
    tokens: FloatArray, copies: Copies, nodes: int = 1, dispatch: Dispatch = "even"
) -> FloatArray:
    """Compute the GPUs' loads in one layer, to the same bit on any threads.

    Parameters
    ----------
    tokens : float64 [windows, experts]
    copies : uint8 [experts, gpus]
    nodes : int
    dispatch : {"even", "nearest-even"}

    Returns
    -------
    float64 [windows, gpus]
    """
    shares = host_shares(copies, nodes, dispatch)
    gpu, expert = np.nonzero(shares.T)
    # Summed copy by copy, in the order of the experts: matrix products of numpy's libraries
    # may add up in another order on another number of threads.
    hosted, first = np.unique(gpu, return_index=True)
    loads = np.zeros((shares.shape[1], tokens.shape[0]))
    served = tokens.T[expert] * shares[expert, gpu][:, np.newaxis]
    loads[hosted] = np.add.reduceat(served, first, axis=0)
    return np.ascontiguousarray(loads.T)


def host_shares(copies: Copies, nodes: int, dispatch: Dispatch) -> FloatArray:
    """Compute the share of each expert's tokens that each GPU serves, [experts, gpus].

    Under the dispatches of `layer_gpu_loads`.
    """
    shares: FloatArray = copies / copies.sum(axis=1, dtype=np.int64)[:, np.newaxis]
    if dispatch != "even":
        plan = Plan(copies[np.newaxis], nodes=nodes)
        shares = route(plan, np.ones((1, plan.experts)), dispatch).tokens[0]
    return shares


def _all_copies_read(plan: Plan, loads: Loads) -> IntArray:
    """Count the hosted experts with tokens on the GPU that has the most, [windows, layers]."""
    active = (loads.tokens > 0).astype(np.float64)
    hosts = (plan.copies > 0).astype(np.float64)
    most = [(active[:, layer] @ hosts[layer]).max(axis=1) for layer in range(plan.layers)]
    return np.stack(most, axis=1).astype(np.int64)


def objective_value(plan: Plan, problem: Problem) -> float:
    """Compute the problem's objective.

    Relative time, with a price of traffic plus critical nodes at this price, or mean balancedness
    under the problem's dispatch; or the mean of the most activated copies on a GPU under exact
    routing.
    """
    if not problem.goal.even_dispatch:
        return mean_activated(plan, problem.loads)
    scored = evaluate_for(plan, problem, traffic=problem.traffic_price > 0)
    if problem.goal.maximised:
        return scored.mean_balancedness
    if scored.traffic is None:
        return scored.relative_time
    return scored.relative_time + problem.traffic_price * scored.traffic.critical_nodes


def evaluate_for(plan: Plan, problem: Problem, *, traffic: bool) -> Evaluation:
    """Score a plan on the problem's loads under its dispatch.

    With the traffic by the problem's ``coactivation``, where it is wanted.
    """
    source = problem.coactivation if traffic else None
    return evaluate(
        plan,
        problem.loads,
        problem.dispatch,
        trace=source if isinstance(source, Trace) else None,
        coactivation=source if isinstance(source, Coactivation) else None,
    )


def mean_activated(plan: Plan, loads: Loads) -> float:
    """Compute the mean over windows and layers of the most activated copies on a GPU.

    Under exact routing, each window as a batch of decode.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.evaluation import mean_activated
    >>> mean_activated(co.Plan.from_phy2log([[0, 1, 0, 2]], gpus=2), co.Loads([[6, 2, 4]]))
    2.0
    """
    activated = evaluate(plan, loads, "exact").max_activated
    assert activated is not None
    return float(activated.mean())


def _ratio(above: FloatArray, below: FloatArray, empty: float) -> FloatArray:
    """Divide where there are tokens; ``empty`` elsewhere."""
    return np.divide(above, below, out=np.full_like(below, empty), where=below > 0)
