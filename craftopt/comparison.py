"""Methods side by side on one problem, on the windows planned and on others."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from craftopt.errors import CraftoptWarning, InfeasibleError, InputError
from craftopt.evaluation import Evaluation, evaluate
from craftopt.loads import Loads
from craftopt.problem import Problem
from craftopt.result import Result
from craftopt.solving import find_method, methods, solve


@dataclass(frozen=True)
class Scores:
    """What a plan scores on some windows."""

    balancedness: float
    worst_layer: float
    relative_time: float

    @classmethod
    def of(cls, evaluation: Evaluation) -> Scores:
        """Take the scores of an evaluation."""
        return cls(evaluation.mean_balancedness, evaluation.worst_layer, evaluation.relative_time)


@dataclass(frozen=True)
class Row:
    """One method's line in a comparison.

    ``planned`` and ``served`` score the windows that the plan was made for and the ones held
    out; ``slots_per_gpu`` are the copies of the GPUs with the fewest and the most, over all
    layers; ``gap`` is to the bound on the planned windows, None for plans that break rules.
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
    """Methods side by side; ``bound`` is on the objective over the planned windows."""

    problem: Problem
    served: Loads | None
    bound: float
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain values, for JSON."""
        problem = self.problem
        return {
            "gpus": problem.gpus,
            "nodes": problem.nodes,
            "replicas": problem.replicas,
            "slots": problem.slots,
            "objective": problem.objective,
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
        Methods; all that can run here by default.
    progress : callable, optional
        Called with the name of the method that comes next.

    Examples
    --------
    >>> import craftopt as co
    >>> loads = co.Loads([[[8, 4, 2, 2]], [[7, 5, 3, 1]]])
    >>> problem = co.Problem(loads, gpus=2, objective="balancedness")
    >>> for row in co.compare(problem, names=["trivial", "placement"]).rows[:2]:
    ...     print(row.method, row.planned.balancedness)
    trivial 0.7083333333333333
    placement 1.0
    """
    chosen = methods() if names is None else tuple(names)
    for name in chosen:
        find_method(name)
    rows, bound = [], float("nan")
    for label, variant, name in _runs(problem, chosen):
        if progress is not None:
            progress(label)
        _warm_up(variant, name)
        result = solve(variant, name, seed=seed, workers=workers)
        if variant is problem:
            bound = result.bound
        rows.append(_row(label, result, served, over_budget=variant is not problem))
    return Comparison(problem, served, bound, tuple(rows))


def holdout(loads: Loads, rule: str) -> tuple[Loads, Loads]:
    """Split windows into those to plan on and those to serve.

    Parameters
    ----------
    loads : Loads
    rule : str
        ``"odd-even"``: plan on odd 0-based positions, serve the even ones. ``"first-half"``:
        plan on the first half, serve the rest. Else a text file that names the windows to
        serve, one a line.

    Raises
    ------
    InputError
        An unknown rule or window, or a split that leaves a side empty.

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
    path = Path(rule)
    try:
        names = set(path.read_text(encoding="utf-8").split("\n"))
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"holdout {rule!r} is neither odd-even nor first-half nor a text file of window names"
        ) from None
    names = {name.strip() for name in names if name.strip()}
    unknown = sorted(names - set(loads.window_names))
    if unknown:
        raise InputError(
            f"{rule} names {unknown[0]!r}, which is no window; the loads have "
            f"{', '.join(loads.window_names[:4])}{', ...' if loads.windows > 4 else ''}"
        )
    return loads.split(np.array([name not in names for name in loads.window_names]))


def _runs(problem: Problem, names: Sequence[str]) -> Iterator[tuple[str, Problem, str]]:
    for name in names:
        yield name, problem, name
    experts = problem.loads.experts
    engine = (experts // problem.gpus + 1) * problem.gpus - experts
    reference = "eplb" if problem.expert_groups is None else "eplb-hierarchical"
    if reference not in names or problem.replicas >= engine * problem.loads.layers:
        return
    try:
        variant = problem.replace(slots="uniform", replicas_per_layer=engine, max_copies=None)
    except InfeasibleError:
        return
    yield f"{reference} (+{engine} per layer)", variant, reference


def _warm_up(problem: Problem, name: str) -> None:
    """Run the method on one layer, so that its time is not the compiler's."""
    loads = problem.loads
    layer = Loads(loads.tokens[:1, :1], loads.layer_ids[:1], loads.window_names[:1])
    share = -(-problem.replicas // loads.layers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CraftoptWarning)
        small = problem.replace(loads=layer, replicas=share, previous=None, max_moves=None)
        solve(small, name)


def _row(label: str, result: Result, served: Loads | None, *, over_budget: bool) -> Row:
    note = "over the budget: what engines spend by default" if over_budget else result.message
    if not result.has_plan:
        return Row(
            label, result.status.value, None, None, None, None, None, None,
            result.runtime * 1e3, note,
        )  # fmt: skip
    plan = result.plan
    totals = plan.slots.sum(axis=0)
    return Row(
        method=label,
        status=result.status.value,
        replicas=plan.replicas,
        slots_per_gpu=(int(totals.min()), int(totals.max())),
        planned=Scores.of(evaluate(plan, result.problem.loads)),
        served=Scores.of(evaluate(plan, served)) if served is not None else None,
        gap=None if over_budget else result.gap,
        duplicates=plan.duplicates,
        milliseconds=result.runtime * 1e3,
        note=note,
    )
