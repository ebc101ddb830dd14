"""The method ``fast`` for decode: few activated copies on the fullest GPU.

Replicas go by the probability that a batch activates an expert, every layer gets an equal share of
the budget, and annealing on the routed windows decides where the copies stand and whose they are.
"""

from __future__ import annotations

import threading
import time

import numpy as np

from craftopt.errors import InputError
from craftopt.evaluation import objective_value, violations
from craftopt.loads import FloatArray, IntArray
from craftopt.methods.parallel import in_threads
from craftopt.methods.previous import usable_replicas
from craftopt.plan import Copies, Plan
from craftopt.problem import Problem
from craftopt.result import Limit, Options, Outcome
from craftopt.search.kernels import Rules, Schedule
from craftopt.search.placement import Layout, place_layer
from craftopt.search.rerouting import most_activated
from craftopt.search.routed import anneal_routed
from craftopt.search.totals import equalise

# First and last temperature, in activated copies per window.
HOT, COLD = 4e-4, 2e-5
# Annealing steps per copy in a layer, unless work_limit says otherwise.
STEPS_PER_COPY = 50
# With prefill beside it, which takes more steps.
STEPS_FOR_BOTH = 200


def plan_activated(problem: Problem, options: Options) -> Outcome:
    """Plan for decode: objective ``activated``.

    ``work_limit`` counts annealing steps of a layer. Where ``time_limit`` strikes, layers not
    yet reached keep their start. A previous plan is a start for the layers that it suits, and
    never better than the result.
    """
    return _plan(problem, None, options)


def plan_for_both(
    prefill: Problem,
    decode: Problem,
    *,
    seed: int = 0,
    work_limit: int | None = None,
    workers: int | None = None,
    weight: float = 0.5,
) -> Plan:
    """Make one plan for prefill and decode together.

    Minimises ``(1 - weight) * relative time of prefill + weight * relative activation of decode``:
    the latter is the mean of the most activated copies on a GPU over the mean of activated copies
    per GPU, so that both are a largest over a mean. Weights between 0 and 1 trace the Pareto
    curve; 0 and 1 are the plans that `solve` makes for each problem alone.

    Parameters
    ----------
    prefill, decode : Problem
        The same layers, experts, cluster, budget and rules; objectives ``time`` and
        ``activated``; each with windows of its own kind, many of them for decode.
    weight : float
        0 to 1.

    Raises
    ------
    InputError
        Problems that differ in more than loads and objective, or a weight outside its range.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.methods.decode import plan_for_both
    >>> prefill = co.Problem(co.Loads([[[60, 30, 9, 1]], [[50, 20, 9, 9]]]), gpus=2, replicas=2)
    >>> decode = prefill.replace(
    ...     loads=co.Loads([[[2, 1, 0, 0]], [[1, 1, 0, 1]]]), objective="activated"
    ... )
    >>> plan = plan_for_both(prefill, decode, weight=0.5)
    >>> co.evaluate(plan, decode.loads, "exact").max_activated
    array([[1],
           [2]])
    """
    if not 0 <= weight <= 1:
        raise InputError(f"weight={weight} is no share; pass 0 (prefill) to 1 (decode)")
    _check_pair(prefill, decode)
    options = Options(seed=seed, work_limit=work_limit, workers=workers)
    if weight == 0:
        from craftopt.methods.windowed import plan_fast  # noqa: PLC0415 (it loads this module)

        outcome = plan_fast(prefill, options)
    else:
        shared = None if weight == 1 else (prefill, weight)
        outcome = _plan(decode, shared, options)
    if outcome.plan is None:
        raise InputError(outcome.message)
    return outcome.plan


def _check_pair(prefill: Problem, decode: Problem) -> None:
    if (prefill.objective, decode.objective) != ("time", "activated"):
        raise InputError(
            f"the objectives are {prefill.objective!r} and {decode.objective!r}; pass a problem "
            "with objective='time' and one with objective='activated'"
        )
    names = ("gpus", "nodes", "replicas", "slots", "max_copies", "previous", "max_moves")
    for name in names:
        first, second = getattr(prefill, name), getattr(decode, name)
        if first != second:
            raise InputError(f"{name} is {first!r} in prefill and {second!r} in decode")
    groups, others = prefill.expert_groups, decode.expert_groups
    same = groups is others
    if groups is not None and others is not None:
        same = np.array_equal(groups, others)
    if not same:
        raise InputError("expert_groups differ between prefill and decode")
    if not np.array_equal(prefill.loads.layer_ids, decode.loads.layer_ids) or (
        prefill.loads.experts != decode.loads.experts
    ):
        raise InputError("prefill and decode have other layers or experts; pass one model's")


