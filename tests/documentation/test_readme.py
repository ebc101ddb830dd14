"""The README and the pages that it leads to: what they show is what happens."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest
from files import measured

import craftopt as co
from craftopt.solving import METHODS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
START = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
DEMO = re.search(r"```console\n\$ make demo\n(.*?)```", START, re.DOTALL)[1].splitlines()


def test_the_example_gives_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it writes a plan
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert result.attempted >= 8
    assert result.failed == 0


def test_make_demo_gives_what_is_shown():
    """Every line but the times, which are the machine's; where text is wrapped hangs on them."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    arguments = re.search(r"/craftopt (compare .*)", makefile)[1].split()
    command = [sys.executable, "-m", "craftopt", *arguments]
    done = subprocess.run(command, capture_output=True, check=True, text=True, encoding="utf-8")

    def cells(line: str) -> list[str]:
        return re.sub(r"\s[\d.,]+\s*$", "", line).split()

    printed = [cells(line) for line in done.stdout.splitlines()]
    text = " ".join(done.stdout.split())
    for line in DEMO:
        if line != "..." and " ".join(line.split()) not in text:
            assert cells(line) in printed, line


def test_the_table_on_measured_loads_is_what_is_measured():
    planned, served = co.holdout(co.read_loads(measured("glm52_five_domains")), "odd-even")
    problem = co.Problem(planned, gpus=64, nodes=8, replicas_per_layer=8, slots="even")
    for method in ("eplb-counts", "craft", "nominal", "fast"):
        plan = co.solve(problem, method).plan
        scored = [co.evaluate(plan, windows) for windows in (planned.total(), planned, served)]
        row = re.search(rf"\| `{method}` \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", RESULTS)
        for cell, score in zip(row.groups(), scored, strict=True):
            assert cell == f"{score.relative_time:.3f}"


def test_the_readmes_table_and_the_front_pages_are_make_demos():
    """Figures of relative time, and the gap, of the same methods."""
    demo = {line.split()[0]: line.split() for line in reversed(DEMO)}
    rows = re.findall(r"^\| `(\w+)`: [^|]+ \| (.*) \|$", README, re.MULTILINE)
    assert len(rows) == 4
    front = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for method, row in rows:
        figures = row.split(" | ")
        assert figures == demo[method][6:10], method
        if method != "craft":
            assert " | ".join(figures[:3]) in front, method


def test_every_method_is_documented_and_nothing_else():
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for place in (r"^## (.+)$", r"^\| `([a-z-]+)` \| [^|]+ \|$"):
        assert re.findall(place, text, re.MULTILINE) == list(METHODS)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    named = re.findall(r"`((?:[\w-]+/)*[\w.-]+\.(?:cff|md|py|ipynb|toml))`", text)
    for target in linked + named:
        assert "NAME" in target or (ROOT / target).exists(), f"{page} names {target}"
