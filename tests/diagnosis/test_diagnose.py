"""The verdict follows its rules, its figures are held out, and it says when not to trust it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import craftopt as co
from craftopt import recordings
from craftopt.diagnosis import Gain, decide

WINDOWS, LAYERS, EXPERTS, GPUS = 16, 3, 16, 4


def counts(shares, seed=0, tokens=20_000, count=WINDOWS):
    """Windows [count, layers, experts] drawn from shares [layers, experts]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(tokens, shares, size=(count, len(shares)))


@pytest.fixture(scope="module")
def flat():
    return co.Loads(counts(np.full((LAYERS, EXPERTS), 1 / EXPERTS)))


@pytest.fixture(scope="module")
def skewed():
    """One expert with a third of the tokens, elsewhere in every layer, all windows alike."""
    shares = np.full((LAYERS, EXPERTS), 2 / 3 / (EXPERTS - 1))
    shares[np.arange(LAYERS), [3, 9, 14]] = 1 / 3
    return co.Loads(counts(shares))


@pytest.fixture(scope="module")
def on_skewed(skewed):
    return co.diagnose(skewed, GPUS)


def gain(replicas, held_out, width=0.01):
    return Gain(replicas, held_out, held_out, held_out - width, held_out + width, 0.9)


# --- the rules ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([gain(0, 0.015, 0.016)], ("collect more windows first", 0)),
        ([gain(0, 0.015, 0.014)], ("leave it", 0)),
        ([gain(0, 0.005, 0.014)], ("leave it", 0)),  # includes 0, but at most 1.9 %
        ([gain(0, -0.3), gain(8, -0.2)], ("leave it", 0)),
        ([gain(0, 0.05), gain(8, 0.069)], ("place", 0)),
        ([gain(0, 0.05), gain(4, 0.08), gain(8, 0.1)], ("replicate", 8)),
        ([gain(0, 0.05), gain(4, 0.091), gain(8, 0.1)], ("replicate", 4)),
        ([gain(0, 0.05), gain(4, 0.12), gain(8, 0.1)], ("replicate", 4)),
        ([gain(0, 0.4), gain(8, 0.43)], ("place", 0)),  # moving alone has 90 % of it
        ([gain(0, -0.05), gain(4, 0.1), gain(8, -0.1)], ("replicate", 4)),
        # copies add less than 2 %, so that moving alone would have to be worth it, and be certain
        ([gain(0, 0.009, 0.04), gain(8, 0.02, 0.001)], ("collect more windows first", 0)),
        ([gain(0, 0.009, 0.001), gain(8, 0.028, 0.001)], ("leave it", 0)),
        # 90 % of the gain, and its interval is the one that counts
        ([gain(0, 0.01), gain(4, 0.095, 0.1), gain(8, 0.1)], ("collect more windows first", 0)),
    ],
)
def test_rules_are_asked_in_their_order(gains, verdict):
    assert decide(gains, WINDOWS) == verdict
    assert decide(gains, recordings.LEAST_WINDOWS - 1) == ("collect more windows first", 0)


# --- verdicts -------------------------------------------------------------------------------


def test_balanced_loads_are_left_alone_and_look_made_up(flat):
    found = co.diagnose(flat, GPUS)
    assert found.verdict == "leave it"
    assert any("made up" in text for text in found.reasons)
    assert any("Balanced already" in text for text in found.reasons)


def test_a_hot_expert_is_copied(on_skewed):
    assert on_skewed.verdict == "replicate"
    assert on_skewed.answer.startswith(f"replicate {on_skewed.replicas_per_layer} per layer: saves")


def test_hot_experts_side_by_side_are_moved():
    shares = np.ones((LAYERS, EXPERTS))
    shares[:, :4] = 4  # all on the first GPU
    shares[1], shares[2] = shares[1, ::-1], np.roll(shares[2], 4)
    found = co.diagnose(co.Loads(counts(shares / shares.sum(axis=1, keepdims=True))), GPUS)
    assert (found.verdict, found.replicas_per_layer) == ("place", 0)
    assert found.gains[0].held_out == pytest.approx(1 - 1 / found.relative_time, abs=0.02)


