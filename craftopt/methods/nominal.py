"""The method ``nominal``: a near-optimal plan for the summed load, in milliseconds.

Bound curves, knapsack over layers, greedy replication, longest-processing-time placement,
exchanges on the fullest GPU, measured values back into the knapsack, equal totals by
relabelling.
"""

from __future__ import annotations

import numpy as np

from craftopt.bounds import layer_costs
from craftopt.evaluation import layer_gpu_loads, objective_value
from craftopt.loads import FloatArray, IntArray
from craftopt.methods.allocation import MeasuredAllocation
from craftopt.methods.parallel import in_threads
from craftopt.methods.previous import usable_replicas
from craftopt.plan import Copies, Plan
from craftopt.problem import Problem
from craftopt.result import Options, Outcome
from craftopt.search.descent import improve_layer
from craftopt.search.placement import Layout, place_layer
from craftopt.search.totals import equalise

# A layer this close to its bound, relative, is done.
TOLERANCE = 1e-4
# Under free, a GPU may host this many copies of a layer above the average.
SLACK = 2
# An allocation is done this close, relative, to what any other could reach ...
ALLOCATION_TOLERANCE = 3e-4
# ... but not before that many placements, and at the latest after that many more per layer.
LEAST_PLACEMENTS = 300
PLACEMENTS = 8
# Rounds in which budget that the sum has no use for is offered to the layers.
SPEND_ROUNDS = 3
# Costs this close, relative, are equal.
NOISE = 1e-9
# Choices of replicas beyond the last one where any bound still gains.
BEYOND = 8


def plan_nominal(problem: Problem, options: Options) -> Outcome:
    """Plan for the sum of the windows.

    Nothing is drawn at random and all is done in moments: ``seed``, ``time_limit`` and
    ``progress`` change nothing.
    ``work_limit`` counts placements of one layer. A previous plan is a start: a layer keeps it,
    improved, where a fresh placement is no better. For the objective activated it plans for time.
    """
    if problem.max_moves is not None:
        return Outcome(message="nominal plans afresh and cannot keep max_moves")
    # The sum of batches activates everything.
    objective = "time" if problem.objective == "activated" else problem.objective
    total = problem.variant(loads=problem.loads.total(), objective=objective)
    work = options.work_limit
    if work is None:
        work = LEAST_PLACEMENTS + PLACEMENTS * total.loads.layers
    layers = _Layers(total, options.threads)
    if problem.slots == "uniform":
        copies, stopped = _fill_uniform(layers, work)
    else:
        copies, stopped = _allocate(layers, work)
    plan = Plan(copies, problem.loads.layer_ids, problem.nodes, "nominal", problem.loads.digest)
    return Outcome(plan, limit="work" if stopped else None)


def _allocate(layers: _Layers, work: int) -> tuple[Copies, bool]:
    """Allocate the budget over the layers, place them, and equalise the GPUs' totals.

    Where equal totals need repairs that cost something, smaller budgets are tried as well, as
    long as they could do better: so more budget is never worse.
    """
    problem = layers.problem
    step = problem.replica_step
    bounds = layer_costs(problem)
    beyond = problem.layer_replicas_limit // step + 1 - bounds.shape[1]
    bounds = np.pad(bounds, ((0, 0), (0, min(beyond, BEYOND))), mode="edge")
    allocation = MeasuredAllocation(
        bounds,
        step,
        layers.measure,
        tolerance=ALLOCATION_TOLERANCE,
        least=LEAST_PLACEMENTS,
        work=work,
    )
    choices = layers.previous // step
    kept = np.flatnonzero((choices >= 0) & (choices < bounds.shape[1]))
    if kept.size:
        allocation.measure(kept, choices[kept])
    best, best_cost, stopped = np.zeros(0, dtype=np.uint8), np.inf, False
    repaired = False
    budget = problem.replicas
    while budget >= 0:
        replicas, cost, ran_out = allocation.solve(budget)
        stopped |= ran_out
        if cost >= best_cost:
            break
        copies, repaired = equalise(layers.copies(replicas), layers.weight, layers.nodes)
        reached = layers.cost(copies) if repaired else cost
        if reached < best_cost:
            best, best_cost = copies, reached
        if not repaired or stopped:
            break
        budget = int(replicas.sum()) - step  # budgets between the two have the same allocation
    start = layers.start()
    if start is not None and layers.cost(start) < best_cost:
        return start, stopped
    if repaired and layers.slack:
        # Where equal totals cost something, the layout that needs no repairs may be better.
        level, ran_out = _allocate(_Layers(problem.replace(slots="even"), layers.workers), work)
        stopped |= ran_out
        if layers.cost(level) < best_cost:
            return level, stopped
    if LEAST_PLACEMENTS <= allocation.spent < work:
        best = _spend(layers, best, best_cost)
    return best, stopped


