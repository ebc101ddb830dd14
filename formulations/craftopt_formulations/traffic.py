"""Node visits and load of one layer: balanced hypergraph partitioning, with replication.

Sets: experts e = 1..E, GPUs g = 1..G in nodes n = 1..N, copies c = 1..C, distinct expert sets t of
the tokens. Parameters: m_t tokens with the set t, w_e tokens with expert e; r extra copies; n_g
least and N_g most copies that g hosts; a price of load, b price of visits. Variables: y[e,c] = 1
if e has c copies; z[e,c,g] = 1 if it does and g hosts one; s[t,e,n] = 1 if node n serves e to the
tokens t; u[t,n] = 1 if they visit n; T the largest GPU load.

    minimise  a T + b sum_{t,n} m_t u[t,n]
    one_count   sum_c y[e,c] = 1                            for all e
    hosted      sum_g z[e,c,g] = c y[e,c]                   for all e, c
    linked      z[e,c,g] <= y[e,c]                          for all e, c, g
    copies      sum_{e,c} c y[e,c] = E + r
    capacity    n_g <= sum_{e,c} z[e,c,g] <= N_g            for all g
    load        sum_{e,c} (w_e / c) z[e,c,g] <= T           for all g, where a > 0
    served      sum_n s[t,e,n] = 1                          for all t, e in t
    at_hand     s[t,e,n] <= sum_{c, g in n} z[e,c,g]        for all t, e in t, n
    visited     s[t,e,n] <= u[t,n]                          for all t, e in t, n
    first       the first node hosts the first expert, as nodes are interchangeable

Without replicas the visits are those of every dispatch. With replicas they are the fewest that a
dispatch can do with (a set cover for every token), while loads are those of even dispatch. The
relaxation is weak, u = 1/N for all: the bounds that work are in `craftopt.bounds.traffic`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from craftopt.bounds.traffic import TokenSets
from craftopt.errors import InfeasibleError
from craftopt.plan import Copies
from craftopt_formulations._solvers import Model, Run, new_model


@dataclass(frozen=True, eq=False)
class Visited(Run):
    """What a solver makes of one layer.

    ``copies``: uint8 [experts, gpus], or None; ``visits``: nodes that all tokens visit there;
    ``largest``: largest GPU load in tokens, None where it has no price.
    """

    copies: Copies | None = None
    visits: int | None = None
    largest: float | None = None


@dataclass(frozen=True, eq=False)
class TrafficModel:
    """The model, its flags z, and its sums."""

    model: Model
    hosts: dict[tuple[int, int, int], Any]
    shape: tuple[int, int]
    visits: Any
    largest: Any
    unit: int

    def solve(self, *, work: float | None = None, seconds: float | None = None) -> Visited:
        """Solve, and read the copies off the solution."""
        run = self.model.solve(work=work, seconds=seconds)
        if run.objective is None:
            return Visited.of(run, self.unit)
        copies = np.zeros(self.shape, dtype=np.uint8)
        for (e, _, g), z in self.hosts.items():
            copies[e, g] |= self.model.value(z) > 0.5
        return Visited.of(
            run,
            self.unit,
            copies=copies,
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
    experts, of_node = sets.experts, gpus // nodes
    if not 0 <= replicas <= experts * (gpus - 1):
        raise InfeasibleError(
            f"replicas={replicas} does not fit {experts} experts of at most {gpus} copies; "
            f"pass 0..{experts * (gpus - 1)}"
        )
    model = new_model(solver, "traffic")
    counts = range(1, min(gpus, replicas + 1) + 1)
    unit = math.lcm(*counts)
    tokens = sets.counts @ sets.has()
    chosen = {(e, c): model.flag(f"y_{e}_{c}") for e in range(experts) for c in counts}
    hosts = {(e, c, g): model.flag(f"z_{e}_{c}_{g}") for e, c in chosen for g in range(gpus)}
    for e in range(experts):
        model.add(f"one_count_{e}", model.total(chosen[e, c] for c in counts) == 1)
    for (e, c), y in chosen.items():
        model.add(f"hosted_{e}_{c}", model.total(hosts[e, c, g] for g in range(gpus)) == c * y)
    for (e, c, g), z in hosts.items():
        model.add(f"linked_{e}_{c}_{g}", z <= chosen[e, c])
    copies = model.total(c * y for (_, c), y in chosen.items())
    model.add("copies", copies == experts + replicas)
    largest = model.number("T", 0, unit * int(tokens.sum())) if load_price else None
    for g in range(gpus):
        slots = model.total(hosts[e, c, g] for e, c in chosen)
        model.add(f"capacity_least_{g}", slots >= (experts + replicas) // gpus)
        model.add(f"capacity_most_{g}", slots <= -(-(experts + replicas) // gpus))
        if largest is not None:
            shares = (unit // c * int(tokens[e]) * hosts[e, c, g] for e, c in chosen)
            model.add(f"load_{g}", model.total(shares) <= largest)

    def held(e: int, n: int) -> Any:
        """Count the copies of an expert on a node."""
        of_gpus = range(n * of_node, (n + 1) * of_node)
        return model.total(hosts[e, c, g] for c in counts for g in of_gpus)

    visited = []
    for t, (token, count) in enumerate(zip(sets.as_tuples(), sets.counts.tolist(), strict=True)):
        visits = [model.flag(f"u_{t}_{n}") for n in range(nodes)]
        visited += [count * visit for visit in visits]
        for e in token:
            serves = [model.flag(f"s_{t}_{e}_{n}") for n in range(nodes)]
            model.add(f"served_{t}_{e}", model.total(serves) == 1)
            for n, serve in enumerate(serves):
                model.add(f"at_hand_{t}_{e}_{n}", serve <= held(e, n))
                model.add(f"visited_{t}_{e}_{n}", serve <= visits[n])
    model.add("first", held(0, 0) >= 1)
    total = model.total(visited)
    cost = visit_price * unit * total
    model.minimise(cost if largest is None else cost + load_price * largest)
    return TrafficModel(model, hosts, (experts, gpus), total, largest, unit)
