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
# # Exact against heuristic
#
# A heuristic gives a plan. It does not say whether a better one exists. Here the method `exact`
# does: it searches, then proves. Small problems are solved to the end, and show where the fast
# path is already optimal, and where it is not.
#
# Needs `pip install 'craftopt[exact,plot]'`.

# %%
from fractions import Fraction

import matplotlib.pyplot as plt
import numpy as np

import craftopt as co
from craftopt_formulations.branching import prove_load
from craftopt_formulations.configuration_lp import Layer
from craftopt_formulations.instances import list_instances, load_instance

# %% [markdown]
# ## Eight experts, eight GPUs, two slots each
#
# An example from the FlashLB planner: two hot experts, two warm ones, four that are nearly idle.
# All slots have to be filled. It is one of the instances that come with the formulations.

# %%
flashlb = load_instance("flashlb")
problem = flashlb.problem
mean = problem.loads.tokens.sum() / problem.gpus
for method in ("trivial", "eplb", "nominal", "exact"):
    result = co.solve(problem, method, work_limit=None if method != "exact" else 10)
    broken = result.violations[0].split(":")[0] if result.violations else ""
    print(f"{method:8} largest load {result.objective * mean:8.3f}  {result.status.value} {broken}")

# %% [markdown]
# EPLB's 232 tokens are 18 % above the least, 590/3. Why can there be no less? The mean load is
# 181.25, and no simple bound says more than 191.7. A tree of cases does: "expert 0 has at most
# three copies, or at least four", and so on, until in every case a bound suffices. `co.verify`
# checks the tree in fractions, without trusting solver or search.

# %%
tokens = problem.loads.tokens[0, 0]
tree = prove_load(Layer.of(tokens, gpus=8, replicas=8), Fraction(590, 3))
certificate = co.certify(problem, flashlb.plan, evidence={(0, 8): [tree.witness]})
co.verify(certificate)
assert certificate.gap < 1e-9
print(f"certified optimal: {certificate.layers[0].kind}, {tree.boxes} cases")

# %% [markdown]
# ## One window: the fast path is there already
#
# On the sum of the traffic, `nominal` finds in milliseconds what `exact` finds in seconds, or
# falls short by parts in a thousand. What `exact` adds is the proof.

# %%
rng = np.random.default_rng(7)
popularity = rng.permutation(np.arange(1.0, 13)) ** -1.4
windows = 6000 * popularity * rng.lognormal(0, 0.4, (3, 1, 12))
loads = co.Loads(np.round(windows))
for replicas in (0, 2, 4):
    problem = co.Problem(loads.total(), gpus=4, replicas=replicas, slots="even")
    nominal = co.solve(problem, "nominal")
    exact = co.solve(problem, "exact", work_limit=1)
    print(
        f"{replicas} replicas: nominal {nominal.objective:.5f} in {nominal.runtime * 1e3:.0f} ms, "
        f"exact {exact.objective:.5f} in {exact.runtime:.1f} s, {exact.status.value}"
    )

# %% [markdown]
# ## Several windows: where exact pays
#
# One choice of copies has to serve all windows. Planning for their sum is no substitute. `fast`
# plans for the windows, with an eye on others like them, and so may leave something on the table
# of those that it was given; the more replicas, the harder the choice, and the weaker the bounds.

# %%
budgets = range(1, 7)
times = {method: [] for method in ("eplb-counts", "nominal", "fast", "exact")}
bounds = []
for replicas in budgets:
    problem = co.Problem(loads, gpus=4, replicas=replicas, slots="even")
    for method, line in times.items():
        result = co.solve(problem, method, work_limit=1 if method == "exact" else None)
        line.append(result.objective)
    bounds.append(result.bound)  # of exact, the last
    print(replicas, f"{result.status.value}: gap {result.gap:.2%}")

# %%
figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for (method, line), marker in zip(times.items(), "osv^", strict=True):
    ax.plot(budgets, line, marker=marker, markersize=4, label=method)
ax.fill_between(budgets, 1, bounds, color="0.85", label="proven: no plan")
ax.set_xlabel("replicas")
ax.set_ylabel("relative time")
ax.legend(frameon=False)

# %% [markdown]
# Where `exact` touches the grey, it is optimal. White between the two is open: a better plan, or
# a better bound, may be there. More work (`work_limit=`) closes more of it.

# %% [markdown]
# ## A whole model
#
# Eight layers of DeepSeek-R1's shape, the sum of the windows, 64 GPUs: far beyond what a solver
# can place, and the fast path is within a thousandth of the bound. There is nothing left for
# `exact` to find; what it adds is the proof, and that is the bound's.

# %%
layers = co.load_example("deepseek-r1").total().tokens[:, ::8]
problem = co.Problem(co.Loads(layers), gpus=64, replicas=64)
result = co.solve(problem, "nominal")
print(f"relative time {result.objective:.5f}, gap {result.gap:.3%}")

# %% [markdown]
# ## The instances
#
# All have the best plan known, its value as a fraction, and a bound with who proved it. Measure
# your own planner on them.

# %%
instances = [load_instance(name) for name in list_instances()]
proven = sum(not instance.is_open for instance in instances)
certified = sum(not instance.is_open and instance.proof.certified for instance in instances)
print(f"{len(instances)} instances, {proven} proven, {certified} of them by certificates alone")
