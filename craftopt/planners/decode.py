"""The method ``fast`` for decode: few activated copies on the fullest GPU.

Replicas go by the probability that a batch activates an expert, every layer gets an equal share of
the budget, and annealing on the routed windows decides where the copies go and whose they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from craftopt.loads import FloatArray, IntArray
from craftopt.plan import Copies
from craftopt.planners.layers import Layers
from craftopt.problem import Problem
from craftopt.result import Options, Outcome
from craftopt.search.kernels import Schedule
from craftopt.search.rerouting import most_activated
from craftopt.search.routed import anneal_routed
from craftopt.windows import in_mean_loads

# First and last temperature, in activated copies per window.
HOT, COLD = 4e-4, 2e-5
# Annealing steps per copy in a layer, unless work_limit says otherwise.
STEPS_PER_COPY = 50
# With prefill beside it, which takes more steps.
STEPS_FOR_BOTH = 200


@dataclass(frozen=True)
class Prefill:
    """Prefill to plan for beside decode.

    ``weight`` is decode's in the sum of both (`plan_for_both`), above 0 and below 1.
    """

    problem: Problem
    weight: float


def plan_decode(problem: Problem, options: Options, prefill: Prefill | None = None) -> Outcome:
    """Plan for the objective ``activated``; ``work_limit`` counts annealing steps of a layer."""
    search = _Search(problem, options, prefill)
    replicas = _equal_shares(problem)
    found = search.each(search.anneal, range(replicas.size), replicas.tolist())
    # Counts within a layer differ by at most 1, so relabelling suffices: no copy is moved.
    candidates = [search.join(found)[0]]
    if problem.previous is not None and prefill is None:
        candidates.append(problem.previous_copies)
    return Outcome(search.best(candidates, "fast"), limit=search.limit)


def _equal_shares(problem: Problem) -> IntArray:
    """Give every layer an equal share of the budget, and what is left to the most active ones."""
    layers, step, most = problem.loads.layers, problem.replica_step, problem.layer_replicas_limit
    if problem.slots == "uniform":
        return np.full(layers, most)
    shares, left = divmod(problem.replicas // step, layers)
    active = (problem.loads.tokens > 0).sum(axis=(0, 2))
    replicas = np.full(layers, shares)
    replicas[np.argsort(-active, kind="stable")[:left]] += 1
    result: IntArray = np.minimum(replicas * step, most)
    return result


class _Search(Layers):
    """Anneal layers on routed batches of decode."""

    def __init__(self, problem: Problem, options: Options, prefill: Prefill | None) -> None:
        super().__init__(problem, options)
        # [layers, experts, windows]
        self.active = np.ascontiguousarray((problem.loads.tokens > 0).transpose(1, 2, 0))
        layers, experts, _ = self.active.shape
        # Of prefill, [layers, experts, windows] in mean GPU loads and [layers, windows].
        self.tokens: FloatArray = np.zeros((layers, experts, 0))
        self.weight: FloatArray = np.zeros((layers, 0))
        if prefill is not None:
            self._add(prefill)

    def _add(self, prefill: Prefill) -> None:
        """Price a window's mean GPU load in activated copies of one batch (`plan_for_both`)."""
        scaled, mean = in_mean_loads(prefill.problem.loads.tokens, self.problem.gpus)
        self.tokens = np.ascontiguousarray(scaled.transpose(1, 2, 0))
        # The sums over all windows and layers that the two relative figures are divided by.
        activated, total = float(self.active.sum()) / self.problem.gpus, float(mean.sum())
        price = (1.0 - prefill.weight) / prefill.weight * activated / total if total > 0 else 0.0
        self.weight = np.ascontiguousarray(mean.T * price)

    def anneal(self, layer: int, replicas: int) -> Copies:
        """Plan one layer, uint8 [experts, gpus]."""
        active = self.active[layer]
        start = self.start(
            layer,
            active.mean(axis=1),  # the probability that a batch activates an expert
            replicas,
            lambda copies: float(most_activated(active, copies).sum()),
        )
        per_copy = STEPS_FOR_BOTH if self.weight.size else STEPS_PER_COPY
        steps = self.steps(per_copy * (self.problem.loads.experts + replicas))
        if not steps:
            return start
        return anneal_routed(
            active,
            self.tokens[layer],
            self.weight[layer],
            start,
            self.rules(replicas),
            Schedule(steps, HOT, COLD),
            self.seed(layer),
        )
