"""Methods side by side on one problem, on the windows planned and on others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from craftopt.errors import InfeasibleError, InputError
from craftopt.evaluation import DISPATCHES, Evaluation, evaluate, mean_activated
from craftopt.loads import FloatArray, Loads
from craftopt.plan import Plan
from craftopt.problem import Problem
from craftopt.result import Result
from craftopt.solving import MethodName, find_method, methods, solve

# Beyond this range a Gamma variable underflows, or all blends are the average.
_LEAST_ALPHA, _MOST_ALPHA = 0.01, 1000.0
_DRIFT = 0.9  # correlation of a part's weight from one window to the next


@dataclass(frozen=True)
class Scores:
    """What a plan scores on some windows; ``activated`` for the objective of that name only."""

    balancedness: float
    worst_layer: float
    relative_time: float
    activated: float | None = None

    @classmethod
    def of(cls, evaluation: Evaluation, activated: float | None = None) -> Scores:
        """Take the scores of an evaluation."""
        return cls(
            evaluation.mean_balancedness,
            evaluation.worst_layer,
            evaluation.relative_time,
            activated,
        )


@dataclass(frozen=True)
class Row:
    """One method's line in a comparison.

    ``planned`` and ``served`` score the windows that the plan was made for and the ones held
    out; ``slots_per_gpu`` are the copies of the GPUs with the fewest and the most, over all
    layers; ``gap`` is to the bound on the planned windows under even dispatch, None for plans
    that break rules.
    """

    method: str
    status: str
    replicas: int | None
    slots_per_gpu: tuple[int, int] | None
    planned: Scores | None
    served: Scores | None
    gap: float | None
    duplicates: int | None
    milliseconds: float
    note: str


@dataclass(frozen=True)
class Comparison:
    """Methods side by side; ``bound`` is on the objective over the planned windows.

    Rows are scored under ``dispatch``; objective, bound and gap are always of even dispatch, for
    the objective activated of exact routing.
    """

    problem: Problem
    served: Loads | None
    bound: float
    rows: tuple[Row, ...]
    dispatch: str = "even"

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain values, for JSON."""
        problem = self.problem
        return {
            "gpus": problem.gpus,
            "nodes": problem.nodes,
            "replicas": problem.replicas,
            "slots": problem.slots,
            "objective": problem.objective,
            "dispatch": self.dispatch,
            "bound": self.bound,
            "planned_windows": list(problem.loads.window_names),
            "served_windows": list(self.served.window_names) if self.served else [],
            "rows": [asdict(row) for row in self.rows],
        }


