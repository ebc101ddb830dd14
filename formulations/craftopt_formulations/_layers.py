"""Layers with given numbers of replicas for the method ``exact``: placed, searched, proven."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from craftopt.bounds import even_costs, shared_cost_table, with_companions
from craftopt.knapsack import allocate
from craftopt.loads import FloatArray, IntArray, Loads
from craftopt.plan import Copies
from craftopt.planners.layers import Key, Layers, layer_keys
from craftopt.problem import Problem
from craftopt.result import Options
from craftopt.search.annealing import anneal
from craftopt.search.kernels import Schedule
from craftopt.search.largest import anneal_largest
from craftopt_formulations._neighbourhoods import choose_again
from craftopt_formulations._search import kick_layer
from craftopt_formulations.whole import layer_cost, layer_flags, solve_whole

# A layer or plan this close to its bound, relative, is proven.
CLOSED = 1e-10
# A layer this close is not searched further; one of a single window that is farther than FAR
# is annealed too, not only kicked.
ENOUGH, FAR = 5e-5, 1e-3
# Kicks of a layer of a single window.
KICKS = 1000
# Searches of a layer, and annealing steps per copy in each.
SEARCHES, STEPS_PER_COPY = 3, 1000
# First and last temperature, in mean GPU loads, and the windows of a mini-batch.
HOT, COLD, IN_PLAY = 1e-3, 1e-5, 256
# Long annealing of several windows, in rounds of twice the work: deterministic seconds of the first
# for a layer, loads that a step changes per second, and temperatures, the first ones in turn.
ROUND, LOADS_PER_SECOND = 0.1, 5e7
HOTS, COOL = (3e-3, 1e-2), 3e-5
# In the first EXPLORED rounds, a layer is also tried with a WIDTH-th of its replicas (one at least)
# fewer and more.
EXPLORED, WIDTH = 2, 8
# A layer is small with at most so many `layer_flags`: later rounds search it by neighbourhoods,
# too, and CP-SAT may prove it with much work (docs/research/windowed_bounds.md).
SMALL = 1024
# A GPU may then host so many times what is even of a layer, where slots are free.
WIDE = 3


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a layer with a number of replicas.

    ``cost`` and ``bound`` are the layer's part of the objective; ``work`` are the deterministic
    seconds that CP-SAT had for it, infinite where more would change nothing.
    """

    copies: Copies
    cost: float
    bound: float
    work: float = 0.0

    @property
    def closed(self) -> bool:
        """Whether the placement is proven optimal."""
        return self.cost - self.bound <= CLOSED * abs(self.cost)


