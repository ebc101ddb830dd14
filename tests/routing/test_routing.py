"""Routing: every rule is what it says, and the exact ones are optimal."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import copies_arrays

import craftopt as co
from craftopt import cli
from craftopt.routing import COUNT_DISPATCHES, DECODE_COST, check_witness

FIXED = ("even", "hash", "nearest")
ONE_COPY = ("metro", "exact")


@st.composite
def batches(draw, experts=(1, 7), gpus=(1, 6), layers=(1, 2), most=40):
    """Draw a plan, often with duplicates, and a batch of whole tokens with idle experts."""
    nodes = draw(st.integers(1, 2))
    shape = (
        draw(st.integers(*layers)),
        draw(st.integers(*experts)),
        nodes * draw(st.integers(gpus[0], max(gpus[0], gpus[1] // nodes))),
    )
    size = shape[0] * shape[1]
    counts = st.just(0) | st.integers(0, 3) | st.integers(0, most)
    tokens = draw(st.lists(counts, min_size=size, max_size=size))
    return (
        co.Plan(draw(copies_arrays(*shape)), nodes=nodes),
        np.array(tokens, dtype=float).reshape(shape[:2]),
    )


def random_case(seed, experts=(4, 40), gpus=(2, 12), most_copies=4, idle=0.3):
    """Make a plan without duplicates and a batch, one layer, in which some experts are idle."""
    rng = np.random.default_rng(seed)
    count, width = int(rng.integers(*experts)), int(rng.integers(*gpus))
    copies = np.zeros((1, count, width), dtype=np.uint8)
    for expert in range(count):
        hosts = min(width, int(rng.integers(1, most_copies + 1)))
        # Skewed, so that some GPUs host much more than others.
        weights = rng.dirichlet(np.full(width, 0.7)) + 1e-3
        chosen = rng.choice(width, hosts, replace=False, p=weights / weights.sum())
        copies[0, expert, chosen] = 1
    tokens = np.floor(rng.lognormal(2, 1, (1, count))) * (rng.random((1, count)) > idle)
    return co.Plan(copies), tokens


def eplb_plan(tokens, gpus, replicas):
    """Place by EPLB, as METRO does."""
    slots = tokens.shape[1] + replicas
    return co.Plan.from_phy2log(
        co.eplb.rebalance_experts(tokens, slots, 1, 1, gpus).phy2log, gpus, tokens.shape[1]
    )


def served_batch(layers=58, experts=256, gpus=64, per_gpu=32, topk=8, ratio=1.5, seed=0):
    """Make EPLB's plan for skewed experts, and a batch of tokens that choose by that skew."""
    rng = np.random.default_rng(seed)
    popular = rng.lognormal(sigma=1.0, size=(layers, experts))
    popular /= popular.sum(axis=1, keepdims=True)
    tokens = np.array([rng.multinomial(per_gpu * gpus * topk, row) for row in popular])
    return eplb_plan(popular * 1e6, gpus, round((ratio - 1) * experts)), tokens.astype(float)


def least_activated(plan, tokens):
    """Try every choice of one host for every active expert of the one layer."""
    hosts = [
        np.flatnonzero(plan.copies[0, expert]).tolist() for expert in np.flatnonzero(tokens[0])
    ]
    if not hosts:
        return 0
    return min(
        max(choice.count(gpu) for gpu in set(choice)) for choice in itertools.product(*hosts)
    )


def least_time(plan, tokens, cost):
    """Try every set of copies of the one layer; split tokens over it by the best split."""
    a, b, c, d = cost
    places = [np.flatnonzero(plan.copies[0, expert]).tolist() for expert in range(plan.experts)]
    subsets = [
        [some for size in range(1, len(on) + 1) for some in itertools.combinations(on, size)]
        if tokens[0, expert]
        else [tuple(on)]
        for expert, on in enumerate(places)
    ]
    best = math.inf
    for choice in itertools.product(*subsets):
        used = np.zeros(plan.copies.shape, dtype=int)
        for expert, some in enumerate(choice):
            used[0, expert, list(some)] = 1
        counts = used[0, tokens[0] > 0].sum(axis=0)
        split = co.route(co.Plan(used), tokens, "lp").max_tokens[0]
        best = min(best, max(a + b * counts.max(initial=0), c + d * split))
    return best


