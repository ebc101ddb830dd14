"""Make the instances: draw the problems, plan, prove, and write the files.

    python tools/generate_instances.py [NAME ...]

Without names, all; it takes about half an hour. Problems are drawn by Python's own generator
from a seed in their name, so that they are the same byte for byte; only ``seconds`` of the proofs
differ from run to run. A file is kept where what is found now has a larger gap.
"""

from __future__ import annotations

import datetime
import math
import random
import sys
import time
import zlib
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from craftopt.certificates import certify
from craftopt.documents import write_atomically
from craftopt.loads import Loads
from craftopt.objective import ObjectiveName
from craftopt.plan import Copies
from craftopt.problem import Problem, SlotRule
from craftopt.solving import solve
from craftopt.verification import Certificate, ExactProblem, verify
from craftopt_formulations import instances, joint
from craftopt_formulations.branching import prove_load
from craftopt_formulations.configuration_lp import Layer
from craftopt_formulations.instances import Found, Instance, Proof, list_instances, load_instance

# Popularity of the i-th expert is 1/i to this power: from flat to steeper than Zipf's law.
SKEWS = {"flat": 0.0, "mild": 0.5, "zipf": 1.0, "steep": 1.5}
# Tokens per expert and window, and how far windows and layers stray, in natural log.
_TOKENS, _DRIFT = 100, 0.5
# Limits of work that the method exact is given in turn, until it proves its plan.
_WORK = (0, 1, 5, 20, 60)
# Boxes of one branching tree, and deterministic seconds for the optimum of one layer.
_BOXES, _LAYER_WORK = 400, 2.0
# Floating-point bounds are lowered by this much, relative, before they are called proven.
_ROUNDING = Fraction(1, 10**10)


@dataclass(frozen=True)
class Spec:
    """Shape and rules of an instance; its name says them."""

    slots: SlotRule
    experts: int
    gpus: int
    replicas: int
    skew: str
    layers: int = 1
    windows: int = 1
    nodes: int = 1
    groups: int | None = None
    max_copies: int | None = None
    objective: ObjectiveName = "time"

    @property
    def name(self) -> str:
        """The name: rule, experts x GPUs, and what is not usual."""
        parts = [self.slots, f"{self.experts}x{self.gpus}"]
        parts += [f"l{self.layers}"] * (self.layers > 1)
        parts += [f"w{self.windows}"] * (self.windows > 1)
        parts += [f"r{self.replicas}"]
        parts += [f"n{self.nodes}"] * (self.nodes > 1)
        parts += [f"c{self.max_copies}"] * (self.max_copies is not None)
        parts += ["balancedness"] * (self.objective == "balancedness")
        return "-".join([*parts, self.skew])

    def tokens(self) -> list[list[list[int]]]:
        """Draw tokens [windows][layers][experts]."""
        draw = random.Random(zlib.crc32(self.name.encode()))
        popularity = []
        for _ in range(self.layers):
            ranks = list(range(1, self.experts + 1))
            draw.shuffle(ranks)
            popularity.append([rank ** -SKEWS[self.skew] for rank in ranks])
        drawn = []
        for _ in range(self.windows):
            window = []
            for popular in popularity:
                rates = [rate * math.exp(_DRIFT * _noise(draw)) for rate in popular]
                scale = _TOKENS * self.experts / sum(rates)
                window.append([round(rate * scale) for rate in rates])
            drawn.append(window)
        return drawn

    def problem(self) -> Problem:
        """Make the problem."""
        return Problem(
            Loads(self.tokens()),
            self.gpus,
            nodes=self.nodes,
            replicas=self.replicas,
            slots=self.slots,
            objective=self.objective,
            expert_groups=self.groups,
            max_copies=self.max_copies,
        )


