"""The method ``fast`` for traffic beside balance, or for dispatch to the nearest copies.

The steps of `plan_windowed`, with several candidates for a layer: its placement for balance alone,
and others annealed for the problem's own dispatch and for node visits, by two surrogates at several
prices. The objective itself decides between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from craftopt.evaluation import layer_gpu_loads
from craftopt.loads import BoolArray, FloatArray, IntArray
from craftopt.plan import Copies, Plan
from craftopt.planners.windowed import COLD, HOT, Kernel, WindowedSearch
from craftopt.portable import power
from craftopt.problem import Problem
from craftopt.result import Options, Outcome
from craftopt.search.fronts import FIRST_PRICE, HEAT, LAST_PRICE, LEVELS
from craftopt.search.joint import NO_MOVES, Moves, anneal_joint
from craftopt.search.kernels import Rules, Schedule
from craftopt.search.visits import NO_VISITS, Visits, visits_surrogate
from craftopt.traces import Trace
from craftopt.traffic import BusiestNodes

# Temperatures for another dispatch, beside those for loads: the start is a good plan already, and a
# large layer is best repaired, a small one searched.
REPAIR_HOT, REPAIR_COLD = HOT / 10, COLD / 10
# Last temperature with a price of traffic: that for loads alone freezes it.
PRICED_COLD = 2e-4
# Rounds of candidates, each from the best of those before: first temperature, whether visits are
# pooled over windows, and shares of the price. A lower price than the true one often serves
# better, because the surrogates overrate pairs; they do so the more if pooled.
ROUNDS = ((1e-2, True, (0.5, 0.35)), (3e-3, False, (0.7, 1.0)))
# The one that measures benefit curves.
CURVE_ROUNDS = ((1e-2, False, (0.7,)),)
# Steps of a candidate with a price, whatever the layer's size. Four candidates of so many cost a
# layer of 256 experts about what its plan for balance does; for smaller ones time is no matter,
# and they are no better for fewer.
PRICED_STEPS = 45_000
# Annealing steps per copy at most; visits are harder to search than loads.
STEPS_PER_COPY = 2000


def plan_joint(problem: Problem, options: Options, balanced: Plan) -> Outcome:
    """Plan for balance and traffic together, and for the problem's dispatch.

    Parameters
    ----------
    problem : Problem
    options : Options
    balanced : Plan
        The plan for balance alone under even dispatch: the result is no worse in the objective.
    """
    search = JointSearch(problem, options, balanced.copies)
    candidates = [search.plan(search.allocate()), balanced.copies]
    if problem.previous is not None:
        candidates.append(problem.previous_copies)
    return Outcome(search.best(candidates, "fast"), problem.free_traffic, search.limit)


class JointSearch(WindowedSearch):
    """Anneal layers for GPU loads under the problem's dispatch, and for its price of traffic.

    Which GPUs host one copy more of a layer than others is fixed beforehand, by turns over the
    layers: GPUs of different nodes cannot be relabelled afterwards for equal totals.

    Parameters
    ----------
    problem : Problem
    options : Options
    balanced : uint8 [layers, experts, gpus]
        A plan for balance alone.
    """

    def __init__(self, problem: Problem, options: Options, balanced: Copies) -> None:
        super().__init__(problem, options)
        self.balanced = balanced
        self.offsets = np.zeros(problem.loads.layers, dtype=np.int64)
        self.price = problem.traffic_price
        if self.price > 0:
            source = problem.coactivation
            assert source is not None
            self.visits = BusiestNodes(source, problem.loads, problem.nodes, problem.dispatch)
            self.pairs = source.coactivation() if isinstance(source, Trace) else source
            tokens = float(self.visits.tokens.sum())
            # The objective is a sum of loads here: the price of a token in mean GPU loads.
            self.token_cost = self.price * float(self.mean.sum()) / max(tokens, 1e-300)

    def allocate(self) -> IntArray:
        """Choose the replicas of every layer, those of balance alone where traffic has no price."""
        if self.price > 0:
            return super().allocate()
        copies: IntArray = self.balanced.sum(axis=(1, 2), dtype=np.int64)
        return copies - self.problem.loads.experts

    def plan(self, replicas: IntArray) -> Copies:
        """Anneal all layers for all their steps; return the copies of a whole plan."""
        parts = self.problem.group_nodes
        copies = (self.problem.loads.experts + replicas) // parts
        uneven = copies % (self.problem.gpus // parts)
        self.offsets = np.cumsum(uneven) - uneven
        return super().plan(replicas)

    def join(self, layers: Sequence[Copies]) -> tuple[Copies, bool]:
        """Make a plan of layers, whose GPUs have equal totals already."""
        return np.stack(layers), False

    def _anneal(self, layer: int, replicas: int, share: int) -> tuple[Copies, float]:
        """Anneal all candidates, briefly with a ``share``; return the best and its cost.

        The first is for balance alone; every round starts from the best of those before.
        """
        copies = self.problem.loads.experts + replicas
        best = self.balanced[layer]
        slots = best.sum(axis=0, dtype=np.int64)
        if share > 1 or slots.sum() != copies or np.ptp(slots) > 1:
            best = super()._anneal(layer, replicas, share)[0]
        best = self._arranged(best, int(self.offsets[layer]))
        cost = self.cost(layer, best)
        steps = self.steps(STEPS_PER_COPY * copies) // share
        rules = self.rules(replicas)
        rules = rules._replace(low=rules.high)  # no copy goes to a free slot
        part = 0
        for candidates in self._rounds(layer, steps, share):
            start = best
            for visits, schedule in candidates:
                if self.expired:
                    self.late = True
                    return best, cost
                part += 1
                kernel = self._kernel(rules, visits)
                found = self._cool(layer, start, kernel, schedule, share + 1_000_000 * part)
                reached = self.cost(layer, found)
                if reached < cost:
                    best, cost = found, reached
        return best, cost

    def near(self, layer: int, start: Copies, previous: BoolArray, steps: int) -> Iterator[Copies]:
        """Anneal a layer from a start at a falling price of moves: placements near the previous.

        Parameters
        ----------
        layer : int
        start : uint8 [experts, gpus]
        previous : bool [experts, gpus]
            Where hosting a copy is no move.
        steps : int
            Of all prices together.
        """
        most = int(start.sum(axis=0).max())
        rules = self.rules(int(start.sum()) - start.shape[0])._replace(low=most, high=most)
        rounds = list(self._rounds(layer, steps, LEVELS))
        for level in range(LEVELS if rounds else 0):
            price = FIRST_PRICE * power(LAST_PRICE / FIRST_PRICE, level / (LEVELS - 1))
            price *= 1.0 + self.price
            heat = max(HEAT * price, PRICED_COLD)
            kernel = self._kernel(rules, rounds[-1][-1][0], Moves(price, previous))
            schedule = Schedule(steps // LEVELS, heat, heat)
            start = self._cool(layer, start, kernel, schedule, 2_000_000 + 1000 * level)
            yield start

    def _kernel(self, rules: Rules, visits: Visits, moves: Moves = NO_MOVES) -> Kernel:
        """Anneal for the problem's dispatch and for visits, with a price of moves."""
        nearest = self.problem.dispatch != "even"

        def kernel(
            tokens: FloatArray, weight: FloatArray, copies: Copies, schedule: Schedule, seed: int
        ) -> Copies:
            return anneal_joint(
                tokens, weight, copies, rules, visits, nearest, moves, schedule, seed
            )[0]

        return kernel

    def _rounds(
        self, layer: int, steps: int, share: int
    ) -> Iterator[list[tuple[Visits, Schedule]]]:
        """List what to anneal a layer for, and how, in rounds."""
        problem = self.problem
        if problem.dispatch != "even":
            unpriced = NO_VISITS._replace(nodes=problem.nodes)
            yield [
                (unpriced, Schedule(steps, HOT, COLD)),
                (unpriced, Schedule(steps, REPAIR_HOT, REPAIR_COLD)),
            ]
        if self.price == 0 or problem.group_nodes > 1:  # groups do not leave their nodes
            return
        seen = max(int(self.pairs.tokens[layer]), 1)
        pairs, chosen = self.pairs.pairs[layer] / seen, self.pairs.assignments[layer] / seen
        for hot, pooled, parts in ROUNDS if share == 1 else CURVE_ROUNDS:
            schedule = Schedule(min(steps, PRICED_STEPS), hot, PRICED_COLD)
            yield [
                (
                    visits_surrogate(
                        part * self.price, problem.nodes, pairs, chosen, pooled=pooled
                    ),
                    schedule,
                )
                for part in parts
            ]

    def cost(self, layer: int, copies: Copies) -> float:
        """Compute the layer's part of the objective on the windows as they are, as a cost."""
        problem = self.problem
        cost = super().cost(layer, copies)
        if self.price == 0:
            return cost
        loads = layer_gpu_loads(
            problem.loads.tokens[:, layer], copies, problem.nodes, problem.dispatch
        )
        busiest = self.visits.of_layer(layer, copies, loads)
        return cost + self.token_cost * float((busiest * self.visits.tokens[:, layer]).sum())

    def _arranged(self, copies: Copies, offset: int) -> Copies:
        """Relabel GPUs, so that those with one copy more are the ones from an offset on."""

        def arrange(part: Copies) -> Copies:
            slots = part.sum(axis=0, dtype=np.int64)
            more = int((slots > slots.min()).sum())
            gpus = (offset + np.arange(slots.size)) % slots.size
            target = np.concatenate([np.sort(gpus[:more]), np.sort(gpus[more:])])
            result = np.empty_like(part)
            result[:, target] = part[:, np.argsort(-slots, kind="stable")]
            return result

        return self.by_node(copies, arrange)