# --- every rule ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", COUNT_DISPATCHES)
@given(batches())
@settings(max_examples=60)
def test_all_tokens_are_served_by_copies_and_counted(rule, case):
    plan, tokens = case
    routing = co.route(plan, tokens, rule)
    dense = routing.tokens
    assert dense.shape == plan.copies.shape
    assert (dense >= 0).all()
    assert not dense[plan.copies == 0].any()
    np.testing.assert_allclose(dense.sum(axis=2), tokens, rtol=1e-9)
    np.testing.assert_allclose(routing.loads, dense.sum(axis=1), rtol=1e-9, atol=1e-9)
    assert np.array_equal(routing.max_activated, routing.activated.max(axis=1))
    assert np.array_equal(routing.max_tokens, routing.loads.max(axis=1))
    served = (dense > 0).sum(axis=1)
    if rule == "even":
        assert np.array_equal(routing.activated, (plan.copies * (dense > 0)).sum(axis=1))
    elif rule == "hash":  # duplicates may both be read
        assert (routing.activated >= served).all()
        assert (routing.activated <= (plan.copies * (dense > 0)).sum(axis=1)).all()
    else:
        assert np.array_equal(routing.activated, served)
    if rule in ONE_COPY:
        assert np.array_equal((dense > 0).sum(axis=2), tokens > 0)


@pytest.mark.parametrize("rule", COUNT_DISPATCHES)
def test_the_same_batch_is_routed_the_same_and_layer_by_layer(rule):
    plan, tokens = served_batch(layers=3, experts=32, gpus=8, per_gpu=100)
    routing = co.route(plan, tokens, rule)
    assert np.array_equal(routing.share, co.route(plan, tokens, rule).share)
    for layer in range(3):
        alone = co.route(co.Plan(plan.copies[[layer]]), tokens[[layer]], rule)
        assert np.array_equal(alone.tokens[0], routing.tokens[layer])


@pytest.mark.parametrize("rule", COUNT_DISPATCHES)
def test_evaluate_takes_each_window_as_a_batch(rule):
    plan, tokens = served_batch(layers=2, experts=16, gpus=4, per_gpu=20)
    windows = np.array([tokens, tokens[:, ::-1]])
    scored = co.evaluate(plan, co.Loads(windows), dispatch=rule)
    for window, batch in enumerate(windows):
        most = co.route(plan, batch, rule).max_tokens
        np.testing.assert_allclose(scored.max_load[window], most, rtol=1e-12)


@pytest.mark.parametrize("rule", COUNT_DISPATCHES)
def test_a_batch_without_tokens_activates_nothing(rule):
    routing = co.route(co.Plan(np.ones((2, 3, 2), dtype=int)), np.zeros((2, 3)), rule)
    assert not routing.activated.any()
    assert not routing.tokens.any()


def test_what_was_routed_cannot_be_changed_by_mistake():
    routing = co.route(co.Plan([[[1, 1]]]), [[4]], "exact")
    for array in (routing.share, routing.activated, routing.loads, routing.tokens):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 7


# --- fixed rules -----------------------------------------------------------------------------


def test_hash_spreads_tokens_as_a_fair_choice_would():
    """10,000 tokens on 3 copies, two of them on one GPU: binomial, with sd 47."""
    plan = co.Plan(np.array([[[1, 2]]]))
    shares = co.route(plan, [[10_000]], "hash").loads[0]
    assert abs(shares[0] - 10_000 / 3) < 5 * 47
    assert shares.sum() == 10_000
    assert np.array_equal(shares, np.round(shares))


def test_hash_takes_any_count():
    plan = co.Plan(np.ones((1, 2, 3), dtype=int))
    loads = co.route(plan, [[1e20, 2.5]], "hash").tokens[0]
    np.testing.assert_allclose(loads.sum(axis=1), [1e20, 2.5])
    np.testing.assert_allclose(loads[0], 1e20 / 3, rtol=0.03)


def test_nearest_prefers_the_gpu_then_the_node_then_takes_turns():
    # 6 GPUs in 3 nodes; copies on GPUs 1 and 2. From 0: 1 (node). 1, 2: own. 3: 2 (node).
    # Node 2 has none: GPU 4 takes the first copy, GPU 5 the second.
    plan = co.Plan(np.array([[[0, 1, 1, 0, 0, 0]]]), nodes=3)
    assert co.route(plan, [[6]], "nearest").loads.tolist() == [[0, 3, 3, 0, 0, 0]]


