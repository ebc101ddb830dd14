"""Work that does not depend on the machine: steps, placements, evaluations, kernels.

Seconds are measured by ``make bench``. A change that is meant to do more or less work renews the
figures: ``make counts``.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import craftopt as co
from craftopt import evaluation
from craftopt.planners import layers, windowed
from craftopt.serving import find_model

FIGURES = Path(__file__).parent / "data" / "counts.json"
# Plans, and with them counts, differ a little between kinds of processors.
CLOSE = 0.02


def loads() -> co.Loads:
    tokens = np.random.default_rng(5).lognormal(sigma=1.2, size=(12, 4, 32)) * 1000
    return co.Loads(tokens.round())


def problem(**options) -> co.Problem:
    return co.Problem(loads(), gpus=8, nodes=2, replicas_per_layer=8, **options)


RUNS = {
    "nominal": lambda: co.solve(problem(), "nominal", workers=1),
    "nominal, even": lambda: co.solve(problem(slots="even"), "nominal", workers=1),
    "fast": lambda: co.solve(problem(), workers=1),
    "fast, uniform": lambda: co.solve(problem(slots="uniform"), workers=1),
    "diagnose": lambda: co.diagnose(loads(), 8, 2, workers=1),
    "advise": lambda: co.advise(
        loads(),
        find_model("gpt-oss-20b").replace(layers=4, moe_layers=4, kv_layers=2),
        "h100",
        8,
        2,
        workers=1,
    ),
}


def counted(name: str, patch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count the work of one run."""
    RUNS[name]()  # compiling runs miniatures
    counts: Counter[str] = Counter()

    def count(module: object, function: str, what: str, size=lambda *_: 1) -> None:
        original = getattr(module, function)

        def counting(*arguments, **options):
            counts[what] += size(*arguments)
            return original(*arguments, **options)

        patch.setattr(module, function, counting)

    count(layers, "place_layer", "placements")
    count(windowed, "anneal", "annealing steps", lambda *arguments: arguments[4].steps)
    for module in (windowed, evaluation):
        count(module, "layer_gpu_loads", "evaluations of a layer")
    RUNS[name]()
    return dict(counts)


@pytest.mark.parametrize("name", RUNS)
def test_no_more_work_is_done_than_the_figures_say(name, monkeypatch):
    expected = json.loads(FIGURES.read_text())[name]
    found = counted(name, monkeypatch)
    assert found == {what: pytest.approx(count, rel=CLOSE) for what, count in expected.items()}


if __name__ == "__main__":
    figures = {}
    for run in RUNS:
        with pytest.MonkeyPatch.context() as patch:
            figures[run] = counted(run, patch)
    json.dump(figures, sys.stdout, indent=2)
    print()
