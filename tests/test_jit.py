"""The cache of kernels never holds what an edit has made old, and two processes may share it."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import craftopt

pytest.importorskip("numba")

from craftopt.heap import sort

CALLEE = """
from typing import NamedTuple
import numpy as np
from craftopt.jit import njit

FACTOR, TABLE, WHOLE = 3, np.array([1, 2]), (1, (2, 3))

class Pair(NamedTuple):
    one: int
    two: int

def make(step):
    @njit()
    def closed(x):
        return x + step
    return closed

closed = make(100)

@njit()
def inner(x):
    return 2 * x

@njit()
def middle(x):
    return closed(inner(x)) + TABLE[1] + WHOLE[1][0] + Pair(1, x).one
"""
CALLER = """
import craftopt_callee as callee
from craftopt_callee import middle
from craftopt.jit import njit

@njit()
def outer(x):
    return middle(x) * callee.FACTOR
"""


@pytest.fixture
def outer(tmp_path, monkeypatch):
    """Import the kernel as a new process would, with something in the callee's file replaced."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr("numba.config.CACHE_DIR", "")  # what is cached is beside the file
    (tmp_path / "caller.py").write_text(CALLER)

    def load(old="", new=""):
        assert CALLEE.count(old)
        (tmp_path / "craftopt_callee.py").write_text(CALLEE.replace(old, new))
        for name in ("craftopt_callee", "caller"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module("caller").outer

    yield load
    for name in ("craftopt_callee", "caller"):
        sys.modules.pop(name, None)


def hits(kernel):
    return sum(kernel.stats.cache_hits.values())


@pytest.mark.parametrize(
    ("old", "new", "result"),
    [
        ("2 * x", "5 * x", 3 * (5 + 100 + 2 + 2 + 1)),
        ("FACTOR, TABLE, WHOLE = 3", "FACTOR, TABLE, WHOLE = 4", 4 * (2 + 100 + 2 + 2 + 1)),
        ("np.array([1, 2])", "np.array([1, 9])", 3 * (2 + 100 + 9 + 2 + 1)),
        ("(2, 3)", "(7, 3)", 3 * (2 + 100 + 2 + 7 + 1)),
        ("make(100)", "make(200)", 3 * (2 + 200 + 2 + 2 + 1)),
        ("Pair(1, x).one", "Pair(1, x).two", 3 * (2 + 100 + 2 + 2 + 1)),
        ("one: int\n    two: int", "two: int\n    one: int", 3 * (2 + 100 + 2 + 2 + 1)),
    ],
)
def test_an_edit_of_what_a_kernel_uses_in_another_file_compiles_it_again(outer, old, new, result):
    assert outer()(1) == 3 * (2 + 100 + 2 + 2 + 1)
    edited = outer(old, new)
    assert edited(1) == result
    assert hits(edited) == 0
    assert outer(old, new)(1) == result


def test_what_did_not_change_is_loaded(outer, tmp_path):
    outer()(1)
    again = outer()
    assert (again(1), hits(again)) == (321, 1)
    other_lines = outer("from typing", "# A comment, and so other lines.\n\nfrom typing")
    assert (other_lines(1), hits(other_lines)) == (321, 1)


def test_what_an_edit_leaves_behind_is_deleted(outer, tmp_path):
    def files():
        return {file.name for file in tmp_path.rglob("*.nbc") if "outer" in file.name}

    outer()(1)
    old = files()
    outer()(1.0)  # another signature stays beside the first
    assert len(files()) == 2
    outer("2 * x", "5 * x")(1)
    assert len(files()) == 1
    assert not files() & old


@pytest.mark.parametrize("damage", [b"", b"x" * 1000])
def test_a_damaged_file_is_compiled_again(outer, tmp_path, damage):
    outer()(1)
    files = list(tmp_path.rglob("*.nbc"))
    assert files
    for file in files:
        file.write_bytes(damage)
    assert outer()(1) == 321


def test_a_cache_that_cannot_be_written_costs_time_alone(outer, tmp_path, monkeypatch):
    kernel = outer()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert kernel(1) == 321
    assert not list(tmp_path.rglob("*.nbc"))
    monkeypatch.undo()


def test_a_folder_without_a_place_for_a_cache_costs_time_alone(outer, monkeypatch):
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    assert outer()(1) == 321


# --- the package ----------------------------------------------------------------------------

RUN = """
import numpy as np
from craftopt.search.replication import replicate
print(replicate(np.array([8.0, 4.0, 4.0, 1.0]), 6, 7), replicate.stats.cache_hits.total())
"""


def start(folder: Path, cache: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", RUN],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
    )


def test_two_cold_processes_share_a_cache(tmp_path):
    source = Path(craftopt.__file__).parents[1]
    both = [start(source, tmp_path) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == [b"[5 2 2 1] 0\n"] * 2
    assert start(source, tmp_path).communicate()[0] == b"[5 2 2 1] 1\n"


def test_a_result_follows_an_edit_of_a_kernel_in_another_file_of_the_package(tmp_path):
    source = Path(craftopt.__file__).parent
    shutil.copytree(source, tmp_path / "craftopt", ignore=shutil.ignore_patterns("__pycache__"))
    cache = tmp_path / "cache"
    assert start(tmp_path, cache).communicate()[0] == b"[5 2 2 1] 0\n"
    file = tmp_path / "craftopt" / "heap.py"
    text = file.read_text()
    assert text.count("load[heap[child]] <= load[item]") == 1
    file.write_text(text.replace("load[heap[child]] <= load[item]", "load[item] < 1e9"))
    assert start(tmp_path, cache).communicate()[0] == b"[7 1 1 1] 0\n"


def test_a_kernel_for_kernels_says_so_when_python_calls_it():
    with pytest.raises(TypeError, match="sort has no way in from Python; call it in a kernel"):
        sort(np.zeros(3))
