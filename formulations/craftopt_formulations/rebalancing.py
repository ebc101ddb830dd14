"""Rebalancing of one layer: better copies and hosts than before, with few copies hosted anew.

Sets, parameters and variables as in `joint`; further h[e,g] = 1 if g hosted e before, M moves,
and r the most extra copies. GPUs keep their labels, so there is no constraint order.

    minimise  T
    one_count, hosted, linked, load, heaviest           as in joint
    copies      sum_{e,c} c y[e,c] <= E + r
    base        b <= sum_{e,c} z[e,c,g] <= b + 1        for all g, where GPUs differ by at most 1
    moves       sum_{e,c,g: h[e,g] = 0} z[e,c,g] <= M

Dropping a copy is free: only what a GPU has to load counts.
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
        Most copies hosted where they were not before.
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
    experts, gpus = previous.shape
    most = gpus if most_copies is None else min(most_copies, gpus)
    window = tokens[np.newaxis]
    hosting = Hosting(model, experts, gpus, most)
    model.add("copies", hosting.copies() <= experts + replicas)
    if spread is not None:
        hosting.level(range(gpus))
    anew = [z for (e, _, g), z in hosting.hosts.items() if not previous[e, g]]
    model.add("moves", model.total(anew) <= moves)
    shares = model.shares(window, most)
    largest = model.number("T", *shares.range(0, gpus, bound))
    hosting.carry(shares, 0, largest)
    model.minimise(largest)
    if previous.max() <= 1:
        hosting.hint(previous)
    return LayerModel(model, hosting, shares.unit)
