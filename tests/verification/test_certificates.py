"""Certificates: what is certified is true, and what is not true is not verified.

`Judge` decides which claims of a certificate are true, from the definitions in
`craftopt.verification` and by listing everything: all numbers of copies, all configurations, all
ways to spend the budget. It shares no code with the package beyond reading loads and plans.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
import sys
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from reference.enumeration import best_by_enumeration, least_max_load
from reference.judge import Box, Judge, all_counts
from scipy.optimize import linprog
from strategies import problems, quiet

import craftopt as co
from craftopt import cli
from craftopt.verification import ExactProblem, plan_digest

# --- certificates to judge and to mutate ----------------------------------------------------


def tree(
    tokens: list[Fraction], gpus: int, copies: int, load: Fraction, box: Box, depth: int
) -> dict[str, Any] | None:
    """Prove a load of an even layer: at once, or by branching to some depth."""
    every = all_counts(box, copies)
    if not every:
        return {"kind": "empty"}
    if all(any(t >= c * load for t, c in zip(tokens, counts, strict=True)) for counts in every):
        return {"kind": "copies"}
    witness = configuration_witness(tokens, gpus, copies, load, box)
    if witness is not None or depth == 0:
        return witness
    expert = max(range(len(box)), key=lambda e: len({counts[e] for counts in every}))
    values = sorted({counts[expert] for counts in every})
    if len(values) == 1:
        return None
    k, (low, high) = values[len(values) // 2 - 1], box[expert]
    parts = [
        tree(tokens, gpus, copies, load, (*box[:expert], side, *box[expert + 1 :]), depth - 1)
        for side in ((low, k), (k + 1, high))
    ]
    if None in parts:
        return None
    return {"kind": "branch", "expert": expert, "copies": k, "below": parts[0], "above": parts[1]}


def configuration_witness(
    tokens: list[Fraction], gpus: int, copies: int, load: Fraction, box: Box
) -> dict[str, Any] | None:
    """Solve the dual of the configuration LP over all configurations of an even layer."""
    experts = len(tokens)
    fitting = [
        counts
        for counts in all_counts(box, copies)
        if all(t < c * load for t, c in zip(tokens, counts, strict=True))
    ]
    options = [sorted({counts[e] for counts in fitting}) for e in range(experts)]
    q, fuller = divmod(copies, gpus)
    rows = []
    for size in (q, q + 1) if fuller else (q,):
        for members in itertools.combinations(range(experts), size):
            for counts in itertools.product(*(options[e] for e in members)):
                held = list(zip(members, counts, strict=True))
                if sum(Fraction(tokens[e], c) for e, c in held) < load:
                    row = [0.0] * experts + [-size, -float(size > q)]
                    for e, c in held:
                        row[e] = 1 / c
                    rows.append(row)
    gain = [-1.0] * experts + [copies, fuller]
    if not rows:
        return None
    solved = linprog(gain, A_ub=rows, b_ub=[1.0] * len(rows), bounds=[(-9, 9)] * (experts + 2))
    if solved.status or -solved.fun <= gpus * (1 + 1e-6):
        return None
    # Where they can, grid steps hit all sizes, so that a load of exactly T is no configuration.
    exact = load.numerator * 6
    grid = exact * (20_000 // exact) if exact <= 20_000 else 20_000
    units = 10**9
    *profits, slot, extra = (math.floor(value * units) for value in solved.x)
    return {
        "kind": "configuration",
        "load": str(load),
        "experts": profits,
        "slot": slot,
        "extra": extra,
        "scale": units + 10 * experts,
        "grid": grid,
    }


# GPUs, replicas and tokens of layers whose optimum takes branching to prove.
HARD = (
    (2, 3, (20, 10, 10, 1)),
    (2, 3, (12, 11, 7, 2)),
    (2, 3, (20, 6, 5, 2)),
    (2, 1, (11, 8, 5, 5, 3)),
    (3, 3, (18, 11, 6, 3, 1)),
    (3, 3, (15, 5, 3, 1)),
)


def tiny_problem(rng: np.random.Generator) -> co.Problem:
    if rng.random() < 0.3:
        gpus, replicas, tokens = HARD[rng.integers(len(HARD))]
        return co.Problem(co.Loads([tokens]), gpus, replicas=replicas, slots="even")
    if rng.random() < 0.1:  # a hot expert has companions, another one in each window
        tokens = rng.permuted([[30, 5, 3, 4, 4], [5, 30, 4, 3, 4]], axis=0)
        return co.Problem(co.Loads(tokens[:, np.newaxis]), 3, replicas=1, slots="even")
    gpus = int(rng.integers(2, 4))
    experts = int(rng.integers(3, 6))
    windows, layers = (int(size) for size in rng.integers(1, 3, 2))
    shape = windows, layers, experts
    kind = rng.integers(3)
    if kind == 0:
        tokens = rng.integers(0, 12, shape)
    elif kind == 1:
        tokens = np.round(50 * rng.lognormal(0, 1, shape))
    else:
        tokens = rng.exponential(3.0, shape)
    rule = ("uniform", "even", "even", "free")[rng.integers(4)]
    forced = layers * (-experts % gpus)
    return quiet(
        lambda: co.Problem(
            co.Loads(tokens, np.arange(layers) + 3),
            gpus,
            replicas=forced + int(rng.integers(0, 5)),
            slots=rule,
            objective=("time", "balancedness")[rng.integers(2)],
        )
    )


def tiny_certificate(rng: np.random.Generator) -> dict[str, Any]:
    """Certify a tiny plan, with evidence of every kind where there is some."""
    while True:
        problem = tiny_problem(rng)
        result = co.solve(problem, ("nominal", "eplb-counts", "eplb-counts")[rng.integers(3)])
        if result.has_plan and not result.violations:
            break
    plan = result.plan
    evidence: dict[tuple[int, int], list[dict[str, Any]]] = {}
    single = problem.loads.windows == 1 and problem.max_copies is None
    even = problem.slots != "free" or problem.loads.layers == 1
    for layer in range(problem.loads.layers):
        replicas = int(plan.replica_counts[layer].sum()) - problem.loads.experts
        if single and even and rng.random() < 0.7:
            tokens = [Fraction(t) for t in problem.loads.tokens[0, layer].tolist()]
            counts = problem.loads.tokens[0, layer]
            best = Fraction(
                float(least_max_load(counts, replicas, problem.gpus, problem.copies_limit))
            )
            if (counts == np.floor(counts)).all():
                best = best.limit_denominator(36)  # in sixths: at most 3 copies
            load = best * Fraction(int(rng.choice([100, 100, 99, 95])), 100)
            copies = len(tokens) + replicas
            box = ((1, problem.copies_limit),) * len(tokens)
            witness = tree(tokens, problem.gpus, copies, load, box, depth=3)
            if witness is not None:
                evidence.setdefault((layer, replicas), []).append(witness)
        if rng.random() < 0.3:
            cost = float(problem.loads.tokens[:, layer].sum()) / problem.gpus
            claim = {"kind": "solver", "solver": "oracle", "version": "1"}
            claim["cost"] = str(Fraction(cost) if problem.objective == "time" else Fraction(-1, 9))
            evidence.setdefault((layer, replicas), []).append(claim)
    try:
        certificate = co.certify(problem, plan, evidence=evidence)
    except co.VerificationError:  # rounding has cost a configuration witness its proof
        certificate = co.certify(problem, plan)
    return json.loads(certificate.to_json())


def is_verified(document: dict[str, Any]) -> bool:
    try:
        co.verify(co.Certificate(document))
    except co.CraftoptError:
        return False
    return True


def with_digests(document: dict[str, Any]) -> dict[str, Any]:
    """Recompute the digests, so that only arithmetic can tell."""
    loads = document["loads"]
    tokens = [[[float(Fraction(t)) for t in row] for row in rows] for rows in loads["tokens"]]
    loads["digest"] = co.Loads(tokens, loads["layer_ids"], loads["window_names"]).digest
    plan = co.Plan.from_json(json.dumps(document["plan"]))
    document["plan_digest"] = plan_digest(plan)
    return document


KINDS = {"mean", "copies", "cardinality", "configuration", "branch", "windows", "credits"}
KINDS |= {"companions"}  # credits with a price for companions

# --- mutations ------------------------------------------------------------------------------


def numbers_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the paths to all numbers, ints and texts p/q, within a part of a certificate."""
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    else:
        return [path] if is_number(value) else []
    return [found for key in keys for found in numbers_of(value[key], (*path, key))]


