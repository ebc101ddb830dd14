"""How long planning takes: whole models by method, and the kernels below."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest

import craftopt as co
from craftopt.bounds import layer_costs
from craftopt.datasets import is_synthetic
from craftopt.knapsack import allocate
from craftopt.solving import find_method

R1 = "deepseek-r1"
NEED_GROUPS = {"eplb-hierarchical"}


@pytest.mark.parametrize("example", list(filter(is_synthetic, co.example_names())))
@pytest.mark.parametrize("method", co.methods())
def test_whole_model(measure, problems, method, example):
    problem = problems(example, groups=8 if method in NEED_GROUPS else None)
    # Methods that prove use all the work that they are given.
    work = 1 if find_method(method).proves else None

    def plan() -> float:
        result = co.solve(problem, method, work_limit=work)
        assert result.has_plan, result.message
        return result.runtime

    measure(method, example, plan, rounds=3 if find_method(method).work else 7)


def test_bound(measure, problems):
    problem = problems(R1)
    measure("bound, 40 windows", R1, lambda: layer_costs(problem))


def test_allocation(measure):
    """58 layers, r = 0..64, budget 1856; convex curves, as loads give."""
    rng = np.random.default_rng(0)
    gains = np.sort(rng.lognormal(sigma=1.5, size=(58, 64)), axis=1)[:, ::-1]
    costs = np.concatenate([np.zeros((58, 1)), -np.cumsum(gains, axis=1)], axis=1)
    spent = []
    measure("allocate 58 x 65, budget 1856", R1, lambda: spent.append(allocate(costs, 1856)))
    assert spent[0][0].sum() == 1856


def test_rebalance_experts(measure, problems):
    weight = problems(R1).loads.total().tokens[0]
    measure(
        "eplb.rebalance_experts",
        R1,
        lambda: co.eplb.rebalance_experts(weight, 320, 1, 1, 64),
    )


def test_certify(measure, problems):
    problem = problems(R1)
    plan = co.solve(problem, "nominal").plan
    measure("certify, 40 windows", R1, lambda: co.certify(problem, plan), rounds=3)


@pytest.mark.parametrize("answer", ["advise", "diagnose"])
def test_answer(measure, problems, request, answer):
    if request.config.getoption("benchmark_disable"):
        pytest.skip("advice is on all layers of a model; nothing is measured")
    loads = problems(R1).loads
    answers = {
        "advise": lambda: co.advise(loads, R1, "h200", 64, 8),
        "diagnose": lambda: co.diagnose(loads, 64, 8),
    }
    co.warm_up()  # in place of a round that is not counted
    measure(answer, R1, answers[answer], rounds=1, warmups=0)


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_first_plan(measure, request, tmp_path, start):
    """The command line with nothing compiled, and with all compiled."""
    if request.config.getoption("benchmark_disable"):
        pytest.skip("nothing is measured")
    command = f"plan {R1} --gpus 64 --nodes 8 --replicas 3712 --method nominal"

    def run() -> None:
        cache = tempfile.mkdtemp(dir=tmp_path) if start == "cold" else str(tmp_path)
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
        subprocess.run(
            [sys.executable, "-m", "craftopt", *command.split()], env=environment, check=True
        )

    rounds, warmups = (1, 0) if start == "cold" else (3, 1)
    measure(f"craftopt plan, {start}", R1, run, rounds, warmups)


@pytest.mark.parametrize("statement", ["import craftopt", "import craftopt; craftopt.solve"])
def test_import(measure, statement):
    """A new interpreter, start included."""
    measure(
        f"python -c '{statement}'",
        R1,
        lambda: subprocess.run([sys.executable, "-c", statement], check=True),
        rounds=5,
    )
