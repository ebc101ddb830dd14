"""Exact against heuristic: all methods on a grid of problems, in a file that a second run adds to.

Problems have one layer. Popularity of the i-th expert falls as 1/i to the power of the skew, and
strays at random, anew in every window. Gaps are to the best bound that any method proved on the
problem, which is mostly that of ``exact``: they are of plan and bound together.
"""

from __future__ import annotations

import csv
import io
import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

import numpy as np

from craftopt.display import Table
from craftopt.documents import check_writable, write_atomically
from craftopt.errors import FormatError
from craftopt.executors import Executor
from craftopt.loads import Loads
from craftopt.problem import Problem, SlotRule
from craftopt.result import OPTIMAL_GAP, Options, Status
from craftopt.solving import MethodName, methods, solve

# Tokens per expert and window, and how far windows stray from the popularity, in natural log.
_TOKENS, _DRIFT = 10_000, 0.5
# A plan this close to the best known, relative, is as good to a user.
_CLOSE = 1e-3


@dataclass(frozen=True)
class Case:
    """A problem of the grid.

    ``share`` is the budget: replicas as a share of the experts.
    """

    slots: SlotRule
    windows: int
    experts: int
    gpus: int
    skew: float
    share: float

    def problem(self) -> Problem:
        """Draw the problem; budgets, GPUs and slot rules share their loads."""
        rng = np.random.default_rng([self.experts, self.windows, round(1000 * self.skew)])
        popular = rng.permutation(np.arange(1, self.experts + 1.0)) ** -self.skew
        rates = popular * np.exp(rng.normal(0, _DRIFT, (self.windows, 1, self.experts)))
        tokens = rates * (_TOKENS * self.experts) / rates.sum(axis=2, keepdims=True)
        replicas = round(self.experts * self.share)
        return Problem(Loads(np.round(tokens)), self.gpus, replicas=replicas, slots=self.slots)


@dataclass(frozen=True)
class Run(Case):
    """What a method made of a problem; a row of the file.

    ``objective`` is nan where the plan breaks rules, or there is none; ``work_limit`` is 0 but
    for ``exact``.
    """

    method: str
    work_limit: int
    objective: float
    bound: float
    status: str
    seconds: float

    @property
    def case(self) -> Case:
        """The problem."""
        return Case(*astuple(self)[: len(fields(Case))])

    @property
    def key(self) -> tuple[Case, str, int]:
        """What is run once."""
        return self.case, self.method, self.work_limit

    @property
    def label(self) -> str:
        """The method, and its work limit where it has one."""
        return f"{self.method} {self.work_limit}" if self.method == "exact" else self.method


@dataclass(frozen=True)
class Grid:
    """The problems: all combinations. Shapes are experts and GPUs."""

    shapes: tuple[tuple[int, int], ...] = ((8, 4), (16, 4), (16, 8), (32, 8), (64, 16))
    skews: tuple[float, ...] = (0.5, 1.0, 1.5)
    shares: tuple[float, ...] = (0.0, 0.125, 0.25, 0.5)
    windows: tuple[int, ...] = (1, 4)
    work_limits: tuple[int, ...] = (1, 5)
    slots: SlotRule = "even"

    def runs(self) -> Iterator[tuple[Case, MethodName, int]]:
        """List problems, methods and work limits."""
        limits = {method: self.work_limits if method == "exact" else (0,) for method in methods()}
        for windows, (experts, gpus), skew, share in itertools.product(
            self.windows, self.shapes, self.skews, self.shares
        ):
            case = Case(self.slots, windows, experts, gpus, skew, share)
            yield from ((case, method, limit) for method in limits for limit in limits[method])


def bench_exact(
    grid: Grid,
    file: Path,
    *,
    workers: int | Executor = 1,
    progress: Callable[[str], None] = lambda done: None,
) -> list[Run]:
    """Run what the file does not have yet; write it whole after every run, in the grid's order.

    Parameters
    ----------
    grid : Grid
    file : Path
        A CSV file; what it has stays first.
    workers : int or Executor
        Runs side by side, or what runs them. Each is timed where it runs.
    progress : callable
        Called with what is done.

    Returns
    -------
    list of Run
        All rows of the file, those of other grids too.

    Raises
    ------
    FormatError
        A file that is no table of runs.
    """
    check_writable(file)
    known = read_runs(file)
    done = {run.key for run in known}
    todo = [run for run in grid.runs() if run not in done]
    mine: dict[tuple[Case, str, int], Run] = {}
    progress(f"0 of {len(todo)}")
    for _, run in Options(workers=workers).executor.run(_run, todo):
        mine[run.key] = run
        # Another process may have added to the file.
        known = [run for run in read_runs(file) if run.key not in mine]
        known += [mine[key] for key in todo if key in mine]
        _write_runs(file, known)
        progress(f"{len(mine)} of {len(todo)}")
    return known


