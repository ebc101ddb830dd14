"""Result: what a method made of a problem, and how good it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from craftopt.errors import NoPlanError
from craftopt.plan import Plan
from craftopt.problem import Problem

Limit = Literal["work", "time"]


class Status(Enum):
    """How a method ended.

    ``OPTIMAL``: the plan keeps every rule and attains a proven bound (to 1e-9 relative).
    ``FEASIBLE``: there is a plan; `Result.violations` names the rules that it breaks.
    ``INFEASIBLE``: proven that no plan exists. ``NOT_FOUND``: this method has none.
    """

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    NOT_FOUND = "not found"


@dataclass(frozen=True)
class Outcome:
    """What a method returns to `solve`, before anything is measured.

    Parameters
    ----------
    plan : Plan or None
    message : str
        What a user should know: why there is no plan, or what the method had to round.
    limit : "work", "time" or None
        What stopped the method before its end.
    bound : float or None
        A bound on the objective that the method proved itself.
    infeasible : bool
        Proven that no plan exists.
    """

    plan: Plan | None = None
    message: str = ""
    limit: Limit | None = None
    bound: float | None = None
    infeasible: bool = False


@dataclass(frozen=True, eq=False)
class Result:
    """Hold a method's plan with its recomputed objective, the bound and the gap.

    Parameters
    ----------
    objective : float or None
        Relative time, mean balancedness or activated copies, recomputed from the plan.
    bound : float
        No plan does better than this; readable whatever the status.
    gap : float or None
        Distance of objective and bound, relative, at least 0; None where there is no plan
        or it breaks rules.
    violations : tuple of str
        Rules that the plan breaks; empty = valid.
    runtime : float
        Seconds that the method took, without evaluation and bound.
    """

    method: str
    problem: Problem = field(repr=False)
    status: Status
    objective: float | None
    bound: float
    gap: float | None
    violations: tuple[str, ...]
    runtime: float
    limit: Limit | None = None
    message: str = ""
    _plan: Plan | None = field(default=None, repr=False)

    @property
    def plan(self) -> Plan:
        """The plan.

        Raises
        ------
        NoPlanError
            There is none; the message says why.
        """
        if self._plan is None:
            raise NoPlanError(f"{self.method} has no plan ({self.status.value}): {self.message}")
        return self._plan

    @property
    def has_plan(self) -> bool:
        """Whether `plan` can be read."""
        return self._plan is not None
