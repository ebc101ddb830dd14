"""What the exchange takes and what traffic costs: by hand, from a plan's own traffic, by rule."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import craftopt as co
from craftopt.serving import Deployment, find_gpu, find_model, profile_of, step_time
from craftopt.serving.deployment import MOST_OVERLAP

H100 = find_gpu("h100")


def tiny(**shape):
    return find_model("olmoe-1b-7b").replace(
        **{"layers": 1, "moe_layers": 1, "experts": 4, "top_k": 2, **shape}
    )


def spread(model="deepseek-r1", gpu="h100", gpus=64, nodes=8, **constants):
    return Deployment(find_model(model), find_gpu(gpu), gpus, nodes, **constants)


# --- the price of traffic ---------------------------------------------------------------------

# H100 with 400 Gb/s, worked out from the models' facts: microseconds of a token's experts and of
# a remote node, and the price on 2, 4 and 8 nodes.
PRICES = {
    "deepseek-r1": (0.712, 0.538, 0.38, 0.57, 0.66),
    "kimi-k2": (0.712, 0.538, 0.38, 0.57, 0.66),
    "glm-5.2": (1.221, 0.614, 0.25, 0.38, 0.44),
    "qwen3-235b": (0.611, 0.410, 0.34, 0.50, 0.59),
    "deepseek-v4-flash": (0.305, 0.410, 0.67, 1.01, 1.17),
    "gpt-oss-120b": (0.201, 0.288, 0.72, 1.07, 1.25),
    "minimax-m2.5": (0.229, 0.230, 0.50, 0.75, 0.88),
    "deepseek-v2-lite": (0.210, 0.205, 0.49, 0.73, 0.85),
}


@pytest.mark.parametrize("model", PRICES)
def test_prices_are_those_of_the_hand_calculation(model):
    compute, remote, *by_nodes = PRICES[model]
    for nodes, price in zip((2, 4, 8), by_nodes, strict=True):
        found = spread(model, gpus=8 * nodes, nodes=nodes).traffic_price()
        assert (found.reason, found.overlap) == ("", 1)
        assert found.compute_seconds * 1e6 == pytest.approx(compute, abs=5e-4)
        assert found.remote_seconds * 1e6 == pytest.approx(remote, abs=5e-4)
        assert found.price == pytest.approx(price, abs=5e-3)


def test_the_price_of_deepseek_r1_term_by_term():
    found = spread(link_efficiency=1.0, compute_efficiency=1.0).traffic_price()
    assert (found.dispatch_bytes, found.combine_bytes) == (7168, 2 * 7168)
    assert found.link == 50e9
    assert found.flops == 8 * 2 * 3 * 7168 * 2048
    assert found.speed == 1978e12
    assert found.price == pytest.approx(7 / 8 * (3 * 7168 / 50e9) / (found.flops / 1978e12))
    for term in ("0.875", "8 nodes", "7,168 bytes", "14,336 back", "50.0 GB/s", "GFLOP"):
        assert term in str(found)
    assert found.to_dict()["price"] == found.price


def test_all_gather_prices_the_way_back_alone():
    both, back = (spread(exchange=kind).traffic_price() for kind in ("all-to-all", "all-gather"))
    assert back.price == pytest.approx(both.price * 2 / 3)  # 1 byte there and 2 back


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"nodes": 1}, "all GPUs are in one node"),
        ({"gpu": "nvl72", "nodes": 16}, "fast links join all 64 GPUs across the nodes"),
        ({"gpu": "cloudmatrix384"}, "Ascend-910C joins 384"),
        ({"exchange": "low-latency"}, "once per expert"),
    ],
)
def test_traffic_has_no_price_by_rule(changes, says):
    found = spread(**changes).traffic_price()
    assert found.price == 0
    assert says in found.reason
    assert str(found) == f"traffic has no price: {found.reason}"
    assert found.to_dict()["link"] is None or math.isfinite(found.to_dict()["link"])


def test_racks_of_fast_links_are_the_nodes_that_count():
    racks = spread(gpu="nvl72", gpus=144, nodes=2)
    assert racks.domains == 2
    assert racks.traffic_price().nodes == 2
    with pytest.raises(co.InputError, match=r"in 2 groups, and visits .* 36 nodes; pass nodes=2"):
        racks.replace(nodes=36).traffic_price()
    slow = spread(gpus=16, nodes=2)
    assert slow.replace(gpu=H100.replace(domain=8)).traffic_price() == slow.traffic_price()


def test_a_price_needs_the_link_between_nodes():
    unknown = spread(gpus=16, nodes=2).replace(gpu=H100.replace(cluster_link=None))
    with pytest.raises(co.InputError, match="cluster_link of H100-SXM is not known"):
        unknown.traffic_price()
    assert unknown.replace(nodes=1).traffic_price().reason


@given(
    nodes=st.sampled_from([2, 4, 8]),
    overlap=st.floats(0, 1),
    factor=st.floats(1.01, 50),
    gpus=st.sampled_from([1, 3, 8]),
)
def test_the_price_rises_with_nodes_and_slow_links_and_not_with_gpus(nodes, overlap, factor, gpus):
    base = spread(gpus=8 * nodes, nodes=nodes, overlap=overlap)
    price = base.traffic_price().price
    assert base.replace(gpus=gpus * nodes).traffic_price().price == price
    assert base.replace(gpus=16 * nodes, nodes=2 * nodes).traffic_price().price > price
    slower = H100.replace(cluster_link=H100.cluster_link / factor)
    assert base.replace(gpu=slower).traffic_price().price > price


@pytest.mark.parametrize("overlap", [0.25, 0.5, 1.0])
def test_overlap_makes_the_shorter_part_cheaper(overlap):
    """Where the exchange is the longer one, computation hides, so that traffic counts for more."""
    longer, shorter = (
        spread(),
        spread().replace(gpu=H100.replace(cluster_link=4e12, node_link=9e12)),
    )
    shown = 1 - min(overlap, MOST_OVERLAP)
    for deployment, factor in ((longer, 1 / shown), (shorter, shown)):
        alone = deployment.traffic_price().price
        found = deployment.replace(overlap=overlap).traffic_price()
        assert found.price == pytest.approx(alone * factor)
        assert f"times {factor:.2f}" in str(found)


def test_overlap_is_a_share():
    with pytest.raises(co.InputError, match=r"overlap=1.5 .* at most 1"):
        spread(overlap=1.5)


# --- the exchange of a plan -------------------------------------------------------------------

# Experts 0 and 1 on node 0, 2 and 3 on node 1, one GPU each.
PLAN = co.Plan([np.eye(4, dtype=int)], nodes=2)


def measured(choices, plan=PLAN, **changes):
    """Time one prefill step of 100 tokens per GPU; only bytes and expert work take time."""
    trace = co.Trace([[chosen] for chosen in choices], experts=4)
    loads = trace.batches(len(choices))
    traffic = co.evaluate(plan, loads, trace=trace).traffic
    deployment = Deployment(
        tiny(), H100, gpus=4, nodes=2, link_efficiency=1.0, exchange_latency=0, **changes
    )
    steps = [
        step_time(deployment, profile, "prefill", 100, 0)
        for profile in (profile_of(plan, loads), profile_of(plan, loads, traffic))
    ]
    return (*steps, traffic)


def test_the_plans_own_nodes_take_the_place_of_chance():
    """All tokens stay on one node: half of them at home there, the busiest node sees all."""
    chance, own, traffic = measured([[0, 1], [0, 1], [2, 3], [2, 3]])
    width = 2 * 2048  # bf16
    assert (traffic.nodes_per_token, traffic.critical_nodes) == (1, 1)
    # A GPU sends 50 of its 100 tokens; by chance it would send 1/2 + 1/4 of them.
    assert own.exchange == pytest.approx(2 * 50 * width / 50e9)
    assert chance.exchange == pytest.approx(2 * 75 * width / 50e9)
    assert (own.experts, own.attention) == (chance.experts, chance.attention)


def test_the_busiest_node_sets_the_time():
    """Three of four tokens go to node 0: it receives 3/4 of half of all, on two GPUs."""
    _, own, traffic = measured([[0, 1], [0, 1], [0, 1], [2, 3]])
    assert (traffic.nodes_per_token, traffic.critical_nodes) == (1, 1.5)
    received = 400 * 3 / 4 * 1 / 2 / 2  # on a GPU of node 0 from the other node
    assert own.exchange == pytest.approx(2 * received * 4096 / 50e9)


def test_within_a_node_the_fullest_gpu_receives_every_token_once():
    links = H100.replace(node_link=1e9, cluster_link=1e15)
    trace = co.Trace([[[0, 1]], [[0, 1]], [[0, 2]], [[2, 3]]], experts=4)
    plan = co.Plan([[[1, 0], [1, 0], [0, 1], [0, 1]]])
    traffic = co.evaluate(plan, trace.batches(4), trace=trace).traffic
    deployment = Deployment(tiny(), links, gpus=2, link_efficiency=1.0, exchange_latency=0)
    step = step_time(deployment, profile_of(plan, trace.batches(4), traffic), "prefill", 100, 0)
    # GPU 0 serves 3 of 4 tokens; half of these are its own.
    assert step.exchange == pytest.approx(2 * 200 * 3 / 4 / 2 * 4096 / 1e9)


def test_without_deduplication_messages_follow_the_loads_whatever_the_nodes():
    """Every choice is a message: 3 of 8 choices are the fullest GPU's, half come from afar."""
    choices = [[0, 1], [0, 1], [0, 2], [2, 3]]
    chance, own, _ = measured(choices, exchange="low-latency")
    assert own == chance
    assert own.exchange == pytest.approx(2 * 400 * 2 * 3 / 8 / 2 * 4096 / 50e9)


