"""Certificates of traffic: true for every plan, and what is false in them is not verified."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
from typer.testing import CliRunner

import craftopt as co
from craftopt.cli import app


def tiny_trace(rng, experts, layers=1):
    """Draw a trace of tokens that hang together, some with fewer choices than others."""
    tokens = int(rng.integers(8, 20))
    tastes = np.einsum(
        "tj,lje->tle", rng.normal(size=(tokens, 2)), rng.normal(size=(layers, 2, experts))
    )
    scores = tastes + rng.gumbel(size=(tokens, layers, experts))
    ids = np.argsort(scores, axis=2)[:, :, -int(rng.integers(2, 4)) :]
    if rng.random() < 0.3:
        ids[..., 0][rng.random(ids.shape[:2]) < 0.3] = -1
    return co.Trace(ids, experts)


def tiny_problem(rng, experts=4, layers=1):
    gpus, nodes = ((2, 2), (4, 2))[int(rng.integers(2))]
    trace = tiny_trace(rng, experts, layers)
    return co.Problem(
        trace.batches(int(rng.integers(4, 9))),
        gpus,
        nodes=nodes,
        replicas=int(rng.integers(0, 3)),
        slots="even",
        coactivation=trace,
        traffic=float(rng.choice([0.0, 0.25, 1.0, 1 / 3])),
    )


def every_plan(problem):
    """List all plans of one layer that keep the rules."""
    experts, gpus = problem.loads.experts, problem.gpus
    hosts = [s for n in range(1, gpus + 1) for s in combinations(range(gpus), n)]
    for chosen in product(hosts, repeat=experts):
        copies = np.zeros((1, experts, gpus), dtype=np.uint8)
        for expert, of_expert in enumerate(chosen):
            copies[0, expert, list(of_expert)] = 1
        slots = copies.sum(axis=(0, 1))
        if copies.sum() <= experts + problem.replicas and np.ptp(slots) <= 1:
            yield problem.plan(copies, "listed")


def figures(plan, problem):
    """Score a plan: nodes per token, critical nodes, and the objective."""
    scored = co.evaluate(plan, problem.loads, trace=problem.coactivation)
    traffic = scored.traffic
    objective = scored.relative_time + problem.traffic_price * traffic.critical_nodes
    return traffic.nodes_per_token, traffic.critical_nodes, objective


def check_bounds(instances, seed):
    rng = np.random.default_rng(seed)
    for _ in range(instances):
        problem = tiny_problem(rng)
        plan = co.solve(problem, "fast", work_limit=20).plan
        certificate = co.certify(problem, plan)
        co.verify(certificate)
        nodes, critical, objective = figures(plan, problem)
        traffic = certificate.traffic
        assert traffic.nodes_per_token == pytest.approx(nodes, rel=1e-12)
        assert traffic.critical_nodes == pytest.approx(critical, rel=1e-12)
        assert certificate.value == pytest.approx(objective, rel=1e-12)
        replicas = plan.replicas
        for other in every_plan(problem):
            nodes, _, objective = figures(other, problem)
            assert traffic.bound <= nodes + 1e-9
            assert certificate.bound <= objective + 1e-9
            if other.replicas == replicas:
                assert traffic.layers[0].bound <= nodes + 1e-9


@pytest.mark.filterwarnings("ignore::craftopt.CraftoptWarning")
def test_no_plan_is_better_than_the_certified_bounds():
    check_bounds(3, seed=1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::craftopt.CraftoptWarning")
def test_no_plan_is_better_than_the_certified_bounds_on_a_hundred_problems():
    check_bounds(100, seed=2)


# --- false certificates -----------------------------------------------------------------------


def is_verified(document):
    try:
        co.verify(co.Certificate(document))
    except co.CraftoptError:
        return False
    return True


def certificates(seed, count):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        problem = tiny_problem(rng, experts=6, layers=2)
        plan = co.solve(problem, "fast", work_limit=20).plan
        yield json.loads(co.certify(problem, plan).to_json())


def worse(value, rng):
    """Change a stated number so that more is claimed than is proven, or another value."""
    return str(Fraction(value) * (1 + Fraction(1, 10 ** int(rng.integers(1, 9)))))


def falsify(document, rng):
    """State something false of traffic: figures with the gaps that belong to them, or tokens."""
    false = json.loads(json.dumps(document))
    traffic, layers = false["traffic"], false["traffic_layers"]
    kind = rng.choice(["value", "critical_nodes", "bound", "layer", "token", "window", "price"])
    if kind in ("value", "critical_nodes"):
        traffic[kind] = worse(traffic[kind], rng)
    elif kind in ("bound", "layer"):
        entry = traffic if kind == "bound" else layers[int(rng.integers(len(layers)))]
        entry["bound"] = worse(entry["bound"], rng)
        traffic["gap"] = str(Fraction(traffic["value"]) / Fraction(traffic["bound"]) - 1)
    elif kind == "token":  # the loads are those of the tokens
        token = false["tokens"][int(rng.integers(len(false["tokens"])))]
        row = token[int(rng.integers(len(token)))]
        row[int(rng.integers(len(row)))] = int(rng.integers(-2, 7))
    elif kind == "window":
        false["token_windows"][int(rng.integers(len(false["token_windows"])))] += 1
    else:
        traffic["price"] = worse(traffic["price"], rng) if traffic["price"] != "0" else "1"
    for entry in (false, traffic, *layers):
        entry["gap"] = str(Fraction(entry["value"]) / Fraction(entry["bound"]) - 1)
    return false


def check_rejections(wanted, seed):
    rng = np.random.default_rng(seed)
    rejected = 0
    for document in certificates(seed, 1 + wanted // 20):
        assert is_verified(document)
        for _ in range(20):
            false = falsify(document, rng)
            same = [sorted(map(sorted, of)) for of in (document["tokens"], false["tokens"])]
            if false["tokens"] != document["tokens"] and same[0] == same[1]:
                continue  # the same choices in another order
            if false == document:
                continue
            assert not is_verified(false)
            rejected += 1
    return rejected


@pytest.mark.filterwarnings("ignore::craftopt.CraftoptWarning")
def test_false_claims_about_traffic_are_rejected():
    assert check_rejections(40, seed=3) >= 36


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::craftopt.CraftoptWarning")
def test_a_thousand_false_claims_about_traffic_are_rejected():
    assert check_rejections(1_200, seed=4) >= 1_000


@pytest.mark.filterwarnings("ignore::craftopt.CraftoptWarning")
def test_damaged_certificates_of_traffic_are_refused(tmp_path):
    (document,) = certificates(5, 1)
    file = tmp_path / "damaged.json"
    keys = ("traffic", "traffic_layers", "tokens", "token_windows", "traffic_allocation")
    for key, damage in product(keys, (None, [], [[]], 3, "x", [{"layer_id": 0}])):
        if damage == document[key] or (key, damage) == ("traffic", None):
            continue
        file.write_text(json.dumps(document | {key: damage}))
        with pytest.raises(co.VerificationError):
            co.verify(file)


# --- the surface ------------------------------------------------------------------------------


@pytest.fixture
def traced():
    ids = [[[0, 1]], [[0, 1]], [[2, 3]], [[1, 2]]] * 600
    trace = co.Trace(ids, experts=4)
    problem = co.Problem(
        trace.batches(400), 4, nodes=2, slots="uniform", coactivation=trace, traffic=0.5
    )
    return problem, trace


def test_a_traced_problem_is_certified_in_time_and_traffic(traced, tmp_path):
    problem, _ = traced
    result = co.solve(problem, "fast")
    done = []
    certificate = co.certify(problem, result.plan, progress=done.append)
    assert done == [0.5, 1.0]
    assert certificate.value == pytest.approx(result.objective)
    # Experts 0 and 1 together, 2 and 3: a quarter of the tokens visits both nodes.
    assert certificate.traffic.nodes_per_token == certificate.traffic.bound == 1.25
    assert certificate.traffic.layers[0].kind == "columns"
    assert certificate.bound >= result.bound
    assert "nodes per token" in str(certificate)
    certificate.save(tmp_path / "certificate.json")
    co.verify(tmp_path / "certificate.json")
    again = co.Certificate.load(tmp_path / "certificate.json")
    assert again.to_dict() == certificate.to_dict()


def test_tokens_alone_certify_nodes_beside_balance(traced):
    problem, trace = traced
    plain = problem.replace(traffic=None, coactivation=None)
    plan = co.solve(plain, "fast").plan
    assert co.certify(plain, plan).traffic is None
    certificate = co.certify(plain, plan, trace=trace)
    co.verify(certificate)
    assert certificate.value == co.certify(plain, plan).value
    assert certificate.traffic.price == 0


def test_what_cannot_be_certified_is_refused(traced):
    problem, trace = traced
    plan = co.solve(problem, "fast").plan
    pairs = problem.replace(coactivation=trace.coactivation())
    with pytest.raises(co.InputError, match="pair counts"):
        co.certify(pairs, plan)
    assert co.certify(pairs, plan, trace=trace).traffic.price == 0.5
    with pytest.raises(co.InputError, match="layers"):
        co.certify(problem, plan, trace=co.Trace([[[0], [1]]], experts=4))


def test_no_layer_is_held_apart_where_slots_are_free(traced):
    _, trace = traced
    trace = co.Trace(np.concatenate([trace.topk_ids] * 2, axis=1), experts=4)
    free = co.Problem(trace.batches(400), 4, nodes=2, coactivation=trace, traffic=0.5)
    certificate = co.certify(free, co.solve(free, "fast").plan)
    co.verify(certificate)
    assert certificate.traffic.bound == 1


@pytest.mark.filterwarnings("ignore:.*holds the same tokens")  # of four rows, over and over
def test_the_command_line_certifies_traffic(traced, tmp_path):
    problem, trace = traced
    np.savez(tmp_path / "trace.npz", topk_ids=trace.topk_ids)
    co.solve(problem, "fast").plan.save(tmp_path / "plan.json")
    files = [str(tmp_path / name) for name in ("plan.json", "trace.npz", "out.json")]
    run = CliRunner().invoke(
        app,
        f"certify {files[0]} {files[1]} --batch 400 --as trace --trace {files[1]} "
        f"--traffic 0.5 -o {files[2]} --json",
    )
    assert run.exit_code == 0, run.output
    told = json.loads(run.stdout)
    assert told["traffic"]["bound"] == 1.25
    run = CliRunner().invoke(app, ["verify", files[2]])
    assert run.exit_code == 0
    assert "nodes per token" in run.stdout