def _plan(problem: Problem, shared: tuple[Problem, float] | None, options: Options) -> Outcome:
    if problem.max_moves is not None:
        return Outcome(message="fast plans afresh and cannot keep max_moves")
    search = _Search(problem, shared, options)
    replicas = _equal_shares(problem)
    finished = 0
    lock = threading.Lock()

    def one(layer: int) -> Copies:
        nonlocal finished
        found = search.layer(layer, int(replicas[layer]))
        with lock:
            finished += 1
            if options.progress is not None:
                options.progress(finished / replicas.size)
        return found

    copies = np.stack(in_threads(one, replicas.size, options.threads))
    # Counts within a layer differ by at most 1, so relabelling suffices: no copy is moved.
    copies, _ = equalise(copies, search.probability, search.nodes)
    plans = [_named(copies, problem)]
    if problem.previous is not None and shared is None:
        previous = _named(problem.previous_copies, problem)
        plans += [previous] if not violations(previous, problem) else []
    best = min(plans, key=lambda plan: objective_value(plan, problem)) if plans[1:] else plans[0]
    limit: Limit | None = "time" if search.late else "work" if search.cut_short else None
    return Outcome(best, limit=limit)


def _equal_shares(problem: Problem) -> IntArray:
    """Deal the budget out equally, what is left over to the layers that activate most."""
    layers, step, most = problem.loads.layers, problem.replica_step, problem.layer_replicas_limit
    if problem.slots == "uniform":
        return np.full(layers, most)
    shares, left = divmod(problem.replicas // step, layers)
    active = (problem.loads.tokens > 0).sum(axis=(0, 2))
    replicas = np.full(layers, shares)
    replicas[np.argsort(-active, kind="stable")[:left]] += 1
    result: IntArray = np.minimum(replicas * step, most)
    return result


class _Search:
    """Anneals layers of a problem, each for itself."""

    def __init__(
        self, problem: Problem, shared: tuple[Problem, float] | None, options: Options
    ) -> None:
        self.problem = problem
        self.seed, self.work_limit = options.seed, options.work_limit
        self.deadline = options.deadline()
        self.late = self.cut_short = False
        self.nodes = problem.group_nodes
        self.layout = Layout(problem.group_of, self.nodes, problem.gpus, problem.copies_limit)
        self.previous = usable_replicas(problem, spread=1)
        # [layers, experts, windows]
        self.active = np.ascontiguousarray((problem.loads.tokens > 0).transpose(1, 2, 0))
        # Both [layers, ...]: how likely a batch activates an expert, and prefill beside it.
        self.probability: FloatArray = self.active.mean(axis=2)
        self.tokens: FloatArray = np.zeros((*self.active.shape[:2], 0))
        self.weight: FloatArray = np.zeros((self.active.shape[0], 0))
        if shared is not None:
            self._add_prefill(*shared)

    def _add_prefill(self, prefill: Problem, weight: float) -> None:
        """Weigh a window's load in activated copies of one batch, as `plan_for_both` has it."""
        loads = prefill.loads
        mean = loads.tokens.sum(axis=2).T / prefill.gpus
        scale = np.divide(1.0, mean, out=np.zeros_like(mean), where=mean > 0)
        self.tokens = np.ascontiguousarray(
            (loads.tokens * scale.T[:, :, np.newaxis]).transpose(1, 2, 0)
        )
        # The sums over all windows and layers that the two relative figures are divided by.
        activated, total = float(self.active.sum()) / self.problem.gpus, float(mean.sum())
        price = (1.0 - weight) / weight * activated / total if total > 0 else 0.0
        self.weight = mean * price

    def layer(self, layer: int, replicas: int) -> Copies:
        """Place one layer, uint8 [experts, gpus]."""
        problem = self.problem
        start = self._start(layer, replicas)
        copies = problem.loads.experts + replicas
        steps = (STEPS_FOR_BOTH if self.weight.size else STEPS_PER_COPY) * copies
        if self.work_limit is not None and self.work_limit < steps:
            steps, self.cut_short = self.work_limit, True
        if time.monotonic() > self.deadline:
            self.late = True
            return start
        floor, ceil = copies // problem.gpus, -(-copies // problem.gpus)
        return anneal_routed(
            self.active[layer],
            self.tokens[layer],
            self.weight[layer],
            start,
            Rules(self.nodes, floor, ceil, problem.copies_limit),
            Schedule(steps, HOT, COLD),
            (self.seed * 1_000_003 + layer * 1009) % 2**31,
        )

    def _start(self, layer: int, replicas: int) -> Copies:
        """Place by probability, or take the previous plan's layer where it is better."""
        problem = self.problem
        placed, _ = place_layer(self.probability[layer], replicas, self.layout, 1e-3)
        if self.previous[layer] == replicas and problem.previous is not None:
            kept = np.array(problem.previous_copies[layer])
            active = self.active[layer]
            if most_activated(active, kept).sum() <= most_activated(active, placed).sum():
                return kept
        return placed


def _named(copies: Copies, problem: Problem) -> Plan:
    return Plan(copies, problem.loads.layer_ids, problem.nodes, "fast", problem.loads.digest)