def test_nearest_overloads_the_first_copy_of_a_node():
    plan = co.Plan(np.array([[[1, 1, 0, 0]]]))
    assert co.route(plan, [[4]], "nearest").loads.tolist() == [[3, 1, 0, 0]]


# --- fewest activated copies -----------------------------------------------------------------


@given(batches())
def test_exact_equals_brute_force(case):
    plan, tokens = case
    routing = co.route(plan, tokens, "exact")
    for layer in range(plan.layers):
        alone = co.Plan(plan.copies[[layer]])
        assert routing.max_activated[layer] == least_activated(alone, tokens[[layer]])
    check_witness(routing, tokens)
    assert routing.optimal.all()


def test_exact_equals_brute_force_on_500_skewed_cases():
    for seed in range(500):
        plan, tokens = random_case(seed, experts=(1, 7), gpus=(2, 5), most_copies=3)
        routing = co.route(plan, tokens, "exact")
        assert routing.max_activated[0] == least_activated(plan, tokens), seed
        check_witness(routing, tokens)


def compare_with_max_flow(seeds):
    routing_models = pytest.importorskip("craftopt_formulations.routing")
    pytest.importorskip("networkx")
    pytest.importorskip("ortools")
    for seed in seeds:
        plan, tokens = random_case(seed)
        routing = co.route(plan, tokens, "exact")
        least = routing.max_activated[0]
        assert routing_models.fewest_activated_networkx(plan.copies[0], tokens[0]) == least
        assert routing_models.fewest_activated_ortools(plan.copies[0], tokens[0]) == least
        assert least <= co.route(plan, tokens, "metro").max_activated[0]
        check_witness(routing, tokens)


def test_exact_equals_maximum_flow():
    compare_with_max_flow(range(100))


@pytest.mark.slow
def test_exact_equals_maximum_flow_on_2000_cases():
    compare_with_max_flow(range(100, 2100))


@given(batches(experts=(1, 20), gpus=(1, 10)))
def test_metro_is_the_greedy_by_expert_id(case):
    plan, tokens = case
    routing = co.route(plan, tokens, "metro")
    for layer in range(plan.layers):
        counts = [0] * plan.gpus
        for expert in np.flatnonzero(tokens[layer]):
            hosts = np.flatnonzero(plan.copies[layer, expert]).tolist()
            counts[min(hosts, key=lambda gpu: (counts[gpu], gpu))] += 1
        assert routing.activated[layer].tolist() == counts
    exact = co.route(plan, tokens, "exact")
    assert (exact.max_activated <= routing.max_activated).all()
    assert (routing.max_activated[routing.optimal] == exact.max_activated[routing.optimal]).all()


def test_a_path_of_shifts_is_found():
    """Experts 0-3 have homes; 4 must push 5, and that 6, to the idle GPU."""
    plan = co.Plan.from_phy2log([[0, 4, 1, -1, 4, 5, 2, -1, 5, 6, 3, -1, 6, -1, -1, -1]], 4, 7)
    routing = co.route(plan, np.ones((1, 7)), "exact")
    assert routing.max_activated[0] == 2


@given(batches(), st.data())
def test_a_wrong_witness_or_choice_is_refused(case, data):
    plan, tokens = case
    routing = co.route(plan, tokens, "exact")
    layer = int(routing.max_activated.argmax())
    most = int(routing.max_activated[layer])
    if most < 2:
        return
    some = np.array(
        data.draw(st.lists(st.booleans(), min_size=plan.gpus, max_size=plan.gpus)), dtype=bool
    )
    inside = sum(
        bool(tokens[layer, expert]) and not plan.copies[layer, expert, ~some].any()
        for expert in range(plan.experts)
    )
    witness = routing.witness.copy()
    witness[layer] = some
    claim = co.Routing(
        plan, "exact", routing.share, routing.activated, routing.loads, witness=witness
    )
    if inside > (most - 1) * some.sum():
        check_witness(claim, tokens)
    else:
        with pytest.raises(co.CraftoptError, match="not too many"):
            check_witness(claim, tokens)
    fewer = routing.activated.copy()
    fewer[layer, routing.activated[layer].argmax()] -= 1
    claim = co.Routing(plan, "exact", routing.share, fewer, routing.loads, witness=routing.witness)
    with pytest.raises(co.CraftoptError, match="other copies are activated"):
        check_witness(claim, tokens)


