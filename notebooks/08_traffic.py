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
# # Balance is not enough
#
# A layer waits for its fullest GPU, and for its busiest link. A planner for balance alone does not
# look at the second: it spreads experts that tokens choose together over all nodes. Below, both
# are planned: two layers of gpt-oss-20b, measured, on 8 GPUs in 4 nodes, at rising prices of a
# node that a token visits. No placement is left of the dashed line.

# %%
import matplotlib.pyplot as plt
import numpy as np

import craftopt as co
from craftopt.bounds.traffic import companion_bound, token_sets

whole = co.load_example_trace("gpt-oss-20b")
ids, sequence = whole.topk_ids[:, 8::10], whole.sequence
odd = sequence % 2 == 1
seen, unseen = (co.Trace(ids[half], whole.experts, sequence=sequence[half]) for half in (odd, ~odd))
planned, served = seen.batches(1024), unseen.batches(1024)
problem = co.Problem(planned, gpus=8, nodes=4, slots="uniform")

pairs = seen.coactivation()
PRICES = (0, 0.2, 0.4, 0.8)
plans = {
    price: co.solve(problem.replace(coactivation=pairs, traffic=price)).plan for price in PRICES
}
scored = [co.evaluate(plan, served, trace=unseen) for plan in plans.values()]
critical = [figures.traffic.critical_nodes for figures in scored]
slow = [figures.relative_time for figures in scored]
sets = [token_sets(unseen.topk_ids[:, layer], unseen.experts) for layer in range(unseen.layers)]
bound = np.mean([float(companion_bound(s, 4, s.experts // 4).visits) / s.tokens for s in sets])

figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
ax.plot(critical, slow, marker="o", color="#0072B2")
for price, x, y in zip(PRICES, critical, slow, strict=True):
    ax.annotate(f"{price:g}", (x, y), xytext=(5, 4), textcoords="offset points")
ax.margins(0.1)
ax.axvline(bound, linestyle="--", color="0.4", label="bound on nodes per token")
ax.set(xlabel="nodes per token at the busiest node, sequences not seen", ylabel="relative time")
_ = ax.legend(frameon=False)
# %% [markdown]
# ## What the planner for balance does
#
# Of the tokens' four experts, how many nodes are asked? Balance is better than chance, traffic is
# not.

# %%
generator = np.random.default_rng(0)
shuffled = [generator.permutation(unseen.experts) for _ in range(unseen.layers)]
random = co.Plan.from_phy2log(shuffled, gpus=8, nodes=4)
for name, plan in {"random": random, "balance": plans[0], "both, 0.8": plans[0.8]}.items():
    figures = co.evaluate(plan, served, trace=unseen)
    print(
        f"{name:10} relative time {figures.relative_time:.3f}, "
        f"{figures.traffic.nodes_per_token:.2f} nodes per token, "
        f"{figures.traffic.critical_nodes:.2f} at the busiest node"
    )

# %% [markdown]
# ## The price
#
# `traffic` is what one more node per token costs, in mean GPU loads. `Deployment` computes it from
# the facts of model and GPU; here for 4 nodes of H100 with 400 Gb/s each.

# %%
from craftopt.serving import Deployment, find_gpu, find_model

there = Deployment(find_model("gpt-oss-20b"), find_gpu("h100-400g"), gpus=8, nodes=4)
print(f"{there.traffic_price().price:.2f} mean GPU loads per node visited")

# %% [markdown]
# ## Counts of pairs are enough
#
# Planning for traffic needs to know which experts tokens choose together: the tokens themselves,
# or, as here, a matrix of pairs per layer, which an engine can keep where it cannot keep tokens.

# %%
pairs

# %% [markdown]
# ## Where it does not pay
#
# - **Low-latency kernels without deduplication** send a token once per expert: no placement sends
#   less, and gathered experts make one node busier. The price is 0 there, by rule.
# - **Two nodes and eight experts per token**: a token is on both nodes anyway.
# - **Traffic of a kind that was not planned**: what tokens choose together differs by domain, and
#   on a narrow foreign one part of the gain is lost, sometimes all.
#
# The measured figures are in [traffic](../traffic.md).
