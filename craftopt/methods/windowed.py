"""The method ``fast``: a plan for the windows of traffic themselves.

The frame of ``nominal`` with the windowed objective: benefit curves measured by short
annealing, the knapsack over layers, long annealing of every layer, equal totals by relabelling.
Every window is pulled a little toward those most like it, so that the plan fits the kind of
traffic rather than the sample of it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
from scipy.interpolate import PchipInterpolator

from craftopt.evaluation import layer_gpu_loads, objective_value, violations
from craftopt.knapsack import allocate
from craftopt.loads import FloatArray, IntArray, Loads
from craftopt.methods.decode import plan_activated
from craftopt.methods.nominal import plan_nominal
from craftopt.methods.parallel import in_threads
from craftopt.methods.previous import usable_replicas
from craftopt.plan import Copies, Plan
from craftopt.problem import Problem
from craftopt.result import Limit, Options, Outcome
from craftopt.search.annealing import anneal
from craftopt.search.placement import place_layer
from craftopt.search.totals import equalise

# How far a window is pulled toward what the others predict of it, up to how many windows.
PULL, MOST_PULLED = 0.3, 512
# Kernel widths to choose from, as quantiles of the distances between windows, and how many
# columns (layers x experts) are enough to choose by.
WIDTHS, COLUMNS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4), 4096
# First and last temperature, in mean GPU loads.
HOT, COLD = 1e-3, 2e-5
# Windows that count at a time: few while hot, which is cheap, and more when cold, where the noise
# of a small sample would decide; (part of the steps, windows). Fewer windows all count at once.
STAGES = ((0.7, 32), (0.3, 256))
# Annealing steps per copy in a layer, unless work_limit says otherwise.
STEPS_PER_COPY = 2000
# Part of the steps that a point of a benefit curve gets.
CURVE_SHARE = 16
# Replicas at which curves are measured, as multiples of the average budget of a layer.
CURVE_POINTS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0)


def plan_fast(problem: Problem, options: Options) -> Outcome:
    """Plan for every window.

    ``work_limit`` counts annealing steps of a layer. Where ``time_limit`` strikes, layers not
    yet reached keep their start. A previous plan is a start for the layers that it suits. One
    window is the nominal problem, and `nominal` solves it better.

    Annealing minimises the mean over windows of a p-norm of the GPU loads, weighted by tokens for
    the objective time; the objective itself decides between a layer's start and what annealing
    made of it, over the allocation, and between the whole plan, the nominal one and the previous.
    The objective activated has a search of its own (`craftopt.methods.decode`).
    """
    if problem.objective == "activated":
        return plan_activated(problem, options)
    if problem.max_moves is not None:
        return Outcome(message="fast plans afresh and cannot keep max_moves")
    if problem.loads.windows == 1:
        outcome = plan_nominal(problem, Options(workers=options.workers))
        assert outcome.plan is not None
        return replace(outcome, plan=_named(outcome.plan.copies, problem))
    search = _Search(problem, options)
    if problem.slots == "uniform":
        replicas = np.full(problem.loads.layers, problem.layer_replicas_limit)
    else:
        replicas = search.allocate()
    copies = search.place(replicas)
    if problem.slots != "uniform":
        copies, _ = equalise(copies, problem.loads.total().tokens[0], search.nodes)
    limit: Limit | None = "time" if search.late else "work" if search.cut_short else None
    candidates = [_named(copies, problem)]
    # Never worse, on the planned windows, than the previous plan and the nominal one.
    if problem.previous is not None:
        candidates.append(_named(problem.previous_copies, problem))
    nominal = plan_nominal(problem, Options(workers=options.workers)).plan
    if nominal is not None:
        candidates.append(_named(nominal.copies, problem))
    valid = [plan for plan in candidates if not violations(plan, problem)]
    sign = 1.0 if problem.objective == "time" else -1.0
    best = min(valid, key=lambda plan: sign * objective_value(plan, problem))
    return Outcome(best, limit=limit)


def plan_allocated(
    problem: Problem, replicas: IntArray, *, seed: int = 0, workers: int | None = None
) -> Plan:
    """Plan every window as `plan_fast` does, with the replicas of every layer given.

    Parameters
    ----------
    problem : Problem
    replicas : int64 [layers]
        Within the problem's budget and rules.
    """
    search = _Search(problem, Options(seed=seed, workers=workers))
    copies = search.place(replicas)
    if problem.slots != "uniform":
        copies, _ = equalise(copies, problem.loads.total().tokens[0], search.nodes)
    return _named(copies, problem)


def measure_curves(
    problem: Problem, grid: IntArray, *, seed: int = 0, workers: int | None = None
) -> list[Copies]:
    """Place every layer with each number of replicas, as `plan_fast` does for its benefit curves.

    Placements are brief, a little worse than those of a plan, and alike in that; GPUs may differ
    in their totals.

    Parameters
    ----------
    problem : Problem
        Its budget and slot rule do not matter.
    grid : int64 [points]
        Replicas per layer, in steps of ``problem.replica_step``.

    Returns
    -------
    list of uint8 [layers, experts, gpus]
        One per point of the grid.
    """
    search = _Search(problem, Options(seed=seed, workers=workers))
    return search.measure(grid)[0]


def pull_together(tokens: FloatArray) -> FloatArray:
    """Pull every window a little toward what the windows like it predict of it.

    The prediction is the mean of the other windows, weighted by ``exp(-d/width)``, d the squared
    Hellinger distance between the experts' shares over all layers; the width is the one that
    predicts best (leave-one-out). A window is pulled by `PULL` times the share of the error that
    the prediction takes off that of the plain mean: not at all where no other window is like it.
    So windows of one kind of traffic lend each other strength, and noise in fine windows evens
    out, without naming kinds. More than `MOST_PULLED` windows are left as they are.

    Parameters
    ----------
    tokens : float64 [windows, layers, experts]
        Each window and layer scaled to the same sum, or 0.

    Returns
    -------
    float64 [windows, layers, experts]
    """
    windows, layers = tokens.shape[:2]
    flat = tokens.reshape(windows, -1)
    if not 1 < windows <= MOST_PULLED or not flat.any():
        return tokens
    root = np.sqrt(flat / tokens.sum(axis=2).max() / layers)
    # einsum, not @: sums in one order, whatever the threads of numpy's libraries.
    distance = np.maximum(0.0, 1.0 - np.einsum("wc,vc->wv", root, root))
    widths = np.unique(np.quantile(distance[~np.eye(windows, dtype=bool)], WIDTHS))
    np.fill_diagonal(distance, np.inf)
    # Distances count from the nearest, so that no window is left without neighbours.
    distance -= distance.min(axis=1, keepdims=True)
    sample = flat[:, :: -(-flat.shape[1] // COLUMNS)]
    # What a window is to be predicted better than by: the mean of all the others.
    others = (sample.sum(axis=0) - sample) / (windows - 1)
    plain = _distance(others, sample)
    best, errors = np.zeros_like(distance), plain
    for width in np.maximum(widths, 1e-12):
        kernel = np.exp(-distance / width)
        kernel /= kernel.sum(axis=1, keepdims=True)
        error = _distance(np.einsum("wv,vc->wc", kernel, sample), sample)
        if error.sum() < errors.sum():
            best, errors = kernel, error
    trust = PULL * np.clip(1.0 - errors / np.maximum(plain, 1e-300), 0.0, 1.0)[:, np.newaxis]
    pulled = ((1.0 - trust) * flat + trust * np.einsum("wv,vc->wc", best, flat)).reshape(
        tokens.shape
    )
    # Neighbours without tokens in a layer must not thin it out, nor fill one that has none.
    before, after = tokens.sum(axis=2, keepdims=True), pulled.sum(axis=2, keepdims=True)
    scaled: FloatArray = pulled * np.divide(
        before, after, out=np.zeros_like(before), where=after > 0
    )
    return scaled


def _distance(first: FloatArray, second: FloatArray) -> FloatArray:
    """Compute the squared Hellinger distance of rows, up to a factor."""
    squared: FloatArray = ((np.sqrt(first) - np.sqrt(second)) ** 2).sum(axis=1)
    return squared


class _Search:
    """Anneals layers of a problem, in threads, each for itself."""

    def __init__(self, problem: Problem, options: Options) -> None:
        problem.goal.require_even_dispatch("the search on loads")
        self.problem = problem
        self.seed = options.seed
        self.work_limit = options.work_limit
        self.workers = options.threads
        self.deadline = options.deadline()
        self.progress = options.progress
        self.late = self.cut_short = False
        loads = problem.loads
        self.group_of, self.nodes = problem.group_of, problem.group_nodes
        # Under free too, every GPU takes floor or ceil of a layer's copies: looser counts were
        # tried and did no better on unseen windows.
        self.previous = usable_replicas(problem, spread=1)
        # [layers, windows]: mean GPU load, and what a window counts in its layer.
        self.mean = loads.tokens.sum(axis=2).T / problem.gpus
        used = self.mean > 0
        self.counts = self.mean if problem.objective == "time" else used.astype(np.float64)
        scale = np.divide(1.0, self.mean, out=np.zeros_like(self.mean), where=used)
        self.scaled = loads.tokens * scale.T[:, :, np.newaxis]
        # [layers, experts, windows]
        self.pulled = np.ascontiguousarray(pull_together(self.scaled).transpose(1, 2, 0))

    def allocate(self) -> IntArray:
        """Choose the replicas of every layer by curves that short annealing measures."""
        problem = self.problem
        step, most = problem.replica_step, problem.layer_replicas_limit
        average = problem.replicas / problem.loads.layers
        points = {min(round(part * average / step) * step, most) for part in CURVE_POINTS}
        points.add(min(step, most))
        grid = np.array(sorted(points))
        if grid.size == 1:
            return np.zeros(problem.loads.layers, dtype=np.int64)
        costs = self.measure(grid)[1]
        costs = np.minimum.accumulate(costs, axis=1)
        every = np.arange(0, grid[-1] + 1, step)
        # Straight lines between the points would make the knapsack pick the points themselves.
        table = PchipInterpolator(grid, costs, axis=1)(every)
        return allocate(table, problem.replicas, step)[0]

    def measure(self, grid: IntArray) -> tuple[list[Copies], FloatArray]:
        """Anneal all layers briefly, with every number of replicas of the grid."""
        layers = np.arange(self.problem.loads.layers)
        measured = [
            self._anneal(layers, np.full(layers.size, r), CURVE_SHARE, index / grid.size / 3)
            for index, r in enumerate(grid)
        ]
        return [copies for copies, _ in measured], np.stack([cost for _, cost in measured], axis=1)

    def place(self, replicas: IntArray) -> Copies:
        """Anneal all layers at length."""
        done = 0.0 if self.problem.slots == "uniform" else 1 / 3
        return self._anneal(np.arange(replicas.size), replicas, 1, done)[0]

    def _anneal(
        self, layers: IntArray, replicas: IntArray, share: int, done: float
    ) -> tuple[Copies, FloatArray]:
        """Anneal layers with a part of the steps; return copies and planned costs."""
        part = 1.0 - done if share == 1 else 1 / 3 / (len(CURVE_POINTS) + 1)
        finished = 0
        lock = threading.Lock()

        def one(index: int) -> tuple[Copies, float]:
            nonlocal finished
            found = self._layer(int(layers[index]), int(replicas[index]), share)
            with lock:
                finished += 1
                if self.progress is not None:
                    self.progress(done + part * finished / layers.size)
            return found

        results = in_threads(one, layers.size, self.workers)
        return np.stack([copies for copies, _ in results]), np.array([cost for _, cost in results])

    def _layer(self, layer: int, replicas: int, share: int) -> tuple[Copies, float]:
        problem = self.problem
        copies_now = problem.loads.experts + replicas
        start = self._start(layer, replicas)
        cost = self._cost(layer, start)
        steps = STEPS_PER_COPY * copies_now
        if self.work_limit is not None and self.work_limit < steps:
            steps, self.cut_short = self.work_limit, True
        if time.monotonic() > self.deadline:
            self.late = True
            return start, cost
        node_of = start.reshape(start.shape[0], self.nodes, -1).any(axis=2).argmax(axis=1)
        per_gpu = copies_now // problem.gpus
        extra = 1 if copies_now % problem.gpus else 0
        used = np.flatnonzero(self.counts[layer])
        if not used.size:
            return start, cost
        tokens = np.ascontiguousarray(self.pulled[layer][:, used])
        weight = self.counts[layer][used] / self.counts[layer].sum()
        stages = STAGES if weight.size > STAGES[0][1] else ((1.0, weight.size),)
        found, done = start, 0.0
        for part, in_play in stages:
            found = anneal(
                tokens,
                weight,
                found,
                self.nodes,
                node_of,
                per_gpu,
                per_gpu + extra,
                problem.copies_limit,
                int(steps // share * part),
                HOT * (COLD / HOT) ** done,
                HOT * (COLD / HOT) ** (done + part),
                (self.seed * 1_000_003 + layer * 1009 + share + round(done * 509)) % 2**31,
                in_play,
            )
            done += part
        reached = self._cost(layer, found)
        return (found, reached) if reached < cost else (start, cost)

    def _start(self, layer: int, replicas: int) -> Copies:
        """Place the mean window, or take the previous plan's layer where it is better."""
        problem = self.problem
        weight = self.counts[layer]
        mean = (self.pulled[layer] * (weight / max(weight.sum(), 1e-300))).sum(axis=1)
        placed, _ = place_layer(
            mean,
            replicas,
            self.group_of,
            self.nodes,
            problem.gpus,
            problem.copies_limit,
            0,
            1e-3,
        )
        if self.previous[layer] == replicas and problem.previous is not None:
            # A copy that can be written: numba compiles another annealing for one that cannot.
            kept: Copies = problem.previous_copies[layer].copy()
            if self._cost(layer, kept) <= self._cost(layer, placed):
                return kept
        return placed

    def _cost(self, layer: int, copies: Copies) -> float:
        """Compute the layer's part of the objective on the windows as they are, as a cost."""
        largest = layer_gpu_loads(self.scaled[:, layer], copies).max(axis=1)
        if self.problem.objective == "time":
            return float((largest * self.mean[layer]).sum())
        used = largest > 0
        return -float((1.0 / largest[used]).sum())


def _named(copies: Copies, problem: Problem) -> Plan:
    loads: Loads = problem.loads
    return Plan(copies, loads.layer_ids, problem.nodes, "fast", loads.digest)