def test_a_routing_of_another_batch_is_refused():
    plan = co.Plan(np.ones((1, 2, 2), dtype=int))
    routing = co.route(plan, [[3, 0]], "exact")
    with pytest.raises(co.CraftoptError, match="expert 1 is not served"):
        check_witness(routing, [[3, 1]])
    with pytest.raises(co.CraftoptError, match="with other tokens"):
        check_witness(routing, [[4, 0]])
    with pytest.raises(co.CraftoptError, match="no witness"):
        check_witness(co.route(plan, [[3, 0]], "metro"), [[3, 0]])


# --- fewest tokens ---------------------------------------------------------------------------


@given(batches(experts=(1, 10)))
@settings(max_examples=100)
def test_lp_equals_the_parametric_flow_and_its_own_bound(case):
    models = pytest.importorskip("craftopt_formulations.routing")
    pytest.importorskip("networkx")
    plan, tokens = case
    routing = co.route(plan, tokens, "lp")
    assert routing.optimal.all()
    for layer in range(plan.layers):
        least = models.fewest_tokens_parametric(plan.copies[layer], tokens[layer])
        assert isinstance(least, Fraction)
        assert routing.max_tokens[layer] == pytest.approx(float(least), rel=1e-9)


@given(batches(experts=(1, 16), gpus=(1, 10)))
@settings(max_examples=50)
def test_lp_equals_glop(case):
    models = pytest.importorskip("craftopt_formulations.routing")
    pytest.importorskip("ortools")
    plan, tokens = case
    routing = co.route(plan, tokens, "lp")
    for layer in range(plan.layers):
        least = models.fewest_tokens_lp(plan.copies[layer], tokens[layer])
        assert routing.max_tokens[layer] == pytest.approx(least, rel=1e-6, abs=1e-9)


# --- both ------------------------------------------------------------------------------------

costs = st.tuples(*[st.sampled_from([0.0, 1.0, 7.5, 40.0, 1e-25]) for _ in range(4)])


def time_of(routing, cost):
    a, b, c, d = cost
    return np.maximum(a + b * routing.max_activated, c + d * routing.max_tokens)


@given(batches(experts=(1, 10), gpus=(1, 8)), costs)
def test_mixed_lies_between_its_bound_and_the_other_rules(case, cost):
    plan, tokens = case
    routing = co.route(plan, tokens, "mixed", cost=cost)
    np.testing.assert_allclose(routing.value, time_of(routing, cost), rtol=1e-9)
    assert (routing.value >= routing.bound * (1 - 1e-9)).all()
    for rule in (*ONE_COPY, "lp"):
        other = time_of(co.route(plan, tokens, rule), cost)
        assert (routing.value <= other * (1 + 1e-9)).all()


@given(batches(experts=(1, 4), gpus=(2, 3), layers=(1, 1)), costs)
@settings(max_examples=60)
def test_mixed_is_close_to_brute_force_on_tiny_cases(case, cost):
    plan, tokens = case
    routing = co.route(plan, tokens, "mixed", cost=cost)
    least = least_time(plan, tokens, cost)
    assert routing.value[0] >= least * (1 - 1e-9)
    assert routing.bound[0] <= least * (1 + 1e-9)
    assert routing.value[0] <= least * 1.15 + 1e-9  # a search: on 60 cases it may miss some


def knee_case(seed):
    """Make a case where reading and computing take about as long, from 32 to 128 experts."""
    rng = np.random.default_rng(seed)
    shapes = [(64, 8, 1.25), (64, 8, 1.5), (128, 8, 1.25), (128, 16, 1.5), (32, 8, 1.5)]
    experts, gpus, ratio = shapes[seed % 5]
    per_expert = rng.integers(60, 240)
    popular = rng.lognormal(sigma=rng.choice([0.5, 1.0, 1.5]), size=experts)
    expected = popular * rng.lognormal(sigma=0.4, size=experts)  # planned for other traffic
    plan = eplb_plan(expected[np.newaxis] * 1e3, gpus, round((ratio - 1) * experts))
    tokens = rng.multinomial(per_expert * experts, popular / popular.sum())
    return plan, tokens[np.newaxis].astype(float)


def distances_to_cp_sat(seeds):
    """Return value / bound - 1, where the bound is CP-SAT's, which also may split tokens."""
    models = pytest.importorskip("craftopt_formulations.routing")
    pytest.importorskip("ortools")
    found = []
    for seed in seeds:
        plan, tokens = knee_case(seed)
        routing = co.route(plan, tokens, "mixed")
        exact = models.least_time_milp(
            plan.copies[0], tokens[0], DECODE_COST, start=routing.tokens[0], work_limit=4.0
        )
        relaxed = models.least_time_lp(plan.copies[0], tokens[0], DECODE_COST)
        assert relaxed <= routing.value[0] * (1 + 1e-6)
        assert relaxed <= exact.value * (1 + 1e-6)
        found.append(routing.value[0] / exact.bound - 1)
    return np.array(found)