_OWN = (
    # One layer, one window.
    Spec("even", 6, 2, 0, "zipf"),
    Spec("even", 6, 2, 1, "mild"),
    Spec("even", 6, 3, 2, "steep"),
    Spec("even", 8, 4, 3, "zipf"),
    Spec("even", 12, 4, 4, "flat"),
    Spec("even", 12, 4, 4, "steep"),
    Spec("even", 16, 4, 0, "mild"),
    Spec("even", 16, 8, 6, "zipf"),
    Spec("even", 24, 8, 2, "zipf"),
    Spec("even", 32, 8, 8, "zipf"),
    Spec("even", 32, 16, 4, "mild"),
    Spec("even", 32, 16, 12, "mild"),
    Spec("even", 64, 8, 16, "mild"),
    Spec("even", 64, 16, 4, "steep"),
    Spec("even", 64, 16, 8, "zipf"),
    Spec("uniform", 12, 4, 4, "zipf"),
    Spec("uniform", 16, 8, 8, "steep"),
    Spec("uniform", 24, 8, 0, "zipf"),
    Spec("uniform", 32, 16, 16, "zipf"),
    Spec("uniform", 64, 8, 0, "mild"),
    # One choice of copies for several windows.
    Spec("even", 8, 4, 2, "zipf", windows=2),
    Spec("even", 12, 4, 0, "mild", windows=5),
    Spec("even", 12, 4, 2, "steep", windows=3),
    Spec("even", 12, 4, 4, "zipf", windows=5),
    Spec("even", 16, 4, 1, "steep", windows=3),
    Spec("even", 16, 8, 2, "steep", windows=4),
    Spec("even", 32, 8, 8, "mild", windows=6),
    Spec("uniform", 12, 6, 0, "zipf", windows=3),
    Spec("uniform", 24, 4, 0, "steep", windows=6),
    # Several layers share the budget.
    Spec("even", 8, 4, 4, "zipf", layers=2),
    Spec("even", 12, 4, 6, "mild", layers=4),
    Spec("uniform", 12, 4, 12, "steep", layers=3),
    Spec("uniform", 16, 8, 16, "zipf", layers=2),
    Spec("free", 8, 4, 4, "zipf", layers=2),
    Spec("free", 8, 3, 3, "steep", layers=3),
    Spec("free", 12, 4, 3, "steep", layers=3),
    Spec("free", 16, 8, 12, "zipf", layers=4),
    Spec("free", 32, 8, 8, "steep", layers=4),
    Spec("free", 8, 4, 4, "zipf", layers=2, windows=2),
    Spec("free", 16, 4, 2, "steep", layers=2, windows=4),
    # Balancedness, groups of experts on nodes, few copies.
    Spec("even", 8, 4, 3, "zipf", objective="balancedness"),
    Spec("free", 8, 4, 3, "steep", layers=2, objective="balancedness"),
    Spec("even", 8, 4, 4, "mild", layers=2, windows=2, objective="balancedness"),
    Spec("uniform", 12, 4, 4, "zipf", windows=3, objective="balancedness"),
    Spec("even", 8, 4, 2, "zipf", nodes=2, groups=4),
    Spec("uniform", 16, 8, 8, "zipf", nodes=2, groups=4),
    Spec("free", 8, 4, 4, "mild", layers=2, nodes=2, groups=4),
    Spec("even", 12, 6, 8, "steep", max_copies=2),
    Spec("uniform", 16, 16, 16, "zipf", windows=2, max_copies=3),
)
SPECS = {spec.name: spec for spec in _OWN}

# FlashLB's example, on which EPLB's largest load is 232 tokens and the least one 590/3.
_FLASHLB = [[[600, 560, 120, 120, 20, 10, 10, 10]]]


def make_problem(name: str) -> Problem:
    """Make the problem of an instance again.

    Examples
    --------
    >>> from craftopt_formulations.instances import load_instance
    >>> from generate_instances import make_problem
    >>> make_problem("flashlb").loads == load_instance("flashlb").problem.loads
    True
    """
    if name == "flashlb":
        return Problem(Loads(_FLASHLB), 8, replicas=8, slots="uniform")
    return SPECS[name].problem()


def make_instance(name: str) -> Instance:
    """Plan a problem and prove a bound; the method exact first, then certificates."""
    problem = make_problem(name)
    results = {}
    for work in _WORK:
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
    if found.is_open and problem.loads.windows == 1 and problem.even_slots:
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
        "| instance | best known | gap | proven by | work | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name in list_instances():
        instance = load_instance(name)
        gap = f"{float(100 * instance.gap):.2f} %, open" if instance.is_open else "-"
        proof = instance.proof
        rows.append(
            f"| `{name}` | {float(instance.best):.6f} | {gap} | {proof.by} | {proof.work} "
            f"| {proof.seconds:.2g} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Write the files."""
    for name in sys.argv[1:] or ["flashlb", *SPECS]:
        made = make_instance(name)
        if name in list_instances():
            known = load_instance(name)
            if known.problem.loads == made.problem.loads and known.gap < made.gap:
                made = known
        write_instance(made)
        state = f"open {float(made.gap):.2e}" if made.is_open else "proven"
        print(f"{name:40} {float(made.best):.6f} {state:14} {made.proof}", flush=True)


def _noise(draw: random.Random) -> float:
    """Draw something close to a normal variable, of sums alone: the same on any machine."""
    return math.fsum(draw.random() for _ in range(12)) - 6.0


if __name__ == "__main__":
    main()
