"""Improve and prove instances with the pseudo-Boolean solver Exact; keep the logs.

    pip install exact
    python tools/prove_instances.py [--seconds 100] [NAME ...]

Without names, all that rest on a solver's word or are open. A better plan replaces the one that is
known; where there is none the log goes to ``formulations/logs``, trimmed to the steps that its
contradiction rests on. Checking one needs no solver: ``check_log``, or ``craftopt verify --log``.
"""

from __future__ import annotations

import argparse
import lzma
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from craftopt.documents import write_atomically
from craftopt.verification.costs import ExactProblem
from craftopt.verification.logs import check_log, trim_log
from craftopt.verification.refutation import BetterPlan
from craftopt_formulations.instances import Found, Instance, Proof, list_instances, load_instance
from craftopt_formulations.refuting import refute
from generate_instances import short, today, write_instance

LOGS = Path(__file__).parents[1] / "formulations" / "logs"


def prove(instance: Instance, seconds: float) -> tuple[Instance, list[str] | None]:
    """Improve the plan as long as a better one is found; return the log that there is none."""
    start = time.perf_counter()
    exact = ExactProblem(instance.problem)
    while True:
        found = refute(instance.problem, instance.best, seconds)
        if found.better is None:
            break
        best = exact.objective(exact.plan_costs(found.better))
        by = Found(f"Exact {version('exact')}", today())
        instance = replace(instance, plan=found.better, best=best, found=by, work_limit=None)
    if found.steps is None:
        return instance, None
    log = trim_log(found.steps)
    check_log(BetterPlan(instance.problem, instance.best).formula, log)
    spent = short(time.perf_counter() - start)
    proof = Proof(f"log: Exact {version('exact')}", f"{len(log) - 1} steps", spent, today())
    return replace(instance, bound=instance.best, proof=proof), log


def store_log(name: str, log: list[str]) -> int:
    """Keep the log of an instance; return its bytes, compressed."""
    packed = lzma.compress("\n".join([*log, ""]).encode(), preset=9)
    write_atomically(LOGS / f"{name}.pbp.xz", packed)
    return len(packed)


def main() -> None:
    """Prove, and write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seconds", type=float, default=100.0)
    given = parser.parse_args()
    for name in given.names or list_instances():
        known = load_instance(name)
        if known.problem.objective != "time":
            continue
        if not given.names and known.proof.certified and not known.is_open:
            continue
        made, log = prove(known, given.seconds)
        write_instance(made)
        size = 0 if log is None else store_log(name, log)
        state = f"open {float(made.gap):.2e}" if made.is_open else "proven"
        better = f"from {float(known.best):.6f}" if made.best != known.best else ""
        print(f"{name:40} {float(made.best):.6f} {state} {size} bytes {better}", flush=True)


if __name__ == "__main__":
    main()