def test_a_single_hot_window_is_named_and_never_planned_for(flat):
    rng = np.random.default_rng(5)
    tokens = flat.tokens.copy()
    tokens[7] = counts(rng.dirichlet(np.full(EXPERTS, 0.3), LAYERS), count=1)[0]
    found = co.diagnose(co.Loads(tokens), GPUS)
    assert found.verdict in ("leave it", "collect more windows first")
    assert any("One window, '7'" in text for text in found.reasons)


def test_one_window_is_too_few(skewed):
    found = co.diagnose(skewed.select([0]), GPUS)
    assert (found.verdict, found.gains) == ("collect more windows first", ())
    assert "no gain can be held out" in str(found)


@pytest.mark.parametrize("count", [2, 3])
def test_noise_on_a_few_windows_is_no_reason_to_act(count, flat):
    found = co.diagnose(flat.select(range(count)), GPUS)
    assert found.verdict == "collect more windows first"
    assert f"{count} are too few" in found.answer


def test_windows_without_tokens_are_left_out(skewed, on_skewed):
    tokens = np.insert(skewed.tokens, [0, 5, 6], 0.0, axis=0)
    names = [str(i) for i in range(len(tokens))]
    found = co.diagnose(co.Loads(tokens, window_names=names), GPUS)
    assert found.gains == on_skewed.gains


# --- figures --------------------------------------------------------------------------------


def test_held_out_gains_are_of_plans_that_have_not_seen_the_window(skewed, on_skewed):
    now = then = 0.0
    trivial = co.solve(co.Problem(skewed, GPUS), "trivial").plan
    for odd in (True, False):
        train, test = skewed.split((np.arange(WINDOWS) % 2 == 1) == odd)
        problem = co.Problem(train, GPUS, slots="even")
        then += co.evaluate(co.solve(problem, work_limit=30_000).plan, test).max_load.sum()
        now += co.evaluate(trivial, test).max_load.sum()
    assert on_skewed.gains[0].replicas == 0
    assert on_skewed.gains[0].held_out == pytest.approx(1 - then / now, abs=1e-12)


def test_no_gain_is_beyond_the_proven_limit_and_shares_sum_to_all(on_skewed):
    for found in on_skewed.gains:
        assert found.planned <= found.most + 1e-12
        assert found.low <= found.held_out <= found.high
    assert sum(on_skewed.shares.values()) == pytest.approx(1)


def test_very_wide_models_are_measured_on_some_layers(monkeypatch, tmp_path):
    rng = np.random.default_rng(8)
    tokens = rng.lognormal(size=(1, 20, 16)) * rng.lognormal(sigma=0.1, size=(10, 20, 16)) * 1000
    loads = co.Loads(tokens.round())
    whole = co.diagnose(loads, gpus=4)
    monkeypatch.setattr("craftopt.diagnosis.measuring.MOST_HOSTS", 10 * 16 * 4)
    some = co.report(loads, gpus=4, path=tmp_path / "report.html")
    assert [plan.layer_ids.tolist() for plan in some.plans[0]] == 2 * [list(range(0, 20, 2))]
    assert "Measured on 10 of the 20 layers, evenly spread." in some.reasons
    assert not any(reason.startswith("Measured on") for reason in whole.reasons)
    chosen = some.chosen
    assert chosen.planned <= chosen.most
    part = loads.with_layers(range(0, 20, 2), range(0, 20, 2))
    assert co.diagnose(part, gpus=4).gains == some.gains


def test_the_map_that_is_served_is_what_gains_are_against(skewed):
    problem = co.Problem(skewed, GPUS, replicas_per_layer=4, slots="even")
    found = co.diagnose(skewed, GPUS, plan=co.solve(problem).plan)
    assert found.verdict == "leave it"
    assert 4 in [gain.replicas for gain in found.gains]
    assert not any("--map" in text for text in found.reasons)


def test_same_loads_same_diagnosis(skewed, on_skewed):
    assert co.diagnose(skewed, GPUS, workers=1).to_dict() == on_skewed.to_dict()


