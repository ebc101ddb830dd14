"""The windowed problem of one layer: one choice of copies and hosts for all windows.

Sets, parameters and variables as in `joint`, with windows w = 1..W, tokens t[w,e], and T[w] the
largest GPU load in window w.

    minimise  sum_w T[w]
    one_count, hosted, linked, copies, capacity, order      as in joint
    load        sum_{e,c} (t[w,e] / c) z[e,c,g] <= T[w]     for all w, g
    heaviest    sum_c (t[w,e] / c) y[e,c] <= T[w]           for all w, e (implied)

T[w] starts at the mean load of its window. With one window this is `joint`.
"""

from __future__ import annotations

from craftopt.loads import FloatArray
from craftopt.plan import Copies
from craftopt_formulations._hosting import LayerModel, host_layer
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
    model = new_model(solver, "windowed")
    hosting = host_layer(model, tokens, gpus, replicas, most_copies, spread, hint)
    shares = model.shares(tokens, hosting.most_copies)
    largest = []
    for w in range(tokens.shape[0]):
        largest.append(model.number(f"T_{w}", *shares.range(w, gpus)))
        hosting.carry(shares, w, largest[w])
    if bound > 0:
        model.add("bound", model.total(largest) >= shares.floor(bound, tokens.shape[0]))
    model.minimise(model.total(largest))
    return LayerModel(model, hosting, shares.unit)
