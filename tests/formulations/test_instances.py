"""The instances: remade byte for byte, plans as good as they say, and every method agrees."""

from __future__ import annotations

from fractions import Fraction
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from reference.enumeration import best_by_enumeration
from reference.rules import broken_rules
from reference.scores import slow_scores

import craftopt as co
from craftopt_formulations.instances import Instance, list_instances, load_instance

pytest.importorskip("ortools")
pytest.importorskip("pulp")

import generate_instances as generate
import instance_specs
import prove_instances
from craftopt.verification.logs import check_log, read_log
from craftopt.verification.refutation import BetterPlan
from craftopt_formulations import joint, whole, windowed

NAMES = list_instances()
# One of every rule and kind, each a second or less.
SAMPLE = (
    "flashlb",
    "even-6x2-r0-zipf",
    "even-6x3-r2-steep",
    "even-8x4-w2-r2-zipf",
    "even-8x4-l2-r4-zipf",
    "free-8x3-l3-r3-steep",
    "uniform-12x6-w3-r0-zipf",
    "even-8x4-r3-balancedness-zipf",
    "even-8x4-r2-n2-zipf",
    "even-12x6-r8-c2-steep",
)
REST = tuple(name for name in NAMES if name not in SAMPLE)
# What mixed-integer solvers in floating point answer for, and the flags of models given to them.
MILP, MILP_FLAGS = 1e-6, 150
# Flags of models given to CP-SAT, and its deterministic seconds for each.
FLAGS, WORK = 1500, 20

each_of_sample = pytest.mark.parametrize("name", SAMPLE)
each_of_rest = pytest.mark.parametrize("name", REST)
each = pytest.mark.parametrize("name", NAMES)


def exact_objective(plan: co.Plan, problem: co.Problem) -> Fraction:
    scores = slow_scores(plan.copies.tolist(), problem.loads.tokens.tolist())
    return scores.relative_time if problem.objective == "time" else scores.mean_balancedness


def is_better(first: Fraction | float, second: Fraction | float, problem: co.Problem) -> bool:
    return first < second if problem.objective == "time" else first > second


# --- what is stored -------------------------------------------------------------------------


def test_there_are_instances_of_every_kind():
    problems = [load_instance(name).problem for name in NAMES]
    assert len(NAMES) >= 80
    assert set(NAMES) == {"flashlb", *generate.SPECS}
    assert {problem.slots for problem in problems} == {"uniform", "even", "free"}
    assert {problem.objective for problem in problems} == {"time", "balancedness"}
    assert {problem.loads.layers for problem in problems} == {1, 2, 3, 4, 24}
    assert max(problem.loads.windows for problem in problems) == 11
    gpus = [problem.gpus for problem in problems]
    experts = [problem.loads.experts for problem in problems]
    assert (min(gpus), max(gpus), min(experts), max(experts)) == (2, 64, 6, 256)
    assert sum(problem.expert_groups is not None for problem in problems) >= 6
    for recording in ("gpt-oss-20b", "olmoe-1b-7b"):
        assert sum(recording in name for name in NAMES) >= 8
    assert any(problem.max_copies is not None for problem in problems)


def test_most_are_proven_and_some_by_certificates_alone():
    instances = [load_instance(name) for name in NAMES]
    assert sum(instance.is_open for instance in instances) < len(NAMES) // 2
    assert sum(instance.proof.certified and not instance.is_open for instance in instances) >= 10


@each
def test_the_problem_is_made_again_byte_for_byte(name):
    stored, made = load_instance(name).problem, generate.make_problem(name)
    assert stored.loads == made.loads
    assert repr(stored) == repr(made)
    assert stored.max_copies == made.max_copies
    assert np.array_equal(stored.expert_groups, made.expert_groups)
    assert (stored.loads.tokens == np.floor(stored.loads.tokens)).all()


@each
def test_the_file_says_what_was_read(name):
    file = resources.files("craftopt_formulations.instances") / f"{name}.json"
    text = file.read_text(encoding="utf-8")
    assert Instance.from_json(text).to_json() == text


