"""The windowed problem of one layer: one choice of copies and hosts for all windows.

Sets, parameters and variables as in `joint`, with windows w in W, tokens t[w,e], and T[w] the
largest GPU load in window w.

    minimise  sum_w T[w]
    one_count   sum_c y[e,c] = 1                        for all e
    hosted      sum_g z[e,c,g] = c y[e,c]               for all e, c
    linked      z[e,c,g] <= y[e,c]                      for all e, c > 1, g
    copies      sum_{e,c} c y[e,c] = n
    capacity    sum_{e,c} z[e,c,g] = s[g]               for all g, if slots are even
    load        sum_{e,c} (t[w,e] / c) z[e,c,g] <= T[w] for all w, g
    heaviest    sum_c (t[w,e] / c) y[e,c] <= T[w]       for all w, e (implied, raises the bound)
    order       sum_c z[h,c,g] <= sum_c z[h,c,g-1]      for all g with the slots of g - 1
    bound       sum_w T[w] >= b                         if a bound b is known

T[w] is at least the mean load of its window. With one window this is `joint`.
"""

from __future__ import annotations

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
    tokens : float64 [windows, experts]
    gpus, replicas : int
    most_copies, spread, hint, solver
        As in `joint.build`.
    bound : float
        A proven lower bound on the sum of T, in tokens.

    Examples
    --------
    Each window could halve its own hot expert; together they have one replica.

    >>> import numpy as np
    >>> from craftopt_formulations import windowed
    >>> tokens = np.array([[8.0, 1, 1], [1, 8, 1]])
    >>> windowed.build(tokens, gpus=2, replicas=1).solve().objective
    13.5
    """
    windows, experts = tokens.shape
    n, most = experts + replicas, copies_limit(experts, gpus, replicas, most_copies)
    s, h = slot_counts(n, gpus, spread), int(tokens.sum(axis=0).argmax())
    model = new_model(solver, "windowed")
    add, each, total = model.add, model.add_each, model.total
    layer = Hosting(model, experts, gpus, most)
    E, C, G, y, z, on = layer.E, layer.C, layer.G, layer.y, layer.z, layer.on
    shares = model.shares(tokens, most)
    T = [model.number(f"T_{w}", *shares.range(w, gpus)) for w in range(windows)]

    model.minimise(total(T))
    each("one_count", {e: total(y[e, c] for c in C) == 1 for e in E})
    each("hosted", {(e, c): total(z[e, c, g] for g in G) == c * y[e, c] for e, c in y})
    each("linked", {(e, c, g): z[e, c, g] <= y[e, c] for e, c, g in z if c > 1})
    add("copies", total(c * y[e, c] for e, c in y) == n)
    each("capacity", {g: total(z[e, c, g] for e, c in y) == s[g] for g in s})
    for w, t in enumerate(shares.values):  # t[e, c]: tokens of one of c copies
        each(f"load_{w}", {g: total(t[e, c] * z[e, c, g] for e, c in y) <= T[w] for g in G})
        each(f"heaviest_{w}", {e: total(t[e, c] * y[e, c] for c in C) <= T[w] for e in E})
    each("order", {g: on(h, g) <= on(h, g - 1) for g in twins(gpus, s)})
    if bound > 0:
        add("bound", total(T) >= shares.floor(bound, windows))

    if hint is not None:
        layer.hint(arranged(hint, h, by_slots=spread is not None))
    return LayerModel(model, layer, shares.unit)
