"""The online loop: windows of traffic in, decisions out.

After every window the planner says whether to keep the plan that serves or to change it, and how.
A plan is worth most on the kind of traffic that it was made for, so windows are clustered into
domains as they arrive: a distant window starts a new domain, and the plan of an old one is
remembered for when its traffic comes back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from craftopt.coactivation import Coactivation
from craftopt.errors import InputError, number, whole
from craftopt.evaluation import evaluate_for
from craftopt.kinds import NEAR, hellinger, root_shares
from craftopt.loads import FloatArray, Loads
from craftopt.plan import Plan
from craftopt.portable import exp_array, log
from craftopt.problem import Problem
from craftopt.rebalancing import count_moves, rebalance, relabel
from craftopt.result import Options
from craftopt.traces import Trace

Action = Literal["keep", "rebalance", "recall"]

# Windows and domains remembered.
MOST_WINDOWS, MOST_DOMAINS = 12, 16
# Windows of less weight are left out.
LEAST_WEIGHT = 0.02
# Exponential smoothing: half-lives, in windows of a domain, of which the best predictor of the
# next window is used, and the discount of past prediction errors per window.
HALF_LIVES, FORGET = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0), 0.9


@dataclass(frozen=True)
class Decision:
    """Say what to do after a window.

    Parameters
    ----------
    action : {"keep", "rebalance", "recall"}
        Keep the plan, change some of it, or take the one that served this domain before.
    plan : Plan
        What is to serve from now on.
    moves : int
        Copies to send for it.
    gain, cost : float
        Expected over the horizon, in token-loads of the fullest GPU (with the price of traffic, in
        the same unit): what the change saves, and what its moves cost.
    domain : int
        Number of the domain that the window belongs to, from 0 in order of first windows.
    drift : float
        Distance to the nearest domain known before the window, relative to the usual one.
    """

    action: Action
    plan: Plan
    moves: int
    gain: float
    cost: float
    domain: int
    drift: float


@dataclass(eq=False)
class _Domain:
    """A kind of traffic: its mean direction, its latest windows, and the plan made for it."""

    number: int
    direction: FloatArray
    count: int = 0
    distances: list[float] = field(default_factory=list)
    windows: list[FloatArray] = field(default_factory=list)
    pairs: list[Coactivation] = field(default_factory=list)
    plan: Plan | None = None
    last_seen: int = 0

    @property
    def spread(self) -> float | None:
        """Return the usual distance of its windows; None where they are too few to say."""
        return float(np.median(self.distances)) if len(self.distances) > 2 else None

    def add(self, tokens: FloatArray, root: FloatArray, distance: float, now: int) -> None:
        """Take in a window; the usual distance forgets slowly."""
        if self.count:
            self.distances = [*self.distances, distance][-MOST_WINDOWS:]
        self.count += 1
        self.direction += (root - self.direction) / min(self.count, MOST_WINDOWS)
        self.windows = [*self.windows, tokens][-MOST_WINDOWS:]
        self.last_seen = now


class OnlinePlanner:
    """Decide after every window whether to change the plan.

    Parameters
    ----------
    problem : Problem
        Cluster, budget and rules, under the objective time. Its windows are what the plan was
        made for: the past. With ``traffic``, or another ``dispatch``, gains are those of the whole
        objective; a trace counts as its pair counts.
    plan : Plan
        What serves at first.
    horizon : float
        Windows that a change is expected to serve.
    move_cost : float
        What sending one copy costs, in token-loads of the fullest GPU: see `move_cost`.
    max_moves : int, optional
        Most moves of one decision; `Problem.max_moves` by default.
    seed, work_limit, workers
        As in `rebalance`.

    Notes
    -----
    Windows are compared by the Hellinger distance of the experts' shares over all layers.
    Expected gains are discounted by n/(n+1), n the effective number of planned windows
    (in-sample optimism).

    Raises
    ------
    InputError
        A value outside its range, an objective other than time, ``max_slowdown``.

    Examples
    --------
    >>> import craftopt as co
    >>> past = co.Loads([[8, 1, 7, 1, 2, 2, 2, 2]])
    >>> problem = co.Problem(past, gpus=4, slots="uniform")
    >>> planner = co.OnlinePlanner(problem, co.solve(problem, "nominal").plan, move_cost=0.1)
    >>> planner.observe(past.tokens[0]).action
    'keep'
    >>> decision = planner.observe([[2, 2, 2, 2, 8, 1, 7, 1]])
    >>> decision.action, decision.moves, decision.domain
    ('rebalance', 2, 1)
    """

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        *,
        horizon: float = 8.0,
        move_cost: float = 0.0,
        max_moves: int | None = None,
        seed: int = 0,
        work_limit: int | None = None,
        workers: int | None = None,
    ) -> None:
        if problem.objective != "time":
            raise InputError("gains are weighed against moves in time; pass objective='time'")
        if problem.max_slowdown is not None:
            raise InputError("gains have one price; pass traffic=, not max_slowdown=")
        pairs = problem.coactivation
        if isinstance(pairs, Trace):
            pairs = pairs.coactivation()
        self._horizon = number("horizon", horizon, above=0)
        self._move_cost = number("move_cost", move_cost, least=0)
        self._options = Options(seed, work_limit, workers=workers)
        most = problem.max_moves if max_moves is None else max_moves
        if not problem.balance_alone and plan.nodes != problem.nodes:
            plan = problem.plan(plan.copies, plan.method)  # visits are counted by its nodes
        self.problem = problem.variant(previous=plan, max_moves=most, coactivation=pairs)
        self.plan = plan
        self._errors = np.zeros(len(HALF_LIVES))
        self._domains: list[_Domain] = []
        self._known = 0
        self._now = 0
        self._steps: list[float] = []  # distances between consecutive windows
        self._usual = 0.0  # latest median of the domains' usual distances
        self._before: FloatArray | None = None
        self._current: _Domain | None = None
        for tokens in problem.loads.tokens:
            if tokens.any():
                self._sort(tokens)
        for domain in self._domains:
            domain.plan = plan

    def observe(self, tokens: npt.ArrayLike, coactivation: Coactivation | None = None) -> Decision:
        """Take in a window that has been served, and decide what serves the next.

        Parameters
        ----------
        tokens : array_like [layers, experts]
        coactivation : Coactivation, optional
            The window's pair counts. Those of a domain's latest windows add up and take the place
            of the problem's.

        Returns
        -------
        Decision

        Raises
        ------
        InputError
            A window of another shape, or with what loads may not hold; other pair counts.
        """
        loads = Loads(tokens)
        window = loads.tokens[0]
        if loads.windows != 1 or window.shape != self.problem.loads.tokens.shape[1:]:
            raise InputError(
                f"tokens have [windows, layers, experts] = {loads.tokens.shape}; this planner "
                f"takes [layers, experts] = {self.problem.loads.tokens.shape[1:]}, one window at "
                "a time"
            )
        if not window.any():
            known = self._current.number if self._current is not None else 0
            return Decision("keep", self.plan, 0, 0.0, 0.0, known, 0.0)
        if coactivation is not None:
            self.problem.variant(coactivation=coactivation)  # refuses those of another model
        drift = self._sort(window)
        domain = self._current
        assert domain is not None
        if coactivation is not None:
            domain.pairs = [*domain.pairs, coactivation][-MOST_WINDOWS:]
        kept = Decision("keep", self.plan, 0, 0.0, 0.0, domain.number, drift)
        decision = max((kept, *self._changes(domain, drift)), key=lambda d: d.gain - d.cost)
        self.plan = decision.plan
        domain.plan = decision.plan
        return decision

    def _changes(self, domain: _Domain, drift: float) -> list[Decision]:
        """Make and score plans for the windows of a domain."""
        # The longest of equally good half-lives.
        best = len(HALF_LIVES) - 1 - int(self._errors[::-1].argmin())
        weight = _weights(len(domain.windows), HALF_LIVES[best])
        counts = weight >= LEAST_WEIGHT
        weight = weight[counts] / weight[counts].sum()
        loads = Loads(
            np.stack(domain.windows)[counts] * weight[:, np.newaxis, np.newaxis],
            self.problem.loads.layer_ids,
        )
        pairs = self.problem.coactivation
        if domain.pairs:
            pairs = sum(domain.pairs[1:], domain.pairs[0])
        problem = self.problem.variant(loads=loads, previous=self.plan, coactivation=pairs)
        now = _time(self.plan, problem)
        effective = 1.0 / float((weight**2).sum())
        worth = self._horizon * effective / (effective + 1.0)
        found = rebalance(
            problem,
            self.plan,
            move_price=self._move_cost / worth,
            all_windows=True,
            seed=self._options.seed,
            work_limit=self._options.work_limit,
            workers=self._options.workers,
        )
        candidates: list[tuple[Action, Plan]] = []
        if found.has_plan:
            candidates.append(("rebalance", found.plan))
        if domain.plan is not None and domain.plan is not self.plan:
            whole = problem.whole_nodes > 1
            candidates.append(("recall", relabel(domain.plan, self.plan, within_nodes=whole)))
        result = []
        for action, plan in candidates:
            moves = count_moves(plan, self.plan)
            if problem.max_moves is None or moves <= problem.max_moves:
                gain = worth * (now - _time(plan, problem))
                cost = self._move_cost * moves
                result.append(Decision(action, plan, moves, gain, cost, domain.number, drift))
        return result

    def _weigh(self, domain: _Domain, root: FloatArray) -> None:
        """Record how well every half-life predicts a window from those before."""
        roots = np.stack([root_shares(window) for window in domain.windows])
        for index, half_life in enumerate(HALF_LIVES):
            predicted = np.einsum("w,wc->c", _weights(len(roots), half_life), roots)
            error = hellinger(root, predicted) ** 2
            self._errors[index] = FORGET * self._errors[index] + error

    def _sort(self, tokens: FloatArray) -> float:
        """Find or make the domain of a window, and return the window's drift."""
        self._now += 1
        root = root_shares(tokens)
        if self._before is not None:
            self._steps = [*self._steps, hellinger(root, self._before)][-4 * MOST_WINDOWS :]
        self._before = root
        drift, nearest = 0.0, None
        # Domains of few windows: the usual distance of the others, or of consecutive windows.
        spreads = [domain.spread for domain in self._domains if domain.spread is not None]
        if spreads:
            self._usual = float(np.median(spreads))
        default = self._usual or float(np.median(self._steps or [0.0]))
        for domain in self._domains:
            usual = default if domain.spread is None else domain.spread
            relative = hellinger(root, domain.direction) / max(usual, 1e-12)
            if nearest is None or relative < drift:
                drift, nearest = relative, domain
        if nearest is None or drift > NEAR:
            if len(self._domains) == MOST_DOMAINS:
                self._domains.remove(min(self._domains, key=lambda domain: domain.last_seen))
            nearest = _Domain(self._known, np.zeros_like(root))
            self._known += 1
            self._domains.append(nearest)
        if nearest is self._current:
            self._weigh(nearest, root)
        self._current = nearest
        nearest.add(tokens, root, hellinger(root, nearest.direction), self._now)
        return drift