@each
def test_the_plan_keeps_the_rules_and_attains_the_value(name):
    instance = load_instance(name)
    assert broken_rules(instance.plan, instance.problem) == set()
    value = exact_objective(instance.plan, instance.problem)
    if instance.problem.objective == "time":
        assert value == instance.best
    else:  # a sum of quotients, rounded down in its 24th digit
        assert 0 <= value - instance.best <= Fraction(1, 10**23)
    assert not is_better(instance.best, instance.bound, instance.problem)
    assert instance.is_open == (instance.gap > Fraction(1, 10**9))


def test_the_example_of_flashlb():
    instance = load_instance("flashlb")
    assert instance.best * 1450 / 8 == Fraction(590, 3)
    assert instance.bound == instance.best


def test_an_unknown_name_is_answered_with_a_close_one():
    with pytest.raises(co.InputError, match="did you mean 'flashlb'"):
        load_instance("flashlp")


def test_a_file_of_another_version_is_named():
    file = resources.files("craftopt_formulations.instances") / "flashlb.json"
    text = file.read_text(encoding="utf-8")
    with pytest.raises(co.FormatError, match="the instance has version 7"):
        Instance.from_json(text.replace('"version": 1', '"version": 7'))
    with pytest.raises(co.FormatError, match="this is no instance"):
        Instance.from_json("{}")


def test_names_do_not_repeat():
    assert len({spec.name for spec in generate.SPECS.values()}) == len(instance_specs._OWN)


LOGS = sorted(prove_instances.LOGS.glob("*.pbp.xz"))


def test_every_instance_that_rests_on_a_log_has_one_and_no_other():
    by_log = {name for name in NAMES if load_instance(name).proof.by.startswith("log")}
    assert {log.name.removesuffix(".pbp.xz") for log in LOGS} == by_log


@pytest.mark.parametrize(
    "log",
    [pytest.param(log, marks=[pytest.mark.slow] * (log.stat().st_size > 250_000)) for log in LOGS],
    ids=lambda log: log.name.removesuffix(".pbp.xz"),
)
def test_the_log_proves_that_no_plan_is_better_and_proves_nothing_of_a_larger_value(log):
    instance, lines = load_instance(log.name.removesuffix(".pbp.xz")), read_log(log)
    assert instance.bound == instance.best
    steps = check_log(BetterPlan(instance.problem, instance.best).formula, lines)
    assert instance.proof.work == f"{len(steps)} steps"
    # The best plan itself is better than that: a log that still passed would be unsound.
    with pytest.raises(co.VerificationError):
        check_log(BetterPlan(instance.problem, instance.best * Fraction(101, 100)).formula, lines)


# --- methods --------------------------------------------------------------------------------


def assert_exact_agrees(name: str) -> None:
    instance = load_instance(name)
    problem, proof = instance.problem, instance.proof
    # Another version of the solver may take a little longer to its proof.
    work = instance.work_limit or 1
    work *= 1 if proof.certified or instance.is_open else 4
    result = co.solve(problem, "exact", work_limit=work)
    value = exact_objective(result.plan, problem)
    assert broken_rules(result.plan, problem) == set()
    assert not is_better(value, instance.bound, problem)
    gap = problem.goal.gap(float(instance.best), result.bound)
    assert gap > 0 or result.bound == pytest.approx(float(instance.best), rel=1e-9)
    if not instance.is_open and instance.work_limit is not None:
        assert value == instance.best
        assert proof.certified or result.status is co.Status.OPTIMAL


def assert_the_bound_can_be_certified(name: str) -> None:
    instance = load_instance(name)
    problem, bound = instance.problem, instance.bound
    certificate = co.certify(problem, instance.plan)
    by_witnesses = instance.proof.by.startswith("certified")
    if by_witnesses and instance.proof.work != "0 boxes":
        certificate = co.certify(problem, instance.plan, evidence=generate.branch(instance)[0])
    co.verify(certificate)
    proven = generate.attainable(problem, Fraction(certificate.document["bound"]))
    if by_witnesses:
        assert proven == bound
    else:  # certificates and the log or solver bound the same plans
        assert not is_better(instance.best, proven, problem)


