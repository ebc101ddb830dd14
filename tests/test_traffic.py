"""What GPUs send: closed forms equal every draw enumerated, set covers are smallest."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import copies_arrays, quiet, token_arrays, token_ids

import craftopt as co
from craftopt.evaluation import gpu_loads

DRAWN = ("even", "nearest", "nearest-even")
FIGURES = ("nodes", "remote", "busiest_node", "gpus", "busiest_gpu")


@st.composite
def served(draw, most_experts=5, most_k=3):
    """Draw a plan on some nodes, often with duplicates, and a trace with missing choices."""
    nodes = draw(st.integers(1, 3))
    gpus = nodes * draw(st.integers(1, 2))
    layers, experts = draw(st.integers(1, 2)), draw(st.integers(1, most_experts))
    tokens, k = draw(st.integers(1, 5)), draw(st.integers(1, most_k))
    plan = co.Plan(draw(copies_arrays(layers, experts, gpus)), nodes=nodes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = token_ids(rng, (tokens, layers, k), experts)
    ids[0, :, 0] = 0  # one choice at least
    ids[0, :, 1:][ids[0, :, 1:] == 0] = -1
    homes = rng.integers(0, gpus, tokens) if draw(st.booleans()) else None
    return plan, co.Trace(ids, experts), homes


def places(plan, layer, expert, rule, source):
    """List the GPUs of the copies that serve a source, one entry per copy."""
    node = lambda gpu: gpu // (plan.gpus // plan.nodes)  # noqa: E731
    copies = [g for g in range(plan.gpus) for _ in range(plan.copies[layer, expert, g])]
    own = [g for g in copies if g == source]
    near = [g for g in copies if node(g) == node(source)]
    if rule == "even":
        return copies
    if own:
        return own
    if near:
        return near[:1] if rule == "nearest" else near
    return copies


def covers(plan, layer, experts, home):
    """List all smallest sets of nodes that host the experts, those with home if there are any."""
    hosting = [
        set(np.flatnonzero(plan.copies[layer, e].reshape(plan.nodes, -1).any(axis=1)))
        for e in experts
    ]
    for size in range(1, plan.nodes + 1):
        found = [
            set(some)
            for some in itertools.combinations(range(plan.nodes), size)
            if all(hosts & set(some) for hosts in hosting)
        ]
        if found:
            return [some for some in found if home in some] or found
    raise AssertionError("some expert has no host")


def enumerated(plan, trace, homes, rule, size):
    """Compute the figures of `Traffic` by trying every draw of every token from every source."""
    windows, width = -(-trace.tokens // size), plan.gpus // plan.nodes
    shape = (windows, plan.layers)
    tokens, nodes, remote, gpus = np.zeros((4, *shape))
    by_node, by_gpu = np.zeros((*shape, plan.nodes)), np.zeros((*shape, plan.gpus))
    loads = np.zeros((*shape, plan.gpus))
    for t, layer in itertools.product(range(trace.tokens), range(plan.layers)):
        cell = (t // size, layer)
        experts = [int(e) for e in trace.topk_ids[t, layer] if e >= 0]
        tokens[cell] += bool(experts)
        sources = range(plan.gpus) if homes is None else [homes[t]]
        for source in sources if experts else ():
            options = [places(plan, layer, e, rule, source) for e in experts]
            weight = 1 / len(sources) / math.prod(map(len, options))
            for drawn in itertools.product(*options):
                visited = {g // width for g in drawn}
                nodes[cell] += weight * len(visited)
                remote[cell] += weight * len(visited - {source // width})
                gpus[cell] += weight * len(set(drawn))
                by_node[cell][list(visited)] += weight
                by_gpu[cell][list(set(drawn))] += weight
                for g in drawn:
                    loads[cell][g] += weight
    each = np.maximum(tokens, 1)
    figures = {
        "nodes": nodes / each,
        "remote": remote / each,
        "busiest_node": plan.nodes * by_node.max(axis=2) / each,
        "gpus": gpus / each,
        "busiest_gpu": plan.gpus * by_gpu.max(axis=2) / each,
    }
    return tokens, figures, loads


# --- closed forms -----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", DRAWN)
@given(served(), st.integers(1, 5))
@settings(max_examples=60)
def test_closed_forms_equal_every_draw_enumerated(rule, case, size):
    plan, trace, homes = case
    scored = co.evaluate(plan, trace.batches(size), rule, trace=trace, homes=homes)
    tokens, figures, _ = enumerated(plan, trace, homes, rule, size)
    assert np.array_equal(scored.traffic.tokens, tokens)
    for name, expected in figures.items():
        np.testing.assert_allclose(getattr(scored.traffic, name), expected, atol=1e-12)


@given(served())
@settings(max_examples=60)
def test_nearest_even_loads_equal_every_draw_enumerated(case):
    plan, trace, _ = case
    loads = trace.batches(2)
    expected = enumerated(plan, trace, None, "nearest-even", 2)[2]
    np.testing.assert_allclose(gpu_loads(plan, loads, "nearest-even"), expected, atol=1e-12)
    np.testing.assert_allclose(
        co.evaluate(plan, loads, "nearest-even").max_load, expected.max(axis=2), atol=1e-12
    )


@given(st.data())
def test_nearest_even_is_scored_window_by_window_as_it_routes(data):
    tokens = data.draw(token_arrays(experts=(1, 6)))
    nodes = data.draw(st.integers(1, 3))
    gpus = nodes * data.draw(st.integers(1, 3))
    plan = co.Plan(data.draw(copies_arrays(*tokens.shape[1:], gpus)), nodes=nodes)
    scored = co.evaluate(plan, co.Loads(tokens), "nearest-even")
    for window, batch in enumerate(tokens):
        routing = co.route(plan, batch, "nearest-even")
        most = np.maximum(routing.max_tokens, batch.sum(axis=1) / gpus)
        np.testing.assert_allclose(scored.max_load[window], most, rtol=1e-12)
        assert np.array_equal(scored.max_activated[window], routing.max_activated)


def test_nearest_even_prefers_the_gpu_then_shares_the_node_then_all():
    # 6 GPUs in 3 nodes; copies on 0, 1 and 2. From 0, 1, 2: own. 3: 2 (node). 4, 5: all alike.
    plan = co.Plan([[[1, 1, 1, 0, 0, 0]]], nodes=3)
    assert co.route(plan, [[18]], "nearest-even").loads.tolist() == [[5, 5, 8, 0, 0, 0]]
    # In one node, where `nearest` sends everything to the first copy, the others take turns.
    plan = co.Plan([[[1, 1, 0, 0]]])
    assert co.route(plan, [[4]], "nearest-even").loads.tolist() == [[2, 2, 0, 0]]


@pytest.mark.parametrize("rule", DRAWN)
def test_closed_forms_agree_with_a_simulation(rule):
    """10,000 tokens of 6 experts, drawn once: within four standard errors."""
    rng = np.random.default_rng(5)
    copies = (rng.random((1, 24, 8)) < 0.15).astype(int)
    copies[0, np.arange(24), rng.integers(0, 8, 24)] = 1
    plan = co.Plan(copies, nodes=4)
    ids = np.argsort(rng.gumbel(size=(10_000, 24)) + rng.normal(0, 1, 24), axis=1)[:, :6]
    drawn = []
    for chosen in ids:
        source = int(rng.integers(8))
        gpus = {rng.choice(places(plan, 0, e, rule, source)) for e in chosen}
        nodes = {g // 2 for g in gpus}
        drawn.append((len(nodes), len(nodes - {source // 2}), len(gpus)))
    trace = co.Trace(ids[:, np.newaxis], 24)
    traffic = co.evaluate(plan, trace.batches(10_000), rule, trace=trace).traffic
    closed = (traffic.nodes_per_token, traffic.remote_nodes, traffic.gpus_per_token)
    error = np.std(drawn, axis=0) / 100
    assert (np.abs(np.mean(drawn, axis=0) - closed) < 4 * error).all()


# --- cover ------------------------------------------------------------------------------------


@given(served(most_experts=6, most_k=4))
@settings(max_examples=100)
def test_cover_visits_the_fewest_nodes_and_the_fewest_remote_ones(case):
    plan, trace, homes = case
    traffic = co.evaluate(plan, trace.batches(2), "cover", trace=trace, homes=homes).traffic
    nodes, remote = np.zeros((2, *traffic.nodes.shape))
    for t, layer in itertools.product(range(trace.tokens), range(plan.layers)):
        experts = [int(e) for e in trace.topk_ids[t, layer] if e >= 0]
        width = plan.gpus // plan.nodes
        sources = range(plan.nodes) if homes is None else [homes[t] // width]
        for home in sources if experts else ():
            nodes[t // 2, layer] += len(covers(plan, layer, experts, home)[0]) / len(sources)
            # Fewest remote nodes of all sets that serve, not only of the smallest.
            needed = [
                e for e in experts if not plan.copies[layer, e].reshape(plan.nodes, -1)[home].any()
            ]
            fewest = len(covers(plan, layer, needed, home)[0]) if needed else 0
            remote[t // 2, layer] += fewest / len(sources)
    each = np.maximum(traffic.tokens, 1)
    np.testing.assert_allclose(traffic.nodes, nodes / each, atol=1e-12)
    np.testing.assert_allclose(traffic.remote, remote / each, atol=1e-12)


@given(served(most_experts=6))
def test_cover_serves_every_choice_by_a_host(case):
    plan, trace, _ = case
    routing = co.route(plan, trace, "cover")
    counts = trace.batches(trace.tokens)
    np.testing.assert_allclose(routing.tokens.sum(axis=2), counts.tokens[0], atol=1e-9)
    assert not routing.tokens[plan.copies == 0].any()
    np.testing.assert_allclose(routing.tokens.sum(axis=1), routing.loads, atol=1e-9)
    assert np.array_equal(routing.activated, (routing.tokens > 0).sum(axis=1))
    scored = co.evaluate(plan, counts, "cover", trace=trace)
    np.testing.assert_allclose(scored.max_load[0], routing.max_tokens, rtol=1e-9)


def test_cover_chooses_the_one_node_that_hosts_all():
    # Experts 0 and 1 are together on node 1 alone; even dispatch often takes both nodes.
    plan = co.Plan([[[1, 0, 1, 0], [0, 0, 0, 1]]], nodes=2)
    trace = co.Trace([[[0, 1]]])
    loads = trace.batches(1)
    assert co.evaluate(plan, loads, "even", trace=trace).traffic.nodes_per_token == 1.5
    covered = co.evaluate(plan, loads, "cover", trace=trace)
    assert covered.traffic.nodes_per_token == 1
    assert covered.traffic.remote_nodes == 0.5
    assert covered.traffic.node_matrix.tolist() == [[0, 1], [0, 1]]
    assert covered.max_load.tolist() == [[1]]


def test_cover_works_on_many_nodes():
    plan = co.Plan(np.eye(62, dtype=int)[np.newaxis], nodes=62)
    trace = co.Trace([[[0, 61, 30]]], 62)
    traffic = co.evaluate(plan, trace.batches(1), "cover", trace=trace).traffic
    assert traffic.nodes_per_token == pytest.approx(3)
    plan = co.Plan(np.eye(63, dtype=int)[np.newaxis], nodes=63)
    with pytest.raises(co.InputError, match="63 nodes; cover handles at most 62"):
        co.route(plan, co.Trace([[[0]]], 63), "cover")


def test_rules_that_ask_for_tokens_refuse_counts():
    plan = co.Plan([[[1, 1]]])
    with pytest.raises(co.InputError, match="pass a Trace"):
        co.route(plan, [[4]], "cover")
    with pytest.raises(co.InputError, match="pass trace="):
        co.evaluate(plan, co.Loads([[4]]), "cover")
    assert co.route(plan, co.Trace([[[0]]] * 4), "even").loads.tolist() == [[2, 2]]


# --- what always holds ------------------------------------------------------------------------


@given(served(most_experts=6), st.integers(1, 5))
@settings(max_examples=100)
def test_rules_are_ordered_and_figures_keep_their_ranges(case, size):
    plan, trace, homes = case
    found = {
        rule: co.evaluate(plan, trace.batches(size), rule, trace=trace, homes=homes).traffic
        for rule in (*DRAWN, "cover")
    }
    slack = 1e-9
    assert (found["even"].remote >= found["nearest"].remote - slack).all()
    np.testing.assert_allclose(found["nearest"].nodes, found["nearest-even"].nodes, atol=slack)
    assert (found["nearest"].remote >= found["cover"].remote - slack).all()
    k = trace.topk_ids.shape[2]
    for traffic in found.values():
        assert (found["cover"].nodes <= traffic.nodes + slack).all()
        assert (traffic.nodes <= min(k, plan.nodes) + slack).all()
        assert (traffic.remote <= traffic.nodes + slack).all()
        assert (traffic.nodes <= traffic.gpus + slack).all()
        assert (traffic.nodes <= traffic.busiest_node + slack).all()
        assert (traffic.gpus <= traffic.busiest_gpu + slack).all()
        assert (traffic.busiest_node <= plan.nodes + slack).all()
        assert traffic.nodes_per_token <= traffic.critical_nodes + slack
        assert not traffic.estimated
        if homes is None:
            assert traffic.node_matrix.sum() / plan.nodes == pytest.approx(traffic.nodes_per_token)
            own = np.trace(traffic.node_matrix) / plan.nodes
            assert traffic.remote_nodes == pytest.approx(traffic.nodes_per_token - own, abs=slack)
    if homes is None:
        even = found["even"]
        assert even.remote_nodes == pytest.approx((1 - 1 / plan.nodes) * even.nodes_per_token)


def test_one_copy_everywhere_sends_nothing_to_the_nearest():
    plan = co.Plan(np.ones((1, 3, 4), dtype=int), nodes=2)
    trace = co.Trace([[[0, 1]], [[1, 2]]])
    for rule in ("nearest", "nearest-even", "cover"):
        traffic = co.evaluate(plan, trace.batches(2), rule, trace=trace).traffic
        assert (traffic.nodes_per_token, traffic.remote_nodes) == (1, 0)
        assert traffic.node_matrix.tolist() == [[1, 0], [0, 1]]


def test_known_homes_make_a_matrix_by_home():
    plan = co.Plan([[[1, 0], [0, 1]]], nodes=2)
    trace = co.Trace([[[0]], [[0]], [[1]]])
    traffic = co.evaluate(plan, trace.batches(3), trace=trace, homes=[0, 1, 1]).traffic
    assert traffic.node_matrix.tolist() == [[1, 0], [0.5, 0.5]]
    assert traffic.remote_nodes == pytest.approx(1 / 3)


def test_tokens_without_experts_in_a_layer_are_not_counted():
    plan = co.Plan([[[1, 0], [0, 1]]], nodes=2)
    trace = co.Trace([[[0, 1]], [[-1, -1]]])
    traffic = co.evaluate(plan, trace.batches(2), trace=trace).traffic
    assert traffic.tokens.tolist() == [[1]]
    assert traffic.nodes_per_token == 2


def test_figures_cannot_be_changed():
    traffic = co.evaluate(co.Plan([[[1]]]), co.Loads([[1]]), trace=co.Trace([[[0]]])).traffic
    for name in (*FIGURES, "tokens", "node_matrix"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(traffic, name)[0] = 7


# --- windows ----------------------------------------------------------------------------------


def narrow():
    """Make a trace of two domains, each with experts of its own, on two nodes."""
    ids = [[[0, 1]]] * 4 + [[[2, 3]]] * 4
    trace = co.Trace(
        ids, domain=[0] * 4 + [1] * 4, domain_names=["chat", "code"], sequence=[0, 0, 1, 1] * 2
    )
    return co.Plan([[[1, 0], [1, 0], [0, 1], [0, 1]]], nodes=2), trace


@pytest.mark.parametrize(
    "windows",
    [
        lambda trace: trace.batches(4),
        lambda trace: trace.batches(2).select([0, 3]),
        lambda trace: trace.by_sequence(),
        lambda trace: trace.by_sequence().select([3, 1]),
        lambda trace: co.Loads(trace.batches(4).tokens, window_names=["a", "b"]),
    ],
)
def test_windows_of_the_trace_are_found(windows):
    plan, trace = narrow()
    traffic = co.evaluate(plan, windows(trace), trace=trace).traffic
    assert traffic.windows == "the served windows"
    assert traffic.nodes_per_token == 1
    assert traffic.critical_nodes == 2  # every window is of one domain, on one node


def test_other_loads_are_measured_on_batches_of_their_size():
    plan, trace = narrow()
    foreign = co.Loads(np.full((3, 1, 4), 2.0))  # 8 assignments: 4 tokens
    traffic = co.evaluate(plan, foreign, trace=trace).traffic
    assert traffic.windows == "2 batches of 4 tokens"
    assert traffic.critical_nodes == 2
    whole = co.evaluate(plan, co.Loads(np.full((1, 4), 100.0)), trace=trace).traffic
    assert whole.windows == "1 batch of 8 tokens"
    assert whole.critical_nodes == 1
    with pytest.raises(co.InputError, match="windows must be cut from the trace"):
        co.evaluate(plan, foreign, "cover", trace=trace)


@given(st.data())
def test_windows_found_count_what_the_loads_say(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    tokens = data.draw(st.integers(1, 30))
    trace = co.Trace(
        token_ids(rng, (tokens, 2, 3), 5), 5, domain=rng.integers(0, 2, tokens),
        domain_names=["a", "b"],
        sequence=rng.integers(0, 4, tokens),
    )  # fmt: skip
    loads = data.draw(
        st.sampled_from([trace.batches(4), trace.by_sequence(), trace.batches(3, "random")])
    )
    some = rng.permutation(loads.windows)[: data.draw(st.integers(1, loads.windows))]
    chosen = loads.select(some)
    window = trace.windows_of(chosen)
    if window is None:
        return
    for position in range(chosen.windows):
        ids = trace.topk_ids[window == position]
        for layer in range(2):
            counts = np.bincount(ids[:, layer][ids[:, layer] >= 0].ravel(), minlength=5)
            assert np.array_equal(chosen.tokens[position, layer], counts)


# --- pair counts ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", DRAWN)
@given(served(most_experts=6, most_k=2), st.integers(1, 5))
@settings(max_examples=60)
def test_pairs_say_everything_of_two_choices(rule, case, size):
    """A number of 0, 1 or 2 follows from its mean and the mean of its pairs."""
    plan, trace, _ = case
    ids = np.where(trace.topk_ids < 0, 0, trace.topk_ids)
    if ids.shape[2] == 2:
        keep = (ids[:, :, 0] != ids[:, :, 1]).all(axis=1)
        if not keep.any():
            return
        ids = ids[keep]
    trace = co.Trace(ids, trace.experts)
    loads = trace.batches(trace.tokens)
    exact = co.evaluate(plan, loads, rule, trace=trace).traffic
    pairs = quiet(trace.coactivation)
    estimate = co.evaluate(plan, loads, rule, coactivation=pairs).traffic
    assert estimate.estimated
    np.testing.assert_allclose(estimate.node_matrix, exact.node_matrix, atol=1e-9)
    if rule == "even":  # one source: the others mix sources with different means
        for name in ("tokens", *FIGURES):
            np.testing.assert_allclose(getattr(estimate, name), getattr(exact, name), atol=1e-9)


def test_estimates_from_pairs_are_close_where_experts_are_chosen_together():
    rng = np.random.default_rng(3)
    topics = rng.normal(0, 1.2, (4, 2, 32))
    topic = np.repeat(np.arange(4), 1000)
    scores = topics[topic] + rng.gumbel(size=(4000, 2, 32))
    trace = co.Trace(np.argsort(scores, axis=2)[:, :, -6:], 32)
    loads = trace.batches(500)
    plan = co.solve(co.Problem(loads, gpus=8, nodes=4, replicas_per_layer=8), "eplb").plan
    for rule in DRAWN:
        exact = co.evaluate(plan, loads, rule, trace=trace).traffic
        about = co.evaluate(plan, loads, rule, coactivation=trace.coactivation()).traffic
        assert about.nodes_per_token == pytest.approx(exact.nodes_per_token, rel=0.01)
        assert about.remote_nodes == pytest.approx(exact.remote_nodes, rel=0.01)
        assert about.critical_nodes == pytest.approx(exact.critical_nodes, rel=0.03)
        assert about.gpus_per_token == pytest.approx(exact.gpus_per_token, rel=0.01)


# --- what is refused --------------------------------------------------------------------------

TWO = co.Coactivation([[[0, 0], [0, 0]]], [[1, 1]], top_k=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trace": co.Trace([[[0]]], 3)}, "the trace 1 of 3"),
        ({"trace": co.Trace([[[0]]], 2), "homes": [2]}, "GPUs are numbered 0..1"),
        ({"trace": co.Trace([[[0]]], 2), "homes": [0, 1]}, r"every token of the trace, shape \(1,"),
        ({"homes": [0]}, "homes without trace"),
        ({"trace": co.Trace([[[0]]], 2), "dispatch": "lp"}, "dispatch='lp' does not follow"),
        ({"trace": co.Trace([[[0]]], 2), "coactivation": TWO}, "pass one of them"),
        ({"coactivation": co.Coactivation([[[0]]], [[1]], top_k=1)}, "the pair counts 1 of 1"),
        ({"coactivation": TWO, "dispatch": "cover"}, "pass trace="),
    ],
)
def test_what_does_not_match_is_refused(arguments, message):
    with pytest.raises(co.InputError, match=message):
        co.evaluate(co.Plan([[[1, 0], [0, 1]]]), co.Loads([[1, 2]]), **arguments)


def test_layers_match_by_number():
    plan = co.Plan([[[1, 0], [0, 1]]], layer_ids=[3])
    loads = co.Loads([[1, 1]], layer_ids=[3])
    plain, same, other = (co.Trace([[[0, 1]]], layer_ids=ids) for ids in (None, [3], [4]))
    assert co.evaluate(plan, loads, trace=same).traffic.gpus_per_token == 2
    for trace in (plain, other):
        with pytest.raises(co.InputError, match=r"plan has the layers 3 \(1\), the trace"):
            co.evaluate(plan, loads, trace=trace)


def test_without_trace_or_pairs_there_is_no_traffic():
    assert co.evaluate(co.Plan([[[1]]]), co.Loads([[1]])).traffic is None