def test_kinds_of_traffic_that_share_nothing_do_not_help_each_other():
    rng = np.random.default_rng(3)
    shares = [rng.dirichlet(np.full(EXPERTS, 0.4), LAYERS) for _ in range(4)]
    kinds = [counts(one, count=4) for one in shares]
    names = [f"{kind}/{window}" for kind in "abcd" for window in range(4)]
    found = co.diagnose(co.Loads(np.concatenate(kinds), window_names=names), GPUS)
    best = max(gain.held_out for gain in found.gains)
    assert found.persistence.new_domains < best / 2
    assert found.persistence.next_window > found.persistence.other_domain
    assert any("record every kind" in text for text in found.reasons)


def test_cost_and_exchange_are_said_where_they_are_known():
    loads, trace = co.load_example("gpt-oss-20b"), co.load_example_trace("gpt-oss-20b")
    part = trace.select(["gpqa_main"])
    found = co.diagnose(
        part.batches(1500).select(range(4)), 4, 2, model="gpt-oss-20b", gpu="h100", trace=part
    )
    assert found.cost.memory == found.chosen.replicas * 24 / 4 * found_bytes()
    assert all(1 <= nodes <= 2 for nodes in found.critical_nodes)
    with pytest.raises(co.InputError, match="model and gpu go together"):
        co.diagnose(loads, 4, model="gpt-oss-20b")


def found_bytes():
    from craftopt.serving import Deployment, find_gpu, find_model  # noqa: PLC0415

    return Deployment(find_model("gpt-oss-20b"), find_gpu("h100"), 4, 2).expert_bytes


# --- windows --------------------------------------------------------------------------------


def test_windows_that_are_alike_foresee_each_other_and_noise_foresees_nothing(flat, skewed):
    assert recordings.foreseen(skewed)[1] > 0.95
    assert abs(recordings.foreseen(flat)[1]) < 0.2


def test_half_the_width_needs_four_times_the_windows():
    assert recordings.windows_needed(10, 0.02, 0.01) == 40
    assert recordings.windows_needed(10, 0.0, 0.01) == recordings.LEAST_WINDOWS


def test_what_is_needed_is_not_guessed_far_beyond_the_windows_there_are():
    assert recordings.in_words(recordings.windows_needed(3, 0.9, 0.01), 3) == "more than 12"
    assert recordings.in_words(recordings.windows_needed(1, 0.9, 0.01), 1) == "more than 8"
    assert recordings.in_words(recordings.windows_needed(3, 0.02, 0.01), 3) == "about 12"


@pytest.mark.parametrize("name", ["deepseek-r1", "qwen3-235b"])
def test_synthetic_examples_look_made_up(name):
    assert recordings.looks_made_up(co.load_example(name))


def test_measured_examples_do_not_look_made_up():
    assert recordings.looks_made_up(co.load_example("gpt-oss-20b")) is None
    assert recordings.looks_made_up(co.load_example("olmoe-1b-7b")) is None


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        (lambda rng: np.tile(rng.integers(1, 99, (1, 4, 16)), (3, 1, 1)), "all windows"),
        (lambda rng: rng.poisson(1000 / np.arange(1, 17), (3, 4, 16)), "hottest in most layers"),
        (lambda rng: rng.poisson(500 + 20 * np.arange(16), (3, 3, 16)), "number"),
        (lambda rng: rng.poisson(500, (3, 4, 16)), "drawn at random"),
    ],
)
def test_mock_traffic_is_recognised(tokens, reason):
    assert reason in recordings.looks_made_up(co.Loads(tokens(np.random.default_rng(0))))


# --- command line ---------------------------------------------------------------------------


def test_the_command_prints_the_verdict_first_and_json(skewed, tmp_path, capsys, monkeypatch):
    from craftopt import cli  # noqa: PLC0415

    file = tmp_path / "loads.npz"
    np.savez(file, counts=skewed.tokens.astype(int))

    def run(*words):
        monkeypatch.setattr("sys.argv", ["craftopt", "diagnose", str(file), "--gpus", "4", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        return capsys.readouterr().out

    assert run().startswith("replicate")
    found = json.loads(run("--json"))
    assert found["verdict"] == "replicate"
    assert math.isclose(sum(found["shares"].values()), 1)
