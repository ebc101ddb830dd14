"""Plan with several methods, and score them on the windows planned and on others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from craftopt.coactivation import Coactivation, standard_error
from craftopt.comparison import Comparison, Row, Scores
from craftopt.errors import InfeasibleError, InputError, choice
from craftopt.evaluation import Evaluation, evaluate, mean_activated
from craftopt.executors import Executor
from craftopt.loads import Loads
from craftopt.plan import Plan
from craftopt.problem import Problem
from craftopt.result import Result
from craftopt.routing import DISPATCHES, Dispatch
from craftopt.solving import MethodName, find_method, methods, solve
from craftopt.traces import Trace
from craftopt.windows import domains, holdout, planned_tokens

# Windows that differ by more than this factor in tokens: the objective balancedness counts each
# once, the sum that EPLB plans for does not.
UNEVEN = 2.0
_ALIKE = "planned on windows scaled to equal tokens, which count alike in the balancedness"
_OVER = "over the budget: what engines spend by default"


def compare(
    problem: Problem,
    served: Loads | None = None,
    names: Sequence[str] | None = None,
    *,
    foreign: Loads | None = None,
    dispatch: Dispatch = "even",
    trace: Trace | None = None,
    coactivation: Coactivation | None = None,
    seed: int = 0,
    workers: int | Executor | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Plan with several methods, and score them on the planned and on held-out windows.

    Where the budget is below what engines spend today (one extra slot on every GPU in every
    layer), EPLB with that many replicas comes last, as a reference over the budget. Where windows
    differ in tokens by more than 2 times, under the objective balancedness, EPLB is also planned
    on windows scaled to equal tokens: that objective counts every window once.

    Parameters
    ----------
    problem : Problem
        Where traffic counts, of a trace only the tokens of the planned windows are planned with.
    served : Loads, optional
        Windows that no plan sees.
    names : sequence of str, optional
        Methods; by default all that can run here but `exact`, which may take minutes.
    foreign : Loads, optional
        Windows of a kind of traffic that neither side has; a third column.
    dispatch : str
        How the scored plans split tokens over copies, as in `evaluate`.
    trace, coactivation : Trace or Coactivation, optional
        What to measure or estimate the traffic of the plans from, as in `evaluate`.
    progress : callable, optional
        Called with the name of the method that comes next.

    Examples
    --------
    >>> import craftopt as co
    >>> loads = co.Loads([[[8, 4, 2, 2]], [[7, 5, 3, 1]]])
    >>> problem = co.Problem(loads, gpus=2, objective="balancedness")
    >>> for row in co.compare(problem, names=["trivial", "placement"]).rows[:2]:
    ...     print(row.method, row.planned.balancedness)
    trivial 0.6666666666666666
    placement 0.9
    """
    if names is None:
        names = [name for name in methods() if not find_method(name).proves]
    chosen = [find_method(name).name for name in names]
    if not chosen:
        raise InputError("names is empty; pass at least one method, or None")
    dispatch = choice("dispatch", dispatch, DISPATCHES)
    score = partial(evaluate, dispatch=dispatch, trace=trace, coactivation=coactivation)
    source = None
    if trace is not None:
        source = f"{trace.tokens:,} tokens, standard error {standard_error(trace.tokens):.3f}"
    elif coactivation is not None:
        source = f"pair counts, estimated, standard error {coactivation.standard_error:.3f}"
    if (served is not None or foreign is not None) and problem.wants_traffic:
        held = planned_tokens(problem.coactivation, problem.loads)
        problem = problem.variant(coactivation=held)
    rows, bound = [], float("nan")
    windows = (problem.loads, served, foreign)
    for label, variant, name, note in _runs(problem, chosen):
        if progress is not None:
            progress(label)
        result = solve(variant, name, seed=seed, workers=workers)
        if variant is problem:
            bound = result.bound
        rows.append(_row(label, result, windows, score, note))
    return Comparison(problem, served, bound, tuple(rows), dispatch, source, foreign)


