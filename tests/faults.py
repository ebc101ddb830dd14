"""Kill, interrupt and starve every writer; print what is left: ``python tests/faults.py``.

A program of its own, since it forks: each fault strikes a child that writes a new file over an old
one. The tests read the table.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import craftopt as co
from craftopt.documents import write_atomically, write_sealed
from craftopt.executors import Resumable

Writer = Callable[[Path], object]
# Moments of a write: the first are before the new file is in its place.
MOMENTS = ("opened", "half written", "written", "synced", "replaced")
RANDOM_KILLS = 30
NOBODY = 65534


def writers() -> dict[str, tuple[Writer, Writer]]:
    """Make for every kind of file one that writes the old and one that writes the new."""
    rng = np.random.default_rng(0)
    ids = rng.permuted(np.tile(range(16), (2000, 2, 1)), axis=2)[:, :, :4]
    pairs = [co.Trace(ids[:, :, order], 16).coactivation() for order in ([0, 1, 2, 3], [0, 1, 2])]
    plans = [co.Plan.from_phy2log([rng.permutation(16)] * 2, 4, 16) for _ in range(2)]
    problem = co.Problem(co.Loads(rng.gamma(0.5, 100, (1, 2, 16)).round()), gpus=4, slots="even")
    proofs = [co.certify(problem, plan) for plan in plans]
    layers = [(plan.copies, 0.5) for plan in plans]
    texts = ["old\n" * 100_000, "new\n" * 100_000]

    def both(make: Callable[[int], Writer]) -> tuple[Writer, Writer]:
        return make(0), make(1)

    return {
        "plan.json": both(lambda i: plans[i].save),
        "certificate.json": both(lambda i: proofs[i].save),
        "pairs.npz": both(lambda i: pairs[i].save),
        "sglang.json": both(lambda i: lambda path: co.export(plans[i], "sglang", path)),
        "eplb.npz": both(lambda i: lambda path: co.export(plans[i], "deepseek", path)),
        "report.html": both(lambda i: lambda path: write_atomically(path, texts[i])),
        "kept.layer": both(lambda i: lambda path: _keep(path, layers[i])),
        "kernel.nbc": both(lambda i: lambda path: write_sealed(path, b"name", texts[i].encode())),
    }


def _keep(path: Path, result: object) -> None:
    kept = Resumable(path.parent)
    kept._path = lambda key: path  # type: ignore[method-assign]
    kept._write(b"key", result)


def stop_at(moment: str, number: int) -> None:
    """Send this process a signal at a moment of its next write."""
    opened, fsync, replace = Path.open, os.fsync, Path.replace

    def stop(now: str) -> None:
        if now == moment:
            os.kill(os.getpid(), number)
            time.sleep(1)

    class Written(io.FileIO):
        def write(self, content: bytes) -> int:  # type: ignore[override]
            stop("opened")
            half = len(content) // 2
            super().write(content[:half])
            stop("half written")
            return half + super().write(content[half:])

    def patched_fsync(file: int) -> None:
        stop("written")
        fsync(file)
        stop("synced")

    def patched_replace(self: Path, target: Path) -> Path:
        moved = replace(self, target)
        stop("replaced")
        return moved

    Path.open = lambda self, mode="r", **rest: (  # type: ignore[method-assign]
        Written(self, "x") if mode == "xb" else opened(self, mode, **rest)
    )
    os.fsync, Path.replace = patched_fsync, patched_replace  # type: ignore[method-assign]


@contextlib.contextmanager
def child(work: Callable[[], object]) -> Iterator[int]:
    """Fork; the child exits with 3 where the work is refused in one clear line."""
    process = os.fork()
    if not process:
        code = 1
        try:
            work()
            code = 0
        except co.InputError as error:
            code = 3 if str(error).startswith("cannot ") and "\n" not in str(error) else 4
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    yield process


def strike(work: Callable[[], object]) -> int:
    """Run a child to its end; return its exit code, negative for a signal."""
    with child(work) as process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def table(folder: Path) -> list[dict[str, object]]:
    """Strike every writer with every fault, and count what is left."""
    rows = []
    for name, (write_old, write_new) in writers().items():
        target = folder / name
        write_new(target)
        new = target.read_bytes()
        write_old(target)
        old = target.read_bytes()
        assert old != new

        def row(fault: str, expected: int, codes: list[int], left: list[bytes]) -> None:
            rows.append(
                {
                    "file": name,  # noqa: B023
                    "fault": fault,
                    "strikes": len(codes),
                    "old": left.count(old),  # noqa: B023
                    "new": left.count(new),  # noqa: B023
                    "lost": sum(content not in (old, new) for content in left),  # noqa: B023
                    "unexpected": sum(code != expected for code in codes),
                }
            )

        def at_moments(number: int) -> tuple[list[int], list[bytes]]:
            codes, left = [], []
            for moment in MOMENTS:
                write_old(target)  # noqa: B023

                def work(moment: str = moment) -> None:
                    stop_at(moment, number)
                    write_new(target)  # noqa: B023

                codes.append(strike(work))
                left.append(target.read_bytes())  # noqa: B023
            return codes, left

        row("kill -9 at each step", -signal.SIGKILL, *at_moments(signal.SIGKILL))
        for file in folder.glob(".*"):  # what kill -9 leaves behind is read by nobody
            file.unlink()
        row("Ctrl-C at each step", 130, *at_moments(signal.SIGINT))
        spare = [file.name for file in folder.iterdir() if file != target]
        assert not spare, spare

        def forever() -> None:
            while True:
                write_new(target)  # noqa: B023
                write_old(target)  # noqa: B023

        codes, left = [], []
        for _ in range(RANDOM_KILLS):
            with child(forever) as process:
                time.sleep(random.Random(len(codes)).uniform(0.001, 0.03))
                os.kill(process, signal.SIGKILL)
                codes.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
            left.append(target.read_bytes())
        row("kill -9 at any time", -signal.SIGKILL, codes, left)
        for file in folder.glob(".*"):
            file.unlink()

        def full() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
            write_new(target)  # noqa: B023

        def forbidden() -> None:
            if not os.getuid():
                os.setuid(NOBODY)  # root may write everywhere
            write_new(target)  # noqa: B023

        write_old(target)
        row("no room left", 3, [strike(full)], [target.read_bytes()])
        folder.chmod(0o555)
        row("read-only folder", 3, [strike(forbidden)], [target.read_bytes()])
        folder.chmod(0o755)
        spare = [file.name for file in folder.iterdir() if file != target]
        assert not spare, spare
        target.unlink()
    return rows


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as made:
        found = table(Path(made))
    if "--json" in sys.argv:
        print(json.dumps(found))
    else:
        for line in [{key: key for key in found[0]}, *found]:
            print("".join(f"{value!s:<22}" for value in line.values()))
