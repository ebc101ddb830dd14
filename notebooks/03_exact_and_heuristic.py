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
# # Exact against heuristic, with certificates
#
# A heuristic gives a plan. It does not say whether a better one exists. The method `exact` does:
# it searches, then proves. Below, one small layer (12 experts, 4 GPUs, 3 windows, made up): what
# each method reaches, and in grey what is proven to be out of reach for every plan.
#
# Needs `pip install 'craftopt[exact,plot]'`.

# %%
from fractions import Fraction

import numpy as np

import craftopt as co
from craftopt.reporting.layers import plot_tradeoff
from craftopt_formulations.branching import prove_load
from craftopt_formulations.configuration_lp import Layer
from craftopt_formulations.instances import list_instances, load_instance

rng = np.random.default_rng(7)
popularity = rng.permutation(np.arange(1.0, 13)) ** -1.4
loads = co.Loads(np.round(6000 * popularity * rng.lognormal(0, 0.4, (3, 1, 12))))
budgets = range(1, 7)
results = {}
for method in ("eplb-counts", "nominal", "fast", "exact"):
    problems = [co.Problem(loads, gpus=4, replicas=r, slots="even") for r in budgets]
    limit = 1 if method == "exact" else None
    results[method] = [co.solve(problem, method, work_limit=limit) for problem in problems]

lines = {method: (budgets, [r.objective for r in line]) for method, line in results.items()}
bounds = [result.bound for result in results["exact"]]
ax = plot_tradeoff(lines, (budgets, bounds), of="relative time")
_ = ax.set_xlabel("replicas")
# %% [markdown]
# Where `exact` touches the grey, it is optimal. White between the two is open: a better plan, or a
# better bound, may be there; more work (`work_limit=`) closes more of it. `fast` plans for the
# windows too, but with an eye on others like them, so it may leave something on the table of those
# that it was given.

# %%
for replicas, result in zip(budgets, results["exact"], strict=True):
    print(f"{replicas} replicas: {result.status.value}, gap {result.gap:.2%}")

# %% [markdown]
# ## A proof that needs no trust
#
# An example from the FlashLB planner: eight experts (two hot, two warm, four nearly idle) on eight
# GPUs with two slots each, all to be filled. It is one of the instances that come with craftopt.

# %%
flashlb = load_instance("flashlb")
problem = flashlb.problem
mean = problem.loads.tokens.sum() / problem.gpus
for method in ("trivial", "eplb", "nominal", "exact"):
    result = co.solve(problem, method, work_limit=10 if method == "exact" else None)
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
# ## A whole model
#
# All 24 layers of gpt-oss-20b, measured, are far beyond what a solver can place. A certificate
# needs no solver: it takes seconds. On the *sum* of the traffic the plan is next to optimal, and
# proven so. On the *windows*, which are what is served, the bound stays loose: it says what is
# impossible, not what is possible.

# %%
windows, _ = co.holdout(co.load_example_trace("gpt-oss-20b").batches(1024), "odd-even")
for kind, planned, method in [("sum", windows.total(), "nominal"), ("windows", windows, "fast")]:
    problem = co.Problem(planned, gpus=8, replicas_per_layer=8, slots="even")
    certificate = co.certify(problem, co.solve(problem, method).plan)
    co.verify(certificate)
    print(f"{kind:8} {method:8} at most {certificate.gap:.2%} above the optimum")

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

# %% [markdown]
# More: [certificates](../certificates.md), [the models](../formulations.md),
# [what exact adds on real layers](../research/exact.md).
