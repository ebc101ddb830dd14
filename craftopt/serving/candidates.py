"""Full plans under the serving model: memory, goodput, and the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from craftopt.evaluation import evaluate
from craftopt.loads import Loads
from craftopt.plan import Plan
from craftopt.problem import SlotRule
from craftopt.serving.deployment import TIE, Deployment, Workload
from craftopt.serving.goodput import Service, service_of
from craftopt.serving.memory import Memory, memory_of
from craftopt.serving.timing import Profile, profile_of


@dataclass(frozen=True, eq=False)
class Candidate:
    """Hold the scores of a full plan: ``served`` is on windows that it was not planned on.

    Parameters
    ----------
    name : str
    plan : Plan
    slots : str
    memory : Memory
    relative_time_planned, relative_time_served : float
    planned, served : Service
    loadable : bool
        Whether engines can load it today: every GPU has the same slots in every layer.
    """

    name: str
    plan: Plan
    slots: SlotRule
    memory: Memory
    relative_time_planned: float
    relative_time_served: float
    planned: Service
    served: Service
    loadable: bool
    profile: Profile

    @property
    def goodput(self) -> float:
        """Requests per second on the windows served."""
        return self.served.requests_per_second


def score(
    name: str,
    plan: Plan,
    slots: SlotRule,
    deployment: Deployment,
    workload: Workload,
    planned: Loads,
    served: Loads,
) -> Candidate:
    """Score a plan on the windows that it was made for and on others."""
    memory = memory_of(deployment, plan)
    on_planned, on_served = profile_of(plan, planned), profile_of(plan, served)
    return Candidate(
        name=name,
        plan=plan,
        slots=slots,
        memory=memory,
        relative_time_planned=evaluate(plan, planned).relative_time,
        relative_time_served=evaluate(plan, served).relative_time,
        planned=service_of(deployment, on_planned, memory, workload),
        served=service_of(deployment, on_served, memory, workload),
        loadable=bool(plan.slots.min() == plan.slots.max()),
        profile=on_served,
    )


def winner(candidates: Sequence[Candidate], goodputs: Sequence[float]) -> Candidate:
    """Choose the best; among those as good within `TIE`, the loadable, then the smallest."""
    most = max(goodputs)
    close = [
        candidate
        for candidate, goodput in zip(candidates, goodputs, strict=True)
        if goodput >= most * (1 - TIE)
    ]
    return min(close, key=lambda candidate: (not candidate.loadable, candidate.memory.used))
