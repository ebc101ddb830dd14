# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which copy serves: METRO's question, and its exact answer
#
# In decode a GPU's time is that of reading the experts that it activates. A second copy that
# serves one token costs as much as one that serves all, so where tokens are spread over all
# copies, replicas make decode slower. METRO ([arXiv 2512.09277](https://arxiv.org/abs/2512.09277))
# sends all tokens of an expert to one copy, chosen greedily; `co.route(..., "exact")` finds the
# best choice. Here both on synthetic tokens with the shape of Qwen3-235B; `docs/research/metro.md`
# has the whole study, on real traces too.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np

import craftopt as co
from craftopt.routing import check_witness
from craftopt.serving import Deployment, Profile, find_gpu, find_model, step_time
from craftopt.serving.timing import ASSIGNMENTS

GPUS, TOP_K = 8, 8

# %% [markdown]
# ## Traffic
#
# Twelve layers of the example loads, one topic: its odd windows are planned, tokens are drawn from
# its even ones. An expert that the share p of a window's tokens choose gets the rate -log(1 - p),
# and a token takes the 8 experts whose exponential clocks ring first.

# %%
loads = co.load_example("qwen3-235b")
topic = [index for index, name in enumerate(loads.window_names) if name.startswith("synthetic-d/")]
layers = np.linspace(0, loads.layers - 1, 12).astype(int)
windows = loads.tokens[topic][:, layers]
planned, served = windows[1::2].sum(axis=0), windows[0::2]

rng = np.random.default_rng(0)
share = served * TOP_K / served.sum(axis=2, keepdims=True)
rates = -np.log1p(-np.clip(share, 1e-6, 1 - 1e-6))
window = rng.integers(len(served), size=4096)
chosen = [
    np.argsort(rng.standard_exponential((window.size, loads.experts)) / rates[window, layer])
    for layer in range(layers.size)
]
trace = co.Trace(np.stack(chosen, axis=1)[:, :, :TOP_K], loads.experts)
print(trace)
print(f"hottest expert / mean: {(planned.max(1) / planned.mean(1)).mean():.1f} on average")


# %% [markdown]
# ## Plans
#
# EPLB's, as in the paper, with 1 to 1.5 copies per expert.


# %%
def eplb(ratio):
    tables = co.eplb.rebalance_experts(planned, int(loads.experts * ratio), 1, 1, GPUS)
    return co.Plan.from_phy2log(tables.phy2log, GPUS, loads.experts)