def compare_domains(
    problem: Problem,
    names: Sequence[str] | None = None,
    *,
    dispatch: Dispatch = "even",
    trace: Trace | None = None,
    coactivation: Coactivation | None = None,
    seed: int = 0,
    workers: int | Executor | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Comparison]:
    """Leave out each domain in turn: plan on the windows of the others, serve its own.

    Parameters
    ----------
    problem : Problem
        With the windows of all domains, two or more (`holdout` says what a domain is).
    names : sequence of str, optional
        Methods, as in `compare`.
    dispatch, trace, coactivation
        As in `compare`.
    progress : callable, optional
        Called with the domain that is left out next.

    Returns
    -------
    dict
        A comparison per domain left out, in the order of the windows.

    Examples
    --------
    >>> import craftopt as co
    >>> names = ["chat/0", "code/0", "code/1"]
    >>> loads = co.Loads([[[8, 2]], [[2, 8]], [[3, 7]]], window_names=names)
    >>> results = co.compare_domains(co.Problem(loads, gpus=2), ["trivial"])
    >>> [(name, result.served.windows) for name, result in results.items()]
    [('chat', 1), ('code', 2)]
    """
    results = {}
    for domain in domains(problem.loads):
        if progress is not None:
            progress(f"without {domain}")
        planned, served = holdout(problem.loads, f"domain:{domain}")
        variant = problem.replace(loads=planned)
        results[domain] = compare(
            variant, served, names, dispatch=dispatch, trace=trace, coactivation=coactivation,
            seed=seed, workers=workers,
        )  # fmt: skip
    return results


def _runs(
    problem: Problem, names: Sequence[MethodName]
) -> Iterator[tuple[str, Problem, MethodName, str]]:
    """List what to plan, each with its label and what sets it apart from the problem."""
    for name in names:
        yield name, problem, name, ""
    loads, experts = problem.loads, problem.loads.experts
    size = loads.tokens.sum(axis=(1, 2))
    uneven = 0 < UNEVEN * size.min() < size.max()
    for name in names if uneven and problem.objective == "balancedness" else ():
        if name.startswith("eplb"):
            alike = Loads(
                loads.tokens * (size.mean() / size)[:, np.newaxis, np.newaxis],
                loads.layer_ids,
                loads.window_names,
            )
            yield f"{name} (equal windows)", problem.variant(loads=alike), name, _ALIKE
    engine = (experts // problem.gpus + 1) * problem.gpus - experts
    reference: MethodName = "eplb" if problem.expert_groups is None else "eplb-hierarchical"
    if reference not in names or problem.replicas >= engine * loads.layers:
        return
    try:
        variant = problem.replace(slots="uniform", replicas_per_layer=engine, max_copies=None)
    except InfeasibleError:
        return
    yield f"{reference} (+{engine} per layer)", variant, reference, _OVER


def _row(
    label: str,
    result: Result,
    windows: Sequence[Loads | None],
    score: Callable[[Plan, Loads], Evaluation],
    note: str,
) -> Row:
    """Score a result on planned, served and foreign windows."""
    over_budget = note == _OVER
    note = (note or result.message).removeprefix(f"{label} ")
    if not result.has_plan:
        return Row(
            label, result.status.value, None, None, None, None, None, None, None,
            result.runtime * 1e3, note,
        )  # fmt: skip
    plan = result.plan
    totals = plan.slots.sum(axis=0)
    decode = not result.problem.goal.even_dispatch
    planned, served, foreign = (
        None if loads is None else _scores(plan, loads, score, decode) for loads in windows
    )
    return Row(
        method=label,
        status=result.status.value,
        replicas=plan.replicas,
        slots_per_gpu=(int(totals.min()), int(totals.max())),
        planned=planned,
        served=served,
        foreign=foreign,
        gap=None if over_budget else result.gap,
        duplicates=plan.duplicates,
        milliseconds=result.runtime * 1e3,
        note=note,
    )


def _scores(
    plan: Plan, loads: Loads, score: Callable[[Plan, Loads], Evaluation], decode: bool
) -> Scores:
    activated = mean_activated(plan, loads) if decode else None
    return Scores.of(score(plan, loads), activated)
