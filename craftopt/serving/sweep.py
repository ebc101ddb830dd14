"""Goodput of every budget, predicted from benefit curves that are measured once.

Every layer is placed briefly with 0, 1, 2, 4, ... replicas
(`craftopt.planners.windowed.WindowedSearch`). From that the model has the time of every layer with
every number of replicas. A GPU's copies cost memory one by one, and the GPU with the most limits
the cache of all; so budgets are counted in copies per GPU, and what they leave to the cache says
how many sequences n can run. For each budget a multiple-choice knapsack picks the replicas of
every layer that serve a request in the least time at that n::

    steps * D(n) / n + prefill          summed over the layers
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from craftopt.errors import InfeasibleError
from craftopt.knapsack import allocate, interpolate
from craftopt.loads import FloatArray, IntArray
from craftopt.problem import Problem, SlotRule
from craftopt.result import Options
from craftopt.serving.deployment import TIE, Deployment, Workload
from craftopt.serving.goodput import Engine, chunk_of, engine_from
from craftopt.serving.memory import Memory, memory_for_copies
from craftopt.serving.timing import Phase, Profile, layer_times, profile_of_copies, step_time

# Replicas per layer at which curves are measured, as parts of the GPUs.
CURVE_PARTS = (0.0, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
# Extra slots per GPU and layer, on average, beyond which no budget is considered.
MOST_SLOTS = 2
# Budgets that are planned in full, besides none.
FINALISTS = 3
# How far they must be apart, in copies per GPU, where they are not the best of their rule.
APART = 0.3
# Numbers of running sequences at which the sweep computes decoding steps.
_POINTS = 12


@dataclass(frozen=True)
class Budget:
    """Say what the sweep predicts of a budget, on the windows planned.

    Parameters
    ----------
    slots : str
        Memory layout, as in `Problem`.
    copies_per_gpu : int
        Copies that a GPU hosts beyond those of a plan without replicas, over all layers.
    replicas : int
    memory : float
        Bytes per GPU that the copies take.
    concurrency : int
        Sequences that an attention group's cache then holds.
    relative_time : float
        Load of the fullest GPU over the mean, by tokens.
    requests_per_second : float
    allocation : tuple of int
        Replicas of every layer.
    """

    slots: SlotRule
    copies_per_gpu: int
    replicas: int
    memory: float
    concurrency: int
    relative_time: float
    requests_per_second: float
    allocation: tuple[int, ...]


class Sweep:
    """Predicts the goodput of any budget from curves that are measured once."""

    def __init__(self, deployment: Deployment, workload: Workload, problem: Problem) -> None:
        self.deployment, self.workload, self.problem = deployment, workload, problem
        loads, gpus = problem.loads, problem.gpus
        self.least = -(-loads.layers * loads.experts // gpus)
        none = self.memory(0)
        if none.concurrency(workload.context) < 1:
            raise InfeasibleError(
                f"{deployment.model.name} on {gpus} x {deployment.gpu.name} leaves "
                f"{none.kv / 2**30:.1f} GiB of {none.total / 2**30:.1f} per GPU for the cache, "
                f"{none.kv_tokens} tokens, and a sequence takes {workload.context}; use more "
                "GPUs, smaller dtypes, a smaller reserve or shorter requests"
            )
        fits = [
            extra
            for extra in range(MOST_SLOTS * loads.layers + 1)
            if self.memory(extra).concurrency(workload.context) >= 1
        ]
        self.most = fits[-1]

    def memory(self, extra: int) -> Memory:
        """Account for a GPU with ``extra`` copies beyond the least."""
        return memory_for_copies(self.deployment, self.least + extra)

    def measure(self, seed: int, workers: int | None) -> None:
        """Place every layer with every number of replicas of the grid; tabulate its times."""
        from craftopt.planners.windowed import WindowedSearch  # noqa: PLC0415 (loads numba)

        problem, deployment, workload = self.problem, self.deployment, self.workload
        step = problem.replica_step
        experts = problem.loads.experts
        most = min(MOST_SLOTS * problem.gpus, experts * (problem.copies_limit - 1))
        parts = {round(part * problem.gpus / step) * step for part in CURVE_PARTS}
        wanted = {replicas for replicas in parts if replicas <= most}
        # Where the experts do not fill the GPUs evenly, uniform layouts can take a few more.
        grid = np.array(sorted(wanted | {replicas for _, replicas in self._uniform()}))
        search = WindowedSearch(problem, Options(seed, workers=workers))
        placed = [np.stack([copies for copies, _ in point]) for point in search.measure(grid)]
        profiles = [profile_of_copies(copies, problem.loads.tokens) for copies in placed]
        limit = self.memory(0).concurrency(workload.context)
        self.points = np.unique(np.minimum(np.geomspace(1, limit, _POINTS), limit))
        self.chunk = chunk_of(deployment, workload)

        def seconds(profile: Profile, phase: Phase, tokens: float) -> FloatArray:
            parts = layer_times(deployment, profile, phase, tokens)
            result: FloatArray = profile.weights @ (parts[0] + parts[1])
            return result

        decode = [
            [seconds(profile, "decode", float(n)) for profile in profiles] for n in self.points
        ]
        prefill = [seconds(profile, "prefill", float(self.chunk)) for profile in profiles]
        fullest = [profile.weights @ profile.fullest * problem.gpus for profile in profiles]
        self.every: IntArray = np.arange(0, grid[-1] + 1, step)

        def table(values: npt.ArrayLike) -> FloatArray:
            """Interpolate [..., grid, layers] to [..., layers, every number of replicas]."""
            return interpolate(
                grid, np.moveaxis(np.asarray(values, dtype=np.float64), -2, -1), step
            )

        self.decode, self.prefill, self.fullest = table(decode), table(prefill), table(fullest)
        # The rest of a step does not depend on the plan.
        self.decode_rest = np.array(
            [self._rest(profiles[0], "decode", n, workload.mean_context) for n in self.points]
        )
        self.prefill_rest = self._rest(
            profiles[0], "prefill", float(self.chunk), workload.input_tokens / 2
        )

    def _rest(self, profile: Profile, phase: Phase, tokens: float, context: float) -> float:
        step = step_time(self.deployment, profile, phase, tokens, context)
        return step.attention + step.dense + step.overhead

    def _uniform(self) -> list[tuple[int, int]]:
        """List (copies per GPU beyond the least, replicas per layer) of the uniform layouts."""
        loads, gpus = self.problem.loads, self.problem.gpus
        limit = loads.experts * self.problem.copies_limit // gpus
        first = -(-loads.experts // gpus)
        choices = []
        for slots in range(first, min(first + MOST_SLOTS, limit) + 1):
            extra = slots * loads.layers - self.least
            if extra <= self.most:
                choices.append((extra, slots * gpus - loads.experts))
        return choices

    def curve(self, rules: Sequence[SlotRule]) -> list[Budget]:
        """Predict budgets of every rule; around the best, all of them."""
        loads = self.problem.loads
        found: list[Budget] = []
        for rule in rules:
            if rule == "uniform":
                for extra, replicas in self._uniform():
                    allocation = np.full(loads.layers, replicas)
                    found.append(self._predict(rule, extra, allocation))
                continue
            budgets: dict[int, Budget] = {}
            first = {*range(min(9, self.most + 1)), self.most}
            first |= {round(self.most * 0.5 ** (k / 2)) for k in range(10)}
            first |= {k * loads.layers for k in range(MOST_SLOTS + 1)}
            waiting = {extra for extra in first if extra <= self.most}
            while waiting:
                for extra in sorted(waiting):
                    budgets[extra] = self._allocate(rule, extra)
                known = sorted(budgets)
                best = max(known, key=lambda extra: budgets[extra].requests_per_second)
                place = known.index(best)
                around = known[max(0, place - 1) : place + 2]
                waiting = {(low + high) // 2 for low, high in pairwise(around)} - set(budgets)
            found += [budgets[extra] for extra in sorted(budgets)]
        # No replicas at all: what every rule can be compared with.
        if not any(budget.replicas == 0 for budget in found):
            found.insert(0, self._predict("even", 0, np.zeros(loads.layers, dtype=np.int64)))
        return found

    def _allocate(self, rule: SlotRule, extra: int) -> Budget:
        """Choose the replicas of all layers for one budget, and predict it."""
        problem = self.problem
        loads, step = problem.loads, problem.replica_step
        budget = (self.least + extra) * problem.gpus - loads.layers * loads.experts
        running = float(self.memory(extra).concurrency(self.workload.context))
        replicas, _ = allocate(self._table(running), budget, step)
        first = self._predict(rule, extra, replicas)
        engine = self._engine(extra, replicas)
        rate, _ = engine.goodput(self.workload.ttft, self.workload.tpot)
        within = engine.running(rate) / self.deployment.groups if rate > 0 else 1.0
        if within > 0.95 * running:
            return first
        # A limit on waiting leaves the cache unfilled: choose for the sequences that do run.
        replicas, _ = allocate(self._table(max(1.0, within)), budget, step)
        second = self._predict(rule, extra, replicas)
        return max(first, second, key=lambda found: found.requests_per_second)

    def _table(self, running: float) -> FloatArray:
        """Tabulate seconds per request of every layer and number of replicas."""
        steps, prompts = self.workload.output_tokens - 1, self.workload.input_tokens / self.chunk
        result: FloatArray = steps * self._at(running) / running
        if not self.deployment.prefill_elsewhere:
            result = result + prompts * self.prefill
        return result

    def _at(self, running: float) -> FloatArray:
        """Interpolate a decoding step's seconds, float64 [layers, every number of replicas]."""
        place = float(np.interp(running, self.points, np.arange(self.points.size)))
        low = min(int(place), max(0, self.points.size - 2))
        high = min(low + 1, self.points.size - 1)
        share = place - low
        result: FloatArray = (1 - share) * self.decode[low] + share * self.decode[high]
        return result

    def _engine(self, extra: int, replicas: IntArray) -> Engine:
        choice = replicas // self.problem.replica_step
        layers = np.arange(replicas.size)
        seconds = self.decode[:, layers, choice].sum(axis=1) + self.decode_rest
        limit = self.memory(extra).concurrency(self.workload.context)
        points = np.unique(np.append(self.points[self.points < limit], limit))
        return engine_from(
            self.deployment,
            self.workload,
            points,
            np.interp(points, self.points, seconds),
            float(self.prefill[layers, choice].sum()) + self.prefill_rest,
        )

    def _predict(self, rule: SlotRule, extra: int, replicas: IntArray) -> Budget:
        rate, _ = self._engine(extra, replicas).goodput(self.workload.ttft, self.workload.tpot)
        layers = np.arange(replicas.size)
        choice = replicas // self.problem.replica_step
        memory = self.memory(extra)
        return Budget(
            slots=rule,
            copies_per_gpu=extra,
            replicas=int(replicas.sum()),
            memory=memory.replicas,
            concurrency=memory.concurrency(self.workload.context),
            relative_time=float(self.fullest[layers, choice].mean()),
            requests_per_second=rate,
            allocation=tuple(replicas.tolist()),
        )


