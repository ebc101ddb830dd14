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
# # Choosing a budget
#
# A replica buys balance and costs KV cache. A model of memory, time and goodput weighs the two;
# every figure can be checked by hand. Measured traffic of gpt-oss-20b on 8 H100 in 2 nodes. Lines:
# what the sweep predicts for every budget. Points: full plans, on windows that they have not seen.

# %%
import numpy as np

import craftopt as co
from craftopt.reporting.plots import plot_budgets
from craftopt.serving import (
    Deployment,
    Workload,
    find_gpu,
    find_model,
    memory_for_copies,
    memory_of,
    profile_of,
    service_of,
)

loads = co.load_example_trace("gpt-oss-20b").batches(4096)
advice = co.advise(loads, model="gpt-oss-20b", gpu="h100", gpus=8, nodes=2)
_ = plot_budgets(advice)
# %% [markdown]
# ## The answer, with its reasons
#
# The model does not tell plans within 2 % apart; of these it takes the one with less memory.

# %%
print(advice.recommended.name, "is", f"{advice.ratio_to_eplb:.3f} x EPLB's default")
for reason in advice.reasons:
    print("-", reason)

# %% [markdown]
# ## What a replica costs
#
# gpt-oss-20b is small. In DeepSeek-R1 an expert is 3 x 7168 x 2048 weights; in bf16 on 64 GPUs
# EPLB's default is one more slot on every GPU in each of 58 layers, CRAFT's is 8 copies per GPU.

# %%
spread = Deployment(
    find_model("deepseek-r1"), find_gpu("h200"), gpus=64, nodes=8, expert_dtype="bf16"
)
for name, copies in {"none": 0, "CRAFT, R = 8": 8, "EPLB": 58}.items():
    memory = memory_for_copies(spread, 58 * 256 // 64 + copies)
    print(
        f"{name:13} {memory.replicas / 2**30:5.2f} GiB of replicas per GPU, "
        f"{memory.kv / 2**30:5.2f} GiB of cache = {memory.kv_tokens:,} tokens"
    )

# %% [markdown]
# ## By hand
#
# The goodput of a plan follows from its own figures: sequences, rounds, steps.

# %%
best = advice.recommended
rate = advice.deployment.groups * best.served.sequences / (255 * best.served.tpot)
print(f"{rate:.2f} = {best.goodput:.2f} requests/s")
assert np.isclose(rate, best.goodput, rtol=1e-3)

# %% [markdown]
# ## What would change the answer

# %%
for row in advice.sensitivity:
    flips = ", ".join(f"{value}: {winner}" for value, winner in row.flips)
    print(f"{row.constant:34} {row.value:>10}   {flips or 'the same for ' + row.tried}")

# %% [markdown]
# ## Another workload, the same plans
#
# Plans are planned once; scoring them under other constants takes milliseconds.

# %%
_, served = co.holdout(loads, "odd-even")
for output_tokens in (32, 256, 2048):
    rates = {}
    for candidate in advice.candidates:
        memory = memory_of(advice.deployment, candidate.plan)
        profile = profile_of(candidate.plan, served)
        workload = Workload(output_tokens=output_tokens)
        service = service_of(advice.deployment, profile, memory, workload)
        rates[candidate.name] = round(service.requests_per_second, 1)
    print(output_tokens, "tokens out:", rates)

# %% [markdown]
# The formulas, and how to fit them to two measured points, are in
# [what a replica costs](../serving.md).
