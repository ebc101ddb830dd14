"""The models: solvers agree with each other, with trying everything, and with the fast path."""

from __future__ import annotations

import importlib.util
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from reference.enumeration import best_by_enumeration
from strategies import problems, token_arrays

import craftopt as co
from craftopt.bounds import max_copy_load
from craftopt.knapsack import allocate

pytest.importorskip("ortools")
pulp = pytest.importorskip("pulp")

from craftopt_formulations import (  # noqa: E402
    _solvers,
    allocation,
    joint,
    placement,
    rebalancing,
    replication,
    whole,
    windowed,
)
from craftopt_formulations._shares import whole_tokens  # noqa: E402
from craftopt_formulations.export import MODELS, export_model  # noqa: E402

each_solver = pytest.mark.parametrize("solver", _solvers.SOLVERS)
MILP = 1e-6  # the tolerance to which mixed-integer solvers keep constraints
TINY = {"layers": (1, 2), "most_experts": 4, "most_gpus": 4, "most_cells": 9}


# --- allocation -----------------------------------------------------------------------------


def random_table(seed: int) -> tuple[np.ndarray, int]:
    rng = np.random.default_rng(seed)
    layers, choices = rng.integers(1, 8), rng.integers(1, 9)
    benefit = rng.random((layers, choices)).cumsum(axis=1)
    if seed % 2:  # not even rising, and some choices forbidden
        benefit = np.where(rng.random(benefit.shape) < 0.2, -np.inf, rng.random(benefit.shape))
        benefit[:, 0] = 0.0
    return benefit, int(rng.integers(0, layers * choices))


def assert_solvers_equal_the_knapsack(seed: int) -> None:
    benefit, budget = random_table(seed)
    best = -allocate(-benefit, budget)[1]
    for solver in _solvers.SOLVERS:
        found = allocation.build(benefit, budget, solver=solver).solve()
        assert found.status == "optimal", solver
        assert found.objective == pytest.approx(best, rel=1e-9, abs=1e-9), solver
        assert found.replicas.sum() <= budget
        chosen = benefit[np.arange(benefit.shape[0]), found.replicas]
        assert chosen.sum() == pytest.approx(best, abs=1e-9)
        assert found.bound >= best - 1e-6, solver


@pytest.mark.parametrize("seed", range(20))
def test_allocation_equals_the_knapsack(seed):
    assert_solvers_equal_the_knapsack(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20, 200))
def test_allocation_equals_the_knapsack_on_hundreds(seed):
    assert_solvers_equal_the_knapsack(seed)


