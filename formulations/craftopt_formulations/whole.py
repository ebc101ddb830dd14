"""All layers of a small problem in one program, under every rule that a `Problem` can state.

Sets: windows w, layers l, experts e, GPUs g, copies c, nodes n, expert groups k. Parameters:
t[w,l,e] tokens; B budget; m[w,l] mean GPU load; h[l,e,g] = 1 if g hosts e in the previous plan;
M moves. Variables: y[l,e,c] and z[l,e,c,g] as in `joint`, T[w,l] the largest GPU loads, S slots,
b_l the fewest slots of a GPU in layer l, b the fewest copies of a GPU over all layers,
a[l,k,n] = 1 if node n hosts group k. With s[l,g] = sum_{e,c} z[l,e,c,g]:

    minimise    sum_{w,l} T[w,l]                            objective time
    one_count, hosted, linked, load, heaviest               as in `joint`, for all l
    budget      sum_{l,e} (sum_c c y[l,e,c] - 1) <= B
    uniform     s[l,g] = S                                  for all l, g
    even        b_l <= s[l,g] <= b_l + 1                    for all l, g
    totals      b <= sum_l s[l,g] <= b + 1                  for all g
    home        sum_n a[l,k,n] = 1                          for all l, k
    groups      sum_k a[l,k,n] equal                        for all l, n
    within      sum_c z[l,e,c,g] <= a[l,k(e),n(g)]          for all l, e, g
    node_slots  sum_{g in n} s[l,g] equal                   for all l, n
    moves       sum_{l,e,c,g: h = 0} z[l,e,c,g] <= M

The objective balancedness, maximise sum_{w,l} m[w,l] / T[w,l], is convex in T, which a linear
program cannot maximise. With points p_0 < p_1 < ... in the range of T and flags q_i = 1 iff
T >= p_i, the gain v[w,l] is kept below a staircase, v <= m / p_i where q_i, and below the chord
from p_i to p_{i+1} where T is between them. Both lie above the true gain, so that the optimum
is a bound; it is exact at the points. Points are added where the optimum lies, until bound and
plan meet.

Relabelling GPUs changes no load: where layers do not depend on each other's labels (even slots,
no moves), GPUs are ordered layer by layer, fewer slots first, then those with the heaviest
expert; equal totals follow by relabelling. Else they are ordered by totals, or not at all.
"""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from craftopt.evaluation import layer_gpu_loads
from craftopt.loads import IntArray
from craftopt.plan import Copies
from craftopt.problem import Problem
from craftopt_formulations._hosting import Hosting
from craftopt_formulations._solvers import CpModel, Run, RunStatus, Shares

# A gain of 1 in whole numbers, and what the slope of a chord is multiplied by.
_GAIN, _SLOPE = 2**36, 2**20
_LARGEST = 2**60
# Points at which a gain is exact from the start, as multiples of the mean load.
_POINTS = (1.0, 1.02, 1.05, 1.1, 1.2, 1.35, 1.6, 2.0, 3.0, 5.0)
# A bound this close to a plan, relative, is met.
_CLOSE = 1e-10


