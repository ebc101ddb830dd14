"""Set every benchmark's time in relation to ``eplb`` on the same loads, in the same run."""

from __future__ import annotations

import statistics

import pytest

import craftopt as co

REFERENCE = "eplb"
_ROWS: list[dict] = []


@pytest.fixture(scope="session")
def problems(request):
    """Return a maker of problems by example, made once.

    Every method may spend what EPLB spends: one extra slot on every GPU in every layer.
    Where nothing is measured (--benchmark-disable), two windows of two layers do.
    """
    made = {}
    size = 2 if request.config.getoption("benchmark_disable") else None

    def problem(example: str, groups: int | None = None) -> co.Problem:
        if (example, groups) not in made:
            loads = co.load_example(example)
            made[example, groups] = co.Problem(
                co.Loads(loads.tokens[:size, :size]),
                gpus=64,
                nodes=8,
                replicas_per_layer=64,
                slots="even",
                expert_groups=groups,
            )
        return made[example, groups]

    return problem


@pytest.fixture
def measure(benchmark):
    """Run a function under pytest-benchmark and note its time under a name and an example.

    The first run compiles and is not counted, unless ``warmups=0``. A function that returns
    seconds is timed by those: a plan's time is the planner's, without the plan's evaluation.
    """

    def run(name: str, example: str, function, rounds: int = 7, warmups: int = 1) -> None:
        seconds: list[float] = []

        def once() -> None:
            result = function()
            if isinstance(result, float):
                seconds.append(result)

        benchmark.group = example
        benchmark.pedantic(once, rounds=rounds, warmup_rounds=warmups)
        if benchmark.stats is None:  # --benchmark-disable: one run, no figures
            return
        median = statistics.median(seconds[warmups:]) if seconds else benchmark.stats.stats.median
        benchmark.extra_info.update(name=name, example=example, milliseconds=median * 1e3)
        _ROWS.append(benchmark.extra_info)

    return run


def _add_ratios() -> None:
    reference = {row["example"]: row["milliseconds"] for row in _ROWS if row["name"] == REFERENCE}
    for row in _ROWS:
        if row["example"] in reference:
            row["ratio_to_eplb"] = row["milliseconds"] / reference[row["example"]]


def pytest_benchmark_update_json(output_json):
    """Add the ratios to the figures that ``--benchmark-json`` saves."""
    _add_ratios()
    ratios = {(row["name"], row["example"]): row.get("ratio_to_eplb") for row in _ROWS}
    for entry in output_json["benchmarks"]:
        info = entry["extra_info"]
        info["ratio_to_eplb"] = ratios.get((info.get("name"), info.get("example")))


def pytest_terminal_summary(terminalreporter):
    """Print the medians and their ratios to ``eplb``."""
    if not _ROWS:
        return
    _add_ratios()
    terminalreporter.section("medians, and their ratio to eplb on the same example")
    for row in sorted(_ROWS, key=lambda row: (row["example"], row["milliseconds"])):
        ratio = f"{row['ratio_to_eplb']:8.2f}" if "ratio_to_eplb" in row else "       -"
        terminalreporter.write_line(
            f"{row['example']:12} {row['name']:32} {row['milliseconds']:10.3f} ms {ratio} x"
        )
