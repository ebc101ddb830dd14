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
# # From an engine's dump to an engine's map
#
# What an engine has recorded is read, planned for, and written as the map that the engine loads.
# The recording is what vLLM returns with `--enable-return-routed-experts`: the experts that every
# token chose. Ours is measured: gpt-oss-20b on eleven benchmarks.

# %%
import os
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np

import craftopt as co
from craftopt.reporting.layers import plot_load_map, plot_migration

os.chdir(mkdtemp())  # everything is written there
recorded = co.load_example_trace("gpt-oss-20b").topk_ids
np.save("routed_experts.npy", recorded)  # [tokens, layers, k]

trace = co.read_trace("routed_experts.npy", experts=32)
planned, served = co.holdout(trace.batches(1024), "odd-even")
problem = co.Problem(planned, gpus=8, nodes=2, replicas_per_layer=8, slots="uniform")
today = co.solve(problem.replace(replicas=0), "trivial").plan
plan = co.solve(problem).plan

figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
for ax, shown, title in zip(axes, (today, plan), ("today", "planned"), strict=True):
    plot_load_map(shown, served, window=8, most=3, ax=ax)
    ax.set_title(f"{title}: time {co.evaluate(shown, served).relative_time:.2f}")
_ = figure.colorbar(ax.images[0], ax=axes, label="load / mean load of the layer")

# %% [markdown]
# A window that the plan has not seen, before and after.
#
# ## 1. What is in the file?
#
# On the command line, `craftopt info routed_experts.npy`. Recordings of SGLang, TensorRT-LLM and
# MindIE go through `co.read_loads`; [every format](../engines.md) is recognised by content.

# %%
trace

# %% [markdown]
# ## 2. Is it worth it?
#
# `craftopt diagnose routed_experts.npy --batch 1024 --gpus 8 --nodes 2`

# %%
print(co.diagnose(trace.batches(1024), gpus=8, nodes=2).answer)

# %% [markdown]
# ## 3. Plan
#
# Engines load the same number of slots on every GPU in every layer, so `slots="uniform"`.

# %%
for name, scored in {"today": today, "planned": plan}.items():
    print(f"{name:8} relative time {co.evaluate(scored, served).relative_time:.3f}, unseen windows")

# %% [markdown]
# ## 4. Write what the engine loads
#
# `export` checks that the engine can hold the plan, writes the file, and returns the flags that go
# with it.

# %%
for engine in ("sglang", "tensorrt-llm", "vllm", "vllm-ascend"):
    file = Path(f"{engine}.json")
    written = co.export(plan, engine, file)
    print(f"{engine}: {file.read_text()[:60].strip()}...", *written.flags, "", sep="\n")

# %% [markdown]
# ## 5. Read it back
#
# The map that an engine serves with is a plan as well: score it, or start the next plan from it.

# %%
back = co.read_plan("sglang.json", gpus=8)
assert (back.copies == plan.copies).all()

# %% [markdown]
# ## 6. When traffic has changed
#
# Few moves bring most of the gain. Here the plan of the first quarter meets the last one.

# %%
quarter = planned.windows // 4
first, last = (co.Loads(part) for part in (planned.tokens[:quarter], planned.tokens[-quarter:]))
old = co.solve(problem.replace(loads=first)).plan
found = co.rebalance(problem.replace(loads=last), old)
_ = plot_migration(found.curve([10, 25, 50, 100, 200, 400]))

# %% [markdown]
# `found.migration()` says in which order, so that no expert is ever without a copy. Step by step
# for your engine: [SGLang](../engines/sglang.md), [vLLM](../engines/vllm.md),
# [TensorRT-LLM](../engines/tensorrt-llm.md), [vllm-ascend](../engines/vllm-ascend.md).
