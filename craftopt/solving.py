"""The registry of methods, and solve: one function for all of them."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from craftopt.compiling import GPUS, REPLICAS, TOKENS, first_use
from craftopt.errors import InputError, choice
from craftopt.executors import Executor
from craftopt.loads import Loads
from craftopt.objective import ObjectiveName
from craftopt.plan import Plan
from craftopt.problem import Problem
from craftopt.rebalancing import relabel_for_links
from craftopt.result import Options, Outcome, Result

MethodName = Literal[
    "trivial",
    "placement",
    "eplb",
    "eplb-hierarchical",
    "eplb-counts",
    "craft",
    "craft-artifact",
    "nominal",
    "fast",
    "exact",
]


@dataclass(frozen=True)
class Method:
    """Describe a way to make plans, and what it can plan.

    Parameters
    ----------
    name : MethodName
    summary : str
    home : str
        ``module:function``; loaded on first use. The function takes the problem (and, where
        there is a `work` unit, the `Options`) and returns an `Outcome`.
    work : str
        What ``work_limit`` counts; empty for methods that take no options.
    groups : {"any", "none", "needed"}
        Problems with and without expert groups, only without, or only with them.
    moves : {"kept", "refused", "ignored"}
        What it does with ``max_moves``. Where it ignores the previous plan, `Result.violations`
        names the rule if it is broken (CRAFT's methods then have no plan).
    objectives : tuple of str
        Those that it takes; baselines take all, since they look at none.
    proves : bool
        Whether it goes on until its plan is proven optimal, which may take minutes: such a
        method runs only where it is asked for.
    needs : tuple of str
        Modules beyond the core that must be installed.
    """

    name: MethodName
    summary: str
    home: str
    work: str = ""
    groups: Literal["any", "none", "needed"] = "any"
    moves: Literal["kept", "refused", "ignored"] = "ignored"
    objectives: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
    proves: bool = False
    needs: tuple[str, ...] = ()

    def refusal(self, problem: Problem) -> str:
        """Say why the method has no plan for such problems; empty where it may have one."""
        if problem.objective not in self.objectives:
            return (
                f"{self.name} plans for no objective={problem.objective!r}; pass objective="
                f"{' or '.join(map(repr, self.objectives))}, or method fast"
            )
        if self.groups == "none" and problem.expert_groups is not None:
            return f"{self.name} ignores expert_groups; pass none, or method eplb-hierarchical"
        if self.groups == "needed" and problem.expert_groups is None:
            return f"{self.name} needs expert_groups; pass them, or another method"
        if self.moves == "refused" and problem.max_moves is not None:
            return (
                f"{self.name} plans from scratch and cannot keep max_moves={problem.max_moves}; "
                "pass none, use craftopt.rebalance, or method exact"
            )
        if self.proves:
            try:
                problem.require_even_balance(self.name)
            except InputError as error:
                return str(error)
        return ""

    def load(self) -> Callable[[Problem, Options], Outcome]:
        """Import what makes the plans."""
        module, function = self.home.split(":")
        plan = getattr(importlib.import_module(module), function)
        return plan if self.work else lambda problem, options: plan(problem)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("trivial", "experts by id, no replicas", "craftopt.baselines.trivial:plan_trivial"),
        Method(
            "placement",
            "EPLB's packing, no replicas",
            "craftopt.baselines.eplb:plan_placement",
        ),
        Method(
            "eplb",
            "DeepSeek's EPLB, global policy",
            "craftopt.baselines.eplb:plan_eplb",
            groups="none",
        ),
        Method(
            "eplb-hierarchical",
            "DeepSeek's EPLB, expert groups onto nodes",
            "craftopt.baselines.eplb:plan_eplb_hierarchical",
            groups="needed",
        ),
        Method(
            "eplb-counts",
            "EPLB's replication and packing for any number of replicas",
            "craftopt.baselines.eplb:plan_eplb_counts",
        ),
        Method(
            "craft",
            "CRAFT as its paper has it",
            "craftopt.baselines.craft:plan_craft",
            groups="none",
        ),
        Method(
            "craft-artifact",
            "CRAFT as its authors released it",
            "craftopt.baselines.craft_artifact:plan_craft_artifact",
            groups="none",
        ),
        Method(
            "nominal",
            "near-optimal for the summed load: knapsack, packing, exchanges",
            "craftopt.planners.nominal:plan_nominal",
            work="placements of a layer",
            moves="refused",
        ),
        Method(
            "fast",
            "planned for the windows of traffic: knapsack, annealing",
            "craftopt.planners.fast:plan_fast",
            work="annealing steps per layer",
            moves="refused",
        ),
        Method(
            "exact",
            "searched, then proved: CP-SAT per layer, knapsack over bounds",
            "craftopt_formulations.exact:plan_exact",
            work="deterministic seconds of CP-SAT",
            moves="kept",
            objectives=("time", "balancedness"),
            proves=True,
            needs=("ortools", "pulp"),
        ),
    )
}


def methods() -> tuple[MethodName, ...]:
    """Return the names of the methods that can run here.

    Examples
    --------
    >>> import craftopt as co
    >>> "eplb" in co.methods()
    True
    """
    return tuple(method.name for method in METHODS.values() if not _missing(method))


def find_method(name: str) -> Method:
    """Look a method up by name.

    Raises
    ------
    InputError
        A name that no method has, or a method whose packages are not installed.
    """
    method = METHODS[choice("method", name, METHODS)]
    missing = _missing(method)
    if missing:
        raise InputError(
            f"method={name!r} needs {', '.join(missing)}: pip install 'craftopt[exact]'"
        )
    return method


def solve(
    problem: Problem,
    method: MethodName = "fast",
    *,
    seed: int = 0,
    work_limit: int | None = None,
    time_limit: float | None = None,
    workers: int | Executor | None = None,
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
        Most work, in the method's own unit (`Method.work`); the same plan on any machine.
    time_limit : float, optional
        Seconds; a safety stop after which equal plans are not promised.
    workers : int or Executor, optional
        Threads, or where else layers are searched: on a cluster (`Dask`), or with what is
        finished kept for a later run (`Resumable`). All processors by default. The plan does not
        depend on it.
    progress : callable, optional
        Called with the share of the work done, 0 to 1, by methods that take long.

    Returns
    -------
    Result
        Plan, recomputed objective, proven bound, gap, and the rules that the plan breaks. The
        first use of a method compiles it, before the clock of `Result.runtime` starts.

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
    options = Options(seed, work_limit, time_limit, workers, progress)
    plan = entry.load()
    refusal = entry.refusal(problem)
    compile_time = 0.0 if refusal else _compile(entry, problem)
    start = time.perf_counter()
    outcome = Outcome(message=refusal) if refusal else plan(problem, options)
    runtime = time.perf_counter() - start
    planned = outcome.plan
    if planned is not None and entry.work:
        planned = _on_cheap_links(planned, problem)
    return Result(
        method=entry.name,
        problem=problem,
        runtime=runtime,
        compile_time=compile_time,
        limit=outcome.limit,
        message=outcome.message,
        _plan=planned,
        _proven=outcome.bound,
        _infeasible=outcome.infeasible,
    )


def warm_up(names: Iterable[str] | None = None) -> dict[str, float]:
    """Compile what methods need, so that the first plan of a process starts at once.

    Kernels are cached on disk (`craftopt.jit`): compiled once on a machine, they are loaded in
    a moment by every later process.

    Parameters
    ----------
    names : iterable of str, optional
        Methods; by default all that can run here.

    Returns
    -------
    dict
        Seconds by method.

    Examples
    --------
    >>> import craftopt as co
    >>> list(co.warm_up(["eplb", "nominal"]))
    ['eplb', 'nominal']
    """
    chosen = [find_method(name) for name in (methods() if names is None else names)]
    base = Problem(Loads(TOKENS), GPUS, nodes=2, replicas=REPLICAS * len(TOKENS))
    # Together, what all kinds of problems need.
    problems = [
        base,
        base.replace(loads=base.loads.total()),
        base.replace(expert_groups=2),
        base.replace(slots="uniform"),
        base.replace(objective="activated"),
    ]
    return {
        method.name: sum(
            _compile(method, problem) for problem in problems if not method.refusal(problem)
        )
        for method in chosen
    }


def _compile(method: Method, problem: Problem) -> float:
    """Compile a method and its bound for a kind of problem, on least work, without a solver."""
    work = 0 if method.proves else 1
    return first_use(
        method.name, problem, lambda small: solve(small, method.name, work_limit=work).status
    )


def _on_cheap_links(plan: Plan, problem: Problem) -> Plan:
    """Rename GPUs if links have costs; within their nodes where more than balance depends on it."""
    if problem.link_cost is None:
        return plan
    joint = problem.traffic is not None or problem.max_slowdown is not None
    return relabel_for_links(
        plan,
        problem.loads,
        problem.link_cost,
        problem.dispatch,
        within_nodes=joint or problem.dispatch != "even" or problem.expert_groups is not None,
    )


def _missing(method: Method) -> list[str]:
    return [module for module in method.needs if importlib.util.find_spec(module) is None]
