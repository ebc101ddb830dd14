"""Make the instances: draw the problems, plan, prove, and write the files.

    python tools/generate_instances.py [--work-limit 60] [NAME ...]

Without names, all; it takes about an hour. ``instance_specs.py`` says what the problems are; only
``seconds`` of the proofs differ from run to run. A file is kept where what is found now has a
larger gap.
"""

from __future__ import annotations

import argparse
import datetime
import math
import time
from dataclasses import replace
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from craftopt.certificates import certify
from craftopt.documents import write_atomically
from craftopt.plan import Copies
from craftopt.problem import Problem
from craftopt.solving import solve
from craftopt.verification import Certificate, ExactProblem, verify
from craftopt_formulations import instances, joint
from craftopt_formulations.branching import prove_load
from craftopt_formulations.configuration_lp import Layer
from craftopt_formulations.instances import Found, Instance, Proof, list_instances, load_instance
from instance_specs import SPECS, make_problem

# Limits of work that the method exact is given in turn, until it proves its plan.
_WORK = (0, 1, 5, 20, 60)
# Experts times numbers of replicas of a layer that is branched on at most.
_BRANCHED = 600
# Boxes of one branching tree, and deterministic seconds for the optimum of one layer.
_BOXES, _LAYER_WORK = 400, 10.0
# Floating-point bounds are lowered by this much, relative, before they are called proven.
_ROUNDING = Fraction(1, 10**10)


def make_instance(name: str, most_work: int) -> Instance:
    """Plan a problem and prove a bound; the method exact first, then certificates."""
    problem = make_problem(name)
    results = {}
    for work in [work for work in _WORK if work <= most_work]:
        results[work] = result = solve(problem, "exact", work_limit=work)
        if result.status.value == "optimal":
            break
    exact = ExactProblem(problem)
    instance = Instance(
        name=name,
        problem=problem,
        best=exact.objective(exact.plan_costs(result.plan)),
        plan=result.plan,
        bound=attainable(problem, _lowered(problem, result.bound)),
        proof=Proof(
            f"solver: CP-SAT {version('ortools')}",
            f"work_limit {work}",
            short(result.runtime),
            today(),
        ),
        found=Found("craftopt, method exact", today()),
        work_limit=work,
    )
    certified = _certified(instance)
    if not _is_as_sharp(certified, instance):
        return instance
    # A certificate says more than a solver's word. The method exact has to find the plan alone.
    found = (w for w, other in results.items() if other.objective == result.objective)
    return replace(certified, work_limit=min(found))


def _certified(instance: Instance) -> Instance:
    """Prove the bound by witnesses, branching where the others leave a gap."""
    start, boxes = time.perf_counter(), 0
    certificate = certify(instance.problem, instance.plan)
    found = _with_certificate(instance, certificate, boxes, start)
    problem = instance.problem
    cells = problem.loads.experts * (1 + problem.layer_replicas_limit)
    one_window = problem.loads.windows == 1
    if found.is_open and one_window and problem.even_slots and cells <= _BRANCHED:
        evidence, boxes = branch(instance)
        certificate = certify(problem, instance.plan, evidence=evidence)
        found = _with_certificate(instance, certificate, boxes, start)
    verify(certificate)
    return found


def _with_certificate(
    instance: Instance, certificate: Certificate, boxes: int, start: float
) -> Instance:
    seconds = short(time.perf_counter() - start)
    by = f"certified: {', '.join(kinds_of(certificate))}"
    return replace(
        instance,
        bound=attainable(instance.problem, Fraction(certificate.document["bound"])),
        proof=Proof(by, f"{boxes} boxes", seconds, today()),
    )


def kinds_of(certificate: Certificate) -> list[str]:
    """List the kinds of witnesses that a certificate rests on."""
    document = certificate.document
    witnesses = [entry["witness"] for entry in [*document["layers"], *document["allocation"]]]
    return sorted({kind for witness in witnesses for kind in _kinds(witness)})


def _kinds(witness: Any) -> list[str]:
    if witness["kind"] == "windows":
        return [kind for part in witness["windows"] for kind in _kinds(part)]
    return [witness["kind"]]