def _spend(layers: _Layers, copies: Copies, cost: float) -> Copies:
    """Offer budget that the sum has no use for to the layers with the fewest replicas.

    Copies that cost the sum nothing, within the tolerance, still help its windows, which differ
    more than their sum says.
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
        after = layers.measure(fewer, level[fewer] // step)
        kept = fewer[after <= before + TOLERANCE * np.abs(before)]
        replicas[kept] = level[kept]
        spent, repaired = equalise(layers.copies(replicas), layers.weight, layers.nodes)
        if repaired and layers.cost(spent) > cost + TOLERANCE * abs(cost):
            break
        chosen = spent
    return chosen


def _level(replicas: IntArray, left: int, limit: int) -> IntArray:
    """Fill up the lowest counts to one level with ``left`` more, none beyond the limit."""
    level = int(replicas.min())
    while level < limit and int(np.maximum(level + 1 - replicas, 0).sum()) <= left:
        level += 1
    return np.maximum(replicas, level)


def _fill_uniform(layers: _Layers, work: int) -> tuple[Copies, bool]:
    """Fill the slots that the budget buys, or fewer where that is better."""
    problem = layers.problem
    count, experts = problem.loads.layers, problem.loads.experts
    every = np.arange(count)
    best, best_cost = np.zeros(0, dtype=np.int64), np.inf
    stopped = False
    for slots in range(problem.uniform_slots, -(-experts // problem.gpus) - 1, -1):
        replicas = np.full(count, slots * problem.gpus - experts)
        if best.size:
            fewer = problem.replace(replicas=int(replicas.sum()))
            if layer_costs(fewer).sum() >= best_cost - NOISE * abs(best_cost):
                break  # no plan with so few slots is better, nor with fewer
            if work < count:
                stopped = True
                break
        cost = float(layers.measure(every, replicas // problem.replica_step).sum())
        work -= count
        if not best.size or cost < best_cost - NOISE * abs(best_cost):
            best, best_cost = replicas, cost
    return layers.copies(best), stopped


class _Layers:
    """Places layers on demand, each for itself, and remembers what came out."""

    def __init__(self, problem: Problem, workers: int) -> None:
        self.problem = problem
        self.weight: FloatArray = problem.loads.tokens[0]
        self.nodes = problem.group_nodes
        self.workers = workers
        self._placed: dict[tuple[int, int], Copies] = {}
        self._costs: dict[tuple[int, int], float] = {}
        # With one layer, equal totals are equal counts.
        self.slack = SLACK if problem.slots == "free" and problem.loads.layers > 1 else 0
        self._layout = Layout(
            problem.group_of, self.nodes, problem.gpus, problem.copies_limit, self.slack
        )
        # The replicas that a layer has in the previous plan; -1 where that is no start.
        self.previous = usable_replicas(problem, problem.gpus if self.slack else 1)

    def copies(self, replicas: IntArray) -> Copies:
        """Stack the placements of all layers, uint8 [layers, experts, gpus]."""
        return np.stack([self._placed[key] for key in enumerate(replicas.tolist())])

    def cost(self, copies: Copies) -> float:
        """Compute the summed cost of a whole plan, in the unit of `measure`."""
        value = objective_value(Plan(copies, self.problem.loads.layer_ids), self.problem)
        if self.problem.objective == "time":
            return value * float(self.weight.sum()) / self.problem.gpus
        return -value * self.problem.loads.layers

    def measure(self, layers: IntArray, choices: IntArray) -> FloatArray:
        """Place layers with ``choices * replica_step`` replicas; return their costs."""
        replicas = choices * self.problem.replica_step

        def place(index: int) -> tuple[Copies, float]:
            return place_layer(
                self.weight[layers[index]], int(replicas[index]), self._layout, TOLERANCE
            )

        done = in_threads(place, layers.size, self.workers)
        placed = [copies for copies, _ in done]
        value = np.array([value for _, value in done])
        mean = self.weight[layers].sum(axis=1) / self.problem.gpus
        for index, key in enumerate(zip(layers.tolist(), replicas.tolist(), strict=True)):
            if self.previous[layers[index]] == replicas[index]:
                kept, reached = self._improve_previous(int(layers[index]))
                if reached <= max(value[index], mean[index] * (1.0 + TOLERANCE)):
                    placed[index], value[index] = kept, reached
            self._placed[key] = placed[index]
        cost: FloatArray = value
        if self.problem.objective == "balancedness":
            cost = -np.divide(mean, value, out=np.ones_like(value), where=value > 0)
        keys = zip(layers.tolist(), replicas.tolist(), strict=True)
        self._costs.update(zip(keys, cost.tolist(), strict=True))
        return cost

    def costs(self, layers: IntArray, replicas: IntArray) -> FloatArray:
        """Look up what `measure` returned."""
        keys = zip(layers.tolist(), replicas.tolist(), strict=True)
        return np.array([self._costs[key] for key in keys])

    def _improve_previous(self, layer: int) -> tuple[Copies, float]:
        """Improve the previous plan's placement of a layer, node by node."""
        copies = self.problem.previous_copies[layer].copy()
        share = self.weight[layer] / copies.sum(axis=1)
        width = self.problem.gpus // self.nodes
        # Stop where a fresh placement stops, so that a plan is kept as it is.
        load = layer_gpu_loads(self.weight[layer : layer + 1], copies)[0]
        by_node = load.reshape(self.nodes, width).sum(axis=1) / width
        bound = max(float(share.max()), float(by_node.max()))
        for first in range(0, self.problem.gpus, width):
            local = np.ascontiguousarray(copies[:, first : first + width])
            copies[:, first : first + width] = improve_layer(
                share, local, bound * (1.0 + TOLERANCE)
            )
        load = layer_gpu_loads(self.weight[layer : layer + 1], copies)[0]
        return copies, float(load.max())

    def start(self) -> Copies | None:
        """Return the previous plan, improved, where it keeps the rules as it stands."""
        if self.problem.previous is None or (self.previous < 0).any():
            return None
        totals = self.problem.previous_copies.sum(axis=(0, 1), dtype=np.int64)
        if self.previous.sum() > self.problem.replicas or np.ptp(totals) > 1:
            return None
        return np.stack([self._improve_previous(layer)[0] for layer in range(self.weight.shape[0])])
