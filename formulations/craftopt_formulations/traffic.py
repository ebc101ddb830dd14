"""Node visits and load of one layer: balanced hypergraph partitioning, with replication.

Sets: experts e in E, GPUs g in G, numbers of copies c in C, nodes v in V, distinct expert sets j
of the tokens. Parameters: m[j] tokens with the set j, t[e] tokens with expert e; n copies in all,
q and Q being n / |G| rounded down and up; a price of load, b price of visits. Variables: y[e,c] = 1
if e has c copies; z[e,c,g] = 1 if it does and g hosts one; s[j,e,v] = 1 if node v serves e to the
tokens j; u[j,v] = 1 if they visit v; T the largest GPU load.

    minimise  a T + b sum_{j,v} m[j] u[j,v]
    one_count   sum_c y[e,c] = 1                            for all e
    hosted      sum_g z[e,c,g] = c y[e,c]                   for all e, c
    linked      z[e,c,g] <= y[e,c]                          for all e, c, g
    copies      sum_{e,c} c y[e,c] = n
    fewest      sum_{e,c} z[e,c,g] >= q                     for all g
    most        sum_{e,c} z[e,c,g] <= Q                     for all g
    load        sum_{e,c} (t[e] / c) z[e,c,g] <= T          for all g, if a > 0
    served      sum_v s[j,e,v] = 1                          for all j, e in j
    at_hand     s[j,e,v] <= sum_{c, g in v} z[e,c,g]        for all j, e in j, v
    visited     s[j,e,v] <= u[j,v]                          for all j, e in j, v
    first       node 0 hosts expert 0, as nodes are interchangeable

Without replicas the visits are those of every dispatch. With replicas they are the fewest that a
dispatch can do with (a set cover for every token), while loads are those of even dispatch. The
relaxation is weak, u = 1 / |V| for all: the bounds that work are in `craftopt.bounds.traffic`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from craftopt.bounds.traffic import TokenSets
from craftopt.plan import Copies
from craftopt_formulations._hosting import Hosting, copies_limit
from craftopt_formulations._solvers import Model, Run, new_model


@dataclass(frozen=True, eq=False)
class Visited(Run):
    """A placement of one layer that a solver found.

    ``copies``: uint8 [experts, gpus], or None; ``visits``: nodes that all tokens visit there;
    ``largest``: largest GPU load in tokens, None where it has no price.
    """

    copies: Copies | None = None
    visits: int | None = None
    largest: float | None = None


@dataclass(frozen=True, eq=False)
class TrafficModel:
    """The model, which GPU hosts which expert, and its sums."""

    model: Model
    hosting: Hosting
    visits: Any
    largest: Any
    unit: int

    def solve(self, *, work: float | None = None, seconds: float | None = None) -> Visited:
        """Solve, and read the copies off the solution."""
        run = self.model.solve(work=work, seconds=seconds)
        if run.objective is None:
            return Visited.of(run, self.unit)
        return Visited.of(
            run,
            self.unit,
            copies=self.hosting.read(),
            visits=round(self.model.value(self.visits)),
            largest=None if self.largest is None else self.model.value(self.largest) / self.unit,
        )


def build(
    sets: TokenSets,
    gpus: int,
    nodes: int,
    replicas: int = 0,
    *,
    load_price: int = 0,
    visit_price: int = 1,
    solver: str = "cp-sat",
) -> TrafficModel:
    """Build the program, with even slots.

    Parameters
    ----------
    sets : TokenSets
        Expert sets of the tokens (`craftopt.bounds.traffic.token_sets`).
    gpus, nodes, replicas : int
        ``replicas``: extra copies, all of which are placed.
    load_price, visit_price : int
        What a token on the fullest GPU costs, and what a visit of a node does. Relative time
        plus ``traffic`` x nodes per token, times the tokens, is ``gpus / k`` for load and
        ``traffic`` for visits.
    solver : {"cp-sat", "cbc", "highs", "scip"}

    Raises
    ------
    InfeasibleError
        More copies than the experts may have.

    Examples
    --------
    >>> from craftopt.bounds.traffic import token_sets
    >>> from craftopt_formulations import traffic
    >>> sets = token_sets([[0, 2], [0, 2], [1, 3], [0, 1]], experts=4)
    >>> found = traffic.build(sets, gpus=2, nodes=2).solve()
    >>> found.status, found.visits, found.copies.tolist()
    ('optimal', 5, [[1, 0], [0, 1], [1, 0], [0, 1]])
    """
    n, width = sets.experts + replicas, gpus // nodes
    limit = min(copies_limit(sets.experts, gpus, replicas, None), replicas + 1)
    model = new_model(solver, "traffic")
    add, each, total = model.add, model.add_each, model.total
    layer = Hosting(model, sets.experts, gpus, limit)
    E, C, G, V, y, z, on = layer.E, layer.C, layer.G, range(nodes), layer.y, layer.z, layer.on
    unit = math.lcm(*C)  # tokens of a copy are whole numbers of it
    t = (unit * sets.counts @ sets.has()).tolist()
    tokens, m = list(enumerate(sets.as_tuples())), sets.counts.tolist()
    chosen = [(j, e, v) for j, token in tokens for e in token for v in V]
    s = {(j, e, v): model.flag(f"s_{j}_{e}_{v}") for j, e, v in chosen}
    u = {(j, v): model.flag(f"u_{j}_{v}") for j, _ in tokens for v in V}
    visits = total(m[j] * u[j, v] for j, v in u)
    T = model.number("T", 0, sum(t)) if load_price else None

    model.minimise(visit_price * unit * visits + (0 if T is None else load_price * T))
    each("one_count", {e: total(y[e, c] for c in C) == 1 for e in E})
    each("hosted", {(e, c): total(z[e, c, g] for g in G) == c * y[e, c] for e, c in y})
    each("linked", {(e, c, g): z[e, c, g] <= y[e, c] for e, c, g in z})
    add("copies", total(c * y[e, c] for e, c in y) == n)
    each("fewest", {g: total(z[e, c, g] for e, c in y) >= n // gpus for g in G})
    each("most", {g: total(z[e, c, g] for e, c in y) <= -(-n // gpus) for g in G})
    if T is not None:
        each("load", {g: total(t[e] // c * z[e, c, g] for e, c in y) <= T for g in G})
    each(
        "served", {(j, e): total(s[j, e, v] for v in V) == 1 for j, token in tokens for e in token}
    )
    held = {(e, v): total(on(e, v * width + g) for g in range(width)) for e in E for v in V}
    each("at_hand", {(j, e, v): s[j, e, v] <= held[e, v] for j, e, v in s})
    each("visited", {(j, e, v): s[j, e, v] <= u[j, v] for j, e, v in s})
    add("first", held[0, 0] >= 1)
    return TrafficModel(model, layer, visits, T, unit)