plans = {ratio: eplb(ratio) for ratio in (1.0, 1.125, 1.25, 1.5)}
batches = {
    size: trace.batches(size, "random", seed=0).tokens[: 2048 // size] for size in (32, 256, 1024)
}

# %% [markdown]
# ## One batch
#
# `explanation` says what is proven. The witness is a set of GPUs that alone host too many active
# experts for any routing with fewer copies on the fullest; `check_witness` counts that in whole
# numbers.

# %%
batch = batches[32][0]
for rule in ("even", "hash", "metro", "exact"):
    routing = co.route(plans[1.5], batch, rule)
    print(f"{rule:6} copies on the fullest GPU, by layer: {routing.max_activated}")
print(routing.explanation)
check_witness(routing, batch)

# %% [markdown]
# ## All rules, ratios and sizes
#
# `even` reads every copy of every active expert; `hash` sends single tokens to single copies, as
# vLLM does, which is the same once an expert has many tokens. The last two columns are against a
# plan without replicas.


# %%
def fullest(plan, size, rule):
    return np.mean([co.route(plan, batch, rule).max_activated for batch in batches[size]])


print("tokens  copies   exact   metro    hash    even   metro to none  exact to none")
for size in batches:
    none = fullest(plans[1.0], size, "exact")
    for ratio, plan in plans.items():
        if ratio == 1.0:
            continue  # there every rule is the same
        exact, metro, hashed, even = (
            fullest(plan, size, rule) for rule in ("exact", "metro", "hash", "even")
        )
        above = "  ".join(f"{value / exact - 1:+6.1%}" for value in (metro, hashed, even))
        print(f"{size:6}  {ratio:6}  {exact:6.2f}  {above}  {metro / none - 1:+14.1%}"
              f"  {exact / none - 1:+13.1%}")  # fmt: skip

# %% [markdown]
# ## The order that the paper leaves open
#
# The greedy runs over the experts in parallel, and nothing says which comes first. Renumbering the
# experts changes the order: experts with the fewest hosts first leave the choices to the end.


# %%
def greedy(plan, size, order):
    rows = np.arange(plan.layers)[:, np.newaxis]
    renumbered = co.Plan(plan.copies[rows, order])
    routings = [co.route(renumbered, batch[rows, order], "metro") for batch in batches[size]]
    return np.mean([routing.max_activated for routing in routings])


plan = plans[1.5]
ids = np.tile(np.arange(plan.experts), (plan.layers, 1))
hosts = plan.replica_counts
orders = {
    "by id": ids,
    "at random": rng.permuted(ids, axis=1),
    "most hosts first": np.argsort(-hosts, axis=1, kind="stable"),
    "fewest hosts first": np.argsort(hosts, axis=1, kind="stable"),
}
above = {
    label: [100 * (greedy(plan, size, order) / fullest(plan, size, "exact") - 1)
            for size in batches]
    for label, order in orders.items()
}  # fmt: skip
for label, values in above.items():
    print(f"{label:20}", "  ".join(f"{value:+5.1f} %" for value in values))

# %%
figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for label, values in above.items():
    ax.plot(list(batches), values, marker="o", label=label)
ax.set_xscale("log", base=2)
ax.set_xlabel("tokens in the batch")
ax.set_ylabel("above the optimum, %")
ax.legend()

# %% [markdown]
# ## Time to route
#
# All layers in one call, on one core; the figure depends on the machine. The paper has 116-129
# microseconds per layer for its exact solver on a processor, and 26 for its greedy on the GPU.

# %%
for rule in ("metro", "exact"):
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        co.route(plans[1.5], batches[256][0], rule)
        seconds.append(time.perf_counter() - start)
    print(f"{rule}: {np.median(seconds) * 1e6 / plan.layers:.1f} microseconds per layer")

# %% [markdown]
# ## What decode gains, by the roofline
#
# Twelve layers of Qwen3-235B on 8 B200, 1024 sequences. The profile holds what these batches put
# on the fullest GPU. METRO gathers all tokens on all GPUs before top-k, even dispatch sends them
# after it.

# %%
model = find_model("qwen3-235b").replace(layers=12, moe_layers=12)
spread = Deployment(model, find_gpu("b200"), gpus=GPUS, step_overhead=0.0)


def decode(plan, size, rule, exchange):
    routings = [co.route(plan, batch, rule) for batch in batches[size]]
    activated = np.array([routing.max_activated for routing in routings], dtype=float)
    tokens = np.array([routing.max_tokens for routing in routings])
    profile = Profile(
        weights=np.full(len(routings), 1 / len(routings)),
        fullest=tokens / (size * TOP_K),
        activated=np.broadcast_to(activated, (ASSIGNMENTS.size, *activated.shape)),
    )
    there = spread.replace(exchange=exchange)
    return step_time(there, profile, "decode", tokens=size / GPUS, context=2048)


base = decode(plans[1.5], 1024, "even", "all-to-all").total
for ratio, rule, exchange in [
    (1.5, "even", "all-to-all"),
    (1.5, "metro", "all-to-all"),
    (1.5, "metro", "all-gather"),
    (1.5, "exact", "all-gather"),
    (1.0, "even", "all-to-all"),
]:
    step = decode(plans[ratio], 1024, rule, exchange)
    change = step.total / base - 1
    print(
        f"{ratio:4} x, {rule:5}, {exchange}: experts {step.experts * 1e3:5.2f} ms, "
        f"exchange {step.exchange * 1e3:4.2f} ms, step {step.total * 1e3:5.2f} ms ({change:+.1%})"
    )

# %% [markdown]
# Where every expert is active, no routing reads fewer copies than a plan without replicas has.
# Replicas pay in prefill; in decode the best routing only takes their harm away.
