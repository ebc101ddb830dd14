"""One plan for prefill and decode together."""

from __future__ import annotations

from typing import Any

import numpy as np

from craftopt.errors import InputError, number
from craftopt.executors import Executor
from craftopt.plan import Plan
from craftopt.planners.decode import Prefill, plan_decode
from craftopt.planners.fast import plan_fast
from craftopt.problem import Problem
from craftopt.result import Options


def plan_for_both(
    prefill: Problem,
    decode: Problem,
    *,
    seed: int = 0,
    work_limit: int | None = None,
    workers: int | Executor | None = None,
    weight: float = 0.5,
) -> Plan:
    """Make one plan for prefill and decode together.

    Minimises ``(1 - weight) * relative time of prefill + weight * relative activation of decode``:
    the latter is the mean of the most activated copies on a GPU over the mean of activated copies
    per GPU, so that both are a largest over a mean. Weights between 0 and 1 trace the Pareto
    curve; 0 and 1 are the plans that `solve` makes for each problem alone.

    Parameters
    ----------
    prefill, decode : Problem
        The same layers, experts, cluster, budget and rules; objectives ``time`` and
        ``activated``; each with windows of its own kind, many of them for decode.
    weight : float
        0 to 1.
    seed, work_limit, workers
        As in `solve` with the method ``fast``.

    Raises
    ------
    InputError
        Problems that differ in more than loads and objective or have ``max_moves``, or a value
        outside its range.

    Examples
    --------
    >>> import craftopt as co
    >>> prefill = co.Problem(co.Loads([[[60, 30, 9, 1]], [[50, 20, 9, 9]]]), gpus=2, replicas=2)
    >>> decode = prefill.replace(
    ...     loads=co.Loads([[[2, 1, 0, 0]], [[1, 1, 0, 1]]]), objective="activated"
    ... )
    >>> plan = co.plan_for_both(prefill, decode, weight=0.5)
    >>> co.evaluate(plan, decode.loads, "exact").max_activated
    array([[1],
           [2]])
    """
    weight = number("weight", weight, least=0, most=1)
    _check_pair(prefill, decode)
    options = Options(seed=seed, work_limit=work_limit, workers=workers)
    if weight == 0:
        outcome = plan_fast(prefill, options)
    else:
        outcome = plan_decode(decode, options, None if weight == 1 else Prefill(prefill, weight))
    assert outcome.plan is not None
    return outcome.plan


def _check_pair(prefill: Problem, decode: Problem) -> None:
    """Refuse problems that no plan can be made for together."""
    if (prefill.objective, decode.objective) != ("time", "activated"):
        raise InputError(
            f"the objectives are {prefill.objective!r} and {decode.objective!r}; pass a problem "
            "with objective='time' and one with objective='activated'"
        )
    for name in ("gpus", "nodes", "replicas", "slots", "max_copies", "max_moves"):
        first, second = getattr(prefill, name), getattr(decode, name)
        if first != second:
            raise InputError(f"{name} is {first!r} in prefill and {second!r} in decode")
    if prefill.max_moves is not None:
        raise InputError(
            f"plan_for_both plans from scratch and cannot keep max_moves={prefill.max_moves}; "
            "pass problems without max_moves"
        )
    pairs: dict[str, tuple[Any, Any]] = {
        "number of experts": (prefill.loads.experts, decode.loads.experts),
        "layer_ids": (prefill.loads.layer_ids, decode.loads.layer_ids),
        "expert_groups": (prefill.expert_groups, decode.expert_groups),
        "previous plan": (
            None if prefill.previous is None else prefill.previous_copies,
            None if decode.previous is None else decode.previous_copies,
        ),
    }
    for name, (first, second) in pairs.items():
        if not np.array_equal(first, second):
            raise InputError(
                f"prefill and decode differ in their {name}; pass problems that differ in loads "
                "and objective alone"
            )
