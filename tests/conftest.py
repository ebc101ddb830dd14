"""Hypothesis profiles, and little work for proofs."""

from __future__ import annotations

import importlib.util
import os

import pytest
from hypothesis import HealthCheck, settings

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


# What runs in engines' own code; see the Makefile.
collect_ignore = ["engines_real"]


@pytest.fixture(autouse=True)
def little_solver_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give proofs little work unless a test asks for more: by default they may take a minute."""
    if importlib.util.find_spec("ortools"):
        monkeypatch.setattr("craftopt_formulations.exact.WORK", 1)
