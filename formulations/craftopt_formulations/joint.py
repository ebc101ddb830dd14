"""Joint replication and placement of one layer in one window: counts and hosts together.

Sets: experts e = 1..E, GPUs g = 1..G, copies c = 1..C (C: most copies of an expert).
Parameters: w_e tokens; r extra copies; n_g least and N_g most copies that g hosts.
Variables: y[e,c] = 1 if e has c copies; z[e,c,g] = 1 if it does and g hosts one of them;
T the largest GPU load.

    minimise  T
    one_count   sum_c y[e,c] = 1                        for all e
    hosted      sum_g z[e,c,g] = c y[e,c]               for all e, c
    linked      z[e,c,g] <= y[e,c]                      for all e, c, g
    copies      sum_{e,c} c y[e,c] = E + r
    capacity    n_g <= sum_{e,c} z[e,c,g] <= N_g        for all g
    load        sum_{e,c} (w_e / c) z[e,c,g] <= T       for all g
    heaviest    sum_c (w_e / c) y[e,c] <= T             for all e (implied; bounds T)
    order       z of the heaviest expert falls over GPUs of equal capacity

The number of copies stands in the index, so that w_e / c is a constant and the program linear.
Where GPUs differ by at most one copy, those with fewer come first: a heavy copy wants few
companions, and GPUs of equal capacity are interchangeable, of which ``order`` keeps one
arrangement.
"""

from __future__ import annotations

import numpy as np

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
    model = new_model(solver, "joint")
    window = tokens[np.newaxis]
    hosting = host_layer(model, window, gpus, replicas, most_copies, spread, hint)
    shares = model.shares(window, hosting.most_copies)
    largest = model.number("T", *shares.range(0, gpus, bound))
    hosting.carry(shares, 0, largest)
    model.minimise(largest)
    return LayerModel(model, hosting, shares.unit)