def none_of(curve: Sequence[Budget]) -> Budget:
    """Return the budget without replicas."""
    return next(budget for budget in curve if budget.replicas == 0)


def finalists(curve: Sequence[Budget]) -> list[Budget]:
    """Pick the best budget of every rule, then the best that differ enough from those picked.

    Of budgets that are as good within `TIE`, the smallest is the best.
    """
    rest = [budget for budget in curve if budget.replicas > 0]

    def best(choices: Sequence[Budget]) -> Budget:
        most = max(budget.requests_per_second for budget in choices)
        close = [budget for budget in choices if budget.requests_per_second >= most * (1 - TIE)]
        return min(close, key=lambda budget: budget.copies_per_gpu)

    picked = [
        best([budget for budget in rest if budget.slots == rule])
        for rule in dict.fromkeys(budget.slots for budget in rest)
    ]
    while len(picked) < FINALISTS:
        others = [
            budget
            for budget in rest
            if all(
                abs(budget.copies_per_gpu - other.copies_per_gpu)
                >= max(2, APART * other.copies_per_gpu)
                for other in picked
            )
        ]
        if not others:
            break
        picked.append(max(others, key=lambda budget: budget.requests_per_second))
    return picked[:FINALISTS]


def label(budget: Budget) -> str:
    """Name a budget."""
    if budget.replicas == 0:
        return "none"
    if budget.slots == "uniform":
        return f"uniform, {budget.replicas // len(budget.allocation)} per layer"
    return f"{budget.slots}, {budget.copies_per_gpu} per GPU"
