"""Whatever craftopt is given, it answers with a result or one clear error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest

SAMPLE = {"plan": 100, "proof": 100, "command": 40}


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
