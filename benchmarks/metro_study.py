"""METRO's claims: how far its greedy is from the optimum, and what decode gains by it.

    python benchmarks/metro_study.py [TRACE.npz ...] [--plot docs/research/metro_study.png]

EPLB's plan, as in the paper, and the rules of `co.route` on batches of tokens that it was not
planned on: of the token traces given (half of the tokens planned, half served), and of example
shapes (odd windows of one topic planned, tokens drawn from its even ones). Then the roofline of
`craftopt.serving` with the copies and tokens that these batches put on the fullest GPU. Prints
Markdown tables and saves a plot.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt

import craftopt as co
from craftopt.reporting.plots import line_style
from craftopt.serving import (
    Deployment,
    Profile,
    StepTime,
    find_gpu,
    find_model,
    memory_of,
    profile_of,
    step_time,
)
from craftopt.serving.timing import ASSIGNMENTS

Array = npt.NDArray[np.float64]

RATIOS = (1.0, 1.125, 1.25, 1.5)
SIZES = (32, 256, 1024)  # tokens of a batch, all GPUs together
PLOT_SIZES = (32, 64, 128, 256, 512, 1024)
MOST_BATCHES = 32
POOL = 16384  # tokens drawn per example shape
TOPICS = {"c": "code", "d": "math"}  # whose skew the examples were fitted to
RANDOM_ORDERS = 4
# Microseconds per layer that the paper gives: its greedy, on the GPU, and bringing the choices to
# the processor, where an exact solver would run.
GREEDY_ON_GPU, CHOICES_TO_CPU = 26.0, 29.2
# Its layer of experts: 116.3-128.8 us are 31.4-41.3 % of one, so 341 us halfway of 370 and 312. The
# share of the memory's bandwidth at which the model's layer (even dispatch, 1.5 x) takes as long.
FITTED_EFFICIENCY = 0.43


@dataclass(frozen=True, eq=False)
class Traffic:
    """Hold what a plan is made for, [layers, experts], and the tokens that it serves."""

    name: str
    gpus: int
    planned: Array
    served: co.Trace
    windows: Array | None = None  # of an example, [windows, layers, experts]: what is drawn from

    @cache  # noqa: B019 (few, and all live as long as the study)
    def plan(self, ratio: float) -> co.Plan | None:
        """Make EPLB's plan; None where the ratio gives no whole slots."""
        slots = self.planned.shape[1] * ratio
        if slots % self.gpus:
            return None
        tables = co.eplb.rebalance_experts(self.planned, int(slots), 1, 1, self.gpus)
        return co.Plan.from_phy2log(tables.phy2log, self.gpus, self.planned.shape[1])

    @cache  # noqa: B019
    def batches(self, size: int) -> Array:
        """Draw batches without replacement, [batches, layers, experts]."""
        count = min(MOST_BATCHES, self.served.tokens // size)
        return self.served.batches(size, "random", seed=0).tokens[:count]

    @cache  # noqa: B019
    def routed(self, ratio: float, size: int, rule: str) -> tuple[Array, Array]:
        """Route; most activated copies and most tokens on a GPU, each [batches, layers]."""
        plan = self.plan(ratio)
        assert plan is not None
        routings = [co.route(plan, batch, rule) for batch in self.batches(size)]
        activated = np.array([routing.max_activated for routing in routings], dtype=np.float64)
        return activated, np.array([routing.max_tokens for routing in routings])

    def greedy(self, ratio: float, size: int, order: npt.NDArray[np.int64]) -> Array:
        """Run METRO's greedy in another order, [layers, experts]: by id after renumbering."""
        plan = self.plan(ratio)
        assert plan is not None
        rows = np.arange(plan.layers)[:, np.newaxis]
        renumbered = co.Plan(plan.copies[rows, order])
        most = [
            co.route(renumbered, batch[rows, order], "metro").max_activated
            for batch in self.batches(size)
        ]
        return np.array(most, dtype=np.float64)


def traffic_of_trace(path: Path, gpus: int) -> Traffic:
    """Plan on a random half of a trace's tokens (seed 0) and serve the other."""
    trace = co.read_trace(path)
    half = np.random.default_rng(0).permutation(trace.tokens) % 2 == 0
    planned, served = (co.Trace(trace.topk_ids[mask], trace.experts) for mask in (half, ~half))
    name = path.stem.removesuffix("_trace")
    return Traffic(name, gpus, planned.batches(planned.tokens).tokens[0], served)


def draw_tokens(windows: Array, k: int, tokens: int, seed: int) -> co.Trace:
    """Draw the choices of independent tokens from counts [windows, layers, experts].

    An expert that a share p of a window's tokens choose gets the rate -log(1 - p); a token chooses
    the k experts whose exponential clocks ring first.
    """
    rng = np.random.default_rng(seed)
    count, layers, experts = windows.shape
    window = rng.integers(count, size=tokens)
    chosen = np.empty((tokens, layers, k), dtype=np.int16)
    for layer in range(layers):
        share = windows[:, layer] * k / windows[:, layer].sum(axis=1, keepdims=True)
        rates = (-np.log1p(-np.clip(share, 1e-6, 1 - 1e-6))).astype(np.float32)
        clocks = rng.standard_exponential((tokens, experts), dtype=np.float32) / rates[window]
        chosen[:, layer] = np.argpartition(clocks, k - 1, axis=1)[:, :k]
    return co.Trace(chosen, experts)


def traffic_of_example(
    name: str, example: str, gpus: int, topic: str, layers: int | None = None
) -> Traffic:
    """Plan on the odd windows of a topic and serve its even ones; perhaps fewer layers, evenly."""
    loads = co.load_example(example)
    ours = [window for window, label in enumerate(loads.window_names) if f"-{topic}/" in label]
    tokens = loads.tokens[ours]
    if layers is not None:
        tokens = tokens[:, np.linspace(0, loads.layers - 1, layers).round().astype(int)]
    served = draw_tokens(tokens[0::2], k=8, tokens=POOL, seed=ord(topic))
    return Traffic(f"{name}, {TOPICS[topic]}", gpus, tokens[1::2].sum(axis=0), served, tokens[0::2])


def deployments() -> dict[str, Deployment]:
    """Return what the paper ran and simulated; one NVLink domain, attention by data."""
    a100 = find_gpu("a100").replace(name="A100-40G-SXM", memory=40 * 2**30, bandwidth=1.555e12)
    b200 = find_gpu("b200")
    return {
        "Qwen3-30B": Deployment(find_model("qwen3-30b"), a100, gpus=8),
        "Qwen3-235B": Deployment(find_model("qwen3-235b"), b200, gpus=8),
        "DeepSeek-V3": Deployment(find_model("deepseek-v3"), b200, gpus=16),
    }


def mean_ratio(values: Array, to: Array) -> float:
    return float(values.mean() / to.mean())


def print_traffics(traffics: list[Traffic]) -> None:
    print("| traffic | GPUs | layers x experts, top-k | hottest/mean, planned | "
          + " | ".join(f"active of {size}" for size in SIZES) + " |")  # fmt: skip
    print("|" + "---|" * (4 + len(SIZES)))
    for traffic in traffics:
        layers, experts = traffic.planned.shape
        skew = (traffic.planned.max(axis=1) / traffic.planned.mean(axis=1)).mean()
        active = [f"{(traffic.batches(size) > 0).sum(axis=2).mean():.0f}" for size in SIZES]
        k = traffic.served.topk_ids.shape[2]
        print(f"| {traffic.name} | {traffic.gpus} | {layers} x {experts}, {k} | {skew:.1f} | "
              + " | ".join(active) + " |")  # fmt: skip
    print()


def triple(values: list[float], form: str = "+.1%") -> str:
    """Format one value per size of the batch."""
    return " / ".join(f"{value:{form}}" for value in values)


def print_quality(traffics: list[Traffic]) -> None:
    """Print the most activated copies on a GPU; means over batches and layers."""
    print(
        f"Cells: batches of {' / '.join(map(str, SIZES))} tokens. metro, hash, even: above exact.\n"
    )
    print("| traffic | copies / experts | exact, copies | metro | hash | even | metro, worst layer"
          " | metro optimal in | metro below hash | metro below even | exact to no replicas"
          " | metro to no replicas |")  # fmt: skip
    print("|" + "---|" * 12)
    extremes: dict[str, tuple[float, str]] = {}
    for traffic in traffics:
        for ratio in RATIOS[1:]:
            if traffic.plan(ratio) is None:
                continue
            columns: dict[str, list[float]] = {}
            for size in SIZES:
                exact, metro, hashed, even = (
                    traffic.routed(ratio, size, rule)[0]
                    for rule in ("exact", "metro", "hash", "even")
                )
                none = traffic.routed(1.0, size, "exact")[0]
                found = {
                    "exact": float(exact.mean()),
                    "metro above exact": mean_ratio(metro, exact) - 1,
                    "hash above exact": mean_ratio(hashed, exact) - 1,
                    "even above exact": mean_ratio(even, exact) - 1,
                    "metro above exact in a layer": float((metro / exact).max() - 1),
                    "metro optimal": float((metro == exact).mean()),
                    "metro below hash": 1 - mean_ratio(metro, hashed),
                    "metro below even": 1 - mean_ratio(metro, even),
                    "exact to none": mean_ratio(exact, none) - 1,
                    "metro to none": mean_ratio(metro, none) - 1,
                }
                for label, value in found.items():
                    columns.setdefault(label, []).append(value)
                    where = f"{traffic.name}, {ratio}, {size}"
                    extremes[label] = max(extremes.get(label, (-1.0, "")), (value, where))
            forms = {"exact": ".2f", "metro optimal": ".0%", "metro above exact in a layer": "+.0%"}
            forms |= {"metro below hash": ".1%", "metro below even": ".1%"}
            cells = [triple(values, forms.get(name, "+.1%")) for name, values in columns.items()]
            print(f"| {traffic.name} | {ratio} | " + " | ".join(cells) + " |")
    print()
    for label in list(extremes)[1:]:
        print(f"most {label}: {extremes[label][0]:.1%} ({extremes[label][1]})")
    print()


def orders(traffic: Traffic, ratio: float) -> dict[str, list[npt.NDArray[np.int64]]]:
    """List orders of the experts, [layers, experts]: by id, fewest hosts first, at random."""
    plan = traffic.plan(ratio)
    assert plan is not None
    rng = np.random.default_rng(0)
    ids = np.tile(np.arange(plan.experts), (plan.layers, 1))
    hosts = (plan.copies > 0).sum(axis=2)
    fewest = np.argsort(hosts, axis=1, kind="stable")
    most = np.argsort(-hosts, axis=1, kind="stable")
    drawn = [rng.permuted(ids, axis=1) for _ in range(RANDOM_ORDERS)]
    return {"id": [ids], "fewest": [fewest], "random": drawn, "most": [most]}


def print_orders(traffics: list[Traffic]) -> None:
    """Print how far the greedy is above the optimum, by the order of the experts."""
    names = ("id", "random", "most", "fewest")
    print("| traffic | copies / experts | id | random | most hosts first | fewest hosts first"
          " | fewest, worst layer | fewest optimal in |")  # fmt: skip
    print("|" + "---|" * 8)
    largest = dict.fromkeys(names, 0.0)
    for traffic in traffics:
        for ratio in RATIOS[1:]:
            if traffic.plan(ratio) is None:
                continue
            in_order = orders(traffic, ratio)
            above: dict[str, list[float]] = {name: [] for name in names}
            worst, same = [], []
            for size in SIZES:
                exact = traffic.routed(ratio, size, "exact")[0]
                for name, several in in_order.items():
                    found = np.array([traffic.greedy(ratio, size, one) for one in several])
                    above[name].append(float(found.mean() / exact.mean() - 1))
                fewest = traffic.greedy(ratio, size, in_order["fewest"][0])
                worst.append(float((fewest / exact).max() - 1))
                same.append(float((fewest == exact).mean()))
            largest = {name: max(largest[name], *above[name]) for name in names}
            cells = [*(triple(above[name]) for name in names), triple(worst, "+.0%")]
            print(f"| {traffic.name} | {ratio} | " + " | ".join([*cells, triple(same, ".0%")])
                  + " |")  # fmt: skip
    print("\nlargest mean:", ", ".join(f"{name} {largest[name]:.1%}" for name in names), "\n")


def print_times(traffics: list[Traffic]) -> None:
    """Print microseconds per layer, all layers of a batch in one warm call, at 1.5 x."""
    print("| traffic | tokens | " + " | ".join(("metro", "exact", "hash", "even")) + " |")
    print("|" + "---|" * 6)
    for traffic in traffics:
        plan = traffic.plan(1.5)
        assert plan is not None
        for size in (32, 32 * traffic.gpus):
            batches = traffic.batches(size)
            seconds: dict[str, list[float]] = {"metro": [], "exact": [], "hash": [], "even": []}
            for call in range(300):  # in turn, so that a busy machine is busy for all
                for rule, times in seconds.items():
                    start = time.perf_counter()
                    co.route(plan, batches[call % len(batches)], rule)
                    times.append(time.perf_counter() - start)
            cells = [
                f"{statistics.median(times) * 1e6 / plan.layers:.1f}" for times in seconds.values()
            ]
            print(f"| {traffic.name} | {size} | " + " | ".join(cells) + " |")
    print()


def profile_of_batches(activated: Array, tokens: Array, assignments: int) -> Profile:
    """Profile batches of one size, as they were routed: for steps of that size alone."""
    batches = activated.shape[0]
    return Profile(
        weights=np.full(batches, 1 / batches),
        fullest=tokens / assignments,
        activated=np.broadcast_to(activated, (ASSIGNMENTS.size, *activated.shape)),
    )


def decode_step(
    spread: Deployment,
    traffic: Traffic,
    ratio: float,
    rule: str,
    size: int,
    context: float,
    exchange: str | None = None,
) -> StepTime:
    """Time a decoding step of the whole model; METRO's rules come after an all-gather."""
    gathered = "all-gather" if rule in ("metro", "exact") else "all-to-all"
    most = traffic.routed(ratio, size, rule)
    profile = profile_of_batches(*most, size * spread.model.top_k)
    there = spread.replace(exchange=exchange or gathered)
    return step_time(there, profile, "decode", size / spread.gpus, context)


def routing_seconds(spread: Deployment, rule: str) -> float:
    """Sum what choosing takes, over the layers, by the paper's measurements."""
    each = {"metro": GREEDY_ON_GPU, "exact": CHOICES_TO_CPU}.get(rule, 0.0)
    return each * 1e-6 * spread.model.moe_layers


def print_decode(cases: list[tuple[Deployment, Traffic, int, int]]) -> None:
    """Print decoding steps, compared with even dispatch on the same plan and with no replicas."""
    print("| traffic | tokens, context | copies / experts | no replicas, ms | even, ms | hash"
          " | metro, all-to-all | metro, all-gather | exact, all-gather | metro + routing's time"
          " | exact + routing's time | metro to no replicas | exact to no replicas |")  # fmt: skip
    print("|" + "---|" * 13)
    for spread, traffic, size, context in cases:
        none = decode_step(spread, traffic, 1.0, "even", size, context).total
        for ratio in RATIOS[1:]:
            total = {
                name: decode_step(spread, traffic, ratio, rule, size, context, exchange).total
                for name, rule, exchange in (
                    ("even", "even", None),
                    ("hash", "hash", None),
                    ("metro, to all", "metro", "all-to-all"),
                    ("metro", "metro", None),
                    ("exact", "exact", None),
                )
            }
            slow = [total[rule] + routing_seconds(spread, rule) for rule in ("metro", "exact")]
            cells = [f"{none * 1e3:.2f}", f"{total['even'] * 1e3:.2f}"]
            cells += [f"{value / total['even'] - 1:+.1%}" for value in list(total.values())[1:]]
            cells += [f"{value / total['even'] - 1:+.1%}" for value in slow]
            cells += [f"{total[rule] / none - 1:+.1%}" for rule in ("metro", "exact")]
            print(f"| {traffic.name} | {size}, {context} | {ratio} | " + " | ".join(cells) + " |")
    print()


def print_parts(cases: list[tuple[Deployment, Traffic, int, int]]) -> None:
    """Print a layer's experts and exchange at 1.5 x in microseconds, and the rest of the step."""
    print("| traffic | experts: even | metro | exact | no replicas | exchange: even, all-to-all"
          " | metro, all-to-all | metro, all-gather | step: experts, even, ms | exchange, ms"
          " | attention, ms | dense, ms | overhead, ms |")  # fmt: skip
    print("|" + "---|" * 13)
    for spread, traffic, size, context in cases:

        def step(
            rule: str,
            exchange: str | None = None,
            ratio: float = 1.5,
            case: tuple[Deployment, Traffic, int, int] = (spread, traffic, size, context),
        ) -> StepTime:
            return decode_step(case[0], case[1], ratio, rule, case[2], case[3], exchange)

        layer = 1e6 / spread.model.moe_layers
        even = step("even")
        cells = [
            *(f"{step(rule).experts * layer:.0f}" for rule in ("even", "metro", "exact")),
            f"{step('even', ratio=1.0).experts * layer:.0f}",
            f"{even.exchange * layer:.1f}",
            f"{step('metro', 'all-to-all').exchange * layer:.1f}",
            f"{step('metro').exchange * layer:.1f}",
            *(f"{part * 1e3:.2f}"
              for part in (even.experts, even.exchange, even.attention, even.dense, even.overhead)),
        ]  # fmt: skip
        print(f"| {traffic.name} | " + " | ".join(cells) + " |")
    print()


def print_contexts(spread: Deployment, traffic: Traffic, size: int) -> None:
    """Print what METRO gains at 1.5 x by the length of the context, without and with routing."""
    layer = [
        decode_step(spread, traffic, 1.5, rule, size, 512).experts / spread.model.moe_layers * 1e6
        for rule in ("even", "metro", "exact")
    ]
    print("experts of a layer, us: even, metro, exact", ", ".join(f"{us:.0f}" for us in layer))
    print("\n| context | even, ms | even to no replicas | metro | exact | metro + routing's time"
          " | exact + routing's time |")  # fmt: skip
    print("|" + "---|" * 7)
    for context in (512, 1024, 2048, 4096, 8192):
        even, metro, exact = (
            decode_step(spread, traffic, 1.5, rule, size, context).total
            for rule in ("even", "metro", "exact")
        )
        none = decode_step(spread, traffic, 1.0, "even", size, context).total
        changed = [
            metro, exact, metro + routing_seconds(spread, "metro"),
            exact + routing_seconds(spread, "exact"),
        ]  # fmt: skip
        print(f"| {context} | {even * 1e3:.2f} | {even / none - 1:+.1%} | "
              + " | ".join(f"{value / even - 1:+.1%}" for value in changed) + " |")  # fmt: skip
    print()


def best_at(targets: Array, steps: Array, sizes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Find for each target the size with the most tokens per second whose step fits."""
    rates = sizes / steps
    fits = steps <= targets[:, np.newaxis]
    best: npt.NDArray[np.int64] = np.where(fits, rates, 0.0).argmax(axis=1)
    return best


def most_gain(
    steps: dict[str, Array], base: str, sizes: npt.NDArray[Any]
) -> tuple[float, float, int, int]:
    """Find the target at which METRO's throughput is most above the base's.

    Targets are all that the base can meet. Returns gain, target, and both sizes.
    """
    candidates = np.concatenate([steps["metro"], steps[base]])
    targets = candidates[candidates >= max(steps["metro"].min(), steps[base].min())]
    mine, others = (best_at(targets, steps[rule], sizes) for rule in ("metro", base))
    gains = sizes[mine] / steps["metro"][mine] / (sizes[others] / steps[base][others])
    most = int(np.argmax(gains))
    return (
        float(gains[most]), float(targets[most]), round(sizes[others[most]]),
        round(sizes[mine[most]]),
    )  # fmt: skip


def print_fixed_tpot(spread: Deployment, traffic: Traffic, context: int, limit: int) -> None:
    """Print where METRO's throughput at a fixed time per token is most above another rule's."""
    for ratio in RATIOS[1:]:
        plan = traffic.plan(ratio)
        assert plan is not None
        room = memory_of(spread, plan).concurrency(limit) * spread.gpus
        sizes = 2.0 ** np.arange(5, 1 + int(np.log2(min(room, traffic.served.tokens))))
        fine = np.geomspace(sizes[0], sizes[-1], 16 * (sizes.size - 1) + 1)
        bare = {
            rule: np.array(
                [decode_step(spread, traffic, ratio, rule, int(size), context).total
                 for size in sizes]
            )
            for rule in ("even", "hash", "metro")
        }  # fmt: skip
        whole = {rule: steps + routing_seconds(spread, rule) for rule, steps in bare.items()}
        cells = [f"{room:,}"]
        for base in ("even", "hash"):
            for steps in (bare, whole):
                gain, target, others, mine = most_gain(steps, base, sizes)
                between = {rule: np.interp(fine, sizes, steps[rule]) for rule in steps}
                smooth = most_gain(between, base, fine)[0]
                cells.append(
                    f"{gain:.2f} ({others} to {mine}, {target * 1e3:.1f} ms), {smooth:.2f}"
                )
        print(f"| {traffic.name} | {ratio} | " + " | ".join(cells) + " |")


def print_prefill(spread: Deployment, traffic: Traffic, prompt: int) -> None:
    """Print what no replicas cost prefill, against 1.5 x under even dispatch, window by window."""
    assert traffic.windows is not None
    seconds = {}
    for ratio in (1.0, 1.5):
        plan = traffic.plan(ratio)
        assert plan is not None
        profile = profile_of(plan, co.Loads(traffic.windows))
        seconds[ratio] = step_time(spread, profile, "prefill", 8192, prompt / 2)
    whole, experts = (
        getattr(seconds[1.0], part) / getattr(seconds[1.5], part) - 1
        for part in ("total", "experts")
    )
    print(f"{traffic.name}: prefill without replicas {whole:+.1%}, its experts {experts:+.1%},"
          " to 1.5 x")  # fmt: skip


def plot(traffics: list[Traffic], file: Path) -> None:
    """Plot copies on the fullest GPU at 1.5 x above the optimum, by the size of the batch."""
    rules = {"even": "even", "hash": "hash (vLLM)", "metro": "METRO, by id"}
    columns = 4
    rows = -(-len(traffics) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(12, 2.7 * rows), sharex=True, sharey=True, layout="constrained"
    )
    axes = np.atleast_2d(grid).ravel()
    for ax in axes[len(traffics) :]:
        ax.set_axis_off()
    for ax, traffic in zip(axes, traffics, strict=False):
        exact = [traffic.routed(1.5, size, "exact")[0].mean() for size in PLOT_SIZES]
        lines = {
            label: [traffic.routed(1.5, size, rule)[0].mean() for size in PLOT_SIZES]
            for rule, label in rules.items()
        }
        fewest = orders(traffic, 1.5)["fewest"][0]
        lines["METRO, fewest hosts first"] = [
            traffic.greedy(1.5, size, fewest).mean() for size in PLOT_SIZES
        ]
        for index, (label, values) in enumerate(lines.items()):
            above = 100 * (np.array(values) / np.array(exact) - 1)
            ax.plot(PLOT_SIZES, above, label=label, **line_style(index) | {"markersize": 4})
        ax.axhline(10.9, color="0.5", linewidth=1, linestyle=":")
        ax.set_xscale("log", base=2)
        ax.set_xticks(PLOT_SIZES, [str(size) for size in PLOT_SIZES])
        ax.set_title(f"{traffic.name}, {traffic.gpus} GPUs", fontsize=9)
        ax.grid(color="0.9")
    axes[0].legend(fontsize=8)
    figure.supxlabel("tokens in the batch (dotted: 10.9 %, the paper's worst for its greedy)")
    figure.supylabel("copies on the fullest GPU above the optimum, %")
    figure.savefig(file, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("traces", type=Path, nargs="*")
    parser.add_argument("--plot", type=Path, default=Path("metro_study.png"))
    options = parser.parse_args()
    shapes = {
        "Qwen3-30B": ("qwen3-235b", 8, 48),
        "Qwen3-235B": ("qwen3-235b", 8, None),
        "DeepSeek-V3": ("deepseek-r1", 16, None),
    }
    examples = {
        (name, topic): traffic_of_example(name, example, gpus, topic, layers)
        for name, (example, gpus, layers) in shapes.items()
        for topic in TOPICS
    }
    traffics = [*(traffic_of_trace(path, 8) for path in options.traces), *examples.values()]
    print_traffics(traffics)
    print_quality(traffics)
    print_orders(traffics)
    print_times(traffics)
    plot(traffics, options.plot)

    spread = deployments()
    # The real system: 32 tokens per GPU, 8K context. Simulated: 1024 in all, 1K in and 2K out.
    setting = {"Qwen3-30B": (256, 8192), "Qwen3-235B": (1024, 2048), "DeepSeek-V3": (1024, 2048)}
    cases = [(spread[name], traffic, *setting[name]) for (name, _), traffic in examples.items()]
    print_decode(cases)
    print_parts(cases)
    deployment, traffic, size, _ = cases[0]
    for efficiency in (deployment.bandwidth_efficiency, FITTED_EFFICIENCY):
        print(f"{traffic.name}, {size} tokens, bandwidth efficiency {efficiency}\n")
        print_contexts(deployment.replace(bandwidth_efficiency=efficiency), traffic, size)
    print("most gain with batches of powers of 2 (batches, time per token), with any batch\n")
    print("| traffic | copies / experts | cache holds | to even | to even, with routing's time"
          " | to hash | to hash, with routing's time |")  # fmt: skip
    print("|" + "---|" * 7)
    for deployment, traffic, _, context in cases:
        if not traffic.name.startswith("Qwen3-30B"):
            print_fixed_tpot(deployment, traffic, context, limit=3072)
    print()
    for deployment, traffic, _, _ in cases:
        print_prefill(deployment, traffic, 1024)


if __name__ == "__main__":
    main()
