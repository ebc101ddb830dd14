"""Full plans under the serving model: memory, goodput, and the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from craftopt.coactivation import Coactivation
from craftopt.evaluation import evaluate
from craftopt.loads import Loads
from craftopt.plan import Plan
from craftopt.problem import PlannedDispatch, Problem, SlotRule
from craftopt.result import Options
from craftopt.serving.deployment import TIE, Deployment, Workload
from craftopt.serving.goodput import Service, service_of
from craftopt.serving.memory import Memory, memory_of
from craftopt.serving.sweep import Budget, label
from craftopt.serving.timing import Profile, profile_of
from craftopt.solving import solve
from craftopt.traces import Trace


@dataclass(frozen=True, eq=False)
class Candidate:
    """Hold the scores of a full plan: ``served`` is on windows that it was not planned on.

    Parameters
    ----------
    name : str
    problem : Problem
        What the plan is for. ``solve(problem, "fast")`` plans it with all of its steps: plans that
        are only compared have fewer.
    plan : Plan
    memory : Memory
    relative_time_planned, relative_time_served : float
    planned, served : Service
    loadable : bool
        Whether engines can load it today: every GPU has the same slots in every layer.
    profile : Profile
        On the windows served, with the plan's traffic where it is known.
    """

    name: str
    problem: Problem
    plan: Plan
    memory: Memory
    relative_time_planned: float
    relative_time_served: float
    planned: Service
    served: Service
    loadable: bool
    profile: Profile

    @property
    def slots(self) -> SlotRule:
        """The memory layout."""
        return self.problem.slots

    @property
    def dispatch(self) -> PlannedDispatch:
        """How tokens are split over copies, in planning and in serving."""
        return self.problem.dispatch

    @property
    def price(self) -> float:
        """What a node that a token visits cost in planning, in mean GPU loads."""
        return self.problem.traffic_price

    @property
    def goodput(self) -> float:
        """Requests per second on the windows served."""
        return self.served.requests_per_second


def winner(candidates: Sequence[Candidate], goodputs: Sequence[float]) -> Candidate:
    """Choose the best; among those as good within `TIE`, the loadable, smallest, evenly served."""
    most = max(goodputs)
    close = [
        (candidate, goodput)
        for candidate, goodput in zip(candidates, goodputs, strict=True)
        if goodput >= most * (1 - TIE)
    ]

    def rank(found: tuple[Candidate, float]) -> tuple[bool, float, bool, float]:
        candidate, goodput = found
        uneven = candidate.dispatch != "even"
        return not candidate.loadable, candidate.memory.used, uneven, -goodput

    return min(close, key=rank)[0]


@dataclass(frozen=True)
class Plans:
    """Makes and scores full plans for budgets.

    Parameters
    ----------
    problem : Problem
        The planned windows, and what is known of their tokens.
    served : Loads
    coactivation : Coactivation or Trace or None
        Of all windows.
    """

    deployment: Deployment
    workload: Workload
    problem: Problem
    served: Loads
    coactivation: Coactivation | Trace | None
    options: Options

    def score(self, name: str, problem: Problem, plan: Plan) -> Candidate:
        """Score a plan of a problem on the windows that it was made for and on others."""
        deployment, workload, known = self.deployment, self.workload, self.coactivation
        memory = memory_of(deployment, plan)
        times, profiles = [], []
        for windows in (problem.loads, self.served):
            scored = evaluate(
                plan,
                windows,
                problem.dispatch,
                trace=known if isinstance(known, Trace) else None,
                coactivation=known if isinstance(known, Coactivation) else None,
            )
            times.append(scored.relative_time)
            profiles.append(profile_of(plan, windows, scored.traffic, problem.dispatch))
        on_planned, on_served = profiles
        return Candidate(
            name=name,
            problem=problem,
            plan=plan,
            memory=memory,
            relative_time_planned=times[0],
            relative_time_served=times[1],
            planned=service_of(deployment, on_planned, memory, workload),
            served=service_of(deployment, on_served, memory, workload),
            loadable=bool(plan.slots.min() == plan.slots.max()),
            profile=on_served,
        )

    def balanced(self, budget: Budget) -> Candidate:
        """Plan for balance alone."""
        from craftopt.planners.windowed import WindowedSearch  # noqa: PLC0415 (loads numba)

        problem = self._problem(budget)
        search = WindowedSearch(problem, self.options)
        plan = problem.plan(search.plan(np.array(budget.allocation)), "fast")
        return self.score(label(budget), problem, plan)

    def with_traffic(self, budget: Budget, balanced: Candidate) -> list[Candidate]:
        """Plan for balance and traffic together; list the plans that are new."""
        from craftopt.planners.joint import JointSearch  # noqa: PLC0415 (loads numba)

        found = []
        dispatches: tuple[PlannedDispatch, ...] = ("even", "nearest-even")
        for dispatch in dispatches if budget.replicas else dispatches[:1]:
            problem = self._problem(budget, traffic=self.deployment, dispatch=dispatch)
            search = JointSearch(problem, self.options, balanced.plan.copies)
            plan = problem.plan(search.plan(np.array(budget.allocation)), "fast")
            name = f"{label(budget)}, traffic"
            if dispatch != "even":
                name += f", {dispatch}"
            elif plan == balanced.plan:
                continue
            found.append(self.score(name, problem, plan))
        return found

    def eplb(self) -> Candidate | None:
        """Plan as engines do by default: one extra slot on every GPU in every layer."""
        experts, gpus = self.problem.loads.experts, self.problem.gpus
        extra = (experts // gpus + 1) * gpus - experts
        if extra > experts * (self.problem.copies_limit - 1):
            return None
        problem = self.problem.replace(slots="uniform", replicas_per_layer=extra)
        grouped = problem.expert_groups is not None
        found = solve(problem, "eplb-hierarchical" if grouped else "eplb")
        if not found.has_plan:
            return None
        if not memory_of(self.deployment, found.plan).concurrency(self.workload.context):
            return None
        return self.score("EPLB's default", problem, found.plan)

    def _problem(self, budget: Budget, **changes: Any) -> Problem:
        return self.problem.replace(slots=budget.slots, replicas=budget.replicas, **changes)
