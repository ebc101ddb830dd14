"""What people see: summaries, tables, HTML in notebooks, JSON and data frames tell the same."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

import craftopt as co
from craftopt.display import Displayed, Table
from craftopt.serving import find_model

NAME = "a<b>&'c'/1"


@pytest.fixture(scope="module")
def loads() -> co.Loads:
    tokens = np.random.default_rng(0).lognormal(size=(4, 2, 8)).round(2) * 100
    return co.Loads(tokens, window_names=[NAME, "2", "3", "4"])


@pytest.fixture(scope="module")
def shown(loads) -> dict[str, Displayed]:
    """One value of every kind that a notebook shows."""
    planned, served = co.holdout(loads, "first-half")
    problem = co.Problem(planned, gpus=4, nodes=2, replicas=8, expert_groups=2, max_copies=2)
    result = co.solve(problem, "nominal")
    trace = co.Trace([[[0, 1]], [[1, 2]]] * 4, domain=[0, 1] * 4, domain_names=[NAME, "chat"])
    traced = co.Plan.from_phy2log([[0, 1, 2, 1]], gpus=2, nodes=2)
    loads2 = co.Loads(loads.tokens[:, :, ::-1])
    model = find_model("olmoe-1b-7b").replace(layers=2, moe_layers=2, experts=8, top_k=2)
    return {
        "Loads": loads,
        "Trace": trace,
        "Coactivation": co.Coactivation([[[9, 9, 0], [9, 12, 3], [0, 3, 3]]], top_k=2),
        "Problem": problem,
        "Plan": result.plan,
        "Result": result,
        "Evaluation": co.evaluate(result.plan, served, "exact"),
        "Traffic": co.evaluate(traced, trace.batches(8), trace=trace).traffic,
        "Comparison": co.compare(problem, served, ["trivial", "eplb-hierarchical", "craft"]),
        "Certificate": co.certify(problem, result.plan),
        "Rebalancing": co.rebalance(problem.replace(loads=loads2), result.plan, max_moves=4),
        "Advice": co.advise(loads, model, "h100", gpus=4, input_tokens=500),
    }


KINDS = (
    "Loads", "Trace", "Coactivation", "Problem", "Plan", "Result", "Evaluation", "Traffic",
    "Comparison", "Certificate", "Rebalancing", "Advice",
)  # fmt: skip
each_kind = pytest.mark.parametrize("kind", KINDS)


class Page(HTMLParser):
    """Reads the cells of a table, and checks that what is opened is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.caption, self.notes = "", []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        assert tag in ("table", "caption", "thead", "tbody", "tr", "th", "td", "div")
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
        elif tag == "div":
            self.notes.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        match self.open[-1]:
            case "caption":
                self.caption += data
            case "div":
                self.notes[-1] += data
            case "th" | "td":
                self.rows[-1][-1] += data
            case other:
                raise AssertionError(f"{data!r} is in no cell but in {other}")


@each_kind
def test_html_holds_the_cells_of_the_table_and_nothing_else(kind, shown):
    table = shown[kind].table()
    page = Page(shown[kind]._repr_html_())
    header = [list(table.header)] if table.header else []
    assert page.rows == [*header, *map(list, table.rows)]
    assert page.caption == table.title
    assert page.notes == list(table.notes)


@each_kind
def test_html_inherits_the_colours_of_the_page(kind, shown):
    assert "color" not in shown[kind]._repr_html_()


def test_names_from_files_are_escaped(shown):
    for kind in ("Loads", "Trace"):
        assert NAME not in shown[kind]._repr_html_()
        assert "a&lt;b&gt;&amp;&#x27;c&#x27;" in shown[kind]._repr_html_()


@each_kind
def test_to_dict_is_json(kind, shown):
    assert json.loads(json.dumps(shown[kind].to_dict(), allow_nan=False))


def test_a_result_is_summed_up_in_five_lines(shown):
    result = shown["Result"]
    lines = str(result).splitlines()
    assert len(lines) == 5
    assert lines[0].split() == ["nominal", result.status.value]
    assert lines[1] == f"relative time  {result.objective:.4f}"
    assert lines[2] == f"bound          {result.bound:.4f}, gap {result.gap:.3%}"
    assert lines[3] == f"replicas       {result.plan.replicas} of 8"
    assert lines[4].startswith("time ")


