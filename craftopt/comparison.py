"""What several methods reach on one problem, and the tables that show it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from craftopt.coactivation import Coactivation
from craftopt.display import Displayed, Table, data_frame
from craftopt.evaluation import Evaluation
from craftopt.loads import Loads
from craftopt.objective import ObjectiveName
from craftopt.problem import Problem
from craftopt.routing import Dispatch
from craftopt.traffic import NOT_MEASURED

# Columns of tables that show foreign windows, too: there is room for fewer.
_WITH_FOREIGN = ("balanced", "time", "activated", "nodes per token", "critical")
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
