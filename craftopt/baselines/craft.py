"""CRAFT, cost-aware replication per layer: by its paper, and as its authors released it.

The paper (`plan_craft`): replay the recorded windows with 0, 1, 2, 4, ..., G replicas in every
layer, then choose one count per layer by a multiple-choice knapsack that maximises the summed
balancedness within the budget, and place under slots that give every GPU the same memory.

The released code (`plan_craft_artifact`) has no knapsack and no budget: it tries 0, 4, 8, 16 and
32 replicas in all layers at once and picks each layer's count by thresholds on the gain per
replica. Its float32 arithmetic, whole-token split and order of ties are kept, quirks included.

References
----------
CRAFT: https://arxiv.org/abs/2603.28768; released code: https://github.com/Accelsnow/CRAFT_core
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from craftopt.errors import InputError
from craftopt.evaluation import violations
from craftopt.knapsack import allocate
from craftopt.loads import FloatArray, IntArray, Loads
from craftopt.plan import Plan
from craftopt.problem import Problem
from craftopt.result import Outcome

Copies = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]

ARTIFACT_SIZES = (0, 4, 8, 16, 32)
# The artifact stops looking for small gains beyond this many replicas.
_MODEST_SIZE = 16


# --- the paper ------------------------------------------------------------------------------


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
    weight = loads.tokens.sum(axis=0)
    copies = np.empty((loads.layers, loads.experts, gpus), dtype=np.uint8)
    for layer in range(loads.layers):
        count = _replicate(weight[layer], replicas[layer], problem.copies_limit, -1.0)
        copies[layer] = _place_apart(weight[layer] / count, count, slots[layer])
    used = int(replicas.sum())
    note = "" if used == problem.replicas else f"CRAFT uses {used} of {problem.replicas} replicas"
    return _outcome(problem, copies, "craft", note)


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
    _check_cluster(gpus, nodes)
    limit = gpus if copies_limit is None else copies_limit
    choices = replica_choices(gpus)
    weight = loads.tokens.sum(axis=0)
    scores = np.full((loads.layers, choices.size), -np.inf)
    for k, replicas in enumerate(choices):
        if replicas > loads.experts * (limit - 1):
            continue
        room = capacity_aware_slots(np.array([loads.experts + replicas]), gpus, nodes)[0]
        for layer in range(loads.layers):
            count = _replicate(weight[layer], replicas, limit, -1.0)
            copies = _place_apart(weight[layer] / count, count, room)
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


# --- the released code ----------------------------------------------------------------------


def plan_craft_artifact(problem: Problem) -> Outcome:
    """Plan by the released rule, which chooses its own number of replicas.

    There is no plan where that number is above the budget, or where the plan breaks another
    rule of the problem; only duplicates, which its placement can make, are left to be named.
    """
    loads, gpus, nodes = problem.loads, problem.gpus, problem.nodes
    if loads.experts % gpus or gpus % 2:
        return Outcome(
            message=f"CRAFT's released code asks for an even number of GPUs that divides the "
            f"experts; {gpus} GPUs and {loads.experts} experts do not fit, method craft takes them"
        )
    if (loads.tokens % 1).any():
        return Outcome(
            message="CRAFT's released code counts whole tokens; pass unscaled counts, "
            "or use method craft"
        )
    replicas = artifact_replicas(loads, gpus, nodes)
    wanted = int(replicas.sum())
    if wanted > problem.replicas:
        return Outcome(
            message=f"CRAFT's released rule chooses its own budget: it wants {wanted} replicas "
            f"({wanted // gpus} slots per GPU), {problem.replicas} are allowed; "
            f"pass replicas={wanted}, or use method craft"
        )
    slots = interleaved_slots(loads.experts + replicas, gpus)
    weight = loads.tokens.sum(axis=0).astype(np.float32)
    copies = np.stack(
        [_artifact_layer(weight[layer], slots[layer], nodes)[1] for layer in range(loads.layers)]
    )
    note = "" if wanted == problem.replicas else f"CRAFT's released rule uses {wanted} replicas"
    return _outcome(problem, copies, "craft-artifact", note)


def artifact_replicas(loads: Loads, gpus: int, nodes: int = 1) -> IntArray:
    """Choose every layer's replicas by the released rule, padded to a multiple of the GPUs.

    Returns
    -------
    int64 [layers]

    Raises
    ------
    InputError
        GPUs that the nodes do not divide.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.baselines.craft import artifact_replicas
    >>> artifact_replicas(co.Loads([[60, 10, 10, 10], [20, 20, 20, 20]]), gpus=4)
    array([16,  0])
    """
    scores = np.stack(
        [
            artifact_balancedness(loads, gpus, nodes, np.full(loads.layers, size))
            for size in ARTIFACT_SIZES
        ]
    )
    benefits, average = artifact_benefits(scores)
    sizes = [pick_size(benefits[:, layer], average) for layer in range(loads.layers)]
    return pad_replicas(np.array(sizes), gpus)


def artifact_balancedness(
    loads: Loads, gpus: int, nodes: int, replicas: IntArray, apart: bool = False
) -> Float32Array:
    """Score replicas as the released code does: planned and replayed on the same windows.

    Windows with less than a tenth of the mean tokens are left out. An expert's tokens are
    divided by its copies and rounded down.

    Parameters
    ----------
    replicas : int64 [layers]
        Replicas of every layer.
    apart : bool
        Plan every layer for itself, as the released code does for its final figure; by default
        slots are shared out over all layers together, as in its trials.

    Returns
    -------
    float32 [layers]
        Mean over the windows of (mean + 1e-5)/(max + 1e-5) of the GPU loads.

    Raises
    ------
    InputError
        GPUs that the nodes do not divide.

    Examples
    --------
    >>> import craftopt as co, numpy as np
    >>> from craftopt.baselines.craft import artifact_balancedness
    >>> artifact_balancedness(co.Loads([[6, 1, 1, 1]]), 2, 1, np.array([0])).round(3)
    array([0.643], dtype=float32)
    """
    _check_cluster(gpus, nodes)
    sums = loads.tokens.sum(axis=(1, 2))
    tokens = loads.tokens[sums >= sums.astype(np.float32).mean() / np.float32(10)]
    weight = tokens.sum(axis=0).astype(np.float32)
    copies = loads.experts + replicas
    if apart:
        slots = np.concatenate([interleaved_slots(copies[[i]], gpus) for i in range(copies.size)])
    else:
        slots = interleaved_slots(copies, gpus)
    scores = np.empty(loads.layers, dtype=np.float32)
    for layer in range(loads.layers):
        count, hosted = _artifact_layer(weight[layer], slots[layer], nodes)
        load = _gpu_loads(np.floor(tokens[:, layer] / count), hosted).astype(np.float32)
        ratio = (load.mean(axis=1) + np.float32(1e-5)) / (load.max(axis=1) + np.float32(1e-5))
        scores[layer] = ratio.mean()
    return scores


def artifact_benefits(scores: Float32Array) -> tuple[Float32Array, float]:
    """Compute the gain in balancedness per replica, and its average.

    Parameters
    ----------
    scores : float32 [sizes, layers]
        `artifact_balancedness` of every layer with each of `ARTIFACT_SIZES`.

    Returns
    -------
    benefits : float32 [sizes - 1, layers]
        (balancedness - balancedness without replicas) / replicas.
    average : float
        Mean over sizes and layers.

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt.baselines.craft import artifact_benefits
    >>> scores = np.array([[0.25], [0.5], [0.5], [0.75], [0.75]], dtype=np.float32)
    >>> benefits, average = artifact_benefits(scores)
    >>> benefits.ravel().tolist(), average
    ([0.0625, 0.03125, 0.03125, 0.015625], 0.03515625)
    """
    sizes = np.array(ARTIFACT_SIZES[1:], dtype=np.float32)[:, np.newaxis]
    benefits = ((scores[1:] - scores[0]) / sizes).astype(np.float32)
    average = sum(float(row.sum()) for row in benefits) / benefits.size
    return benefits, average


def pick_size(benefits: Float32Array, average: float) -> int:
    """Pick one layer's replicas by the released thresholds, sizes in rising order.

    A size with at least the average benefit is taken, and ends the look at modest ones. Until
    then sizes up to 16 are taken if they have half the average, or beat every size that had
    less than half: a size that has half is not remembered as the best, so that a later, weaker
    one replaces it.

    Parameters
    ----------
    benefits : float32 [sizes - 1]
        Gain per replica with each of `ARTIFACT_SIZES` but 0.
    average : float
        Mean of all layers' benefits.

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt.baselines.craft import pick_size
    >>> pick_size(np.array([0.6, 0.1, 0.05, 0.0], dtype=np.float32), average=1.0)
    8
    """
    pick = 0
    best = 0.0
    high = False
    for size, value in zip(ARTIFACT_SIZES[1:], benefits.tolist(), strict=True):
        if not high and size <= _MODEST_SIZE:
            if value >= average / 2:
                pick = size
            elif value > best:
                pick, best = size, value
        if value >= average:
            pick, high = size, True
    return pick


def pad_replicas(replicas: IntArray, gpus: int) -> IntArray:
    """Raise the sum to the next multiple of the GPUs, doubling the smallest count again and again.

    0 becomes 1; the first of equals is doubled; the last step only adds what is missing.

    Parameters
    ----------
    replicas : int64 [layers]

    Returns
    -------
    int64 [layers]

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt.baselines.craft import pad_replicas
    >>> pad_replicas(np.array([0, 8, 4]), gpus=8)
    array([4, 8, 4])
    """
    padded = replicas.astype(np.int64)
    missing = -int(padded.sum()) % gpus
    while missing:
        smallest = int(padded.argmin())
        added = min(max(int(padded[smallest]), 1), missing)
        padded[smallest] += added
        missing -= added
    return padded


def interleaved_slots(copies: IntArray, gpus: int) -> IntArray:
    """Share out every layer's copies as the released code does.

    Floor of a layer's share to every GPU; the extra slots to the GPUs with the smallest totals
    so far. Those that tie for the last of them are chosen evenly spaced by number.

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
    >>> from craftopt.baselines.craft import interleaved_slots
    >>> interleaved_slots(np.array([10, 11]), gpus=8)
    array([[2, 1, 1, 1, 1, 1, 1, 2],
           [1, 2, 1, 2, 1, 1, 2, 1]])
    """
    slots = np.repeat(copies[:, np.newaxis] // gpus, gpus, axis=1)
    totals = np.zeros(gpus, dtype=np.int64)
    for layer, extra in enumerate((copies % gpus).tolist()):
        if extra == 0:
            continue
        last = np.sort(totals)[extra - 1]
        below = np.flatnonzero(totals < last)
        ties = np.flatnonzero(totals == last)
        chosen = np.concatenate([below, ties[_evenly_spaced(ties.size, extra - below.size)]])
        slots[layer, chosen] += 1
        totals[chosen] += 1
    return slots


def _evenly_spaced(size: int, wanted: int) -> IntArray:
    """Choose positions in 0..size-1, first and last included, cut to whole numbers.

    In float32 and from both ends to the middle, as torch computes it: an exact multiple may
    fall just below a whole number there.
    """
    if wanted == 1:
        return np.zeros(1, dtype=np.int64)
    last = np.float32(size - 1)
    step = last / np.float32(wanted - 1)
    index = np.arange(wanted)
    rising = step * index.astype(np.float32)
    falling = last - step * index[::-1].astype(np.float32)
    return np.where(index < wanted // 2, rising, falling).astype(np.int64)


def _artifact_layer(weight: Float32Array, slots: IntArray, nodes: int) -> tuple[IntArray, Copies]:
    """Replicate and place one layer; count [experts], copies [experts, gpus]."""
    gpus = slots.size
    count = _replicate(weight, int(slots.sum()) - weight.size, gpus, 0.0)
    # The experts' first copies stand before all replicas, which stand expert by expert.
    expert_of = np.concatenate(
        [np.arange(weight.size), np.repeat(np.arange(weight.size), count - 1)]
    )
    share = (weight / count.astype(np.float32))[expert_of]
    order = np.argsort(-share, kind="stable")
    return count, _place_artifact(share[order], expert_of[order], slots, nodes, weight.size)


# --- common ---------------------------------------------------------------------------------


def _outcome(problem: Problem, copies: Copies, method: str, note: str) -> Outcome:
    """Make the plan; none, with the reasons, where it breaks a rule other than duplicates."""
    loads = problem.loads
    plan = Plan(copies, loads.layer_ids, problem.nodes, method, loads.digest)
    broken = [text for text in violations(plan, problem) if not text.startswith("duplicates")]
    if broken:
        return Outcome(message=f"{method} cannot keep the problem's rules: {'; '.join(broken)}")
    return Outcome(plan, note)


def _check_cluster(gpus: int, nodes: int) -> None:
    if gpus < 1 or nodes < 1 or gpus % nodes:
        raise InputError(
            f"gpus={gpus} does not divide into nodes={nodes}; pass nodes=1 or a multiple of {nodes}"
        )


def _balancedness(share: FloatArray, copies: Copies) -> FloatArray:
    """Compute mean over largest GPU load of every window; 1 without tokens."""
    load = _gpu_loads(share, copies)
    largest = load.max(axis=1)
    scores: FloatArray = np.ones_like(largest)
    np.divide(load.mean(axis=1), largest, out=scores, where=largest > 0)
    return scores


@njit(cache=True)
def _gpu_loads(share: FloatArray, copies: Copies) -> FloatArray:
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


@njit(cache=True)
def _replicate(
    weight: npt.NDArray[np.floating], replicas: int, limit: int, at_limit: float
) -> IntArray:
    """Copy the expert with the heaviest copies, again and again; count [experts].

    An expert with ``limit`` copies counts as ``at_limit``: -1 keeps it from being copied, 0 as
    in the artifact lets it be copied on where all others are idle.
    """
    count = np.ones(weight.size, dtype=np.int64)
    share = weight.copy()
    if limit == 1:
        share[:] = at_limit
    for _ in range(replicas):
        heaviest = np.argmax(share)
        count[heaviest] += 1
        if count[heaviest] >= limit:
            share[heaviest] = at_limit
        else:
            share[heaviest] = weight[heaviest] / np.float32(count[heaviest])
    return count


@njit(cache=True)
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


@njit(cache=True)
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


@njit(cache=True)
def _place_artifact(
    share: Float32Array, expert_of: IntArray, slots: IntArray, nodes: int, experts: int
) -> Copies:
    """Place copies, hottest first, as the artifact's mode 2.

    To a GPU with room on a node not marked with the expert, else to one not marked itself, else
    to any: the smallest of load x 1000 + slots, first GPU on ties. GPU and node are then marked
    with the expert; marks of an expert that all GPUs (all nodes) carry are taken off.
    """
    gpus = slots.size
    width = gpus // nodes
    copies = np.zeros((experts, gpus), dtype=np.uint8)
    load = np.zeros(gpus)
    free = slots.copy()
    on_gpu = np.zeros((experts, gpus), dtype=np.bool_)
    on_node = np.zeros((experts, nodes), dtype=np.bool_)
    for item in range(share.size):
        expert = expert_of[item]
        target = -1
        for attempt in range(3):
            for gpu in range(gpus):
                if free[gpu] == 0:
                    continue
                if attempt == 0 and on_node[expert, gpu // width]:
                    continue
                if attempt == 1 and on_gpu[expert, gpu]:
                    continue
                key = load[gpu] * 1000 + slots[gpu]
                if target < 0 or key < load[target] * 1000 + slots[target]:
                    target = gpu
            if target >= 0:
                break
        copies[expert, target] += 1
        load[target] += share[item]
        free[target] -= 1
        on_gpu[expert, target] = True
        if on_gpu[expert].all():
            on_gpu[expert] = False
        on_node[expert, target // width] = True
        if on_node[expert].all():
            on_node[expert] = False
    return copies