def test_a_result_without_a_plan_has_a_summary(loads):
    problem = co.Problem(loads, gpus=4, expert_groups=2)
    result = co.solve(problem, "eplb")
    lines = str(result).splitlines()
    assert len(lines) == 5
    assert lines[0].split() == ["eplb", "not", "found"]
    assert lines[1].split() == ["relative", "time", "-"]
    assert result.summary()["note"] == result.message
    assert result.to_dict()["replicas"] is None
    Page(result._repr_html_())


def test_a_summary_says_what_a_plan_breaks_and_what_was_compiled():
    skewed = co.Loads([[600, 560, 120, 120, 20, 10, 10, 10]])
    found = co.solve(co.Problem(skewed, gpus=8, replicas=8, slots="uniform"), "eplb")
    result = replace(found, limit="work", compile_time=12.34, runtime=0.5)
    rows = result.summary()
    assert rows["breaks"] == "\n".join(result.violations) != ""
    assert rows["status"].endswith("(stopped by work)")
    assert (rows["gap"], rows["time"]) == ("-", "500.0 ms, after 12.3 s to compile or load")


def test_the_repr_of_a_result_shows_what_is_computed_when_asked_for(shown):
    for kind in ("Result", "Rebalancing"):
        result = shown[kind]
        assert repr(result).startswith(f"{kind}(method={result.method!r}, status={result.status!r}")
        for name in ("objective", "bound", "gap", "violations", "runtime"):
            assert f", {name}={getattr(result, name)!r}" in repr(result)


def test_a_rebalancing_tells_its_moves(shown):
    found = shown["Rebalancing"]
    assert found.to_dict()["moves"] == found.moves
    assert found.summary()["moves"].startswith(f"{found.moves}, ")


def test_a_comparison_prints_as_its_table(shown):
    comparison = shown["Comparison"]
    text = str(comparison)
    for row in comparison.rows:
        if row.planned is not None:
            line = next(line for line in text.splitlines() if line.startswith(f"{row.method} "))
            assert f"{row.served.relative_time:.3f}" in line.split()
    assert "craft: " in text  # why there is no plan
    assert text == str(comparison.table())


def test_columns_of_text_are_aligned():
    table = Table("title", ("name", "long\nhead", "x"), [("a", "1", "2"), ("long name", "12", "3")])
    assert str(table).splitlines() == [
        "title",
        "           long",
        "name       head  x",
        "a             1  2",
        "long name    12  3",
    ]
    assert str(Table("", (), [("a", "b"), ("long", "c")])) == "a     b\nlong  c"


@pytest.fixture
def pandas(monkeypatch):
    """Stands in for pandas: a data frame is the rows that it was given."""
    module = SimpleNamespace(DataFrame=lambda rows: rows)
    monkeypatch.setitem(sys.modules, "pandas", module)


def test_a_comparison_is_a_frame_with_a_row_per_method(shown, pandas):
    rows = shown["Comparison"].to_frame()
    assert [row["method"] for row in rows] == [row.method for row in shown["Comparison"].rows]
    first = shown["Comparison"].rows[0]
    assert rows[0]["planned_balancedness"] == first.planned.balancedness
    assert rows[0]["served_relative_time"] == first.served.relative_time
    assert not {"planned", "served", "planned_activated"} & set().union(*rows)


def test_an_evaluation_is_a_frame_with_a_row_per_window_and_layer(shown, pandas):
    scored = shown["Evaluation"]
    rows = scored.to_frame()
    assert len(rows) == scored.max_load.size
    last = rows[-1]
    assert (last["window"], last["layer"]) == (1, 1)
    assert last["balancedness"] == scored.balancedness[1, 1]
    assert last["max_activated"] == scored.max_activated[1, 1]


def test_advice_is_a_frame_with_a_row_per_plan(shown, pandas):
    advice = shown["Advice"]
    rows = advice.to_frame()
    assert [row["name"] for row in rows] == [candidate.name for candidate in advice.compared]
    assert rows[0]["served_requests_per_second"] == advice.recommended.goodput


@pytest.mark.parametrize("kind", ["Comparison", "Evaluation", "Advice"])
def test_without_pandas_a_frame_says_what_to_install(kind, shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(co.InputError, match="pip install pandas"):
        shown[kind].to_frame()
