"""Every formulation is one name in four places: its file, a test, its page, and an example.

Docstring, program and page state the same constraint families, in the same order.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import craftopt as co

pytest.importorskip("ortools")
pytest.importorskip("pulp")

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "models"
# The method that solves them, the writer of files, and the prover of claims.
NO_MODELS = {"exact", "export", "refuting"}
NAMES = sorted(
    file.stem
    for file in (ROOT / "formulations" / "craftopt_formulations").glob("*.py")
    if not file.stem.startswith("_") and file.stem not in NO_MODELS
)
SECTIONS = ["Question", "Inputs", "Model", "Example", "Bound", "Solvers"]

each_model = pytest.mark.parametrize("name", NAMES)


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def families_on_page(name: str) -> list[str]:
    """List the constraints (or witnesses) in the tables of a page, once each."""
    return list(dict.fromkeys(re.findall(r"^\| `(\w+)` \|", page(name), re.MULTILINE)))


def families_in_docstring(name: str) -> list[str]:
    docstring = importlib.import_module(f"craftopt_formulations.{name}").__doc__
    program = docstring[re.search(r"^    m(in|ax)imise", docstring, re.MULTILINE).start() :]
    return re.findall(r"^    (?!minimise|maximise)(\w+) ", program, re.MULTILINE)


def names_of_models(file: Path) -> set[str]:
    """List the formulations that a Python file imports, or names in a string."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    pattern = re.compile(r"craftopt_formulations\.(\w+)")
    return {match[1] for name in found if (match := pattern.match(name))}


# --- four places ----------------------------------------------------------------------------


def test_every_model_has_a_page_and_every_page_a_model():
    assert sorted(file.stem for file in PAGES.glob("*.md")) == NAMES


@each_model
def test_every_model_has_a_test(name):
    files = [file for file in (ROOT / "tests").rglob("test_*.py") if file != Path(__file__)]
    assert any(name in names_of_models(file) for file in files)


@each_model
def test_every_page_has_the_same_sections(name):
    assert re.findall(r"^## (.+)$", page(name), re.MULTILINE) == SECTIONS


@each_model
def test_the_example_of_every_page_runs(name):
    example = re.search(r"^## Example\n(.*?)^## ", page(name), re.DOTALL | re.MULTILINE)[1]
    assert re.search(rf"craftopt_formulations(\.| import )(\w+, )*{name}\b", example)
    result = doctest.testfile(str(PAGES / f"{name}.md"), module_relative=False)
    assert result.attempted >= 3
    assert result.failed == 0


@each_model
@pytest.mark.parametrize("index", ["docs/formulations.md", "docs/api.md", "formulations/README.md"])
def test_every_index_lists_every_model(name, index):
    listed = rf"models/{name}\.md|craftopt_formulations\.{name}\.|^\| `{name}` \|"
    assert re.search(listed, (ROOT / index).read_text(encoding="utf-8"), re.MULTILINE)


# --- one program in three places ------------------------------------------------------------


def samples() -> Iterator[tuple[str, Any]]:
    """Build every model that states its program to `_solvers`, so that each family occurs."""
    from craftopt_formulations import (  # noqa: PLC0415
        allocation,
        common_copies,
        joint,
        placement,
        rebalancing,
        replication,
        traffic,
        whole,
        windowed,
    )

    tokens = np.array([[6.0, 3, 2, 1], [1, 5, 3, 3]])
    flat, one = np.zeros((1, 2, 2), dtype=np.int64), np.ones(1, dtype=np.int64)
    now = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.uint8)
    yield (
        "allocation",
        allocation.build(flat[0] * 1.0, 1, tied=[(0, 1)], usage=flat, limits=one, solver="cp-sat"),
    )
    yield "replication", replication.build(tokens[0], 1, 2)
    yield "placement", placement.build(tokens[0], now.sum(axis=1), 2)
    yield "joint", joint.build(tokens[0], 2, 2)
    yield "windowed", windowed.build(tokens, 2, 2, bound=1.0)
    yield "rebalancing", rebalancing.build(tokens[0], now, 1, 1)
    yield "common_copies", common_copies.build(np.array([[12.0, 1, 1, 1]]), 4, 1, 4)
    sets = co.bounds.traffic.token_sets([[0, 2], [1, 3]], experts=4)
    yield "traffic", traffic.build(sets, 2, 2, load_price=1)
    problem = co.Problem(co.Loads(tokens), 2, slots="uniform")
    grouped = co.Problem(co.Loads([tokens, tokens]), 2, nodes=2, expert_groups=2)
    previous = co.Plan(np.array([now, now]), method="sample")
    for of_rules in (
        problem,
        grouped,
        problem.replace(slots="even"),
        co.Problem(co.Loads([tokens, tokens]), 2, previous=previous, max_moves=1),
    ):
        yield "whole", whole.WholeModel(of_rules, exactly=False, loose=False)


def stated(name: str, model: Any) -> list[str]:
    """List the families of a built model, in the order in which it states them."""
    families = sorted(families_in_docstring(name), key=len, reverse=True)
    rows = [row.name for row in model.model.model.proto.constraints]
    found = [next((f for f in families if re.match(rf"{f}(_|$)", row)), row) for row in rows]
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def built() -> list[tuple[str, Any]]:
    return list(samples())


BUILT = [name for name in NAMES if name not in {"branching", "configuration_lp", "routing"}]


@pytest.mark.parametrize("name", BUILT)
def test_a_model_states_the_families_of_its_docstring_in_their_order(name, built):
    documented = families_in_docstring(name)
    found = [stated(name, model) for model_name, model in built if model_name == name]
    assert {family for families in found for family in families} == set(documented)
    for families in found:
        assert families == [family for family in documented if family in families]


@pytest.mark.parametrize("name", BUILT)
def test_a_page_shows_the_families_of_the_docstring_in_their_order(name):
    assert families_on_page(name) == families_in_docstring(name)


@pytest.mark.parametrize("name", ["configuration_lp", "routing"])
def test_a_page_shows_the_families_that_the_code_names(name):
    docstring = importlib.import_module(f"craftopt_formulations.{name}").__doc__
    for family in families_on_page(name):
        assert re.search(rf"\b{family}(\[|:|,)", docstring)
