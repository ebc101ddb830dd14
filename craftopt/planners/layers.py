"""The frame of every search that plans layer by layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np

from craftopt.evaluation import objective_value
from craftopt.executors import run_in_order
from craftopt.loads import FloatArray, IntArray
from craftopt.plan import Copies, Plan
from craftopt.planners.previous import usable_replicas
from craftopt.problem import Problem
from craftopt.result import Limit, Options
from craftopt.rules import violations
from craftopt.search.kernels import Rules
from craftopt.search.placement import Layout, place_layer
from craftopt.search.totals import equalise

# How far uneven numbers of a layer's copies may be from floor and ceil of their mean over GPUs.
SLACK = 2
# A start this close to its layer's bound, relative, is good enough.
TOLERANCE = 1e-3

Found = TypeVar("Found")
Key = tuple[int, int]  # layer and replicas


def layer_keys(layers: IntArray, replicas: IntArray) -> list[Key]:
    """Pair layers with their replicas, to remember placements by."""
    return list(zip(layers.tolist(), replicas.tolist(), strict=True))


class Layers:
    """Search layers one by one: their rules, starts, seeds and limits.

    Layers share nothing while they are searched, so threads or other machines change nothing but
    the time.

    Parameters
    ----------
    problem : Problem
    options : Options
        The clock of its ``time_limit`` starts here.
    uneven : bool
        Whether GPUs may host uneven numbers of a layer's copies where the slot rule allows it.
    """

    def __init__(self, problem: Problem, options: Options, *, uneven: bool = False) -> None:
        self.problem, self.options = problem, options
        self.slack = SLACK if uneven and not problem.even_slots else 0
        self.layout = Layout(
            problem.group_of, problem.group_nodes, problem.gpus, problem.copies_limit, self.slack
        )
        self.late = self.cut_short = False
        self._deadline = options.deadline()

    def __getstate__(self) -> dict[str, Any]:
        """Return what the search of a layer depends on; clocks differ between machines."""
        options = replace(self.options, workers=None, progress=None)
        state = {"options": options, "late": False, "cut_short": False}
        return {**self.__dict__, **state, "_deadline": self.seconds_left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start the clock for the time that was left."""
        self.__dict__.update(state)
        self._deadline += time.monotonic()

    @cached_property
    def total(self) -> FloatArray:
        """Tokens of all windows, float64 [layers, experts]."""
        tokens: FloatArray = self.problem.loads.total().tokens[0]
        return tokens

    @cached_property
    def previous(self) -> IntArray:
        """Replicas of the layers of the previous plan, int64 [layers]; -1 where it is no start."""
        return usable_replicas(self.problem, self.problem.gpus if self.slack else 1)

    @property
    def limit(self) -> Limit | None:
        """What stopped the search before its end."""
        return "time" if self.late else "work" if self.cut_short else None

    @property
    def seconds_left(self) -> float:
        """Time until the time limit, in seconds; negative once it has passed."""
        return self._deadline - time.monotonic()

    @property
    def expired(self) -> bool:
        """Whether the time limit has passed."""
        return self.seconds_left < 0

    def seed(self, layer: int, part: int = 0) -> int:
        """Seed one part of a layer's search."""
        return (self.options.seed * 1_000_003 + layer * 1009 + part) % 2**31

    def steps(self, most: int) -> int:
        """Limit the annealing steps of a layer; there are none once the time limit has passed."""
        limit = self.options.work_limit
        if limit is not None and limit < most:
            most, self.cut_short = limit, True
        if self.expired:
            most, self.late = 0, True
        return most

    def rules(self, replicas: int) -> Rules:
        """State what the copies of a layer must keep."""
        problem = self.problem
        copies = problem.loads.experts + replicas
        low = max(copies // problem.gpus - self.slack, 0)
        high = min(-(-copies // problem.gpus) + self.slack, problem.loads.experts)
        return Rules(problem.group_nodes, low, high, problem.copies_limit)

    def place(
        self, weight: FloatArray, replicas: int, tolerance: float = TOLERANCE
    ) -> tuple[Copies, float]:
        """Replicate and place a layer's experts by one weight each; see `place_layer`."""
        return place_layer(weight, replicas, self.layout, tolerance)

    def start(
        self, layer: int, weight: FloatArray, replicas: int, cost: Callable[[Copies], float]
    ) -> Copies:
        """Place a layer by weight, or take the previous plan's where that costs no more."""
        placed = self.place(weight, replicas)[0]
        if self.previous[layer] != replicas:
            return placed
        kept: Copies = self.problem.previous_copies[layer].copy()
        return kept if cost(kept) <= cost(placed) else placed

    def each(
        self,
        work: Callable[..., Found],
        *columns: Iterable[Any],
        done: float = 0.0,
        part: float = 1.0,
    ) -> list[Found]:
        """Call ``work`` as `map` does, in the executor of the options; list the results in order.

        Work that may leave the process is a method of this object or a function of a module, bound
        to what all layers share. Progress goes from ``done`` by ``part``.
        """
        progress = self.options.progress
        found = run_in_order(
            self.options.executor,
            partial(self._stopped, work),
            *columns,
            progress=progress and (lambda share: progress(done + part * share)),
        )
        for _, late, cut_short in found:
            self.late, self.cut_short = self.late or late, self.cut_short or cut_short
        return [result for result, _, _ in found]

    def _stopped(self, work: Callable[..., Found], *item: Any) -> tuple[Found, bool, bool]:
        """Call ``work``; say with what it returns which limits stopped it, here or elsewhere."""
        return work(*item), self.late, self.cut_short

    def by_node(self, copies: Copies, improve: Callable[[Copies], Copies]) -> Copies:
        """Improve a layer's copies on the GPUs of every node by themselves."""
        width = self.problem.gpus // self.problem.group_nodes
        parts = [
            improve(np.ascontiguousarray(copies[:, first : first + width]))
            for first in range(0, self.problem.gpus, width)
        ]
        return np.concatenate(parts, axis=1)

    def join(self, layers: Sequence[Copies]) -> tuple[Copies, bool]:
        """Make a plan of layers: relabel GPUs for equal totals; see `equalise`."""
        return equalise(np.stack(layers), self.total, self.problem.group_nodes)

    def best(self, candidates: Iterable[Copies], method: str) -> Plan:
        """Return the best of the candidates that keep the rules, the first of equals."""
        plans = [self.problem.plan(copies, method) for copies in candidates]
        valid = [plan for plan in plans if not violations(plan, self.problem)]
        if len(valid) == 1:
            return valid[0]
        order = self.problem.goal.order
        return min(valid, key=lambda plan: order(objective_value(plan, self.problem)))
