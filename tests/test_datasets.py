"""The example loads keep their shapes, their bytes and the figures they were calibrated to.

``python tests/test_datasets.py`` prints the tables of docs/research/example_loads.md.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from files import measured

import craftopt as co
from craftopt.datasets import is_synthetic

TOKENS, TOP_K = 24_576, 8
SHAPES = {  # first layer id, layers, experts
    "deepseek-r1": (3, 58, 256),
    "glm-5.2": (3, 75, 256),
    "kimi-k2": (1, 60, 384),
    "qwen3-235b": (0, 94, 128),
}
DIGESTS = {
    "deepseek-r1": "3b3eff272194e01bb47f590800b9a58fa51072592f2a0171619182f51b8ff952",
    "glm-5.2": "df773fe31261979394b4a1d320c929208f7bf2c0ec55be9b619a5bd22aedf896",
    "kimi-k2": "efd8ffc3be855766a006086d12930de762d98f988882cec3915a97acbf5a14ff",
    "qwen3-235b": "d27c72bd87990a10b87e47992ecdba98ceac376a91c9c9d57898868a5dea7560",
}
each_example = pytest.mark.parametrize("name", SHAPES)


# --- measuring ------------------------------------------------------------------------------


def gini(counts: np.ndarray) -> np.ndarray:
    """Gini coefficient over the last axis: 0 = all equal, towards 1 = one has everything."""
    n = counts.shape[-1]
    ranks = 2 * np.arange(1, n + 1) - n - 1
    return (np.sort(counts) * ranks).sum(axis=-1) / (n * counts.sum(axis=-1))


def hottest(counts: np.ndarray) -> np.ndarray:
    return counts.max(axis=-1) / counts.mean(axis=-1)


def deciles(values: np.ndarray) -> np.ndarray:
    return np.quantile(values, [0.1, 0.5, 0.9])


def figures(counts: np.ndarray, topics: list[str]) -> dict[str, np.ndarray]:
    """Measure skew and drift of [windows, layers, experts]; windows of a topic in order.

    Distances are total variation between the two windows' shares, averaged over layers.
    "within" is over consecutive windows of a topic, a figure per topic; "between" is over all
    pairs of windows of two topics.
    """
    counts = counts.astype(float)
    share = counts / counts.sum(axis=-1, keepdims=True)
    distance = np.array([np.abs(share - one).sum(axis=-1).mean(axis=-1) / 2 for one in share])
    label = np.array(topics)
    within = [
        np.mean([distance[i, i - 1] for i in np.flatnonzero(label == topic)[1:]])
        for topic in dict.fromkeys(topics)
        if topics.count(topic) > 1
    ]
    total = counts.sum(axis=0)
    return {
        "hottest, sum": deciles(hottest(total)),
        "hottest, window": deciles(hottest(counts)),
        "hottest, topic": np.array(
            [np.median(hottest(counts[label == t])) for t in dict.fromkeys(topics)]
        ),
        "gini, sum": deciles(gini(total)),
        "gini, window": deciles(gini(counts)),
        "within": np.array(within),
        "between": np.array([distance[label[:, np.newaxis] != label].mean()]),
    }


def log_variance(counts: np.ndarray, topics: int) -> np.ndarray:
    """Shares of the variance of log load: common to all topics, between, within topics."""
    log = np.log(counts + 0.5).reshape(topics, -1, *counts.shape[1:])
    log = log - log.mean(axis=-1, keepdims=True)
    by_topic = log.mean(axis=1)
    parts = np.array(
        [
            by_topic.mean(axis=0).var(axis=-1).mean(),
            by_topic.var(axis=0, ddof=1).mean(),
            log.var(axis=1, ddof=1).mean(),
        ]
    )
    return parts / parts.sum()


def counts_of(name: str) -> tuple[np.ndarray, list[str]]:
    with np.load(measured(name)) as file:
        return file["counts"], [str(step).split("/")[0] for step in file["step_names"]]


def shards_of_trace(name: str, key: str, experts: int, least: int) -> tuple[np.ndarray, list[str]]:
    """Cut every topic of a token trace with at least ``least`` tokens into 8 shards."""
    with np.load(measured(f"{name}_trace")) as file:
        chosen, label = file["topk_ids"], file[key]
    counts, topics = [], []
    for topic in np.unique(label):
        tokens = np.flatnonzero(label == topic)
        if len(tokens) < least:
            continue
        for part in np.array_split(chosen[tokens], 8):
            layers = part.swapaxes(0, 1)
            counts.append([np.bincount(layer.ravel(), minlength=experts) for layer in layers])
            topics.append(str(topic))
    return np.array(counts), topics


def glm() -> dict[str, np.ndarray]:
    return figures(*counts_of("glm52_five_domains"))


def v2_lite() -> dict[str, np.ndarray]:
    return figures(*shards_of_trace("deepseek_v2_lite_esft", "task", 64, 0))


def gpt_oss() -> dict[str, np.ndarray]:
    """Measure skew and "between" on whole benchmarks, "within" on shards of the larger ones."""
    shards = figures(*shards_of_trace("gpt_oss_20b_benchmarks", "step", 32, 12_000))
    return figures(*counts_of("gpt_oss_20b_benchmarks")) | {"within": shards["within"]}


def olmoe() -> dict[str, np.ndarray]:
    counts, topics = counts_of("olmoe_1b7b_allenai")
    return figures(counts[:6], topics[:6])  # the last two are other models on tulu


def halfway(
    one: dict[str, np.ndarray], other: dict[str, np.ndarray]
) -> dict[str, np.ndarray | float]:
    """Geometric means of the figures that do not hinge on the number of experts."""
    middle: dict[str, np.ndarray | float] = {
        figure: np.sqrt(one[figure] * other[figure])
        for figure in ("gini, sum", "gini, window", "between")
    }
    drifts = [side["within"].mean() for side in (one, other) if side["within"].size]
    return middle | {"within": float(np.exp(np.mean(np.log(drifts))))}


def made(name: str) -> dict[str, np.ndarray]:
    loads = co.load_example(name)
    return figures(loads.tokens, [window.split("/")[0] for window in loads.window_names])


# --- promises -------------------------------------------------------------------------------


def test_the_examples_are_listed_and_those_made_up_are_known_as_such() -> None:
    assert set(SHAPES) < set(co.example_names())
    assert tuple(filter(is_synthetic, co.example_names())) == tuple(SHAPES)


def test_measured_examples_are_the_published_counts() -> None:
    gpt, olmoe = co.load_example("gpt-oss-20b"), co.load_example("OLMoE-1B-7B")
    assert (gpt.tokens.sum(axis=(0, 2)) == 215_438 * 4).all(), "every layer sees every token"
    assert olmoe.layer_ids.tolist() == [0, 7, 15]
    # Published results refer to these loads.
    assert gpt.digest.startswith("bef23b5e6b6e97f0")
    assert olmoe.digest.startswith("968428fd0db636c3")


def test_the_thinned_trace_holds_whole_sequences_of_every_benchmark() -> None:
    trace, counts = co.load_example_trace("GPT-OSS-20b"), co.load_example("gpt-oss-20b")
    assert trace.domain_names == counts.window_names
    assert trace.layer_ids.tolist() == counts.layer_ids.tolist()
    drawn = [
        np.unique(trace.sequence[trace.domain == domain]).size
        for domain in range(len(trace.domain_names))
    ]
    assert drawn == [4, *[24] * 9, 4]
    part = trace.batches(trace.tokens).tokens[0]
    assert (part <= counts.tokens.sum(axis=0)).all(), "the tokens are among those counted"


def test_measured_data_names_source_commit_and_licence_and_is_small() -> None:
    package = Path(co.__file__).parent
    measured = sorted((package / "data").glob("*.npz"))
    notice = (package.parent / "NOTICE").read_text(encoding="utf-8")
    assert all(f"craftopt/data/{file.name}" in notice for file in measured)
    assert notice.count("commit ") == 2
    assert sum(file.stat().st_size for file in measured) < 3e6


def test_an_example_without_tokens_has_no_trace() -> None:
    with pytest.raises(co.InputError, match=r"example with a trace='olmoe.*gpt-oss-20b"):
        co.load_example_trace("olmoe-1b-7b")


@each_example
def test_shape_layer_ids_and_windows_are_the_models_own(name: str) -> None:
    first, layers, experts = SHAPES[name]
    loads = co.load_example(name)
    assert loads.tokens.shape == (40, layers, experts)
    assert loads.layer_ids.tolist() == list(range(first, first + layers))
    assert loads.window_names == tuple(f"synthetic-{t}/{s}" for t in "abcde" for s in range(8))


@each_example
def test_counts_are_those_of_tokens_that_pick_k_different_experts(name: str) -> None:
    tokens = co.load_example(name).tokens
    assert (tokens == np.rint(tokens)).all(), "counts are whole"
    assert (tokens.sum(axis=-1) == TOKENS * TOP_K).all(), "every layer sees every token k times"
    assert tokens.min() >= 0
    assert tokens.max() <= TOKENS, "no token picks an expert twice"


@each_example
def test_bytes_are_frozen(name: str) -> None:
    assert co.load_example(name).digest == DIGESTS[name], "published results refer to these loads"


def test_names_are_matched_without_regard_to_case() -> None:
    assert co.load_example("GLM-5.2") == co.load_example("glm-5.2")


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("deepseek-r2", "did you mean 'deepseek-r1'"),
        ("Qwen-235B", "did you mean 'qwen3-235b'"),
        ("", "is unknown"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_and_all_names(wrong: str, hint: str) -> None:
    with pytest.raises(co.InputError, match=hint) as caught:
        co.load_example(wrong)
    assert repr(wrong) in str(caught.value)
    assert all(name in str(caught.value) for name in SHAPES)


def test_listing_the_examples_does_not_load_scipy() -> None:
    code = "import craftopt, sys; craftopt.example_names(); assert 'scipy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@each_example
def test_layers_differ_in_skew_and_topics_differ_more_than_shards(name: str) -> None:
    figure = made(name)
    low, _, high = figure["hottest, sum"]
    assert high > 2 * low
    assert figure["between"] > 1.5 * figure["within"].mean()


def test_glm_matches_the_measured_skew_and_drift() -> None:
    ours, theirs = made("glm-5.2"), glm()
    for figure, values in theirs.items():
        np.testing.assert_allclose(ours[figure], values, rtol=0.08, err_msg=figure)


@pytest.mark.parametrize(
    ("name", "one", "other", "tolerance"),
    [
        ("deepseek-r1", glm, v2_lite, 0.08),
        ("kimi-k2", glm, v2_lite, 0.08),
        ("qwen3-235b", gpt_oss, olmoe, 0.12),
    ],
)
def test_the_others_lie_halfway_between_two_measured_models(
    name: str,
    one: Callable[[], dict[str, np.ndarray]],
    other: Callable[[], dict[str, np.ndarray]],
    tolerance: float,
) -> None:
    ours = made(name)
    ours["within"] = ours["within"].mean()
    for figure, values in halfway(one(), other()).items():
        np.testing.assert_allclose(ours[figure], values, rtol=tolerance, err_msg=figure)


def _print_tables() -> None:
    sides = {"GLM-5.2": glm(), "V2-Lite": v2_lite(), "gpt-oss": gpt_oss(), "OLMoE": olmoe()}
    rows = {f"measured {name}": side for name, side in sides.items()}
    rows["target R1, Kimi"] = halfway(sides["GLM-5.2"], sides["V2-Lite"])
    rows["target Qwen3"] = halfway(sides["gpt-oss"], sides["OLMoE"])
    rows |= {f"made {name}": made(name) for name in SHAPES}
    for row, figure in rows.items():
        print(row)
        for name, values in figure.items():
            digits = 1 if name.startswith("hottest") else 3
            print(f"  {name:16}", " / ".join(f"{v:.{digits}f}" for v in np.atleast_1d(values)))
        if np.size(figure["within"]) > 1:
            print(f"  {'within, mean':16} {np.mean(figure['within']):.3f}")
    print("log variance, GLM-5.2 measured", log_variance(counts_of("glm52_five_domains")[0], 5))
    for name in SHAPES:
        print(f"log variance, {name} made", log_variance(co.load_example(name).tokens, 5))


if __name__ == "__main__":
    _print_tables()
