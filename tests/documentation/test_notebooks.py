"""Notebooks: each has a readable twin that says the same, and stores no output."""

from __future__ import annotations

from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells(path: Path) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


def test_every_notebook_has_a_twin():
    assert NOTEBOOKS
    assert [path.stem for path in NOTEBOOKS] == [path.stem for path in sorted(FOLDER.glob("*.py"))]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_twins_hold_the_same_cells(notebook):
    twin = notebook.with_suffix(".py")
    assert cells(notebook) == cells(twin), f"run: jupytext --sync notebooks/{twin.name}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_stored(notebook):
    stored = [cell for cell in jupytext.read(notebook).cells if cell.get("outputs")]
    assert not stored, f"clear the outputs of notebooks/{notebook.name}"
