"""The registry of methods, and solve: one function for all of them."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass

from craftopt.bounds import whole_plan_bound
from craftopt.errors import InputError
from craftopt.evaluation import objective_value, relative_gap, violations
from craftopt.problem import Problem
from craftopt.result import Outcome, Result, Status

# A plan that is this close to its bound, relative, is called optimal: floating-point noise.
OPTIMAL_GAP = 1e-9


@dataclass(frozen=True)
class Method:
    """Describe a way to make plans.

    Parameters
    ----------
    name, summary : str
    home : str
        ``module:function``; loaded on first use. The function takes the problem (and, where
        `searches` is true, ``seed``, ``work_limit``, ``time_limit``, ``workers`` and
        ``progress``) and returns an `Outcome`.
    proves : bool
        Whether it goes on until its plan is proven optimal, which may take minutes: such a
        method runs only where it is asked for.
    needs : tuple of str
        Modules beyond the core that must be installed.
    """

    name: str
    summary: str
    home: str
    searches: bool = False
    proves: bool = False
    needs: tuple[str, ...] = ()


METHODS = {
    method.name: method
    for method in (
        Method("trivial", "experts by id, no replicas", "craftopt.baselines.trivial:plan_trivial"),
        Method(
            "placement",
            "EPLB's packing, no replicas",
            "craftopt.baselines.eplb:plan_placement",
        ),
        Method("eplb", "DeepSeek's EPLB, global policy", "craftopt.baselines.eplb:plan_eplb"),
        Method(
            "eplb-hierarchical",
            "DeepSeek's EPLB, expert groups onto nodes",
            "craftopt.baselines.eplb:plan_eplb_hierarchical",
        ),
        Method(
            "eplb-counts",
            "EPLB's replication and packing for any number of replicas",
            "craftopt.baselines.eplb:plan_eplb_counts",
        ),
        Method("craft", "CRAFT as its paper has it", "craftopt.baselines.craft:plan_craft"),
        Method(
            "craft-artifact",
            "CRAFT as its authors released it",
            "craftopt.baselines.craft:plan_craft_artifact",
        ),
        Method(
            "nominal",
            "near-optimal for the summed load: knapsack, packing, exchanges",
            "craftopt.fast.nominal:plan_nominal",
            searches=True,
        ),
        Method(
            "fast",
            "planned for the windows of traffic: knapsack, annealing",
            "craftopt.fast.windowed:plan_fast",
            searches=True,
        ),
        Method(
            "exact",
            "searched, then proved: CP-SAT per layer, knapsack over bounds",
            "craftopt_formulations.exact:plan_exact",
            searches=True,
            proves=True,
            needs=("ortools", "pulp"),
        ),
    )
}


def methods() -> tuple[str, ...]:
    """Return the names of the methods that can run here.

    Examples
    --------
    >>> import craftopt as co
    >>> "eplb" in co.methods()
    True
    """
    return tuple(name for name, method in METHODS.items() if not _missing(method))


def find_method(name: str) -> Method:
    """Look a method up by name.

    Raises
    ------
    InputError
        A name that no method has, or a method whose packages are not installed.
    """
    method = METHODS.get(name.lower())
    if method is None:
        close = difflib.get_close_matches(name.lower(), METHODS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"method={name!r} is unknown; pass one of {', '.join(METHODS)}{hint}")
    missing = _missing(method)
    if missing:
        raise InputError(
            f"method={name!r} needs {', '.join(missing)}: pip install 'craftopt[exact]'"
        )
    return method


def solve(
    problem: Problem,
    method: str = "fast",
    *,
    seed: int = 0,
    work_limit: int | None = None,
    time_limit: float | None = None,
    workers: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Result:
    """Plan with one method, and measure the plan.

    Parameters
    ----------
    problem : Problem
    method : str
        One of `methods`.
    seed : int
        Seed of the methods that search.
    work_limit : int, optional
        Most iterations; the same plan on any machine.
    time_limit : float, optional
        Seconds; a safety stop after which equal plans are not promised.
    workers : int, optional
        Threads; all processors by default. The plan does not depend on it.
    progress : callable, optional
        Called with the share of the work done, 0 to 1, by methods that take long.

    Returns
    -------
    Result
        Plan, recomputed objective, proven bound, gap, and the rules that the plan breaks.

    Raises
    ------
    InputError
        An unknown method or a limit outside its range.

    Examples
    --------
    >>> import craftopt as co
    >>> loads = co.Loads([[600, 560, 120, 120, 20, 10, 10, 10]])
    >>> problem = co.Problem(loads, gpus=8, replicas=8, slots="uniform", objective="time")
    >>> result = co.solve(problem, "eplb")
    >>> round(result.objective, 3), round(result.bound, 3), result.violations[0][:10]
    (1.28, 1.0, 'duplicates')
    """
    entry = find_method(method)
    _check_limits(work_limit, time_limit, workers)
    module, function = entry.home.split(":")
    run = getattr(importlib.import_module(module), function)
    options = {
        "seed": seed,
        "work_limit": work_limit,
        "time_limit": time_limit,
        "workers": workers,
        "progress": progress,
    }
    start = time.perf_counter()
    outcome: Outcome = run(problem, **options) if entry.searches else run(problem)
    runtime = time.perf_counter() - start
    bound = whole_plan_bound(problem)
    if outcome.bound is not None:
        tighter = min if problem.objective == "balancedness" else max
        bound = tighter(bound, outcome.bound)
    objective = gap = None
    broken: tuple[str, ...] = ()
    status = Status.INFEASIBLE if outcome.infeasible else Status.NOT_FOUND
    if outcome.plan is not None:
        objective = objective_value(outcome.plan, problem)
        broken = violations(outcome.plan, problem)
        status = Status.FEASIBLE
        if not broken:
            gap = relative_gap(objective, bound, problem.objective)
            status = Status.OPTIMAL if gap <= OPTIMAL_GAP else Status.FEASIBLE
    return Result(
        method=entry.name,
        problem=problem,
        status=status,
        objective=objective,
        bound=bound,
        gap=gap,
        violations=broken,
        runtime=runtime,
        limit=outcome.limit,
        message=outcome.message,
        _plan=outcome.plan,
    )


def _missing(method: Method) -> list[str]:
    return [module for module in method.needs if importlib.util.find_spec(module) is None]


def _check_limits(work_limit: int | None, time_limit: float | None, workers: int | None) -> None:
    if work_limit is not None and work_limit < 0:
        raise InputError(f"work_limit={work_limit} is below 0; pass at least 0, or None")
    if time_limit is not None and not time_limit > 0:
        raise InputError(f"time_limit={time_limit} is no time; pass seconds above 0, or None")
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers} is below 1; pass at least 1, or None")