@each_solver
def test_allocation_keeps_what_the_knapsack_cannot(solver):
    rng = np.random.default_rng(3)
    benefit = rng.random((3, 4)).cumsum(axis=1)
    most = np.array([3, 1, 3])
    # Two nodes: odd replicas put one more on the first. Layer 2 has experts twice as large.
    choice = np.arange(4)
    usage = np.stack([np.tile(-(-choice // 2), (3, 1)), np.tile(choice // 2, (3, 1))])
    usage = np.concatenate([usage, (np.array([1, 1, 2])[:, np.newaxis] * choice)[np.newaxis]])
    limits = np.array([3, 2, 7])
    best = -math.inf
    for chosen in itertools.product(range(4), repeat=3):
        used = usage[:, np.arange(3), chosen].sum(axis=1)
        if sum(chosen) <= 6 and (used <= limits).all() and (chosen <= most).all():
            if chosen[0] != chosen[2]:
                continue
            best = max(best, benefit[np.arange(3), chosen].sum())
    found = allocation.build(
        benefit, 6, most=most, tied=[(0, 2)], usage=usage, limits=limits, solver=solver
    ).solve()
    assert found.objective == pytest.approx(best)
    assert found.replicas[0] == found.replicas[2]
    assert (found.replicas <= most).all()


def test_allocation_counts_in_steps_and_knows_when_there_is_none():
    benefit = np.array([[-np.inf, 1.0, 3.0]])
    assert allocation.build(benefit, 8, step=4).solve().replicas.tolist() == [8]
    for solver in _solvers.SOLVERS:
        found = allocation.build(benefit, 3, step=4, solver=solver).solve()
        assert (found.status, found.replicas, found.objective) == ("infeasible", None, None)


@pytest.mark.parametrize(
    ("benefit", "more"),
    [
        ([[0.0, np.nan]], {}),
        ([[0.0, np.inf]], {}),
        ([[0.0, 1.0]], {"usage": np.zeros((1, 1, 2), dtype=np.int64)}),
        ([[0.0, 1.0]], {"usage": np.zeros((1, 2, 2)), "limits": np.zeros(1)}),
    ],
)
def test_allocation_refuses_tables_that_do_not_fit(benefit, more):
    with pytest.raises(co.InputError, match="pass"):
        allocation.build(np.array(benefit), 1, **more)


# --- replication, placement, joint, windowed, rebalancing -----------------------------------


@settings(max_examples=15)
@given(token_arrays((1, 1), (1, 1), (1, 6)), st.integers(0, 6), st.integers(1, 4))
def test_replication_equals_the_greedy(tokens, replicas, most):
    tokens = tokens[0, 0]
    assume(tokens.any())
    best = max_copy_load(tokens, replicas, most)[-1]
    for solver in _solvers.SOLVERS:
        found = replication.build(tokens, replicas, most, solver=solver).solve()
        assert found.objective == pytest.approx(best, rel=10 * MILP)
        assert found.counts.sum() <= tokens.size + replicas
        assert found.counts.max() <= most
        assert (tokens / found.counts).max() == pytest.approx(best, rel=10 * MILP)


def placements(experts: int, gpus: int, counts: list[int] | None) -> np.ndarray:
    """List all placements without duplicates, [placements, experts, gpus]."""
    rows = list(itertools.product((0, 1), repeat=gpus))
    options = [
        [row for row in rows if (sum(row) == counts[e] if counts else any(row))]
        for e in range(experts)
    ]
    return np.array(list(itertools.product(*options)))


def largest_loads(table: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Sum over windows of the largest GPU load, [placements]."""
    share = table / table.sum(axis=2, keepdims=True)
    return np.einsum("neg,we->nwg", share, tokens).max(axis=2).sum(axis=1)


@st.composite
def small_layers(draw: st.DrawFn, windows: int) -> tuple[np.ndarray, int, int, int, int | None]:
    gpus = draw(st.integers(1, 3))
    experts = draw(st.integers(1, 12 // gpus if gpus > 1 else 4))
    experts = min(experts, 4)
    tokens = draw(token_arrays((1, windows), (1, 1), (experts, experts)))[:, 0]
    most = draw(st.integers(1, gpus))
    replicas = draw(st.integers(0, experts * (most - 1)))
    return tokens, gpus, replicas, most, draw(st.sampled_from([1, None]))


def assert_layer_models_are_right(layer, solvers) -> None:
    tokens, gpus, replicas, most, spread = layer
    table = placements(tokens.shape[1], gpus, None)
    fits = table.sum(axis=(1, 2)) == tokens.shape[1] + replicas
    fits &= table.sum(axis=2).max(axis=1) <= most
    if spread is not None:
        fits &= np.ptp(table.sum(axis=1), axis=1) <= 1
    table = table[fits]
    costs = largest_loads(table, tokens)
    best = costs.min()
    hint = table[int(costs.argmax())].astype(np.uint8)
    for solver in solvers:
        found = windowed.build(
            tokens, gpus, replicas, most_copies=most, spread=spread, hint=hint, bound=best,
            solver=solver,
        ).solve()  # fmt: skip
        assert_is_best(found, best, tokens, solver)
        assert found.copies.sum() == tokens.shape[1] + replicas
        if tokens.shape[0] == 1:
            found = joint.build(
                tokens[0], gpus, replicas, most_copies=most, spread=spread, hint=hint,
                bound=best, solver=solver,
            ).solve()  # fmt: skip
            assert_is_best(found, best, tokens, solver)
            counts = found.copies.sum(axis=1)
            placed = placement.build(
                tokens[0], counts, gpus, spread=spread, hint=found.copies, bound=best,
                solver=solver,
            ).solve()  # fmt: skip
            assert_is_best(placed, best, tokens, solver)
            assert placed.copies.sum(axis=1).tolist() == counts.tolist()


def assert_is_best(found, best: float, tokens: np.ndarray, solver: str) -> None:
    noise = MILP * max(float(tokens.sum()), 1e-300)
    assert found.status == "optimal", solver
    assert found.objective == pytest.approx(best, rel=1e-9, abs=noise)
    assert found.bound <= best + noise
    if solver == "cp-sat":  # proven in whole numbers
        assert found.bound <= best * (1 + 1e-12)
        assert found.bound >= best * (1 - 1e-9)
    reached = largest_loads(found.copies[np.newaxis].astype(float), tokens)[0]
    assert reached == pytest.approx(best, rel=1e-9, abs=noise), solver


@settings(max_examples=40)
@given(small_layers(3))
def test_layer_models_equal_trying_every_placement(layer):
    assert_layer_models_are_right(layer, ("cp-sat", "highs"))


@settings(max_examples=10)
@given(small_layers(2))
def test_every_solver_solves_the_layer_models(layer):
    assert_layer_models_are_right(layer, _solvers.SOLVERS)


@pytest.mark.slow
@settings(max_examples=500, derandomize=False, suppress_health_check=list(HealthCheck))
@given(small_layers(3))
def test_layer_models_equal_trying_every_placement_on_hundreds(layer):
    assert_layer_models_are_right(layer, _solvers.SOLVERS)


@settings(max_examples=15)
@given(small_layers(1), st.integers(0, 4), st.randoms(use_true_random=False))
def test_rebalancing_equals_trying_every_placement(layer, moves, random):
    tokens, gpus, replicas, most, spread = layer
    table = placements(tokens.shape[1], gpus, None)
    fits = table.sum(axis=(1, 2)) <= tokens.shape[1] + replicas
    fits &= table.sum(axis=2).max(axis=1) <= most
    if spread is not None:
        fits &= np.ptp(table.sum(axis=1), axis=1) <= 1
    previous = table[random.randrange(len(table))].astype(np.uint8)
    table = table[fits]
    table = table[(table > previous).sum(axis=(1, 2)) <= moves]
    for solver in ("cp-sat", "highs"):
        found = rebalancing.build(
            tokens[0], previous, replicas, moves, most_copies=most, spread=spread, solver=solver
        ).solve()
        if not len(table):
            assert (found.status, found.copies) == ("infeasible", None)
            continue
        assert_is_best(found, largest_loads(table, tokens).min(), tokens, solver)
        assert (found.copies > previous).sum() <= moves


def test_large_whole_numbers_cut_nothing_off():
    # The two heavy experts alone, the light ones together: 256. With coefficients this large,
    # CP-SAT 9.15 as it comes calls 257 optimal.
    found = joint.build(np.array([1, 1, 256, 254.5]), gpus=3, replicas=0, most_copies=1).solve()
    assert (found.status, found.objective) == ("optimal", 256)


def test_models_refuse_what_cannot_be():
    tokens = np.ones(3)
    with pytest.raises(co.InfeasibleError, match=r"replicas=4 .* pass 0\.\.3"):
        joint.build(tokens, gpus=2, replicas=4)
    with pytest.raises(co.InfeasibleError, match="every expert needs 1"):
        placement.build(tokens, np.array([1, 0, 1]), gpus=2)
    with pytest.raises(co.InputError, match="previous hosts 2 experts"):
        rebalancing.build(tokens, np.ones((2, 2), dtype=np.uint8), 0, 0)
    with pytest.raises(co.InputError, match="'gurobi' is unknown"):
        joint.build(tokens, gpus=2, replicas=0, solver="gurobi")


def test_a_limit_of_work_leaves_a_bound():
    rng = np.random.default_rng(1)
    tokens = np.floor(rng.lognormal(4, 1, (3, 16)))
    found = windowed.build(tokens, 4, 6).solve(work=0.2)
    assert found.status in ("feasible", "not found")
    assert found.bound > 0
    assert found.work < 2
    again = windowed.build(tokens, 4, 6).solve(work=0.2)
    assert (again.bound, again.objective) == (found.bound, found.objective)


def test_what_was_stopped_bounds_nothing_falsely():
    """CP-SAT, stopped before it knows anything, says 0: above every cost of balancedness."""
    model = _solvers.new_model("cp-sat", "stopped")
    counts = [model.count(f"a_{i}", 0, 1000) for i in range(200)]
    for i in range(199):
        model.add(f"pair_{i}", counts[i] + counts[i + 1] <= 1000)
    model.minimise(-model.total(counts))
    bounds = [model.solve(work=work).bound for work in (0.0, 1e-6, 1e-4, 1e-3, 1e-2, None)]
    assert bounds[0] is None
    assert bounds[-1] == -100_000
    assert all(bound is None or bound <= -100_000 for bound in bounds)


@pytest.mark.parametrize("work", [0.0, 1e-6, 1e-5, 1e-4, 1e-3, 3e-3])
@pytest.mark.parametrize("objective", ["time", "balancedness"])
def test_a_whole_model_that_was_stopped_proves_nothing_false(work, objective):
    rng = np.random.default_rng(2)
    loads = co.Loads(np.floor(rng.lognormal(3, 1, (2, 2, 4))))
    problem = co.Problem(loads, 2, replicas=2, objective=objective)
    hint = co.solve(problem.replace(replicas=0), "nominal").plan.copies
    best = whole.solve_whole(problem).objective
    for start in (None, hint):
        found = whole.solve_whole(problem, hint=start, work=work)
        assert found.bound is None or found.bound <= best + 1e-9 * abs(best)
        assert (found.status in ("optimal", "feasible")) == (found.copies is not None)
        if found.status == "optimal":
            assert found.objective == pytest.approx(best, rel=1e-9)


# --- the whole plan -------------------------------------------------------------------------


@settings(max_examples=60)
@given(problems(**TINY))
def test_the_whole_model_equals_trying_every_plan(problem):
    best = best_by_enumeration(problem)
    found = whole.solve_whole(problem)
    scale = float(problem.loads.tokens.sum()) / problem.gpus
    if problem.objective == "balancedness":
        scale = -float(problem.loads.windows * problem.loads.layers)
    if scale == 0:
        assert found.objective == 0
        return
    assert found.status == "optimal"
    assert found.objective / scale == pytest.approx(best, rel=1e-9)
    assert found.bound / scale == pytest.approx(best, rel=1e-9)


# --- whole numbers --------------------------------------------------------------------------


@given(token_arrays((1, 3), (1, 1), (1, 8)), st.integers(1, 12))
def test_whole_tokens_are_never_more_than_the_tokens(tokens, most):
    tokens = tokens[:, 0]
    numbers, unit, exact = whole_tokens(tokens, most)
    for row, loads in zip(numbers, tokens.tolist(), strict=True):
        for number, load in zip(row, loads, strict=True):
            if exact:
                assert number == pytest.approx(load * unit, rel=1e-15)  # unit is rounded
                assert all(number % c == 0 for c in range(1, most + 1))
            else:
                assert number <= load * unit < number + 1
    assert exact == bool((tokens == np.floor(tokens)).all()) or most > 8 or tokens.max() > 1e6


# --- files for other solvers ----------------------------------------------------------------


def sample_problem() -> co.Problem:
    loads = co.Loads([[[6, 3, 2, 1], [5, 4, 2, 2]], [[2, 6, 1, 3], [4, 4, 4, 1]]])
    previous = co.solve(co.Problem(loads, 2), "trivial").plan
    return co.Problem(loads, 2, replicas=2, previous=previous, max_moves=2)


@pytest.mark.parametrize("suffix", ["mps", "lp"])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_can_be_written(name, suffix, tmp_path):
    file = tmp_path / f"model.{suffix}"
    variables, constraints = export_model(sample_problem(), name, file)
    assert variables > 1
    assert constraints > 1
    assert ("ROWS" if suffix == "mps" else "Subject To") in file.read_text()


def test_a_written_model_has_the_same_optimum(tmp_path):
    problem = sample_problem()
    file = tmp_path / "windowed.mps"
    export_model(problem, "windowed", file)
    _, model = pulp.LpProblem.fromMPS(str(file))
    model.solve(pulp.PULP_CBC_CMD(msg=False))
    tokens = problem.loads.tokens[:, 0]
    here = windowed.build(tokens, 2, 1, spread=None, solver="cbc")
    assert model.objective.value() / here.unit == pytest.approx(here.solve().objective)


def test_models_are_written_from_the_command_line(tmp_path):
    loads, file = tmp_path / "loads.npy", tmp_path / "joint.lp"
    np.save(loads, sample_problem().loads.tokens)
    command = [sys.executable, "-m", "craftopt", "export-model"]
    options = [str(loads), "--gpus", "2", "--replicas-per-layer", "1", "-o", str(file)]
    done = subprocess.run([*command, "Joint", *options], check=True, capture_output=True, text=True)
    assert "variables" in done.stdout
    assert "Subject To" in file.read_text()
    wrong = subprocess.run(
        [*command, "knapsack", *options], check=False, capture_output=True, text=True
    )
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "pass one of allocation" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1


def test_export_refuses_what_it_cannot_write(tmp_path):
    problem = co.Problem(co.Loads([[3, 2, 1]]), 2)
    with pytest.raises(co.InputError, match="'knapsack' is unknown"):
        export_model(problem, "knapsack", tmp_path / "model.mps")
    with pytest.raises(co.InputError, match=r"neither \.mps nor \.lp"):
        export_model(problem, "joint", tmp_path / "model.txt")
    with pytest.raises(co.InputError, match=r"layer=1 .* pass 0\.\.0"):
        export_model(problem, "joint", tmp_path / "model.lp", layer=1)
    with pytest.raises(co.InputError, match="needs a previous plan"):
        export_model(problem, "rebalancing", tmp_path / "model.lp")


@pytest.mark.skipif(
    importlib.util.find_spec("highspy") is None, reason="highspy is not installed here"
)
def test_solvers_work_where_highspy_is_installed():
    code = (
        "import numpy as np; from craftopt_formulations import joint;"
        "print(*[joint.build(np.array([3.0, 2, 1]), 2, 1, solver=s).solve().status "
        "for s in ('cp-sat', 'highs', 'cbc')])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["optimal"] * 3
