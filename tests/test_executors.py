"""Plans do not depend on where layers are searched, nor on what an earlier run finished."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import craftopt as co
from craftopt import executors
from craftopt.bench_exact import Grid
from craftopt.bench_exact import bench_exact as grid_runs

LAYERS, EXPERTS, GPUS = 4, 12, 4


def make_problem(seed=0, **rules):
    tokens = np.random.default_rng(seed).gamma(0.5, 100, (3, LAYERS, EXPERTS)).round()
    return co.Problem(co.Loads(tokens), gpus=GPUS, **{"nodes": 2, "replicas": 12} | rules)


def priced(seed=0):
    rng = np.random.default_rng(seed)
    trace = co.Trace(
        rng.permuted(np.tile(range(EXPERTS), (2400, LAYERS, 1)), axis=2)[:, :, :2], EXPERTS
    )
    windows = trace.batches(800)
    return co.Problem(windows, GPUS, nodes=2, replicas=12, coactivation=trace, traffic=0.5)


def solving(make=make_problem, method="fast", work_limit=500):
    def run(workers, **changes):
        options = {"work_limit": work_limit} | changes
        return co.solve(make(), method, workers=workers, **options).plan.to_json()

    return run


def rebalanced(workers):
    old = co.solve(make_problem(1), "nominal").plan
    return co.rebalance(make_problem(), old, work_limit=500, workers=workers).plan.to_json()


def certified(workers):
    problem = make_problem(slots="even")
    return co.certify(problem, co.solve(problem, "nominal").plan, workers=workers).to_json()


def bench_exact(workers):
    grid = Grid(((6, 2),), (1.0,), (0.5,), (1,), (0,))
    with tempfile.TemporaryDirectory() as folder:
        runs = grid_runs(grid, Path(folder) / "runs.csv", workers=workers)
    return "".join(f"{replace(run, seconds=0.0)}\n" for run in runs)


# One of every search over layers, and what else is a map.
RUNS = {
    "fast": solving(),
    "traffic": solving(priced),
    "decode": solving(lambda: make_problem(objective="activated")),
    "exact": solving(lambda: make_problem(replicas=16, slots="uniform"), "exact", 1),
    "nominal": solving(method="nominal"),
    "rebalance": rebalanced,
    "certify": certified,
    "bench-exact": bench_exact,
}
each_run = pytest.mark.parametrize("name", RUNS)


def planned(name, workers, **changes):
    if "exact" in name:
        pytest.importorskip("ortools")
    return RUNS[name](workers, **changes)


@functools.cache
def alone(name):
    """Plan in one thread."""
    return planned(name, 1)


class Counting(executors.Threads):
    """Threads that count what they are asked to compute."""

    calls = 0

    def run(self, function, items):
        self.calls += len(items)
        return super().run(function, items)


# --- what is kept ---------------------------------------------------------------------------


@each_run
def test_a_run_that_starts_again_searches_no_layer_twice(name, tmp_path):
    first, again = Counting(1), Counting(1)
    assert planned(name, co.Resumable(tmp_path, first)) == alone(name)
    assert planned(name, co.Resumable(tmp_path, again)) == alone(name)
    assert again.calls == 0
    assert len(list(tmp_path.iterdir())) == first.calls
    assert (first.calls > 0) == (name != "nominal")  # which takes moments


def test_a_run_goes_on_where_another_stopped(tmp_path):
    class Stopping(Counting):
        def run(self, function, items):
            for place, found in super().run(function, items):
                yield place, found
                if len(list(tmp_path.iterdir())) >= 10:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        planned("fast", co.Resumable(tmp_path, Stopping(1)))
    whole, rest = Counting(1), Counting(1)
    assert planned("fast", co.Resumable(tmp_path, rest)) == planned("fast", whole)
    assert rest.calls == whole.calls - 10


@pytest.mark.parametrize(
    "damage",
    [
        lambda content, other: b"",
        lambda content, other: content[:-1],
        lambda content, other: content[:40] + bytes([content[40] ^ 1]) + content[41:],
        lambda content, other: other,
    ],
    ids=["emptied", "cut", "altered", "renamed"],
)
def test_a_damaged_or_foreign_file_is_searched_again(damage, tmp_path):
    planned("fast", co.Resumable(tmp_path))
    files = sorted(tmp_path.iterdir())
    contents = [file.read_bytes() for file in files]
    for place, file in enumerate(files):
        file.write_bytes(damage(contents[place], contents[place - 1]))
    assert planned("fast", co.Resumable(tmp_path)) == alone("fast")
    assert [file.read_bytes() for file in files] == contents


@pytest.mark.parametrize("change", [{"seed": 1}, {"work_limit": 400}])
def test_what_another_run_kept_changes_no_plan(change, tmp_path):
    planned("fast", co.Resumable(tmp_path))
    counted = Counting(1)
    assert planned("fast", co.Resumable(tmp_path, counted), **change) == planned(
        "fast", 1, **change
    )
    assert counted.calls


def test_what_other_sources_or_libraries_computed_is_left_alone(tmp_path, monkeypatch):
    planned("fast", co.Resumable(tmp_path))
    counted = Counting(1)
    monkeypatch.setattr(executors, "sources", lambda: "craftopt of another day")
    planned("fast", co.Resumable(tmp_path, counted))
    assert counted.calls == len(list(tmp_path.iterdir())) / 2


def test_a_kept_file_calls_nothing_but_what_results_are_made_of(tmp_path):
    class Foreign:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    kept = co.Resumable(tmp_path)
    kept._write(b"key", 1)
    assert kept._read(b"key") == (1,)
    kept._write(b"key", Foreign())
    assert kept._read(b"key") is None
    assert not (tmp_path / "made").exists()


def test_a_time_limit_is_refused_where_layers_are_kept(tmp_path):
    with pytest.raises(co.InputError, match="leave it out, and stop with Ctrl-C"):
        co.solve(make_problem(), workers=co.Resumable(tmp_path), time_limit=1)


def test_a_folder_that_cannot_be_made_is_named_before_any_work(tmp_path):
    with pytest.raises(co.InputError, match=r"cannot keep results in .*: No such file"):
        co.Resumable(tmp_path / "missing" / "folder")
    with pytest.raises(co.InputError, match=r"cannot keep results in 9{40}\.\.\.: File name too"):
        co.Resumable("9" * 5000)
    (tmp_path / "file").touch()
    with pytest.raises(
        co.InputError, match=r"cannot keep results in .*: it is a file; pass a folder"
    ):
        co.Resumable(tmp_path / "file")


def test_an_error_in_a_thread_ends_the_run():
    with pytest.raises(ZeroDivisionError):
        list(executors.Threads(2).run(divmod, [(1, 1), (1, 0)]))


# --- the command line -----------------------------------------------------------------------

PLAN = ("plan", "gpt-oss-20b", "--gpus", 8, "--replicas-per-layer", 8, "--work-limit", 2000)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--executor", "dask"), "--executor dask needs --scheduler"),
        (("--scheduler", "tcp://a:1"), "--scheduler is for --executor dask"),
        (("--executor", "ray"), "--executor='ray' is unknown; pass one of threads, dask"),
        (
            ("--executor", "dask", "--scheduler", "tcp://a:1", "--workers", 2),
            "a Dask cluster has its own workers",
        ),
        (("--resume", "no/such/folder"), "cannot keep results in no/such/folder"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run, options, said):
    code, _, errors = run(*PLAN, *options)
    assert code == 2
    assert said in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (
            signal.SIGINT,
            130,
            "craftopt: stopped: finished layers are in {}; the same command goes on from there\n",
        ),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_a_stopped_command_leaves_what_the_same_command_goes_on_from(
    number, code, said, tmp_path, run
):
    kept, output = tmp_path / "kept", tmp_path / "plan.json"
    options = ("--resume", kept, "-o", output)
    command = [sys.executable, "-m", "craftopt", *map(str, (*PLAN, *options))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and (not kept.exists() or len(list(kept.iterdir())) < 3):
            time.sleep(0.01)
        process.send_signal(number)
        errors = process.communicate()[1]
    assert (process.returncode, errors) == (code, said.format(kept))
    assert not output.exists()
    assert run(*PLAN, *options)[0] == 0
    assert run(*PLAN, "-o", tmp_path / "alone.json")[0] == 0
    assert output.read_bytes() == (tmp_path / "alone.json").read_bytes()


# --- a Dask cluster -------------------------------------------------------------------------


class Cluster:
    """A scheduler and workers, each a process on this machine."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "scheduler.json"
        self.processes = [self._start("scheduler", "--host", "127.0.0.1", "--port", "0")]
        while not self.file.exists():
            time.sleep(0.05)

    def _start(self, role: str, *options: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "dask", role, *options, "--scheduler-file", str(self.file)]
        return subprocess.Popen(
            [*command, "--no-dashboard"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def start_worker(self) -> subprocess.Popen:
        worker = self._start("worker", "--nthreads", "1", "--no-nanny")
        self.processes.append(worker)
        return worker

    def connect(self, workers: int) -> co.Dask:
        while True:
            try:
                address = json.loads(self.file.read_text())["address"]
                break
            except ValueError:  # it is being written
                time.sleep(0.05)
        dask = co.Dask(address)
        dask._client.wait_for_workers(workers, timeout=60)
        return dask

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path):
    pytest.importorskip("distributed")
    started = Cluster(tmp_path)
    yield started
    started.stop()


@pytest.mark.filterwarnings("default")
def test_a_cluster_plans_as_one_process_does_and_loses_nothing_with_a_worker(cluster):
    lost, _ = cluster.start_worker(), cluster.start_worker()
    dask = cluster.connect(2)
    for name in RUNS:
        assert planned(name, dask) == alone(name), name

    class Losing:
        """A cluster that loses a worker while layers are searched."""

        def run(self, function, items):
            for place, found in dask.run(function, items):
                yield place, found
                if lost.poll() is None:
                    os.kill(lost.pid, signal.SIGKILL)
                    lost.wait()

    assert planned("exact", Losing()) == alone("exact")
    assert lost.returncode == -signal.SIGKILL
    assert len(dask._client.nthreads()) == 1
    dask._client.close()
