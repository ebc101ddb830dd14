"""Across layers: GPUs are interchangeable within a layer, so relabel them for equal totals."""

from __future__ import annotations

import numpy as np

from craftopt.loads import FloatArray
from craftopt.plan import Copies
from craftopt.search.descent import improve_layer


def equalise(copies: Copies, weight: FloatArray, nodes: int) -> tuple[Copies, bool]:
    """Make the GPUs' copies, summed over the layers, differ by at most 1.

    Relabels GPUs within nodes, layer after layer: the largest count goes to the GPU with the
    smallest total, layers of the widest spread first. Layers whose counts differ by at most 1
    keep totals within 1 exactly. What is left over is repaired by moving copies from the
    fullest GPU to the emptiest, where it costs least.

    Parameters
    ----------
    copies : uint8 [layers, experts, gpus]
        Every node hosts the same number of copies of a layer.
    weight : float64 [layers, experts]
    nodes : int

    Returns
    -------
    copies : uint8 [layers, experts, gpus]
    repaired : bool
        Whether relabelling did not suffice, so that loads have changed.
    """
    gpus = copies.shape[2]
    slots = copies.sum(axis=1, dtype=np.int64)
    width = gpus // nodes
    totals = np.zeros(gpus, dtype=np.int64)
    result = np.empty_like(copies)
    spread = slots.max(axis=1) - slots.min(axis=1)
    for layer in np.argsort(-spread, kind="stable"):
        for node in range(nodes):
            of_node = slice(node * width, (node + 1) * width)
            to = np.argsort(totals[of_node], kind="stable")
            source = np.argsort(-slots[layer, of_node], kind="stable")
            result[layer][:, of_node.start + to] = copies[layer][:, of_node.start + source]
            totals[of_node][to] += slots[layer, of_node][source]
    repaired = False
    for node in range(nodes):
        of_node = slice(node * width, (node + 1) * width)
        while np.ptp(totals[of_node]) > 1:
            source = of_node.start + int(totals[of_node].argmax())
            target = of_node.start + int(totals[of_node].argmin())
            _move_cheapest(result, weight, source, target, of_node)
            totals[source] -= 1
            totals[target] += 1
            repaired = True
    return result, repaired


def _move_cheapest(
    copies: Copies, weight: FloatArray, source: int, target: int, of_node: slice
) -> None:
    """Move one copy between two GPUs, in the layer and of the expert where it costs least."""
    share = weight / copies.sum(axis=2, dtype=np.int64)
    load = np.einsum("le,leg->lg", share, copies)
    movable = (copies[:, :, source] > 0) & (copies[:, :, target] == 0)
    after = np.maximum(load[:, target, np.newaxis] + share, load.max(axis=1)[:, np.newaxis])
    cost = np.where(movable, after - load.max(axis=1)[:, np.newaxis], np.inf)
    layer, expert = np.unravel_index(int(cost.argmin()), cost.shape)
    copies[layer, expert, source] -= 1
    copies[layer, expert, target] += 1
    local = np.ascontiguousarray(copies[layer][:, of_node])
    mean = float((share[layer] * local.sum(axis=1)).sum()) / local.shape[1]
    copies[layer][:, of_node] = improve_layer(share[layer], local, mean)