def test_mixed_is_within_half_a_percent_of_cp_sat_on_average():
    assert distances_to_cp_sat(range(30)).mean() < 0.005


@pytest.mark.slow
def test_mixed_is_within_half_a_percent_of_cp_sat_on_200_cases():
    assert distances_to_cp_sat(range(200)).mean() < 0.005


def test_the_old_names_of_dispatch_still_work_and_say_the_new_ones():
    plan = co.Plan.from_phy2log([[0, 1, 0, 2]], gpus=2)
    with pytest.warns(DeprecationWarning, match="use dispatch="):
        routing = co.route(plan, [[6, 2, 4]], rule="LP")
    with pytest.warns(DeprecationWarning, match="use Routing.dispatch"):
        assert routing.rule == routing.dispatch == "lp"


# --- what cannot be routed -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ([[1, 2]], {"dispatch": "fair"}, "dispatch='fair' is unknown; pass one of even, hash"),
        ([1, 2], {}, r"tokens has shape \(2,\)"),
        ([[1, 2, 3]], {}, r"\[layers, experts\] = \(1, 2\)"),
        ([["1", "2"]], {}, "type <U1"),
        ([[1, -2]], {}, r"tokens\[0, 1\] is -2.0"),
        ([[1, math.nan]], {}, r"tokens\[0, 1\] is nan"),
        ([[math.inf, 1]], {}, r"tokens\[0, 0\] is inf"),
        ([[1, 2]], {"dispatch": "mixed", "cost": (0, 1, -1, 0)}, "four finite numbers"),
        ([[1, 2]], {"dispatch": "mixed", "cost": (0, 1, 0)}, "four finite numbers"),
    ],
)
def test_refuses_what_it_cannot_route(tokens, options, message):
    with pytest.raises(co.InputError, match=message):
        co.route(co.Plan([[[1, 0], [1, 1]]]), tokens, **options)


# --- the command line ------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Write a plan, loads and a token trace of the same model."""
    rng = np.random.default_rng(0)
    ids = np.array([[rng.permutation(16)[:4] for _ in range(2)] for _ in range(100)])
    np.savez(tmp_path / "trace.npz", topk_ids=ids)
    loads = co.Trace(ids, 16).batches(50)
    np.savez(tmp_path / "loads.npz", counts=loads.tokens)
    eplb_plan(loads.total().tokens[0], 4, 8).save(tmp_path / "plan.json")
    return tmp_path


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["craftopt", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0, *capsys.readouterr()


def test_the_command_routes_a_trace_in_batches(files, monkeypatch, capsys):
    code, out, err = run(
        monkeypatch, capsys, "route", files / "plan.json", files / "trace.npz", "--batch", 30,
        "--order", "recorded", "--dispatch", "exact,even", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["batches"] == 3  # the last ten tokens are no batch
    plan = co.read_plan(files / "plan.json")
    windows = co.read_trace(files / "trace.npz").batches(30).select([0, 1, 2])
    for rule in ("exact", "even"):
        routings = [co.route(plan, window, rule) for window in windows.tokens]
        figures = found["rules"][rule]
        for key in ("max_activated", "max_tokens"):
            expected = np.mean([getattr(routing, key) for routing in routings], axis=0)
            np.testing.assert_allclose(figures[key], expected)
        assert min(figures["microseconds"]) > 0


def test_the_command_takes_windows_of_loads_as_batches(files, monkeypatch, capsys):
    code, out, _ = run(
        monkeypatch, capsys, "route", files / "plan.json", files / "loads.npz", "--dispatch", "all"
    )
    assert code == 0
    assert "2 batches of 200 token assignments" in out
    assert all(rule in out.replace("\n", "") for rule in ("even", "metro", "exact", "lp"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan.json", "loads.npz", "--dispatch", "fair"], "dispatch='fair' is unknown"),
        (["plan.json", "loads.npz", "--batch", "10"], "loads, not a token trace"),
        (["-", "-"], "stdin can be the plan or the loads"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(files, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(files)
    code, _, err = run(monkeypatch, capsys, "route", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