def branch(instance: Instance) -> tuple[dict[tuple[int, int], list[Any]], int]:
    """Branch on every layer with every number of replicas that it could have.

    A single layer has to attain the plan's load with all of them; of several layers, each its
    own least load, which CP-SAT finds and the tree then proves.
    """
    problem, evidence, boxes = instance.problem, {}, 0
    limit, experts = problem.copies_limit, problem.loads.experts
    single = problem.loads.layers == 1
    for layer, tokens in enumerate(problem.loads.tokens[0]):
        goal = _largest_load(tokens, instance.plan.copies[layer])
        for replicas in range(0, problem.layer_replicas_limit + 1, problem.replica_step):
            if problem.slots == "uniform" and (experts + replicas) % problem.gpus:
                continue
            if not single:
                placed = joint.build(tokens, problem.gpus, replicas, most_copies=limit)
                found = placed.solve(work=_LAYER_WORK)
                if found.copies is None or found.status != "optimal":
                    continue
                goal = _largest_load(tokens, found.copies)
            box = replace(Layer.of(tokens, problem.gpus, replicas), upper=(limit,) * experts)
            tree = prove_load(box, goal, work_limit=_BOXES)
            boxes += tree.boxes
            if tree.witness is not None:
                evidence[layer, replicas] = [tree.witness]
    return evidence, boxes


def _largest_load(tokens: Any, copies: Copies) -> Fraction:
    """Compute a layer's largest GPU load, exactly."""
    counts = copies.sum(axis=1, dtype=np.int64).tolist()
    shares = [Fraction(int(count), hosted) for count, hosted in zip(tokens, counts, strict=True)]
    return max(sum((shares[e] for e in np.flatnonzero(gpu)), Fraction(0)) for gpu in copies.T)


def _lowered(problem: Problem, bound: float) -> Fraction:
    """Give a bound in floating point room for its rounding; few digits."""
    digits = 10**12
    if problem.goal.maximised:
        return Fraction(math.ceil(Fraction(bound) * (1 + _ROUNDING) * digits), digits)
    return Fraction(math.floor(Fraction(bound) * (1 - _ROUNDING) * digits), digits)


def attainable(problem: Problem, bound: Fraction) -> Fraction:
    """Raise a bound on relative time to the next value that a plan can have.

    A largest load is a sum of whole tokens over 1, 2, ... copies: a multiple of 1 over their
    least common multiple.
    """
    if problem.goal.maximised:
        return min(bound, Fraction(1))
    most = min(problem.copies_limit, 1 + problem.layer_replicas_limit)
    steps = math.lcm(*range(1, most + 1))
    mean = Fraction(int(problem.loads.tokens.sum()), problem.gpus)
    return Fraction(math.ceil(bound * mean * steps), steps) / mean


def _is_as_sharp(first: Instance, second: Instance) -> bool:
    return first.gap <= max(second.gap, Fraction(1, 10**9))


def short(seconds: float) -> float:
    """Round seconds to two digits."""
    return float(f"{seconds:.2g}")


def write_instance(instance: Instance) -> None:
    """Write the file of an instance."""
    file = Path(instances.__file__).with_name(f"{instance.name}.json")
    write_atomically(file, instance.to_json())


def today() -> str:
    """Return the day, as 2026-11-26."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def table() -> str:
    """List all instances as a Markdown table, for ``docs/instances.md``."""
    rows = [
        "| instance | best known | bound | gap | found by | on | proven by | on | work | seconds |",
        "|" + "---|" * 10,
    ]
    for name in list_instances():
        it = load_instance(name)
        gap = f"{float(100 * it.gap):.2f} %, open" if it.is_open else "-"
        rows.append(
            f"| `{name}` | {float(it.best):.6f} | {float(it.bound):.6f} | {gap} | {it.found.by} "
            f"| {it.found.on} | {it.proof.by} | {it.proof.on} | {it.proof.work} "
            f"| {it.proof.seconds:.2g} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work-limit", type=int, default=_WORK[-1])
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    for name in given.names or ["flashlb", *SPECS]:
        made = make_instance(name, given.work_limit)
        if name in list_instances():
            known = load_instance(name)
            if known.problem.loads == made.problem.loads and known.gap < made.gap:
                made = known
        write_instance(made)
        state = f"open {float(made.gap):.2e}" if made.is_open else "proven"
        print(f"{name:40} {float(made.best):.6f} {state:14} {made.proof}", flush=True)


if __name__ == "__main__":
    main()