def assert_no_heuristic_beats_the_bound(name: str) -> None:
    instance = load_instance(name)
    beaten = []
    for method in co.methods():
        result = co.solve(instance.problem, method, work_limit=100 if method != "exact" else 0)
        if result.has_plan and not result.violations:
            value = exact_objective(result.plan, instance.problem)
            if is_better(value, instance.bound, instance.problem):
                beaten.append((method, float(value)))
    assert not beaten, f"bound {float(instance.bound)} on {name}"


def assert_models_agree(name: str) -> int:
    """Solve by the models that can state the problem; return how many did."""
    instance = load_instance(name)
    problem, solved = instance.problem, 0
    if whole.flags(problem) <= FLAGS:
        found = whole.solve_whole(problem, work=WORK)
        assert found.bound is not None
        bound, best = _objective(problem, found.bound), float(instance.best)
        assert not is_better(best, bound, problem) or bound == pytest.approx(best, rel=1e-9)
        if found.status == "optimal":
            assert _objective(problem, found.objective) == pytest.approx(float(instance.best))
            solved += 1
    if problem.loads.layers == 1 and problem.objective == "time" and problem.expert_groups is None:
        solved += _assert_layer_models_agree(instance)
    return solved


def _assert_layer_models_agree(instance: Instance) -> int:
    problem, solved = instance.problem, 0
    loads = problem.loads
    choices = range(problem.layer_replicas_limit + 1)
    if problem.slots == "uniform":
        choices = [r for r in choices if (loads.experts + r) % problem.gpus == 0]
    flags = loads.experts * problem.copies_limit * problem.gpus
    for solver, most_flags in (("cp-sat", FLAGS), ("highs", MILP_FLAGS)):
        if flags > most_flags:
            continue
        build, tokens = windowed.build, loads.tokens[:, 0]
        if loads.windows == 1:
            build, tokens = joint.build, loads.tokens[0, 0]
        costs = []
        for replicas in choices:
            model = build(
                tokens,
                problem.gpus,
                replicas,
                most_copies=problem.copies_limit,
                solver=solver,
            )
            found = model.solve(work=WORK / len(choices) if solver == "cp-sat" else None)
            if found.status != "optimal":
                break  # out of work
            costs.append(found.objective)
        else:
            close = MILP if solver == "highs" else 1e-9
            best = float(instance.best)
            assert _objective(problem, min(costs)) == pytest.approx(best, rel=close), solver
            solved += 1
    return solved


def _objective(problem: co.Problem, cost: float) -> float:
    loads = problem.loads
    if problem.objective == "balancedness":
        return -cost / (loads.windows * loads.layers)
    return cost * problem.gpus / float(loads.tokens.sum())


@each_of_sample
def test_exact_agrees(name):
    assert_exact_agrees(name)


@each_of_sample
def test_models_agree(name):
    assert assert_models_agree(name) >= 1


@each_of_sample
def test_the_bound_can_be_certified(name):
    assert_the_bound_can_be_certified(name)


@each_of_sample
def test_no_heuristic_beats_the_bound(name):
    assert_no_heuristic_beats_the_bound(name)


@pytest.mark.slow
@each_of_rest
def test_exact_agrees_on_all(name):
    assert_exact_agrees(name)


@pytest.mark.slow
@each_of_rest
def test_models_agree_on_all(name):
    if not assert_models_agree(name):
        pytest.skip("too large for a model to be solved, or open")


@pytest.mark.slow
@each_of_rest
def test_the_bound_can_be_certified_on_all(name):
    assert_the_bound_can_be_certified(name)


@pytest.mark.slow
@each_of_rest
def test_no_heuristic_beats_the_bound_on_all(name):
    assert_no_heuristic_beats_the_bound(name)


@pytest.mark.parametrize("name", ["even-6x2-r0-zipf", "even-6x2-r1-mild"])
def test_trying_every_plan_finds_no_better_one(name):
    instance = load_instance(name)
    assert best_by_enumeration(instance.problem) == pytest.approx(float(instance.best), rel=1e-12)


def test_the_documentation_lists_them_as_they_are():
    page = Path(__file__).parents[2] / "docs" / "instances.md"
    if not page.exists():
        pytest.skip(f"{page} is not there")
    assert generate.table() in page.read_text(encoding="utf-8"), "paste what generate.table() says"
