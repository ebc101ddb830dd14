"""The widest expert parallelism from file to report: time and memory by stage.

    python benchmarks/wide.py [EXPERTS [LAYERS]] [STAGE ...]

100 layers of 512 experts (or as many as asked for) on 320 GPUs in 40 nodes, 64 synthetic windows,
slots filled up on every GPU. Every stage is a process of its own, so that its peak of memory
(Python and libraries included) is its own; compiling is not counted in plans. Seconds are of the
processor and of the clock: on a busy machine only the first say anything.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import craftopt as co
from craftopt.bounds import whole_plan_bound

WINDOWS, GPUS, NODES = 64, 320, 40
STAGES = ("read", "nominal", "fast", "evaluate", "bound", "certify", "export", "report")


def make(folder: Path, experts: int, layers: int) -> None:
    """Write loads: lognormal popularity, which drifts from window to window."""
    draws = np.random.default_rng(0)
    popularity = draws.lognormal(sigma=1.0, size=(layers, experts))
    tokens = popularity * draws.lognormal(sigma=0.5, size=(WINDOWS, layers, experts))
    tokens *= 32768 * 8 / tokens.sum(axis=2, keepdims=True)
    np.savez(folder / "loads.npz", counts=tokens.round())


def stage(name: str, folder: Path) -> Callable[[], object]:
    """Prepare a stage; calling what is returned is what is measured."""
    file = folder / "loads.npz"
    if name == "read":
        return lambda: co.read_loads(file)
    loads = co.read_loads(file)
    extra = -loads.experts % GPUS
    if name == "report":
        return lambda: co.report(loads, GPUS, NODES, path=folder / "report.html")
    problem = co.Problem(loads, GPUS, nodes=NODES, replicas_per_layer=extra, slots="uniform")
    if name in ("nominal", "fast"):
        co.warm_up([name])

        return lambda: co.solve(problem, name).plan.save(folder / "plan.json")
    made = co.read_plan(folder / "plan.json")
    if name == "evaluate":
        return lambda: print(f"relative time {co.evaluate(made, loads).relative_time:.4f}")
    if name == "bound":
        return lambda: print(f"bound {whole_plan_bound(problem):.4f}")
    if name == "certify":
        return lambda: co.certify(problem, made)
    return lambda: co.export(made, "sglang", folder / "map.json")


def run(name: str, folder: Path) -> None:
    """Measure a stage in this process."""
    work = stage(name, folder)
    clock, used = time.perf_counter(), time.process_time()
    work()
    clock, used = time.perf_counter() - clock, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{name:10} {used:8.1f} s of processor {clock:8.1f} s {peak:8.0f} MiB", flush=True)


def main() -> None:
    """Measure the stages, each in a process of its own."""
    if os.environ.get("WIDE_FOLDER"):
        run(sys.argv[1], Path(os.environ["WIDE_FOLDER"]))
        return
    sizes = [int(word) for word in sys.argv[1:] if word.isdigit()]
    experts, layers = (*sizes, *(512, 100)[len(sizes) :])
    print(f"{layers} layers x {experts} experts x {GPUS} GPUs x {WINDOWS} windows", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), experts, layers)
        for name in sys.argv[1 + len(sizes) :] or STAGES:
            environment = {**os.environ, "WIDE_FOLDER": folder}
            subprocess.run([sys.executable, __file__, name], env=environment, check=True)


if __name__ == "__main__":
    main()
