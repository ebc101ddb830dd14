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
# # Balance is not enough
#
# A layer waits for its fullest GPU, and for its busiest link. A planner for balance alone does not
# look at the second: it spreads experts that tokens choose together over all nodes. Here both are
# planned, and what one costs in the other is drawn.
#
# Needs `pip install 'craftopt[plot]'`.

# %%
import matplotlib.pyplot as plt
import numpy as np

import craftopt as co
from craftopt.bounds.traffic import companion_bound, token_sets

# %% [markdown]
# ## Tokens that choose experts together
#
# Made up: 32 experts of eight kinds, spread over the numbers; a token is of one kind, half of them
# of their sequence's, and chooses four experts, mostly of its kind. Sequences are 50 tokens long.
# For measured traffic, read a recording with `co.read_trace`. Even sequences are planned, odd ones
# served.

# %%
generator = np.random.default_rng(0)
sequences, length, experts, top_k = 640, 50, 32, 4
kind_of = generator.permutation(experts) % 8
kind = np.repeat(generator.integers(8, size=sequences), length)
kind = np.where(generator.random(kind.size) < 0.5, kind, generator.integers(8, size=kind.size))
scores = 2.5 * (kind_of == kind[:, np.newaxis]) + generator.normal(scale=0.5, size=experts)
scores = scores + generator.gumbel(size=scores.shape)
ids = np.argsort(-scores, axis=1)[:, np.newaxis, :top_k]  # [tokens, layers, k]
even = np.repeat(np.arange(sequences) % 2 == 0, length)
seen, unseen = co.Trace(ids[even], experts), co.Trace(ids[~even], experts)
planned, served = seen.batches(400), unseen.batches(400)

# %% [markdown]
# ## What the planner for balance does
#
# Eight GPUs on four nodes. Of the tokens' four experts, how many nodes are asked?

# %%
problem = co.Problem(planned, gpus=8, nodes=4, slots="uniform")
balanced = co.solve(problem).plan
random = co.Plan.from_phy2log([generator.permutation(experts)], gpus=8, nodes=4)
for name, plan in {"random": random, "balance": balanced}.items():
    scored = co.evaluate(plan, served, trace=unseen)
    print(
        f"{name:8} relative time {scored.relative_time:.3f}, "
        f"{scored.traffic.nodes_per_token:.2f} nodes per token, "
        f"{scored.traffic.critical_nodes:.2f} at the busiest node"
    )

# %% [markdown]
# Balance is better than chance, traffic is not.
#
# ## A price for a node
#
# `traffic` is what one more node per token costs, in mean GPU loads. It needs to know which experts
# tokens choose together: the trace, or pair counts, which an engine can keep where it cannot keep
# tokens. A `Deployment` instead of a number takes the price from the facts of model and GPU;
# `craftopt.serving` says which.

# %%
points = []
for price in (0, 0.1, 0.2, 0.4, 0.8):
    pairs = seen.coactivation()
    plan = co.solve(problem.replace(coactivation=pairs, traffic=price)).plan
    scored = co.evaluate(plan, served, trace=unseen)
    points.append((price, scored.traffic.critical_nodes, scored.relative_time))
    print(f"price {price}: time {points[-1][2]:.3f}, critical nodes {points[-1][1]:.3f}")

# %% [markdown]
# ## How far can it go?
#
# No placement of one copy each has fewer nodes per token than the bound, and the busiest node never
# gets less than the mean.

# %%
sets = token_sets(unseen.topk_ids[:1000, 0], experts)
bound = float(companion_bound(sets, 4, experts // 4).visits) / sets.tokens
figure, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
_, critical, slow = np.array(points).T
ax.plot(critical, slow, marker="o")
for price, x, y in points:
    ax.annotate(f"{price:g}", (x, y), xytext=(4, 4), textcoords="offset points")
ax.axvline(bound, linestyle="--", color="0.5", label="bound")
ax.set_xlabel("critical nodes per token, on sequences not seen")
ax.set_ylabel("relative time")
ax.legend()

# %% [markdown]
# ## Where it does not pay
#
# - **Low-latency kernels without deduplication** send a token once per expert: no placement sends
#   less, and gathered experts make one node busier. The price is 0 there, by rule.
# - **Two nodes and eight experts per token**: a token is on both nodes anyway.
# - **Traffic of a kind that was not planned**: what tokens choose together differs by domain, and
#   on a narrow foreign one part of the gain is lost, sometimes all.
#
# `docs/traffic.md` has the measured figures.
