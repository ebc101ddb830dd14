"""Routing: which copy serves, in one layer and batch.

Sets, parameters
    experts e, GPUs g; H_e the hosts of e (a second copy on one GPU is no further host);
    t_e >= 0 tokens of the batch; A = {e : t_e > 0} the active experts.
Variables
    y[e,g] in {0, 1}: GPU g reads its copy of e; x[e,g] >= 0 tokens of e that it serves, g in H_e.

1. *Fewest activated copies* (decode; METRO's problem)::

       min n  s.t.  sum_{g in H_e} y[e,g] = 1   (serve, e in A)
                    sum_e y[e,g] <= n           (activated, g)

   One copy may serve all tokens of an expert, so tokens do not matter. For a given n it is a
   bipartite flow, source -> e (1), e -> g in H_e (1), g -> sink (n), and n is found by binary
   search. The network is integral, so the least n of the relaxation, rounded up, is the optimum.

2. *Fewest tokens* (prefill)::

       min m  s.t.  sum_{g in H_e} x[e,g] = t_e   (serve, e)
                    sum_e x[e,g] <= m             (tokens, g)

   A linear program, and as a parametric flow (source -> e (t_e), e -> g, g -> sink (m)): while m
   is too small, the GPUs S on the source's side of a least cut carry more than m on average, so m
   rises to sum of t_e with H_e inside S / |S|, which no routing can beat. It ends at the optimum.

3. *Least time* (both regimes; TEMPO's model)::

       min T  s.t.  sum_{g in H_e} x[e,g] = t_e       (serve, e)
                    x[e,g] <= t_e y[e,g]              (read, e, g)
                    a + b sum_e y[e,g] <= T           (reading, g)
                    c + d sum_e x[e,g] <= T           (computing, g)

   NP-hard. Its relaxation 0 <= y <= 1 is the LP bound.

=============================  ==========================================  =====================
function                       solver                                      returns
=============================  ==========================================  =====================
`fewest_activated_networkx`    networkx maximum flow: the readable one     optimum
`fewest_activated_ortools`     OR-Tools SimpleMaxFlow                      optimum
`fewest_tokens_lp`             OR-Tools GLOP                               optimum, to 1e-7
`fewest_tokens_parametric`     networkx minimum cuts, whole numbers        optimum, a fraction
`least_time_lp`                OR-Tools GLOP                               lower bound
`least_time_milp`              OR-Tools CP-SAT                             routing, lower bound
=============================  ==========================================  =====================

References
----------
METRO, arXiv 2512.09277. TEMPO, arXiv 2608.13057. Gallo, Grigoriadis and Tarjan, "A fast parametric
maximum flow algorithm and applications", SIAM J. Comput. 18 (1989) 30-55.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, lcm
from typing import Any

import numpy as np

from craftopt.loads import FloatArray, read_only
from craftopt.plan import Copies

Cost = tuple[float, float, float, float]

_STEPS = 10**9  # of time, in the whole numbers of CP-SAT


@dataclass(frozen=True, eq=False)
class TimedRouting:
    """A routing that a solver found.

    Parameters
    ----------
    tokens : float64 [experts, gpus]
        Tokens that every GPU serves.
    value : float
        Time of the slowest GPU under ``tokens``, recomputed.
    bound : float
        Least time that the solver leaves possible.
    """

    tokens: FloatArray
    value: float
    bound: float


def fewest_activated_networkx(copies: Copies, tokens: FloatArray) -> int:
    """Compute the least possible number of activated copies on the fullest GPU.

    Parameters
    ----------
    copies : uint8 [experts, gpus]
    tokens : float64 [experts]

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt_formulations.routing import fewest_activated_networkx
    >>> copies = np.array([[1, 1], [1, 0], [0, 1]], dtype=np.uint8)
    >>> fewest_activated_networkx(copies, np.array([6.0, 2.0, 4.0]))
    2
    """
    import networkx  # noqa: PLC0415

    active: list[int] = np.flatnonzero(tokens).tolist()
    gpus: int = copies.shape[1]
    graph = networkx.DiGraph()
    for expert in active:
        graph.add_edge("source", ("expert", expert), capacity=1)
        for gpu in np.flatnonzero(copies[expert]).tolist():
            graph.add_edge(("expert", expert), ("gpu", gpu), capacity=1)
    low, high = ceil(len(active) / gpus), len(active)
    while low < high:
        limit = (low + high) // 2
        for gpu in range(gpus):
            graph.add_edge(("gpu", gpu), "sink", capacity=limit)
        if networkx.maximum_flow_value(graph, "source", "sink") == len(active):
            high = limit
        else:
            low = limit + 1
    return low


def fewest_activated_ortools(copies: Copies, tokens: FloatArray) -> int:
    """Compute the least possible number of activated copies on the fullest GPU.

    Parameters
    ----------
    copies : uint8 [experts, gpus]
    tokens : float64 [experts]

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt_formulations.routing import fewest_activated_ortools
    >>> copies = np.array([[1, 1], [1, 0], [0, 1]], dtype=np.uint8)
    >>> fewest_activated_ortools(copies, np.array([6.0, 2.0, 4.0]))
    2
    """
    from ortools.graph.python import max_flow  # noqa: PLC0415

    active = np.flatnonzero(tokens)
    gpus: int = copies.shape[1]
    if active.size == 0:
        return 0
    expert, gpu = np.nonzero(copies[active])
    # Nodes: experts from 0, GPUs after them, source, sink.
    source = active.size + gpus
    solver = max_flow.SimpleMaxFlow()
    solver.add_arcs_with_capacity(
        np.concatenate([np.full(active.size, source), expert]),
        np.concatenate([np.arange(active.size), active.size + gpu]),
        np.ones(active.size + expert.size, dtype=np.int64),
    )
    to_sink = solver.add_arcs_with_capacity(
        active.size + np.arange(gpus), np.full(gpus, source + 1), np.ones(gpus, dtype=np.int64)
    )
    # No limit beyond the hosted experts of the fullest GPU binds.
    low, high = ceil(active.size / gpus), int(np.bincount(gpu).max())
    while low < high:
        limit = (low + high) // 2
        solver.set_arcs_capacity(to_sink, np.full(gpus, limit))
        solver.solve(source, source + 1)
        if solver.optimal_flow() == active.size:
            high = limit
        else:
            low = limit + 1
    return low


def fewest_tokens_lp(copies: Copies, tokens: FloatArray) -> float:
    """Compute the least possible number of tokens on the fullest GPU, as a linear program.

    Parameters
    ----------
    copies : uint8 [experts, gpus]
    tokens : float64 [experts]

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt_formulations.routing import fewest_tokens_lp
    >>> copies = np.array([[1, 1], [1, 0], [0, 1]], dtype=np.uint8)
    >>> round(fewest_tokens_lp(copies, np.array([6.0, 2.0, 4.0])), 6)
    6.0
    """
    # The least time where reading costs nothing, a token 1.
    return least_time_lp(copies, tokens, (0.0, 0.0, 0.0, 1.0))


def fewest_tokens_parametric(copies: Copies, tokens: FloatArray) -> Fraction:
    """Compute the least possible number of tokens on the fullest GPU, exactly.

    Parameters
    ----------
    copies : uint8 [experts, gpus]
    tokens : float64 [experts]

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt_formulations.routing import fewest_tokens_parametric
    >>> copies = np.array([[1, 1], [1, 0], [1, 0]], dtype=np.uint8)
    >>> fewest_tokens_parametric(copies, np.array([3.0, 2.0, 4.0]))
    Fraction(6, 1)
    """
    import networkx  # noqa: PLC0415

    gpus = copies.shape[1]
    hosts = [np.flatnonzero(row).tolist() for row in copies]
    counts = [Fraction(count) for count in tokens.tolist()]
    # In a unit in which all counts are whole.
    unit = Fraction(1, lcm(*(count.denominator for count in counts)))
    whole = [int(count / unit) for count in counts]
    largest = Fraction(sum(whole), gpus)
    while True:
        graph = networkx.DiGraph()
        for expert, count in enumerate(whole):
            capacity = count * largest.denominator
            graph.add_edge("source", ("expert", expert), capacity=capacity)
            for gpu in hosts[expert]:
                graph.add_edge(("expert", expert), ("gpu", gpu))  # without limit
        for gpu in range(gpus):
            graph.add_edge(("gpu", gpu), "sink", capacity=largest.numerator)
        flow, (side, _) = networkx.minimum_cut(graph, "source", "sink")
        if flow == sum(whole) * largest.denominator:
            return largest * unit
        some = {gpu for gpu in range(gpus) if ("gpu", gpu) in side}
        inside = sum(count for count, on in zip(whole, hosts, strict=True) if some.issuperset(on))
        largest = Fraction(inside, len(some))


def least_time_lp(copies: Copies, tokens: FloatArray, cost: Cost) -> float:
    """Compute a lower bound on the time of the slowest GPU: copies may be read in part.

    Parameters
    ----------
    copies : uint8 [experts, gpus]
    tokens : float64 [experts]
    cost : tuple of 4 floats
        a, b, c and d.

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt_formulations.routing import least_time_lp
    >>> copies = np.array([[1, 1], [1, 0], [0, 1]], dtype=np.uint8)
    >>> round(least_time_lp(copies, np.array([6.0, 2.0, 4.0]), (0.0, 10.0, 0.0, 1.0)), 6)
    15.0
    """
    from ortools.linear_solver import pywraplp  # noqa: PLC0415

    most = float(tokens.max()) or 1.0
    unit = max(cost[0], cost[1], cost[2], cost[3] * most) or 1.0  # of time
    a, b, c, d = (rate / unit for rate in cost)
    solver = pywraplp.Solver.CreateSolver("GLOP")
    infinity = solver.infinity()
    time = solver.NumVar(0, infinity, "T")
    reading = [solver.Constraint(-infinity, -a, f"reading_{g}") for g in range(copies.shape[1])]
    computing = [solver.Constraint(-infinity, -c, f"computing_{g}") for g in range(copies.shape[1])]
    for row in (*reading, *computing):
        row.SetCoefficient(time, -1)
    for expert in np.flatnonzero(tokens).tolist():
        serve = solver.Constraint(1, 1, f"serve_{expert}")
        for gpu in np.flatnonzero(copies[expert]).tolist():
            # x / t; y is the same in the relaxation, as more of it only costs.
            part = solver.NumVar(0, 1, f"part_{expert}_{gpu}")
            serve.SetCoefficient(part, 1)
            reading[gpu].SetCoefficient(part, b)
            computing[gpu].SetCoefficient(part, d * float(tokens[expert]))
    solver.Minimize(time)
    if solver.Solve() != solver.OPTIMAL:
        raise RuntimeError("GLOP did not solve the linear program")
    return float(time.solution_value()) * unit


def least_time_milp(
    copies: Copies,
    tokens: FloatArray,
    cost: Cost,
    *,
    start: FloatArray,
    parts: int = 1,
    work_limit: float = 10.0,
) -> TimedRouting:
    """Find the least time of the slowest GPU with CP-SAT, on one thread.

    Parameters
    ----------
    copies : uint8 [experts, gpus]
    tokens : float64 [experts]
        Whole numbers.
    cost : tuple of 4 floats
        a, b, c and d, rounded down to a billionth of the start's time: the bound holds.
    start : float64 [experts, gpus]
        A routing to begin with; its time bounds the times looked at.
    parts : int
        Parts that a token may be cut into.
    work_limit : float
        Deterministic seconds of CP-SAT.

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt_formulations.routing import least_time_milp
    >>> copies = np.array([[1, 1], [1, 0], [0, 1]], dtype=np.uint8)
    >>> tokens, start = np.array([6.0, 2.0, 4.0]), np.array([[3.0, 3], [2, 0], [0, 4]])
    >>> found = least_time_milp(copies, tokens, (0.0, 10.0, 0.0, 1.0), start=start)
    >>> found.value, round(found.bound, 6)
    (20.0, 20.0)
    """
    from ortools.sat.python import cp_model  # noqa: PLC0415

    from craftopt_formulations._solvers import new_cp_solver  # noqa: PLC0415

    started = _time(start, cost)
    unit = started / _STEPS
    a, b, c, d = (floor(rate / unit) for rate in (*cost[:3], cost[3] / parts))
    model = cp_model.CpModel()
    time = model.new_int_var(0, 2 * _STEPS, "T")
    experts, gpus = copies.shape
    active = np.flatnonzero(tokens).tolist()
    count = {e: int(tokens[e]) * parts for e in active}
    hosts = {e: np.flatnonzero(copies[e]).tolist() for e in active}
    several = [e for e in active if len(hosts[e]) > 1]
    choices = [(e, g) for e in several for g in hosts[e]]
    y: dict[tuple[int, int], Any] = {(e, g): 1 for e in active for g in hosts[e]}
    x: dict[tuple[int, int], Any] = {(e, g): count[e] for e, g in y}
    for e, g in choices:  # the one host of an expert has no choice
        y[e, g] = model.new_bool_var(f"y_{e}_{g}")
        x[e, g] = model.new_int_var(0, count[e], f"x_{e}_{g}")
        model.add_hint(y[e, g], bool(start[e, g] > 0))
        model.add_hint(x[e, g], round(start[e, g] * parts))
    on = [[e for e, host in y if host == g] for g in range(gpus)]

    for e in several:
        model.add(sum(x[e, g] for g in hosts[e]) == count[e]).with_name(f"serve_{e}")
    for e, g in choices:
        model.add(x[e, g] <= count[e] * y[e, g]).with_name(f"read_{e}_{g}")
    for g in range(gpus):
        model.add(a + b * sum(y[e, g] for e in on[g]) <= time).with_name(f"reading_{g}")
    for g in range(gpus):
        model.add(c + d * sum(x[e, g] for e in on[g]) <= time).with_name(f"computing_{g}")
    for e in several:
        model.add_at_least_one(y[e, g] for g in hosts[e])  # implied, and helps
    model.minimize(time)
    solver = new_cp_solver()
    solver.parameters.max_deterministic_time = work_limit
    solver.parameters.relative_gap_limit = 1e-6
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return TimedRouting(start, started, 0.0)  # stopped this early, its bound means nothing
    bound = solver.best_objective_bound * unit
    found = np.zeros((experts, gpus))
    for place, part in x.items():
        found[place] = solver.value(part) / parts
    return TimedRouting(read_only(found), _time(found, cost), bound)


def _time(tokens: FloatArray, cost: Cost) -> float:
    """Compute the time of the slowest GPU."""
    a, b, c, d = cost
    return float(np.maximum(a + b * (tokens > 0).sum(axis=0), c + d * tokens.sum(axis=0)).max())
