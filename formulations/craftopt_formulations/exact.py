"""The method ``exact``: search, then proof, layer by layer and for the plan as a whole.

1. Start from the fast plan.
2. Layers with given numbers of replicas are problems of their own. Each is searched further, as
   long as it is not at its bound, and then given to CP-SAT with what was found as a hint.
3. The knapsack over what was proven of the layers bounds every plan; the knapsack over what was
   found makes one, its totals equalised by relabelling. Under ``free`` layers are bounded
   without the rule on totals: that is a relaxation, and the plan, not the sum of its layers, has
   to meet the bound.
4. Small problems are given to CP-SAT as a whole (`whole`), where that is still open.

All work is counted in CP-SAT's deterministic seconds, so that the plan depends neither on the
machine nor on the threads.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from craftopt.bounds import (
    even_costs,
    layer_costs,
    least_cost,
    shared_cost_table,
    whole_plan_bound,
)
from craftopt.evaluation import violations
from craftopt.knapsack import allocate
from craftopt.loads import FloatArray, IntArray, Loads
from craftopt.methods.allocation import MeasuredAllocation
from craftopt.methods.nominal import plan_nominal
from craftopt.methods.parallel import in_threads
from craftopt.methods.windowed import plan_fast
from craftopt.plan import Copies, Plan
from craftopt.problem import Problem
from craftopt.result import Limit, Options, Outcome
from craftopt.search.annealing import anneal
from craftopt.search.placement import place_layer
from craftopt.search.totals import equalise
from craftopt_formulations._search import kick_layer
from craftopt_formulations.whole import flags, layer_cost, plan_cost, solve_whole

# Deterministic seconds of CP-SAT for the whole plan, unless work_limit says otherwise.
WORK = 60
# What a layer gets at first; those still open then share what is left.
FIRST_WORK = 0.5
# Models up to that many flags are built: of a layer, and of the whole plan.
LAYER_FLAGS, WHOLE_FLAGS = 8192, 4096
# A layer or plan this close to its bound, relative, is proven.
CLOSED = 1e-10
# A layer this close is not searched further; one of a single window that is farther than that
# is annealed too, not only kicked.
ENOUGH, FAR = 5e-5, 1e-3
# Kicks of a layer of a single window.
KICKS = 1000
# Searches of a layer, and annealing steps per copy in each.
SEARCHES, STEPS_PER_COPY = 3, 1000
# First and last temperature, in mean GPU loads, and the most windows in play.
HOT, COLD, IN_PLAY = 1e-3, 1e-5, 256
# Layers placed while the nominal allocation is made, per layer.
PLACEMENTS = 8
# Allocations in turn with searches of the layers that they chose.
ROUNDS = 2
# Under free, a GPU may host this many copies of a layer above and below the average.
SLACK = 2
# Choices of replicas beyond the last one where any bound still gains.
BEYOND = 8

_log = logging.getLogger(__name__)


def plan_exact(problem: Problem, options: Options) -> Outcome:
    """Plan, and prove how far any plan could do better.

    Solves the problem that it is given: nominal for one window, windowed for several.
    ``work_limit`` counts CP-SAT's deterministic seconds, 60 by default; 0 leaves search and
    analytic bounds. The gap is logged at level INFO as it falls.
    """
    if problem.objective == "activated":
        return Outcome(message="exact knows no objective='activated'; fast plans for it")
    exact = _Exact(problem, options)
    steps = (exact.start, exact.search_layers, exact.prove_layers, exact.prove_whole)
    for number, step in enumerate(steps, start=1):
        if number > 1 and (exact.infeasible or exact.closed or exact.late):
            break
        step()
        exact.log(step.__name__.replace("_", " "))
        if options.progress is not None:
            options.progress(number / len(steps))
    return exact.outcome()


@dataclass(frozen=True, eq=False)
class _Layer:
    """What is known of a layer with so many replicas."""

    copies: Copies
    cost: float
    bound: float
    # Deterministic seconds that CP-SAT had for it; infinite where more would change nothing.
    work: float = 0.0

    @property
    def closed(self) -> bool:
        return self.cost - self.bound <= CLOSED * abs(self.cost)


class _Exact:
    """The best plan so far, the bound so far, and what is known of the layers."""

    def __init__(self, problem: Problem, options: Options) -> None:
        self.problem, self.seed, self.workers = problem, options.seed, options.threads
        self.deadline = options.deadline()
        self.left = float(WORK if options.work_limit is None else options.work_limit)
        self.group_of, self.nodes = problem.group_of, problem.group_nodes
        # Whether layers leave each other alone: else their sum is a relaxation, or no bound.
        self.level = problem.even_slots
        self.pinned = problem.max_moves is not None
        self.copies: Copies | None = None
        self.cost = math.inf
        self.bound = self._as_cost(whole_plan_bound(problem))
        self.choices = problem.replica_choices
        self.infeasible = False
        self.layers: dict[tuple[int, int], _Layer] = {}
        self.proofs = 0

    # --- the steps ------------------------------------------------------------------------

    def start(self) -> None:
        """Take the fast plan, and the previous one."""
        problem = self.problem
        plan = plan_nominal if problem.loads.windows == 1 else plan_fast
        afresh = problem.variant(max_moves=None)
        outcome = plan(afresh, Options(seed=self.seed, workers=self.workers))
        if outcome.plan is not None:
            self.offer(outcome.plan.copies)
        if problem.previous is not None:
            self.offer(problem.previous_copies)

    def search_layers(self) -> None:
        """Search every layer further, and allocate the budget by what was found."""
        if self.pinned or self.copies is None:
            return
        replicas = self._take_layers(self.copies)
        problem = self.problem
        every = np.arange(problem.loads.layers)
        if problem.slots == "uniform" or problem.loads.windows > 1:
            self._search(every, replicas)
            self._offer_layers(replicas)
            return
        # One window: bounds are close enough to choose the replicas by.
        step = problem.replica_step
        bounds = layer_costs(problem)
        beyond = problem.layer_replicas_limit // step + 1 - bounds.shape[1]
        bounds = np.pad(bounds, ((0, 0), (0, min(beyond, BEYOND))), mode="edge")
        allocation = MeasuredAllocation(
            bounds,
            step,
            self._measure,
            tolerance=ENOUGH,
            least=0,
            work=PLACEMENTS * problem.loads.layers,
        )
        known = np.flatnonzero(replicas // step < bounds.shape[1])
        allocation.measure(known, replicas[known] // step)
        for _ in range(ROUNDS):
            replicas = allocation.solve(problem.replicas)[0]
            self._offer_layers(replicas)
            if self.closed or not self._search(every, replicas):
                break
            allocation.measure(every, replicas // step)
        self._offer_layers(replicas)

    def prove_layers(self) -> None:
        """Give layers to CP-SAT, those first whose numbers of replicas the bound rests on."""
        problem = self.problem
        if self.pinned or flags(problem) > LAYER_FLAGS * problem.loads.layers:
            return
        reserve = self.left / 2 if self._whole_helps() else 0.0
        for work in (FIRST_WORK, 10 * FIRST_WORK, math.inf):
            proofs = self.proofs

            def sharpen(layers: IntArray, replicas: IntArray, work: float = work) -> FloatArray:
                return self._prove(layers, replicas, work, reserve)

            self.bound = max(self.bound, least_cost(problem, self.table, sharpen))
            self._offer_allocation()
            self.log("prove layers")
            if self.closed or self.late or self.proofs == proofs or self.left <= reserve:
                break

    def prove_whole(self) -> None:
        """Give all layers together to CP-SAT, where the rules that couple them leave a gap."""
        if not self._whole_helps() or self.left <= 0:
            return
        found = solve_whole(
            self.problem,
            hint=self.copies,
            bound=self.bound,
            work=self.left,
            seconds=self._seconds(),
        )
        self.left -= found.work
        self.proofs += 1
        self.infeasible = found.status == "infeasible" and self.copies is None
        if found.copies is not None:
            self.offer(found.copies)
        if found.bound is not None:
            self.bound = max(self.bound, found.bound)

    def outcome(self) -> Outcome:
        """Return the best plan and the bound."""
        if self.infeasible:
            return Outcome(message="CP-SAT proved that no plan keeps the rules", infeasible=True)
        limit: Limit | None = None if self.closed else "time" if self.late else "work"
        scale = self._as_cost(1.0)
        bound = self.bound / scale if scale else 1.0
        if self.copies is None:
            why = "found no plan within its work; raise work_limit"
            if self.pinned and not self._whole_helps():
                why = "the previous plan breaks the rules, and the model is too large to mend it"
            return Outcome(message=why, limit=limit, bound=bound)
        return Outcome(self._plan(self.copies), limit=limit, bound=bound)

    @cached_property
    def table(self) -> FloatArray:
        """Bounds of all layers for all numbers of replicas."""
        return shared_cost_table(self.problem)

    # --- the plan ---------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether plan and bound meet."""
        found = self.copies is not None
        return found and self.cost - self.bound <= CLOSED * abs(self.cost)

    @property
    def late(self) -> bool:
        """Whether the safety stop struck."""
        return time.monotonic() > self.deadline

    def offer(self, copies: Copies) -> None:
        """Take a plan if it keeps the rules and is better."""
        cost = plan_cost(self.problem, copies)
        if cost < self.cost and not violations(self._plan(copies), self.problem):
            self.copies, self.cost = copies, cost

    def log(self, step: str) -> None:
        """Say how far plan and bound are apart."""
        against = self.bound if self.problem.objective == "time" else self.cost
        gap = (self.cost - self.bound) / max(abs(against), 1e-300)
        _log.info("%s: gap %.6f %%, work left %.1f", step, 100 * gap, self.left)

    def _plan(self, copies: Copies) -> Plan:
        loads = self.problem.loads
        return Plan(copies, loads.layer_ids, self.problem.nodes, "exact", loads.digest)

    def _as_cost(self, objective: float) -> float:
        loads = self.problem.loads
        if self.problem.objective == "balancedness":
            return -objective * loads.windows * loads.layers
        return objective * float(loads.tokens.sum()) / self.problem.gpus

    def _whole_helps(self) -> bool:
        return (self.pinned or not self.level) and flags(self.problem) <= WHOLE_FLAGS

    def _seconds(self) -> float | None:
        left = self.deadline - time.monotonic()
        return None if math.isinf(left) else max(left, 0.01)

    def _offer_layers(self, replicas: IntArray) -> None:
        """Offer the plan of layers with some numbers of replicas."""
        copies = np.stack([self.layers[key].copies for key in enumerate(replicas.tolist())])
        weight = self.problem.loads.total().tokens[0]
        self.offer(equalise(copies, weight, self.nodes)[0])

    def _offer_allocation(self) -> None:
        """Offer the best plan of all layers known."""
        problem = self.problem
        step = problem.replica_step
        choices = max(r for _, r in self.layers) // step + 1
        table = np.full((problem.loads.layers, choices), np.inf)
        for (layer, r), known in self.layers.items():
            table[layer, r // step] = known.cost
        if problem.slots == "uniform":  # the same in all layers
            sums = table.sum(axis=0)
            if np.isfinite(sums.min()):
                self._offer_layers(np.full(problem.loads.layers, sums.argmin() * step))
            return
        replicas, cost = allocate(table, problem.replicas, step)
        if np.isfinite(cost):
            self._offer_layers(replicas)

    # --- layers -----------------------------------------------------------------------------

    def _take_layers(self, copies: Copies) -> IntArray:
        """Know the layers of a plan; return their replicas."""
        replicas: IntArray = copies.sum(axis=(1, 2), dtype=np.int64) - self.problem.loads.experts
        copies = copies.copy()  # numba compiles another annealing for what cannot be written
        for layer, r in enumerate(replicas.tolist()):
            cost = layer_cost(self.problem, layer, copies[layer])
            self.layers[layer, r] = _Layer(copies[layer], cost, self._layer_bound(layer, r))
        return replicas

    def _measure(self, layers: IntArray, choices: IntArray) -> FloatArray:
        """Place layers not yet known; return the costs of all."""
        replicas = choices * self.problem.replica_step
        keys = list(zip(layers.tolist(), replicas.tolist(), strict=True))
        fresh = [key for key in keys if key not in self.layers]
        found = in_threads(lambda i: self._place(*fresh[i]), len(fresh), self.workers)
        self.layers.update(zip(fresh, found, strict=True))
        return np.array([self.layers[key].cost for key in keys])

    def _place(self, layer: int, replicas: int) -> _Layer:
        """Place a layer for the mean of its windows."""
        problem = self.problem
        tokens = problem.loads.tokens[:, layer]
        copies, _ = place_layer(
            tokens.sum(axis=0),
            replicas,
            self.group_of,
            self.nodes,
            problem.gpus,
            problem.copies_limit,
            0 if self.level else SLACK,
            ENOUGH,
        )
        cost = layer_cost(problem, layer, copies)
        return _Layer(copies, cost, self._layer_bound(layer, replicas))

    def _layer_bound(self, layer: int, replicas: int) -> float:
        """Bound a layer's cost with exactly so many replicas, analytically."""
        problem = self.problem
        column = int(np.searchsorted(self.choices, replicas))
        bound = float(self.table[layer, column])
        if not self.level:
            return bound
        return max(bound, float(even_costs(problem, np.array([layer]), np.array([replicas]))[0]))

    def _search(self, layers: IntArray, replicas: IntArray) -> bool:
        """Search layers further; return whether any got better."""
        keys = list(zip(layers.tolist(), replicas.tolist(), strict=True))
        found = in_threads(lambda i: self._anneal(*keys[i]), len(keys), self.workers)
        better = any(new.cost < self.layers[key].cost for key, new in zip(keys, found, strict=True))
        self.layers.update(zip(keys, found, strict=True))
        return better

    def _anneal(self, layer: int, replicas: int) -> _Layer:
        """Anneal a layer from its best placement, with several seeds."""
        problem, known = self.problem, self.layers[layer, replicas]
        tokens = problem.loads.tokens[:, layer]
        mean = tokens.sum(axis=1) / problem.gpus
        used = mean > 0
        if not used.any():
            return known
        scaled = np.ascontiguousarray((tokens[used] / mean[used, np.newaxis]).T)
        weight = mean[used] if problem.objective == "time" else np.ones(int(used.sum()))
        weight = weight / weight.sum()
        total = problem.loads.experts + replicas
        floor, ceil = total // problem.gpus, -(-total // problem.gpus)
        if not self.level:
            floor, ceil = max(floor - SLACK, 0), min(ceil + SLACK, problem.loads.experts)
        for turn in range(SEARCHES):
            gap = (known.cost - known.bound) / max(abs(known.bound), 1e-300)
            if gap <= ENOUGH or self.late:
                break
            seed = (self.seed * 1_000_003 + layer * 1009 + replicas * 31 + turn) % 2**31
            copies = known.copies
            alone = problem.loads.windows == 1
            if not alone or gap > FAR:
                node_of = copies.reshape(copies.shape[0], self.nodes, -1).any(axis=2)
                copies = anneal(
                    scaled,
                    weight,
                    copies,
                    self.nodes,
                    node_of.argmax(axis=1),
                    floor,
                    ceil,
                    problem.copies_limit,
                    STEPS_PER_COPY * total,
                    HOT,
                    COLD,
                    seed,
                    IN_PLAY,
                )
            elif turn:
                break  # kicks alone had their turn
            if alone:
                copies = self._kick(tokens[0], copies, known.bound, seed)
            cost = layer_cost(problem, layer, copies)
            if cost < known.cost:
                known = replace(known, copies=copies, cost=cost)
        return known

    def _kick(self, weight: FloatArray, copies: Copies, bound: float, seed: int) -> Copies:
        """Exchange copies at random and descend, node by node."""
        share = weight / copies.sum(axis=1)
        target = float(weight.sum()) / self.problem.gpus
        if self.problem.objective == "time":
            target = max(target, bound)
        width = copies.shape[1] // self.nodes
        parts = [
            kick_layer(
                share,
                np.ascontiguousarray(copies[:, g : g + width]),
                target * (1.0 + ENOUGH),
                KICKS,
                seed,
            )
            for g in range(0, copies.shape[1], width)
        ]
        return np.concatenate(parts, axis=1)

    def _prove(
        self, layers: IntArray, replicas: IntArray, work: float, reserve: float
    ) -> FloatArray:
        """Give layers that are open to CP-SAT; return what is proven of all."""
        keys = list(zip(layers.tolist(), replicas.tolist(), strict=True))
        self._measure(layers, replicas // self.problem.replica_step)
        known = [(key, self.layers[key]) for key in keys]
        open_ = [key for key, layer in known if not layer.closed and layer.work < work]
        each = min(work, (self.left - reserve) / max(len(open_), 1))
        if open_ and each > 0 and not self.late:
            found = in_threads(lambda i: self._solve(*open_[i], each), len(open_), self.workers)
            for key, (layer, spent) in zip(open_, found, strict=True):
                self.layers[key] = layer
                self.left -= spent
                self.proofs += 1
        return np.array([self.layers[key].bound for key in keys])

    def _solve(self, layer: int, replicas: int, work: float) -> tuple[_Layer, float]:
        """Give one layer to CP-SAT; return what is known then, and the work that it took."""
        problem, known = self.problem, self.layers[layer, replicas]
        alone = problem.replace(
            loads=Loads(problem.loads.tokens[:, [layer]]),
            replicas=replicas,
            slots="even",
            previous=None,
        )
        found = solve_whole(
            alone,
            exactly=True,
            loose=not self.level,
            hint=known.copies[np.newaxis],
            bound=known.bound,
            work=work,
            seconds=self._seconds(),
        )
        bound = known.bound if found.bound is None else max(known.bound, found.bound)
        copies, cost = known.copies, known.cost
        if found.copies is not None:
            reached = layer_cost(problem, layer, found.copies[0])
            if reached < cost:
                copies, cost = found.copies[0], reached
        done = math.inf if found.status == "optimal" else work
        return _Layer(copies, cost, bound, done), found.work
