"""Hypothesis profiles, and little work for proofs."""

from __future__ import annotations

import importlib.util
import os
import warnings

import pytest
from hypothesis import HealthCheck, settings

import craftopt as co
from craftopt import cli

# Derandomised, so that a red build is about the change; the slow tests explore.
settings.register_profile(
    "ci",
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "explore", parent=settings.get_profile("ci"), derandomize=False, max_examples=2000
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


# What runs in engines' own code (see the Makefile), and what needs atheris.
collect_ignore = ["engines_real", "formats/fuzz_bytes.py"]


@pytest.fixture(autouse=True)
def little_solver_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give proofs little work unless a test asks for more: by default they may take a minute."""
    if importlib.util.find_spec("ortools"):
        monkeypatch.setattr("craftopt_formulations.exact.WORK", 1)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run craftopt in this process; return its exit code, output, and errors with notes."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["craftopt", *map(str, arguments)])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        warnings.simplefilter("always", co.CraftoptWarning)
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code or 0, *capsys.readouterr()
        return 0, *capsys.readouterr()

    with warnings.catch_warnings():
        yield run
