"""Whatever craftopt is given, it answers with a result or one clear error."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import damage_files
import fuzz
import pytest

import craftopt as co

SAMPLE = {"plan": 100, "proof": 100, "command": 40}


def zipped(name):
    """Make an archive of one empty entry."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"")
    return file.getvalue()


# Crashes that were found, each as its smallest input.
FOUND = {
    "an archive's name on two lines": (co.read_loads, zipped("a\nb")),
    "an array's name on two lines": (co.read_loads, zipped("a\nb.npy")),
    "a certificate without a text": (co.Certificate.load, b""),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_is_one_clear_error(name, tmp_path):
    read, content = FOUND[name]
    file = tmp_path / "input"
    file.write_bytes(content)
    with pytest.raises(co.CraftoptError) as refused:
        read(file)
    damage_files.check(refused.value, file)


def test_a_number_of_layers_with_thousands_of_digits_is_one_clear_error(run):
    code, _, said = run("plan", "gpt-oss-20b", "--gpus", 4, "--layers", "9" * 5000)
    assert code == 2
    assert len(said) < 200
    assert "pass numbers, such as 3-60" in said


@pytest.mark.parametrize("read", [*damage_files.READERS, co.read_coactivation])
def test_an_empty_path_is_not_the_current_folder(read):
    with pytest.raises(co.InputError, match="the path is empty"):
        read("")


def crashes(results):
    return {name: found["crashes"] for name, found in results.items() if found["crashes"]}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLE)
def test_damaged_input_gives_a_result_or_one_clear_error(name):
    results = fuzz.run(0, only=name, count=SAMPLE[name])
    assert not crashes(results)
    assert all(found["refused"] for found in results.values())


@pytest.mark.slow
def test_ten_minutes_of_damaged_input_find_no_crash():
    command = [sys.executable, Path(fuzz.__file__), "600", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, check=True, capture_output=True, env=environment)
    results = json.loads(done.stdout)
    assert not crashes(results)
    assert all(found["inputs"] for found in results.values())
