"""Any model of a problem as an MPS or LP file, for other solvers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from craftopt.bounds import layer_costs, max_copy_load
from craftopt.documents import write_atomically
from craftopt.errors import InputError
from craftopt.problem import Problem
from craftopt_formulations import allocation, joint, placement, rebalancing, replication, windowed

MODELS = ("allocation", "joint", "placement", "rebalancing", "replication", "windowed")
_SUFFIXES = (".mps", ".lp")


def export_model(
    problem: Problem, name: str, path: str | os.PathLike[str], *, layer: int = 0
) -> tuple[int, int]:
    """Write one of the models as a mixed-integer program.

    ``allocation`` is over all layers, its benefits what the analytic bounds let every layer gain.
    The others are of one layer with its even part of the budget; ``windowed`` is of all windows,
    the rest of their sum. ``placement`` gets the copies of greedy replication; ``rebalancing``
    needs a previous plan with ``max_moves``.

    Parameters
    ----------
    problem : Problem
    name : str
        One of `MODELS`.
    path : path-like
        File to write; ``.mps`` or ``.lp``.
    layer : int
        Position of the layer.

    Returns
    -------
    variables, constraints : int

    Raises
    ------
    InputError
        An unknown model or suffix, a layer that is not there, no previous plan.

    Examples
    --------
    >>> import craftopt as co, os, tempfile
    >>> from craftopt_formulations.export import export_model
    >>> problem = co.Problem(co.Loads([[6, 3, 2, 1]]), gpus=2, replicas=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_model(problem, "joint", os.path.join(folder, "joint.mps"))
    (25, 29)
    """
    if name not in MODELS:
        raise InputError(f"model={name!r} is unknown; pass one of {', '.join(MODELS)}")
    target = Path(path)
    if target.suffix.lower() not in _SUFFIXES:
        raise InputError(f"{target} is neither .mps nor .lp; end the name with one of them")
    if not 0 <= layer < problem.loads.layers:
        raise InputError(f"layer={layer} is not there; pass 0..{problem.loads.layers - 1}")
    model = _build(problem, name, layer).model.model
    write: Callable[[str], Any] = (
        model.writeMPS if target.suffix.lower() == ".mps" else model.writeLP
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model"
        write(str(file))
        write_atomically(target, file.read_text(encoding="utf-8"))
    return model.numVariables(), model.numConstraints()


def _build(problem: Problem, name: str, layer: int) -> Any:
    """Build a model of the problem as a mixed-integer program."""
    loads, gpus, solver = problem.loads, problem.gpus, "cbc"
    if name == "allocation":
        return allocation.build(
            -layer_costs(problem), problem.replicas, step=problem.replica_step, solver=solver
        )
    limit = problem.copies_limit
    total = loads.total().tokens[0, layer]
    share = min(problem.replicas // loads.layers, problem.layer_replicas_limit)
    replicas = share - share % problem.replica_step
    spread = 1 if problem.even_slots else None
    if name == "replication":
        return replication.build(total, replicas, limit, solver=solver)
    if name == "placement":
        heaviest = float(max_copy_load(total, replicas, limit)[-1])
        counts = np.maximum(1, np.ceil(total / heaviest * (1.0 - 1e-12))) if heaviest else total
        counts = np.maximum(counts, 1).astype(np.int64)
        return placement.build(total, counts, gpus, spread=spread, solver=solver)
    if name == "rebalancing":
        if problem.previous is None or problem.max_moves is None:
            raise InputError("rebalancing needs a previous plan and max_moves; pass both")
        return rebalancing.build(
            total,
            problem.previous_copies[layer],
            replicas,
            problem.max_moves // loads.layers,
            most_copies=limit,
            spread=spread,
            solver=solver,
        )
    builder = joint.build if name == "joint" else windowed.build
    tokens = total if name == "joint" else loads.tokens[:, layer]
    return builder(tokens, gpus, replicas, most_copies=limit, spread=spread, solver=solver)
