"""Rebalance: from an old plan to a better one for new loads, with few moves.

A move is a copy hosted where the old plan does not host it: an expert that has to be sent.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from craftopt.compiling import first_use
from craftopt.errors import InputError, number
from craftopt.evaluation import objective_value
from craftopt.executors import Executor
from craftopt.kinds import near_latest
from craftopt.loads import BoolArray, as_array, read_only
from craftopt.plan import Copies, Plan
from craftopt.planners.fast import plan_fast
from craftopt.problem import Problem
from craftopt.rebalancing.fronts import Fronts, trace_fronts
from craftopt.rebalancing.migration import Migration, plan_migration
from craftopt.rebalancing.relabelling import count_moves, moved_copies, relabel_copies
from craftopt.rebalancing.start import valid_start
from craftopt.rebalancing.survivors import (
    alive_gpus,
    on_survivors,
    over_all,
    over_survivors,
    resized,
)
from craftopt.result import Options, Result, Status
from craftopt.rules import violations

# Share of all copies from which on a plan from scratch is tried as well.
FROM_SCRATCH = 0.5


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Rebalancing(Result):
    """Hold a plan made from an old one, and what it takes to get there.

    What `Result` holds, and:

    Parameters
    ----------
    previous : Plan
        The old plan.
    previous_objective : float or None
        What the old plan makes of the new loads; None where it has lost experts with dead GPUs.
    active : bool [gpus]
        GPUs that are alive. ``problem`` is about these alone, ``plan`` has all GPUs.
    """

    previous: Plan = field(repr=False)
    previous_objective: float | None
    active: BoolArray = field(repr=False)
    _fronts: Fronts | None = field(default=None, repr=False)

    @property
    def moves(self) -> int:
        """Copies hosted where the old plan does not host them."""
        return count_moves(self.plan, self.previous)

    @property
    def moved_share(self) -> float:
        """Share of the plan's copies that are moves."""
        return self.moves / int(self.plan.slots.sum())

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, for JSON."""
        return super().to_dict() | {
            "previous_objective": self.previous_objective,
            "moves": self.moves if self.has_plan else None,
            "moved_share": self.moved_share if self.has_plan else None,
        }

    def summary(self) -> dict[str, str]:
        """Return the figures in words, for a table."""
        rows = super().summary()
        if self.previous_objective is not None:
            rows[f"{self.problem.goal.label} before"] = f"{self.previous_objective:.4f}"
        if self.has_plan:
            rows["moves"] = f"{self.moves:,}, {self.moved_share:.1%} of the copies"
        return rows

    def _held(self) -> Plan:
        return self.problem.plan(on_survivors(self.plan.copies, self.active), self.method)

    def migration(self, staging: int = 1) -> Migration:
        """Order the steps; see `plan_migration`."""
        return plan_migration(self.previous, self.plan, staging=staging, active=self.active)

    def curve(self, moves: npt.ArrayLike) -> tuple[tuple[int, float], ...]:
        """Return what other numbers of moves reach, up to those that were searched.

        Parameters
        ----------
        moves : array_like of int
            Most moves, one plan each.

        Returns
        -------
        tuple of (int, float)
            Moves made and objective reached, by rising moves; the first is the least there is.
        """
        if self._fronts is None:
            return ()
        least = int(np.isfinite(self._fronts.costs).argmax(axis=1).sum())
        wanted = as_array("moves", moves)
        if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
            raise InputError("curve takes a list of whole numbers")
        points = {}
        for most in sorted({least, *(int(m) for m in wanted if m > least)}):
            chosen = self._fronts.choose(most)
            copies = self._fronts.copies(chosen, self.problem.loads.experts)
            plan = self.problem.plan(copies, self.method)
            points[int(chosen.sum())] = objective_value(plan, self.problem)
        return tuple(points.items())


def rebalance(
    problem: Problem,
    old_plan: Plan,
    max_moves: int | None = None,
    *,
    max_bytes: float | None = None,
    max_seconds: float | None = None,
    expert_bytes: float | None = None,
    link_bytes_per_second: float | None = None,
    move_price: float = 0.0,
    all_windows: bool = False,
    active: npt.ArrayLike | None = None,
    seed: int = 0,
    work_limit: int | None = None,
    workers: int | Executor | None = None,
) -> Rebalancing:
    """Plan for new loads with few copies moved from where an old plan hosts them.

    Every layer is annealed from the old plan under a falling price per moved copy, which gives its
    best placements for every number of moves; the knapsack deals the moves out to the layers. The
    slots of every GPU stay as they are, unless rules, budget or dead GPUs ask for others.

    Parameters
    ----------
    problem : Problem
        New loads, budget and rules, and how many GPUs there are afterwards. The windows, in the
        order of time, may go back to before the traffic changed: see ``all_windows``.
    old_plan : Plan
        What is hosted now. It may break the rules: what does is replaced first, as moves. Where
        its number of GPUs is another, its dead ones are left out, the last ones leave, and new
        ones come empty; pass `Plan.survivors` where a dead GPU is replaced.
    max_moves : int, optional
        Most copies to send; `Problem.max_moves` by default. Without any limit, or with half of
        all copies or more, a plan from scratch is tried as well.
    max_bytes, max_seconds : float, optional
        Most bytes to send, most time for the migration with one staging slot
        (`Migration.seconds`).
    expert_bytes, link_bytes_per_second : float, optional
        Size of one expert, speed of a GPU's link: what these limits need.
    move_price : float
        What a move has to gain to be made: off the sum over windows and layers of the largest
        GPU load (and of the price of traffic, in the same unit), or onto that of the balancedness.
    all_windows : bool
        Plan for all windows. By default those of another kind of traffic than the last one are
        left out, as they do harm, and `Result.message` says so: farther from it, by the Hellinger
        distance of the experts' shares, than 1.6 times the median distance of consecutive windows.
    active : array_like of bool [gpus], optional
        False where a GPU is dead; by default those that the old plan calls dead. The plan uses
        the others alone, and no more slots than they have, if these suffice.
    seed : int
    work_limit : int, optional
        Annealing steps of a layer.
    workers : int or Executor, optional
        As in `solve`; the plan does not depend on it.

    Returns
    -------
    Rebalancing
        On the windows planned for (``problem.loads``) never worse than the old plan, if that keeps
        the rules. ``NOT_FOUND`` where the rules need more moves than allowed.

    Raises
    ------
    InputError
        A value outside its range, limits without what they need, a plan of another model, no GPU
        alive.

    Examples
    --------
    >>> import craftopt as co
    >>> loads = co.Loads([[8, 7, 1, 1], [4, 4, 4, 4]])
    >>> old = co.Plan.from_phy2log([[0, 1, 2, 3], [0, 1, 2, 3]], gpus=2)
    >>> problem = co.Problem(loads, gpus=2, slots="uniform")
    >>> found = co.rebalance(problem, old, max_moves=2)
    >>> found.moves, round(found.previous_objective, 3), round(found.objective, 3)
    (2, 1.394, 1.03)
    """
    if not (isinstance(problem, Problem) and isinstance(old_plan, Plan)):
        raise InputError(
            f"rebalance takes a Problem and a Plan, not {type(problem).__name__} and "
            f"{type(old_plan).__name__}"
        )
    problem.goal.require_even_dispatch("rebalance")
    if problem.max_slowdown is not None:
        raise InputError(
            "rebalance knows no max_slowdown, since moves are weighed in one objective; pass "
            "problem.replace(max_slowdown=None), or traffic="
        )
    number("move_price", move_price, least=0)
    problem, note = (problem, "") if all_windows else _of_last_kind(problem)
    options = Options(seed, work_limit, workers=workers)
    old_plan.check_layers(problem.loads, "loads")
    if old_plan.gpus != problem.gpus:
        old_plan = old_plan.survivors()
    if active is None:
        active = ~np.isin(np.arange(problem.gpus), old_plan.dead)
    alive = alive_gpus(active, problem.gpus)
    held_now = resized(old_plan.copies, problem.gpus)
    task = over_survivors(problem, on_survivors(held_now, alive), alive)
    limits = [max_moves, problem.max_moves, _moves_for("max_bytes", max_bytes, expert_bytes, 1.0)]
    on_one_link = _moves_for("max_seconds", max_seconds, expert_bytes, link_bytes_per_second)
    limits.append(None if on_one_link is None else on_one_link * task.gpus)
    task = task.variant(max_moves=min((m for m in limits if m is not None), default=None))
    compile_time = first_use("rebalance", task.variant(max_moves=None), _rebalance_small)
    begun = time.perf_counter()
    start = valid_start(task)
    every = int(start.sum())
    most = every if task.max_moves is None else min(task.max_moves, every)
    least = moved_copies(start, task.previous_copies)
    fronts, plan, message = None, None, ""
    if least > most:
        message = f"max_moves={most} is too few: the rules need {least} moves; allow as many"
    else:
        fronts = trace_fronts(task, start, most, options)
        while plan is None and most >= least:
            copies = _best(task, fronts, most, move_price, options)
            found = Plan(
                over_all(copies, alive),
                old_plan.layer_ids,
                problem.nodes,
                "rebalance",
                problem.loads.digest,
                np.flatnonzero(~alive).tolist(),
            )
            if max_seconds is None:
                plan = found
                break
            assert expert_bytes is not None
            assert link_bytes_per_second is not None
            migration = plan_migration(old_plan, found, active=alive)
            seconds = migration.seconds(expert_bytes, link_bytes_per_second)
            if seconds <= max_seconds:
                plan = found
            most = min(most - 1, int(migration.moves * max_seconds / max(seconds, 1e-300)))
        if plan is None:
            message = f"max_seconds={max_seconds} is too short for the moves that the rules need"
    message = message or task.free_traffic
    if problem.nodes > 1 and task.nodes == 1 and not problem.balance_alone:
        message = message or "nodes have lost different numbers of GPUs: planned as one node"
    message = "; ".join(filter(None, (message, note)))
    runtime = time.perf_counter() - begun
    lost = not task.previous_copies.any(axis=2).all()
    before = None if lost else objective_value(task.plan(task.previous_copies, "previous"), task)
    return Rebalancing(
        method="rebalance",
        problem=task,
        runtime=runtime,
        compile_time=compile_time,
        message=message,
        _plan=plan,
        previous=old_plan,
        previous_objective=before,
        active=read_only(alive),
        _fronts=fronts,
    )


def _of_last_kind(problem: Problem) -> tuple[Problem, str]:
    """Leave out windows of other kinds of traffic than the last one's, and say so."""
    near = near_latest(problem.loads.tokens)
    if near.all():
        return problem, ""
    return problem.variant(loads=problem.loads.select(np.flatnonzero(near))), (
        f"planned on {near.sum()} of {near.size} windows: the others are of another kind of traffic"
    )


