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
# # Quickstart
#
# A recording of expert loads goes in, a plan comes out: which experts get copies, and which GPU
# hosts which. The traffic is measured: gpt-oss-20b (24 layers of 32 experts) decoding eleven
# benchmarks, cut into windows of 1,024 tokens. Odd windows are planned, even ones are served.

# %%
import matplotlib.pyplot as plt

import craftopt as co
from craftopt.reporting.layers import plot_load_map

loads = co.load_example_trace("gpt-oss-20b").batches(1024)
planned, served = co.holdout(loads, "odd-even")
problem = co.Problem(planned, gpus=8, nodes=2, replicas_per_layer=8, slots="even")
results = {method: co.solve(problem, method) for method in ("trivial", "eplb", "fast")}

figure, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained", sharey=True)
for (method, result), ax in zip(results.items(), axes, strict=True):
    plot_load_map(result.plan, served, window=8, most=3, ax=ax)
    ax.set_title(f"{method}: time {co.evaluate(result.plan, served).relative_time:.2f}")
_ = figure.colorbar(ax.images[0], ax=axes, label="load / mean load of the layer")

# %% [markdown]
# One window that no plan has seen. Every cell is a GPU in a layer; a layer waits for its darkest
# cell. The time is that of all such windows; 1 is perfect. Left: experts by id, as engines start.
# Middle: DeepSeek's EPLB. Right: craftopt's default.
#
# ## Loads
#
# How many tokens every expert of every layer got, window by window. Your own come from
# `co.read_loads("recording")`, which knows the files of SGLang, TensorRT-LLM and MindIE, or from
# `co.Loads(array)`.

# %%
loads

# %% [markdown]
# ## Problem
#
# 8 GPUs in 2 nodes and memory for 8 extra copies per layer. `slots="even"`: in a layer, GPUs differ
# by at most one copy. Engines load `slots="uniform"` only, the same number everywhere.

# %%
problem

# %% [markdown]
# ## Plan and bound
#
# *Relative time* is the sum of the largest over the sum of the mean GPU loads: 1 is perfect, 1.5
# waits half as long again. `bound` holds for every plan under the same rules, whoever makes it.

# %%
for method, result in results.items():
    unseen = co.evaluate(result.plan, served)
    print(
        f"{method:8} planned {result.objective:.3f}, unseen {unseen.relative_time:.3f}, "
        f"in {result.runtime:.2f} s;  {'; '.join(result.violations) or 'keeps every rule'}"
    )
print(f"no plan is below {result.bound:.3f} on the planned windows")

# %% [markdown]
# ## All methods side by side
#
# Planned beside unseen windows, always: what looks good on the first only is no result.

# %%
co.compare(problem, served)

# %% [markdown]
# ## Is it worth anything for you?
#
# `co.diagnose` answers in one sentence; `craftopt report` puts it on one page.

# %%
found = co.diagnose(loads, gpus=8, nodes=2)
print(found.answer)
for reason in found.reasons[:3]:
    print("-", reason)

# %% [markdown]
# ## Save and read

# %%
from pathlib import Path
from tempfile import mkdtemp

file = Path(mkdtemp()) / "plan.json"
results["fast"].plan.save(file)
assert co.read_plan(file) == results["fast"].plan

# %% [markdown]
# Next: [why averages mislead](02_why_averages_mislead.ipynb), or
# [from an engine's dump to an engine's map](07_dump_to_map.ipynb).
