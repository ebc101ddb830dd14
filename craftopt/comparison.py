"""Methods side by side on one problem, on the windows planned and on others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from craftopt.coactivation import Coactivation, standard_error
from craftopt.display import Displayed, Table, data_frame
from craftopt.errors import InfeasibleError, InputError, choice
from craftopt.evaluation import Evaluation, evaluate, mean_activated
from craftopt.executors import Executor
from craftopt.loads import Loads
from craftopt.objective import ObjectiveName
from craftopt.plan import Plan
from craftopt.problem import Problem
from craftopt.result import Result
from craftopt.routing import DISPATCHES, Dispatch
from craftopt.solving import MethodName, find_method, methods, solve
from craftopt.traces import Trace
from craftopt.traffic import NOT_MEASURED
from craftopt.windows import domains, holdout, planned_tokens

# Columns of tables that show foreign windows, too: there is room for fewer.
_WITH_FOREIGN = ("balanced", "time", "activated", "nodes per token", "critical")
# Windows that differ by more than this factor in tokens: the objective balancedness counts each
# once, the sum that EPLB plans for does not.
UNEVEN = 2.0
_ALIKE = "planned on windows scaled to equal tokens, which count alike in the balancedness"
_OVER = "over the budget: what engines spend by default"
# What a bound rules out, by objective.
_BOUNDS: dict[ObjectiveName, str] = {
    "time": "a planned relative time below",
    "balancedness": "a planned balancedness above",
    "activated": "fewer planned activated copies than",
}


# Figures of traffic, and how tables call them.
_TRAFFIC = {
    "nodes_per_token": "nodes per token",
    "remote_nodes": "remote",
    "critical_nodes": "critical",
    "gpus_per_token": "GPUs per token",
}


@dataclass(frozen=True)
class Scores:
    """What a plan scores on some windows.

    ``activated`` for the objective of that name only; what follows it where a trace or pair counts
    were given.
    """

    balancedness: float
    worst_layer: float
    relative_time: float
    activated: float | None = None
    nodes_per_token: float | None = None
    remote_nodes: float | None = None
    critical_nodes: float | None = None
    gpus_per_token: float | None = None

    @classmethod
    def of(cls, evaluation: Evaluation, activated: float | None = None) -> Scores:
        """Take the scores of an evaluation."""
        traffic = evaluation.traffic
        return cls(
            evaluation.mean_balancedness,
            evaluation.worst_layer,
            evaluation.relative_time,
            activated,
            **{} if traffic is None else {name: getattr(traffic, name) for name in _TRAFFIC},
        )


@dataclass(frozen=True)
class Row:
    """One method's line in a comparison.

    ``planned`` and ``served`` score the windows that the plan was made for and the ones held
    out, ``foreign`` those of a domain held out altogether; ``slots_per_gpu`` are the copies of the
    GPUs with the fewest and the most, over all layers; ``gap`` is to the bound on the planned
    windows under even dispatch, None for plans that break rules.
    """

    method: str
    status: str
    replicas: int | None
    slots_per_gpu: tuple[int, int] | None
    planned: Scores | None
    served: Scores | None
    foreign: Scores | None
    gap: float | None
    duplicates: int | None
    milliseconds: float
    note: str


@dataclass(frozen=True)
class Comparison(Displayed):
    """Methods side by side; ``bound`` is on the objective over the planned windows.

    Rows are scored under ``dispatch``; objective, bound and gap are under the problem's own, for
    the objective activated under exact routing. ``traffic`` says what traffic was measured on, None
    where it was not.
    """

    problem: Problem
    served: Loads | None
    bound: float
    rows: tuple[Row, ...]
    dispatch: Dispatch = "even"
    traffic: str | None = None
    foreign: Loads | None = None

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
            "traffic": self.traffic,
            "traffic_price": problem.traffic_price,
            "bound": self.bound,
            "planned_windows": list(problem.loads.window_names),
            "served_windows": list(self.served.window_names) if self.served else [],
            "foreign_windows": list(self.foreign.window_names) if self.foreign else [],
            "rows": [asdict(row) for row in self.rows],
        }

    def to_frame(self) -> Any:
        """Return a pandas data frame with a row per method."""
        rows = [asdict(row) for row in self.rows]
        for row in rows:
            for side in ("planned", "served", "foreign"):  # what is not scored makes no column
                scores = row[side] or {}
                row[side] = {name: score for name, score in scores.items() if score is not None}
        return data_frame(rows)

    def table(self) -> Table:
        """Lay out methods side by side, planned windows beside served ones."""
        problem, dispatch = self.problem, self.dispatch
        title = (
            f"{problem.loads.layers} layers x {problem.loads.experts} experts on "
            f"{problem.gpus} GPUs, {problem.nodes} node(s), {problem.replicas} replicas, "
            f"slots {problem.slots}"
        )
        judged = problem.dispatch if problem.goal.even_dispatch else "exact"
        if dispatch != "even":
            title += f", dispatch {dispatch}"
            title += f" (gaps: {judged})" if dispatch != judged else ""
        if self.served is not None:
            title += f"\nplanned on {problem.loads.windows} windows, "
            title += f"served {self.served.windows} that no plan has seen"
        if self.foreign is not None:
            title += f"\nforeign: {self.foreign.windows} windows of a domain that no plan has seen"
        columns = {
            "balanced": "balancedness",
            "worst layer": "worst_layer",
            "time": "relative_time",
        }
        if not problem.goal.even_dispatch:
            columns["activated"] = "activated"
        columns = self._columns(columns)
        rows = []
        for row in self.rows:
            if row.planned is None or row.slots_per_gpu is None:
                continue
            few, most = row.slots_per_gpu
            cells = [row.method, str(row.replicas), str(few) if few == most else f"{few}-{most}"]
            cells += self._cells(row, columns.values())
            cells += [
                "-" if row.gap is None else f"{row.gap:.1%}",
                str(row.duplicates),
                f"{row.milliseconds:,.0f}" if row.milliseconds >= 10 else f"{row.milliseconds:.1f}",
            ]
            rows.append(cells)
        least = "a planned sum of time and traffic below"
        least = least if problem.traffic_price > 0 else _BOUNDS[problem.objective]
        notes = [
            "Time: fullest over mean GPU load, summed; balanced: the inverse, averaged. 1 is "
            "perfect. Dup.: copies on a GPU that has the expert already.",
            f"No plan has {least} {self.bound:.4f}: gaps are to that bound.",
        ]
        if self.traffic is None and problem.nodes > 1:
            notes.append(f"Traffic between nodes is {NOT_MEASURED}.")
        notes += [f"{row.method}: {row.note}" for row in self.rows if row.note]
        header = ["method", "replicas", "slots/GPU", *self._header(columns)]
        return Table(title, [*header, "gap", "dup.", "ms"], rows, notes)

    def traffic_table(self) -> Table | None:
        """Lay out what GPUs send, planned windows beside others; None if not measured."""
        if self.traffic is None:
            return None
        problem, price = self.problem, self.problem.traffic_price
        columns = self._columns({name: key for key, name in _TRAFFIC.items()})
        rows = [
            [row.method, *self._cells(row, columns.values()), *self._sums(row, price)]
            for row in self.rows
            if row.planned is not None
        ]
        remote = "Remote: without a token's own node; c" if "remote" in columns else "C"
        notes = [f"Traffic from {self.traffic}. {remote}ritical: received by the busiest node."]
        if price > 0:
            notes.append(f"Sum: time and critical nodes at {problem.traffic_text}.")
        if problem.wants_traffic and self.served and isinstance(problem.coactivation, Coactivation):
            notes.append("Pair counts cannot be held out: plans may have seen the windows served.")
        sums = self._header({"sum": ""} if price > 0 else {})
        return Table("traffic", ["method", *self._header(columns), *sums], rows, notes)

    def tables(self) -> list[Table]:
        """List the table of balance, and that of traffic where it was measured."""
        return [table for table in (self.table(), self.traffic_table()) if table is not None]

    def _columns(self, columns: dict[str, str]) -> dict[str, str]:
        """Keep the columns that there is room for."""
        if self.foreign is None:
            return columns
        return {name: key for name, key in columns.items() if name in _WITH_FOREIGN}

    def _header(self, names: Iterable[str]) -> list[str]:
        """Head one column per name, or one for each kind of windows that is scored."""
        unseen = [side for side in ("served", "foreign") if getattr(self, side) is not None]
        first = "\nplanned" if unseen else ""
        return [head for name in names for head in (name + first, *(f"\n{s}" for s in unseen))]

    @staticmethod
    def _scores(row: Row) -> list[Scores]:
        """List the scores of a row: on planned, served and foreign windows, where there are."""
        return [score for score in (row.planned, row.served, row.foreign) if score is not None]

    def _cells(self, row: Row, names: Iterable[str]) -> list[str]:
        return [f"{getattr(score, name):.3f}" for name in names for score in self._scores(row)]

    def _sums(self, row: Row, price: float) -> list[str]:
        return [
            f"{score.relative_time + price * (score.critical_nodes or 0.0):.3f}"
            for score in self._scores(row)
            if price > 0
        ]

    def _repr_html_(self) -> str:
        return "".join(table.html() for table in self.tables())

    def __str__(self) -> str:
        return "\n".join(map(str, self.tables()))


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
