"""The method ``fast`` for several windows: a plan for the windows of traffic themselves.

The steps of ``nominal`` with the windowed objective: benefit curves measured by short
annealing, the knapsack over layers, long annealing of every layer, equal totals by relabelling.
Windows are shrunk toward similar ones, so that the plan fits the traffic rather than the sample.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from craftopt.evaluation import layer_gpu_loads
from craftopt.knapsack import allocate, interpolate
from craftopt.loads import FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.planners.layers import Layers
from craftopt.planners.nominal import nominal_copies
from craftopt.portable import power
from craftopt.problem import Problem
from craftopt.result import Options, Outcome, also_planned
from craftopt.search.annealing import anneal
from craftopt.search.kernels import Schedule
from craftopt.windows import in_mean_loads, shrink

# First and last temperature, in mean GPU loads.
HOT, COLD = 1e-3, 2e-5
# Mini-batch schedule, (share of steps, windows): small batches at high temperature, larger ones at
# the end, where sampling noise would decide. Fewer windows than a small batch all count at once.
STAGES = ((0.7, 32), (0.3, 256))
# So few windows do not say which experts to copy: a search that is free to choose fits their
# coincidences, and serves other windows worse than copies by the mean load.
FEW_WINDOWS = 4
# Annealing steps per copy in a layer, unless work_limit says otherwise, and where no expert has
# two copies, so that there are no replacements: more did nothing for unseen windows.
STEPS_PER_COPY, STEPS_WITHOUT_REPLICAS = 1500, 800
# Small layers, where steps take no time, get up to so many per copy, and this many in all: that
# shows on unseen windows of gpt-oss-20b.
MOST_STEPS_PER_COPY, STEPS_OF_SMALL = 4000, 150_000
# A point of a benefit curve gets this fraction of the steps: one in ...
CURVE_SHARE = 16
# Replicas at which curves are measured, as multiples of the average budget of a layer.
CURVE_POINTS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0)

# An allocation that gains or loses less than this on uniform slots, relative and after short
# annealing, may end on either side of them.
LITTLE_GAIN = 0.015

# Anneals copies on windows: tokens [experts, windows], their weights, copies, schedule, seed.
Kernel = Callable[[FloatArray, FloatArray, Copies, Schedule, int], Copies]


def plan_windowed(problem: Problem, options: Options) -> Outcome:
    """Plan for every window; ``work_limit`` counts annealing steps of a layer.

    Annealing minimises a smooth surrogate, the mean over windows of a p-norm of the GPU loads,
    weighted by tokens for the objective time. The objective itself decides between a layer's
    start and what annealing made of it, over the allocation, and between the whole plan, the
    previous one and the nominal one: the result is no worse on the planned windows. With few
    windows annealing keeps the copies of every expert and changes their hosts alone.
    """
    search = WindowedSearch(problem, options)
    chosen, *stricter = search.allocations()
    search.plans = 1 + len(stricter)
    candidates = [search.plan(chosen)]
    start = time.perf_counter()
    candidates += [search.plan(replicas) for replicas in stricter]
    note = also_planned("uniform", time.perf_counter() - start) if stricter else ""
    if problem.previous is not None:
        candidates.append(problem.previous_copies)
    candidates.append(nominal_copies(problem, Options(workers=options.workers)).copies)
    return Outcome(search.best(candidates, "fast"), note, search.limit)


class WindowedSearch(Layers):
    """Anneal layers on all windows.

    Also under ``free`` every GPU takes floor or ceil of a layer's copies: uneven numbers were
    tried and did no better on unseen windows.

    Raises
    ------
    InputError
        A problem with the objective ``activated``.
    """

    def __init__(self, problem: Problem, options: Options) -> None:
        problem.goal.require_even_dispatch("the search on loads")
        super().__init__(problem, options)
        self.plans, self._planned = 1, 0  # that will be made and were, for the progress
        self.scaled, mean = in_mean_loads(problem.loads.tokens, problem.gpus)
        self.mean = mean.T  # [layers, windows]
        self.counts = problem.goal.window_weights(mean).T
        # [layers, experts, windows]
        self.shrunk = np.ascontiguousarray(shrink(self.scaled).transpose(1, 2, 0))

    def allocations(self) -> list[IntArray]:
        """Choose the replicas of every layer, as `allocate`, or two choices to plan with.

        Where the budget fills uniform slots in every layer, they are chosen instead if the
        allocation loses on them, and beside it if it gains or loses little: so no plan is
        worse than under the slot rule ``uniform``.
        """
        problem, chosen = self.problem, self.allocate()
        filled = problem.uniform_choices
        if problem.slots == "uniform" or not filled.size:
            return [chosen]
        uniform = np.full(chosen.size, filled[-1])
        changed = np.flatnonzero(chosen != uniform)
        # The curves flatter what was chosen by them, so it is measured once more.
        before, after = (self._short_cost(changed, of) for of in (uniform, chosen))
        gain = (before - after) / max(abs(after), 1e-300)
        if gain < -LITTLE_GAIN:
            return [uniform]
        return [chosen, uniform] if gain <= LITTLE_GAIN else [chosen]

    def allocate(self) -> IntArray:
        """Choose the replicas of every layer by curves that short annealing measures."""
        problem = self.problem
        layers, most = problem.loads.layers, problem.layer_replicas_limit
        if problem.slots == "uniform" or not most:
            return np.full(layers, most)
        average = problem.replicas / layers
        table = self.benefit(part * average for part in CURVE_POINTS)
        return allocate(table, problem.replicas, problem.replica_step)[0]

    def benefit(self, wanted: Iterable[float]) -> FloatArray:
        """Tabulate what layers cost with 0, 1, 2, ... steps of replicas, float64 [layers, choices].

        Measured by short annealing with about the wanted numbers, interpolated in between.
        """
        step, most = self.problem.replica_step, self.problem.layer_replicas_limit
        points = {min(round(replicas / step) * step, most) for replicas in wanted}
        grid = np.array(sorted(points | {0, min(step, most)}))
        costs = np.array([[cost for _, cost in point] for point in self.measure(grid)]).T
        costs = np.minimum.accumulate(costs, axis=1)
        return interpolate(grid, costs, step)

    def measure(self, grid: IntArray) -> list[list[tuple[Copies, float]]]:
        """Anneal all layers briefly with every number of replicas.

        The placements are a little worse than those of a plan, all of them alike; GPUs may differ
        in their totals. Budget and slot rule do not matter.

        Parameters
        ----------
        grid : int64 [points]
            Replicas per layer, in steps of ``problem.replica_step``.

        Returns
        -------
        list [points] of list [layers] of (uint8 [experts, gpus], float)
            Copies and cost.
        """
        part = 0.3 / grid.size
        return [
            self.each(
                partial(self._anneal, replicas=replicas, share=CURVE_SHARE),
                range(self.problem.loads.layers),
                done=index * part,
                part=part,
            )
            for index, replicas in enumerate(grid.tolist())
        ]

    def _short_cost(self, layers: IntArray, replicas: IntArray) -> float:
        """Sum what short annealing reaches in some layers."""
        found = self.each(
            partial(self._anneal, share=CURVE_SHARE),
            layers.tolist(),
            replicas[layers].tolist(),
            done=1 / 3,
            part=0.0,
        )
        return sum(cost for _, cost in found)

    def plan(self, replicas: IntArray) -> Copies:
        """Anneal all layers, with ``replicas`` [layers] each; return the copies of the plan."""
        curves = 0.0 if self.problem.slots == "uniform" else 1 / 3
        part = (1.0 - curves) / self.plans
        found = self.each(
            partial(self._anneal, share=1),
            range(replicas.size),
            replicas.tolist(),
            done=curves + self._planned * part,
            part=part,
        )
        self._planned += 1
        return self.join([copies for copies, _ in found])[0]

    def _anneal(self, layer: int, replicas: int, share: int) -> tuple[Copies, float]:
        """Anneal a layer for one in ``share`` of its steps; return copies and cost."""
        start = self._start(layer, replicas)
        cost = self.cost(layer, start)
        copies = self.problem.loads.experts + replicas
        least = STEPS_PER_COPY if replicas else STEPS_WITHOUT_REPLICAS
        steps = self.steps(max(least * copies, min(MOST_STEPS_PER_COPY * copies, STEPS_OF_SMALL)))
        if not steps:
            return start, cost
        rules = self.rules(replicas)
        if self.problem.loads.windows <= FEW_WINDOWS:
            rules = rules._replace(copies_limit=0)
        found = self._cool(
            layer,
            start,
            lambda tokens, weight, copies, schedule, seed: anneal(
                tokens, weight, copies, rules, schedule, seed
            ),
            Schedule(steps // share, HOT, COLD),
            share,
        )
        reached = self.cost(layer, found)
        return (found, reached) if reached < cost else (start, cost)

    def _start(self, layer: int, replicas: int) -> Copies:
        """Place a layer by its experts' weighted mean."""
        return self.start(
            layer,
            (self.shrunk[layer] * self._weight(layer)).sum(axis=1),
            replicas,
            lambda copies: self.cost(layer, copies),
        )

    def _weight(self, layer: int) -> FloatArray:
        """Compute what the windows count, float64 [windows]; sums to 1, or is 0."""
        counts = self.counts[layer]
        weight: FloatArray = counts / max(counts.sum(), 1e-300)
        return weight

    def _cool(
        self, layer: int, start: Copies, kernel: Kernel, schedule: Schedule, part: int
    ) -> Copies:
        """Anneal a layer's copies in stages, on mini-batches of windows; see `STAGES`."""
        weight = self._weight(layer)
        used = np.flatnonzero(weight)
        if not used.size:
            return start
        tokens = np.ascontiguousarray(self.shrunk[layer][:, used])
        stages = STAGES if used.size > STAGES[0][1] else ((1.0, used.size),)
        steps, hot, cold, _ = schedule
        found, done = start, 0.0
        for share, in_play in stages:
            stage = Schedule(
                int(steps * share),
                hot * power(cold / hot, done),
                hot * power(cold / hot, done + share),
                in_play,
            )
            found = kernel(
                tokens, weight[used], found, stage, self.seed(layer, part + round(done * 509))
            )
            done += share
        return found

    def cost(self, layer: int, copies: Copies) -> float:
        """Compute the layer's part of the objective on the windows as they are, as a cost."""
        problem = self.problem
        loads = layer_gpu_loads(self.scaled[:, layer], copies, problem.nodes, problem.dispatch)
        return problem.goal.summed_cost(loads.max(axis=1), self.mean[layer])
