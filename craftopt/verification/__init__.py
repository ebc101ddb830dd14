"""Verify certificates in exact arithmetic, trusting nothing but the rules of the problem.

A certificate says of a plan: it keeps every rule, its objective is ``value``, and no plan under
the rules has an objective better than ``bound``. `verify` checks each of these claims with whole
numbers and fractions. Rules, costs and bounds are computed here a second time on purpose: nothing
is shared with the bounds, models and searches that are checked.

**What a witness proves.** A witness belongs to a layer l and to a number of replicas r, so to
placements of exactly ``n = experts + r`` copies, and to a *box*: lower and upper limits on the
copies ``c_e`` of every expert, at first 1 and `Problem.copies_limit`. It is a dict with a
``kind``; its numbers are ints, or fractions written ``"p/q"``. That the checks below suffice is
proven in ``formulations/README.md``.

*Window witnesses* prove of one window that no placement in the box has all GPU loads **below**
a number T, so that the largest GPU load is at least T:

``{"kind": "mean"}``
    T is the mean GPU load; under expert groups that of the node that carries most, at least: with
    k groups on each of N nodes, the largest for j = 0..k-1 of the j + 1 lightest of the j N + 1
    heaviest groups and the k - j - 1 lightest of all, over the GPUs of a node.
``{"kind": "copies"}``
    T is the least possible heaviest copy, ``min max_e t_e/c_e`` over all c in the box with
    ``sum c <= n``; under expert groups, k on each of N nodes, the largest of this and of what it
    is for the experts of each group alone, with at most ``n/N - (k-1) x experts of a group``.
``{"kind": "cardinality", "load": T, "price": "p/q"}``
    Even slots only (rules even and uniform, and free with one layer). With ``q = n // G`` the
    least number of copies on a GPU, the price is 0 or more and at most T/q, and
    ``sum_e max(0, t_e - c_e (T - (q-1) price)) > sum_e max(0, price c_e - t_e)``
    for all c in the box with ``c_e > t_e/T`` and ``sum c = n``.
    ``"group": g``, where each of N nodes hosts one expert group, says that this is about the
    node of group g: its experts, G/N GPUs and n/N copies. So may configurations.
``{"kind": "configuration", "load": T, ...}``
    With ``"experts": [int sigma_e]``, ``"slot": int beta``, ``"extra": int gamma``, ``"scale":
    int D`` and ``"grid": int``. A configuration P is a set of experts, each with a number of
    copies ``c`` that the box (with ``c_e > t_e/T`` and ``sum c = n``) allows, with ``sum t_e/c <
    T`` and, under even slots, with q members, or q + 1 where G does not divide n. Every
    configuration must have ``sum sigma_e/c - beta |P| - gamma [|P| = q+1] <= D``, and ``sum
    sigma_e - beta n - gamma (n mod G) > G D`` must hold; without even slots, gamma counts as 0.
    The check rounds ``t_e/c`` down to multiples of T/grid (sums must be ``grid - 1`` or less)
    and ``sigma_e/c`` up to whole numbers: so scale sigma, beta, gamma and D up, to about 1e9.

*Layer witnesses* prove a lower bound on the layer's cost: the sum over windows of the largest
GPU load (objective time), or minus the sum over windows of balancedness. With one window, every
window witness is a layer witness too. With several:

``{"kind": "windows", "windows": [window witness, ...]}``
    One for every window; costs add up.
``{"kind": "credits", "price": int, "scale": "p/q", "windows": {"w": [[e, step, int], ...]}}``
    One choice of copies serves all windows ("common copies"). A credit is for window w (its
    position, as a text) and for a step, the step-th copy of e, which window w needs if its
    largest load is to be below the step's *level* ``t_we/(step - 1)``. With ``floor_w = max(m_w,
    max_e t_we/upper_e)`` and the cost of a load (the load itself for time, ``-m_w/load`` for
    balancedness), the credits of a window for levels of L or less must sum to at most cost(L) -
    cost(floor_w), for every L. Price and credits are in units of 1/scale.

    ``"companions": {"w": "p/q"}``, where slots are even, states a price v_w of 0 or more, in
    tokens, for each of the q - 1 others, at least, beside a copy ("companions at a price"). With
    D_w the sum over f of ``max(0, v_w - t_wf)``, a level is then the larger of the above and
    ``(q - 1) v_w + (t_we - D_w)/k``, at k = 1 or k = step - 1, whichever is less; and k copies of
    e owe a *rebate* of ``max(0, v_w - max(t_we, v_w)/k)``, for balancedness times
    ``m_w/floor_w^2``.

    Then the layer costs at least ``sum_w cost(floor_w) + sum of credits - sum_e spare_e -
    price r``, for **every** number of replicas r (with companions, every one that leaves as many
    on every GPU), where spare_e is the largest of 0 and, for every k up to upper_e, the credits of
    e for steps up to k and its rebates for k copies, in all windows, less ``price (k - 1)``.

Both may branch, to any depth:

``{"kind": "branch", "expert": e, "copies": k, "below": witness, "above": witness}``
    ``below`` proves it for ``c_e <= k``, ``above`` for ``c_e >= k + 1``; the worse counts.
``{"kind": "empty"}``
    No counts in the box sum to n, so that there is nothing to prove.

``{"kind": "solver", "cost": "p/q", "solver": name, "version": text}`` is no witness but a
solver's word that the layer's cost is at least that; it counts for `Certificate.solver_gap` alone.
It is refused if the plan itself shows that it is false.

*Visit witnesses* prove a lower bound on the nodes that a layer's tokens visit under even dispatch,
summed over the tokens, for nodes that hold at most s copies (by the slot rule); their numbers are
whole, in units of 1/``scale`` visits:

``{"kind": "capacity"}``
    A token with k experts visits at least k / s nodes, rounded up.
``{"kind": "columns", "scale", "prices": [E], "least", "visits"}``
    Without replicas. ``scale touched(A) - prices(A) >= least`` for every set A that a node may
    hold, where ``touched(A)`` tokens have an expert in A; and no partition into sets, one a node,
    has fewer visits than stated.
``{"kind": "companions", "scale", "grain", "prices", "experts", "rows", "total", "cells", "shift"}``
    ``prices`` has a list of pairs for every token, ``experts`` and ``rows`` are of length n, and
    ``cells`` is a triangle of n - 1, ..., 1 numbers.
    Prices, in units of ``grain``, are for pairs of a token's experts that one node serves; tokens
    are the distinct sets of experts, sorted. A token visits at least the least of all partitions
    of its experts into blocks that a node can hold, blocks and prices counted, minus its prices.
    What the prices of all tokens sum to is bounded by dual values of a semidefinite program over
    all pairs. With replicas the same dual values prove a bound for every number of them.
"""

from craftopt.verification.checks import Witness
from craftopt.verification.claims import verify
from craftopt.verification.costs import ExactProblem
from craftopt.verification.document import (
    Certificate,
    LayerCertificate,
    TrafficCertificate,
    plan_digest,
)
from craftopt.verification.traffic import ExactTraffic, visits_proof

__all__ = [
    "Certificate",
    "ExactProblem",
    "ExactTraffic",
    "LayerCertificate",
    "TrafficCertificate",
    "Witness",
    "plan_digest",
    "verify",
    "visits_proof",
]