def test_all_gather_sends_all_there_and_the_plans_own_back():
    _, own, traffic = measured([[0, 1], [0, 1], [2, 3], [2, 3]], exchange="all-gather")
    back = 100 * traffic.remote_nodes * 4096 / 50e9
    assert own.exchange == pytest.approx(100 * 4096 / 50e9 + back)


@pytest.mark.parametrize("overlap", [0.0, 0.3, 1.0])
def test_overlap_hides_a_share_of_the_shorter(overlap):
    choices = [[0, 1], [0, 2], [1, 3], [2, 3]]
    _, apart, _ = measured(choices)
    _, together, _ = measured(choices, overlap=overlap)
    hidden = overlap * min(apart.experts, apart.exchange)
    assert apart.total - together.total == pytest.approx(hidden)
    assert together.experts == apart.experts


def test_fast_links_between_nodes_are_links_within():
    loads = co.Loads(np.ones((1, 1, 4)))
    rack = H100.replace(domain=4)
    steps = [
        step_time(Deployment(tiny(), gpu, 4, nodes), profile_of(PLAN, loads), "decode", 100, 0)
        for gpu, nodes in ((rack, 2), (H100, 1))
    ]
    assert steps[0] == steps[1]


def test_experts_anywhere_are_what_the_fallback_assumes():
    """Choices drawn at random, evenly: the measured exchange is the assumed one."""
    rng = np.random.default_rng(0)
    choices = rng.integers(0, 2, size=(20_000, 2)) + np.array([0, 2])  # one of 0, 1 and one of 2, 3
    plan = co.Plan([np.eye(4, dtype=int)[[0, 2, 1, 3]]], nodes=2)  # of each pair one per node
    chance, own, _ = measured(choices, plan=plan)
    assert own.exchange == pytest.approx(chance.exchange, rel=0.02)


def test_traffic_of_another_plan_is_refused():
    trace = co.Trace([[[0, 1]], [[2, 3]]], experts=4)
    loads = trace.batches(2)
    traffic = co.evaluate(PLAN, loads, trace=trace).traffic
    flat = co.Plan([np.eye(4, dtype=int)])
    with pytest.raises(co.InputError, match=r"on 2 nodes, the plan has 1 on 1; pass evaluate"):
        profile_of(flat, loads, traffic)
    deployment = Deployment(tiny(), H100, gpus=4, nodes=4)
    with pytest.raises(co.InputError, match=r"between 2 nodes, .* pass plans with nodes=4"):
        step_time(deployment, profile_of(PLAN, loads, traffic), "decode", 10, 0)
