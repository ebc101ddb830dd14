"""Pages: their Python gives what it shows, and the commands of the engines' guides run."""

from __future__ import annotations

import doctest
import json
import re
import shlex
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from engine_files import safetensors, stat, torch_file

import craftopt as co
from craftopt import cli

DOCS = Path(__file__).parents[2] / "docs"
TESTED_ELSEWHERE = ("models", "instances")  # test_models.py, test_instances.py
WITH_PYTHON = [
    page
    for page in sorted(DOCS.rglob("*.md"))
    if re.search(r"^>>> ", page.read_text("utf-8"), re.MULTILINE)
    and not {page.parent.name, page.stem} & {*TESTED_ELSEWHERE}
]
GUIDES = sorted((DOCS / "engines").glob("*.md"))


def by_layer(counts: np.ndarray) -> list[tuple[tuple[int, ...], np.ndarray]]:
    return [(place, counts[place]) for place in np.ndindex(counts.shape[:2])]


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    """Record four layers of gpt-oss-20b as the engines do, in an otherwise empty folder."""
    monkeypatch.chdir(tmp_path)
    ids = co.load_example_trace("gpt-oss-20b").topk_ids[:12_288, ::6]
    np.save("routed_experts.npy", ids)
    counts = co.Trace(ids, 32).batches(1024).tokens.astype(np.int32)
    Path("recording.pt").write_bytes(torch_file(stat(counts)))
    folder = Path("statistics")
    folder.mkdir()
    (folder / "meta_info.json").write_text(
        json.dumps({"num_experts": 32, "num_experts_per_token": 4})
    )
    named = {f"{100 + window}_{layer}": row for (window, layer), row in by_layer(counts)}
    (folder / "rank0.safetensors").write_bytes(safetensors(named))


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_the_python_on_a_page_gives_what_it_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert doctest.testfile(str(page), module_relative=False).failed == 0


@pytest.mark.parametrize("guide", GUIDES, ids=lambda page: page.stem)
def test_the_commands_of_a_guide_run_one_after_the_other(guide, recordings, monkeypatch, capsys):
    """Those of craftopt; what the engines do themselves needs their accelerators."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main() changes it
    text = guide.read_text("utf-8").replace("\\\n", "")
    commands = re.findall(r"^\$ (craftopt .*)$", text, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        if "warm-up" in command:
            continue  # minutes of compiling
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        try:
            cli.main()
        except SystemExit as stop:
            if stop.code:
                pytest.fail(f"{command}: {capsys.readouterr().err}")
