"""What nodes serve under a placement, and a surrogate for the tokens that visit them.

Visits of a node are estimated as linear in its assignments and in the pairs of them that one token
chose, the slopes being those of random placement and of a placement by pairs.
"""

from __future__ import annotations

from math import comb
from typing import NamedTuple

import numpy as np

from craftopt.jit import inner
from craftopt.loads import FloatArray, IntArray
from craftopt.search.kernels import NONE, root
from craftopt.search.surrogate import Rows, WindowLoads, set_load, sum_powers

# Companions of a token's expert in its node, in units of those of random placement, at which the
# surrogate has the slope of the true number of nodes: measured on plans for two models.
_GATHERED = 1.45


class Visits(NamedTuple):
    """What visits of nodes cost, for the surrogate; see `visits_surrogate`.

    Parameters
    ----------
    price : float
        Of a node that a token visits, in mean GPU loads; 0: traffic does not count.
    nodes : int
        Nodes between which tokens are sent; divides the GPUs.
    pairs : float64 [experts, experts]
        Share of the tokens that chose both; 0 on the diagonal.
    chosen : float64 [experts]
        Share of the tokens that chose the expert.
    per_assignment, per_pair : float
        Visits of a node for every assignment there, less those for every pair of them.
    pooled : bool
        Whether all windows count as one.
    """

    price: float
    nodes: int
    pairs: FloatArray
    chosen: FloatArray
    per_assignment: float
    per_pair: float
    pooled: bool


# Traffic does not count; set the nodes.
NO_VISITS = Visits(0.0, 1, np.zeros((1, 1)), np.zeros(1), 0.0, 0.0, False)


