"""All layers of a small problem in one program, under every rule that a `Problem` can state.

Sets: windows w, layers i, experts e, GPUs g, copies c, nodes v, expert groups k. Parameters:
t[w,i,e] tokens; n copies in all, |L| |E| plus the replicas; p[i,e,g] = 1 if g hosts e in the
previous plan; M moves. Variables: y[i,e,c] and z[i,e,c,g] as in `joint`; T[w,i] the largest GPU
loads; S slots of every GPU; b[i] the fewest slots of a GPU in layer i, d its fewest over all
layers; a[i,k,v] = 1 if node v hosts group k. With s[i,g] = sum_{e,c} z[i,e,c,g]:

    minimise    sum_{w,i} T[w,i]                            objective time
    one_count   sum_c y[i,e,c] = 1                          for all i, e
    hosted      sum_g z[i,e,c,g] = c y[i,e,c]               for all i, e, c
    linked      z[i,e,c,g] <= y[i,e,c]                      for all i, e, c > 1, g
    copies      sum_{i,e,c} c y[i,e,c] <= n
    home        sum_v a[i,k,v] = 1                          for all i, k
    groups      sum_k a[i,k,v] = |K| / |V|                  for all i, v
    node_slots  |V| sum_{g in v} s[i,g] = sum_{g} s[i,g]    for all i, v
    within      sum_c z[i,e,c,g] <= a[i,k(e),v(g)]          for all i, e, g
    uniform     s[i,g] = S                                  for all i, g
    even        b[i] <= s[i,g] <= b[i] + 1                  for all i, g
    totals      d <= sum_i s[i,g] <= d + 1                  for all g
    moves       sum_{i,e,c,g: p = 0} z[i,e,c,g] <= M
    order       of interchangeable GPUs, one arrangement
    load        sum_{e,c} (t[w,i,e] / c) z[i,e,c,g] <= T[w,i]   for all w, i, g
    heaviest    sum_c (t[w,i,e] / c) y[i,e,c] <= T[w,i]         for all w, i, e (implied)

Which of them a model has depends on the problem: groups, slots and moves. The objective
balancedness is in `_gains`.

Relabelling GPUs changes no load: where layers do not depend on each other's labels (even slots,
no moves), GPUs are ordered layer by layer, fewer slots first, then those with the heaviest
expert; equal totals follow by relabelling. Otherwise they are ordered by totals, or, with moves,
not at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from craftopt.evaluation import layer_gpu_loads
from craftopt.loads import IntArray
from craftopt.plan import Copies
from craftopt.problem import Problem
from craftopt_formulations._gains import GAIN, Cell, Gains
from craftopt_formulations._hosting import Hosting
from craftopt_formulations._solvers import CpModel, Run, RunStatus

# A bound this close to a plan, relative, is met.
_CLOSE = 1e-10


@dataclass(frozen=True, eq=False)
class WholePlan(Run):
    """A plan that the solver found.

    ``copies``: uint8 [layers, experts, gpus], or None. ``objective`` and ``bound`` are costs:
    the summed largest loads in tokens, or minus the summed balancedness.
    """

    copies: Copies | None = None


def solve_whole(
    problem: Problem,
    *,
    exactly: bool = False,
    loose: bool = False,
    hint: Copies | None = None,
    bound: float = -math.inf,
    work: float | None = None,
    seconds: float | None = None,
) -> WholePlan:
    """Solve a small problem with CP-SAT.

    Parameters
    ----------
    problem : Problem
    exactly : bool
        Spend the whole budget, not at most that.
    loose : bool
        Leave out the rules on slots per GPU: a relaxation under ``free``, for one layer of many.
    hint : uint8 [layers, experts, gpus], optional
        A plan to start from.
    bound : float
        A proven lower bound on the cost.
    work : float, optional
        Deterministic seconds.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt_formulations.whole import solve_whole
    >>> loads = co.Loads([[6, 3, 2, 1]])
    >>> solve_whole(co.Problem(loads, gpus=2, replicas=1)).objective
    6.0
    """
    problem.goal.require_even_dispatch("solve_whole")
    problem.require_even_balance("solve_whole")
    model = WholeModel(problem, exactly, loose)
    if problem.objective == "time":
        model.minimise_time(bound)
        if hint is not None:
            model.hint(hint)
        return model.solve(work, seconds)
    return _maximise_balancedness(model, hint, bound, work, seconds)


def flags(problem: Problem) -> int:
    """Count the flags z of the program."""
    return problem.loads.layers * layer_flags(problem)


def layer_flags(problem: Problem) -> int:
    """Count the flags z of one layer."""
    return problem.loads.experts * problem.copies_limit * problem.gpus


class WholeModel:
    """The program: hosting of every layer, the rules, and a largest load per window and layer."""

    def __init__(self, problem: Problem, exactly: bool, loose: bool) -> None:
        self.problem = problem
        self.model = CpModel("whole")
        loads = problem.loads
        self.pinned = problem.max_moves is not None
        self.level = problem.even_slots and not loose
        self.heaviest: IntArray = loads.tokens.sum(axis=0).argmax(axis=1)
        self.layers = [
            Hosting(self.model, loads.experts, problem.gpus, problem.copies_limit, f"_l{i}")
            for i in range(loads.layers)
        ]
        self.s = [[layer.slots(g) for g in layer.G] for layer in self.layers]
        self._host(exactly)
        if problem.expert_groups is not None:
            for i in range(loads.layers):
                self._keep_groups(i)
        if not loose:
            self._limit_slots()
        if self.pinned:
            self._limit_moves()
        else:
            self._order(loose)
        self._carry()

    def _host(self, exactly: bool) -> None:
        add, each, total = self.model.add, self.model.add_each, self.model.total
        for i, layer in enumerate(self.layers):
            E, C, G, y, z = layer.E, layer.C, layer.G, layer.y, layer.z
            each(f"one_count_{i}", {e: total(y[e, c] for c in C) == 1 for e in E})
            for e, c in y:
                add(f"hosted_{i}_{e}_{c}", total(z[e, c, g] for g in G) == c * y[e, c])
                each(f"linked_{i}_{e}_{c}", {g: z[e, c, g] <= y[e, c] for g in G if c > 1})
        n = self.problem.loads.layers * self.problem.loads.experts + self.problem.replicas
        copies = total(layer.copies() for layer in self.layers)
        add("copies", copies == n if exactly else copies <= n)

    def _keep_groups(self, i: int) -> None:
        problem, layer, s = self.problem, self.layers[i], self.s[i]
        add, each, total = self.model.add, self.model.add_each, self.model.total
        assert problem.expert_groups is not None
        k, width = problem.expert_groups.tolist(), problem.gpus_per_node
        K, V = range(max(k) + 1), range(problem.nodes)
        a = {(j, v): self.model.flag(f"a_{j}_{v}_l{i}") for j in K for v in V}
        each(f"home_{i}", {j: total(a[j, v] for v in V) == 1 for j in K})
        for v in V:
            filled = total(s[v * width : (v + 1) * width])
            add(f"groups_{i}_{v}", total(a[j, v] for j in K) == len(K) // len(V))
            add(f"node_slots_{i}_{v}", len(V) * filled == layer.copies())
        hosted = {(e, g): layer.on(e, g) for e in layer.E for g in layer.G}
        each(f"within_{i}", {(e, g): on <= a[k[e], g // width] for (e, g), on in hosted.items()})

    def _limit_slots(self) -> None:
        problem, loads = self.problem, self.problem.loads
        if problem.slots == "uniform":
            S = self.model.count("S", -(-loads.experts // problem.gpus), problem.uniform_slots)
            for i, s in enumerate(self.s):
                self.model.add_each(f"uniform_{i}", {g: s[g] == S for g in range(problem.gpus)})
            return
        if self.level:
            for i, s in enumerate(self.s):
                self._spread(f"even_l{i}", s, loads.experts)
        if not self.level or (self.pinned and loads.layers > 1):
            self._spread("totals", self._totals(), loads.experts * loads.layers)

    def _totals(self) -> list[Any]:
        """Count the copies of every GPU over all layers."""
        return [self.model.total(of_gpu) for of_gpu in zip(*self.s, strict=True)]

    def _spread(self, family: str, slots: list[Any], most: int) -> None:
        """Let the slots of GPUs differ by at most one."""
        b = self.model.count(f"b_{family}", 0, most)
        for g, filled in enumerate(slots):
            self.model.add(f"{family}_least_{g}", filled >= b)
            self.model.add(f"{family}_most_{g}", filled <= b + 1)

    def _limit_moves(self) -> None:
        moved = [
            z
            for i, layer in enumerate(self.layers)
            for (e, _, g), z in layer.z.items()
            if not self.problem.previous_copies[i, e, g]
        ]
        self.model.add("moves", self.model.total(moved) <= self.problem.max_moves)

    def _order(self, loose: bool) -> None:
        """Keep one arrangement of interchangeable GPUs: those of a node, or all."""
        width = self.width
        for g in (g for g in range(self.problem.gpus) if g % width):
            if self.level or loose:
                for i, s in enumerate(self.s):
                    self._order_pair(g, i, s, by_slots=self.level)
            else:
                self._order_pair(g, 0, self._totals(), by_slots=True)

    def _order_pair(self, g: int, i: int, s: list[Any], by_slots: bool) -> None:
        on, h = self.layers[i].on, int(self.heaviest[i])
        heavier = on(h, g) - on(h, g - 1)
        if by_slots:  # they differ by at most 1
            self.model.add(f"order_slots_{i}_{g}", s[g - 1] <= s[g])
            heavier = heavier - s[g] + s[g - 1]
        self.model.add(f"order_{i}_{g}", heavier <= 0)

    @property
    def width(self) -> int:
        """GPUs that are interchangeable: those of a node under groups, or all."""
        problem = self.problem
        return problem.gpus if problem.expert_groups is None else problem.gpus_per_node

    def _carry(self) -> None:
        """Add the largest load of every window and layer that has tokens."""
        problem, each, total = self.problem, self.model.add_each, self.model.total
        tokens, most = problem.loads.tokens, problem.copies_limit
        cells = [cell for cell in np.ndindex(tokens.shape[:2]) if tokens[cell].any()]
        rows = np.array([tokens[cell] for cell in cells]).reshape(-1, problem.loads.experts)
        if problem.objective == "time":  # loads of all cells are summed: one unit
            together = [self.model.shares(rows, most)] if cells else []
            shares = [(together[0], row) for row in range(len(cells))]
        else:
            shares = [(self.model.shares(row[np.newaxis], most), 0) for row in rows]
        self.cells: dict[tuple[int, int], Cell] = {}
        for (w, i), (share, row) in zip(cells, shares, strict=True):
            layer, t = self.layers[i], share.values[row]
            E, C, G, y, z = layer.E, layer.C, layer.G, layer.y, layer.z
            T = self.model.number(f"T_{w}_{i}", *share.range(row, problem.gpus))
            each(f"load_{w}_{i}", {g: total(t[e, c] * z[e, c, g] for e, c in y) <= T for g in G})
            each(f"heaviest_{w}_{i}", {e: total(t[e, c] * y[e, c] for c in C) <= T for e in E})
            mean = float(tokens[w, i].sum()) / problem.gpus
            self.cells[w, i] = Cell(T, share, row, problem.gpus, mean * share.unit)

    def minimise_time(self, bound: float) -> None:
        """Set the objective time."""
        total = self.model.total(cell.largest for cell in self.cells.values())
        if self.cells and bound > 0:
            shares = next(iter(self.cells.values())).shares
            self.model.add("bound", total >= int(shares.floor(bound, len(self.cells))))
        self.model.minimise(total)

    def hint(self, copies: Copies) -> None:
        """Start from a plan, its GPUs arranged as the program orders them."""
        arranged = self.arrange(copies)
        for layer, copies_of_layer in zip(self.layers, arranged, strict=True):
            layer.hint(copies_of_layer)
        for (_, i), cell in self.cells.items():
            self.model.hint(cell.largest, cell.load(arranged[i]))

    def arrange(self, copies: Copies) -> Copies:
        """Relabel GPUs as `_order` wants them."""
        if self.pinned:
            return copies
        result = copies.copy()
        problem = self.problem
        node = np.arange(problem.gpus) // self.width
        for layer in range(copies.shape[0]):
            if self.level:
                key = copies[layer].sum(axis=0, dtype=np.int64)
            elif problem.loads.layers > 1:
                key = copies.sum(axis=(0, 1), dtype=np.int64)
            else:
                key = np.zeros(problem.gpus, dtype=np.int64)
            first = layer if self.level else 0
            on = copies[first, self.heaviest[first]].astype(np.int64)
            result[layer] = copies[layer][:, np.lexsort((1 - on, key, node))]
        return result

    def read(self) -> Copies:
        """Read the plan off the solution."""
        return np.stack([layer.read() for layer in self.layers])

    def solve(self, work: float | None, seconds: float | None) -> WholePlan:
        """Solve for time."""
        run = self.model.solve(work=work, seconds=seconds)
        units = [cell.shares.unit for cell in self.cells.values()]
        copies = None if run.objective is None else self.read()
        return WholePlan.of(run, units[0] if units else 1.0, copies=copies)


def _maximise_balancedness(
    whole: WholeModel,
    hint: Copies | None,
    bound: float,
    work: float | None,
    seconds: float | None,
) -> WholePlan:
    """Add points to the gains until bound and plan meet, or the work is done."""
    problem, gains = whole.problem, Gains(whole.model, whole.cells)
    idle = problem.loads.windows * problem.loads.layers - len(whole.cells)
    best, cost, proven = hint, math.inf, bound
    if hint is not None:
        cost = plan_cost(problem, hint)
        gains.add_loads(hint)
    spent = elapsed = 0.0
    while True:
        whole.model.clear_hints()
        if best is not None:
            whole.hint(best)
        left = None if work is None else max(work - spent, 0.0)
        run = whole.model.solve(work=left, seconds=seconds)
        spent, elapsed = spent + run.work, elapsed + run.seconds
        if run.status == "infeasible":
            return WholePlan("infeasible", None, None, run.solver, elapsed, spent)
        if run.bound is not None:
            proven = max(proven, run.bound / GAIN - idle)
        fresh = False
        if run.objective is not None:
            found = whole.read()
            reached = plan_cost(problem, found)
            if reached < cost:
                best, cost = found, reached
            fresh = gains.add_loads(found)
        met = best is not None and cost - proven <= _CLOSE * abs(cost)
        if met or run.status != "optimal" or not fresh:
            break
    status: RunStatus = "optimal" if met else "feasible" if best is not None else "not found"
    objective = None if best is None else cost
    known = None if math.isinf(proven) else proven
    return WholePlan(status, objective, known, run.solver, elapsed, spent, best)


def plan_cost(problem: Problem, copies: Copies) -> float:
    """Compute what a plan costs: summed largest loads, or minus the summed balancedness."""
    return sum(layer_cost(problem, layer, copies[layer]) for layer in range(problem.loads.layers))


def layer_cost(problem: Problem, layer: int, copies: Copies) -> float:
    """Compute a layer's part of `plan_cost`."""
    tokens = problem.loads.tokens[:, layer]
    largest = layer_gpu_loads(tokens, copies).max(axis=1)
    mean = tokens.sum(axis=1) / problem.gpus
    if problem.objective == "time":
        return float(np.maximum(largest, mean).sum())
    used = mean > 0
    return -float((mean[used] / np.maximum(largest, mean)[used]).sum()) - float((~used).sum())
