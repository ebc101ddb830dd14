"""The claim that no plan is better than a value, as pseudo-Boolean constraints that cannot hold.

Sets and symbols as in ``formulations/README.md``; windows w, layers i, experts e, GPUs g. L is the
least common multiple of the copies that an expert may have: tokens times L are shared without a
rest. Flags: y[i,e,c] = 1 if e has c copies, z[i,e,c,g] = 1 if it does and g hosts one;
u[i,q] = 1 if q is the fewest slots of a GPU in layer i, f[i,g] = 1 if g has one more; a[i,k,v] = 1
if node v hosts group k; the bits of T[w,i], the largest load times L above its mean, rounded up.
With s[i,g] = sum_{e,c} z[i,e,c,g]:

    one_count   sum_c y[i,e,c] = 1                              for all i, e
    hosted      sum_g z[i,e,c,g] = c y[i,e,c]                   for all i, e, c
    linked      z[i,e,c,g] <= y[i,e,c]                          for all i, e, c > 1, g
    budget      sum_{i,e,c} c y[i,e,c] <= |L| |E| + replicas
    fewest      sum_q u[i,q] = 1                                one for all i if slots are uniform
    slots       s[i,g] = sum_q q u[i,q] + f[i,g]                no f if slots are uniform;
                                                                sum_i s[i,g] if free
    home        sum_v a[i,k,v] = 1                              for all i, k
    groups      sum_k a[i,k,v] = |K| / |V|                      for all i, v
    node_slots  sum_{g in v} s[i,g] = sum_{g in 0} s[i,g]       for all i, v > 0
    within      sum_c z[i,e,c,g] <= a[i,k(e),v(g)]              for all i, e, g
    order       f[i,g-1] <= f[i,g], and among equals            for all g of one node
                sum_c z[i,h,c,g] <= sum_c z[i,h,c,g-1]
    load        sum_{e,c} (L t[w,i,e] / c) z[i,e,c,g] <= T[w,i] for all w, i, g
    heaviest    sum_c (L t[w,i,e] / c) y[i,e,c] <= T[w,i]       for all w, i, e
    better      sum_{w,i} T[w,i] <= R

R is the largest whole number of L-th tokens below the value that is claimed to be the least.

**Every better plan satisfies them**, so if they cannot hold there is none. Take a better plan and
set the flags as it has them. The rules of the problem are one_count to within, less those that
are left out: moves, and equal totals where slots are even, which only makes more plans possible.
Largest loads times L are whole numbers, so their sum is at most R, and each is at least its mean,
rounded up, and at least R minus the others' means: its bits suffice. *heaviest* follows, since
every expert has a host. *order* is of interchangeable GPUs: those of a node, or all without
groups. Where slots are even or uniform the layers do not depend on each other's labels: sort each
layer's GPUs by slots, those with its heaviest expert h first among equals. Where they are free,
sort the GPUs of all layers alike, by totals and then by the first layer's h.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from craftopt.errors import InputError
from craftopt.plan import Copies
from craftopt.problem import Problem
from craftopt.verification.costs import ExactProblem
from craftopt.verification.pseudo_boolean import Formula

# Coefficients and flags, for a sum.
Terms = list[tuple[int, int]]


@dataclass
class BetterPlan:
    """State that a plan has relative time below a value; see above.

    Parameters
    ----------
    problem : Problem
        Objective time, even dispatch, no traffic and no limit on moves.
    value : Fraction

    Raises
    ------
    InputError
        Another kind of problem.

    Examples
    --------
    >>> from fractions import Fraction
    >>> import craftopt as co
    >>> from craftopt.verification.refutation import BetterPlan
    >>> problem = co.Problem(co.Loads([[6, 3, 2, 1]]), gpus=2, replicas=1)
    >>> formula = BetterPlan(problem, Fraction(1)).formula
    >>> len(formula.names), len(formula.constraints)
    (27, 48)
    """

    problem: Problem
    value: Fraction
    formula: Formula = field(init=False)

    def __post_init__(self) -> None:
        problem = self.problem
        if problem.objective != "time" or problem.max_moves is not None:
            raise InputError(
                "logs prove bounds on objective time without a limit on moves; "
                "pass such a problem, or use certify"
            )
        problem.require_even_balance("a log")
        exact = ExactProblem(problem)
        self.formula = Formula()
        loads = problem.loads
        self._E, self._G = range(loads.experts), range(problem.gpus)
        self._C = range(1, min(problem.copies_limit, 1 + problem.layer_replicas_limit) + 1)
        self._steps = math.lcm(*self._C)
        self._y: list[dict[tuple[int, int], int]] = []
        self._z: list[dict[tuple[int, int, int], int]] = []
        self._above: Terms = []
        for i in range(loads.layers):
            self._host(i)
            if problem.expert_groups is not None:
                self._keep_groups(i)
        most = loads.layers * loads.experts + problem.replicas
        self.formula.at_most([(c, y) for of in self._y for (_, c), y in of.items()], most)
        self._limit_slots()
        self._carry(exact)

    def copies(self, flags: list[bool]) -> Copies:
        """Read a plan's copies off the values of all flags."""
        loads = self.problem.loads
        copies = np.zeros((loads.layers, loads.experts, self.problem.gpus), dtype=np.uint8)
        for i, z in enumerate(self._z):
            for (e, _, g), flag in z.items():
                copies[i, e, g] |= flags[flag - 1]
        return copies

    def to_mps(self, name: str) -> str:
        """Write the constraints but *better* as a program that minimises the largest loads.

        Its objective is the sum of T above the rounded means, in L-th tokens.
        """
        program = Formula(self.formula.names, self.formula.constraints[:-1])
        return program.to_mps(name, self._above)

    def _host(self, i: int) -> None:
        add = self.formula
        y = {(e, c): add.flag(f"y_{i}_{e}_{c}") for e in self._E for c in self._C}
        z = {(e, c, g): add.flag(f"z_{i}_{e}_{c}_{g}") for e, c in y for g in self._G}
        for e in self._E:
            add.equal([(1, y[e, c]) for c in self._C], 1)
        for (e, c), flag in y.items():
            add.equal([*((1, z[e, c, g]) for g in self._G), (-c, flag)], 0)
            if c > 1:
                for g in self._G:
                    add.at_most([(1, z[e, c, g]), (-1, flag)], 0)
        self._y.append(y)
        self._z.append(z)

    def _on(self, i: int, e: int, g: int, sign: int = 1) -> Terms:
        return [(sign, self._z[i][e, c, g]) for c in self._C]

    def _filled(self, i: int, g: int, sign: int = 1) -> Terms:
        return [(sign, self._z[i][e, c, g]) for e, c in self._y[i]]

    def _keep_groups(self, i: int) -> None:
        problem, add = self.problem, self.formula
        width, group_of = problem.gpus_per_node, problem.group_of.tolist()
        nodes, groups = range(problem.nodes), range(problem.groups)
        a = {(k, v): add.flag(f"a_{i}_{k}_{v}") for k in groups for v in nodes}
        for k in groups:
            add.equal([(1, a[k, v]) for v in nodes], 1)
        for v in nodes:
            add.equal([(1, a[k, v]) for k in groups], len(groups) // len(nodes))
            if v:
                here = [term for g in range(width) for term in self._filled(i, v * width + g)]
                first = [term for g in range(width) for term in self._filled(i, g, -1)]
                add.equal([*here, *first], 0)
        for e in self._E:
            for g in self._G:
                add.at_most([*self._on(i, e, g), (-1, a[group_of[e], g // width])], 0)

    def _limit_slots(self) -> None:
        problem, layers = self.problem, range(self.problem.loads.layers)
        limit = problem.layer_replicas_limit
        if problem.slots == "uniform":
            slots = (problem.uniform_choices + len(self._E)) // problem.gpus
            fewest = self._fewest("", slots.tolist())
            for i in layers:
                self._level([i], fewest, {})
        elif problem.even_slots:
            for i in layers:
                level = self._slots(len(self._E), limit)
                self._level([i], self._fewest(f"_{i}", level), self._more(f"_{i}"))
        else:
            level = self._slots(len(layers) * len(self._E), problem.replicas)
            self._level(list(layers), self._fewest("", level), self._more(""))

    def _slots(self, experts: int, replicas: int) -> range:
        return range(experts // self.problem.gpus, (experts + replicas) // self.problem.gpus + 1)

    def _fewest(self, name: str, slots: Iterable[int]) -> Terms:
        u = [(q, self.formula.flag(f"u{name}_{q}")) for q in slots]
        self.formula.equal([(1, flag) for _, flag in u], 1)
        return u

    def _more(self, name: str) -> dict[int, int]:
        return {g: self.formula.flag(f"f{name}_{g}") for g in self._G}

    def _level(self, layers: list[int], fewest: Terms, more: dict[int, int]) -> None:
        """Fill the slots of some layers together, and order the GPUs."""
        add, first = self.formula, layers[0]
        h = int(self.problem.loads.tokens[:, first].sum(axis=0).argmax())
        width = self.problem.gpus // self.problem.group_nodes
        for g in self._G:
            filled = [term for i in layers for term in self._filled(i, g)]
            lacking = [(-q, flag) for q, flag in fewest]
            extra = [(-1, more[g])] if more else []
            add.equal([*filled, *lacking, *extra], 0)
            if g % width:
                heavier = [*self._on(first, h, g), *self._on(first, h, g - 1, -1)]
                if more:
                    add.at_most([(1, more[g - 1]), *extra], 0)
                    heavier += [(1, more[g - 1]), *extra]
                add.at_most(heavier, 0)

    def _carry(self, exact: ExactProblem) -> None:
        """Limit the loads: every cell's bits above its mean, and their sum."""
        add, gpus = self.formula, self.problem.gpus
        cells = exact.cells(self._steps)
        tokens = sum(sum(shares) for _, shares in cells)
        below = math.ceil(self.value * Fraction(tokens, gpus)) - 1
        means = [-(-sum(shares) // gpus) for _, shares in cells]
        room = below - sum(means)
        for k, ((i, shares), mean) in enumerate(zip(cells, means, strict=True)):
            bits = [
                (1 << bit, add.flag(f"T_{k}_{bit}")) for bit in range(max(room, 0).bit_length())
            ]
            self._above += bits
            more = [(-size, flag) for size, flag in bits]
            share = {(e, c): shares[e] // c for e, c in self._y[i]}
            for g in self._G:
                load = [(of, self._z[i][e, c, g]) for (e, c), of in share.items()]
                add.at_most([*load, *more], mean)
            for e in self._E:
                add.at_most([*((share[e, c], self._y[i][e, c]) for c in self._C), *more], mean)
        add.at_most(self._above, room)
