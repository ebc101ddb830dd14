"""What a diagnosis measures: gains of budgets on windows not planned, persistence, cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from craftopt.bounds import bounds_by_budget
from craftopt.diagnosis.rules import LEVEL, RESAMPLES, Gain
from craftopt.evaluation import evaluate
from craftopt.knapsack import allocate
from craftopt.loads import BoolArray, FloatArray, Loads
from craftopt.plan import Plan
from craftopt.planners.windowed import WindowedSearch
from craftopt.problem import Problem
from craftopt.recordings import LEAST_WINDOWS, foreseen
from craftopt.result import Options
from craftopt.serving.deployment import Deployment
from craftopt.serving.timing import Phase, profile_of, step_time
from craftopt.solving import solve
from craftopt.traces import Trace
from craftopt.windows import MIXED, domain_of

# Budgets, as parts of the GPUs; what engines can load, and what they serve with, are added.
BUDGETS = (1 / 8, 1 / 2, 1)
# Annealing steps of a layer: gains on unseen windows are within a point of a full plan's.
WORK = 30_000
# Layers on which persistence is measured, and the factor by which curves of benefit go beyond the
# least and the largest budget.
SAMPLED_LAYERS, CURVE_PART = 30, 4
# Layers x experts x GPUs on which all else is measured at most, but for this many layers.
MOST_HOSTS, LEAST_LAYERS = 2_000_000, 8
# Most groups of domains that are left out in turn.
DOMAIN_FOLDS = 4
# Windows x layers on which the best dispatch is computed.
DISPATCH_CELLS = 200
# Tokens of a GPU in the steps that are modelled, and positions that a token attends to.
STEPS: dict[Phase, float] = {"prefill": 4096.0, "decode": 64.0}
CONTEXT = 2048.0


@dataclass(frozen=True)
class Persistence:
    """Say for how long hot experts stay hot, and a plan keeps its gain.

    Parameters
    ----------
    foreseen : float
        Share of a window's skew that the mean of the other windows shows; 1 where all are alike.
    next_window, other_domain : float or None
        Share of the hottest eighth of the experts that is as hot in the next window, and in one
        of another domain.
    chance : float
        The same, were the hottest experts drawn at random.
    near, far : float or None
        Gain of a plan for the first half of the windows, on the third and on the last quarter;
        None with fewer than 8 windows.
    new_domains : float or None
        Gain on domains that the plan has not seen.
    """

    foreseen: float
    next_window: float
    other_domain: float | None
    chance: float
    near: float | None
    far: float | None
    new_domains: float | None


@dataclass(frozen=True)
class Cost:
    """Say what a plan costs, where model and accelerator are given.

    Parameters
    ----------
    copy : float
        Bytes per GPU that a copy in every layer takes.
    memory : float
        Bytes per GPU that the extra copies take.
    prefill, decode : float
        Modelled gain in parts of a whole step (attention and exchange included), with `STEPS`.
    exchange : float
        Modelled change of the expert layers' exchange in the prefill step, in parts of the step.
    """

    copy: float
    memory: float
    prefill: float
    decode: float
    exchange: float


class Measuring:
    """Plans on some windows and scores on the others, each plan made once.

    Parameters
    ----------
    problem : Problem
        All windows; replicas do not matter.
    today : Plan or None
        What is served with; experts by id, without copies, where None.
    """

    def __init__(
        self,
        problem: Problem,
        today: Plan | None,
        seed: int,
        workers: int | None,
        progress: Callable[[str], None] | None,
    ) -> None:
        self.problem, self.seed, self.workers = problem, seed, workers
        self.say = progress or (lambda _: None)
        self.today = today or solve(problem, "trivial").plan
        scored = evaluate(self.today, problem.loads)
        # float64 [windows]: layer time today, and were all GPUs equally loaded
        self.now, self.mean = scored.max_load.sum(axis=1), scored.mean_load.sum(axis=1)
        self.given = None if today is None else round(today.replicas / today.layers)
        odd = np.arange(problem.loads.windows) % 2 == 1
        self.folds = (odd, ~odd)
        self.made: dict[tuple[bytes, int], Plan] = {}
        self.searches: dict[bytes, tuple[WindowedSearch, FloatArray]] = {}

    def budgets(self) -> list[int]:
        """List replicas per layer to plan with, ascending, 0 first."""
        gpus, experts = self.problem.gpus, self.problem.loads.experts
        found = {0, gpus - experts % gpus, *(round(part * gpus) for part in BUDGETS)}
        return sorted(found | ({self.given} if self.given else set()))

    def gains(self) -> tuple[Gain, ...]:
        """Measure all budgets."""
        windows = self.problem.loads.windows
        draws = np.random.default_rng(abs(self.seed)).multinomial(
            windows, np.full(windows, 1 / windows), RESAMPLES
        )
        gains, budgets = [], self.budgets()
        levels = _interval(windows)
        bounds = [
            np.array(bounds_by_budget(self._problem(fold, 0), budgets, companions=False))
            * self.mean[fold].sum()
            for fold in self.folds
        ]
        for replicas, least in zip(budgets, sum(bounds), strict=True):
            planned, held = np.zeros(windows), np.zeros(windows)
            for fold in self.folds:
                time = self._time(self._plan(fold, replicas))
                planned[fold], held[~fold] = time[fold], time[~fold]
            drawn = 1.0 - (draws @ held) / np.maximum(draws @ self.now, 1e-300)
            low, high = np.quantile(drawn, levels)
            gains.append(
                Gain(
                    replicas,
                    planned=self._gain(planned),
                    held_out=self._gain(held),
                    low=float(low),
                    high=float(high),
                    most=1.0 - float(least / self.now.sum()),
                )
            )
        return tuple(gains)

    def plans(self, replicas: int) -> tuple[Plan, Plan]:
        """Return the plans for windows 1, 3, 5, ... and for windows 0, 2, 4, ..."""
        first, second = (self._plan(fold, replicas) for fold in self.folds)
        return first, second

    def dispatch(self, replicas: int) -> float:
        """Measure what the best dispatch saves on top of an even one, on a sample held out."""
        if not replicas:
            return 0.0
        self.say("splitting tokens over copies")
        saved = total = 0.0
        for fold in self.folds:
            held = self.problem.loads.select(np.flatnonzero(~fold))
            stride = max(1, round((2 * held.windows * held.layers / DISPATCH_CELLS) ** 0.5))
            layers = list(range(0, held.layers, min(stride, held.layers)))
            windows = list(range(0, held.windows, min(stride, held.windows)))
            sample = held.select(windows).with_layers(layers, held.layer_ids[layers])
            plans = [self._plan(fold, replicas), self.today]
            plan, today = (plan.with_layers(layers, sample.layer_ids) for plan in plans)
            saved += float(evaluate(plan, sample).max_load.sum())
            saved -= float(evaluate(plan, sample, "lp").max_load.sum())
            total += float(evaluate(today, sample).max_load.sum())
        return max(0.0, saved / total) if total else 0.0

    def persistence(self, replicas: int) -> Persistence:
        """Measure for how long hot experts stay hot, and a plan keeps its gain."""
        loads = self.problem.loads
        windows = loads.windows
        domains = np.array([domain_of(name) for name in loads.window_names])
        names = [name for name in dict.fromkeys(domains.tolist()) if name != MIXED]
        several = 1 < len(names) < windows
        shared = _shared_hot(loads)
        others = domains[:, np.newaxis] != domains
        others &= (domains != MIXED) & (domains[:, np.newaxis] != MIXED)
        near = far = new = None
        some = self.sample(SAMPLED_LAYERS)
        if windows >= 8:
            time = some._time(some._plan(np.arange(windows) < windows // 2, replicas))
            quarter = np.arange(windows) * 4 // windows
            near, far = (some._gain(time[quarter == q], quarter == q) for q in (2, 3))
        if several:
            group = np.array([names.index(name) if name != MIXED else -1 for name in domains])
            held = np.zeros(windows)
            for part in range(min(DOMAIN_FOLDS, len(names))):
                out = (group >= 0) & (group % DOMAIN_FOLDS == part)
                planned = (group >= 0) & ~out
                held[out] = some._time(some._plan(planned, replicas))[out]
            new = some._gain(held[group >= 0], group >= 0)
        return Persistence(
            foreseen=foreseen(loads)[1],
            next_window=float(np.diagonal(shared, 1).mean()),
            other_domain=float(shared[others].mean()) if several else None,
            chance=hot_experts(loads) / loads.experts,
            near=near,
            far=far,
            new_domains=new,
        )

    def critical_nodes(self, replicas: int, trace: Trace | None) -> tuple[float, float] | None:
        """Measure the nodes per token of the busiest node, today and planned."""
        if trace is None:
            return None
        plans = (self.today, self._plan(self.folds[0], replicas))
        found = [evaluate(plan, self.problem.loads, trace=trace).traffic for plan in plans]
        first, second = (traffic.critical_nodes for traffic in found if traffic is not None)
        return first, second

    def cost(self, replicas: int, deployment: Deployment | None) -> Cost | None:
        """Model memory and whole steps, on windows not planned."""
        if deployment is None:
            return None
        held = self.problem.loads.select(np.flatnonzero(~self.folds[0]))
        plans = (self.today, self._plan(self.folds[0], replicas))
        profiles = [profile_of(plan, held) for plan in plans]
        steps = {
            phase: [step_time(deployment, one, phase, tokens, CONTEXT) for one in profiles]
            for phase, tokens in STEPS.items()
        }
        gain = {phase: 1.0 - then.total / now.total for phase, (now, then) in steps.items()}
        now, then = steps["prefill"]
        copy = held.layers / deployment.gpus * deployment.expert_bytes
        return Cost(
            copy=copy,
            memory=replicas * copy,
            prefill=gain["prefill"],
            decode=gain["decode"],
            exchange=(then.exchange - now.exchange) / now.total,
        )

    def sample(self, most: int | None = None) -> Measuring:
        """Measure on some layers, evenly spread; on up to `MOST_HOSTS` by default."""
        loads = self.problem.loads
        if most is None:
            most = max(LEAST_LAYERS, MOST_HOSTS // (loads.experts * self.problem.gpus))
            if loads.layers <= most:
                return self
        layers = list(range(0, loads.layers, -(-loads.layers // most)))
        sample = loads.with_layers(layers, loads.layer_ids[layers])
        today = self.today.with_layers(layers, sample.layer_ids)
        problem = self.problem.replace(loads=sample)
        return Measuring(problem, today, self.seed, self.workers, self.say)

    def _plan(self, planned: BoolArray, replicas: int) -> Plan:
        """Make the plan for some windows."""
        key = (planned.tobytes(), replicas)
        if key not in self.made:
            self.say(f"planning {replicas} per layer on {planned.sum()} windows")
            problem = self._problem(planned, replicas)
            if problem.loads.windows < LEAST_WINDOWS:
                self.made[key] = solve(
                    problem, seed=self.seed, work_limit=WORK, workers=self.workers
                ).plan
            else:
                # `fast` without its comparison with `nominal`, which takes a quarter of its time
                # here; with few windows a plan for their sum may be the better one.
                search, benefit = self._search(planned, replicas)
                chosen, _ = allocate(benefit, problem.replicas, problem.replica_step)
                self.made[key] = problem.plan(search.plan(chosen), "fast")
        return self.made[key]

    def _search(self, planned: BoolArray, replicas: int) -> tuple[WindowedSearch, FloatArray]:
        """Measure the benefit of copies on some windows, once for all budgets."""
        key = planned.tobytes()
        if key not in self.searches:
            fold = any((planned == fold).all() for fold in self.folds)
            budgets = self.budgets() if fold else [replicas]
            options = Options(seed=self.seed, work_limit=WORK, workers=self.workers)
            search = WindowedSearch(self._problem(planned, budgets[-1]), options)
            most = CURVE_PART * budgets[-1]
            points: list[float] = [most]
            while points[-1] > min(filter(None, budgets), default=most) / CURVE_PART:
                points.append(points[-1] / 2)
            self.searches[key] = search, search.benefit(points)
        return self.searches[key]

    def _problem(self, planned: BoolArray, replicas: int) -> Problem:
        loads = self.problem.loads.select(np.flatnonzero(planned))
        return self.problem.replace(loads=loads, replicas_per_layer=replicas)

    def _time(self, plan: Plan) -> FloatArray:
        """Compute the layer time of every window."""
        time: FloatArray = evaluate(plan, self.problem.loads).max_load.sum(axis=1)
        return time

    def _gain(self, time: FloatArray, windows: BoolArray | slice = slice(None)) -> float:
        now = float(self.now[windows].sum())
        return 1.0 - float(time.sum()) / now if now else 0.0


def _interval(windows: int) -> list[float]:
    """Return the quantiles of resamples that bound an interval of `LEVEL`.

    Resamples of few values vary too little: Hesterberg's expanded percentile interval (2015)
    makes up for it as Student's t does for a known variance.
    """
    from scipy.special import ndtr, stdtrit  # noqa: PLC0415 (slow to import)

    wide = stdtrit(windows - 1, (1 + LEVEL) / 2) * (windows / (windows - 1)) ** 0.5
    return [float(ndtr(-wide)), float(ndtr(wide))]


def hot_experts(loads: Loads) -> int:
    """Count the experts of a layer that are called hot: an eighth of them."""
    return max(1, loads.experts // 8)


def hottest_marked(loads: Loads, count: int) -> BoolArray:
    """Mark the experts with the most tokens, bool [windows, layers, experts]."""
    order = np.argsort(-loads.tokens, axis=2, kind="stable")[:, :, :count]
    marks = np.zeros(loads.tokens.shape, dtype=bool)
    np.put_along_axis(marks, order, True, axis=2)
    return marks


def _shared_hot(loads: Loads) -> FloatArray:
    """Compute the share of hot experts that two windows have in common, [windows, windows]."""
    hot = hot_experts(loads)
    flat = hottest_marked(loads, hot).reshape(loads.windows, -1).astype(np.float32)
    shared: FloatArray = (flat @ flat.T).astype(np.float64) / (hot * loads.layers)
    return shared