@dataclass(frozen=True, eq=False)
class WholePlan(Run):
    """What the solver makes of all layers.

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
    model = _Whole(problem, exactly, loose)
    if problem.objective == "time":
        model.minimise_time(bound)
        if hint is not None:
            model.hint(hint)
        return model.solve(work, seconds)
    return _maximise_balancedness(model, hint, bound, work, seconds)


def flags(problem: Problem) -> int:
    """Count the flags z of the program."""
    loads = problem.loads
    return loads.layers * loads.experts * problem.copies_limit * problem.gpus


class _Whole:
    """The program: hosting of every layer, the rules, and a largest load per window and layer."""

    def __init__(self, problem: Problem, exactly: bool, loose: bool) -> None:
        self.problem = problem
        self.model = CpModel("whole")
        loads = problem.loads
        self.pinned = problem.max_moves is not None
        self.level = problem.even_slots and not loose
        self.heaviest: IntArray = loads.tokens.sum(axis=0).argmax(axis=1)
        self.hostings = [
            Hosting(self.model, loads.experts, problem.gpus, problem.copies_limit, f"_l{layer}")
            for layer in range(loads.layers)
        ]
        self.slots = [[h.slots(g) for g in range(problem.gpus)] for h in self.hostings]
        self._limit_copies(exactly)
        if problem.expert_groups is not None:
            for layer in range(loads.layers):
                self._keep_groups(layer)
        if not loose:
            self._limit_slots()
        if self.pinned:
            self._limit_moves()
        self._order(loose)
        self._carry()

    def _limit_copies(self, exactly: bool) -> None:
        problem = self.problem
        copies = self.model.total(hosting.copies() for hosting in self.hostings)
        most = problem.loads.layers * problem.loads.experts + problem.replicas
        self.model.add("budget", copies == most if exactly else copies <= most)

    def _keep_groups(self, layer: int) -> None:
        problem, model = self.problem, self.model
        assert problem.expert_groups is not None
        groups, width = int(problem.expert_groups.max()) + 1, problem.gpus_per_node
        home = [
            [model.flag(f"a_{k}_{n}_l{layer}") for n in range(problem.nodes)] for k in range(groups)
        ]
        for k in range(groups):
            model.add(f"home_{k}_l{layer}", model.total(home[k]) == 1)
        copies = self.hostings[layer].copies()
        for n in range(problem.nodes):
            here = model.total(home[k][n] for k in range(groups))
            model.add(f"groups_{n}_l{layer}", here == groups // problem.nodes)
            slots = model.total(self.slots[layer][n * width : (n + 1) * width])
            model.add(f"node_slots_{n}_l{layer}", problem.nodes * slots == copies)
        for e, k in enumerate(problem.expert_groups.tolist()):
            for g in range(problem.gpus):
                model.add(
                    f"within_{e}_{g}_l{layer}",
                    self.hostings[layer].on(e, g) <= home[k][g // width],
                )

    def _limit_slots(self) -> None:
        problem, model = self.problem, self.model
        if problem.slots == "uniform":
            least = -(-problem.loads.experts // problem.gpus)
            every = model.count("S", least, problem.uniform_slots)
            for layer, slots in enumerate(self.slots):
                for g, filled in enumerate(slots):
                    model.add(f"uniform_{g}_l{layer}", filled == every)
            return
        if self.level:
            for layer, slots in enumerate(self.slots):
                self._spread(f"even_l{layer}", slots, problem.loads.experts)
        if not self.level or (self.pinned and problem.loads.layers > 1):
            totals = [model.total(column) for column in zip(*self.slots, strict=True)]
            self._spread("totals", totals, problem.loads.experts * problem.loads.layers)

    def _spread(self, name: str, slots: list[Any], most: int) -> None:
        base = self.model.count(f"b_{name}", 0, most)
        for g, filled in enumerate(slots):
            self.model.add(f"{name}_least_{g}", filled >= base)
            self.model.add(f"{name}_most_{g}", filled <= base + 1)

    def _limit_moves(self) -> None:
        problem = self.problem
        assert problem.previous is not None
        assert problem.max_moves is not None
        before = problem.previous_copies
        anew = [
            z
            for layer, hosting in enumerate(self.hostings)
            for (e, _, g), z in hosting.hosts.items()
            if not before[layer, e, g]
        ]
        self.model.add("moves", self.model.total(anew) <= problem.max_moves)

    def _order(self, loose: bool) -> None:
        """Keep one arrangement of interchangeable GPUs, within nodes."""
        if self.pinned:
            return
        for g in self._followers():
            if self.level or loose:
                for layer, slots in enumerate(self.slots):
                    self._order_pair(g, layer, slots, f"l{layer}")
            else:
                totals = [self.model.total(column) for column in zip(*self.slots, strict=True)]
                self._order_pair(g, 0, totals, "totals")

    def _order_pair(self, g: int, layer: int, slots: list[Any], name: str) -> None:
        on, expert = self.hostings[layer].on, int(self.heaviest[layer])
        heavier = on(expert, g) - on(expert, g - 1)
        if self.level or name == "totals":  # they differ by at most 1
            self.model.add(f"fewer_first_{g}_{name}", slots[g - 1] <= slots[g])
            heavier = heavier - slots[g] + slots[g - 1]
        self.model.add(f"order_{g}_{name}", heavier <= 0)

    def _followers(self) -> list[int]:
        """List the GPUs that follow another one of their interchangeable kind."""
        groups = self.problem.expert_groups is not None
        width = self.problem.gpus_per_node if groups else self.problem.gpus
        return [g for g in range(self.problem.gpus) if g % width]

    def _carry(self) -> None:
        """Add the largest load of every window and layer that has tokens."""
        problem, model = self.problem, self.model
        tokens, most = problem.loads.tokens, problem.copies_limit
        cells = [cell for cell in np.ndindex(tokens.shape[:2]) if tokens[cell].any()]
        rows = np.array([tokens[cell] for cell in cells]).reshape(-1, problem.loads.experts)
        if problem.objective == "time":  # loads of all cells are summed: one unit
            together = model.shares(rows, most) if cells else None
            shares = [(together, i) for i in range(len(cells))]
        else:
            shares = [(model.shares(row[np.newaxis], most), 0) for row in rows]
        self.cells: dict[tuple[int, int], tuple[Any, Shares, int]] = {}
        for cell, (share, i) in zip(cells, shares, strict=True):
            assert share is not None
            largest = model.number("T_{}_{}".format(*cell), *share.range(i, problem.gpus))
            self.hostings[cell[1]].carry(share, i, largest)
            self.cells[cell] = largest, share, i

    def minimise_time(self, bound: float) -> None:
        """Set the objective time."""
        total = self.model.total(largest for largest, _, _ in self.cells.values())
        if self.cells and bound > 0:
            _, shares, _ = next(iter(self.cells.values()))
            self.model.add("bound", total >= int(shares.floor(bound, len(self.cells))))
        self.model.minimise(total)

    def hint(self, copies: Copies) -> None:
        """Start from a plan, its GPUs arranged as the program orders them."""
        arranged = self.arrange(copies)
        for layer, hosting in enumerate(self.hostings):
            hosting.hint(arranged[layer])
        for (_, layer), (largest, shares, i) in self.cells.items():
            self.model.hint(largest, max(_whole_loads(shares, i, arranged[layer])))

    def arrange(self, copies: Copies) -> Copies:
        """Relabel GPUs as `_order` wants them."""
        if self.pinned:
            return copies
        result = copies.copy()
        problem = self.problem
        groups = problem.expert_groups is not None
        width = problem.gpus_per_node if groups else problem.gpus
        for layer in range(copies.shape[0]):
            if self.level:
                key = copies[layer].sum(axis=0, dtype=np.int64)
            elif problem.loads.layers > 1:
                key = copies.sum(axis=(0, 1), dtype=np.int64)
            else:
                key = np.zeros(problem.gpus, dtype=np.int64)
            first = layer if self.level else 0
            on = copies[first, self.heaviest[first]].astype(np.int64)
            node = np.arange(problem.gpus) // width
            result[layer] = copies[layer][:, np.lexsort((1 - on, key, node))]
        return result

    def read(self) -> Copies:
        """Read the plan off the solution."""
        return np.stack([hosting.read() for hosting in self.hostings])

    def solve(self, work: float | None, seconds: float | None) -> WholePlan:
        """Solve for time."""
        run = self.model.solve(work=work, seconds=seconds)
        units = [shares.unit for _, shares, _ in self.cells.values()]
        unit = units[0] if units else 1.0
        copies = None if run.objective is None else self.read()
        return WholePlan.of(run, unit, copies=copies)


class _Gains:
    """Flags and constraints that keep every gain at or above m / T, exactly so at points."""

    def __init__(self, whole: _Whole) -> None:
        self.whole, self.model = whole, whole.model
        self.gains: dict[tuple[int, int], Any] = {}
        self.means: dict[tuple[int, int], float] = {}
        # By cell, rising: a point, and the flag of T >= point; None where it always is.
        self.points: dict[tuple[int, int], list[tuple[int, Any]]] = {}
        problem = whole.problem
        for cell, (_, shares, i) in whole.cells.items():
            mean = float(problem.loads.tokens[cell].sum()) / problem.gpus * shares.unit
            least, most = shares.range(i, problem.gpus)
            first = math.ceil(least)
            gain = self.model.count("v_{}_{}".format(*cell), 0, self._above(mean, first))
            self.gains[cell], self.means[cell] = gain, mean
            self.points[cell] = [(first, None)]
            for factor in _POINTS:
                if first < factor * mean < most:
                    self.add(cell, math.ceil(factor * mean))
        self.model.minimise(-self.model.total(self.gains.values()))

    def add(self, cell: tuple[int, int], point: int) -> bool:
        """Make a gain exact at a point; return whether it was not before."""
        points = self.points[cell]
        at = bisect.bisect_right(points, point, key=lambda entry: entry[0])
        if points[max(at - 1, 0)][0] >= point:
            return False
        largest, gain = self.whole.cells[cell][0], self.gains[cell]
        name = "{}_{}_{}".format(point, *cell)
        flag = self.model.flag(f"q_{name}")
        self.model.implies([flag], f"above_{name}", largest >= point)
        self.model.implies([~flag], f"below_{name}", largest <= point - 1)
        self.model.implies([flag], f"stair_{name}", gain <= self._above(self.means[cell], point))
        points.insert(at, (point, flag))
        for left, right in itertools.pairwise(points[at - 1 : at + 2]):
            self._add_chord(cell, left, right)
        return True

    def _add_chord(
        self, cell: tuple[int, int], left: tuple[int, Any], right: tuple[int, Any]
    ) -> None:
        largest, gain, mean = self.whole.cells[cell][0], self.gains[cell], self.means[cell]
        fall = mean / left[0] - mean / right[0]
        slope = math.floor(_GAIN * _SLOPE * fall / (right[0] - left[0]) * (1.0 - 1e-12))
        _, shares, i = self.whole.cells[cell]
        if slope < 1 or slope * shares.range(i, 1)[1] > _LARGEST:
            return  # the staircase is as good
        top = _SLOPE * self._above(mean, left[0])
        flags = [~right[1]] if left[1] is None else [left[1], ~right[1]]
        name = "chord_{}_{}_{}_{}".format(left[0], right[0], *cell)
        line = _SLOPE * gain + slope * largest <= top + slope * left[0]
        self.model.implies(flags, name, line)

    def add_loads(self, copies: Copies) -> bool:
        """Make gains exact at the loads of a plan; return whether any was not before."""
        fresh = [
            self.add(cell, max(_whole_loads(shares, i, copies[cell[1]])))
            for cell, (_, shares, i) in self.whole.cells.items()
        ]
        return any(fresh)

    @staticmethod
    def _above(mean: float, load: int) -> int:
        return math.ceil(_GAIN * mean / load * (1.0 + 1e-14))


def _maximise_balancedness(
    whole: _Whole,
    hint: Copies | None,
    bound: float,
    work: float | None,
    seconds: float | None,
) -> WholePlan:
    """Add points to the gains until bound and plan meet, or the work is done."""
    problem, gains = whole.problem, _Gains(whole)
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
            proven = max(proven, run.bound / _GAIN - idle)
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


def _whole_loads(shares: Shares, window: int, copies: Copies) -> list[int]:
    """Compute the GPUs' loads in a model's whole numbers."""
    loads = [0] * copies.shape[1]
    for e, row in enumerate(copies.tolist()):
        share = shares.values[window][e][sum(row) - 1]
        for g, hosted in enumerate(row):
            loads[g] += share * hosted
    return loads
