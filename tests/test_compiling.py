"""Compiling is not planning: no clock holds it, it is done once, and a terminal is told."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from numba import njit
from numba.core.dispatcher import Dispatcher

import craftopt as co
from craftopt import compiling, solving
from craftopt.compiling import first_use, miniature
from craftopt.rebalancing import planning as rebalancing

# Kernels that a miniature need not reach: they may be compiled inside the clock, once on a machine.
RARE = (
    "craftopt.search.descent.kick",
    "craftopt.bounds.common_copies.",
    "craftopt.bounds.cardinality.",
)

VARIANTS = {
    "windows": {},
    "one window": {"windows": 1},
    "one layer": {"layers": 1},
    "no replicas": {"replicas": 0},
    "groups": {"expert_groups": 4},
    "uniform": {"slots": "uniform"},
    "even, balancedness": {"slots": "even", "objective": "balancedness"},
    "decode": {"objective": "activated"},
    "decode, groups": {"objective": "activated", "expert_groups": 4},
    "previous": {"previous": True},
    "previous, one window": {"windows": 1, "previous": True},
    "previous, decode": {"previous": True, "objective": "activated"},
    "moves": {"previous": True, "max_moves": 3},
}
SEARCHES = [name for name in solving.methods() if solving.METHODS[name].work]
CASES = [
    (method, variant)
    for method in solving.methods()
    for variant in (VARIANTS if method in SEARCHES else ("windows", "groups"))
]


def made(windows: int = 3, layers: int = 3, *, previous: bool = False, **options) -> co.Problem:
    tokens = np.random.default_rng(0).lognormal(sigma=1.5, size=(windows, layers, 16)).round()
    loads = co.Loads(tokens)
    if previous:
        options["previous"] = co.solve(co.Problem(loads, gpus=8, nodes=2), "placement").plan
    return co.Problem(loads, gpus=8, nodes=2, **{"replicas": 8 * layers, **options})


def plan(problem: co.Problem, method: str) -> co.Result:
    """Plan without CP-SAT, which has nothing to compile."""
    return co.solve(problem, method, work_limit=0 if method == "exact" else None)


def dispatchers() -> dict[str, Dispatcher]:
    """Return the kernels of all modules that are loaded, by module and name."""
    return {
        f"{value.py_func.__module__}.{value.py_func.__name__}": value
        for name, module in list(sys.modules.items())
        if name.startswith("craftopt")
        for value in vars(module).values()
        if isinstance(value, Dispatcher)
    }


def compiled() -> set[tuple[str, str]]:
    return {(name, str(types)) for name, d in dispatchers().items() for types in d.overloads}


@pytest.fixture
def new_process(monkeypatch):
    """Forget what is compiled; what numba has cached on disk is loaded again."""
    monkeypatch.setattr(compiling, "_ready", set())
    for dispatcher in dispatchers().values():
        dispatcher._reset_overloads()
        dispatcher.overloads.clear()


@pytest.fixture
def started(monkeypatch):
    """Note what is compiled where clocks start: after the first use."""
    moments = []

    def watched(*arguments):
        seconds = first_use(*arguments)
        moments.append(compiled())
        return seconds

    for module in (solving, rebalancing):
        monkeypatch.setattr(module, "first_use", watched)
    return moments


def compiled_late(started: list[set[tuple[str, str]]]) -> list[tuple[str, str]]:
    """List what has been compiled since the last clock started."""
    return sorted(kernel for kernel in compiled() - started[-1] if not kernel[0].startswith(RARE))


@pytest.mark.parametrize(("method", "variant"), CASES)
def test_nothing_is_compiled_while_the_clock_of_solve_runs(method, variant, new_process, started):
    problem = made(**VARIANTS[variant])
    result = plan(problem, method)
    if solving.METHODS[method].refusal(problem):
        assert result.compile_time == 0
        return
    assert compiled_late(started) == []


@pytest.mark.parametrize("options", [{}, {"max_moves": 5}, {"active": [True] * 7 + [False]}])
@pytest.mark.parametrize("variant", ["windows", "one window", "uniform"])
def test_nothing_is_compiled_while_the_clock_of_rebalance_runs(
    variant, options, new_process, started
):
    problem = made(**VARIANTS[variant])
    old = co.solve(problem, "nominal").plan
    turned = co.Loads(problem.loads.tokens[:, :, ::-1])
    co.rebalance(problem.replace(loads=turned), old, **options)
    assert compiled_late(started) == []


@pytest.mark.parametrize("method", SEARCHES)
def test_after_a_warm_up_nothing_is_left_to_compile(method, new_process):
    problems = [made(**options) for options in VARIANTS.values()]
    solving.warm_up()
    known = compiled()
    for problem in problems:
        _ = plan(problem, method).status
    assert sorted(compiled() - known) == []


def test_only_the_first_use_of_a_kind_is_compiled(monkeypatch):
    monkeypatch.setattr(compiling, "_ready", set())
    problem = made()
    assert co.solve(problem, "eplb").compile_time > 0
    assert co.solve(problem.replace(gpus=4), "eplb").compile_time == 0
    assert co.solve(problem, "craft").compile_time > 0
    assert co.solve(problem.replace(slots="even"), "eplb").compile_time > 0
    assert list(co.warm_up(["EPLB"])) == ["eplb"]


def test_threads_compile_once(monkeypatch):
    monkeypatch.setattr(compiling, "_ready", set())
    runs, begun, waiting = [], threading.Event(), threading.Event()

    def run(small):
        begun.set()
        waiting.wait(10)
        runs.append(small)

    problem = made()
    threads = [threading.Thread(target=first_use, args=("test", problem, run)) for _ in range(3)]
    for thread in threads:
        thread.start()
    begun.wait(10)
    waiting.set()
    for thread in threads:
        thread.join()
    assert len(runs) == 1


CHILD = """
import sys, time
from pathlib import Path
import craftopt as co
from craftopt.compiling import first_use

