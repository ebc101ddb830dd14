"""Joint replication and placement of one layer in one window: counts and hosts together.

Sets: experts e in E, GPUs g in G, numbers of copies c in C = 1..most_copies.
Parameters: t[e] tokens; n copies in all, |E| plus the replicas; s[g] slots of g, all filled.
Variables: y[e,c] = 1 if e has c copies; z[e,c,g] = 1 if it does and g hosts one of them;
T the largest GPU load.

    minimise  T
    one_count   sum_c y[e,c] = 1                        for all e
    hosted      sum_g z[e,c,g] = c y[e,c]               for all e, c
    linked      z[e,c,g] <= y[e,c]                      for all e, c > 1, g
    copies      sum_{e,c} c y[e,c] = n
    capacity    sum_{e,c} z[e,c,g] = s[g]               for all g, if slots are even
    load        sum_{e,c} (t[e] / c) z[e,c,g] <= T      for all g
    heaviest    sum_c (t[e] / c) y[e,c] <= T            for all e (implied, raises the bound)
    order       sum_c z[h,c,g] <= sum_c z[h,c,g-1]      for all g with the slots of g - 1

The number of copies is an index, so that t[e] / c is a constant and the program linear. Where
slots differ, by one, GPUs with fewer come first: a heavy copy wants few companions. GPUs with
equal slots are interchangeable, and ``order`` keeps one arrangement; h is the heaviest expert.
"""

from __future__ import annotations

import numpy as np

from craftopt.loads import FloatArray
from craftopt.plan import Copies
from craftopt_formulations._hosting import (
    Hosting,
    LayerModel,
    arranged,
    copies_limit,
    slot_counts,
    twins,
)
from craftopt_formulations._solvers import new_model


def build(
    tokens: FloatArray,
    gpus: int,
    replicas: int,
    *,
    most_copies: int | None = None,
    spread: int | None = 1,
    hint: Copies | None = None,
    bound: float = 0.0,
    solver: str = "cp-sat",
) -> LayerModel:
    """Build the program.

    Parameters
    ----------
    tokens : float64 [experts]
    gpus, replicas : int
        ``replicas``: extra copies, all of which are placed.
    most_copies : int, optional
        Most copies of an expert; one per GPU by default.
    spread : 1 or None
        1: every GPU hosts floor or ceil of (E + r) / G copies. None: any number.
    hint : uint8 [experts, gpus], optional
        A placement to start from, for CP-SAT.
    bound : float
        A proven lower bound on T, in tokens.
    solver : {"cp-sat", "cbc", "highs", "scip"}

    Raises
    ------
    InfeasibleError
        More copies than the experts may have.

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt_formulations import joint
    >>> tokens = np.array([600.0, 560, 120, 120, 20, 10, 10, 10])
    >>> placed = joint.build(tokens, gpus=8, replicas=2).solve()
    >>> placed.status, placed.objective
    ('optimal', 300.0)
    """
    n, most = tokens.size + replicas, copies_limit(tokens.size, gpus, replicas, most_copies)
    s, h = slot_counts(n, gpus, spread), int(tokens.argmax())
    model = new_model(solver, "joint")
    add, each, total = model.add, model.add_each, model.total
    layer = Hosting(model, tokens.size, gpus, most)
    E, C, G, y, z, on = layer.E, layer.C, layer.G, layer.y, layer.z, layer.on
    shares = model.shares(tokens[np.newaxis], most)
    t = shares.values[0]  # t[e, c]: tokens of one of c copies
    T = model.number("T", *shares.range(0, gpus, bound))

    model.minimise(T)
    each("one_count", {e: total(y[e, c] for c in C) == 1 for e in E})
    each("hosted", {(e, c): total(z[e, c, g] for g in G) == c * y[e, c] for e, c in y})
    each("linked", {(e, c, g): z[e, c, g] <= y[e, c] for e, c, g in z if c > 1})
    add("copies", total(c * y[e, c] for e, c in y) == n)
    each("capacity", {g: total(z[e, c, g] for e, c in y) == s[g] for g in s})
    each("load", {g: total(t[e, c] * z[e, c, g] for e, c in y) <= T for g in G})
    each("heaviest", {e: total(t[e, c] * y[e, c] for c in C) <= T for e in E})
    each("order", {g: on(h, g) <= on(h, g - 1) for g in twins(gpus, s)})

    if hint is not None:
        layer.hint(arranged(hint, h, by_slots=spread is not None))
    return LayerModel(model, layer, shares.unit)