class KnownLayers(Layers):
    """What is known of the layers, by layer and number of replicas."""

    def __init__(self, problem: Problem, options: Options) -> None:
        super().__init__(problem, options, uneven=True)
        self._known: dict[Key, Known] = {}
        self._round = 0
        self._neighbourly = layer_flags(problem) <= SMALL and problem.objective == "time"

    def __getstate__(self) -> dict[str, Any]:
        """Return what all layers share: what is known of one is given with the work on it."""
        return {**super().__getstate__(), "_known": {}}

    def __getitem__(self, key: Key) -> Known:
        return self._known[key]

    @cached_property
    def table(self) -> FloatArray:
        """Bounds of all layers for all `Problem.replica_choices`."""
        return with_companions(self.problem, shared_cost_table(self.problem))

    @property
    def solver_seconds(self) -> float | None:
        """What the time limit leaves a solver; None without one."""
        return None if math.isinf(self.seconds_left) else max(self.seconds_left, 0.01)

    def take(self, copies: Copies) -> IntArray:
        """Know the layers of a plan; return their replicas."""
        copies = copies.copy()  # numba compiles searches again for arrays that are read-only
        replicas: IntArray = copies.sum(axis=(1, 2), dtype=np.int64) - self.problem.loads.experts
        for key in layer_keys(np.arange(replicas.size), replicas):
            self._known[key] = self._judge(key, copies[key[0]], self._table_bound(key))
        return replicas

    def measure(self, layers: IntArray, choices: IntArray) -> FloatArray:
        """Place layers that are not known, by the sum of their windows; return the costs of all."""
        keys = layer_keys(layers, choices * self.problem.replica_step)
        unknown = [key for key in keys if key not in self._known]
        found = self.each(self._place, unknown, [self._table_bound(key) for key in unknown])
        self._known.update(zip(unknown, found, strict=True))
        return np.array([self[key].cost for key in keys])

    def search(self, layers: IntArray, replicas: IntArray) -> bool:
        """Search layers further; return whether any got better."""
        keys = layer_keys(layers, replicas)
        found = self.each(self._search, keys, map(self.__getitem__, keys))
        better = any(new.cost < self[key].cost for key, new in zip(keys, found, strict=True))
        self._known.update(zip(keys, found, strict=True))
        return better

    def improve(self, replicas: IntArray, work: float) -> float:
        """Search open layers with several windows, also with other replicas; return the work.

        In every round, layers are annealed with the replicas that are best for all of them by what
        is known; in the first ones with some more and some fewer, too. In later ones neighbourhoods
        of layers that are not large have as much work again. Rounds and layers come in one order,
        whatever the work: more goes on where less ends, and so never ends worse.
        """
        layers = np.arange(replicas.size)
        left = work
        while not self.expired:
            turn = self._round
            each = ROUND * 2**turn * (1 + self._chooses(turn))
            tried = [replicas]
            if turn < EXPLORED and self.problem.slots != "uniform":
                tried += self._others(replicas)
            every = np.tile(layers, len(tried))
            keys = list(dict.fromkeys(self.open(every, np.concatenate(tried), math.inf)))
            keys = keys[: int(left / each)]
            if not keys:
                break
            found = self.each(partial(self._improve, turn), keys, map(self.__getitem__, keys))
            self._known.update(zip(keys, found, strict=True))
            left -= each * len(keys)
            self._round += 1
            replicas, _ = self.allocation()
        return work - left

    def _chooses(self, turn: int) -> bool:
        """Whether a round of `improve` searches by neighbourhoods, too."""
        return self._neighbourly and turn >= EXPLORED

    def _others(self, replicas: IntArray) -> list[IntArray]:
        """Place every layer with some replicas fewer and some more."""
        step, most = self.problem.replica_step, int(self.problem.replica_choices[-1])
        change = np.maximum(replicas // (WIDTH * step), 1) * step
        others = [np.maximum(replicas - change, 0), np.minimum(replicas + change, most)]
        for other in others:
            self.measure(np.arange(replicas.size), other // step)
        return others

    def allocation(self) -> tuple[IntArray, float]:
        """Return the replicas of the layers that are best by what is known, and their cost."""
        problem, table = self.problem, self.costs()
        if problem.slots != "uniform":
            return allocate(table, problem.replicas, problem.replica_step)
        sums = table.sum(axis=0)  # the same in all layers
        return np.full(len(table), sums.argmin() * problem.replica_step), float(sums.min())

    def open(self, layers: IntArray, replicas: IntArray, work: float) -> list[Key]:
        """List the layers that are not proven and had less work."""
        keys = layer_keys(layers, replicas)
        return [key for key in keys if not self[key].closed and self[key].work < work]

    def prove(self, keys: list[Key], work: float) -> list[float]:
        """Give layers to CP-SAT; return the work that each took."""
        found = self.each(partial(self._prove, work), keys, map(self.__getitem__, keys))
        self._known.update(zip(keys, (known for known, _ in found), strict=True))
        return [spent for _, spent in found]

    def bounds(self, layers: IntArray, replicas: IntArray) -> FloatArray:
        """Return what is proven of layers."""
        return np.array([self[key].bound for key in layer_keys(layers, replicas)])

    def costs(self) -> FloatArray:
        """Tabulate the costs by layer and choice of replicas; ``inf`` where none is known."""
        step = self.problem.replica_step
        choices = max(replicas for _, replicas in self._known) // step + 1
        table = np.full((self.problem.loads.layers, choices), np.inf)
        for (layer, replicas), known in self._known.items():
            table[layer, replicas // step] = known.cost
        return table

    def whole(self, replicas: IntArray) -> Copies:
        """Make a plan of all layers."""
        return self.join([self[key].copies for key in enumerate(replicas.tolist())])[0]

    def _table_bound(self, key: Key) -> float:
        """Look the bound of a layer up, where it is tabulated: once, not on every machine."""
        layer, replicas = key
        column = int(np.searchsorted(self.problem.replica_choices, replicas))
        return float(self.table[layer, column])

    def _judge(self, key: Key, copies: Copies, bound: float) -> Known:
        """Compute cost and analytic bound of a placement."""
        layer, replicas = key
        if self.problem.even_slots:
            even = even_costs(self.problem, np.array([layer]), np.array([replicas]))
            bound = max(bound, float(even[0]))
        return Known(copies, layer_cost(self.problem, layer, copies), bound)

    def _place(self, key: Key, bound: float) -> Known:
        return self._judge(key, self.place(self.total[key[0]], key[1], ENOUGH)[0], bound)

    def _improve(self, turn: int, key: Key, known: Known) -> Known:
        """Search a layer from its best placement, in one round of `improve`."""
        problem, (layer, replicas) = self.problem, key
        scaled, weight = self._windows(layer)
        if not weight.size or self.expired:
            return known
        steps = int(ROUND * 2**turn * LOADS_PER_SECOND / weight.size)
        schedule = Schedule(steps, HOTS[turn % len(HOTS)], COOL)
        seed = self.seed(layer, replicas * 31 + SEARCHES + turn)
        time = not problem.goal.maximised
        rules = self.rules(replicas)
        if not problem.even_slots:  # hot copies alone, cold ones together
            rules = rules._replace(low=0, high=min(WIDE * rules.high, problem.loads.experts))
        copies = anneal_largest(scaled, weight, known.copies, rules, schedule, seed, time)
        if layer_cost(problem, layer, copies) >= known.cost:
            copies = known.copies
        if self._chooses(turn):
            copies = choose_again(problem, layer, copies, ROUND * 2**turn, seed)
        cost = layer_cost(problem, layer, copies)
        return replace(known, copies=copies, cost=cost) if cost < known.cost else known

    def _windows(self, layer: int) -> tuple[FloatArray, FloatArray]:
        """Scale the windows that have tokens to a mean GPU load of 1, and say what each counts.

        Returns
        -------
        scaled : float64 [experts, windows]
        weight : float64 [windows]
            Sums to 1.
        """
        tokens = self.problem.loads.tokens[:, layer]
        mean = tokens.sum(axis=1) / self.problem.gpus
        used = mean > 0
        weight = self.problem.goal.window_weights(mean)[used]
        scaled = np.ascontiguousarray((tokens[used] / mean[used, np.newaxis]).T)
        return scaled, weight / max(weight.sum(), 1e-300)

    def _search(self, key: Key, known: Known) -> Known:
        """Search a layer from its best placement, with several seeds."""
        problem, (layer, replicas) = self.problem, key
        tokens = problem.loads.tokens[:, layer]
        scaled, weight = self._windows(layer)
        if not weight.size:
            return known
        copies_now = problem.loads.experts + replicas
        schedule = Schedule(STEPS_PER_COPY * copies_now, HOT, COLD, IN_PLAY)
        alone = problem.loads.windows == 1
        for turn in range(SEARCHES):
            gap = (known.cost - known.bound) / max(abs(known.bound), 1e-300)
            if gap <= ENOUGH or self.expired:
                break
            seed = self.seed(layer, replicas * 31 + turn)
            copies = known.copies
            if not alone or gap > FAR:
                copies = anneal(scaled, weight, copies, self.rules(replicas), schedule, seed)
            elif turn:
                break  # kicks alone had their turn
            if alone:
                copies = self._kick(tokens[0], copies, known.bound, seed)
            cost = layer_cost(problem, layer, copies)
            if cost < known.cost:
                known = replace(known, copies=copies, cost=cost)
        return known

    def _kick(self, weight: FloatArray, copies: Copies, bound: float, seed: int) -> Copies:
        """Perturb a layer of one window by random exchanges and descend, node by node."""
        share = weight / copies.sum(axis=1)
        # The bound is a load for the objective time, and negative for balancedness.
        target = max(float(weight.sum()) / self.problem.gpus, bound) * (1.0 + ENOUGH)
        return self.by_node(copies, lambda part: kick_layer(share, part, target, KICKS, seed))

    def _prove(self, work: float, key: Key, known: Known) -> tuple[Known, float]:
        """Give one layer to CP-SAT; return what is known then, and the work that it took."""
        problem, (layer, replicas) = self.problem, key
        alone = problem.variant(
            loads=Loads(problem.loads.tokens[:, [layer]]),
            replicas=replicas,
            slots="even",
            previous=None,
        )
        found = solve_whole(
            alone,
            exactly=True,
            loose=not problem.even_slots,
            hint=known.copies[np.newaxis],
            bound=known.bound,
            work=work,
            seconds=self.solver_seconds,
        )
        bound = known.bound if found.bound is None else max(known.bound, found.bound)
        copies, cost = known.copies, known.cost
        if found.copies is not None:
            reached = layer_cost(problem, layer, found.copies[0])
            if reached < cost:
                copies, cost = found.copies[0], reached
        done = math.inf if found.status == "optimal" else work
        return Known(copies, cost, bound, done), found.work
