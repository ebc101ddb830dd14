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

# %%

# %% [markdown]
# # Which copy serves: METRO's question, and its exact answer
#
# In decode a GPU's time is that of reading the experts that it activates. A second copy that
# serves one token costs as much as one that serves all, so where tokens are spread over all
# copies, replicas make decode slower. METRO ([arXiv 2512.09277](https://arxiv.org/abs/2512.09277))
# sends all tokens of an expert to one copy, chosen greedily; `"exact"` finds the best choice, in
# about the same time. Measured tokens of gpt-oss-20b, 8 GPUs, EPLB's plan with half as many
# replicas as experts; the odd batches are planned, the even ones served.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np

import craftopt as co
from craftopt.reporting.layers import plot_pareto
from craftopt.reporting.plots import line_style
from craftopt.routing import check_witness
from craftopt.serving import Deployment, Profile, find_gpu, find_model, step_time
from craftopt.serving.timing import ASSIGNMENTS

GPUS, SIZES, RULES = 8, (16, 64, 256, 1024), ("exact", "metro", "hash", "even")
trace = co.load_example_trace("gpt-oss-20b")
planned, served = co.holdout(trace.batches(1024, "random", seed=0), "odd-even")


def eplb(ratio):
    load = planned.total().tokens[0]
    tables = co.eplb.rebalance_experts(load, int(trace.experts * ratio), 1, 1, GPUS)
    return co.Plan.from_phy2log(tables.phy2log, GPUS, trace.experts)


def fullest(plan, size, rule):
    routings = [co.route(plan, batch, rule) for batch in batches[size]]
    return np.mean([routing.max_activated for routing in routings])


batches = {size: trace.batches(size, "random", seed=1).tokens[:40] for size in SIZES}
plans = {ratio: eplb(ratio) for ratio in (1.0, 1.25, 1.5)}
copies = {rule: [fullest(plans[1.5], size, rule) for size in SIZES] for rule in RULES}
none = [fullest(plans[1.0], size, "exact") for size in SIZES]

figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
ax.plot(SIZES, none, color="black", linestyle=":", label="no replicas, any rule")
for index, (rule, line) in enumerate(copies.items()):
    ax.plot(SIZES, line, label=f"1.5 x copies, {rule}", **line_style(index))
ax.set_xscale("log", base=2)
ax.set_xticks(SIZES, SIZES)
ax.set(xlabel="tokens in the batch", ylabel="experts read by the busiest GPU", ylim=(0, None))
_ = ax.legend(frameon=False)
# %% [markdown]
# Spread evenly, replicas make the busiest GPU read half as much again as without any. Routed
# exactly, they help in small batches, and in large ones, where every expert is active, they hardly
# do harm.
#
# ## One batch
#
# `explanation` says what is proven. The witness is a set of GPUs that alone host too many active
# experts for any routing with fewer copies on the fullest; `check_witness` counts that in whole
# numbers.

# %%
batch = batches[16][0]
for rule in ("even", "hash", "metro", "exact"):
    routing = co.route(plans[1.5], batch, rule)
    print(f"{rule:6} copies on the fullest GPU, by layer: {routing.max_activated}")
print(routing.explanation)
check_witness(routing, batch)

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
hosts = plan.replica_counts
ids = np.tile(np.arange(plan.experts), (plan.layers, 1))
orders = {
    "by id": ids,
    "most hosts first": np.argsort(-hosts, axis=1, kind="stable"),
    "fewest hosts first": np.argsort(hosts, axis=1, kind="stable"),
}
print("above the optimum, for batches of", *SIZES, "tokens")
for label, order in orders.items():
    above = [
        greedy(plan, size, order) / best - 1
        for size, best in zip(SIZES, copies["exact"], strict=True)
    ]
    print(f"{label:20}", "  ".join(f"{value:+6.1%}" for value in above))

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
        co.route(plan, batches[256][0], rule)
        seconds.append(time.perf_counter() - start)
    print(f"{rule}: {np.median(seconds) * 1e6 / plan.layers:.1f} microseconds per layer")

# %% [markdown]
# ## What decode gains, by the roofline
#
# A model, not a measurement: gpt-oss-20b on 8 H100, 1,024 sequences. The profile holds what these
# batches put on the fullest GPU. METRO gathers all tokens on all GPUs before top-k, even dispatch
# sends them after it.

# %%
spread = Deployment(find_model("gpt-oss-20b"), find_gpu("h100"), gpus=GPUS, step_overhead=0.0)


def decode(plan, size, rule, exchange):
    routings = [co.route(plan, batch, rule) for batch in batches[size]]
    activated = np.array([routing.max_activated for routing in routings], dtype=float)
    tokens = np.array([routing.max_tokens for routing in routings])
    profile = Profile(
        weights=np.full(len(routings), 1 / len(routings)),
        fullest=tokens / (size * trace.topk_ids.shape[2]),
        activated=np.broadcast_to(activated, (ASSIGNMENTS.size, *activated.shape)),
    )
    there = spread.replace(exchange=exchange)
    return step_time(there, profile, "decode", tokens=size / GPUS, context=2048)


base = decode(plan, 1024, "even", "all-to-all").total
for ratio, rule, exchange in [
    (1.5, "even", "all-to-all"),
    (1.5, "metro", "all-gather"),
    (1.5, "exact", "all-gather"),
    (1.0, "even", "all-to-all"),
]:
    step = decode(plans[ratio], 1024, rule, exchange)
    print(
        f"{ratio:4} x, {rule:5}, {exchange:10}: experts {step.experts * 1e3:5.2f} ms, "
        f"exchange {step.exchange * 1e3:4.2f} ms, step {step.total / base - 1:+.1%}"
    )

# %% [markdown]
# Where every expert is active, no routing reads fewer copies than a plan without replicas has.
# Replicas pay in prefill; in decode the best routing only takes their harm away.
#
# ## One plan for both
#
# Prefill waits for the GPU with the most tokens, decode for the one that reads most experts. Every
# third layer, batches of 1,024 tokens and of 16, half of them not seen; numbers are the weight of
# decode. The line joins the plans that no other beats in both.

# %%
part = co.Trace(trace.topk_ids[:, ::3], trace.experts)
prefill, prompts = co.holdout(part.batches(1024), "odd-even")
decoded, steps = co.holdout(part.batches(16, "random").select(range(100)), "odd-even")
for_prefill = co.Problem(prefill, gpus=GPUS, replicas_per_layer=16, slots="uniform")
for_decode = for_prefill.replace(loads=decoded, objective="activated")
shown = {"EPLB": co.solve(for_prefill, "eplb").plan}
for weight in (0, 0.1, 0.5, 1):
    shown[f"{weight:g}"] = co.plan_for_both(for_prefill, for_decode, weight=weight)
_ = plot_pareto(shown, prompts, steps)

# %% [markdown]
# Equal weights cost prefill 2 % and have most of what decode can gain; the plan for decode alone
# costs prefill a quarter. EPLB's plan is behind in both. All rules are in
# [routing](../routing.md), [METRO's claims](../research/metro.md) are studied on real traces.