def read_runs(file: Path) -> list[Run]:
    """Read a file of runs; there are none in one that is missing or empty.

    Raises
    ------
    FormatError
        A file that is none.
    """
    kinds = {one.name: {"int": int, "float": float}.get(str(one.type), str) for one in fields(Run)}
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        rows = csv.DictReader(lines)
        try:
            if rows.fieldnames not in (None, list(kinds)):
                raise ValueError
            return [Run(**{name: kind(row[name]) for name, kind in kinds.items()}) for row in rows]
        except (KeyError, ValueError, TypeError, csv.Error):
            raise FormatError(
                f"line {rows.line_num} of {file} is no run of bench-exact, whose columns are "
                f"{','.join(kinds)}; pass another file"
            ) from None


def _write_runs(file: Path, runs: list[Run]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, [one.name for one in fields(Run)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(run) for run in runs)
    write_atomically(file, text.getvalue())


def _run(case: Case, method: MethodName, limit: int) -> Run:
    work = limit if method == "exact" else None
    result = solve(case.problem(), method, work_limit=work, workers=1)
    objective = None if result.gap is None else result.objective
    return Run(
        **asdict(case),
        method=method,
        work_limit=limit,
        objective=float("nan") if objective is None else objective,
        bound=result.bound,
        status=result.status.value,
        seconds=float(f"{result.runtime:.3g}"),
    )


@dataclass(frozen=True)
class Line:
    """What a method makes of many problems.

    ``gaps`` and ``above``, the distance from the best plan known, are relative, of the plans that
    keep the rules.
    """

    label: str
    runs: int
    gaps: tuple[float, ...]
    above: tuple[float, ...]
    proven: int
    seconds: float
    longest: float


def lines_of(runs: list[Run]) -> dict[tuple[SlotRule, int], list[Line]]:
    """Sum the runs up by slot rule and windows, a line per method and work limit."""
    bounds: dict[Case, float] = {}
    best: dict[Case, float] = {}
    for run in runs:
        bounds[run.case] = max(run.bound, bounds.get(run.case, 0.0))
        best[run.case] = float(np.fmin(run.objective, best.get(run.case, np.inf)))
    found: dict[tuple[SlotRule, int], dict[str, list[Run]]] = {}
    for run in runs:
        found.setdefault((run.slots, run.windows), {}).setdefault(run.label, []).append(run)
    return {
        group: [_line(label, some, bounds, best) for label, some in by_label.items()]
        for group, by_label in found.items()
    }


def _line(label: str, runs: list[Run], bounds: dict[Case, float], best: dict[Case, float]) -> Line:
    plans = [run for run in runs if not np.isnan(run.objective)]
    return Line(
        label,
        len(runs),
        gaps=tuple(max(run.objective / bounds[run.case] - 1.0, 0.0) for run in plans),
        above=tuple(run.objective / best[run.case] - 1.0 for run in plans),
        proven=sum(run.status == Status.OPTIMAL.value for run in runs),
        seconds=statistics.median(run.seconds for run in runs),
        longest=max(run.seconds for run in runs),
    )


def tables(runs: list[Run]) -> Iterator[Table]:
    """Lay the runs out, a table per slot rule and number of windows."""
    header = ("method", "plans", "best known", f"within {_CLOSE:.1%}", "proven", "mean gap",
              "worst gap", "median s", "longest s")  # fmt: skip
    for (slots, windows), lines in lines_of(runs).items():
        rows = [
            (line.label, f"{len(line.gaps)} of {line.runs}",
             *(str(sum(one <= limit for one in line.above)) for limit in (OPTIMAL_GAP, _CLOSE)),
             str(line.proven), f"{statistics.mean(line.gaps):.2%}", f"{max(line.gaps):.2%}",
             f"{line.seconds:.2g}", f"{line.longest:.2g}")
            for line in lines if line.gaps
        ]  # fmt: skip
        notes = ["plans: those that keep the rules; gaps to the best bound of any method"]
        without = [line.label for line in lines if not line.gaps]
        notes += [f"without a plan that keeps the rules: {', '.join(without)}"] * bool(without)
        yield Table(f"slots {slots}, windows {windows}", header, rows, notes)
