"""Whatever happens while a file is written, the old one or the new one is there, and whole."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import craftopt

SOURCE = Path(craftopt.__file__).parents[1]
FOLDERS = ("craftopt", "formulations", "tools")
# Calls that write files by name.
WRITING = {"write_text", "write_bytes", "tofile", "savetxt", "savefig", "to_csv", "touch"}


def writes(file: Path) -> list[str]:
    """List the calls in a file that write another."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if node.args and getattr(node.args[0], "id", "") == "stream":
            continue  # in memory
        modes = [*node.args, *(word.value for word in node.keywords if word.arg == "mode")]
        words = {mode.value for mode in modes if isinstance(mode, ast.Constant)}
        wanted = {word for word in words if isinstance(word, str) and set(word) & set("wax+")}
        if name in WRITING or (name == "open" and any(len(word) < 4 for word in wanted)):
            found.append(f"{file.relative_to(SOURCE)} {name}, line {node.lineno}")
    return found


def test_files_are_written_in_one_place():
    if not (SOURCE / "tools").exists():
        pytest.skip("needs the repository")
    files = [file for folder in FOLDERS for file in sorted((SOURCE / folder).rglob("*.py"))]
    found = [line for file in files if file.name != "documents.py" for line in writes(file)]
    lock = "craftopt/compiling.py open"  # of a file that holds nothing
    assert [line for line in found if not line.startswith(lock)] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_no_fault_loses_a_file():
    script = Path(__file__).with_name("faults.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, script, "--json"]
    table = json.loads(
        subprocess.run(command, check=True, env=environment, capture_output=True).stdout
    )
    assert len(table) == 8 * 5
    assert all(row["strikes"] == row["old"] + row["new"] for row in table)
    assert not [row for row in table if row["lost"] or row["unexpected"]]
