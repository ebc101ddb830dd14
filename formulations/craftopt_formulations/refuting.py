"""Prove that no plan is better, with the pseudo-Boolean solver Exact and a log of its steps.

The claim is `craftopt.verification.refutation.BetterPlan`; the log is checked, step by step, by
`craftopt.verification.logs`. Exact (https://gitlab.com/nonfiction-software/exact) is
on the package index under the AGPL; it is not among the requirements of craftopt, and nothing of
it is needed to check a log.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from craftopt.errors import InputError
from craftopt.plan import Plan
from craftopt.problem import Problem
from craftopt.verification.logs import Step, check_log
from craftopt.verification.refutation import BetterPlan


@dataclass(frozen=True)
class Refutation:
    """What came out: a log whose steps were checked, a better plan, or neither."""

    steps: list[Step] | None
    better: Plan | None


def refute(problem: Problem, value: Fraction, seconds: float = 60.0) -> Refutation:
    """Look for a plan that is better than a value, or for a proof that there is none."""
    try:
        import exact  # noqa: PLC0415
    except ImportError:
        raise InputError("refute needs the solver Exact: pip install exact") from None
    claim = BetterPlan(problem, value)
    formula = claim.formula
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        solver = exact.Exact(
            [("verbosity", "0"), ("proof-assumptions", "0"), ("proof-log", os.fspath(log))]
        )
        names = [f"x{flag}" for flag in range(1, len(formula.names) + 1)]
        for name in names:
            solver.addVariable(name, 0, 1)
        for constraint in formula.constraints:
            terms = [(weight, names[flag - 1]) for flag, weight in constraint.weights.items()]
            solver.addConstraint(terms, True, constraint.side)
        state = solver.runFull(False, seconds)
        if state == "SAT":
            flags = [bool(value) for value in solver.getLastSolutionFor(names)]
            return Refutation(None, problem.plan(claim.copies(flags), "exact"))
        if state != "UNSAT":
            return Refutation(None, None)
        del solver
        with log.with_suffix(".proof").open() as lines:
            return Refutation(check_log(formula, lines), None)
