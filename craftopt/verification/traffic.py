"""What plans make tokens visit, and what witnesses prove of visits, in whole numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np

from craftopt.loads import IntArray
from craftopt.plan import Plan
from craftopt.problem import Problem
from craftopt.verification.checks import FITS, Witness, require
from craftopt.verification.costs import ExactProblem
from craftopt.verification.witnesses import VisitsCase, check_columns, check_companions

# What a witness proves of the visits of a layer, by replicas and most copies on a node.
Proof = Callable[[int, int], Fraction]


def visits_proof(case: VisitsCase, witness: Witness) -> Proof:
    """Check a witness of node visits; return what it proves, at least what capacity does.

    Raises
    ------
    VerificationError
        The witness proves nothing.

    Examples
    --------
    >>> from craftopt.verification.traffic import visits_proof
    >>> from craftopt.verification.witnesses import VisitsCase
    >>> case = VisitsCase(4, nodes=2, sizes=(2, 2), replicas=0, tokens=[(0, 1, 2), (2, 3)],
    ...                   counts=[5, 1])
    >>> visits_proof(case, {"kind": "capacity"})(0, 2)
    Fraction(11, 1)
    """
    kind = witness["kind"]
    if kind == "companions":
        return check_companions(case, witness)
    own, visits = None, 0
    if kind == "columns":
        own, visits = (0, case.sizes[1]), check_columns(case, witness)
    else:
        require(kind == "capacity", f"a witness of kind {kind!r} proves nothing of visits")
    return lambda replicas, most: Fraction(
        visits if (replicas, most) == own else case.capacity(most)
    )


def proven_visits(case: VisitsCase, witness: Witness) -> Fraction:
    """Bound the visits of all tokens in a case by what a witness proves."""
    return visits_proof(case, witness)(case.replicas, case.sizes[1])


def node_sizes(copies: int, gpus: int, nodes: int) -> tuple[int, int]:
    """Return the fewest and the most copies on a node under even slots.

    Examples
    --------
    >>> from craftopt.verification.traffic import node_sizes
    >>> node_sizes(64, gpus=16, nodes=4), node_sizes(60, gpus=16, nodes=4)
    ((16, 16), (12, 16))
    """
    slots, fuller = divmod(copies, gpus)
    of_node = gpus // nodes
    return slots * of_node + max(0, fuller - gpus + of_node), slots * of_node + min(fuller, of_node)


class ExactTraffic:
    """The tokens of a problem in whole numbers: where plans send them, and what is proven of that.

    A token *visits* a node that serves at least one of its experts, under even dispatch with the
    probability that one of the copies drawn for it is there.

    Parameters
    ----------
    problem : Problem
        On at least two nodes.
    ids : array_like of int [tokens, layers, k]
        Experts of every token; -1 = none.
    windows : array_like of int [tokens]
        Window of every token, from 0 on.

    Raises
    ------
    VerificationError
        What are no tokens of the problem's layers.
    """

    def __init__(self, problem: Problem, ids: Any, windows: Any) -> None:
        self.problem = problem
        self.ids: IntArray = np.array(ids)
        self.windows: IntArray = np.array(windows)
        loads = problem.loads
        require(problem.nodes > 1, "tokens visit one node where there is no other")
        require(
            self.ids.dtype.kind == self.windows.dtype.kind == "i"
            and self.ids.ndim == 3
            and self.ids.shape[1] == loads.layers
            and self.ids.size > 0
            and self.windows.shape == self.ids.shape[:1],
            "the tokens are no choices of the problem's layers",
        )
        self.ids = np.sort(self.ids, axis=2)
        twice = (self.ids[:, :, 1:] == self.ids[:, :, :-1]) & (self.ids[:, :, 1:] >= 0)
        require(
            self.ids.min() >= -1 and self.ids.max() < loads.experts and not twice.any(),
            "a token chooses experts that there are not, or one twice",
        )
        require(
            self.windows.min() >= 0 and self.windows.max() < self.windows.size + loads.windows,
            "windows of tokens are not numbered from 0",
        )
        self._tokens: list[int] = (self.ids[:, :, -1] >= 0).sum(axis=0).tolist()
        require(min(self._tokens) > 0, "the tokens choose no expert in a layer; leave it out")

    @property
    def tokens(self) -> int:
        """Tokens with an expert, summed over the layers."""
        return sum(self._tokens)

    def per_token(self, layer: int, visits: Fraction) -> Fraction:
        """Divide a layer's visits by its tokens."""
        return visits / self._tokens[layer]

    def case(self, layer: int, replicas: int) -> VisitsCase:
        """State what is to be bounded of a layer: its distinct tokens, in lexicographic order."""
        problem = self.problem
        rows, counts = np.unique(self.ids[:, layer], axis=0, return_counts=True)
        some = rows[:, -1] >= 0
        return VisitsCase(
            experts=problem.loads.experts,
            nodes=problem.nodes,
            sizes=self._sizes(replicas),
            replicas=replicas,
            tokens=[tuple(e for e in row if e >= 0) for row in rows[some].tolist()],
            counts=counts[some].tolist(),
        )

    def plan_visits(self, layer: int, plan: Plan) -> tuple[Fraction, Fraction]:
        """Sum the visits of a layer's tokens, and what they were if all nodes were the busiest."""
        of_node = plan.copies[layer].reshape(plan.experts, self.problem.nodes, -1)
        hosted = of_node.sum(axis=2, dtype=np.int64)
        counts = hosted.sum(axis=1)
        common = math.lcm(*set(counts.tolist()))
        # Of the ways to draw a copy, those on other nodes, and for -1 all, in units of 1/common.
        elsewhere = (counts[:, np.newaxis] - hosted) * (common // counts)[:, np.newaxis]
        elsewhere = np.vstack((elsewhere, np.full(self.problem.nodes, common)))
        k = self.ids.shape[2]
        if common**k * len(self.ids) > FITS:
            elsewhere = elsewhere.astype(object)
        missed = reduce(np.multiply, (elsewhere[self.ids[:, layer, at]] for at in range(k)))
        visits = np.zeros((int(self.windows.max()) + 1, self.problem.nodes), dtype=missed.dtype)
        np.add.at(visits, self.windows, common**k - missed)
        busiest = self.problem.nodes * sum(visits.max(axis=1).tolist())
        return Fraction(sum(visits.ravel().tolist()), common**k), Fraction(busiest, common**k)

    def least_per_token(self, exact: ExactProblem, proofs: Sequence[Sequence[Proof]]) -> Fraction:
        """Bound the nodes per token of every plan, by the proofs of each layer.

        For all numbers of replicas that layers can have, over all ways to spend the budget.
        """
        sizes = {r: self._sizes(r)[1] for r in self.problem.replica_choices.tolist()}
        curves = [
            {r: max(proof(r, most) for proof in of_layer) for r, most in sizes.items()}
            for of_layer in proofs
        ]
        return exact.least_sum(curves, self.tokens * self.problem.nodes) / self.tokens

    def has_loads(self) -> bool:
        """Whether the problem's loads are the tokens' choices, window by window."""
        loads = self.problem.loads
        if self.windows.max() >= loads.windows:
            return False
        counted = np.zeros((loads.windows, loads.layers, loads.experts + 1))
        layers = np.arange(loads.layers)[:, np.newaxis]
        np.add.at(counted, (self.windows[:, np.newaxis, np.newaxis], layers, self.ids), 1)
        return np.array_equal(counted[:, :, :-1], loads.tokens)

    def _sizes(self, replicas: int) -> tuple[int, int]:
        """Return the fewest and the most copies on a node, by the slot rule."""
        copies = self.problem.loads.experts + replicas
        if not self.problem.even_slots:
            return 0, copies
        return node_sizes(copies, self.problem.gpus, self.problem.nodes)
