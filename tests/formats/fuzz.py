"""Damage what craftopt is given: ``python fuzz.py SECONDS SEED [KIND]`` prints what happened.

Kinds are readers (by `damage_files`), plans, proofs (certificates and logs) and commands; each gets
as many seconds. A result, or one clear error, is right; anything else is a crash, and is printed
with its input.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import damage_files
import numpy as np
import typer
from damage_files import HUGE, Rng, flip

import craftopt as co
from craftopt import cli
from craftopt.verification.logs import HEADER
from craftopt.verification.refutation import BetterPlan

SECONDS = 20  # of the processor, for one input
MEMORY = 8 * 2**30  # addresses, in bytes
# What options may mean, or not.
NUMBERS = ("0", "1", "2", "3", "4", "8", "100")
WORDS = ("even", "free", "uniform", "time", "balancedness", "activated", "nominal", "fast", "eplb",
         "odd-even", "first-half", "domains", "nearest-even", "lp", "cover", "trace", "plan", "0-1",
         "gpt-oss-20b", "h200", "loads.npz", "trace.npz", "plan.json", "out.json",
         "kept")  # fmt: skip
ODD = (None, True, [], {}, "", "x", -1, 0, 1, 2**31, 10**30, 0.5, -0.0, 1e308, "1/0", "-1/3", [[]])


def damaged(text: str, rng: Rng) -> bytes:
    """Damage the bytes of a JSON document, or put something odd in one place of it."""
    if rng.random() < 0.4:
        return flip(text.encode(), rng)
    document = json.loads(text)
    for _ in range(int(rng.integers(1, 3))):
        place: Any = document
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = keys[int(rng.integers(len(keys)))]
            if isinstance(place[key], dict | list) and rng.random() < 0.8:
                place = place[key]
                continue
            how = rng.random()
            if how < 0.2:
                del place[key]
            elif how < 0.4 and isinstance(place, list):
                place.append(place[key])
            else:
                place[key] = ODD[int(rng.integers(len(ODD)))]
            break
    return json.dumps(document).encode()


class Targets:
    """One method per kind of input; each damages one, and returns its result or raises."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(0)
        tokens = rng.gamma(0.5, 100, (3, 2, 8)).round()
        np.savez(folder / "loads.npz", counts=tokens)
        np.savez(folder / "wide.npz", counts=rng.gamma(0.5, 100, (4, 24, 32)).round())
        self.loads = co.Loads(tokens)
        problem = co.Problem(self.loads, gpus=4, nodes=2, replicas=8)
        plan = co.Plan.from_phy2log([[0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]] * 2, 4, 8, nodes=2)
        plan.save(folder / "plan.json")
        self.plan_text = plan.to_json()
        self.proofs = [
            co.certify(problem, plan).to_json(),
            co.certify(problem.replace(loads=self.loads.total(), slots="even"), plan).to_json(),
        ]
        # One GPU: no plan can be better, which the sum of all premises of the claim says.
        single = co.Problem(self.loads, gpus=1)
        self.held = co.certify(single, co.Plan.from_phy2log([range(8)] * 2, 1, 8))
        (folder / "certificate.json").write_text(self.held.to_json())
        ids = rng.permuted(np.tile(range(8), (300, 2, 1)), axis=2)[:, :, :2]
        np.savez(folder / "trace.npz", topk_ids=ids)
        self.inputs = {file: file.read_bytes() for file in folder.iterdir()}
        last = len(BetterPlan(single, Fraction(1)).formula.constraints)
        steps = ("l 1", "l 2", "pol 1 2 +", "pol 1 3 * 2 d s", f"l {last}", "c 5", "c 1")
        self.steps = "\n".join([HEADER, *steps, ""])

    def plan(self, rng: Rng) -> object:
        """Read a damaged plan, and score it."""
        file = self.folder / "damaged.json"
        file.write_bytes(damaged(self.plan_text, rng))
        return co.evaluate(co.read_plan(file), self.loads)

    def certificate(self, rng: Rng) -> object:
        """Read and verify a damaged certificate."""
        file = self.folder / "damaged.json"
        file.write_bytes(damaged(self.proofs[int(rng.integers(2))], rng))
        return co.verify(co.Certificate.load(file))

    def log(self, rng: Rng) -> object:
        """Check a damaged log."""
        file = self.folder / "damaged.pbp"
        lines = self.steps.encode().splitlines(keepends=True)
        if rng.random() < 0.5:
            at, to = rng.integers(len(lines), size=2)
            lines[int(at)], lines[int(to)] = lines[int(to)], lines[int(at)]
            file.write_bytes(b"".join(lines))
        else:
            file.write_bytes(flip(b"".join(lines), rng))
        return co.verify(self.held, log=file)

    def command(self, rng: Rng) -> object:
        """Run a damaged command line, whose answer is an exit code and at most one line."""
        commands = (
            "plan loads.npz --gpus 4 --replicas 8 --method nominal -o out.json",
            "plan loads.npz --gpus 4 --nodes 2 --work-limit 20 --resume kept --json",
            "compare loads.npz --gpus 4 --replicas 8 --holdout odd-even --methods eplb,nominal",
            "evaluate plan.json loads.npz --dispatch even --json",
            "info plan.json --nodes 2",
            "info loads.npz --layers 3-4",
            "certify plan.json loads.npz --slots free -o proof.json",
            "verify certificate.json",
            "export plan.json --engine sglang -o map.json",
            "route plan.json loads.npz",
            "rebalance plan.json loads.npz --max-moves 4 -o next.json --executor threads",
            "diagnose loads.npz --gpus 4 --nodes 2 --map plan.json --workers 1",
            "report loads.npz plan.json --gpus 4 --seed 1 -o page.html",
            "advise wide.npz --model gpt-oss-20b --gpu h200 --gpus 4 --holdout odd-even",
            "bench-exact -o runs.csv --shapes 4x2 --skews 1 --shares 0 --windows 1 --work-limits 0",
            "export-model placement loads.npz --gpus 4 --slots even -o model.lp",
        )
        words = commands[int(rng.integers(len(commands)))].split()
        for file, content in self.inputs.items():  # which a command may have written over
            file.write_bytes(content)
        known = typer.main.get_command(cli.app).commands[words[0]].params
        options = [one for one in known if one.opts[0].startswith("-")]
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(len(words)))
            match int(rng.integers(20)):
                case 0:
                    words[at] = rng.choice([word.decode() for word in HUGE])
                case 1:
                    words[at] = str(ODD[int(rng.integers(len(ODD)))])
                case 2:
                    words[at] = flip(words[at].encode(errors="surrogateescape"), rng).decode(
                        errors="surrogateescape"
                    )
                case 3:
                    words.insert(at, words[int(rng.integers(len(words)))])
                case 4:
                    words[at] = rng.choice(["nan", "inf", "-", ".", "/", "plan.json", "loads.npz"])
                case 5:
                    del words[at]
                case _:
                    option = options[int(rng.integers(len(options)))]
                    values = NUMBERS if rng.random() < 0.6 else WORDS
                    words += [option.opts[0], *[rng.choice(values)] * (not option.is_flag)]
            words = words or [""]
        words = [word.replace("\0", "") for word in words]
        shown = warnings.showwarning
        output, errors = io.StringIO(), io.StringIO()
        sys.argv = ["craftopt", *words]
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                sys.stdin = io.TextIOWrapper(io.BytesIO(b""))
                cli.main()
        except SystemExit as stop:
            said = [line for line in errors.getvalue().splitlines() if line[:6] != "note: "]
            if stop.code == 2:
                if len(said) != 1 and not output.getvalue():  # which is the help
                    raise AssertionError(f"{words} is answered by {said}") from None
                raise co.InputError("refused") from None
            if stop.code not in (0, 1, None):
                raise AssertionError(f"{words} ends with {stop.code}") from None
        finally:
            warnings.showwarning = shown
        return words


