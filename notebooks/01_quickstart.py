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
# # Quickstart
#
# From expert loads to a plan, how good the plan can be at all, and what it does on traffic
# that it has not seen. The loads are synthetic, with the shape of DeepSeek-R1; everything runs
# in a few seconds on a laptop.

# %%
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

import craftopt as co
from craftopt.reporting.plots import plot_gpu_loads

# %% [markdown]
# ## Loads
#
# How many tokens every expert of every layer received, window by window. A window is a stretch
# of traffic: a batch, a step of a recorder, a shard of a log. Your own come from
# `co.read_loads("file.npz")` or `co.Loads(array)`.

# %%
loads = co.load_example("deepseek-r1")
loads

# %% [markdown]
# The hottest expert of a layer gets several times the mean, and another one in every window.

# %%
hottest = loads.tokens.max(axis=2) / loads.tokens.mean(axis=2)
of_sum = loads.total().tokens[0]
print(f"hottest expert / mean, within a window: {np.median(hottest):.1f}")
print(f"the same in the sum of the windows:     {np.median(of_sum.max(1) / of_sum.mean(1)):.1f}")

# %% [markdown]
# Plan on one half of the windows, and keep the other half unseen.

# %%
planned, served = co.holdout(loads, "odd-even")

# %% [markdown]
# ## Problem
#
# 64 GPUs in 8 nodes, and memory for 8 extra copies per layer. `slots="even"`: in a layer, GPUs
# differ by at most one copy.

# %%
problem = co.Problem(planned, gpus=64, nodes=8, replicas_per_layer=8, slots="even")
problem

# %% [markdown]
# ## Plan and bound
#
# `bound` holds for every plan that keeps the rules, whoever makes it. Relative time is the sum of
# the largest GPU loads over the sum of the mean ones: 1 is perfect. `violations` names the rules
# that a plan breaks; such a plan has no gap.

# %%
result = co.solve(problem, "eplb-counts")
print(f"relative time {result.objective:.3f}, no plan is below {result.bound:.3f}")
print(f"planned in {result.runtime * 1e3:.1f} ms; {result.violations or 'keeps every rule'}")

# %%
plan = result.plan
print("experts with more than one copy in layer 0:", np.flatnonzero(plan.replica_counts[0] > 1))
print("copies per GPU over all layers:", np.unique(plan.slots.sum(axis=0)))

# %% [markdown]
# ## Three ways to score one plan
#
# These methods plan for the *sum* of the windows. There the plan looks good; window by window,
# which is what users wait for, it is far from even.

# %%
for name, windows in {
    "the sum it was made for": planned.total(),
    "the windows planned": planned,
    "windows unseen": served,
}.items():
    scored = co.evaluate(plan, windows)
    print(f"{name:24} balancedness {scored.mean_balancedness:.3f}", end="  ")
    print(f"relative time {scored.relative_time:.3f}")

# %% [markdown]
# ## Methods side by side
#
# The last row spends what engines spend by default, one extra slot on every GPU in every layer.

# %%
comparison = co.compare(problem, served)
for row in comparison.rows:
    if row.planned and row.served:
        print(
            f"{row.method:22} {row.replicas:5} replicas   relative time: "
            f"planned {row.planned.relative_time:.3f}, served {row.served.relative_time:.3f}"
        )

# %% [markdown]
# ## One layer, GPU by GPU
#
# All GPUs wait for the one at the left end.

# %%
plans = {name: co.solve(problem, name).plan for name in ("trivial", "placement", "eplb-counts")}
ax = plot_gpu_loads(plans, served, layer=30)

# %% [markdown]
# ## Save and read

# %%
file = Path(mkdtemp()) / "plan.json"
plan.save(file)
assert co.read_plan(file) == plan
