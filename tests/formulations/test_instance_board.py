"""The board: what is submitted is checked, and kept only where it is better."""

from __future__ import annotations

import csv
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

import craftopt as co
from craftopt_formulations.instances import load_instance

pytest.importorskip("ortools")
pytest.importorskip("pulp")

import instance_board as board
import prove_instances

NAME = "uniform-12x6-w3-r0-zipf"
BETTER = "flashlb"


@pytest.fixture
def kept(monkeypatch):
    """Instances that would be written; those read are made worse in every way, and open."""
    written = []
    monkeypatch.setattr(board, "write_instance", written.append)
    monkeypatch.setattr(board, "store_log", lambda name, lines: len(lines))
    return written


def worsened(name: str):
    known = load_instance(name)
    return replace(known, best=known.best * 2, bound=known.bound / 2)


def test_a_better_plan_and_a_better_bound_replace_the_row(kept, tmp_path, monkeypatch):
    known = load_instance(BETTER)
    monkeypatch.setattr(board, "load_instance", worsened)
    plan, proof = tmp_path / "plan.json", tmp_path / "proof.json"
    known.plan.save(plan)
    co.certify(known.problem, known.plan).save(proof)
    assert board.submit(BETTER, plan, "a stranger") == "best: 2.17011494 -> 1.08505747"
    assert (kept[-1].best, kept[-1].found.by) == (known.best, "a stranger")
    board.submit(BETTER, proof, "a stranger")
    assert kept[-1].bound > known.bound / 2
    assert kept[-1].proof.by.startswith("certified: ")


def test_a_log_closes_an_open_row(kept, monkeypatch):
    def opened(name):
        known = load_instance(name)
        return replace(known, bound=known.bound / 2)

    monkeypatch.setattr(board, "load_instance", opened)
    board.submit(NAME, prove_instances.LOGS / f"{NAME}.pbp.xz", "a stranger")
    assert kept[-1].bound == load_instance(NAME).best
    assert kept[-1].proof.by == "log: a stranger"


def test_what_is_no_better_or_not_true_is_refused(kept, tmp_path):
    known = load_instance(BETTER)
    plan, proof = tmp_path / "plan.json", tmp_path / "proof.json"
    known.plan.save(plan)
    with pytest.raises(co.InputError, match=r"no better than 1\.085"):
        board.submit(BETTER, plan, "a stranger")
    co.Plan(known.plan.copies[:, :, ::-1] * np.uint8(0) + np.uint8(1)).save(plan)
    with pytest.raises(co.VerificationError, match="replicas where"):
        board.submit(BETTER, plan, "a stranger")
    co.certify(known.problem, known.plan).save(proof)
    with pytest.raises(co.InputError, match="another problem"):
        board.submit(NAME, proof, "a stranger")
    with pytest.raises(co.VerificationError):  # the log of another instance
        board.submit(BETTER, prove_instances.LOGS / f"{NAME}.pbp.xz", "a stranger")
    assert not kept


def test_models_are_what_other_solvers_read(tmp_path):
    pulp = pytest.importorskip("pulp")
    board.write_models(tmp_path, [BETTER])
    with (tmp_path / f"{BETTER}.csv").open() as file:
        tokens = [int(row["tokens"]) for row in csv.DictReader(file)]
    known = load_instance(BETTER)
    assert tokens == known.problem.loads.tokens.ravel().tolist()
    _, program = pulp.LpProblem.fromMPS(str(tmp_path / f"{BETTER}.mps"))
    program.solve(pulp.PULP_CBC_CMD(msg=False, options=["allow 0"]))
    # The sum of largest loads above the mean, rounded up, in parts of a token.
    steps = 840  # copies of 1 to 8
    mean = -(-sum(tokens) * steps // 8)
    best = known.best * Fraction(sum(tokens), 8) * steps
    assert round(pulp.value(program.objective)) == best - mean


def test_the_table_has_a_row_for_every_instance():
    rows = board.rows()
    assert all(len(row) == len(board.COLUMNS) for row in rows)
    assert [row[0] for row in rows] == list(board.list_instances())