def compare(
    problem: Problem,
    served: Loads | None = None,
    names: Sequence[str] | None = None,
    *,
    dispatch: str = "even",
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Plan with several methods, and score them on the planned and on held-out windows.

    Where the budget is below what engines spend today (one extra slot on every GPU in every
    layer), EPLB with that many replicas stands at the end, as a reference over the budget.

    Parameters
    ----------
    problem : Problem
    served : Loads, optional
        Windows that no plan sees.
    names : sequence of str, optional
        Methods; by default all that can run here but `exact`, which may take minutes.
    dispatch : str
        How the scored plans split tokens over copies, as in `evaluate`.
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
    if dispatch not in DISPATCHES:
        raise InputError(f"dispatch={dispatch!r} is unknown; pass one of {', '.join(DISPATCHES)}")
    rows, bound = [], float("nan")
    for label, variant, name in _runs(problem, chosen):
        if progress is not None:
            progress(label)
        result = solve(variant, name, seed=seed, workers=workers)
        if variant is problem:
            bound = result.bound
        rows.append(_row(label, result, served, dispatch, over_budget=variant is not problem))
    return Comparison(problem, served, bound, tuple(rows), dispatch)


def compare_domains(
    problem: Problem,
    names: Sequence[str] | None = None,
    *,
    dispatch: str = "even",
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Comparison]:
    """Leave out each domain in turn: plan on the windows of the others, serve its own.

    Parameters
    ----------
    problem : Problem
        With the windows of all domains, two or more (`holdout` says what a domain is).
    names : sequence of str, optional
        Methods, as in `compare`.
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
    for domain in _domains(problem.loads):
        if progress is not None:
            progress(f"without {domain}")
        planned, served = holdout(problem.loads, f"domain:{domain}")
        variant = problem.replace(loads=planned)
        results[domain] = compare(
            variant, served, names, dispatch=dispatch, seed=seed, workers=workers
        )
    return results


def holdout(loads: Loads, rule: str) -> tuple[Loads, Loads]:
    """Split windows into those to plan on and those to serve.

    Parameters
    ----------
    loads : Loads
    rule : str
        ``"odd-even"``: plan on odd 0-based positions, serve the even ones. ``"first-half"``:
        plan on the first half, serve the rest; ``"second-half"`` the other way round.
        ``"domain:NAME"``: serve the windows of one domain, plan on all others; a window's
        domain is its name up to the first ``/``, the whole name where there is none. Else a
        text file that names the windows to serve, one a line.

    Raises
    ------
    InputError
        An unknown rule, domain or window, or a split that leaves a side empty.

    Examples
    --------
    >>> import craftopt as co
    >>> train, test = co.holdout(co.Loads([[[1, 2]], [[3, 4]], [[5, 6]]]), "odd-even")
    >>> train.window_names, test.window_names
    (('1',), ('0', '2'))
    """
    if loads.windows < 2:
        raise InputError("these loads have 1 window; a holdout needs at least 2")
    position = np.arange(loads.windows)
    if rule == "odd-even":
        return loads.split(position % 2 == 1)
    if rule == "first-half":
        return loads.split(position < loads.windows // 2)
    if rule == "second-half":
        return loads.split(position >= loads.windows // 2)
    if rule.startswith("domain:"):
        return _without_domain(loads, rule.removeprefix("domain:"))
    path = Path(rule)
    try:
        names = set(path.read_text(encoding="utf-8").split("\n"))
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"holdout {rule!r} is neither odd-even, first-half, second-half nor domain:NAME "
            "nor a text file of window names"
        ) from None
    names = {name.strip() for name in names if name.strip()}
    unknown = sorted(names - set(loads.window_names))
    if unknown:
        raise InputError(
            f"{rule} names {unknown[0]!r}, which is no window; the loads have "
            f"{', '.join(loads.window_names[:4])}{', ...' if loads.windows > 4 else ''}"
        )
    return loads.split(np.array([name not in names for name in loads.window_names]))


def blend(loads: Loads, alpha: float, windows: int = 100, seed: int = 0) -> Loads:
    """Make windows that mix the given ones in shares that drift.

    The shares of every window are Dirichlet(alpha) distributed over the given windows, and
    change little from one to the next: they are Gamma(alpha) variables over their sum, each
    carried on by a beta-gamma autoregression (Lewis, McKenzie and Hugus, 1989), which keeps
    the distribution, with a correlation of 0.9. Given windows count alike, whatever their
    tokens; every blend has as many tokens as they have on average.

    Parameters
    ----------
    loads : Loads
    alpha : float
        At most 1000, at least 0.01: small values serve nearly one window at a time, great ones
        the average of all.
    windows : int
        Windows to make.
    seed : int

    Raises
    ------
    InputError
        A value outside its range.

    Examples
    --------
    >>> import craftopt as co
    >>> blended = co.blend(co.Loads([[[8, 2]], [[2, 8]]]), alpha=0.5, windows=3)
    >>> blended.window_names
    ('blend/00000', 'blend/00001', 'blend/00002')
    >>> blended.tokens.sum(axis=2).ravel()
    array([10., 10., 10.])
    """
    if not _LEAST_ALPHA <= alpha <= _MOST_ALPHA:
        raise InputError(f"alpha={alpha}; pass {_LEAST_ALPHA:g} to {_MOST_ALPHA:g}")
    if windows < 1:
        raise InputError(f"windows={windows}; pass at least 1")
    shares = _drifting_shares(loads.windows, alpha, windows, np.random.default_rng(seed))
    flat = loads.tokens.reshape(loads.windows, -1)
    total = flat.sum(axis=1, keepdims=True)
    if not total.all():
        name = loads.window_names[int(np.argmin(total))]
        raise InputError(f"window {name!r} has no tokens to blend; leave it out (Loads.select)")
    tokens = shares @ (flat / total) * total.mean()
    names = [f"blend/{window:05d}" for window in range(windows)]
    return Loads(tokens.reshape(windows, *loads.tokens.shape[1:]), loads.layer_ids, names)


def _drifting_shares(
    parts: int, alpha: float, steps: int, generator: np.random.Generator
) -> FloatArray:
    """Draw Dirichlet(alpha) shares that drift, float64 [steps, parts]; rows sum to 1."""
    weights = np.empty((steps, parts))
    weights[0] = generator.gamma(alpha, size=parts)
    fresh = generator.gamma(alpha * (1 - _DRIFT), size=(steps, parts))
    # Beta(alpha d, alpha (1 - d)) of a Gamma(alpha) is Gamma(alpha d); fresh makes it whole.
    kept = generator.beta(alpha * _DRIFT, alpha * (1 - _DRIFT), size=(steps, parts))
    for step in range(1, steps):
        weights[step] = kept[step] * weights[step - 1] + fresh[step]
    # At the least alpha, all weights of a step can be too small for a number.
    weights += np.finfo(float).tiny
    shares: FloatArray = weights / weights.sum(axis=1, keepdims=True)
    return shares


def _domain_of(window_name: str) -> str:
    return window_name.split("/", 1)[0]


def _domains(loads: Loads) -> list[str]:
    """List the domains of the windows in order, at least two."""
    domains = list(dict.fromkeys(map(_domain_of, loads.window_names)))
    if len(domains) < 2:
        raise InputError(
            f"all windows are of the domain {domains[0]!r}; leaving one out needs two or more"
        )
    return domains


def _without_domain(loads: Loads, domain: str) -> tuple[Loads, Loads]:
    domains = _domains(loads)
    if domain not in domains:
        raise InputError(f"{domain!r} is no domain of these windows; they are {', '.join(domains)}")
    return loads.split(np.array([_domain_of(name) != domain for name in loads.window_names]))


def _runs(
    problem: Problem, names: Sequence[MethodName]
) -> Iterator[tuple[str, Problem, MethodName]]:
    for name in names:
        yield name, problem, name
    experts = problem.loads.experts
    engine = (experts // problem.gpus + 1) * problem.gpus - experts
    reference: MethodName = "eplb" if problem.expert_groups is None else "eplb-hierarchical"
    if reference not in names or problem.replicas >= engine * problem.loads.layers:
        return
    try:
        variant = problem.replace(slots="uniform", replicas_per_layer=engine, max_copies=None)
    except InfeasibleError:
        return
    yield f"{reference} (+{engine} per layer)", variant, reference


def _row(
    label: str, result: Result, served: Loads | None, dispatch: str, *, over_budget: bool
) -> Row:
    note = "over the budget: what engines spend by default" if over_budget else result.message
    if not result.has_plan:
        return Row(
            label, result.status.value, None, None, None, None, None, None,
            result.runtime * 1e3, note,
        )  # fmt: skip
    plan = result.plan
    totals = plan.slots.sum(axis=0)
    decode = result.problem.objective == "activated"
    return Row(
        method=label,
        status=result.status.value,
        replicas=plan.replicas,
        slots_per_gpu=(int(totals.min()), int(totals.max())),
        planned=_scores(plan, result.problem.loads, dispatch, decode),
        served=_scores(plan, served, dispatch, decode) if served is not None else None,
        gap=None if over_budget else result.gap,
        duplicates=plan.duplicates,
        milliseconds=result.runtime * 1e3,
        note=note,
    )


def _scores(plan: Plan, loads: Loads, dispatch: str, decode: bool) -> Scores:
    activated = mean_activated(plan, loads) if decode else None
    return Scores.of(evaluate(plan, loads, dispatch), activated)
