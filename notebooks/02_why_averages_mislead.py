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
# # Why averages mislead
#
# Planners mostly look at the sum of the traffic. Nobody is served the sum. Below, one layer of
# gpt-oss-20b, measured: which experts are hot changes from window to window, and the sum hides it.

# %%
import matplotlib.pyplot as plt
import numpy as np

import craftopt as co
from craftopt.reporting.layers import plot_persistence

loads = co.load_example_trace("gpt-oss-20b").batches(1024)
layer = 12
share = loads.tokens[:, layer] / loads.tokens[:, layer].mean(axis=1, keepdims=True)

figure, (left, right) = plt.subplots(
    1, 2, figsize=(10, 4), layout="constrained", sharey=True, width_ratios=(3, 1)
)
image = left.imshow(share.T, aspect="auto", cmap="YlOrBr", interpolation="none")
figure.colorbar(image, ax=left, label="tokens / mean of the experts", location="left")
left.set(xlabel="windows of 1,024 tokens", ylabel="expert", title=f"layer {layer}, by window")
right.barh(np.arange(loads.experts), share.mean(axis=0), color="#E69F00")
right.axvline(1, color="black", linewidth=0.8)
_ = right.set(title="on average", xlabel="tokens / mean")
# %% [markdown]
# ## How hot is hot?
#
# The hottest expert of a window against the hottest of the sum, over all layers:

# %%
in_windows = loads.tokens.max(axis=2) / loads.tokens.mean(axis=2)
in_sum = loads.total().tokens.max(axis=2) / loads.total().tokens.mean(axis=2)
print(f"hottest expert / mean, in a window: {in_windows.mean():.1f}")
print(f"                       in the sum:  {in_sum.mean():.1f}")

# %% [markdown]
# ## Do hot experts stay hot?
#
# Of a window's 8 hottest experts, how many are among the 8 hottest some windows later? A good
# part, far more than chance: so there is something to plan with, and it is not the sum.

# %%
_ = plot_persistence(loads, hottest=8)
# %% [markdown]
# ## A plan that is perfect, on the sum
#
# `nominal` is near the optimum for the sum. `fast` plans for the windows. Half of the windows are
# planned, the others served, and one benchmark is held out entirely.

# %%
foreign_name = "sorry_bench_base"
trace = co.load_example_trace("gpt-oss-20b")
rest = trace.select([name for name in trace.domain_names if name != foreign_name])
foreign = trace.select([foreign_name]).batches(1024)
planned, served = co.holdout(rest.batches(1024), "odd-even")
problem = co.Problem(planned, gpus=8, nodes=2, replicas_per_layer=8, slots="even")
kinds = {"the sum": planned.total(), "planned": planned, "unseen": served, "foreign": foreign}
times = {}
for method in ("eplb-counts", "nominal", "fast"):
    plan = co.solve(problem, method).plan
    times[method] = [co.evaluate(plan, windows).relative_time for windows in kinds.values()]
    print(
        f"{method:12}", "  ".join(f"{k} {t:.3f}" for k, t in zip(kinds, times[method], strict=True))
    )

# %%
figure, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
styles = zip(("#444444", "#E69F00", "#0072B2"), ("/", "x", ""), strict=True)
for place, ((method, values), (colour, hatch)) in enumerate(
    zip(times.items(), styles, strict=True)
):
    x = np.arange(len(kinds)) + 0.27 * (place - 1)
    ax.bar(x, np.array(values) - 1, 0.25, bottom=1, label=method, color=colour, hatch=hatch)
ax.set_xticks(range(len(kinds)), kinds)
ax.set(ylabel="relative time, 1 is perfect", ylim=(1, None))
_ = ax.legend(frameon=False)

# %% [markdown]
# Judged by the sum, `nominal` wins and `fast` is last. Judged by what is served, it is the other
# way round. A figure on summed loads is no result; and a figure on the planned windows alone says
# too much as well, as the last two groups show.
#
# A benchmark that no plan has seen costs everybody something. How much depends on how foreign it
# is: see [generalisation](../research/generalisation.md).
