"""Damaged files give a result or one clear error: no crash, no hang, no code, little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import damage_files
import pytest

SCRIPT = Path(damage_files.__file__)


def run(name: str, count: int, seed: int) -> dict[str, float]:
    command = [sys.executable, str(SCRIPT), name, str(count), str(seed)]
    path = os.pathsep.join([str(SCRIPT.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", damage_files.FORMATS)
def test_damaged_files_give_a_result_or_one_clear_error(name):
    outcome = damage_files.main(name, 30, 1)
    assert outcome["read"] + outcome["refused"] == 30


@pytest.mark.slow
@pytest.mark.parametrize("name", damage_files.FORMATS)
def test_a_thousand_damaged_files_within_limits_of_their_own(name):
    outcome = run(name, 1000, 2)
    assert outcome["read"] + outcome["refused"] == 1000
    assert outcome["refused"] > 100
    assert outcome["peak_mb"] < 1024


def test_the_limits_hold_in_a_process_of_its_own():
    assert run("sglang per_pass", 30, 3)["peak_mb"] < 1024