def reading(name: str) -> Callable[[Rng], object]:
    """Damage and read one file of a format."""

    def read(rng: Rng) -> object:
        if not damage_files.main(name, 1, int(rng.integers(2**31)))["read"]:
            raise co.InputError("refused")
        return name

    return read


def fuzz(
    work: Callable[[Rng], object], inputs: Iterator[int], seed: int, patience: int
) -> dict[str, Any]:
    """Give a target its inputs, each from a seed of its own; 0 is patience without end."""
    found: dict[str, Any] = {"inputs": 0, "read": 0, "refused": 0, "crashes": []}
    for number in inputs:
        signal.setitimer(signal.ITIMER_PROF, patience)
        try:
            work(np.random.default_rng([seed, number]))
            found["read"] += 1
        except co.CraftoptError:
            found["refused"] += 1
        except Exception:
            found["crashes"].append(f"input {number}: {traceback.format_exc()[-1500:]}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        found["inputs"] += 1
    return found


def late(*_: object) -> None:
    """Give up on an input that takes too long."""
    raise TimeoutError(f"more than {SECONDS} seconds")


def run(
    seed: int, *, only: str = "", count: int | None = None, seconds: float = 0.0
) -> dict[str, dict[str, Any]]:
    """Fuzz all targets, or those whose name begins so, with a number of inputs or for a time."""
    before, before_argv, before_stdin = Path.cwd(), sys.argv, sys.stdin
    signal.signal(signal.SIGPROF, late)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        targets = Targets(Path(folder))
        works = {f"reader {name}": reading(name) for name in damage_files.FORMATS}
        works |= {"plan": targets.plan, "proof": targets.certificate, "proof log": targets.log}
        works["command"] = targets.command
        works = {name: work for name, work in works.items() if name.startswith(only)}
        kinds = [name.split()[0] for name in works]
        share = seconds / len(set(kinds))
        os.chdir(folder)
        try:
            results = {}
            for kind, (name, work) in zip(kinds, works.items(), strict=True):
                end = time.monotonic() + share / kinds.count(kind)
                inputs = iter(range(count)) if count is not None else itertools.count()
                in_time = itertools.takewhile(
                    lambda _: count is not None or time.monotonic() < end,  # noqa: B023
                    inputs,
                )
                results[name] = fuzz(work, in_time, seed, SECONDS if count is None else 0)
        finally:
            os.chdir(before)
            sys.argv, sys.stdin = before_argv, before_stdin
    return results


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    seconds, seed, *only = sys.argv[1:]
    print(json.dumps(run(int(seed), only="".join(only), seconds=float(seconds)), indent=1))
