"""Which GPUs host an expert, as lists that the kernels walk; made once per plan."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from craftopt.loads import FloatArray, IntArray
from craftopt.plan import Plan

Int32Array = npt.NDArray[np.int32]


class Hosts(NamedTuple):
    """List the hosts of every expert: the GPUs with a copy, in rising order.

    Experts are numbered over all layers, ``cell = layer * experts + expert``; so are the places of
    the lists, and a result that holds one value per host needs no dense array.
    """

    first: Int32Array  # [cells + 1]: hosts of a cell are places first[cell]..first[cell + 1]
    gpu: Int32Array  # [hosts]
    copies: Int32Array  # [hosts]: copies on that GPU, 1 but for plans with duplicates
    expert: Int32Array  # [hosts]: expert within its layer
    order: Int32Array  # [layers, experts]: experts with the fewest hosts first, then by id
    of_gpu_first: Int32Array  # [layers * gpus + 1]: places of a GPU in of_gpu
    of_gpu: Int32Array  # [hosts]: places, GPU after GPU


class LayerHosts(NamedTuple):
    """List the hosts of one layer's experts, as `Hosts` has them, for the kernels."""

    first: Int32Array  # [experts + 1]
    gpu: Int32Array
    expert: Int32Array
    of_gpu_first: Int32Array  # [gpus + 1]
    of_gpu: Int32Array


class Served(NamedTuple):
    """Hold what kernels fill: the arrays of a `Routing`."""

    share: FloatArray  # [hosts]
    activated: IntArray  # [layers, gpus]
    loads: FloatArray  # [layers, gpus]


def hosts_of(plan: Plan) -> Hosts:
    """Return the host lists of a plan, made on the first call and kept with it.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.routing.hosts import hosts_of
    >>> hosts = hosts_of(co.Plan.from_phy2log([[0, 1, 0, 2]], gpus=2))
    >>> hosts.first.tolist(), hosts.gpu.tolist()
    ([0, 2, 3, 4], [0, 1, 0, 1])
    """
    # As functools.cached_property does it; a weak dictionary would hash all copies at every call.
    held: dict[str, Hosts] = plan.__dict__
    if "_hosts" not in held:
        held["_hosts"] = _list_hosts(plan)
    return held["_hosts"]


def _list_hosts(plan: Plan) -> Hosts:
    layer, expert, gpu = np.nonzero(plan.copies)
    numbers = np.bincount(layer * plan.experts + expert, minlength=plan.layers * plan.experts)
    order = np.argsort(numbers.reshape(plan.layers, plan.experts), axis=1, kind="stable")
    of_gpu = layer * plan.gpus + gpu
    arrays = (
        np.concatenate([[0], np.cumsum(numbers)]),
        gpu,
        plan.copies[layer, expert, gpu],
        expert,
        order,
        np.concatenate([[0], np.cumsum(np.bincount(of_gpu, minlength=plan.layers * plan.gpus))]),
        np.argsort(of_gpu, kind="stable"),
    )
    return Hosts(*(np.ascontiguousarray(array, dtype=np.int32) for array in arrays))


def layer_hosts(plan: Plan, layer: int) -> tuple[Int32Array, Int32Array, Int32Array]:
    """Return `first`, `gpu` and `copies` of one layer alone, the layer by its position."""
    hosts = hosts_of(plan)
    first = hosts.first[layer * plan.experts : (layer + 1) * plan.experts + 1]
    here = slice(first[0], first[-1])
    return first - first[0], hosts.gpu[here], hosts.copies[here]