def move_cost(
    expert_bytes: float, link_bytes_per_second: float, seconds_per_token: float, gpus: int
) -> float:
    """Compute what one move costs in token-loads of the fullest GPU.

    Moves run side by side over every GPU's own link, and serving waits for them: a bound from
    above where they overlap with serving, from below where some links get more than others.

    Parameters
    ----------
    expert_bytes : float
        Size of an expert's weights.
    link_bytes_per_second : float
        Speed of a GPU's link.
    seconds_per_token : float
        Time that a GPU takes for one token of one expert.
    gpus : int

    Raises
    ------
    InputError
        A value that is not above 0.

    Examples
    --------
    >>> import craftopt as co
    >>> round(co.move_cost(44e6, 50e9, 0.2e-6, gpus=64))
    69
    """
    number("expert_bytes", expert_bytes, above=0)
    number("link_bytes_per_second", link_bytes_per_second, above=0)
    number("seconds_per_token", seconds_per_token, above=0)
    whole("gpus", gpus, 1)
    return expert_bytes / link_bytes_per_second / gpus / seconds_per_token


def _weights(windows: int, half_life: float) -> FloatArray:
    """Weight windows exponentially, the last one most; the weights sum to 1."""
    age = np.arange(windows, dtype=np.float64)[::-1]
    weight = exp_array(age * log(0.5) / half_life)
    scaled: FloatArray = weight / weight.sum()
    return scaled


def _time(plan: Plan, problem: Problem) -> float:
    """Sum the largest GPU loads, with the price of traffic in the same unit."""
    scored = evaluate_for(plan, problem, traffic=problem.traffic_price > 0)
    time = float(scored.max_load.sum())
    if scored.traffic is not None:
        nodes = scored.traffic.critical_nodes * problem.traffic_price
        time += nodes * float(scored.mean_load.sum())
    return time
