"""The board of instances: list it, write its models, take what others found.

    python tools/instance_board.py table                       the rows, as CSV
    python tools/instance_board.py models FOLDER [NAME ...]    NAME.csv and NAME.mps of each
    python tools/instance_board.py submit NAME FILE --by WHO   check a plan, certificate or log

``submit`` checks what it is given in exact arithmetic: a plan (as `Plan.save` writes it) by its
rules and its value; a certificate by all of its claims; a log (``.pbp``, ``.pbp.xz``) step by step,
against the best plan known. What is better than the row replaces it, in the instance's file and in
``docs/instances.md``; what is not is refused with the reason.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from craftopt.documents import read_json, write_atomically
from craftopt.errors import CraftoptError, InputError
from craftopt.plan import Plan
from craftopt.verification import Certificate, verify
from craftopt.verification.costs import ExactProblem
from craftopt.verification.document import CERTIFICATE_FORMAT
from craftopt.verification.logs import check_log, read_log
from craftopt.verification.refutation import BetterPlan
from craftopt.verification.rules import check_rules
from craftopt_formulations.instances import Found, Instance, Proof, list_instances, load_instance
from generate_instances import attainable, kinds_of, table, today, write_instance
from prove_instances import store_log

PAGE = Path(__file__).parents[1] / "docs" / "instances.md"
COLUMNS = ("instance", "best", "bound", "gap", "found by", "on", "proven by", "work", "on")


def rows() -> list[tuple[str, ...]]:
    """List the board: value, bound and gap in decimals, who and when."""
    listed: list[tuple[str, ...]] = []
    for name in list_instances():
        it = load_instance(name)
        figures = (f"{float(it.best):.9g}", f"{float(it.bound):.9g}", f"{float(it.gap):.3g}")
        people = (it.found.by, it.found.on, it.proof.by, it.proof.work, it.proof.on)
        listed.append((name, *figures, *people))
    return listed


def write_models(folder: Path, names: list[str]) -> None:
    """Write the tokens of instances as CSV, and whole mixed-integer programs as MPS."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        problem = load_instance(name).problem
        lines = ["window,layer,expert,tokens"]
        for window, layers in enumerate(problem.loads.tokens.astype(int).tolist()):
            for layer, experts in enumerate(layers):
                lines += [f"{window},{layer},{e},{tokens}" for e, tokens in enumerate(experts)]
        write_atomically(folder / f"{name}.csv", "\n".join([*lines, ""]))
        if problem.objective == "time":
            # Any plan is better than one with all tokens on one GPU.
            program = BetterPlan(problem, Fraction(problem.gpus + 1))
            write_atomically(folder / f"{name}.mps", program.to_mps(name))


def submit(name: str, file: Path, who: str) -> str:
    """Check what somebody found, and keep it where it is better; say what changed."""
    instance = load_instance(name)
    if ".pbp" in file.suffixes:
        return _submit_log(instance, file, who)
    text = file.read_text(encoding="utf-8")
    document = read_json(text)
    if isinstance(document, dict) and document.get("format") == CERTIFICATE_FORMAT:
        return _submit_certificate(instance, Certificate.from_json(text))
    return _submit_plan(instance, Plan.from_json(text), who)


def _submit_plan(instance: Instance, plan: Plan, who: str) -> str:
    problem = instance.problem
    check_rules(problem, plan)
    exact = ExactProblem(problem)
    value = exact.objective(exact.plan_costs(plan))
    better = value > instance.best if problem.goal.maximised else value < instance.best
    if not better:
        raise InputError(
            f"the plan has {float(value):.9g}, no better than {float(instance.best):.9g}"
        )
    kept = Plan(plan.copies, nodes=problem.nodes, method="", loads_digest=problem.loads.digest)
    found = Found(who, today())
    write_instance(replace(instance, best=value, plan=kept, found=found, work_limit=None))
    return f"best: {float(instance.best):.9g} -> {float(value):.9g}"


def _submit_certificate(instance: Instance, certificate: Certificate) -> str:
    problem = instance.problem
    if certificate.loads != problem.loads or certificate.problem.rules != problem.rules:
        raise InputError(f"the certificate is of another problem than {instance.name}")
    verify(certificate)
    bound = attainable(problem, Fraction(certificate.document["bound"]))
    better = bound < instance.bound if problem.goal.maximised else bound > instance.bound
    if not better:
        raise InputError(
            f"its bound is {float(bound):.9g}, no better than {float(instance.bound):.9g}"
        )
    proof = Proof(f"certified: {', '.join(kinds_of(certificate))}", "a certificate", 0.0, today())
    write_instance(replace(instance, bound=bound, proof=proof))
    return f"bound: {float(instance.bound):.9g} -> {float(bound):.9g}"


def _submit_log(instance: Instance, file: Path, who: str) -> str:
    lines = read_log(file)
    steps = check_log(BetterPlan(instance.problem, instance.best).formula, lines)
    if not instance.is_open and instance.proof.certified:
        raise InputError(f"{instance.name} is proven already, and no solver has to be believed")
    store_log(instance.name, lines)
    proof = Proof(f"log: {who}", f"{len(steps)} steps", 0.0, today())
    write_instance(replace(instance, bound=instance.best, proof=proof))
    return f"bound: {float(instance.bound):.9g} -> {float(instance.best):.9g}, the best plan"


def main() -> int:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table")
    models = commands.add_parser("models")
    models.add_argument("folder", type=Path)
    models.add_argument("names", nargs="*")
    taken = commands.add_parser("submit")
    taken.add_argument("name")
    taken.add_argument("file", type=Path)
    taken.add_argument("--by", required=True)
    given = parser.parse_args()
    try:
        if given.command == "table":
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows()])
            print(text.getvalue(), end="")
        elif given.command == "models":
            write_models(given.folder, given.names or list(list_instances()))
        else:
            before = table()
            print(submit(given.name, given.file, given.by))
            page = PAGE.read_text(encoding="utf-8")
            write_atomically(PAGE, page.replace(before, table()))
    except CraftoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
