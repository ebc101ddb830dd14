"""vLLM's whole engine on a tiny model, and vLLM's own tests, with craftopt's policy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from craftopt.engines import vllm as ours

pytest.importorskip("vllm")

HERE = Path(__file__).parent
SOURCE = Path(os.environ.get("VLLM_SOURCE", ""), "tests", "distributed")

# What vLLM's tests of its policy ask of craftopt's in vain.
REFUSED = {
    "test_basic_rebalance": "the slots of EPLB's own plan, one by one",
    "test_extreme_weight_imbalance": "three copies of an expert in a node of two GPUs",
    "test_parameter_validation": "AssertionError, where 7 slots on 4 GPUs raise InputError",
}


def run(script: str, *arguments: object, switch: str = "") -> str:
    """Run a Python script as an engine is run; its output is shown where it fails."""
    environment = {
        **os.environ,
        ours.SWITCH: switch,
        "PYTHONPATH": str(HERE),
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    command = [sys.executable, *script.split(), *map(str, arguments)]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, cwd=HERE, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    folder = tmp_path_factory.mktemp("model")
    run("vllm_engine.py", folder)

    def answer(mode: str, switch: str = "") -> dict[str, Any]:
        lines = run("vllm_engine.py", folder, mode, switch=switch).splitlines()
        found: dict[str, Any] = json.loads(next(x for x in lines if x.startswith('{"rounds"')))
        return found

    return answer


@pytest.fixture(scope="module")
def tokens(engine: Callable[..., dict[str, Any]]) -> list[list[int]]:
    """What the engine says without EPLB, greedily, in float32."""
    first, again = engine("off")["rounds"]
    assert first == again
    assert all(len(set(answer)) > 10 for answer in first)  # no model that says one word
    return first


@pytest.mark.parametrize(
    ("mode", "switch"), [("sync", ""), ("sync", "1"), ("async", ""), ("async", "1")]
)
def test_tokens_are_those_without_eplb_while_experts_move(engine, tokens, mode, switch):
    found = engine(mode, switch)
    assert found["rounds"] == [tokens] * len(found["rounds"])
    first, second = found["ranks"]
    assert first == second
    assert first["moved"] > 0
    assert first["wrong_at_start"] == first["wrong"] == 0
    if switch:  # no expert twice on a GPU, which vLLM's own plans have
        for row in first["map"]:
            half = len(row) // 2
            assert len(set(row[:half])) == len(set(row[half:])) == half


@pytest.mark.skipif(not SOURCE.is_dir(), reason="VLLM_SOURCE is no unpacked sdist of vLLM")
def test_vllms_own_tests_pass_but_for_those_that_want_its_own_plans(tmp_path):
    files = [SOURCE / f"test_eplb_{name}.py" for name in ("algo", "utils", "migration_scheduler")]
    options = "-p craftopt_in_vllm -p no:cacheprovider -c /dev/null --noconftest"
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", *options.split(), f"--junitxml={report}", *files]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(HERE)}, check=False)
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    assert len(cases) == 34
    failed = {case.get("name") for case in cases if case.find("failure") is not None}
    assert failed == set(REFUSED)
    skipped = {case.get("name") for case in cases if case.find("skipped") is not None}
    assert skipped == {"test_device_compatibility[cuda]", "test_device_compatibility[xpu]"}
