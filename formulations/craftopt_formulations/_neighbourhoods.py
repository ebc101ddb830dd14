"""Large neighbourhood search of one layer: what a few GPUs host is chosen again, at best.

Sets: windows w, experts e, GPUs g; F the freed GPUs. Parameters: t[w,e] tokens; x[e,g] = 1 if g
hosts e now; k[e] copies of e outside F; s[g] copies on g now. Variables: y[e,c] = 1 if e has c
copies; z[e,c,g] = 1 if it does and g in F hosts one, for c > k[e]; T[w] the largest loads.

    minimise  sum_w T[w]
    one_count   sum_c y[e,c] = 1                                    for all e
    hosted      sum_{g in F} z[e,c,g] = (c - k[e]) y[e,c]           for all e, c > k[e]
    linked      z[e,c,g] <= y[e,c]                                  for all e, c > k[e], g in F
    slots       sum_{e,c} z[e,c,g] = s[g]                           for all g in F
    freed       sum_{e,c} (t[w,e] / c) z[e,c,g] <= T[w]             for all w, g in F
    kept        sum_{e,c} x[e,g] (t[w,e] / c) y[e,c] <= T[w]        for all w, g not in F

Under free slots only the sum of ``slots`` over F is kept. Numbers of copies may change within F;
the loads of the other GPUs follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from craftopt.loads import FloatArray
from craftopt.plan import Copies
from craftopt.problem import Problem
from craftopt_formulations._solvers import CpModel
from craftopt_formulations.whole import layer_cost

# GPUs that are freed together, and deterministic seconds for each choice.
_FREED, _EACH = (2, 3), 0.5
# Deterministic seconds to build a model, per window and flag z.
_BUILT = 3e-5


def choose_again(problem: Problem, layer: int, copies: Copies, work: float, seed: int) -> Copies:
    """Choose what pairs and triples of GPUs host again until none gets better or work is done.

    Parameters
    ----------
    problem : Problem
        Its objective is time.
    layer : int
    copies : uint8 [experts, gpus]
        At most one copy of an expert on a GPU.
    work : float
        Deterministic seconds: neighbourhoods are begun as long as they last, so that more work
        goes on where less ends.
    seed : int
        Of the order of neighbourhoods.

    Returns
    -------
    uint8 [experts, gpus]
        No worse, with as many copies.
    """
    rng = np.random.default_rng(seed)
    cost, better = layer_cost(problem, layer, copies), True
    while better:
        better = False
        for freed in _neighbourhoods(problem, rng):
            if work <= 0:
                return copies
            found, spent = _choose(problem, problem.loads.tokens[:, layer], copies, freed)
            work -= spent
            reached = layer_cost(problem, layer, found)
            if reached < cost:
                copies, cost, better = found, reached, True
                break
    return copies


def _neighbourhoods(problem: Problem, rng: np.random.Generator) -> Iterator[list[int]]:
    """Go through the pairs, then the triples, of GPUs that may host the same experts."""
    width = problem.gpus // problem.group_nodes
    for size in _FREED:
        nodes = [range(g, g + width) for g in range(0, problem.gpus, width)]
        subsets = [list(freed) for node in nodes for freed in combinations(node, size)]
        for index in rng.permutation(len(subsets)):
            yield subsets[index]


def _choose(
    problem: Problem, tokens: FloatArray, copies: Copies, freed: list[int]
) -> tuple[Copies, float]:
    """Choose what some GPUs host; return the copies and the deterministic seconds."""
    model = CpModel("neighbourhood")
    add, each, total = model.add, model.add_each, model.total
    count, s = copies.sum(axis=1, dtype=np.int64), copies.sum(axis=0, dtype=np.int64)
    most = min(problem.copies_limit, int(count.max()) + 1)
    width = problem.gpus // problem.group_nodes
    node = freed[0] // width * width
    k = (count - copies[:, freed].sum(axis=1, dtype=np.int64)).tolist()
    E, F, W = range(count.size), freed, range(len(tokens))
    C = {e: [int(count[e])] for e in E}
    for e in np.flatnonzero(copies[:, node : node + width].any(axis=1)).tolist():
        C[e] = list(range(max(k[e], 1), min(k[e] + len(F), most) + 1))
    y = {(e, c): model.flag(f"y_{e}_{c}") for e in E for c in C[e]}
    z = {(e, c, g): model.flag(f"z_{e}_{c}_{g}") for e, c in y if c > k[e] for g in F}
    shares = model.shares(tokens, most)
    T = [model.number(f"T_{w}", *shares.range(w, s.size)) for w in W]

    model.minimise(total(T))
    each("one_count", {e: total(y[e, c] for c in C[e]) == 1 for e in E})
    more = [(e, c) for e, c in y if c > k[e]]
    hosted = {(e, c): total(z[e, c, g] for g in F) for e, c in more}
    each("hosted", {(e, c): hosted[e, c] == (c - k[e]) * y[e, c] for e, c in more})
    each("linked", {(e, c, g): flag <= y[e, c] for (e, c, g), flag in z.items()})
    filled = {g: total(z[e, c, g] for e, c in more) for g in F}
    if problem.even_slots:
        each("slots", {g: filled[g] == int(s[g]) for g in F})
    else:
        add("slots", total(filled.values()) == int(s[F].sum()))
    on = {g: np.flatnonzero(copies[:, g]).tolist() for g in range(s.size) if g not in F}
    for w, t in enumerate(shares.values):
        each(f"freed_{w}", {g: total(t[e, c] * z[e, c, g] for e, c in more) <= T[w] for g in F})
        loads = {g: total(t[e, c] * y[e, c] for e in on[g] for c in C[e]) for g in on}
        each(f"kept_{w}", {g: load <= T[w] for g, load in loads.items()})

    for (e, c), flag in y.items():
        model.hint(flag, float(c == count[e]))
    for (e, c, g), flag in z.items():
        model.hint(flag, float(c == count[e] and copies[e, g]))
    run = model.solve(work=_EACH)
    found = copies.copy()
    if run.objective is not None:
        found[:, F] = 0
        for (e, _, g), flag in z.items():
            found[e, g] += round(model.value(flag))
    return found, run.work + _BUILT * len(W) * len(z)
