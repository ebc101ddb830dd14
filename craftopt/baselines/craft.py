"""CRAFT, cost-aware replication per layer, by its paper.

Replay the recorded windows with 0, 1, 2, 4, ..., G replicas in every layer, then choose one count
per layer by a multiple-choice knapsack that maximises the summed balancedness within the budget,
and place under slots that give every GPU the same memory.

References
----------
CRAFT: https://arxiv.org/abs/2603.28768
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from craftopt.errors import divide_gpus, whole
from craftopt.jit import njit
from craftopt.knapsack import allocate
from craftopt.loads import FloatArray, IntArray, Loads
from craftopt.plan import Copies
from craftopt.problem import Problem
from craftopt.result import Outcome
from craftopt.rules import violations


def plan_craft(problem: Problem) -> Outcome:
    """Plan by the paper: replay, knapsack, equal memory on all GPUs.

    The knapsack maximises the mean balancedness of the problem's windows, whatever the
    problem's objective is. With a budget of R·G every GPU ends with R extra slots; other
    budgets leave the GPUs equal up to 1.
    """
    if problem.slots == "uniform" and problem.layer_replicas_limit > 0:
        return Outcome(
            message="CRAFT gives layers different numbers of replicas, which slots='uniform' "
            "rules out; pass slots='even' or 'free'"
        )
    loads, gpus = problem.loads, problem.gpus
    replicas = np.zeros(loads.layers, dtype=np.int64)
    if problem.layer_replicas_limit > 0:
        benefits = replay_benefits(loads, gpus, problem.nodes, problem.copies_limit)
        replicas = choose_replicas(benefits, gpus, problem.replicas)
    slots = capacity_aware_slots(loads.experts + replicas, gpus, problem.nodes)
    total = loads.tokens.sum(axis=0)
    copies = np.empty((loads.layers, loads.experts, gpus), dtype=np.uint8)
    for layer in range(loads.layers):
        count = replicate(total[layer], replicas[layer], problem.copies_limit, -1.0)
        copies[layer] = _place_apart(total[layer] / count, count, slots[layer])
    used = int(replicas.sum())
    note = "" if used == problem.replicas else f"CRAFT uses {used} of {problem.replicas} replicas"
    return outcome_of(problem, copies, "craft", note)


def replica_choices(gpus: int) -> IntArray:
    """List the replicas that the paper tries in a layer: 0, the powers of two up to G, and G.

    Examples
    --------
    >>> from craftopt.baselines.craft import replica_choices
    >>> replica_choices(12)
    array([ 0,  1,  2,  4,  8, 12])
    """
    powers = 2 ** np.arange(gpus.bit_length(), dtype=np.int64)
    return np.unique(np.concatenate([[0], powers, [gpus]]))


def replay_benefits(
    loads: Loads, gpus: int, nodes: int = 1, copies_limit: int | None = None
) -> FloatArray:
    """Measure what replicas gain in balancedness, layer by layer, on the recorded windows.

    Each layer is planned alone for the sum of the windows (greedy copies, then the hottest copy
    to the least loaded GPU with room), and replayed window by window.

    Parameters
    ----------
    loads : Loads
    gpus, nodes : int
    copies_limit : int, optional
        Most copies of one expert; G by default.

    Returns
    -------
    float64 [layers, choices]
        Balancedness (mean over windows) with `replica_choices` replicas, minus that with none;
        ``-inf`` where the limit of copies rules a choice out.

    Raises
    ------
    InputError
        GPUs that the nodes do not divide.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.baselines.craft import replay_benefits
    >>> replay_benefits(co.Loads([[6, 1, 1]]), gpus=2).round(3)
    array([[0.   , 0.429, 0.317]])
    """
    divide_gpus(whole("gpus", gpus, 1), whole("nodes", nodes, 1))
    limit = gpus if copies_limit is None else copies_limit
    choices = replica_choices(gpus)
    total = loads.tokens.sum(axis=0)
    scores = np.full((loads.layers, choices.size), -np.inf)
    for k, replicas in enumerate(choices):
        if replicas > loads.experts * (limit - 1):
            continue
        room = capacity_aware_slots(np.array([loads.experts + replicas]), gpus, nodes)[0]
        for layer in range(loads.layers):
            count = replicate(total[layer], replicas, limit, -1.0)
            copies = _place_apart(total[layer] / count, count, room)
            scores[layer, k] = _balancedness(loads.tokens[:, layer] / count, copies).mean()
    benefits: FloatArray = scores - scores[:, :1]
    return benefits


def choose_replicas(benefits: FloatArray, gpus: int, budget: int) -> IntArray:
    """Choose the replicas of every layer that maximise the summed benefit within a budget.

    Parameters
    ----------
    benefits : float64 [layers, choices]
        Benefit of `replica_choices` replicas in every layer.
    gpus : int
    budget : int
        Most replicas over all layers.

    Returns
    -------
    int64 [layers]

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt.baselines.craft import choose_replicas
    >>> choose_replicas(np.array([[0, 0.1, 0.4], [0, 0.2, 0.3]]), gpus=2, budget=3)
    array([2, 1])
    """
    costs = np.full((benefits.shape[0], gpus + 1), np.inf)
    costs[:, replica_choices(gpus)] = -benefits
    return allocate(costs, budget)[0]


def choose_budget(loads: Loads, gpus: int, nodes: int = 1) -> int:
    """Choose a budget where none is given: that with the highest gain per replica.

    Every R up to EPLB's (one slot per GPU and layer, R = layers) is tried with the knapsack.
    Gains fall off as R grows, so by this rule of the paper R is mostly 1.

    Parameters
    ----------
    loads : Loads
    gpus, nodes : int

    Returns
    -------
    int
        R·G replicas over all layers, the least among equals; 0 where no replica gains.

    Raises
    ------
    InputError
        GPUs that the nodes do not divide.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.baselines.craft import choose_budget
    >>> choose_budget(co.Loads([[6, 1, 1], [4, 4, 4]]), gpus=2)
    2
    """
    benefits = replay_benefits(loads, gpus, nodes)
    column = {int(choice): k for k, choice in enumerate(replica_choices(gpus))}
    best, best_budget = 0.0, 0
    for budget in range(gpus, loads.layers * gpus + 1, gpus):
        replicas = choose_replicas(benefits, gpus, budget)
        gain = sum(benefits[layer, column[int(r)]] for layer, r in enumerate(replicas)) / budget
        if gain > best:
            best, best_budget = gain, budget
    return best_budget


def capacity_aware_slots(copies: IntArray, gpus: int, nodes: int = 1) -> IntArray:
    """Share out every layer's copies: extra slots to the GPUs with the fewest so far.

    Every GPU takes floor or ceil of a layer's share; ties go round the nodes, one GPU of each
    after the other. So totals over the layers never differ by more than 1.

    Parameters
    ----------
    copies : int64 [layers]
        Copies of every layer.

    Returns
    -------
    int64 [layers, gpus]

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt.baselines.craft import capacity_aware_slots
    >>> capacity_aware_slots(np.array([6, 5, 5]), gpus=4, nodes=2)
    array([[2, 1, 2, 1],
           [1, 2, 1, 1],
           [1, 1, 1, 2]])
    """
    slots = np.repeat(copies[:, np.newaxis] // gpus, gpus, axis=1)
    turn = np.arange(gpus).reshape(nodes, -1).T.ravel()
    so_far = np.zeros(gpus, dtype=np.int64)
    for layer, extra in enumerate(copies % gpus):
        fewest = turn[np.argsort(so_far[turn], kind="stable")[:extra]]
        slots[layer, fewest] += 1
        so_far[fewest] += 1
    return slots


def outcome_of(problem: Problem, copies: Copies, method: str, note: str) -> Outcome:
    """Make the plan; none, with the reasons, where it breaks a rule other than duplicates."""
    plan = problem.plan(copies, method)
    broken = [text for text in violations(plan, problem) if not text.startswith("duplicates")]
    if broken:
        return Outcome(message=f"{method} cannot keep the problem's rules: {'; '.join(broken)}")
    return Outcome(plan, note)


def _balancedness(share: FloatArray, copies: Copies) -> FloatArray:
    """Compute mean over largest GPU load of every window; 1 without tokens."""
    load = copy_loads(share, copies)
    largest = load.max(axis=1)
    scores: FloatArray = np.ones_like(largest)
    np.divide(load.mean(axis=1), largest, out=scores, where=largest > 0)
    return scores


@njit()
def copy_loads(share: FloatArray, copies: Copies) -> FloatArray:
    """Add up tokens per copy [windows, experts] on the GPUs: [windows, gpus], in fixed order."""
    windows = share.shape[0]
    experts, gpus = copies.shape
    load = np.zeros((windows, gpus))
    for expert in range(experts):
        for gpu in range(gpus):
            for _ in range(copies[expert, gpu]):
                for window in range(windows):
                    load[window, gpu] += share[window, expert]
    return load


@njit()
def replicate(
    load: npt.NDArray[np.floating], replicas: int, limit: int, at_limit: float
) -> IntArray:
    """Give one copy at a time to the expert with the heaviest copies (greedy); count [experts].

    An expert with ``limit`` copies counts as ``at_limit``: -1 keeps it from being copied, 0 as
    in the artifact lets it be copied on where all others are idle.
    """
    count = np.ones(load.size, dtype=np.int64)
    share = load.copy()
    if limit == 1:
        share[:] = at_limit
    for _ in range(replicas):
        heaviest = np.argmax(share)
        count[heaviest] += 1
        if count[heaviest] >= limit:
            share[heaviest] = at_limit
        else:
            share[heaviest] = load[heaviest] / np.float32(count[heaviest])
    return count


@njit()
def _place_apart(share: FloatArray, count: IntArray, room: IntArray) -> Copies:
    """Give copies, hottest first, to the least loaded GPU with room that lacks the expert.

    Where every GPU with room has the expert, a GPU without room takes it and hands one of its
    copies on. There always is one, as GPUs' slots differ by at most 1.
    """
    experts, gpus = share.size, room.size
    copies = np.zeros((experts, gpus), dtype=np.uint8)
    load = np.zeros(gpus)
    free = room.copy()
    for expert in np.argsort(-share, kind="mergesort"):
        for _ in range(count[expert]):
            target = -1
            for gpu in range(gpus):
                if (
                    free[gpu] > 0
                    and copies[expert, gpu] == 0
                    and (target < 0 or load[gpu] < load[target])
                ):
                    target = gpu
            if target < 0:
                target = _make_room(share, copies, load, free, expert)
            copies[expert, target] = 1
            load[target] += share[expert]
            free[target] -= 1
    return copies


@njit()
def _make_room(
    share: FloatArray, copies: Copies, load: FloatArray, free: IntArray, expert: int
) -> int:
    """Move a copy from a full GPU without the expert to one with room, where it costs least."""
    experts, gpus = copies.shape
    least = np.inf
    source = to = moved = -1
    for full in range(gpus):
        if copies[expert, full] > 0:
            continue
        for open_gpu in range(gpus):
            if free[open_gpu] == 0:
                continue
            for other in range(experts):
                if copies[other, full] > 0 and copies[other, open_gpu] == 0:
                    worst = max(
                        load[open_gpu] + share[other], load[full] - share[other] + share[expert]
                    )
                    if worst < least:
                        least = worst
                        source, to, moved = full, open_gpu, other
    copies[moved, source] = 0
    copies[moved, to] = 1
    load[source] -= share[moved]
    load[to] += share[moved]
    free[source] += 1
    free[to] -= 1
    return source