name, folder = sys.argv[1], Path(sys.argv[2])

def run(small):
    (folder / f"{name} compiles").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    (folder / f"{name} is done").touch()
    print(sorted(path.name for path in folder.glob("* done")))

problem = co.Problem(co.Loads([[[8, 4, 2, 2]]]), gpus=2)
(folder / f"{name} calls").touch()
first_use("test", problem, run)
"""


def test_of_two_processes_one_waits_until_the_other_has_compiled(tmp_path):
    pytest.importorskip("fcntl")

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, name, str(tmp_path)]
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def wait_for(name: str) -> None:
        while not (tmp_path / name).exists():
            assert all(child.poll() is None for child in children), name
            time.sleep(0.01)

    children = [start("first")]
    try:
        wait_for("first compiles")
        children.append(start("second"))
        wait_for("second calls")
        time.sleep(0.3)
        assert not (tmp_path / "second compiles").exists()
        (tmp_path / "go").touch()
        said = [child.communicate(timeout=60)[0].strip() for child in children]
    finally:
        for child in children:
            child.kill()
    assert said == ["['first is done']", "['first is done', 'second is done']"]


def test_a_first_use_that_was_interrupted_is_done_again(monkeypatch):
    monkeypatch.setattr(compiling, "_ready", set())
    runs = []

    def interrupted(small):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first_use("test", made(), interrupted)
    first_use("test", made(), runs.append)
    first_use("test", made(), runs.append)
    assert len(runs) == 1


def test_a_plan_does_not_depend_on_the_warm_up(monkeypatch):
    problem = made()
    monkeypatch.setattr(compiling, "_ready", set())
    first, second = (co.solve(problem, "fast", seed=3) for _ in range(2))
    assert (first.compile_time > 0, second.compile_time) == (True, 0)
    assert first.plan == second.plan


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "lines"), [(Terminal, 1), (io.StringIO, 0)])
def test_a_terminal_is_told_once_that_kernels_are_compiled(monkeypatch, stream, lines):
    monkeypatch.setattr(compiling, "_ready", set())
    monkeypatch.setattr(compiling, "_announced", False)
    monkeypatch.setattr(sys, "stderr", stream())
    for name in ("first", "second"):
        first_use(name, made(), lambda small: njit(lambda x: x + 1)(small.gpus))
    said = sys.stderr.getvalue().splitlines()
    assert len(said) == lines
    assert all("compiling, once" in line for line in said)


def test_nothing_is_said_where_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(compiling, "_announced", False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(compiling, "_ready", set())
    first_use("test", made(), lambda small: None)
    assert sys.stderr.getvalue() == ""


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_miniature_is_its_own_miniature(variant):
    small = miniature(made(**VARIANTS[variant]))
    again = miniature(small)
    assert repr(small) == repr(again)
    assert small.loads == again.loads
    assert compiling.kind_of(small) == compiling.kind_of(again)
