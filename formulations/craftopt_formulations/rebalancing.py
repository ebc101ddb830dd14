"""Rebalancing of one layer: better copies and hosts than before, for a limited number of moves.

Sets, parameters and variables as in `joint`, with n the most copies in all; p[e,g] = 1 if g
hosted e before; M moves; b the fewest copies of a GPU.

    minimise  T
    one_count   sum_c y[e,c] = 1                        for all e
    hosted      sum_g z[e,c,g] = c y[e,c]               for all e, c
    linked      z[e,c,g] <= y[e,c]                      for all e, c > 1, g
    copies      sum_{e,c} c y[e,c] <= n
    fewest      sum_{e,c} z[e,c,g] >= b                 for all g, if slots are even
    most        sum_{e,c} z[e,c,g] <= b + 1             for all g, if slots are even
    moves       sum_{e,c,g: p[e,g] = 0} z[e,c,g] <= M
    load        sum_{e,c} (t[e] / c) z[e,c,g] <= T      for all g
    heaviest    sum_c (t[e] / c) y[e,c] <= T            for all e (implied, raises the bound)

GPUs keep their labels, so none are interchangeable. Dropping a copy is free: only what a GPU has
to load is a move.
"""

from __future__ import annotations

import numpy as np

from craftopt.errors import InputError
from craftopt.loads import FloatArray
from craftopt.plan import Copies
from craftopt_formulations._hosting import Hosting, LayerModel
from craftopt_formulations._solvers import new_model


def build(
    tokens: FloatArray,
    previous: Copies,
    replicas: int,
    moves: int,
    *,
    most_copies: int | None = None,
    spread: int | None = 1,
    bound: float = 0.0,
    solver: str = "cp-sat",
) -> LayerModel:
    """Build the program.

    Parameters
    ----------
    tokens : float64 [experts]
    previous : uint8 [experts, gpus]
        What GPUs host now.
    replicas : int
        Most extra copies.
    moves : int
        Most copies on GPUs that did not host their expert before.
    most_copies, spread, bound, solver
        As in `joint.build`.

    Raises
    ------
    InputError
        A previous placement of other experts.

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt_formulations import rebalancing
    >>> tokens, previous = np.array([6.0, 4, 3, 1]), np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    >>> [rebalancing.build(tokens, previous, 0, m).solve().objective for m in (0, 2)]
    [10.0, 7.0]
    """
    if previous.shape[0] != tokens.size:
        raise InputError(
            f"previous hosts {previous.shape[0]} experts and tokens has {tokens.size}; "
            "pass both for the same layer"
        )
    model = new_model(solver, "rebalancing")
    add, each, total = model.add, model.add_each, model.total
    experts, gpus = previous.shape
    limit = gpus if most_copies is None else min(most_copies, gpus)
    layer = Hosting(model, experts, gpus, limit)
    E, C, G, y, z = layer.E, layer.C, layer.G, layer.y, layer.z
    shares = model.shares(tokens[np.newaxis], limit)
    t = shares.values[0]  # t[e, c]: tokens of one of c copies
    T = model.number("T", *shares.range(0, gpus, bound))

    model.minimise(T)
    each("one_count", {e: total(y[e, c] for c in C) == 1 for e in E})
    each("hosted", {(e, c): total(z[e, c, g] for g in G) == c * y[e, c] for e, c in y})
    each("linked", {(e, c, g): z[e, c, g] <= y[e, c] for e, c, g in z if c > 1})
    add("copies", total(c * y[e, c] for e, c in y) <= experts + replicas)
    if spread is not None:
        b = model.count("b", 0, experts)
        each("fewest", {g: total(z[e, c, g] for e, c in y) >= b for g in G})
        each("most", {g: total(z[e, c, g] for e, c in y) <= b + 1 for g in G})
    add("moves", total(z[e, c, g] for e, c, g in z if not previous[e, g]) <= moves)
    each("load", {g: total(t[e, c] * z[e, c, g] for e, c in y) <= T for g in G})
    each("heaviest", {e: total(t[e, c] * y[e, c] for c in C) <= T for e in E})

    if previous.max() <= 1:
        layer.hint(previous)
    return LayerModel(model, layer, shares.unit)
