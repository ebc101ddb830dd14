"""The grid of exact against heuristics: resumable, honest gaps, a table and a plot."""

from __future__ import annotations

import numpy as np
import pytest

import craftopt as co
from craftopt import bench_exact as bench
from craftopt.bench_exact import Grid, bench_exact, lines_of, read_runs, tables

pytest.importorskip("ortools")

GRID = Grid(
    shapes=((6, 2),),
    skews=(1.0,),
    shares=(0.0, 0.5),
    windows=(1,),
    work_limits=(0, 1),
    slots="even",
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("bench") / "runs.csv"
    bench_exact(GRID, file)
    return file


def test_every_method_runs_on_every_problem_once_and_exact_with_every_limit(file):
    runs = read_runs(file)
    names = {(run.method, run.work_limit) for run in runs}
    assert {method for method, _ in names} == set(co.methods())
    assert {limit for method, limit in names if method == "exact"} == {0, 1}
    assert len(runs) == len({run.case for run in runs}) * len(names) == 2 * (len(co.methods()) + 1)


def test_a_run_that_was_stopped_goes_on_where_it_was(file, tmp_path):
    lines = file.read_text().splitlines(keepends=True)
    begun = tmp_path / "begun.csv"
    begun.write_text("".join(lines[:6]))
    said = []
    runs = bench_exact(GRID, begun, progress=said.append)
    assert begun.read_text().splitlines(keepends=True)[:6] == lines[:6]
    assert said[-1] == f"{len(lines) - 6} of {len(lines) - 6}"
    figures = [(run.case, run.label, run.objective, run.bound, run.status) for run in runs]
    again = [(r.case, r.label, r.objective, r.bound, r.status) for r in read_runs(file)]
    assert str(figures) == str(again)  # as text: no plan is nan


def test_a_second_run_does_nothing(file):
    before, said = file.read_bytes(), []
    bench_exact(GRID, file, progress=said.append)
    assert (file.read_bytes(), said) == (before, ["0 of 0"])


def test_a_wider_grid_adds_to_the_file(file, tmp_path):
    wider = tmp_path / "wider.csv"
    wider.write_bytes(file.read_bytes())
    grid = Grid(((6, 3),), (1.0,), (0.0,), (1,), (0,))
    runs = bench_exact(grid, wider)
    assert {run.gpus for run in runs} == {2, 3}
    assert wider.read_bytes().startswith(file.read_bytes())


def test_gaps_are_to_the_best_bound_and_count_plans_that_keep_the_rules_only(file):
    runs = read_runs(file)
    (lines,) = lines_of(runs).values()
    for line in lines:
        method = line.label.split()[0]
        if method == "exact":
            continue
        expected = []
        for case in dict.fromkeys(run.case for run in runs):
            result = co.solve(case.problem(), method)
            if result.has_plan and not result.violations:
                bound = max(run.bound for run in runs if run.case == case)
                expected.append(max(result.objective / bound - 1, 0))
        assert line.gaps == pytest.approx(expected)
    assert any(not line.gaps for line in lines)  # no groups: nothing for eplb-hierarchical
    exact = [line for line in lines if line.label == "exact 1"]
    assert exact[0].proven == 2
    assert max(exact[0].gaps) <= 1e-9


def test_problems_differ_in_what_their_names_say_alone():
    case = next(GRID.runs())[0]
    assert case.problem().loads == case.problem().loads
    wider = next(Grid(((6, 3),), (1.0,), windows=(1,)).runs())[0]
    assert wider.problem().loads == case.problem().loads
    assert np.all(case.problem().loads.tokens % 1 == 0)


def test_a_stopped_command_keeps_what_is_finished(run, monkeypatch, tmp_path):
    file = tmp_path / "runs.csv"
    write = bench._write_runs

    def stopping(file, runs):
        write(file, runs)
        if len(runs) == 3:
            raise KeyboardInterrupt

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(bench, "_write_runs", stopping)
    monkeypatch.setattr("os._exit", leave)
    code, _, said = run("bench-exact", "-o", file, "--shapes", "6x2", "--windows", "1")
    assert code == 130
    said_first = f"craftopt: stopped: finished runs are in {file}; the same command goes on"
    assert said == f"{said_first} from there\n"
    assert len(read_runs(file)) == 3


def test_runs_that_another_process_adds_meanwhile_are_kept(file, tmp_path):
    shared = tmp_path / "shared.csv"
    theirs = file.read_text().splitlines(keepends=True)

    class Beside(co.Threads):
        def run(self, function, items):
            for place, found in super().run(function, items):
                if not shared.exists():
                    shared.write_text("".join(theirs[:4]))
                yield place, found

    runs = bench_exact(Grid(((6, 3),), (1.0,), (0.0,), (1,), (0,)), shared, workers=Beside(1))
    assert {run.gpus for run in runs} == {2, 3}
    assert shared.read_text().startswith("".join(theirs[:4]))


@pytest.mark.parametrize(
    "content", [b"expert,tokens\n0,12\n", b"my notes\n", b"\n", b"\x89PNG\xff", b'"' + b"a" * 2**18]
)
def test_a_file_of_something_else_is_refused_before_any_work(content, tmp_path):
    other = tmp_path / "other.csv"
    other.write_bytes(content)
    with pytest.raises(co.FormatError, match=r"line \d of .* is no run of bench-exact"):
        bench_exact(GRID, other)
    assert other.read_bytes() == content


def test_the_table_has_a_row_per_method_that_has_plans(file):
    (table,) = tables(read_runs(file))
    rows = {row[0]: row for row in table.rows}
    assert {"nominal", "fast", "exact 0", "exact 1"} <= set(rows)
    assert rows["exact 1"][1] == "2 of 2"
    assert "eplb-hierarchical" in table.notes[1]


def test_the_plot_has_a_line_per_method_that_has_plans(file):
    plots = pytest.importorskip("craftopt.reporting.plots")
    pytest.importorskip("matplotlib").use("Agg")
    runs = read_runs(file)
    (table,), figure = tables(runs), plots.plot_bench(runs)
    assert len(figure.axes[0].get_lines()) == len(table.rows)


def test_the_command_prints_the_table_and_names_the_file(run, tmp_path):
    file = tmp_path / "runs.csv"
    code, out, _ = run(
        "bench-exact", "-o", file, "--shapes", "4x2", "--skews", "1", "--shares", "0",
        "--windows", "1", "--work-limits", "0",
    )  # fmt: skip
    assert code == 0
    assert "exact 0" in out
    assert f"wrote {file}, {len(co.methods())} runs" in out
    code, _, said = run("bench-exact", "-o", file, "--shapes", "4")
    assert code == 2
    assert "shapes='4' is no list like 8x4,16x8" in said
    for option, value, wrong in (
        ("--windows", "-1", "windows=-1 is below 1"),
        ("--shapes", "8x0", "gpus=0 is below 1"),
        ("--shapes", "99999999x4", "experts=99999999 is above 10000"),
        ("--work-limits", "-1", "work_limit=-1 is below 0"),
        ("--plot", tmp_path / "plot.json", "plot.json; name it file.png"),
    ):
        code, _, said = run("bench-exact", "-o", file, option, value)
        assert (code, said.count("\n")) == (2, 1)
        assert wrong in said
