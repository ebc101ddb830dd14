"""Result: what a method made of a problem, and how good it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import cached_property
from typing import Any, Literal

import numpy as np

from craftopt.bounds import whole_plan_bound
from craftopt.display import Displayed, Table
from craftopt.errors import InputError, NoPlanError, number, whole
from craftopt.evaluation import Evaluation, evaluate_for, objective_value
from craftopt.executors import Executor, Resumable, Threads
from craftopt.plan import Plan
from craftopt.problem import Problem
from craftopt.rules import violations
from craftopt.traffic import traffic_summary

Limit = Literal["work", "time"]

# A plan that is this close to its bound, relative, is called optimal: floating-point noise.
OPTIMAL_GAP = 1e-9
# Seconds from which on a summary names the first use.
COMPILED = 0.05


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
class Options:
    """Say how a method searches; the plan depends on the seed and the limits alone.

    Parameters
    ----------
    seed : int
    work_limit : int, optional
        Most work, in the method's own unit; the same plan on any machine.
    time_limit : float, optional
        Seconds; a safety stop after which equal plans are not promised.
    workers : int or Executor, optional
        Threads, or what runs the search of layers; all processors by default.
    progress : callable, optional
        Called with the share of the work done, 0 to 1.

    Raises
    ------
    InputError
        A value outside its range; a time limit where finished layers are kept.
    """

    seed: int = 0
    work_limit: int | None = None
    time_limit: float | None = None
    workers: int | Executor | None = None
    progress: Callable[[float], None] | None = None

    def __post_init__(self) -> None:
        whole("seed", self.seed, -(2**63))
        if self.work_limit is not None:
            whole("work_limit", self.work_limit, 0)
        if self.time_limit is not None:
            number("time_limit", self.time_limit, above=0)
        if self.workers is not None and not hasattr(self.workers, "run"):
            whole("workers", self.workers, 1)
        if self.time_limit is not None and isinstance(self.workers, Resumable):
            raise InputError(
                f"time_limit={self.time_limit:g} may cut layers short, which are then no layers to "
                "keep; leave it out, and stop with Ctrl-C"
            )

    def deadline(self) -> float:
        """Start the clock: return the moment of `time.monotonic` to stop at."""
        return math.inf if self.time_limit is None else time.monotonic() + self.time_limit

    @property
    def executor(self) -> Executor:
        """What runs the search of layers."""
        given = self.workers
        return Threads(given) if given is None or isinstance(given, int | np.integer) else given


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


def also_planned(slots: str, seconds: float) -> str:
    """Say that a stricter slot rule was planned as well, whose plan could have been better."""
    return f"slots={slots!r} planned as well, {seconds:.2g} s"


@dataclass(frozen=True, eq=False, repr=False)
class Result(Displayed):
    """Hold a method's plan; what the plan is worth is computed when it is first asked for.

    Parameters
    ----------
    method : str
    problem : Problem
    runtime : float
        Seconds that the method took, without compiling, evaluation and bound.
    compile_time : float
        Seconds of compiling, or of loading compiled kernels, before that; 0 but on first use.
    limit : "work", "time" or None
        What stopped the method before its end.
    message : str
        What a user should know.
    """

    method: str
    problem: Problem = field(repr=False)
    runtime: float
    compile_time: float = 0.0
    limit: Limit | None = None
    message: str = ""
    _plan: Plan | None = field(default=None, repr=False)
    _proven: float | None = field(default=None, repr=False)  # the method's own bound
    _infeasible: bool = field(default=False, repr=False)

    @cached_property
    def objective(self) -> float | None:
        """Relative time, mean balancedness or activated copies of the plan; None without one."""
        return objective_value(self._held(), self.problem) if self.has_plan else None

    @cached_property
    def violations(self) -> tuple[str, ...]:
        """Rules that the plan breaks; empty = valid."""
        return violations(self._held(), self.problem) if self.has_plan else ()

    @cached_property
    def bound(self) -> float:
        """No plan does better than this; whatever the status."""
        bound = whole_plan_bound(self.problem)
        return bound if self._proven is None else self.problem.goal.tighter(bound, self._proven)

    @cached_property
    def gap(self) -> float | None:
        """Distance of objective and bound, relative, at least 0; None without a valid plan."""
        if self.objective is None or self.violations:
            return None
        return self.problem.goal.gap(self.objective, self.bound)

    @cached_property
    def status(self) -> Status:
        """How the method ended; whether the plan is optimal is seen from its gap."""
        if self._infeasible or not self.has_plan:
            return Status.INFEASIBLE if self._infeasible else Status.NOT_FOUND
        optimal = self.gap is not None and self.gap <= OPTIMAL_GAP
        return Status.OPTIMAL if optimal else Status.FEASIBLE

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

    @cached_property
    def scored(self) -> Evaluation | None:
        """Score the plan on its own windows, with traffic; None without plan or coactivation."""
        if self._plan is None or self.problem.coactivation is None:
            return None
        return evaluate_for(self._held(), self.problem, traffic=True)

    def _held(self) -> Plan:
        """Return the plan on the problem's GPUs."""
        return self.plan

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, for JSON."""
        traffic = (
            {}
            if self.scored is None
            else {
                "relative_time": self.scored.relative_time,
                "traffic_price": self.problem.traffic_price,
                "traffic": self.scored.traffic and self.scored.traffic.to_dict(),
            }
        )
        return traffic | {
            "method": self.method,
            "status": self.status.value,
            "limit": self.limit,
            "objective": self.objective,
            "bound": self.bound,
            "gap": self.gap,
            "violations": list(self.violations),
            "runtime": self.runtime,
            "compile_time": self.compile_time,
            "message": self.message,
            "replicas": self.plan.replicas if self.has_plan else None,
        }

    def summary(self) -> dict[str, str]:
        """Return the figures in words, for a table."""
        rows = {
            "status": self.status.value + (f" (stopped by {self.limit})" if self.limit else ""),
            self.problem.goal.label: "-" if self.objective is None else f"{self.objective:.4f}",
            "bound": f"{self.bound:.4f}",
            "gap": "-" if self.gap is None else f"{self.gap:.3%}",
            "replicas": f"- of {self.problem.replicas}",
        }
        if self.has_plan:
            facts = self.plan.summary()
            rows["replicas"] = f"{self.plan.replicas} of {self.problem.replicas}"
            rows |= {name: facts[name] for name in ("per layer", "slots per GPU")}
        if self.scored is not None:
            if not self.problem.free_traffic:  # else the note says it
                rows["price of traffic"] = self.problem.traffic_text
            rows["relative time"] = f"{self.scored.relative_time:.4f}"
            rows |= traffic_summary(self.scored.traffic)
        rows["time"] = f"{self.runtime * 1e3:.1f} ms"
        if self.compile_time >= COMPILED:
            rows["time"] += f", after {self.compile_time:.1f} s to compile or load"
        notes = {"note": self.message, "breaks": "\n".join(self.violations)}
        return rows | {name: text for name, text in notes.items() if text}

    def table(self) -> Table:
        """Lay the figures out as a table."""
        return replace(super().table(), title=f"{self.method} on {self.problem.gpus} GPUs")

    def __repr__(self) -> str:
        names = [one.name for one in fields(self) if one.repr]
        names[1:1] = ["status", "objective", "bound", "gap", "violations"]
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__name__}({values})"

    def __str__(self) -> str:
        rows = self.summary()
        names = (self.problem.goal.label, "bound", "replicas", "time")
        rows["bound"] += f", gap {rows['gap']}"
        head = (self.method, rows["status"])
        return str(Table("", (), [head, *((name, rows[name]) for name in names)]))
