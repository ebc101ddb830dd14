"""Full plans under the serving model: memory, goodput, and the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from craftopt.coactivation import Coactivation
from craftopt.evaluation import evaluate
from craftopt.loads import Loads
from craftopt.plan import Plan
from craftopt.problem import PlannedDispatch, Problem, SlotRule
from craftopt.serving.deployment import TIE, Deployment, Workload
from craftopt.serving.goodput import Service, service_of
from craftopt.serving.memory import Memory, memory_of
from craftopt.serving.timing import Profile, profile_of
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


def score(
    name: str,
    problem: Problem,
    plan: Plan,
    deployment: Deployment,
    workload: Workload,
    served: Loads,
    coactivation: Coactivation | Trace | None = None,
) -> Candidate:
    """Score a plan on the windows that it was made for and on others."""
    memory = memory_of(deployment, plan)
    times, profiles = [], []
    for windows in (problem.loads, served):
        scored = evaluate(
            plan,
            windows,
            problem.dispatch,
            trace=coactivation if isinstance(coactivation, Trace) else None,
            coactivation=coactivation if isinstance(coactivation, Coactivation) else None,
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
