"""Problem: loads, cluster, budget and the rules that a plan has to keep."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from dataclasses import replace as dataclass_replace
from functools import cached_property
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from craftopt.coactivation import Coactivation
from craftopt.display import Displayed
from craftopt.errors import (
    CraftoptWarning,
    InfeasibleError,
    InputError,
    choice,
    divide_gpus,
    number,
    whole,
)
from craftopt.links import valid_link_cost
from craftopt.loads import FloatArray, IntArray, Loads, as_array, read_only
from craftopt.objective import OBJECTIVES, Objective, ObjectiveName
from craftopt.plan import Copies, Plan
from craftopt.traces import Trace

SlotRule = Literal["uniform", "even", "free"]
PlannedDispatch = Literal["even", "nearest-even"]
_MOST_GPUS = 2**14


class Price(Protocol):
    """What a node that a token visits costs, in mean GPU loads, or why it costs nothing."""

    @property
    def price(self) -> float:
        """Mean GPU loads; 0 where traffic does not count."""

    @property
    def reason(self) -> str:
        """Why it does not; empty where it does."""


class Priced(Protocol):
    """What knows the price of traffic: `craftopt.serving.Deployment`."""

    @property
    def gpus(self) -> int:
        """GPUs that it is known for."""

    @property
    def nodes(self) -> int:
        """Their nodes."""

    def traffic_price(self) -> Price:
        """Compute the price."""


@dataclass(frozen=True, eq=False)
class Problem(Displayed):
    """State what to plan: for which loads, on which GPUs, under which rules.

    Parameters
    ----------
    loads : Loads
        The windows to plan for.
    gpus, nodes : int
        GPUs (EP ranks) and the nodes that hold them, in equal and consecutive shares.
    replicas : int, optional
        Budget: extra copies over **all** layers together; 0 by default.
    replicas_per_layer : int, optional
        The engines' number: a budget of that many times the layers.
    slots : {"free", "even", "uniform"}
        Memory layout. ``uniform``: the same number of slots on every GPU in every layer,
        the only one that engines can load today. ``even``: floor or ceil per layer.
        ``free``: any count per layer. Under all of them a GPU's copies, summed over the
        layers, differ by at most 1 between GPUs.
    objective : {"time", "balancedness", "activated"}
        Minimise the sum over windows and layers of the largest GPU load, maximise the mean of
        mean/max, or, where windows are batches of decode, minimise the mean of the most
        activated copies on a GPU under exact routing.
    expert_groups : int or array_like [experts], optional
        Equal groups of experts that must stay within one node: how many groups of
        consecutive experts, or the group of every expert.
    max_copies : int, optional
        Most copies of one expert in a layer.
    previous, max_moves : Plan (or its copies) and int, optional
        At most that many copies hosted where the previous plan does not host them. Copies alone,
        [layers, experts, gpus], may lack experts, as after the loss of GPUs.
    dispatch : {"even", "nearest-even"}
        How engines will serve the copies: all evenly, or those on the token's GPU, else those in
        its node, else all, evenly among them (SGLang's dynamic dispatch).
    coactivation : Coactivation or Trace, optional
        Which experts tokens choose together, for ``traffic`` and ``max_slowdown``: pair counts,
        from which visits of nodes are estimated, or tokens, from which they follow exactly.
    traffic : float or Deployment, optional
        Plan for balance and traffic together: what a node that a token visits costs, in mean GPU
        loads. Objective ``time`` is then relative time + traffic * critical nodes per token (the
        tokens that the busiest node of a window receives; `craftopt.traffic`). A `Deployment`
        prices it by its facts. It counts for nothing on one node.
    max_slowdown : float, optional
        In place of ``traffic``: find the least traffic with a relative time at most this share
        above that of a plan for balance alone. The objective stays relative time.
    link_cost : array_like of float, shape [gpus, gpus] or [nodes, nodes], optional
        Cost of sending one choice of a token from the GPU (or node) that holds it, row, to one
        that serves it, column, for rails, racks and mixed links. The objective stays as it is:
        among plans that differ in the numbers of their GPUs alone, searching methods return the
        one that sends at the least cost (`relabel_for_links`).

    Raises
    ------
    InputError
        A value outside its limits; the message says value, limit and remedy.
    InfeasibleError
        A budget or rule that no plan can keep; the message names what could.

    Examples
    --------
    >>> import craftopt as co
    >>> loads = co.Loads([[600, 560, 120, 120, 20, 10, 10, 10]])
    >>> problem = co.Problem(loads, gpus=8, replicas_per_layer=8, slots="uniform")
    >>> problem.uniform_slots, problem.replicas
    (2, 8)
    >>> problem.replace(slots="free").slots
    'free'
    """

    loads: Loads
    gpus: int
    nodes: int
    replicas: int
    slots: SlotRule
    objective: ObjectiveName
    expert_groups: IntArray | None
    max_copies: int | None
    previous: Plan | Copies | None
    max_moves: int | None
    dispatch: PlannedDispatch
    coactivation: Coactivation | Trace | None
    traffic: float | Priced | None
    max_slowdown: float | None
    link_cost: FloatArray | None

    def __init__(
        self,
        loads: Loads,
        gpus: int,
        *,
        nodes: int = 1,
        replicas: int | None = None,
        replicas_per_layer: int | None = None,
        slots: SlotRule = "free",
        objective: ObjectiveName = "time",
        expert_groups: int | npt.ArrayLike | None = None,
        max_copies: int | None = None,
        previous: Plan | Copies | None = None,
        max_moves: int | None = None,
        dispatch: PlannedDispatch = "even",
        coactivation: Coactivation | Trace | None = None,
        traffic: float | Priced | None = None,
        max_slowdown: float | None = None,
        link_cost: npt.ArrayLike | None = None,
    ) -> None:
        if not isinstance(loads, Loads):
            raise InputError(f"loads is a {type(loads).__name__}; pass craftopt.Loads(tokens)")
        if replicas is not None and replicas_per_layer is not None:
            raise InputError("replicas and replicas_per_layer are both given; pass one of them")
        if replicas_per_layer is not None:
            replicas = whole("replicas_per_layer", replicas_per_layer, 0) * loads.layers
        values = {
            "loads": loads,
            "gpus": whole("gpus", gpus, 1),
            "nodes": whole("nodes", nodes, 1),
            "replicas": whole("replicas", 0 if replicas is None else replicas, 0),
            "slots": choice("slots", slots, get_args(SlotRule)),
            "objective": choice("objective", objective, OBJECTIVES),
            "expert_groups": _groups(expert_groups, loads.experts),
            "max_copies": None if max_copies is None else whole("max_copies", max_copies, 1),
            "previous": previous,
            "max_moves": None if max_moves is None else whole("max_moves", max_moves, 0),
            "dispatch": choice("dispatch", dispatch, get_args(PlannedDispatch)),
            "coactivation": coactivation,
            "traffic": _valid_traffic(traffic),
            "max_slowdown": None
            if max_slowdown is None
            else number("max_slowdown", max_slowdown, least=0),
            "link_cost": link_cost,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check_cluster()
        self._check_previous()
        self._check_traffic()
        self._check_links()
        if self.slots == "uniform":
            self._check_uniform()

    def replace(self, **changes: Any) -> Problem:
        """Return the same problem with some arguments changed, and check it.

        Examples
        --------
        >>> import craftopt as co
        >>> problem = co.Problem(co.Loads([[3, 2, 1]]), gpus=3)
        >>> problem.replace(replicas=2).replicas
        2
        """
        kept = {field.name: getattr(self, field.name) for field in fields(self)}
        if changes.get("replicas_per_layer") is not None:
            del kept["replicas"]
        return Problem(**{**kept, **changes})

    def variant(self, **changes: Any) -> Problem:
        """Replace without the warnings, which were said when this problem was made."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CraftoptWarning)
            return self.replace(**changes)

    @property
    def gpus_per_node(self) -> int:
        """GPUs in every node."""
        return self.gpus // self.nodes

    @property
    def copies_limit(self) -> int:
        """Most copies that an expert can have: one per GPU within its reach."""
        reach = self.gpus if self.expert_groups is None else self.gpus_per_node
        return reach if self.max_copies is None else min(reach, self.max_copies)

    @property
    def replica_step(self) -> int:
        """Steps in which a layer can take replicas: `nodes` under expert groups, else 1."""
        return 1 if self.expert_groups is None else self.nodes

    @property
    def layer_replicas_limit(self) -> int:
        """Most replicas that one layer can take under budget and rules."""
        if self.slots == "uniform":
            return self.uniform_slots * self.gpus - self.loads.experts
        most = min(self.replicas, self.loads.experts * (self.copies_limit - 1))
        return most - most % self.replica_step

    @cached_property
    def uniform_slots(self) -> int:
        """Slots on every GPU in every layer that the budget buys under ``uniform``."""
        experts = self.loads.experts
        bought = (experts + self.replicas // self.loads.layers) // self.gpus
        return min(bought, experts * self.copies_limit // self.gpus)

    @property
    def unused_replicas(self) -> int:
        """Budget that no plan can use under the slot rule, the groups and the copy limit."""
        if self.slots == "uniform":
            return self.replicas - self.layer_replicas_limit * self.loads.layers
        usable = min(self.replicas, self.layer_replicas_limit * self.loads.layers)
        return self.replicas - (usable - usable % self.replica_step)

    @property
    def rules(self) -> dict[str, Any]:
        """Cluster, budget and rules as plain values: ``Problem(loads, **problem.rules)``.

        Documents hold them. A previous plan and its moves are no part of them.
        """
        groups = self.expert_groups
        return {
            "gpus": self.gpus,
            "nodes": self.nodes,
            "replicas": self.replicas,
            "slots": self.slots,
            "objective": self.objective,
            "expert_groups": None if groups is None else groups.tolist(),
            "max_copies": self.max_copies,
        }

    @property
    def goal(self) -> Objective:
        """The objective by its properties: sense, costs, gap."""
        goal = OBJECTIVES[self.objective]
        return dataclass_replace(goal, label="time and traffic") if self.traffic_price else goal

    @cached_property
    def traffic_price(self) -> float:
        """What a node that a token visits costs in the objective, in mean GPU loads."""
        if self.nodes == 1 or self.traffic is None:
            return 0.0
        return self.traffic if isinstance(self.traffic, float) else self._price.price

    @property
    def balance_alone(self) -> bool:
        """Whether balance under even dispatch decides, so that nodes make no difference."""
        return self.traffic_price == 0 and self.dispatch == "even"

    @property
    def whole_nodes(self) -> int:
        """Nodes that GPUs must not leave when they are renamed for nothing to change."""
        return self.group_nodes if self.balance_alone else self.nodes

    @property
    def wants_traffic(self) -> bool:
        """Whether traffic is to be planned for, even where it counts for nothing."""
        return self.traffic is not None or self.max_slowdown is not None

    @property
    def traffic_text(self) -> str:
        """Say what traffic costs, and where the price comes from."""
        if self.max_slowdown is not None:
            return f"the least within {self.max_slowdown:.1%} more time than balance alone"
        if self.traffic is None:
            return "not planned for"
        if isinstance(self.traffic, float):
            return f"{self.traffic:.4g} mean GPU loads per node visited, as given"
        return str(self._price)

    @property
    def free_traffic(self) -> str:
        """Say why traffic counts for nothing; empty where it counts, or is not asked for."""
        if not self.wants_traffic:
            return ""
        if self.nodes == 1:
            return "traffic counts for nothing: all GPUs are in one node"
        if self.traffic is None or isinstance(self.traffic, float):
            return ""
        reason = self._price.reason
        return reason and f"traffic counts for nothing: {reason}"

    @cached_property
    def _price(self) -> Price:
        assert self.traffic is not None
        assert not isinstance(self.traffic, float)
        return self.traffic.traffic_price()

    def require_even_balance(self, what: str) -> None:
        """Refuse what only the search for plans knows: another dispatch than even, and traffic.

        Raises
        ------
        InputError
            The problem has one of them.
        """
        if self.traffic_price > 0 or self.max_slowdown is not None:
            name = "traffic" if self.max_slowdown is None else "max_slowdown"
            raise InputError(f"{what} knows no {name}; pass problem.replace({name}=None)")
        if self.dispatch != "even":
            raise InputError(f"{what} knows no dispatch={self.dispatch!r}; pass dispatch='even'")

    @property
    def groups(self) -> int:
        """Expert groups; 1 without groups."""
        return 1 if self.expert_groups is None else int(self.expert_groups.max()) + 1

    @property
    def group_of(self) -> IntArray:
        """Group of every expert, int64 [experts]; 0 without groups."""
        if self.expert_groups is None:
            return np.zeros(self.loads.experts, dtype=np.int64)
        return self.expert_groups

    @property
    def group_nodes(self) -> int:
        """Nodes that share the groups: an expert stays within one of them; 1 without groups."""
        return 1 if self.expert_groups is None else self.nodes

    @property
    def even_slots(self) -> bool:
        """Whether every GPU has floor or ceil of copies / GPUs in every layer, by the rules.

        With one layer, equal totals are even slots.
        """
        return self.slots != "free" or self.loads.layers == 1

    @property
    def replica_choices(self) -> IntArray:
        """Numbers of replicas that one layer can have, ascending, int64 [choices]."""
        if self.slots == "uniform":
            return self.uniform_choices
        return np.arange(0, self.layer_replicas_limit + 1, self.replica_step)

    @property
    def uniform_choices(self) -> IntArray:
        """Numbers of replicas, ascending, that could fill uniform slots in every layer at once."""
        slots = np.arange(-(-self.loads.experts // self.gpus), self.uniform_slots + 1)
        return slots * self.gpus - self.loads.experts

    @property
    def previous_copies(self) -> Copies:
        """Copies that the previous plan hosts, uint8 [layers, experts, gpus].

        Raises
        ------
        InputError
            There is no previous plan.
        """
        if self.previous is None:
            raise InputError("this problem has no previous plan; pass previous=")
        return self.previous.copies if isinstance(self.previous, Plan) else self.previous

    def plan(self, copies: npt.ArrayLike, method: str) -> Plan:
        """Make a plan for these layers, nodes and loads, of copies [layers, experts, gpus]."""
        return Plan(copies, self.loads.layer_ids, self.nodes, method, self.loads.digest)

    def to_dict(self) -> dict[str, Any]:
        """Return the problem as plain values, for JSON: rules, and the facts of loads and moves."""
        return {"loads": self.loads.to_dict(), **self.rules, "max_moves": self.max_moves}

    def summary(self) -> dict[str, str]:
        """Return the problem in words, for a table; without rules that do not bind."""
        loads = self.loads
        rows = {
            "loads": f"{loads.windows} windows x {loads.layers} layers x {loads.experts} experts",
            "GPUs": f"{self.gpus} in {self.nodes} node(s)",
            "replicas": f"{self.replicas}, {self.replicas / loads.layers:g} per layer",
            "slots": self.slots,
            "objective": self.objective,
            "expert groups": None if self.expert_groups is None else self.groups,
            "most copies": self.max_copies,
            "most moves": self.max_moves,
            "dispatch": None if self.dispatch == "even" else self.dispatch,
            "traffic": self.traffic_text if self.wants_traffic else None,
            "link cost": None if self.link_cost is None else "given",
        }
        return {name: str(value) for name, value in rows.items() if value is not None}

    def __repr__(self) -> str:
        groups = "" if self.expert_groups is None else f", groups={self.groups}"
        dispatch = "" if self.dispatch == "even" else f", dispatch={self.dispatch!r}"
        traffic = "" if self.traffic is None else f", traffic={self.traffic_price:.4g}"
        return (
            f"Problem({self.loads!r}, gpus={self.gpus}, nodes={self.nodes}, "
            f"replicas={self.replicas}, slots={self.slots!r}, "
            f"objective={self.objective!r}{groups}{dispatch}{traffic})"
        )

    def _check_cluster(self) -> None:
        if self.gpus > _MOST_GPUS:
            raise InputError(
                f"gpus={self.gpus} is far beyond any cluster, and there are {self.loads.experts} "
                f"experts in each of {self.loads.layers} layers; pass at most {_MOST_GPUS}"
            )
        divide_gpus(self.gpus, self.nodes)
        if self.expert_groups is not None and self.groups % self.nodes:
            raise InfeasibleError(
                f"expert_groups makes {self.groups} groups, which nodes={self.nodes} do not "
                f"divide; pass nodes that divide {self.groups}, or no groups"
            )

    def _check_previous(self) -> None:
        if self.max_moves is not None and self.previous is None:
            raise InputError(f"max_moves={self.max_moves} needs the previous plan: pass previous=")
        if self.previous is None:
            return
        copies = self.previous.copies if isinstance(self.previous, Plan) else self.previous
        if not isinstance(copies, np.ndarray) or copies.dtype != np.uint8:
            raise InputError(f"previous is a {type(self.previous).__name__}; pass a craftopt.Plan")
        wanted = (self.loads.layers, self.loads.experts, self.gpus)
        if self.previous_copies.shape != wanted:
            raise InputError(
                f"previous plan has shape {self.previous_copies.shape}; "
                f"this problem has [layers, experts, gpus] = {wanted}"
            )
        if isinstance(self.previous, Plan):
            self.previous.check_layers(self.loads, "loads")

    def _check_traffic(self) -> None:
        if self.dispatch != "even" and not self.goal.even_dispatch:
            raise InputError(
                f"objective={self.objective!r} routes every token by itself; "
                f"dispatch={self.dispatch!r} is for objective='time' or 'balancedness'"
            )
        given = self.coactivation
        if given is not None:
            if not isinstance(given, Coactivation | Trace):
                raise InputError(
                    f"coactivation is a {type(given).__name__}; pass a craftopt.Coactivation, such "
                    "as trace.coactivation(), or a craftopt.Trace"
                )
            self._check_layers_of(given)
        for name in ("traffic", "max_slowdown"):
            if getattr(self, name) is None:
                continue
            if given is None:
                raise InputError(
                    f"{name} needs to know which experts tokens choose together: pass "
                    "coactivation=trace.coactivation(), or a Trace"
                )
            if self.objective != "time":
                raise InputError(
                    f"{name} is priced in time; pass objective='time', not {self.objective!r}"
                )
        if self.traffic is not None and self.max_slowdown is not None:
            raise InputError("traffic and max_slowdown are both given; pass one of them")
        if self.traffic is not None and not isinstance(self.traffic, float):
            priced = (self.traffic.gpus, self.traffic.nodes)
            if priced != (self.gpus, self.nodes):
                raise InputError(
                    f"traffic is a deployment on gpus={priced[0]}, nodes={priced[1]}, the problem "
                    f"has gpus={self.gpus}, nodes={self.nodes}; pass the same of both"
                )

    def _check_links(self) -> None:
        if self.link_cost is None:
            return
        if self.max_moves is not None:
            raise InputError(
                f"link_cost renames GPUs, which moves copies beyond max_moves={self.max_moves}; "
                "pass one of them"
            )
        cost = valid_link_cost(self.link_cost, self.gpus, self.nodes)
        object.__setattr__(self, "link_cost", cost)

    def _check_layers_of(self, given: Coactivation | Trace) -> None:
        """Layers match by number, or by position where the traffic has no numbers."""
        loads = self.loads
        if (given.layers, given.experts) != (loads.layers, loads.experts):
            raise InputError(
                f"coactivation has {given.layers} layers of {given.experts} experts, loads "
                f"{loads.layers} of {loads.experts}; both must describe the same model"
            )
        mine, theirs = loads.layer_ids.tolist(), given.layer_ids.tolist()
        if theirs not in (mine, list(range(loads.layers))):
            raise InputError(
                f"coactivation is of the model's layers {theirs}, loads are of {mine}; "
                "select the same layers of both"
            )

    def _check_uniform(self) -> None:
        experts, layers = self.loads.experts, self.loads.layers
        needed = -(-experts // self.gpus)
        forced = (needed * self.gpus - experts) * layers
        if needed * self.gpus > experts * self.copies_limit:
            raise InfeasibleError(
                f"slots='uniform' needs {needed * self.gpus} copies of {experts} experts on "
                f"{self.gpus} GPUs, and at most {self.copies_limit} of each are allowed; "
                "raise max_copies or pass slots='even'"
            )
        if self.uniform_slots < needed:
            raise InfeasibleError(
                f"replicas={self.replicas} cannot fill slots='uniform': {experts} experts on "
                f"{self.gpus} GPUs need at least {forced} replicas "
                f"({forced // layers} per layer); pass replicas={forced} or slots='even'"
            )
        if self.replicas and self.layer_replicas_limit == 0:
            least = (needed * self.gpus - experts or self.gpus) * layers
            if experts * (self.copies_limit - 1) * layers < least:
                remedy = f"at most {self.copies_limit} copies of an expert leave no room for one"
            else:
                remedy = f"that starts at replicas={least}; slots='even' and 'free' use any budget"
            warnings.warn(
                f"replicas={self.replicas} buys no whole slot on every GPU in every layer: "
                f"{remedy}",
                CraftoptWarning,
                stacklevel=3,
            )


def _valid_traffic(traffic: float | Priced | None) -> float | Priced | None:
    if traffic is None or hasattr(traffic, "traffic_price"):
        return traffic
    return number("traffic", traffic, least=0)


def _groups(groups: int | npt.ArrayLike | None, experts: int) -> IntArray | None:
    if groups is None:
        return None
    if isinstance(groups, int | np.integer) and not isinstance(groups, bool):
        count = whole("expert_groups", groups, 1)
        if experts % count:
            raise InfeasibleError(
                f"expert_groups={count} does not divide experts={experts} into equal groups; "
                f"pass a divisor of {experts}"
            )
        return read_only(np.repeat(np.arange(count, dtype=np.int64), experts // count))
    array = as_array("expert_groups", groups)
    if array.dtype.kind not in "iu" or array.shape != (experts,):
        raise InputError(
            f"expert_groups has shape {array.shape} and type {array.dtype}; "
            f"pass an int or one whole number per expert, shape ({experts},)"
        )
    _, ids, sizes = np.unique(array, return_inverse=True, return_counts=True)
    if sizes.min() != sizes.max():
        raise InfeasibleError(
            f"expert_groups has groups of {sizes.min()} to {sizes.max()} experts; "
            "nodes can only be filled equally by groups of equal size"
        )
    return read_only(ids.astype(np.int64))