def is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value.replace("/", "").replace("-", "").isdecimal()
    return type(value) is int


def replace_at(document: Any, path: tuple[Any, ...], change: Any) -> None:
    *above, key = path
    for step in above:
        document = document[step]
    document[key] = change(document[key])


def nudged(value: Any, rng: np.random.Generator) -> Any:
    """Change a number: a little, by one, or much."""
    number = Fraction(value)
    kind = rng.integers(4)
    if kind == 0:
        changed = number + (-1) ** int(rng.integers(2))
    elif kind == 1:
        changed = number * Fraction(int(rng.choice([1, 3])), 2)
    elif kind == 2:
        changed = number * (1 + Fraction(int(rng.choice([-1, 1])), 10 ** int(rng.integers(2, 9))))
    else:
        changed = -number + (number == 0)
    if type(value) is int:
        return round(changed) if round(changed) != value else value + 1
    return str(changed)


def mutate(document: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Change one thing: a witness, a copy, a load, a stated number or a rule."""
    mutant = copy.deepcopy(document)
    kind = rng.choice(["witness", "witness", "number", "bound", "copy", "load", "rule"])
    entries = mutant["layers"] + mutant["allocation"]
    if kind == "witness":
        entry = entries[rng.integers(len(entries))]
        paths = numbers_of(entry["witness"], ("witness",))
        if paths and rng.random() < 0.8:
            replace_at(entry, paths[rng.integers(len(paths))], lambda value: nudged(value, rng))
        else:
            entry["witness"] = {"kind": str(rng.choice(["mean", "copies", "empty"]))}
    elif kind == "number":
        paths = [(key,) for key in ("value", "bound", "gap")]
        paths += [(key,) for key in ("solver_bound", "solver_gap") if mutant[key] is not None]
        for part in ("layers", "allocation", "claims"):
            for position, entry in enumerate(mutant[part]):
                stated = [key for key in entry if key != "witness" and entry[key] is not None]
                paths += [(part, position, key) for key in stated]
        replace_at(mutant, paths[rng.integers(len(paths))], lambda value: nudged(value, rng))
    elif kind == "bound":  # with the gap that belongs to it
        entry = [mutant, *mutant["layers"]][rng.integers(1 + len(mutant["layers"]))]
        entry["bound"] = nudged(entry["bound"], rng)
        value, bound = Fraction(entry["value"]), Fraction(entry["bound"])
        if bound:
            time = mutant["problem"]["objective"] == "time"
            entry["gap"] = str((value - bound) / bound if time else (bound - value) / value)
    elif kind == "copy":
        layer = mutant["plan"]["layers"][rng.integers(len(mutant["plan"]["layers"]))]
        hosts = layer["experts_of_gpu"]
        source, target = rng.choice(len(hosts), 2, replace=False)
        if hosts[source]:
            moved = int(rng.choice(hosts[source]))
            action = rng.integers(3)
            if action != 0:
                hosts[source].remove(moved)
            if action != 1:
                hosts[target] = sorted([*hosts[target], moved])
        everyone = [e for row in mutant["plan"]["layers"] for g in row["experts_of_gpu"] for e in g]
        experts = mutant["plan"]["experts"] * len(mutant["plan"]["layers"])
        mutant["plan"]["replicas"] = len(everyone) - experts
    elif kind == "load":
        paths = numbers_of(mutant["loads"]["tokens"], ("loads", "tokens"))
        replace_at(
            mutant,
            paths[rng.integers(len(paths))],
            lambda value: abs(int(Fraction(value)) + int(rng.integers(1, 9)) - 4),
        )
    else:
        change = rng.integers(4)
        if change == 0:
            mutant["problem"]["replicas"] += int(rng.choice([-1, 1, 2]))
        elif change == 1:
            mutant["problem"]["slots"] = str(rng.choice(["free", "even", "uniform"]))
        elif change == 2:
            other = {"time": "balancedness", "balancedness": "time"}
            mutant["problem"]["objective"] = other[mutant["problem"]["objective"]]
        else:
            mutant["problem"]["max_copies"] = int(rng.integers(1, 3))
    return mutant


def try_mutations(wanted: int, seed: int) -> dict[str, int]:
    """Mutate until so many mutants claim something false; count what became of all."""
    rng = np.random.default_rng(seed)
    counts = {"false": 0, "rejected": 0, "neutral": 0, "neutral and verified": 0}
    kinds = set()
    while counts["false"] < wanted:
        document = tiny_certificate(rng)
        assert is_verified(document)
        assert Judge(document).all_true()
        entries = document["layers"] + document["allocation"]
        kinds |= {entry["witness"]["kind"] for entry in entries}
        kinds |= {"companions" for entry in entries if entry["witness"].get("companions")}
        for _ in range(8):
            mutant = mutate(document, rng)
            if mutant == document:
                continue
            try:
                with_digests(mutant)
                true = Judge(mutant).all_true()
            except co.CraftoptError:  # no loads, no plan or no problem at all
                true = False
            verified = is_verified(mutant)
            if true:
                counts["neutral"] += 1
                counts["neutral and verified"] += verified
                continue
            counts["false"] += 1
            counts["rejected"] += not verified
            assert not verified, f"verified, though false: {json.dumps(mutant)}"
    assert kinds >= KINDS, f"no witness of {KINDS - kinds} was tried"
    return counts


def test_mutations_that_make_a_claim_false_are_rejected():
    counts = try_mutations(300, seed=1)
    assert counts["rejected"] == counts["false"] >= 300


@pytest.mark.slow
def test_a_thousand_mutations_that_make_a_claim_false_are_rejected():
    counts = try_mutations(1_000, seed=2)
    print(counts)
    assert counts["rejected"] == counts["false"] >= 1_000
    # Almost all that stays true is verified too: the check is not simply strict.
    assert counts["neutral and verified"] > 0.8 * counts["neutral"]


# --- what is certified is true --------------------------------------------------------------

TINY = {"layers": (1, 2), "most_experts": 4, "most_gpus": 4, "most_cells": 9}


@settings(max_examples=100)
@given(problems(**TINY))
def test_what_is_certified_is_verified_and_true(problem):
    for method in ("nominal", "eplb-counts"):
        result = co.solve(problem, method)
        if not result.has_plan or result.violations:
            continue
        certificate = co.certify(problem, result.plan)
        co.verify(certificate)
        best = best_by_enumeration(problem)
        assert best is not None
        assert certificate.value == pytest.approx(result.objective, rel=1e-12)
        worse = 1 if problem.objective == "time" else -1
        assert worse * certificate.bound <= worse * best + 1e-9 * best
        if problem.loads.windows == 1:  # with several, a certificate has one price per replica
            assert worse * certificate.bound >= worse * result.bound - 1e-9 * result.bound
        assert certificate.gap >= 0
        for layer in certificate.layers:
            assert layer.gap >= 0


@pytest.mark.slow
@settings(max_examples=1000, derandomize=False, deadline=None)
@given(problems(**{**TINY, "most_cells": 12}))
def test_what_is_certified_is_verified_and_true_on_thousands(problem):
    test_what_is_certified_is_verified_and_true.hypothesis.inner_test(problem)


def layer_problem(tokens, gpus, replicas):
    """A problem of one layer with exactly so many replicas (or fewer, which are not asked for)."""
    return co.Problem(co.Loads([tokens]), gpus, replicas=replicas, slots="even")


def is_proven(exact: ExactProblem, replicas: int, witness: dict[str, Any]) -> bool:
    try:
        exact.proven_cost(0, replicas, witness)
    except co.VerificationError:
        return False
    return True


def test_no_price_proves_more_than_the_optimum():
    """Any price, any load: what is accepted is true, whoever wrote the witness."""
    rng = np.random.default_rng(4)
    accepted = 0
    for _ in range(400):
        gpus = int(rng.integers(2, 4))
        tokens = rng.integers(1, 9, int(rng.integers(2 * gpus, 9)))
        tokens[: gpus + 1] += rng.integers(8, 30)
        replicas = int(rng.integers(0, 3))
        best = Fraction(float(least_max_load(tokens.astype(float), replicas, gpus, gpus)))
        best = best.limit_denominator(36)
        exact = ExactProblem(layer_problem(tokens.tolist(), gpus, replicas))
        for _ in range(8):
            price = Fraction(int(rng.integers(1, 40)), int(rng.integers(1, 5)))
            witness = {"kind": "cardinality", "price": str(price)}
            above = best + Fraction(1, 10**6)
            assert not is_proven(exact, replicas, {**witness, "load": str(above)})
            below = best * Fraction(int(rng.integers(80, 100)), 100)
            accepted += is_proven(exact, replicas, {**witness, "load": str(below)})
    assert accepted > 100


def test_no_tree_proves_more_than_the_optimum():
    for gpus, replicas, tokens in HARD:
        weights = np.array(tokens, dtype=float)
        best = Fraction(float(least_max_load(weights, replicas, gpus, gpus))).limit_denominator(36)
        box = ((1, gpus),) * len(tokens)
        exact = ExactProblem(layer_problem(list(tokens), gpus, replicas))
        shares = [Fraction(count) for count in tokens]
        proof = tree(shares, gpus, len(tokens) + replicas, best, box, depth=3)
        assert proof["kind"] == "branch"
        assert exact.proven_cost(0, replicas, proof) == best
        text = json.dumps(proof)
        higher = json.loads(text.replace(f'"load": "{best}"', f'"load": "{best + 1}"'))
        assert (
            not is_proven(exact, replicas, higher) or exact.proven_cost(0, replicas, higher) == best
        )  # all its loads are proven by the heaviest copy


def test_flashlb_example_is_certified_by_a_tree():
    """[600, 560, ...] on 8 GPUs with 2 slots: 590/3 is the least largest load."""
    branching = pytest.importorskip("craftopt_formulations.branching")
    pytest.importorskip("ortools")
    lp = pytest.importorskip("craftopt_formulations.configuration_lp")
    tokens = [600, 560, 120, 120, 20, 10, 10, 10]
    problem = co.Problem(co.Loads([tokens]), 8, replicas=8, slots="uniform")
    hosts = [[0, 1], [0, 1], [0, 1], [0, 3], [1, 2], [2, 5], [3, 6], [4, 7]]
    assert best_fill(tokens, hosts) > Fraction(590, 3)
    plan = co.Plan.from_phy2log([[e for gpu in hosts for e in gpu]], gpus=8)
    proof = branching.prove_load(lp.Layer.of(tokens, 8, 8), Fraction(590, 3)).witness
    certificate = co.certify(problem, plan, evidence={(0, 8): [proof]})
    co.verify(certificate)
    assert certificate.layers[0].kind == "branch"
    assert certificate.bound == pytest.approx(590 / 3 / 181.25)


def best_fill(tokens: list[int], hosts: list[list[int]]) -> Fraction:
    copies = [sum(gpu.count(e) for gpu in hosts) for e in range(len(tokens))]
    return max(sum(Fraction(tokens[e], copies[e]) for e in gpu) for gpu in hosts)


# --- files and evidence ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    loads = co.Loads(np.round(rng.lognormal(sigma=1, size=(1, 3, 12)) * 100), [3, 5, 8])
    return co.Problem(loads, 4, replicas=7, slots="even")


@pytest.fixture(scope="module")
def plan(problem):
    return co.solve(problem, "nominal").plan


def test_companions_are_counted_on_the_node_of_a_group():
    # Two experts of 60 cannot both be alone: three GPUs of a node host its seven experts.
    loads = co.Loads([[60, 60, 20, 20, 20, 20, 20, *[1] * 7]])
    problem = co.Problem(loads, 6, nodes=2, slots="even", expert_groups=2)
    certificate = co.certify(problem, co.solve(problem, "nominal").plan)
    co.verify(certificate)
    assert certificate.bound == pytest.approx(80 / (227 / 6))
    witness = certificate.layers[0].witness
    exact = ExactProblem(problem)
    assert exact.proven_cost(0, 0, witness) == pytest.approx(80)
    for group in (1, 2, -1):  # the light group, and none at all
        with pytest.raises(co.VerificationError):
            exact.proven_cost(0, 0, {**witness, "group": group})
    shared = ExactProblem(problem.replace(expert_groups=np.arange(14) % 14))
    with pytest.raises(co.VerificationError, match="shares its node"):
        shared.proven_cost(0, 0, witness)


def test_a_certificate_survives_its_file(problem, plan, tmp_path):
    certificate = co.certify(problem, plan)
    file = tmp_path / "certificate.json"
    certificate.save(file)
    again = co.Certificate.from_json(file.read_text())
    assert again.document == certificate.document
    assert (again.value, again.bound, again.gap) == (
        certificate.value,
        certificate.bound,
        certificate.gap,
    )
    assert [layer.layer_id for layer in again.layers] == [3, 5, 8]
    assert [layer.replicas for layer in again.layers] == (
        plan.replica_counts.sum(axis=1) - 12
    ).tolist()
    co.verify(file)
    co.verify(str(file))
    assert co.certify(problem, plan).to_json() == certificate.to_json()
    read = co.Certificate.load(file)
    assert read.plan == plan
    assert read.loads == problem.loads
    assert (read.problem.rules, read.problem.max_moves) == (problem.rules, None)


def test_a_certificate_prints_what_it_proves(problem, plan):
    certificate = co.certify(problem, plan)
    figures = json.loads(json.dumps(certificate.to_dict()))
    assert figures["gap"] == certificate.gap
    assert sum(figures["proofs"].values()) == figures["layers"] == 3
    lines = str(certificate).splitlines()
    assert lines[0].split() == ["among", "plans", "with", "7", "replicas,", "slots", "even"]
    assert [line.split()[-1] for line in lines if line.startswith("certified gap")] == [
        f"{certificate.gap:.4%}"
    ]


def test_one_changed_digit_is_found(problem, plan, tmp_path):
    document = json.loads(co.certify(problem, plan).to_json())
    document["loads"]["tokens"][0][1][2] += 1
    with pytest.raises(co.VerificationError, match="the loads are not those that the digest"):
        co.verify(co.Certificate(document))
    document = json.loads(co.certify(problem, plan).to_json())
    document["plan"]["method"] = "magic"
    with pytest.raises(co.VerificationError, match="the plan is not the one"):
        co.verify(co.Certificate(document))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "craftopt-plan"}', "nonsense"])
def test_other_files_are_no_certificates(text, tmp_path):
    file = tmp_path / "file.json"
    file.write_text(text)
    with pytest.raises(co.FormatError):
        co.verify(file)
    with pytest.raises(co.FormatError):
        co.Certificate.from_json(text)


def test_another_version_and_missing_parts_are_named(problem, plan, tmp_path):
    document = json.loads(co.certify(problem, plan).to_json())
    with pytest.raises(co.FormatError, match="version 7"):
        co.verify(co.Certificate({**document, "version": 7}))
    with pytest.raises(co.FormatError, match="cannot read"):
        co.verify(tmp_path / "nowhere.json")
    for key in document:
        if key in ("format", "version"):
            continue
        less = {name: value for name, value in document.items() if name != key}
        with pytest.raises(co.VerificationError):
            co.verify(co.Certificate(less))
        with pytest.raises(co.VerificationError):
            co.verify(co.Certificate({**document, key: "nonsense"}))


def test_a_plan_that_breaks_rules_is_not_certified(problem, plan):
    with pytest.raises(co.InputError, match="budget: "):
        co.certify(problem.replace(replicas=plan.replicas - 1), plan)


def test_plans_with_layers_numbered_from_0_are_not_matched_by_position(problem, plan):
    with pytest.raises(co.InputError, match="and layers are matched by number"):
        co.certify(problem, co.Plan(plan.copies))


def test_evidence_that_proves_nothing_is_refused(problem, plan):
    replicas = int(plan.replica_counts[0].sum()) - 12
    wrong = {"kind": "cardinality", "load": "100000", "price": "1"}
    with pytest.raises(co.VerificationError, match="layer 3 with"):
        co.certify(problem, plan, evidence={(0, replicas): [wrong]})


def test_solvers_are_believed_apart(problem, plan):
    certificate = co.certify(problem, plan)
    assert (certificate.solver_bound, certificate.solver_gap) == (None, None)
    claims = {}
    for layer in range(3):
        replicas = int(plan.replica_counts[layer].sum()) - 12
        cost = Fraction(float(problem.loads.tokens[0, layer].sum())) / 4 * Fraction(101, 100)
        claim = {"kind": "solver", "cost": str(cost), "solver": "CP-SAT", "version": "9.15"}
        claims[layer, replicas] = [claim]
    believed = co.certify(problem, plan, evidence=claims)
    co.verify(believed)
    assert believed.gap == certificate.gap
    assert believed.solver_bound >= believed.bound
    assert believed.solver_gap <= believed.gap
    assert believed.solvers == ("CP-SAT 9.15",)


def claim_of(cost: str) -> dict[str, Any]:
    return {"kind": "solver", "cost": cost, "solver": "Oracle", "version": "1"}


def test_solvers_that_the_plan_refutes_are_not_believed(problem, plan):
    """A wrong claim gives no gap below 0, neither in a certificate made nor in one read."""
    cells = list(enumerate((plan.replica_counts.sum(axis=1) - 12).tolist()))
    document = json.loads(co.certify(problem, plan).to_json())
    value = Fraction(document["value"])
    every = [(layer, replicas) for layer in range(3) for replicas in range(8)]
    tokens = problem.loads.tokens[0].sum(axis=1)
    for factor, says in ((Fraction(1, 2), "better"), (10**30, "more than any placement costs")):
        costs = [str(factor * int(count)) for count in tokens]
        claims = {(layer, r): [claim_of(costs[layer])] for layer, r in every}
        with pytest.raises(co.VerificationError, match=says):
            co.certify(problem, plan, evidence=claims)
        false = copy.deepcopy(document)
        false["claims"] = [
            {
                "layer_id": int(problem.loads.layer_ids[layer]),
                "replicas": r,
                "witness": claim_of(costs[layer]),
            }
            for layer, r in every
        ]
        bound = Fraction(3, 2)
        false["solver_bound"], false["solver_gap"] = str(bound), str((value - bound) / bound)
        with pytest.raises(co.VerificationError, match=says):
            co.verify(co.Certificate(false))
    # A claim counts for the solver's bound alone, and is no witness.
    false = copy.deepcopy(document)
    false["layers"][0]["witness"] = claim_of("1")
    with pytest.raises(co.VerificationError, match="'solver' proves nothing"):
        co.verify(co.Certificate(false))
    with pytest.raises(co.VerificationError, match="'solver' proves nothing"):
        ExactProblem(problem).proven_cost(*cells[0], claim_of("1"))


ODD_NUMBERS = [
    math.nan, math.inf, 1.0, True, None, [], {}, "nan", "inf", "1.5", "1e3", "1_000", " 1", "1/-2",
    "1/0", "", "1e999999999", "-1e-999999999", "\u0661", "9" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD_NUMBERS, ids=lambda odd: repr(odd)[:14])
def test_only_whole_numbers_and_fractions_are_numbers(odd, problem, plan):
    """Neither another type nor another way to write a number."""
    document = json.loads(co.certify(problem, plan).to_json())
    replicas = int(plan.replica_counts[0].sum()) - 12
    for key in ("value", "bound", "gap"):
        assert not is_verified({**document, key: odd})
        assert not is_verified({**document, "layers": [{**document["layers"][0], key: odd}]})
    tokens = copy.deepcopy(document)
    tokens["loads"]["tokens"][0][0][0] = odd
    assert not is_verified(tokens)
    for witness in (
        {"kind": "cardinality", "load": odd, "price": "0"},
        {"kind": "credits", "price": 1, "scale": odd, "windows": {}},
        {"kind": "credits", "price": odd, "scale": "1", "windows": {}},
        {"kind": "credits", "price": 1, "scale": "1", "windows": {"0": [[0, 2, odd]]}},
        {"kind": "branch", "expert": odd, "copies": 1, "below": claim_of("0"), "above": {}},
    ):
        more = copy.deepcopy(document)
        more["allocation"].append({"layer_id": 3, "replicas": replicas, "witness": witness})
        assert not is_verified(more), witness


def test_what_is_stated_twice_or_not_at_all_is_no_proof(problem, plan):
    document = json.loads(co.certify(problem, plan).to_json())
    assert is_verified({**document, "allocation": document["allocation"] * 2})  # twice true
    layers = document["layers"]
    for wrong in (layers[:-1], [*layers, layers[0]], [layers[0], *layers[:-1]], layers[::-1]):
        assert not is_verified({**document, "layers": wrong})
    for cell in ({"layer_id": 4, "replicas": 0}, {"layer_id": 3, "replicas": 8}):
        entry = {**cell, "witness": {"kind": "mean"}}
        assert not is_verified({**document, "allocation": [entry]})
    # A witness for another number of replicas.
    other = copy.deepcopy(document)
    other["layers"][0]["replicas"] += 1
    assert not is_verified(other)


def test_balancedness_of_many_windows_is_stated_in_few_digits():
    """As an exact fraction it has more digits than Python reads."""
    rng = np.random.default_rng(0)
    loads = co.Loads(rng.integers(1, 100_000, (40, 40, 8)))
    problem = co.Problem(loads, 4, replicas=40, slots="even", objective="balancedness")
    result = co.solve(problem.replace(loads=loads.total()), "nominal")
    certificate = co.certify(problem, result.plan, time_limit=1e-9)
    co.verify(certificate)
    true = co.evaluate(result.plan, loads).mean_balancedness
    assert certificate.value == pytest.approx(true, rel=1e-12)
    assert max(len(certificate.document[key]) for key in ("value", "bound", "gap")) < 200


def test_a_time_limit_leaves_the_cheap_bounds(problem, plan):
    certificate = co.certify(problem, plan, time_limit=1e-9)
    co.verify(certificate)
    assert {layer.kind for layer in certificate.layers} <= {"mean", "copies"}


class Elsewhere:
    """Run as on another machine, last item first."""

    def run(self, function, items):
        packed = pickle.dumps((function, items))
        for index in reversed(range(len(items))):
            work, arguments = pickle.loads(packed)
            yield index, work(*arguments[index])


@pytest.mark.parametrize("slots", ["even", "uniform", "free"])
@pytest.mark.parametrize("objective", ["time", "balancedness"])
def test_the_certificate_does_not_depend_on_where_layers_are_proven(slots, objective, tmp_path):
    tokens = np.random.default_rng(2).lognormal(sigma=1.2, size=(4, 3, 12)) * 100
    loads = co.Loads(tokens.round())
    problem = co.Problem(loads, gpus=4, replicas_per_layer=4, slots=slots, objective=objective)
    plan = co.solve(problem, "nominal").plan
    alone = co.certify(problem, plan, workers=1).to_json()
    kept = co.Resumable(tmp_path, Elsewhere())
    for workers in (3, Elsewhere(), kept, kept):
        assert co.certify(problem, plan, workers=workers).to_json() == alone
    assert list(tmp_path.glob("*.layer"))


def test_without_companions_a_certificate_is_verified_and_says_no_more(monkeypatch):
    rng = np.random.default_rng(0)
    tokens = rng.lognormal(size=(1, 1, 16)) * rng.lognormal(sigma=0.5, size=(12, 1, 16)) * 100
    problem = co.Problem(co.Loads(tokens.round()), gpus=10, replicas=4, slots="uniform")
    plan = co.solve(problem, "nominal").plan
    strong = co.certify(problem, plan)
    monkeypatch.setattr("craftopt.bounds.whole_plan.MOST_TOKENS", 0)
    cheap = co.certify(problem, plan)
    co.verify(cheap)
    assert 1 < cheap.bound < strong.bound <= strong.value
    assert '"companions"' in strong.to_json()
    assert '"companions"' not in cheap.to_json()


def test_progress_ends_at_1(problem, plan):
    seen = []
    co.certify(problem, plan, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_layers_without_tokens_and_tiny_tokens_are_exact():
    for scale in (0.0, 1e-25, 0.1, 1e25):
        tokens = np.array([[3.0, 2.0, 1.0], [0.0, 0.0, 0.0]]) * scale
        for objective in ("time", "balancedness"):
            loads = co.Loads([tokens, tokens[::-1]])
            problem = co.Problem(loads, 3, replicas=1, objective=objective)
            result = co.solve(problem, "nominal")
            certificate = co.certify(problem, result.plan)
            co.verify(certificate)
            assert certificate.value == pytest.approx(result.objective, rel=1e-12)


def test_a_whole_model_is_verified():
    rng = np.random.default_rng(1)
    tokens = np.round(rng.lognormal(sigma=1.2, size=(1, 75, 256)) * 1000)
    for rule, replicas in (("free", 512), ("even", 150)):
        problem = co.Problem(co.Loads(tokens), 64, replicas=replicas, slots=rule)
        certificate = co.certify(problem, co.solve(problem, "nominal").plan)
        co.verify(certificate)


# --- the command line -----------------------------------------------------------------------


@pytest.fixture
def files(problem, plan, tmp_path):
    np.savez(tmp_path / "loads.npz", counts=problem.loads.tokens, layer_ids=[3, 5, 8])
    plan.save(tmp_path / "plan.json")
    return str(tmp_path / "loads.npz"), str(tmp_path / "plan.json"), tmp_path / "certificate.json"


def run_command(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["craftopt", *map(str, arguments)])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed = capsys.readouterr()
    return stop.value.code or 0, printed.out, printed.err


def test_certify_and_verify_on_the_command_line(files, problem, plan, monkeypatch, capsys):
    loads, held, output = files
    arguments = ("certify", held, loads, "--replicas", 7, "--slots", "even", "-o", output)
    code, out, _ = run_command(monkeypatch, capsys, *arguments, "--json")
    certificate = co.certify(problem, plan)
    assert code == 0
    assert json.loads(out)["gap"] == certificate.gap
    assert json.loads(out)["layers"] == 3
    code, out, _ = run_command(monkeypatch, capsys, "verify", output, "--json")
    assert code == 0
    assert json.loads(out)["verified"] is True
    code, out, _ = run_command(monkeypatch, capsys, "verify", output)
    assert code == 0
    assert "verified: every claim holds" in out
    document = json.loads(output.read_text())
    document["gap"] = "0"
    output.write_text(json.dumps(document))
    code, _, err = run_command(monkeypatch, capsys, "verify", output)
    assert code == 2
    assert err.startswith("craftopt: the gap of the whole plan is stated as 0")
    assert len(err.splitlines()) == 1
