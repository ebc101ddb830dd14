"""CRAFT as its authors released it: a rule of thresholds, without knapsack and budget.

It tries 0, 4, 8, 16 and 32 replicas in all layers at once and picks each layer's count by
thresholds on the gain per replica. Its float32 arithmetic, whole-token split and order of ties
are kept, quirks included.

References
----------
CRAFT: https://arxiv.org/abs/2603.28768; released code: https://github.com/Accelsnow/CRAFT_core
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from craftopt.baselines.craft import copy_loads, outcome_of, replicate
from craftopt.errors import divide_gpus, whole
from craftopt.jit import njit
from craftopt.loads import IntArray, Loads
from craftopt.plan import Copies
from craftopt.problem import Problem
from craftopt.result import Outcome

Float32Array = npt.NDArray[np.float32]

ARTIFACT_SIZES = (0, 4, 8, 16, 32)
# The artifact stops looking for small gains beyond this many replicas.
_MODEST_SIZE = 16


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
    total = loads.tokens.sum(axis=0).astype(np.float32)
    copies = np.stack(
        [_artifact_layer(total[layer], slots[layer], nodes)[1] for layer in range(loads.layers)]
    )
    note = "" if wanted == problem.replicas else f"CRAFT's released rule uses {wanted} replicas"
    return outcome_of(problem, copies, "craft-artifact", note)


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
    >>> from craftopt.baselines.craft_artifact import artifact_replicas
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
    >>> from craftopt.baselines.craft_artifact import artifact_balancedness
    >>> artifact_balancedness(co.Loads([[6, 1, 1, 1]]), 2, 1, np.array([0])).round(3)
    array([0.643], dtype=float32)
    """
    divide_gpus(whole("gpus", gpus, 1), whole("nodes", nodes, 1))
    sums = loads.tokens.sum(axis=(1, 2))
    tokens = loads.tokens[sums >= sums.astype(np.float32).mean() / np.float32(10)]
    total = tokens.sum(axis=0).astype(np.float32)
    copies = loads.experts + replicas
    if apart:
        slots = np.concatenate([interleaved_slots(copies[[i]], gpus) for i in range(copies.size)])
    else:
        slots = interleaved_slots(copies, gpus)
    scores = np.empty(loads.layers, dtype=np.float32)
    for layer in range(loads.layers):
        count, hosted = _artifact_layer(total[layer], slots[layer], nodes)
        load = copy_loads(np.floor(tokens[:, layer] / count), hosted).astype(np.float32)
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
    >>> from craftopt.baselines.craft_artifact import artifact_benefits
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

    A size with at least the average benefit is taken, and modest ones are no longer tried. Until
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
    >>> from craftopt.baselines.craft_artifact import pick_size
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
    """Raise the sum to the next multiple of the GPUs by repeatedly doubling the smallest count.

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
    >>> from craftopt.baselines.craft_artifact import pad_replicas
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
    >>> from craftopt.baselines.craft_artifact import interleaved_slots
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


def _artifact_layer(load: Float32Array, slots: IntArray, nodes: int) -> tuple[IntArray, Copies]:
    """Replicate and place one layer; count [experts], copies [experts, gpus]."""
    gpus = slots.size
    experts = np.arange(load.size)
    count = replicate(load, int(slots.sum()) - load.size, gpus, 0.0)
    # The experts' first copies come before all replicas, which go expert by expert.
    expert_of = np.concatenate([experts, np.repeat(experts, count - 1)])
    share = (load / count.astype(np.float32))[expert_of]
    order = np.argsort(-share, kind="stable")
    return count, _place_artifact(share[order], expert_of[order], slots, nodes, load.size)


@njit()
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
