"""The method ``nominal``: a near-optimal plan for the summed load, in milliseconds.

Bound curves, knapsack over layers, greedy replication, longest-processing-time placement,
exchanges on the fullest GPU, measured values back into the knapsack, equal totals by
relabelling.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np

from craftopt.bounds import layer_costs
from craftopt.evaluation import layer_gpu_loads, objective_value
from craftopt.knapsack import allocate
from craftopt.loads import FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.planners.allocation import MeasuredAllocation, allocation_bounds
from craftopt.planners.layers import Key, Layers, layer_keys
from craftopt.problem import Problem
from craftopt.result import Limit, Options, Outcome, also_planned
from craftopt.search.descent import improve_layer

# A layer this close to its bound, relative, is done; FINE where it is to be no worse than with
# fewer replicas.
TOLERANCE, FINE = 1e-4, 1e-5
# An allocation is done this close, relative, to what any other could reach ...
ALLOCATION_TOLERANCE = 3e-4
# ... but only after this many placements, and at the latest after this many more per layer.
LEAST_PLACEMENTS = 300
PLACEMENTS = 8
# Rounds in which budget that the sum has no use for is offered to the layers.
SPEND_ROUNDS = 3
# What their sum may lose by it, relative, where there are several windows.
SPEND_LOSS = 1e-3
# Costs this close, relative, are equal.
NOISE = 1e-9


def plan_nominal(problem: Problem, options: Options) -> Outcome:
    """Plan for the sum of the windows.

    Nothing is drawn at random and all is done in moments: ``seed``, ``time_limit`` and
    ``progress`` change nothing.
    ``work_limit`` counts placements of one layer. A previous plan is a start: a layer keeps it,
    improved, where a new placement is no better. For the objective activated it plans for time.
    """
    found = nominal_copies(problem, options)
    used = int(found.copies.sum(dtype=np.int64)) - problem.loads.layers * problem.loads.experts
    left = problem.replicas - problem.unused_replicas - used
    notes = [f"{left} replicas are left: no use for them was found on the summed load"] * (left > 0)
    notes += [also_planned(rule, seconds) for rule, seconds in found.also.items()]
    return Outcome(problem.plan(found.copies, "nominal"), "; ".join(notes), found.limit)


class Found(NamedTuple):
    """Copies of a plan, what stopped the search, and seconds by stricter slot rule planned too."""

    copies: Copies
    limit: Limit | None
    also: dict[str, float]


def nominal_copies(problem: Problem, options: Options) -> Found:
    """Find the copies of `plan_nominal`.

    No plan is worse than under a stricter slot rule: ``free`` is tried against ``even``, and that
    against what ``uniform`` would fill, as long as the stricter rule could win.
    """
    # The sum of batches activates everything.
    objective = problem.objective if problem.goal.even_dispatch else "time"
    total = problem.variant(loads=problem.loads.total(), objective=objective)
    work = options.work_limit
    if work is None:
        work = LEAST_PLACEMENTS + PLACEMENTS * total.loads.layers
    workers = options.workers if isinstance(options.workers, int) else None  # it takes moments
    layers = _Placements(total, Options(workers=workers))
    if problem.slots == "uniform":
        replicas, stopped = _fill_uniform(layers, work)
        return Found(layers.copies(replicas)[0], "work" if stopped else None, {})
    found = (_allocate if total.even_slots else _allocate_free)(layers, work)
    copies, several = found.copies, problem.loads.windows > 1
    # One window that is solved to its end has no use for what is left.
    if found.spent < work and (several or found.spent >= LEAST_PLACEMENTS):
        copies = _spend(found.layers, copies, found.cost, SPEND_LOSS if several else TOLERANCE)
    return Found(copies, "work" if found.stopped else None, layers.also)


class _Allocated(NamedTuple):
    """A plan for the sum; its cost is infinite where none better than a cutoff was found."""

    layers: _Placements
    copies: Copies
    cost: float
    spent: int
    stopped: bool


def _allocate_free(free: _Placements, work: int) -> _Allocated:
    """Allocate where slots are free, with no worse a result than where they are even.

    Even slots that come close to what any plan could reach are taken. Elsewhere they are planned
    as long as they could beat the plan with free ones.
    """
    least = allocate(layer_costs(free.problem), free.problem.replicas, free.problem.replica_step)[1]
    even = _Placements(free.problem.variant(slots="even"), free.options)

    def try_even(cutoff: float) -> _Allocated:
        with free.timed("even"):
            return _allocate(even, work, cutoff)

    found = try_even(least + ALLOCATION_TOLERANCE * abs(least))
    if found.cost == np.inf:
        best = _allocate(free, work)
        other = try_even(best.cost)
        found = other if other.cost <= best.cost else best
    return found


def _allocate(layers: _Placements, work: int, cutoff: float = np.inf) -> _Allocated:
    """Allocate the budget over the layers, place them, and equalise the GPUs' totals.

    Where equal totals need repairs that cost something, smaller budgets are tried as well, as
    long as they could do better: so more budget is never worse. Stops once no plan can have a
    cost of ``cutoff`` or less.
    """
    problem = layers.problem
    step = problem.replica_step
    allocation = MeasuredAllocation(
        allocation_bounds(problem),
        step,
        layers.measure,
        tolerance=ALLOCATION_TOLERANCE,
        least=LEAST_PLACEMENTS,
        work=work,
    )
    allocation.measure_known(layers.previous)
    uniform = _uniform_bound(layers)
    least = allocate(layer_costs(problem), problem.replicas, step)[1]
    if uniform <= least + NOISE * abs(least):
        _measure_uniform(layers, allocation, work)
        uniform = np.inf
    best, best_cost, stopped = np.zeros(0, dtype=np.uint8), np.inf, False
    budget = problem.replicas
    while budget >= 0:
        replicas, cost, ran_out = allocation.solve(budget, cutoff)
        if cost > cutoff:
            break
        if uniform < cost:
            _measure_uniform(layers, allocation, work)
            uniform = np.inf
            continue
        stopped |= ran_out
        if cost >= best_cost:
            break
        copies, repaired = layers.copies(replicas)
        reached = layers.cost(copies) if repaired else cost
        if reached < best_cost:
            best, best_cost = copies, reached
        if not repaired or stopped:
            break
        budget = int(replicas.sum()) - step  # budgets between the two have the same allocation
    previous = layers.improved_previous()
    if previous is not None and layers.cost(previous) < best_cost:
        best, best_cost = previous, layers.cost(previous)
    return _Allocated(layers, best, best_cost, allocation.spent, stopped)


def _measure_uniform(layers: _Placements, allocation: MeasuredAllocation, work: int) -> None:
    """Put what uniform slots reach into the table of an allocation."""
    with layers.timed("uniform"):
        allocation.measure_known(_fill_uniform(layers, work)[0])


def _uniform_bound(layers: _Placements) -> float:
    """Bound the cost of uniform slots, infinite where they are no choice."""
    problem = layers.problem
    if layers.slack or not problem.uniform_choices.size:
        return np.inf
    return float(layer_costs(problem.variant(slots="uniform")).sum())


def _spend(layers: _Placements, copies: Copies, cost: float, loss: float) -> Copies:
    """Offer budget that the sum has no use for to the layers with the fewest replicas.

    Copies that cost the sum nothing, within a relative ``loss``, still help its windows, which
    differ more than their sum says.
    """
    problem = layers.problem
    step = problem.replica_step
    replicas = copies.sum(axis=(1, 2), dtype=np.int64) - problem.loads.experts
    chosen = copies
    for _ in range(SPEND_ROUNDS):
        left = problem.replicas - int(replicas.sum())
        level = _level(replicas, left, problem.layer_replicas_limit) // step * step
        fewer = np.flatnonzero(level >= replicas + step)
        if not fewer.size:
            break
        before = layers.costs(fewer, replicas[fewer])
        after = layers.measure(fewer, level[fewer] // step, loss)
        kept = fewer[after <= before + loss * np.abs(before)]
        replicas[kept] = level[kept]
        spent, repaired = layers.copies(replicas)
        if repaired and layers.cost(spent) > cost + loss * abs(cost):
            break
        chosen = spent
    return chosen


def _level(replicas: IntArray, left: int, limit: int) -> IntArray:
    """Fill up the lowest counts to one level with ``left`` more, none beyond the limit."""
    level = int(replicas.min())
    while level < limit and int(np.maximum(level + 1 - replicas, 0).sum()) <= left:
        level += 1
    return np.maximum(replicas, level)


def _fill_uniform(layers: _Placements, work: int) -> tuple[IntArray, bool]:
    """Fill the slots that the budget buys, or fewer where that is better: replicas [layers]."""
    problem = layers.problem
    every = np.arange(problem.loads.layers)

    def cost(replicas: int, tolerance: float = TOLERANCE) -> float:
        choices = np.full(every.size, replicas // problem.replica_step)
        return float(layers.measure(every, choices, tolerance).sum())

    top, *others = problem.uniform_choices[::-1].tolist()
    costs, stopped = {top: cost(top)}, False
    for replicas in others:
        least = min(costs.values())
        fewer = problem.variant(slots="uniform", replicas=replicas * every.size)
        if layer_costs(fewer).sum() >= least - NOISE * abs(least):
            break  # no plan with so few slots is better, nor with fewer
        if work < (len(costs) + 1) * every.size:
            stopped = True
            break
        costs[replicas] = cost(replicas)
    # From few to many: more slots are no worse, if need be after a finer search.
    best = min(costs)
    for replicas in sorted(costs):
        if costs[replicas] > costs[best]:
            costs[replicas] = cost(replicas, FINE)
        if costs[replicas] <= costs[best]:
            best = replicas
    return np.full(every.size, best), stopped


class _Placements(Layers):
    """Place layers on demand, and remember what came out."""

    def __init__(self, problem: Problem, options: Options) -> None:
        super().__init__(problem, options, uneven=True)
        self.also: dict[str, float] = {}
        self._placed: dict[Key, Copies] = {}
        self._costs: dict[Key, float] = {}

    @contextmanager
    def timed(self, rule: str) -> Iterator[None]:
        """Count the seconds that a stricter slot rule takes."""
        start = time.perf_counter()
        yield
        self.also[rule] = self.also.get(rule, 0.0) + time.perf_counter() - start

    def copies(self, replicas: IntArray) -> tuple[Copies, bool]:
        """Make a plan of the placements of all layers; see `Layers.join`."""
        return self.join([self._placed[key] for key in enumerate(replicas.tolist())])

    def cost(self, copies: Copies) -> float:
        """Compute the summed cost of a whole plan, in the unit of `measure`."""
        problem = self.problem
        value = objective_value(problem.plan(copies, "nominal"), problem)
        return problem.goal.cost(value, problem.loads, problem.gpus)

    def measure(
        self, layers: IntArray, choices: IntArray, tolerance: float = TOLERANCE
    ) -> FloatArray:
        """Place layers with ``choices * replica_step`` replicas; return their costs."""
        keys = layer_keys(layers, choices * self.problem.replica_step)
        fresh = [key for key in keys if key not in self._costs or tolerance < TOLERANCE]
        placed = self.each(partial(self._place, tolerance=tolerance), *zip(*fresh, strict=True))
        for key, (copies, largest) in zip(fresh, placed, strict=True):
            mean = self.total[key[0] : key[0] + 1].sum(axis=1) / self.problem.gpus
            cost = float(self.problem.goal.costs(np.array([largest]), mean)[0])
            if cost < self._costs.get(key, np.inf):
                self._placed[key], self._costs[key] = copies, cost
        return np.array([self._costs[key] for key in keys])

    def costs(self, layers: IntArray, replicas: IntArray) -> FloatArray:
        """Look up what `measure` returned."""
        return np.array([self._costs[key] for key in layer_keys(layers, replicas)])

    def improved_previous(self) -> Copies | None:
        """Return the previous plan, improved, where it keeps the rules as it is."""
        if self.problem.previous is None or (self.previous < 0).any():
            return None
        totals = self.problem.previous_copies.sum(axis=(0, 1), dtype=np.int64)
        if self.previous.sum() > self.problem.replicas or np.ptp(totals) > 1:
            return None
        layers = range(self.problem.loads.layers)
        return np.stack([self._improve_previous(layer)[0] for layer in layers])

    def _place(self, layer: int, replicas: int, tolerance: float) -> tuple[Copies, float]:
        """Place a layer, or improve the previous plan's where that is no worse."""
        placed, largest = self.place(self.total[layer], replicas, tolerance)
        if self.previous[layer] == replicas:
            kept, reached = self._improve_previous(layer)
            mean = float(self.total[layer].sum()) / self.problem.gpus
            if reached <= max(largest, mean * (1.0 + TOLERANCE)):
                return kept, reached
        return placed, largest

    def _improve_previous(self, layer: int) -> tuple[Copies, float]:
        """Improve the previous plan's placement of a layer, node by node."""
        copies = self.problem.previous_copies[layer].copy()
        weight = self.total[layer]
        share = weight / copies.sum(axis=1)
        # Stop where a new placement stops, so that a plan is kept as it is.
        load = layer_gpu_loads(weight[np.newaxis], copies)[0]
        by_node = load.reshape(self.problem.group_nodes, -1)
        mean = by_node.sum(axis=1) / by_node.shape[1]
        target = max(float(share.max()), float(mean.max())) * (1.0 + TOLERANCE)
        copies = self.by_node(copies, lambda part: improve_layer(share, part, target))
        load = layer_gpu_loads(weight[np.newaxis], copies)[0]
        return copies, float(load.max())
