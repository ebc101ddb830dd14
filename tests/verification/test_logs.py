"""Proof logs: what the claim says, that no false step passes, and the logs that are stored."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference.enumeration import best_by_enumeration
from strategies import problems

import craftopt as co
from craftopt.verification.logs import HEADER, check_log
from craftopt.verification.propagation import Propagation
from craftopt.verification.pseudo_boolean import Constraint, Formula, parse
from craftopt.verification.refutation import BetterPlan

# --- steps follow from their premises -------------------------------------------------------

FLAGS = 4
literals = st.integers(1, FLAGS).flatmap(lambda flag: st.sampled_from([f"x{flag}", f"~x{flag}"]))


@st.composite
def constraints(draw: st.DrawFn) -> Constraint:
    flags = draw(st.lists(st.integers(1, FLAGS), min_size=1, max_size=FLAGS, unique=True))
    weights = {flag: draw(st.sampled_from([-3, -2, -1, 1, 2, 3, 7])) for flag in flags}
    return Constraint(weights, draw(st.integers(-2, 9)))


def holds(constraint: Constraint, values: tuple[int, ...]) -> bool:
    weight = sum(
        abs(weight)
        for flag, weight in constraint.weights.items()
        if values[flag - 1] == (weight > 0)
    )
    return weight >= constraint.degree


def points(held: list[Constraint]) -> list[tuple[int, ...]]:
    choices = itertools.product((0, 1), repeat=FLAGS)
    return [values for values in choices if all(holds(each, values) for each in held)]


steps = st.recursive(
    st.one_of(st.sampled_from(["1", "2", "3"]), literals),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda two: f"{two[0]} {two[1]} +"),
        st.tuples(inner, st.integers(1, 4), st.sampled_from("*d")).map(
            lambda of: f"{of[0]} {of[1]} {of[2]}"
        ),
        inner.map(lambda one: f"{one} s"),
    ),
    max_leaves=8,
)


@given(st.lists(constraints(), min_size=3, max_size=3), steps)
@settings(max_examples=400)
def test_cutting_planes_hold_wherever_their_premises_do(held, polish):
    formula = Formula([f"x{flag}" for flag in range(1, FLAGS + 1)], held)
    log = [HEADER, "l 1", "l 2", "l 3", f"pol {polish}", "c 4"]
    satisfied = points(held)
    assume(satisfied)  # else anything follows
    with pytest.raises(co.VerificationError, match="can hold"):
        check_log(formula, log)


@given(st.lists(constraints(), min_size=2, max_size=5), constraints())
@settings(max_examples=400)
def test_propagation_claims_only_what_follows(held, stated):
    formula = Formula([f"x{flag}" for flag in range(1, FLAGS + 1)], held)
    propagation = Propagation(formula)
    for _ in range(2):  # the second time from what the first one left behind
        used = propagation.breaking(stated)
        if used is not None:
            assert all(holds(stated, values) for values in points([held[place] for place in used]))


@given(constraints())
def test_a_constraint_is_read_as_it_is_written(constraint):
    assert parse(str(constraint)) == constraint


@pytest.mark.parametrize(
    "line",
    [
        "pol 1 2 +",  # no such step
        "pol 1 x1",  # two are left over
        "pol 1 0 *",
        "pol 1 -1 d",
        "pol +",
        "pol 1 x0 +",
        "rup +1 x1 >= 1",
        "rup +1 x1 +1 ~x1 >= 1 ;",
        "rup +1 x2 >= 1 ;",  # does not follow
        "c 1",  # can hold
        "c 0",
        "l 2",
        "l 1.0",
        "red +1 x1 >= 1 ; x1 1",
        "",
    ],
)
def test_a_false_or_unknown_step_is_refused_by_its_line(line):
    formula = Formula()
    formula.at_least([(1, formula.flag("a")), (1, formula.flag("b"))], 1)
    with pytest.raises(co.VerificationError, match=r"line 3 of the log|ends without"):
        check_log(formula, [HEADER, "l 1", line])
    with pytest.raises(co.VerificationError, match="begins with"):
        check_log(formula, ["l 1", line])


# --- the claim ------------------------------------------------------------------------------


def can_hold(formula: Formula) -> bool:
    """Ask CP-SAT whether a formula can hold."""
    cp_model = pytest.importorskip("ortools.sat.python.cp_model")
    model = cp_model.CpModel()
    flags = [model.new_bool_var(name) for name in formula.names]
    for constraint in formula.constraints:
        terms = [
            weight * flags[flag - 1] if weight > 0 else -weight * (1 - flags[flag - 1])
            for flag, weight in constraint.weights.items()
        ]
        model.add(sum(terms) >= constraint.degree)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    return solver.solve(model) in (cp_model.OPTIMAL, cp_model.FEASIBLE)


@given(problems(windows=(1, 2), layers=(1, 2), most_experts=4, most_gpus=4), st.integers(1, 50))
@settings(max_examples=60)
def test_the_claim_cannot_hold_of_the_optimum_and_holds_of_all_that_is_worse(problem, more):
    tokens = np.floor(problem.loads.tokens) % 2**20
    assume(tokens.any())
    problem = problem.variant(loads=co.Loads(tokens), objective="time")
    best = best_by_enumeration(problem)
    assume(best is not None)
    steps = Fraction(int(tokens.sum()), problem.gpus) * 12  # experts have 1 to 4 copies
    optimum = Fraction(round(Fraction(best) * steps)) / steps
    assert not can_hold(BetterPlan(problem, optimum).formula)
    assert can_hold(BetterPlan(problem, optimum + more / steps).formula)


# --- certificates with a log ----------------------------------------------------------------

# Two windows, each of which could halve its own hot expert: together they have one replica.
LOADS = co.Loads(np.array([[[8, 1, 1]], [[1, 8, 1]]]))
LOG = f"{HEADER}\nl {{last}}\nc 1\n"


@pytest.fixture
def certificate() -> co.Certificate:
    """One GPU: every plan has relative time 1, and none can be better."""
    problem = co.Problem(LOADS, gpus=1)
    return co.certify(problem, co.solve(problem, "nominal").plan)


def test_a_certificate_is_verified_together_with_its_log(certificate, tmp_path):
    claim = BetterPlan(certificate.problem, Fraction(1)).formula
    file = tmp_path / "proof.pbp"
    file.write_text(LOG.format(last=len(claim.constraints)))  # loads sum to less than their means
    co.verify(certificate, log=file)
    file.write_text(LOG.format(last=1))
    with pytest.raises(co.VerificationError, match="line 3 of the log: constraint 1 can hold"):
        co.verify(certificate, log=file)
    with pytest.raises(co.FormatError, match="cannot read"):
        co.verify(certificate, log=tmp_path / "none.pbp")


@pytest.mark.parametrize("change", [{"objective": "balancedness"}, {"max_moves": 1}])
def test_a_log_proves_nothing_of_other_kinds_of_problems(change):
    problem = co.Problem(LOADS, gpus=1)
    if "max_moves" in change:
        change = {**change, "previous": co.solve(problem, "nominal").plan}
    with pytest.raises(co.InputError, match="logs prove bounds on objective time"):
        BetterPlan(problem.replace(**change), Fraction(1))
