"""Problem: loads, cluster, budget and the rules that a plan has to keep."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from craftopt.errors import CraftoptWarning, InfeasibleError, InputError
from craftopt.loads import IntArray, Loads, as_array, read_only

SlotRule = Literal["uniform", "even", "free"]
Objective = Literal["time", "balancedness", "activated"]


class HostedCopies(Protocol):
    """What a problem needs of a previous plan."""

    @property
    def copies(self) -> npt.NDArray[np.uint8]:
        """Copies per layer, expert and GPU."""
        ...


@dataclass(frozen=True, eq=False)
class Problem:
    """State what to plan: for which loads, on which GPUs, under which rules.

    Parameters
    ----------
    loads : Loads
        The windows to plan for.
    gpus, nodes : int
        GPUs (EP ranks) and the nodes that they stand in, in equal and consecutive shares.
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
    previous, max_moves : Plan and int, optional
        At most that many copies hosted where the previous plan does not host them.

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
    objective: Objective
    expert_groups: IntArray | None
    max_copies: int | None
    previous: HostedCopies | None
    max_moves: int | None

    def __init__(
        self,
        loads: Loads,
        gpus: int,
        *,
        nodes: int = 1,
        replicas: int | None = None,
        replicas_per_layer: int | None = None,
        slots: SlotRule = "free",
        objective: Objective = "time",
        expert_groups: int | npt.ArrayLike | None = None,
        max_copies: int | None = None,
        previous: HostedCopies | None = None,
        max_moves: int | None = None,
    ) -> None:
        if not isinstance(loads, Loads):
            raise InputError(f"loads is a {type(loads).__name__}; pass craftopt.Loads(tokens)")
        if replicas is not None and replicas_per_layer is not None:
            raise InputError("replicas and replicas_per_layer are both given; pass one of them")
        if replicas_per_layer is not None:
            replicas = _whole("replicas_per_layer", replicas_per_layer, 0) * loads.layers
        values = {
            "loads": loads,
            "gpus": _whole("gpus", gpus, 1),
            "nodes": _whole("nodes", nodes, 1),
            "replicas": _whole("replicas", 0 if replicas is None else replicas, 0),
            "slots": _choice("slots", slots, get_args(SlotRule)),
            "objective": _choice("objective", objective, get_args(Objective)),
            "expert_groups": _groups(expert_groups, loads.experts),
            "max_copies": None if max_copies is None else _whole("max_copies", max_copies, 1),
            "previous": previous,
            "max_moves": None if max_moves is None else _whole("max_moves", max_moves, 0),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check_cluster()
        self._check_previous()
        if self.slots == "uniform":
            self._check_uniform()

    def replace(self, **changes: Any) -> Problem:
        """Return the same problem with some arguments changed, checked anew.

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

    def require_even_dispatch(self, what: str) -> None:
        """Refuse the objective ``activated`` where only those of even dispatch are known.

        Raises
        ------
        InputError
            The objective is ``activated``.
        """
        if self.objective == "activated":
            raise InputError(
                f"{what} knows no objective='activated'; pass objective='time' or 'balancedness'"
            )

    def __repr__(self) -> str:
        groups = "" if self.expert_groups is None else f", groups={self.expert_groups.max() + 1}"
        return (
            f"Problem({self.loads!r}, gpus={self.gpus}, nodes={self.nodes}, "
            f"replicas={self.replicas}, slots={self.slots!r}, "
            f"objective={self.objective!r}{groups})"
        )

    def _check_cluster(self) -> None:
        if self.gpus % self.nodes:
            below = self.gpus - self.gpus % self.nodes
            fitting = f"{below} or {below + self.nodes}" if below else f"{self.nodes}"
            raise InputError(
                f"gpus={self.gpus} does not divide into nodes={self.nodes}; "
                f"pass nodes=1 or gpus={fitting}"
            )
        if self.expert_groups is None:
            return
        groups = int(self.expert_groups.max()) + 1
        if groups % self.nodes:
            raise InfeasibleError(
                f"expert_groups makes {groups} groups, which nodes={self.nodes} do not divide; "
                f"pass nodes that divide {groups}, or no groups"
            )

    def _check_previous(self) -> None:
        if self.max_moves is not None and self.previous is None:
            raise InputError(f"max_moves={self.max_moves} needs the previous plan: pass previous=")
        if self.previous is None:
            return
        if not hasattr(self.previous, "copies"):
            raise InputError(f"previous is a {type(self.previous).__name__}; pass a craftopt.Plan")
        wanted = (self.loads.layers, self.loads.experts, self.gpus)
        if self.previous.copies.shape != wanted:
            raise InputError(
                f"previous plan has shape {self.previous.copies.shape}; "
                f"this problem has [layers, experts, gpus] = {wanted}"
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


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InputError(f"{name}={value!r} is not a whole number; pass an int of at least {least}")
    if value < least:
        raise InputError(f"{name}={value} is below {least}; pass at least {least}")
    return int(value)


def _choice(name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise InputError(f"{name}={value!r} is unknown; pass one of {', '.join(known)}")
    return value


def _groups(groups: int | npt.ArrayLike | None, experts: int) -> IntArray | None:
    if groups is None:
        return None
    if isinstance(groups, int | np.integer) and not isinstance(groups, bool):
        count = _whole("expert_groups", groups, 1)
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
