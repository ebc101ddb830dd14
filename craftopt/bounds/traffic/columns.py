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

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from craftopt.bounds.traffic.tokens import TokenSets, count_visits
from craftopt.errors import InputError
from craftopt.loads import BoolArray, FloatArray, IntArray
from craftopt.verification.witnesses.columns import (
    MOST_COLUMNS,
    MOST_SETS,
    count_touched,
    sets_at,
)

# Prices are whole multiples of that part of a token.
_SCALE = 1000
# Weight of the new duals in the prices, which are smoothed, and most rounds of pricing.
_NEW, _ROUNDS = 0.6, 200
# A round adds every expert's best set, of those that are cheap: cheaper than the 64th cheapest of
# a sample.
_SAMPLE, _CHEAP = 1 << 16, 64


@dataclass(frozen=True, eq=False)
class ColumnBound:
    """What the column bound proves of a layer, and the best placement that it met.

    Parameters
    ----------
    visits : int
        In no placement do the tokens visit fewer nodes, all together.
    least : int
        What a set costs at least at the prices.
    prices : int64 [experts]
    scale : int
        Costs and prices are in units of 1/scale tokens.
    node_of : int64 [experts]
        The node of every expert in the best placement found.
    found : int
        The nodes that the tokens visit there.
    """

    visits: int
    least: int
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
        """The proof, as `craftopt.verification` reads it."""
        return {
            "kind": "columns",
            "scale": self.scale,
            "prices": self.prices.tolist(),
            "least": self.least,
            "visits": self.visits,
        }


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
    prices, least = program.price(node_of)
    proven = int(prices.sum()) + nodes * least
    best, value = program.partition(program.pool)
    if value < found:
        node_of, found = best, value
    visits = -(-proven // _SCALE)
    while visits < found:
        slack = (found - 1) * _SCALE - proven
        pool, excess = program.near(prices, least, slack)
        best, value = program.partition(pool)
        # A partition with a set that is not in the pool costs more than proven + excess.
        visits = min(value, found, (proven + excess) // _SCALE + 1)
        if value < found:
            node_of, found = best, value
        elif excess < slack:
            break
    return ColumnBound(visits, least, prices, _SCALE, node_of, found)


class _Program:
    """The sets that a node may hold, how many tokens touch them, and the programs over them."""

    def __init__(self, sets: TokenSets, nodes: int, sizes: tuple[int, int]) -> None:
        self.experts, self.nodes, self.most = sets.experts, nodes, sizes[1]
        self.sizes = range(sizes[0], sizes[1] + 1)
        count = sum(comb(sets.experts, size) for size in self.sizes)
        if count > MOST_SETS or sizes[0] < 1:
            raise InputError(
                f"a node can hold {count} sets of {sizes[0]}..{sizes[1]} of {sets.experts} "
                f"experts; the column bound takes up to {MOST_SETS} sets, none of them empty; "
                "use companion_bound"
            )
        self._counts = sets.counts
        self._has = sets.has()
        tokens = dict(zip(sets.as_tuples(), sets.counts.tolist(), strict=True))
        touched = count_touched(tokens, self.experts, self.most)
        self._touched = {size: touched[size] for size in self.sizes}
        self.pool: BoolArray = np.empty((0, sets.experts), dtype=np.bool_)

    def price(self, node_of: IntArray) -> tuple[IntArray, int]:
        """Generate columns; return the best prices, and what a set costs at least at these."""
        self.pool = node_of == np.arange(self.nodes)[:, np.newaxis]
        best, least, proven = np.zeros(self.experts, dtype=np.int64), 0, 0
        smooth: FloatArray | None = None
        for _ in range(_ROUNDS):
            value, duals = self._relax()
            own = smooth is None
            smooth = duals if smooth is None else _NEW * duals + (1 - _NEW) * smooth
            prices = np.rint(smooth * _SCALE).astype(np.int64)
            cost, cheapest = self._cheapest(prices)
            if (bound := int(prices.sum()) + self.nodes * cost) > proven:
                best, least, proven = prices, cost, bound
            pool = np.unique(np.concatenate((self.pool, cheapest)), axis=0)
            if -(-proven // _SCALE) >= value - 1e-6:
                break
            if len(pool) == len(self.pool):
                if own:
                    break
                smooth = None  # smoothed prices find nothing more: go on from the duals
            self.pool = pool
        return best, least

    def _cost(self, pool: BoolArray) -> IntArray:
        """Count the tokens that touch each set of a pool."""
        cost: IntArray = self._counts @ (self._has @ pool.T)
        return cost

    def _rows(self, pool: BoolArray) -> tuple[FloatArray, FloatArray]:
        """State that the sets chosen have every expert once, and are as many as the nodes."""
        rows = np.vstack((pool.T, np.ones(len(pool), dtype=np.bool_)))
        return rows.astype(np.float64), np.append(np.ones(self.experts), self.nodes)

    def _relax(self) -> tuple[float, FloatArray]:
        """Solve the linear program over the pool; return its value and the experts' duals."""
        rows, sides = self._rows(self.pool)
        solution = linprog(self._cost(self.pool), A_eq=rows, b_eq=sides, method="highs")
        return float(solution.fun), solution.eqlin.marginals[:-1]

    def partition(self, pool: BoolArray) -> tuple[IntArray, int]:
        """Find the best partition into sets of a pool: every expert's node, and the visits."""
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
            return np.empty(0, dtype=np.int64), 1 << 62
        chosen = solution.x > 0.5
        return pool[chosen].argmax(axis=0), int(cost[chosen].sum())

    def _costs(self, prices: IntArray) -> Iterator[tuple[int, IntArray]]:
        """Yield, by size, what every set costs at some prices."""
        paid = count_touched(
            {(e,): price for e, price in enumerate(prices.tolist())}, self.experts, self.most
        )
        for size, touched in self._touched.items():
            yield size, _SCALE * touched - paid[size]

    def _cheapest(self, prices: IntArray) -> tuple[int, BoolArray]:
        """Return the least cost, and for every expert a set that is among the cheapest."""
        least, pool = 1 << 62, []
        for size, costs in self._costs(prices):
            least = min(least, int(costs.min()))
            sample = costs[:: -(-costs.size // _SAMPLE)]
            some = min(sample.size - 1, _CHEAP)
            places = np.flatnonzero(costs <= max(least, np.partition(sample, some)[some]))
            flags = self._flags(places[np.argsort(costs[places], kind="stable")], size)
            pool.append(flags[np.unique(flags.argmax(axis=0))])
        return least, np.concatenate(pool)

    def near(self, prices: IntArray, least: int, slack: int) -> tuple[BoolArray, int]:
        """List the sets within some excess of the least cost: the slack, or less if too many."""
        costs = list(self._costs(prices))
        excess = slack
        while sum(np.count_nonzero(of <= least + excess) for _, of in costs) > MOST_COLUMNS:
            excess //= 2
        pool = [self._flags(np.flatnonzero(of <= least + excess), size) for size, of in costs]
        return np.concatenate(pool), excess

    def _flags(self, places: IntArray, size: int) -> BoolArray:
        flags = np.zeros((len(places), self.experts), dtype=np.bool_)
        np.put_along_axis(flags, sets_at(places, size), True, axis=1)
        return flags
