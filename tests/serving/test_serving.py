"""Facts, memory, time and goodput: figures that can be checked by hand, and a simulation."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from strategies import plans

import craftopt as co
from craftopt.serving import (
    Deployment,
    Engine,
    Measured,
    Workload,
    calibrate,
    find_gpu,
    find_model,
    known_gpus,
    known_models,
    memory_for_copies,
    memory_of,
    profile_of,
    read_facts,
    service_of,
    simulate,
    step_time,
)
from craftopt.serving.timing import ASSIGNMENTS

GIB = 2**30
H200 = find_gpu("h200")


def spread(model="deepseek-r1", gpu="h200", gpus=64, nodes=8, **constants):
    return Deployment(find_model(model), find_gpu(gpu), gpus, nodes, **constants)


# --- facts ------------------------------------------------------------------------------------

# Worked out by hand: weights of an expert (3 x width x width), its bytes as published, bytes of
# cache per token in bf16, and (GPUs, bytes of experts per GPU without replicas).
BY_HAND = {
    # 3 x 7168 x 2048; fp8; (512 + 64) x 2 x 61; 58 x 256/64 x 44,040,192
    "DeepSeek-V3": (44_040_192, 44_040_192, 70_272, 64, 10_217_324_544),
    # the same expert in fp8; 61 layers of the same cache; 60 x 384/48 x 44,040,192
    "Kimi-K2-Instruct": (44_040_192, 44_040_192, 70_272, 48, 21_139_292_160),
    # 3 x 6144 x 2048; bf16; (512 + 64) x 2 x 78; 75 x 256/32 x 75,497,472
    "GLM-5.2": (37_748_736, 75_497_472, 89_856, 32, 45_298_483_200),
    # 3 x 4096 x 1536; bf16; 2 x 4 x 128 x 2 x 94; 94 x 128/32 x 37,748,736
    "Qwen3-235B-A22B": (18_874_368, 37_748_736, 192_512, 32, 14_193_524_736),
    # 3 x 2880 x 2880; 4.25 bits; 2 x 8 x 64 x 2 x 18; 36 x 128/8 x 13,219,200
    "gpt-oss-120b": (24_883_200, 13_219_200, 36_864, 8, 7_614_259_200),
    # 3 x 4096 x 14336; bf16; 2 x 8 x 128 x 2 x 32; 32 x 8/8 x 352,321,536
    "Mixtral-8x7B": (176_160_768, 352_321_536, 131_072, 8, 11_274_289_152),
    # the expert of Kimi K2 in 4 bits with a 2-byte scale per 32: 4.5 bits
    "Kimi-K2.5": (44_040_192, 24_772_608, 70_272, 96, 5_945_425_920),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_bytes_are_those_of_the_hand_calculation(name):
    weights, stored, kv, gpus, per_gpu = BY_HAND[name]
    model = find_model(name)
    assert model.parameters_per_expert == weights
    assert model.expert_bytes() == stored
    assert model.kv_bytes() == kv
    assert model.kv_bytes("fp8") == kv / 2
    least = model.moe_layers * model.experts // gpus
    memory = memory_for_copies(Deployment(model, H200, gpus), least)
    assert (memory.experts, memory.replicas) == (per_gpu, 0)


def test_what_replicas_of_deepseek_r1_cost():
    bf16 = spread(expert_dtype="bf16")
    none, eplb, few = (memory_for_copies(bf16, 58 * 4 + extra) for extra in (0, 58, 512 // 64))
    assert round(eplb.replicas / GIB, 2) == 4.76
    assert round(few.replicas / GIB, 2) == 0.66
    assert eplb.kv == none.kv - 58 * 88_080_384


def test_the_sum_of_all_weights_is_the_published_figure():
    checked = [model for model in known_models().values() if model.published_parameters]
    assert len(checked) >= 25
    for model in checked:
        assert model.parameters == pytest.approx(model.published_parameters, rel=0.03), model.name


def test_attention_weights_of_deepseek_by_hand():
    down = 7168 * (1536 + 512 + 64)
    heads = 128 * (1536 * 192 + 512 * 256 + 128 * 7168)
    model = find_model("deepseek-v3")
    assert model.attention_weights() == 61 * (down + heads)
    assert model.attention_weights(8) == 61 * (down + heads / 8)


def test_the_packaged_tables_are_whole():
    assert len(known_models()) >= 27
    assert len(known_gpus()) >= 9
    for fact in [*known_models().values(), *known_gpus().values()]:
        assert fact.source, fact.name


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("deepseek-r1", "DeepSeek-R1"),
        ("DEEPSEEK_R1", "DeepSeek-R1"),
        ("kimi-k2", "Kimi-K2-Instruct"),
        ("kimi-k2.5", "Kimi-K2.5"),
        ("glm-5", "GLM-5"),
        ("qwen3-235b", "Qwen3-235B-A22B"),
    ],
)
def test_models_go_by_name_in_any_case(asked, name):
    assert find_model(asked).name == name


def test_gpus_go_by_the_start_of_their_name():
    assert find_gpu("H20").name == "H20"
    assert find_gpu("h200").name == "H200-SXM"
    assert find_gpu("a100").name == "A100-80G-SXM"


def test_unknown_names_are_told_the_nearest():
    with pytest.raises(co.InputError, match="did you mean 'DeepSeek-R1'"):
        find_model("deepsek-r1")
    with pytest.raises(co.InputError, match="DeepSeek-V4-Flash, DeepSeek-V4-Pro"):
        find_model("deepseek-v4")
    with pytest.raises(co.InputError, match="gpu='' is unknown; pass one of"):
        find_gpu("")


def test_facts_of_ones_own_come_first(tmp_path):
    file = tmp_path / "facts.toml"
    file.write_text(
        '[model."Mine"]\nlayers = 2\nmoe_layers = 1\nexperts = 4\ntop_k = 2\nhidden_width = 8\n'
        "expert_width = 4\nshared_width = 0\ndense_width = 16\nvocabulary = 10\n"
        'attention = { kind = "gqa", heads = 2, kv_heads = 1, head_width = 4 }\n'
        '[gpu."H200-SXM"]\nmemory = 1e9\nbandwidth = 1e12\nflops = { bf16 = 1e14 }\n'
    )
    models, gpus = read_facts(file)
    mine = find_model("mine", models)
    assert mine.parameters_per_expert == 3 * 8 * 4
    assert mine.kv_bytes() == 2 * 1 * 4 * 2 * 2
    assert find_gpu("h200", gpus).memory == 1e9


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("memory = 1", "memory"),
        ("[gpu", "no TOML"),
        ("[gpu.x]\nmemory = 1e9\n", "missing"),
        (
            "[gpu.x]\nmemory = 1e9\nbandwith = 1e9\nflops = { bf16 = 1 }\n",
            "did you mean 'bandwidth'",
        ),
        ('[gpu.x]\nmemory = "80 GB"\nbandwidth = 1e9\nflops = { bf16 = 1 }\n', "80 GB"),
        ("[gpu.x]\nmemory = -1\nbandwidth = 1e9\nflops = { bf16 = 1 }\n", "above 0"),
        ("[gpu.x]\nmemory = 1\nbandwidth = 1e9\nflops = { fp8 = 1 }\n", "bf16"),
        ("[gpu]\nx = 1\n", "tables"),
    ],
)
def test_damaged_facts_are_refused(tmp_path, text, says):
    file = tmp_path / "facts.toml"
    file.write_text(text)
    with pytest.raises(co.InputError, match=says):
        read_facts(file)
    with pytest.raises(co.FormatError, match="cannot read"):
        read_facts(tmp_path / "nowhere.toml")


def test_arithmetic_falls_back_to_what_the_gpu_has():
    assert find_gpu("a100").peak("fp8") == find_gpu("a100").peak("bf16") == 312e12
    assert find_gpu("h200").peak("mxfp4") == find_gpu("h200").flops["fp8"]
    with pytest.raises(co.InputError, match="dtype='fp9'"):
        find_gpu("a100").peak("fp9")


# --- deployments ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gpus": 60}, "gpus=60 does not divide into nodes=8"),
        ({"attention_gpus": 3}, "attention_gpus=3"),
        ({"compute_efficiency": 0}, "compute_efficiency=0"),
        ({"reserve": -1.0}, "reserve=-1"),
        ({"reserve": math.nan}, "reserve=nan"),
        ({"kv_dtype": "fp9"}, "fp9"),
        ({"exchange": "all2all"}, "all-to-all, low-latency, all-gather"),
        ({"compute_eficiency": 0.4}, "did you mean 'compute_efficiency'"),
        ({"prefill_elsewhere": 1}, "prefill_elsewhere=1"),
        ({"model": "deepseek-r1"}, "model='deepseek-r1' is no Model; find_model"),
        ({"gpu": "h200"}, "gpu='h200' is no Gpu; find_gpu"),
    ],
)
def test_constants_outside_their_limits_are_refused(changes, says):
    with pytest.raises(co.InputError, match=says):
        spread().replace(**changes)


@pytest.mark.parametrize("changes", [{"input_tokens": 0}, {"output_tokens": 1}, {"tpot": 0.0}])
def test_workloads_outside_their_limits_are_refused(changes):
    with pytest.raises(co.InputError, match=next(iter(changes))):
        Workload().replace(**changes)


# --- memory -----------------------------------------------------------------------------------


def test_memory_adds_up_to_the_gpu():
    memory = memory_for_copies(spread(), 58 * 5)
    parts = [
        memory.reserve, memory.attention, memory.shared, memory.dense, memory.embeddings,
        memory.experts, memory.replicas, memory.kv,
    ]  # fmt: skip
    assert sum(parts) == pytest.approx(memory.total)
    assert memory.reserve == 10 * GIB + 64 * GIB / 8
    assert memory.attention == find_model("deepseek-r1").attention_weights()  # fp8
    assert memory.shared == 58 * 44_040_192
    assert memory.dense == 3 * 3 * 7168 * 18432 + 58 * 256 * 7168
    assert memory.embeddings == 2 * 2 * 129_280 * 7168
    assert memory.kv_tokens == int(memory.kv // 70_272)
    assert memory.concurrency(4352) == memory.kv_tokens // 4352


def test_attention_groups_split_heads_but_not_latents():
    alone, together = (memory_for_copies(spread(attention_gpus=size), 232) for size in (1, 8))
    assert together.kv_bytes_per_token == alone.kv_bytes_per_token
    assert together.attention < alone.attention / 4
    alone, four, eight = (
        memory_for_copies(spread("qwen3-235b", gpus=32, nodes=4, attention_gpus=size), 376)
        for size in (1, 4, 8)
    )
    assert four.kv_bytes_per_token == alone.kv_bytes_per_token / 4
    assert eight.kv_bytes_per_token == alone.kv_bytes_per_token / 4  # 4 heads are cached


def test_the_fullest_gpu_limits_the_cache_of_all():
    model = find_model("olmoe-1b-7b").replace(layers=1, moe_layers=1, experts=4, top_k=1)
    deployment = Deployment(model, H200, gpus=2)
    plan = co.Plan([[[1, 0], [1, 0], [1, 0], [0, 1]]])
    assert memory_of(deployment, plan) == memory_for_copies(deployment, 3)
    assert memory_of(deployment, plan).replicas == model.expert_bytes()  # 2 would be the least


def test_plans_of_other_models_are_refused():
    plan = co.Plan([[[1, 0], [0, 1]]])
    with pytest.raises(co.InputError, match="58 MoE layers of 256 experts, and here are 1 of 2"):
        memory_of(spread(gpus=2, nodes=1), plan)
    tiny = find_model("mixtral-8x7b").replace(layers=1, moe_layers=1, experts=2)
    with pytest.raises(co.InputError, match="2 GPUs"):
        memory_of(Deployment(tiny, H200, gpus=4), plan)


# --- time -------------------------------------------------------------------------------------


def tiny(layers, experts, top_k=1):
    return find_model("olmoe-1b-7b").replace(
        layers=layers, moe_layers=layers, experts=experts, top_k=top_k
    )


@given(plan=plans(), seed=st.integers(0, 1000), tokens=st.sampled_from([1.0, 7.0, 300.0, 1e5]))
def test_experts_take_the_roofline_of_the_fullest_gpu(plan, seed, tokens):
    """The joint maximum over GPUs, computed copy by copy at points of the table."""
    rng = np.random.default_rng(seed)
    loads = co.Loads(rng.integers(0, 9, size=(3, plan.layers, plan.experts)) + 1)
    model = tiny(plan.layers, plan.experts)
    deployment = Deployment(model, H200, gpus=plan.gpus)
    assignments = float(ASSIGNMENTS[np.abs(np.log(ASSIGNMENTS / (tokens * plan.gpus))).argmin()])
    read_one = model.expert_bytes() / (H200.bandwidth * 0.7)
    compute_one = 2 * model.parameters_per_expert / (H200.peak("bf16") * 0.5)
    expected = 0.0
    for window in range(3):
        for layer in range(plan.layers):
            load = loads.tokens[window, layer]
            worst = 0.0
            for gpu in range(plan.gpus):
                activated = work = 0.0
                for expert in range(plan.experts):
                    hosted = int(plan.copies[layer, expert, gpu])
                    share = load[expert] / load.sum() / plan.replica_counts[layer, expert]
                    activated += hosted * (1 - math.exp(-assignments * share))
                    work += hosted * assignments * share
                worst = max(worst, read_one * activated, compute_one * work)
            expected += worst * loads.tokens[window].sum() / loads.tokens.sum()
    step = step_time(
        deployment, profile_of(plan, loads), "decode", assignments / deployment.groups, 100
    )
    assert step.experts == pytest.approx(expected, rel=1e-9)


def even_profile(experts=8, gpus=4, layers=2):
    plan = co.Plan(
        np.tile(np.repeat(np.eye(gpus, dtype=int), experts // gpus, axis=0), (layers, 1, 1))
    )
    return profile_of(plan, co.Loads(np.ones((1, layers, experts))))


def test_exchange_by_hand():
    """4 GPUs in 2 nodes, 100 tokens each, one expert per token, all alike."""
    model = tiny(2, 8)
    deployment = Deployment(
        model, H200, gpus=4, nodes=2, link_efficiency=1.0, exchange_latency=1e-6
    )
    width, received = model.hidden_width * 2, 400 * 3 / 4 * 1 / 4
    within = received * width / 450e9
    across = 100 * (1 - 1 / 2) * width / 50e9
    step = step_time(deployment, even_profile(), "decode", 100, 0)
    assert step.exchange == pytest.approx(2 * 2 * (max(within, across) + 1e-6))
    # All tokens to all GPUs on the way there: 100 from the like in the other node, and from the
    # neighbour its own 100 and the 100 that it received.
    gathered = step_time(
        deployment.replace(exchange="all-gather"), even_profile(), "decode", 100, 0
    )
    there = max(200 * width / 450e9, 100 * width / 50e9)
    assert gathered.exchange == pytest.approx(2 * (there + max(within, across) + 2e-6))
    one_node = deployment.replace(nodes=1)
    step = step_time(one_node, even_profile(), "decode", 100, 0)
    assert step.exchange == pytest.approx(4 * (within + 1e-6))


def test_attention_and_dense_by_hand():
    model = tiny(2, 8)  # 16 heads of 128, all cached, 2048 channels, 50,304 words
    deployment = Deployment(model, H200, gpus=4)
    decode = step_time(deployment, even_profile(), "decode", 10, 1000)
    weights = 2 * 4 * 2048 * 2048
    cache = 10 * 1000 * 2 * 2 * 16 * 128 * 2
    assert decode.attention == pytest.approx((2 * weights + cache) / (4.8e12 * 0.7))
    routers, head = 2 * 8 * 2048, 2048 * 50304
    assert decode.dense == pytest.approx(2 * (routers + head) / (4.8e12 * 0.7))
    prefill = step_time(deployment, even_profile(), "prefill", 8192, 4096)
    scores = 2 * 4 * 16 * 128 * 8192 * 4096
    peak = 989e12 * 0.5
    assert prefill.attention == pytest.approx((2 * weights * 8192 + scores) / peak)
    assert prefill.dense == pytest.approx(2 * routers * 8192 / peak)
    assert decode.overhead == pytest.approx(1e-3 + 2 * 20e-6)
    parts = decode.experts + decode.exchange + decode.attention + decode.dense + decode.overhead
    assert decode.total == pytest.approx(parts)


def test_a_larger_batch_never_costs_more_per_token(r1):
    _, profile = r1
    tokens = np.geomspace(0.005, 5000, 200)
    steps = [step_time(spread(), profile, "decode", float(n), 4096) for n in tokens]
    for name in ("experts", "exchange", "attention", "dense", "total"):
        per_token = np.array([getattr(step, name) for step in steps]) / tokens
        assert (np.diff(per_token) <= 1e-9 * per_token[:-1]).all(), name


def test_one_gpu_exchanges_nothing():
    profile = profile_of(co.Plan(np.ones((2, 8, 1), dtype=int)), co.Loads(np.ones((1, 2, 8))))
    deployment = Deployment(tiny(2, 8), find_gpu("ascend-910c"), gpus=1)
    assert step_time(deployment, profile, "decode", 10, 100).exchange == 0


def test_unknown_links_are_asked_for():
    deployment = Deployment(tiny(2, 8), find_gpu("ascend-910b"), gpus=4)
    with pytest.raises(co.InputError, match="node_link of Ascend-910B is not known"):
        step_time(deployment, even_profile(), "decode", 10, 100)
    known = deployment.replace(gpu=deployment.gpu.replace(node_link=2e11))
    assert step_time(known, even_profile(), "decode", 10, 100).total > 0


def test_empty_layers_take_no_time():
    plan = co.Plan(np.tile(np.eye(4, dtype=int), (2, 1, 1)))
    loads = co.Loads([[[1, 1, 1, 1], [0, 0, 0, 0]]])
    profile = profile_of(plan, loads)
    assert (profile.fullest[:, 1] == 0).all()
    assert (profile.activated[:, :, 1] == 0).all()


@pytest.fixture(scope="module")
def r1():
    loads = co.load_example("deepseek-r1")
    plan = co.solve(co.Problem(loads, gpus=64, nodes=8), "placement").plan
    return plan, profile_of(plan, loads)


def test_calibration_finds_the_constants_that_made_the_points(r1):
    _, profile = r1
    truth = spread(compute_efficiency=0.37, bandwidth_efficiency=0.81, step_overhead=2e-3)
    steps = [("decode", 8.0, 4000.0), ("decode", 128.0, 4000.0), ("prefill", 4096.0, 2048.0)]
    points = [Measured(*step, step_time(truth, profile, *step).total) for step in steps]
    names = ("compute_efficiency", "bandwidth_efficiency", "step_overhead")
    found = calibrate(spread(), profile, points, names)
    for name in names:
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-3)
    assert found.link_efficiency == spread().link_efficiency


def test_calibration_refuses_points_that_tell_nothing(r1):
    _, profile = r1
    point = Measured("decode", 8.0, 4000.0, 0.03)
    with pytest.raises(co.InputError, match="1 measured point"):
        calibrate(spread(), profile, [point])
    with pytest.raises(co.InputError, match="no measured point depends on compute_efficiency"):
        calibrate(spread(), profile, [point, Measured("decode", 4.0, 100.0, 0.02)])


@pytest.mark.parametrize(
    ("constants", "says"),
    [
        (["compute_eficiency"], "did you mean 'compute_efficiency'"),
        (["exchange"], "constant='exchange' is unknown"),
        (["prefill_tokens"], "constant='prefill_tokens' is unknown"),
    ],
)
def test_constants_that_cannot_be_fitted_are_named(r1, constants, says):
    points = [Measured("decode", 8.0, 4000.0, 0.03), Measured("decode", 4.0, 100.0, 0.02)]
    with pytest.raises(co.InputError, match=says):
        calibrate(spread(), r1[1], points, constants)


def test_unknown_phases_are_refused(r1):
    with pytest.raises(co.InputError, match="phase='train' is unknown; pass one of prefill"):
        step_time(spread(), r1[1], "train", 8.0, 4000.0)


@pytest.mark.parametrize("shape", [(1, 4), (3, 4), (2, 3), (2, 5)])
def test_profiles_of_other_loads_are_refused(shape):
    plan = co.Plan(np.ones((2, 4, 1)).astype(int))
    with pytest.raises(co.InputError, match="the plan has 2 layers of 4 experts"):
        profile_of(plan, co.Loads(np.ones(shape)))


def test_numpys_whole_numbers_are_whole_numbers():
    assert spread(gpus=np.int64(64)) == spread()
    assert type(Workload(input_tokens=np.int32(7)).input_tokens) is int


def test_models_without_a_cache_are_refused():
    with pytest.raises(co.InputError, match="kv_layers=0 is below 1"):
        find_model("deepseek-r1").replace(kv_layers=0)


# --- goodput ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sequences": [1, 1]}, "sequences repeat a number"),
        ({"sequences": [2, 1]}, "sequences must be numbers in rising order"),
        ({"decode_steps": 0}, "decode_steps=0"),
        ({"prompt_seconds": -1.0}, "prompt_seconds=-1"),
    ],
)
def test_engines_that_cannot_be_are_refused(changes, says):
    fields = {
        "sequences": [1, 2],
        "decode_seconds": [0.02, 0.02],
        "prompt_seconds": 0.001,
        "own_seconds": 0.1,
        "decode_steps": 10,
    }
    with pytest.raises(co.InputError, match=says):
        Engine(**{**fields, **changes})
    with pytest.raises(co.InputError, match="rate=0"):
        Engine(**fields).ttft(0)


def random_engine(rng):
    """An engine of 32 to 2000 places, prefill 10 to 80 % of its work, with limits or without."""
    places = int(rng.integers(32, 2000))
    points = np.unique(np.geomspace(1, places, 20).round())
    decode = rng.uniform(0.01, 0.06) + rng.uniform(0, 0.06) * points / places
    steps = int(rng.integers(50, 600))
    share = rng.uniform(0.1, 0.8)
    engine = Engine(
        points,
        decode,
        prompt_seconds=share / (1 - share) * decode[-1] * steps / places,
        own_seconds=rng.uniform(0.05, 1.0),
        decode_steps=steps,
    )
    tpot = engine.tpot(engine.limit) * rng.uniform(0.5, 1.2) if rng.random() < 0.6 else None
    return engine, engine.own_seconds + rng.uniform(0.3, 4.0), tpot


@pytest.mark.parametrize("seed", range(20))
def test_closed_form_agrees_with_simulation_within_ten_percent(seed):
    """At 0.9 of the rate the simulated requests wait within the limits, at 1.1 they do not."""
    engine, ttft, tpot = random_engine(np.random.default_rng(seed))
    rate, _ = engine.goodput(ttft, tpot)

    def within(share):
        count = int(max(20_000, 30 * engine.limit))
        seen = simulate(engine, share * rate, count, seed)
        return seen.ttft <= ttft and (tpot is None or seen.tpot <= tpot)

    assert within(0.9), f"goodput {rate:.3f} is more than 10 % too high"
    assert not within(1.1), f"goodput {rate:.3f} is more than 10 % too low"


def test_an_overloaded_engine_finishes_at_the_closed_form_rate():
    engine, _, _ = random_engine(np.random.default_rng(3))
    most = engine.rate(engine.limit)
    assert simulate(engine, 2 * most).requests_per_second == pytest.approx(most, rel=0.05)


@given(seed=st.integers(0, 10_000))
def test_goodput_keeps_its_limits_and_misses_none(seed):
    engine, ttft, tpot = random_engine(np.random.default_rng(seed))
    rate, bound = engine.goodput(ttft, tpot)
    most = engine.rate(engine.limit)
    assert 0 <= rate <= most
    assert engine.goodput() == (most, "memory")
    if rate == 0:
        return
    assert engine.ttft(rate * 0.999) <= ttft * 1.001
    assert tpot is None or engine.tpot(engine.running(rate)) <= tpot * 1.001
    assert engine.rate(engine.running(rate)) == pytest.approx(rate, rel=1e-3)
    if bound == "tpot":
        assert engine.tpot(engine.running(rate * 1.01)) > tpot
    elif rate < most * 0.999:
        assert engine.ttft(rate * 1.01) > ttft


@pytest.mark.parametrize("share", [0.8, 0.95, 0.99, 0.999])
def test_of_many_running_sequences_one_in_so_many_says_as_much(share, monkeypatch):
    given = ([1, 900, 3000], [0.02, 0.04, 0.07], 0.001, 0.1, 100)
    whole = Engine(*given)
    rate = share * whole.rate(whole.limit)
    expected = whole.ttft(rate)
    monkeypatch.setattr("craftopt.serving.goodput.MOST_STATES", 100)
    assert Engine(*given).ttft(rate) == pytest.approx(expected, rel=2e-3)


def test_rate_by_hand():
    engine = Engine([1, 10], [0.1, 0.1], prompt_seconds=0.2, own_seconds=0, decode_steps=10)
    # A round: 0.1 s to decode, and 10/10 prompts of 0.2 s.
    assert engine.tpot(10) == pytest.approx(0.3)
    assert engine.rate(10) == pytest.approx(10 / (10 * 0.3))


def test_limits_that_nothing_can_keep_give_no_goodput():
    engine = Engine([1, 10], [0.1, 0.1], prompt_seconds=0.2, own_seconds=3.0, decode_steps=10)
    assert engine.goodput(tpot=0.05) == (0.0, "tpot")
    assert engine.goodput(ttft=1.0) == (0.0, "ttft")


def test_service_is_the_rate_of_its_own_figures(r1):
    plan, profile = r1
    deployment, workload = spread(), Workload()
    service = service_of(deployment, profile, memory_of(deployment, plan), workload)
    assert service.bound == "memory"
    assert service.sequences == service.concurrency
    rounds = service.decode.total + service.prefill.total * service.sequences / 255
    assert service.tpot == pytest.approx(rounds, rel=1e-3)
    rate = 64 * service.sequences / (255 * service.tpot)
    assert service.requests_per_second == pytest.approx(rate, rel=1e-6)
    assert service.tokens_per_second == pytest.approx(256 * rate)
    alone = deployment.replace(prefill_elsewhere=True)
    decoding = service_of(alone, profile, memory_of(alone, plan), workload)
    assert decoding.tpot == pytest.approx(service.decode.total, rel=1e-3)
    limited = service_of(
        deployment, profile, memory_of(deployment, plan), workload.replace(tpot=service.tpot / 2)
    )
    assert limited.bound == "tpot"
    assert limited.tpot == pytest.approx(service.tpot / 2, rel=1e-3)
    assert limited.requests_per_second < service.requests_per_second


def test_less_cache_never_serves_more(r1):
    _, profile = r1
    deployment = spread(expert_dtype="bf16")
    rates = [
        service_of(
            deployment, profile, memory_for_copies(deployment, 232 + extra), Workload()
        ).requests_per_second
        for extra in (0, 8, 58, 116)
    ]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1]


def test_a_cache_too_small_for_one_sequence_is_said(r1):
    _, profile = r1
    deployment = spread(gpu="a100", expert_dtype="bf16")
    memory = memory_for_copies(deployment, 58 * 12)
    with pytest.raises(co.InputError, match="less than one sequence of 4352"):
        service_of(deployment, profile, memory, Workload())
