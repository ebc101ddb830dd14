"""The method ``exact``: search, then proof, layer by layer and for the plan as a whole.

1. Start from the fast plan.
2. Layers with given numbers of replicas are problems of their own (`_layers`). Each is searched
   further until it is at its bound, and then given to CP-SAT with what was found as a hint.
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
from dataclasses import replace
from functools import partial

import numpy as np

from craftopt.bounds import least_cost, whole_plan_bound
from craftopt.evaluation import objective_value
from craftopt.loads import FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.planners.allocation import MeasuredAllocation, allocation_bounds
from craftopt.planners.fast import plan_fast
from craftopt.problem import Problem
from craftopt.result import Limit, Options, Outcome, also_planned
from craftopt.rules import violations
from craftopt_formulations._layers import CLOSED, ENOUGH, SMALL, KnownLayers
from craftopt_formulations.whole import flags, layer_flags, plan_cost, solve_whole

# Deterministic seconds of CP-SAT for the whole plan, unless work_limit says otherwise.
WORK = 60
# What a layer gets at first; those still open then share what is left.
FIRST_WORK = 0.5
# What a layer with several windows is searched for before it is given to CP-SAT, and again once
# that has had its first work. One that is not small is then searched with all that is left: what
# CP-SAT proves of such layers it has proven by then.
IMPROVE, IMPROVE_AGAIN = 0.5, 10.0
# The largest models that are built, in flags: of a layer, and of the whole plan.
LAYER_FLAGS, WHOLE_FLAGS = 8192, 4096
# Layers placed while the nominal allocation is made, per layer.
PLACEMENTS = 8
# Rounds of an allocation and searches of the layers that it chose.
ROUNDS = 2

_log = logging.getLogger(__name__)


def plan_exact(problem: Problem, options: Options) -> Outcome:
    """Plan, and prove how far any plan could do better.

    Solves the problem that it is given: nominal for one window, windowed for several.
    ``work_limit`` counts CP-SAT's deterministic seconds, 60 by default; 0 leaves search and
    analytic bounds. The gap is logged at level INFO as it falls. Where a gap is left that a plan
    under the next stricter slot rule could close in part, that is planned too, with as much work
    again, and the better plan is taken; the message says so.
    """
    return _plan_with_stricter(problem, options, logged=True)


def _plan_with_stricter(problem: Problem, options: Options, logged: bool) -> Outcome:
    deadline = options.deadline()
    outcome = _plan(problem, options, logged)
    stricter = _stricter(problem)
    left = deadline - time.monotonic()
    if outcome.plan is None or outcome.limit is None or stricter is None or left <= 0:
        return outcome
    order, value = problem.goal.order, objective_value(outcome.plan, problem)
    if order(whole_plan_bound(stricter)) >= order(value):
        return outcome
    start = time.perf_counter()
    limit = None if math.isinf(left) else left
    other = _plan_with_stricter(
        stricter, replace(options, time_limit=limit, progress=None), logged=False
    )
    seconds = time.perf_counter() - start
    better = other.plan is not None and order(objective_value(other.plan, problem)) < order(value)
    taken = "its plan is better and taken" if better else "its plan is no better"
    message = f"{also_planned(stricter.slots, seconds)}: {taken}"
    return replace(outcome, plan=other.plan if better else outcome.plan, message=message)


def _stricter(problem: Problem) -> Problem | None:
    """Put the problem under the next stricter slot rule, if it has plans there."""
    if problem.max_moves is not None or problem.slots == "uniform":
        return None
    if not problem.even_slots:
        return problem.variant(slots="even")
    return problem.variant(slots="uniform") if problem.uniform_choices.size else None


def _plan(problem: Problem, options: Options, logged: bool) -> Outcome:
    exact = _Exact(problem, options, logged)
    steps = (
        exact.start,
        exact.search_layers,
        exact.improve_layers,
        exact.prove_layers,
        exact.prove_whole,
    )
    for number, step in enumerate(steps, start=1):
        if number > 1 and (exact.infeasible or exact.closed or exact.layers.expired):
            break
        step()
        exact.log(step.__name__.replace("_", " "))
        if options.progress is not None:
            options.progress(number / len(steps))
    return exact.outcome()


class _Exact:
    """The best plan so far, the bound so far, and what is known of the layers."""

    def __init__(self, problem: Problem, options: Options, logged: bool) -> None:
        self.problem, self.logged = problem, logged
        self.layers = KnownLayers(problem, replace(options, progress=None))
        self.left = float(WORK if options.work_limit is None else options.work_limit)
        self.pinned = problem.max_moves is not None
        self.copies: Copies | None = None
        self.cost = math.inf
        self.bound = problem.goal.cost(whole_plan_bound(problem), problem.loads, problem.gpus)
        self.infeasible = False
        self.proofs = 0

    # --- the steps ------------------------------------------------------------------------

    def start(self) -> None:
        """Take the fast plan, and the previous one."""
        problem, options = self.problem, self.layers.options
        free = problem.variant(max_moves=None)
        outcome = plan_fast(free, Options(seed=options.seed, workers=options.workers))
        assert outcome.plan is not None
        self.offer(outcome.plan.copies)
        if problem.previous is not None:
            self.offer(problem.previous_copies)

    def search_layers(self) -> None:
        """Search every layer further, and allocate the budget by what was found."""
        if self.pinned or self.copies is None:
            return
        problem, layers = self.problem, self.layers
        replicas = layers.take(self.copies)
        every = np.arange(problem.loads.layers)
        if problem.slots == "uniform" or problem.loads.windows > 1:
            layers.search(every, replicas)
            self.offer(layers.whole(replicas))
            return
        # One window: bounds are close enough to choose the replicas by.
        step = problem.replica_step
        allocation = MeasuredAllocation(
            allocation_bounds(problem),
            step,
            layers.measure,
            tolerance=ENOUGH,
            least=0,
            work=PLACEMENTS * problem.loads.layers,
        )
        allocation.measure_known(replicas)
        for _ in range(ROUNDS):
            replicas = allocation.solve(problem.replicas)[0]
            self.offer(layers.whole(replicas))
            if self.closed or not layers.search(every, replicas):
                break
            allocation.measure(every, replicas // step)
        self.offer(layers.whole(replicas))

    def improve_layers(self) -> None:
        """Search layers with several windows at length, where CP-SAT cannot with all the work."""
        self._improve(IMPROVE if self._fits(LAYER_FLAGS) else math.inf)

    def _improve(self, each: float, reserve: float = 0.0) -> None:
        """Search open layers with several windows, with so much work for each."""
        problem, layers = self.problem, self.layers
        if self.pinned or self.copies is None or problem.loads.windows == 1:
            return
        replicas, _ = layers.allocation()
        still = layers.open(np.arange(replicas.size), replicas, math.inf)
        if still:
            self.left -= layers.improve(replicas, min(self.left - reserve, each * len(still)))
            self._offer_allocation()

    def prove_layers(self) -> None:
        """Give layers to CP-SAT, those first whose numbers of replicas the bound rests on."""
        problem = self.problem
        if self.pinned or not self._fits(LAYER_FLAGS):
            return
        reserve = self.left / 2 if self._whole_helps() else 0.0
        for work in (FIRST_WORK, 10 * FIRST_WORK, math.inf):
            proofs = self.proofs
            if math.isinf(work):
                self._improve(IMPROVE_AGAIN if self._fits(SMALL) else math.inf, reserve)

            def sharpen(layers: IntArray, replicas: IntArray, work: float = work) -> FloatArray:
                return self._prove(layers, replicas, work, reserve)

            self.bound = max(self.bound, least_cost(problem, self.layers.table, sharpen))
            self._offer_allocation()
            self.log("prove layers")
            done = self.closed or self.layers.expired or self.left <= reserve
            if done or self.proofs == proofs:
                break

    def prove_whole(self) -> None:
        """Give all layers together to CP-SAT, where the rules that couple them leave a gap."""
        if not self._whole_helps() or self.left <= 0:
            return
        solve = partial(
            solve_whole,
            hint=self.copies,
            bound=self.bound,
            work=self.left,
            seconds=self.layers.solver_seconds,
        )
        found = self.layers.each(solve, [self.problem])[0]
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
        problem = self.problem
        limit: Limit | None = None if self.closed else "time" if self.layers.expired else "work"
        scale = problem.goal.cost(1.0, problem.loads, problem.gpus)
        bound = self.bound / scale if scale else 1.0
        if self.copies is None:
            why = "found no plan within its work; raise work_limit"
            if self.pinned and not self._whole_helps():
                why = "the previous plan breaks the rules, and the model is too large to mend it"
            return Outcome(message=why, limit=limit, bound=bound)
        return Outcome(problem.plan(self.copies, "exact"), limit=limit, bound=bound)

    # --- plan and bound -----------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether plan and bound meet."""
        found = self.copies is not None
        return found and self.cost - self.bound <= CLOSED * abs(self.cost)

    def offer(self, copies: Copies) -> None:
        """Take a plan if it keeps the rules and is better."""
        cost = plan_cost(self.problem, copies)
        plan = self.problem.plan(copies, "exact")
        if cost < self.cost and not violations(plan, self.problem):
            self.copies, self.cost = copies, cost

    def log(self, step: str) -> None:
        """Log how far plan and bound are apart."""
        if not self.logged:
            return
        against = self.cost if self.problem.goal.maximised else self.bound
        gap = (self.cost - self.bound) / max(abs(against), 1e-300)
        _log.info("%s: gap %.6f %%, work left %.1f", step, 100 * gap, self.left)

    def _fits(self, most: int) -> bool:
        """Whether the model of a layer has at most so many flags."""
        return layer_flags(self.problem) <= most

    def _whole_helps(self) -> bool:
        # Where layers decompose, summing them is no relaxation.
        decompose = self.problem.even_slots and not self.pinned
        return not decompose and flags(self.problem) <= WHOLE_FLAGS

    def _offer_allocation(self) -> None:
        """Offer the best plan of all layers known."""
        replicas, cost = self.layers.allocation()
        if np.isfinite(cost):
            self.offer(self.layers.whole(replicas))

    def _prove(
        self, layers: IntArray, replicas: IntArray, work: float, reserve: float
    ) -> FloatArray:
        """Give layers that are open to CP-SAT; return what is proven of all."""
        self.layers.measure(layers, replicas // self.problem.replica_step)
        keys = self.layers.open(layers, replicas, work)
        each = min(work, (self.left - reserve) / max(len(keys), 1))
        if keys and each > 0 and not self.layers.expired:
            for spent in self.layers.prove(keys, each):
                self.left -= spent
                self.proofs += 1
        return self.layers.bounds(layers, replicas)