def visits_surrogate(
    price: float, nodes: int, pairs: FloatArray, chosen: FloatArray, *, pooled: bool
) -> Visits:
    """Make the surrogate for visits of nodes.

    An assignment with m others of its token in the node costs 1 / (1 + m) visits. The slope in
    pairs is that at m = 1.45 times the others' number under random placement, and the line is
    exact for random placement.

    Parameters
    ----------
    price, nodes, pairs, chosen, pooled
        As in `Visits`.
    """
    experts = chosen.size
    choices = max(float(chosen.sum()), 1e-9)
    k = max(round(choices), 1)
    hosted = max(experts // nodes, 1)
    visited = nodes * (1.0 - comb(experts - hosted, k) / comb(experts, k))
    together = choices * (choices - 1.0) / 2.0 * (hosted - 1) / max(experts - 1, 1)
    per_pair = 2.0 / (1.0 + _GATHERED * (choices - 1.0) / nodes) ** 2
    per_assignment = (visited + per_pair * together) / choices
    return Visits(price, nodes, pairs, chosen, per_assignment, per_pair, pooled)


class Nodes(NamedTuple):
    """What nodes serve under a placement, and the surrogate for their visits."""

    partners: FloatArray  # [nodes, experts]: share of tokens with the expert and one of the node's
    assigned: FloatArray  # [nodes]: assignments per token
    expected: FloatArray  # [nodes]: visits per token by the line
    load: FloatArray  # [nodes, windows]: assignments per token
    visited: WindowLoads  # visits per token and their powers, in every window or pooled


class Change(NamedTuple):
    """Experts whose copies change in a step, and what follows for GPUs and nodes."""

    expert: IntArray  # [2]
    leaves: IntArray  # [2]: the GPU that loses a copy, or NONE
    enters: IntArray  # [2]: the GPU that gets one, or NONE
    shares: FloatArray  # [2, gpus]: what GPUs serve of the expert then
    shift: FloatArray  # [2, nodes]: how much more nodes serve of it
    assigned: FloatArray  # [nodes]
    expected: FloatArray  # [nodes]
    load: FloatArray  # [nodes, windows], by row
    rows: Rows  # visits of the nodes that change


@inner()
def new_nodes(experts: int, nodes: int, windows: int, pooled: bool) -> Nodes:
    """Make room; `sum_visits` fills it."""
    size = 1 if pooled else windows
    return Nodes(
        np.empty((nodes, experts)),
        np.empty(nodes),
        np.empty(nodes),
        np.empty((nodes, windows)),
        WindowLoads(
            np.empty((1, size)), np.empty((nodes, size)), np.empty((nodes, size)),
            np.empty(size), np.empty(size), np.empty(size), np.empty(size),
        ),
    )  # fmt: skip


@inner()
def sum_visits(visits: Visits, shares: FloatArray, loads: WindowLoads, held: Nodes) -> None:
    """Compute what nodes serve, and the visits that it costs, from what copies serve."""
    experts, gpus = shares.shape
    nodes = held.assigned.size
    width = gpus // nodes
    per_load = visits.chosen.sum() / gpus
    held.partners[:], held.load[:] = 0.0, 0.0
    held.assigned[:], held.expected[:] = 0.0, 0.0
    for gpu in range(gpus):
        node = gpu // width
        for w in range(held.load.shape[1]):
            held.load[node, w] += loads.load[gpu, w] * per_load
        for expert in range(experts):
            share = shares[expert, gpu]
            if share > 0.0:
                held.assigned[node] += visits.chosen[expert] * share
                for other in range(experts):
                    held.partners[node, other] += visits.pairs[expert, other] * share
    for node in range(nodes):
        inside = 0.0  # every pair twice, from each of its experts
        for gpu in range(node * width, (node + 1) * width):
            for expert in range(experts):
                inside += shares[expert, gpu] * held.partners[node, expert]
        held.expected[node] = (
            visits.per_assignment * held.assigned[node] - visits.per_pair * inside / 2.0
        )
        visited = visits_of(held.assigned[node], held.expected[node], per_load * gpus)
        if visits.pooled:
            held.visited.load[node, 0] = visited
            continue
        rate = visited / max(held.assigned[node], 1e-300)
        for w in range(held.load.shape[1]):
            held.visited.load[node, w] = rate * held.load[node, w]
    sum_powers(held.visited)
    # The norm over nodes is that of a mean: equal visits give their sum.
    price = visits.price * nodes / root(nodes)
    for w in range(held.visited.weight.size):
        held.visited.weight[w] = price * (1.0 if visits.pooled else loads.weight[w])


@inner()
def visits_of(assigned: float, expected: float, choices: float) -> float:
    """Bound the line from below: a visit is for at most all choices of a token."""
    return max(expected, assigned / max(choices, 1e-300))


@inner(forceinline=True)
def list_moved_nodes(many: int, change: Change, width: int, shares: FloatArray) -> int:
    """List the nodes that serve more or less of some expert; return how many."""
    moved = 0
    for node in range(change.assigned.size):
        differs = False
        for c in range(many):
            more = 0.0
            for gpu in range(node * width, (node + 1) * width):
                more += change.shares[c, gpu] - shares[change.expert[c], gpu]
            change.shift[c, node] = more
            differs = differs or abs(more) > 1e-12
        if differs:
            change.rows.touched[moved] = node
            moved += 1
    change.rows.touched[moved] = NONE
    return moved


@inner(forceinline=True)
def sum_node(
    node: int,
    width: int,
    per_load: float,
    node_load: FloatArray,
    load: FloatArray,
    rows: Rows,
    fresh: FloatArray,
) -> None:
    """Compute what a node serves, [windows], from the loads of its GPUs that change."""
    for w in range(fresh.size):
        fresh[w] = node_load[node, w]
    for t in range(rows.touched.size):
        gpu = rows.touched[t]
        if gpu < 0:
            break
        if gpu // width == node:
            for w in range(fresh.size):
                fresh[w] += (rows.load[t, w] - load[gpu, w]) * per_load


@inner(forceinline=True)
def take_visits(many: int, moved: int, change: Change, visits: Visits, held: Nodes) -> None:
    """Correct what nodes serve."""
    pairs, partners, expert = visits.pairs, held.partners, change.expert
    for k in range(moved):
        node = change.rows.touched[k]
        held.assigned[node], held.expected[node] = change.assigned[k], change.expected[k]
        for w in range(held.load.shape[1]):
            held.load[node, w] = change.load[k, w]
        set_load(node, change.rows.load[k], held.visited)
        first, second = expert[0], expert[1 if many > 1 else 0]
        more1, more2 = change.shift[0, node], change.shift[1, node] if many > 1 else 0.0
        for other in range(partners.shape[1]):
            partners[node, other] += more1 * pairs[first, other] + more2 * pairs[second, other]
