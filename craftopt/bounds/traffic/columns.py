"""The column bound: the nodes that tokens visit, priced by what single nodes can do.

With one copy per expert, a node that holds the set A of experts is visited by ``touched(A)``
tokens, those that chose one of A at least, and the sum over the nodes is what all tokens visit.
For any whole numbers, prices, of the experts

    sum_n touched(A_n)  =  sum_n ( touched(A_n) - prices(A_n) ) + sum_e prices_e
                       >=  nodes * min_A ( touched(A) - prices(A) ) + sum_e prices_e,

the minimum over all sets of a node's size. Where these are few (at most `MOST_SETS`) they are
counted one by one. The prices are the duals of a linear program, to choose ``nodes`` sets that
cover every expert once, found by column generation. A partition below the best known one has
no set that costs more than the gap above the minimum; over the sets that are left, the best
partition is a small integer program. It proves the optimum of the layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from craftopt.bounds.traffic.tokens import TokenSets, count_visits
from craftopt.errors import InputError
from craftopt.loads import BoolArray, FloatArray, IntArray

Int32Array = npt.NDArray[np.int32]

# Sets that are counted one by one: 4 bytes and some 300 ns each.
MOST_SETS = 20_000_000
# Prices are whole multiples of that part of a token.
_SCALE = 1000
# Weight of the new duals in the prices, which are smoothed, and most rounds of pricing.
_NEW, _ROUNDS = 0.6, 200
# Most sets in the integer program.
_MOST_COLUMNS = 20_000
# Above what any set costs.
_NONE = 1 << 62


@dataclass(frozen=True, eq=False)
class ColumnBound:
    """What the column bound proves of a layer, and the best placement that it met.

    Parameters
    ----------
    visits : int
        In no placement do the tokens visit fewer nodes, all together.
    prices : int64 [experts]
        The proof, in units of 1/scale tokens.
    scale : int
    node_of : int64 [experts]
        The node of every expert in the best placement found.
    found : int
        The nodes that the tokens visit there.
    """

    visits: int
    prices: IntArray
    scale: int
    node_of: IntArray
    found: int

    @property
    def optimal(self) -> bool:
        """Whether the placement is proven optimal."""
        return self.found == self.visits

    @property
    def witness(self) -> dict[str, object]:
        """The proof, as `craftopt.verification_traffic` reads it."""
        return {"kind": "columns", "scale": self.scale, "prices": self.prices.tolist()}


def column_bound(
    sets: TokenSets, nodes: int, sizes: tuple[int, int], start: npt.ArrayLike | None = None
) -> ColumnBound:
    """Bound the nodes that tokens visit, and find the best placement.

    Parameters
    ----------
    sets : TokenSets
    nodes : int
    sizes : (int, int)
        The fewest and the most experts on a node (`node_sizes`).
    start : array_like of int [experts], optional
        The node of every expert in a good placement, which may spare work.

    Raises
    ------
    InputError
        More than `MOST_SETS` sets; `companion_bound` bounds such layers.

    References
    ----------
    Wentges: Weighted Dantzig-Wolfe decomposition for linear mixed-integer programming (1997).

    Examples
    --------
    >>> from craftopt.bounds.traffic import column_bound, token_sets
    >>> sets = token_sets([[0, 1], [0, 1], [2, 3], [1, 2]], experts=4)
    >>> bound = column_bound(sets, nodes=2, sizes=(2, 2))
    >>> bound.visits, bound.found, bound.node_of.tolist()
    (5, 5, [0, 0, 1, 1])
    """
    program = _Program(sets, nodes, sizes)
    if start is None:
        start = np.arange(sets.experts) * nodes // sets.experts
    node_of = np.array(start, dtype=np.int64)
    found = count_visits(sets, node_of)
    prices, proven = program.price(node_of)
    if (better := program.partition(program.pool))[1] < found:
        node_of, found = better
    visits = -(-proven // _SCALE)
    while visits < found:
        slack = (found - 1) * _SCALE - proven
        pool, excess = program.near(prices, slack)
        better = program.partition(pool)
        # A partition with a set that is not in the pool costs more than proven + excess.
        visits = min(better[1], found, (proven + excess) // _SCALE + 1)
        if better[1] < found:
            node_of, found = better
        elif excess < slack:
            break
    return ColumnBound(visits, prices, _SCALE, node_of, found)


class _Program:
    """The sets that a node may hold, what they cost, and the programs over them."""

    def __init__(self, sets: TokenSets, nodes: int, sizes: tuple[int, int]) -> None:
        self.experts, self.nodes = sets.experts, nodes
        self.sizes = range(sizes[0], sizes[1] + 1)
        count = sum(math.comb(sets.experts, size) for size in self.sizes)
        if count > MOST_SETS:
            raise InputError(
                f"a node can hold {count} sets of {sizes[0]}..{sizes[1]} of {sets.experts} "
                f"experts, and the column bound counts at most {MOST_SETS}; use companion_bound"
            )
        self._counts = sets.counts
        self._has = np.zeros((len(sets.counts), sets.experts + 1), dtype=np.bool_)
        np.put_along_axis(self._has, sets.members, True, axis=1)
        self._has = self._has[:, :-1]  # without the column of -1
        self._touched = []
        for size in self.sizes:
            touched = np.empty(math.comb(sets.experts, size), dtype=np.int32)
            _count_touched(self._has, sets.members, sets.counts, size, touched)
            self._touched.append(touched)
        self.pool: BoolArray = np.empty((0, sets.experts), dtype=np.bool_)

    def price(self, node_of: IntArray) -> tuple[IntArray, int]:
        """Generate columns; return the best prices and what they prove, in units of 1/scale."""
        self.pool = node_of == np.arange(self.nodes)[:, np.newaxis]
        best, proven = np.zeros(self.experts, dtype=np.int64), 0
        smooth: FloatArray | None = None
        for _ in range(_ROUNDS):
            value, duals = self._solve(self.pool)
            smooth = duals if smooth is None else _NEW * duals + (1 - _NEW) * smooth
            prices = np.rint(smooth * _SCALE).astype(np.int64)
            least, cheapest = self._cheapest(prices)
            bound = int(prices.sum()) + self.nodes * least
            if bound > proven:
                best, proven = prices, bound
            pool = np.unique(np.concatenate((self.pool, cheapest)), axis=0)
            if len(pool) == len(self.pool) or proven > (math.ceil(value - 1e-6) - 1) * _SCALE:
                break
            self.pool = pool
        return best, proven

    def _cost(self, pool: BoolArray) -> IntArray:
        """Count the tokens that touch each set."""
        cost: IntArray = self._counts @ (self._has.astype(np.int64) @ pool.T > 0)
        return cost

    def _rows(self, pool: BoolArray) -> tuple[Any, IntArray]:
        """State that a partition has every expert once, and as many sets as there are nodes."""
        rows = np.vstack((pool.T, np.ones(len(pool), dtype=np.bool_)))
        return rows.astype(np.float64), np.append(np.ones(self.experts), self.nodes)

    def _solve(self, pool: BoolArray) -> tuple[float, FloatArray]:
        """Solve the linear program over a pool; return its value and the duals of the experts."""
        rows, sides = self._rows(pool)
        solution = linprog(self._cost(pool), A_eq=rows, b_eq=sides, method="highs")
        return float(solution.fun), solution.eqlin.marginals[:-1]

    def partition(self, pool: BoolArray) -> tuple[IntArray, int]:
        """Find the best partition into sets of a pool: the node of every expert, and the cost."""
        cost = self._cost(pool)
        rows, sides = self._rows(pool)
        solution = milp(
            cost,
            integrality=np.ones(len(pool)),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(rows, sides, sides),
            options={"mip_rel_gap": 0},
        )
        if solution.x is None:
            return np.empty(0, dtype=np.int64), _NONE
        chosen = np.rint(solution.x) > 0
        return pool[chosen].argmax(axis=0), int(cost[chosen].sum())

    def _cheapest(self, prices: IntArray) -> tuple[int, BoolArray]:
        """Price all sets; return the least cost, and of every expert the cheapest set with it."""
        least, sets = _NONE, []
        for size, touched in zip(self.sizes, self._touched, strict=True):
            costs = np.full(self.experts, _NONE)
            members = np.zeros((self.experts, size), dtype=np.int64)
            _price(touched, prices, size, costs, members)
            least = min(least, int(costs.min()))
            sets.append(self._flags(members))
        return least, np.concatenate(sets)

    def near(self, prices: IntArray, slack: int) -> tuple[BoolArray, int]:
        """List the sets within some excess of the least cost: the slack, or less if too many."""
        least = self._cheapest(prices)[0]
        excess = slack
        while True:
            sets = []
            room = _MOST_COLUMNS
            for size, touched in zip(self.sizes, self._touched, strict=True):
                members = np.empty((room, size), dtype=np.int64)
                count = _collect(touched, prices, size, least + excess, members)
                room -= count
                if room < 0:
                    break
                sets.append(self._flags(members[:count]))
            if room >= 0:
                return np.concatenate(sets), excess
            excess //= 2

    def _flags(self, members: IntArray) -> BoolArray:
        flags = np.zeros((len(members), self.experts), dtype=np.bool_)
        np.put_along_axis(flags, members, True, axis=1)
        return flags


@njit(cache=True)
def _count_touched(
    has: BoolArray, members: IntArray, counts: IntArray, size: int, touched: Int32Array
) -> None:
    """Count the tokens that touch each set of a size, sets in lexicographic order.

    Of the last three experts, tokens are counted by inclusion and exclusion, from tables of the
    tokens that the others do not touch.
    """
    sets, k = members.shape
    experts = has.shape[1]
    tail = min(3, size)
    depth = size - tail
    prefix = np.arange(depth)
    untouched = np.empty((depth + 1, sets), dtype=np.int32)
    left = np.empty(depth + 1, dtype=np.int64)
    untouched[0], left[0] = np.arange(sets), sets
    one = np.empty(experts, dtype=np.int32)
    two = np.empty((experts, experts), dtype=np.int32)
    three = np.empty((experts, experts, experts if tail == 3 else 0), dtype=np.int32)
    total = counts.sum()
    at = changed = 0
    while True:
        for d in range(changed, depth):
            left[d + 1] = 0
            for t in untouched[d, : left[d]]:
                if not has[t, prefix[d]]:
                    untouched[d + 1, left[d + 1]] = t
                    left[d + 1] += 1
        first = prefix[-1] + 1 if depth else 0
        one[first:] = 0
        two[first:, first:] = 0
        three[first:, first:, first:] = 0
        base = total
        for t in untouched[depth, : left[depth]]:
            base -= counts[t]
            for x in range(k - 1, -1, -1):
                e = members[t, x]
                if e < first:
                    break
                one[e] += counts[t]
                for y in range(x + 1, k):
                    f = members[t, y]
                    two[e, f] += counts[t]
                    if tail == 3:
                        for g in members[t, y + 1 :]:
                            three[e, f, g] += counts[t]
        for e in range(first, experts - tail + 1):
            with_e = base + one[e]
            if tail == 1:
                touched[at] = with_e
                at += 1
                continue
            for f in range(e + 1, experts - tail + 2):
                with_f = with_e + one[f] - two[e, f]
                if tail == 2:
                    touched[at] = with_f
                    at += 1
                    continue
                for g in range(f + 1, experts):
                    touched[at] = with_f + one[g] - two[e, g] - two[f, g] + three[e, f, g]
                    at += 1
        changed = _advance(prefix, experts - tail)
        if changed < 0:
            return


@njit(cache=True)
def _advance(prefix: IntArray, experts: int) -> int:
    """Step to the next set in lexicographic order; return what changed first, or -1 at the end."""
    size = prefix.size
    d = size - 1
    while d >= 0 and prefix[d] == experts - size + d:
        d -= 1
    if d >= 0:
        prefix[d] += 1
        for i in range(d + 1, size):
            prefix[i] = prefix[i - 1] + 1
    return d


@njit(cache=True)
def _price(
    touched: Int32Array, prices: IntArray, size: int, costs: IntArray, members: IntArray
) -> None:
    """Find for every expert the cheapest set with it, the first of equals."""
    experts = prices.size
    prefix = np.arange(size - 1)
    at = 0
    worst = costs.max()
    while True:
        paid = prices[prefix].sum()
        for e in range(prefix[-1] + 1 if size > 1 else 0, experts):
            cost = _SCALE * touched[at] - paid - prices[e]
            at += 1
            if cost < worst:
                for i in range(size):
                    member = prefix[i] if i < size - 1 else e
                    if cost < costs[member]:
                        costs[member] = cost
                        members[member, :-1] = prefix
                        members[member, -1] = e
                worst = costs.max()
        if _advance(prefix, experts - 1) < 0:
            return


@njit(cache=True)
def _collect(
    touched: Int32Array, prices: IntArray, size: int, limit: int, members: IntArray
) -> int:
    """List the sets that cost no more than a limit; return their number, or one too many."""
    experts = prices.size
    prefix = np.arange(size - 1)
    at = count = 0
    while True:
        paid = prices[prefix].sum()
        for e in range(prefix[-1] + 1 if size > 1 else 0, experts):
            if _SCALE * touched[at] - paid - prices[e] <= limit:
                if count == len(members):
                    return count + 1
                members[count, :-1] = prefix
                members[count, -1] = e
                count += 1
            at += 1
        if _advance(prefix, experts - 1) < 0:
            return count
