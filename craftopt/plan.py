"""Plan: which GPU hosts which expert, layer by layer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from craftopt.coactivation import Coactivation
from craftopt.display import Displayed, sparkline
from craftopt.documents import check_envelope, read_json, write_atomically, write_json
from craftopt.errors import FormatError, InputError, divide_gpus, whole
from craftopt.loads import (
    BoolArray,
    IntArray,
    Loads,
    as_array,
    layer_text,
    name_layers,
    read_only,
    valid_layer_ids,
)
from craftopt.traces import Trace

# How many copies a GPU hosts, by expert and GPU, mostly with layers in front.
Copies = npt.NDArray[np.uint8]

PLAN_FORMAT = "craftopt-plan"
PLAN_VERSION = 1


@dataclass(frozen=True, eq=False)
class Plan(Displayed):
    """Hold the copies that every GPU hosts, validated and read-only.

    Parameters
    ----------
    copies : array_like, shape [layers, experts, gpus]
        How many copies of an expert a GPU hosts in a layer: 0 or 1, more only in
        plans of others. GPUs are numbered node by node.
    layer_ids : sequence of int, shape [layers], optional
        The model's own numbers of the layers; 0, 1, ... by default.
    nodes : int
        Nodes of the cluster; they hold equal, consecutive shares of the GPUs.
    method : str
        What made the plan; for the reader only.
    loads_digest : str
        `Loads.digest` of the loads that the plan was made for, or ``""``.
    dead : sequence of int
        GPUs that are dead and host nothing. They keep their numbers; every figure and file is
        that of the `survivors`.

    Raises
    ------
    InputError
        Copies that are no whole numbers in 0..255, a wrong rank, an expert on no
        GPU, GPUs that the nodes do not divide, dead GPUs that host copies.

    Examples
    --------
    >>> import craftopt as co
    >>> plan = co.Plan.from_phy2log([[0, 1, 0, 2]], gpus=2, experts=3)
    >>> plan
    Plan(layers=1, experts=3, gpus=2, replicas=1)
    >>> plan.replica_counts
    array([[2, 1, 1]])
    """

    copies: Copies
    layer_ids: IntArray
    nodes: int
    method: str
    loads_digest: str
    dead: tuple[int, ...]

    def __init__(
        self,
        copies: npt.ArrayLike,
        layer_ids: npt.ArrayLike | None = None,
        nodes: int = 1,
        method: str = "",
        loads_digest: str = "",
        dead: Sequence[int] = (),
    ) -> None:
        values = as_array("copies", copies)
        if values.ndim != 3 or 0 in values.shape:
            raise InputError(
                f"copies has shape {values.shape}; pass [layers, experts, gpus], none of them 0"
            )
        if values.dtype.kind not in "iub" or values.min() < 0 or values.max() > 255:
            raise InputError(f"copies (type {values.dtype}) must be whole numbers in 0..255")
        values = np.array(values, dtype=np.uint8, order="C")
        homeless = ~values.any(axis=2)
        if homeless.any():
            layer, expert = np.argwhere(homeless)[0]
            raise InputError(
                f"expert {expert} of layer {layer} is on no GPU; every expert needs at least "
                f"one copy ({homeless.sum()} expert(s) without)"
            )
        divide_gpus(values.shape[2], whole("nodes", nodes, 1))
        object.__setattr__(self, "copies", read_only(values))
        object.__setattr__(self, "layer_ids", valid_layer_ids(layer_ids, values.shape[0]))
        object.__setattr__(self, "nodes", int(nodes))
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "loads_digest", loads_digest)
        object.__setattr__(self, "dead", _valid_dead(dead, values))

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self.copies.shape[0])

    @property
    def experts(self) -> int:
        """Number of logical experts per layer."""
        return int(self.copies.shape[1])

    @property
    def gpus(self) -> int:
        """Number of GPUs (EP ranks)."""
        return int(self.copies.shape[2])

    @cached_property
    def replica_counts(self) -> IntArray:
        """Copies of every expert, int64 [layers, experts], at least 1."""
        return read_only(self.copies.sum(axis=2, dtype=np.int64))

    @cached_property
    def slots(self) -> IntArray:
        """Copies that every GPU hosts in a layer, int64 [layers, gpus]."""
        return read_only(self.copies.sum(axis=1, dtype=np.int64))

    @property
    def layer_replicas(self) -> IntArray:
        """Extra copies ("replicas") of every layer, int64 [layers]."""
        extra: IntArray = self.replica_counts.sum(axis=1) - self.experts
        return extra

    @property
    def replicas(self) -> int:
        """Extra copies over all layers."""
        return int(self.layer_replicas.sum())

    @property
    def duplicates(self) -> int:
        """Copies that share a GPU with a copy of the same expert: wasted slots."""
        return int(np.maximum(self.copies.astype(np.int64) - 1, 0).sum())

    def survivors(self) -> Plan:
        """Return the plan of the GPUs that are alive, numbered anew in their order.

        Nodes that have lost all of their GPUs are left out. Where the others have lost different
        numbers of them, nodes are no longer told apart.

        Examples
        --------
        >>> import craftopt as co
        >>> plan = co.Plan([[[1, 0, 0], [0, 0, 1]]], dead=[1])
        >>> plan.survivors().copies.tolist()
        [[[1, 0], [0, 1]]]
        """
        if not self.dead:
            return self
        alive = np.ones(self.gpus, dtype=np.bool_)
        alive[list(self.dead)] = False
        return Plan(
            self.copies[:, :, alive],
            self.layer_ids,
            nodes_left(alive, self.nodes),
            self.method,
            self.loads_digest,
        )

    def phy2log(self) -> IntArray:
        """List the experts slot by slot, GPU after GPU.

        Returns
        -------
        int64 [layers, gpus x max slots]
            Expert of every slot, in rising order within a GPU; -1 where a GPU has
            fewer slots than the fullest of any layer.
        """
        width = int(self.slots.max())
        table = np.full((self.layers, self.gpus, width), -1, dtype=np.int64)
        layer, gpu, expert = np.nonzero(self.copies.transpose(0, 2, 1))
        repeats = self.copies[layer, expert, gpu]
        layer, gpu, expert = (np.repeat(index, repeats) for index in (layer, gpu, expert))
        first = np.concatenate([[0], np.cumsum(self.slots.ravel())[:-1]])
        rank = np.arange(expert.size) - first[layer * self.gpus + gpu]
        table[layer, gpu, rank] = expert
        return table.reshape(self.layers, self.gpus * width)

    @classmethod
    def from_phy2log(
        cls,
        phy2log: npt.ArrayLike,
        gpus: int,
        experts: int | None = None,
        layer_ids: npt.ArrayLike | None = None,
        nodes: int = 1,
        method: str = "",
    ) -> Plan:
        """Make a plan from the engines' table of experts per physical slot.

        Parameters
        ----------
        phy2log : array_like of int, shape [layers, slots]
            Expert of every slot, GPU after GPU, equally many slots each; -1 = empty.
        gpus : int
            GPUs that share the slots.
        experts : int, optional
            Logical experts; the highest id in the table plus 1 by default.

        Raises
        ------
        InputError
            Slots that the GPUs do not divide, ids outside the experts.
        """
        table = as_array("phy2log", phy2log)
        if table.ndim != 2 or 0 in table.shape or table.dtype.kind not in "iu":
            raise InputError(
                f"phy2log has shape {table.shape} and type {table.dtype}; "
                "pass whole numbers [layers, slots]"
            )
        if gpus < 1 or table.shape[1] % gpus:
            raise InputError(f"{table.shape[1]} slots do not divide into gpus={gpus}")
        count = int(table.max()) + 1 if experts is None else experts
        if table.min() < -1 or table.max() >= count:
            raise InputError(
                f"phy2log holds ids {table.min()}..{table.max()}; "
                f"with experts={count} they must be -1 (empty) or 0..{count - 1}"
            )
        if count > table.shape[1]:
            raise InputError(
                f"{table.shape[1]} slots cannot host experts={count}: every expert needs a copy"
            )
        layers = table.shape[0]
        gpu_of_slot = np.arange(table.shape[1]) // (table.shape[1] // gpus)
        copies = np.zeros((layers, count, gpus), dtype=np.int64)
        layer, slot = np.nonzero(table >= 0)
        np.add.at(copies, (layer, table[layer, slot], gpu_of_slot[slot]), 1)
        return cls(copies, layer_ids, nodes, method)

    def with_layers(self, positions: Sequence[int], layer_ids: npt.ArrayLike) -> Plan:
        """Return the layers at these 0-based positions, under these numbers."""
        copies = self.copies[list(positions)]
        return Plan(copies, layer_ids, self.nodes, self.method, dead=self.dead)

    def check_layers(self, held: Loads | Trace | Coactivation | Plan, name: str) -> None:
        """Check that what is named so describes the plan's layers, by number, and its experts.

        Raises
        ------
        InputError
            Other layers or experts.
        """
        if self.experts != held.experts:
            raise InputError(
                f"the plan has {self.layers} layers of {self.experts} experts, the {name} "
                f"{held.layers} of {held.experts}; both must describe the same model"
            )
        if not np.array_equal(self.layer_ids, held.layer_ids):
            low, high = (int(max(of.layer_ids[end] for of in (self, held))) for end in (0, -1))
            if np.isin(self.layer_ids, held.layer_ids).all():
                low, high = (int(self.layer_ids[end]) for end in (0, -1))
            elif not self.layers == held.layers == high - low + 1:
                low, high = 3, 60  # else the one that counts from 0 has no numbers of its own
            raise InputError(
                f"the plan has the layers {layer_text(self.layer_ids)} ({self.layers}), the {name} "
                f"{layer_text(held.layer_ids)} ({held.layers}), and layers are matched by number; "
                "where a file does not number its layers, or has more, pass the model's own "
                f"numbers, such as --layers {low}-{high} "
                f"(layers=range({low}, {high + 1}) where it is read)"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return what `to_json` writes, as plain lists and numbers."""
        width = self.phy2log().shape[1] // self.gpus
        table = self.phy2log().reshape(self.layers, self.gpus, width).tolist()
        return {
            "format": PLAN_FORMAT,
            "version": PLAN_VERSION,
            "method": self.method,
            "experts": self.experts,
            "gpus": self.gpus,
            "nodes": self.nodes,
            **({"dead_gpus": list(self.dead)} if self.dead else {}),
            "replicas": self.replicas,
            "loads_digest": self.loads_digest,
            "layers": [
                {
                    "layer_id": int(layer_id),
                    "experts_of_gpu": [[expert for expert in gpu if expert >= 0] for gpu in row],
                }
                for layer_id, row in zip(self.layer_ids, table, strict=True)
            ],
        }

    def summary(self) -> dict[str, str]:
        """Return the facts in words, for a table."""
        least, most = self.slots.min(), self.slots.max()
        totals = self.slots.sum(axis=0)
        return {
            "layers": name_layers(self.layer_ids),
            "experts": str(self.experts),
            "GPUs": f"{self.gpus} in {self.nodes} node(s)",
            **({"dead GPUs": ", ".join(map(str, self.dead))} if self.dead else {}),
            "replicas": str(self.replicas),
            "per layer": sparkline(self.layer_replicas),
            "slots per GPU and layer": str(least) if least == most else f"{least}-{most}",
            "slots per GPU": f"{totals.min()}-{totals.max()} over all layers",
            "duplicates": str(self.duplicates),
        }

    def to_json(self) -> str:
        """Write the plan as versioned JSON, one line per layer."""
        return write_json(self.to_dict(), {"layers": 1})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what `to_json` wrote.

        Raises
        ------
        FormatError
            Text that is no plan, or a plan of a version that this one cannot read.
        """
        return cls.from_dict(read_json(text))

    @classmethod
    def from_dict(cls, document: Any) -> Plan:
        """Read what `to_dict` returned.

        Raises
        ------
        FormatError
            As `from_json`.
        """
        check_envelope(document, "plan", PLAN_FORMAT, PLAN_VERSION)
        try:
            return cls._from_document(document)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise FormatError(f"the plan is damaged: {type(error).__name__}: {error}") from None

    @classmethod
    def _from_document(cls, document: dict[str, Any]) -> Plan:
        rows = document["layers"]
        experts, gpus = document["experts"], document["gpus"]
        hosts = [row["experts_of_gpu"] for row in rows]
        # What is claimed must be listed, before anything of that size is made.
        if {len(host) for host in hosts} != {gpus}:
            raise ValueError(f"a layer does not list {gpus} GPUs")
        for layer, host in enumerate(hosts):
            if sum(len(gpu) for gpu in host) < experts:
                raise ValueError(f"layer {layer} has fewer copies than {experts} experts")
            if any(type(expert) is not int for gpu in host for expert in gpu):
                raise ValueError(f"layer {layer} lists an expert that is no whole number")
        copies = np.zeros((len(hosts), experts, gpus), dtype=np.int64)
        for layer, host in enumerate(hosts):
            for gpu, hosted in enumerate(host):
                if hosted and not 0 <= min(hosted) <= max(hosted) < experts:
                    raise ValueError(
                        f"layer {layer}, GPU {gpu}: an expert outside 0..{experts - 1}"
                    )
                for expert in hosted:
                    copies[layer, expert, gpu] += 1
        plan = cls(
            copies,
            [row["layer_id"] for row in rows],
            document["nodes"],
            str(document["method"]),
            str(document["loads_digest"]),
            document.get("dead_gpus", ()),
        )
        if plan.replicas != document["replicas"]:
            raise ValueError(f"it says {document['replicas']} replicas and lists {plan.replicas}")
        return plan

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a file: whole or not at all.

        Examples
        --------
        >>> import craftopt as co, tempfile, os
        >>> plan = co.Plan.from_phy2log([[0, 1, 0, 2]], gpus=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = os.path.join(folder, "plan.json")
        ...     plan.save(file)
        ...     co.read_plan(file) == plan
        True
        """
        write_atomically(path, self.to_json())

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles go through the constructor, so that they are read-only too.
        names = ("copies", "layer_ids", "nodes", "method", "loads_digest", "dead")
        return Plan, tuple(getattr(self, name) for name in names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return (
            np.array_equal(self.copies, other.copies)
            and np.array_equal(self.layer_ids, other.layer_ids)
            and (self.nodes, self.method, self.loads_digest, self.dead)
            == (other.nodes, other.method, other.loads_digest, other.dead)
        )

    def __hash__(self) -> int:
        return hash((self.copies.tobytes(), self.nodes))

    def __repr__(self) -> str:
        return (
            f"Plan(layers={self.layers}, experts={self.experts}, gpus={self.gpus}, "
            f"replicas={self.replicas})"
        )


def nodes_left(alive: BoolArray, nodes: int) -> int:
    """Count the nodes with GPUs alive; 1 where these have different numbers of them."""
    left = alive.reshape(nodes, -1).sum(axis=1)
    left = left[left > 0]
    return left.size if (left == left[0]).all() else 1


def _valid_dead(dead: Sequence[int], copies: Copies) -> tuple[int, ...]:
    gpus = copies.shape[2]
    numbers = sorted({whole("dead", gpu, 0) for gpu in dead})
    if numbers and numbers[-1] >= gpus:
        raise InputError(f"dead names GPU {numbers[-1]}; the plan's GPUs are 0..{gpus - 1}")
    hosting = [gpu for gpu in numbers if copies[:, :, gpu].any()]
    if hosting:
        raise InputError(f"GPU {hosting[0]} is dead and hosts copies; dead GPUs host none")
    return tuple(numbers)
