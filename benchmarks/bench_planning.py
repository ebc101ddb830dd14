"""How long planning takes: whole models by method, and the kernels below."""

from __future__ import annotations

import subprocess
import sys

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


@pytest.mark.parametrize("statement", ["import craftopt", "import craftopt; craftopt.solve"])
def test_import(measure, statement):
    """A new interpreter, start included."""
    measure(
        f"python -c '{statement}'",
        R1,
        lambda: subprocess.run([sys.executable, "-c", statement], check=True),
        rounds=5,
    )