def _rebalance_small(problem: Problem) -> Status:
    assert isinstance(problem.previous, Plan)
    return rebalance(problem, problem.previous, work_limit=1).status


def _best(task: Problem, fronts: Fronts, most: int, price: float, options: Options) -> Copies:
    """Return the best copies within ``most`` moves, these priced; of equals, the nearest."""
    task = task.variant(max_moves=most)
    old = task.previous_copies
    candidates = [fronts.copies(fronts.choose(most, price), task.loads.experts)]
    whole = bool(old.any(axis=2).all())
    if whole:
        candidates.append(old)
    if not price and most >= FROM_SCRATCH * candidates[0].sum():
        free = task.variant(max_moves=None, previous=task.previous if whole else None)
        made = plan_fast(free, options).plan
        assert made is not None
        moved = relabel_copies(made.copies, old, task.whole_nodes)
        if whole:  # a layer without tokens gains nothing by moves
            idle = ~task.loads.tokens.any(axis=(0, 2))
            moved[idle] = old[idle]
        candidates.append(moved)
    # The objective as a cost, in the unit of the price.
    scale = task.goal.cost(1.0, task.loads, task.gpus)
    scored = []
    for copies in candidates:
        plan = task.plan(copies, "rebalance")
        if not violations(plan, task):
            moves = moved_copies(copies, old)
            scored.append((scale * objective_value(plan, task) + price * moves, moves, copies))
    return min(scored, key=lambda entry: entry[:2])[2]


def _moves_for(
    name: str, limit: float | None, expert_bytes: float | None, per_second: float | None
) -> int | None:
    """Count the experts that bytes, or seconds on one link, allow."""
    if limit is None:
        return None
    if expert_bytes is None or per_second is None:
        needed = "expert_bytes" if name == "max_bytes" else "expert_bytes, link_bytes_per_second"
        raise InputError(f"{name}={limit} needs {needed}")
    number(name, limit, least=0)
    number("expert_bytes", expert_bytes, above=0)
    number("link_bytes_per_second", per_second, above=0)
    return int(limit * per_second / expert_bytes)
