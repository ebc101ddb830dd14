"""How long a step takes: a roofline for the fullest GPU of every layer, and the parts around it.

A step passes ``tokens`` tokens of every attention group through the model. With n tokens over all
groups, k experts per token, and the traffic of one window, expert layer l takes::

    max over GPUs g of max(a_g * bytes / bandwidth, t_g * flops / peak)

a_g being the copies on g that get a token, each read once, and t_g = n k * (g's share of the
load) the tokens that g computes. The two maxima separate: it is the larger of the most
copies read anywhere and the most tokens computed anywhere. A copy of an expert with the share p
of the choices, one of c, gets a token with probability 1 - exp(-n k p / c).

Tokens go to the experts and back in two exchanges, each as long as the longer of::

    between nodes   max(nodes that a token visits beside its own, the same for the busiest node)
    within a node   tokens that the fullest GPU receives, each once

Both are the plan's own where its `Traffic` is known; else experts are taken to be anywhere, each
choice on a node by chance, and all nodes to receive as many.

Left out: chance within a step (a step's tokens are taken to follow their window's shares exactly,
so small batches are worse than this); kernels whose efficiency depends on the size of their input;
overlap beyond ``overlap``; prompts that come unevenly to the attention groups; traffic on the links
that is not the experts'; speculative decoding; prefix caching; moving experts while serving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import numpy as np

from craftopt.errors import InputError, choice, number
from craftopt.evaluation import host_shares, layer_gpu_loads
from craftopt.loads import FloatArray, Loads, read_only
from craftopt.plan import Copies, Plan
from craftopt.problem import PlannedDispatch
from craftopt.serving.deployment import Deployment, check_names
from craftopt.serving.facts import bytes_of
from craftopt.serving.memory import check_shape
from craftopt.traffic import Traffic

Phase = Literal["prefill", "decode"]

# Token assignments of a layer and step at which activated copies are counted. Linear interpolation
# between them, so that a larger step never costs more per token; constant outside.
ASSIGNMENTS = 2.0 ** np.arange(2, 23)


@dataclass(frozen=True, eq=False)
class Profile:
    """Summarise how a plan spreads traffic: all that the time of its expert layers depends on.

    Parameters
    ----------
    weights : float64 [windows]
        What each window counts: its share of all tokens.
    fullest : float64 [windows, layers]
        The largest share of a layer's token assignments that one GPU computes.
    activated : float64 [points, windows, layers]
        The most copies read on one GPU when a layer gets `ASSIGNMENTS` assignments.
    traffic : Traffic, optional
        What the plan's GPUs send; where it is not known, nodes and GPUs per token are those of
        experts that are anywhere.
    """

    weights: FloatArray
    fullest: FloatArray
    activated: FloatArray
    traffic: Traffic | None = None

    def activated_at(self, assignments: float) -> FloatArray:
        """Interpolate the copies read for a number of assignments, float64 [windows, layers]."""
        high = int(np.clip(np.searchsorted(ASSIGNMENTS, assignments), 1, ASSIGNMENTS.size - 1))
        low = high - 1
        share = (assignments - ASSIGNMENTS[low]) / (ASSIGNMENTS[high] - ASSIGNMENTS[low])
        share = min(max(float(share), 0.0), 1.0)
        result: FloatArray = (1 - share) * self.activated[low] + share * self.activated[high]
        return result


def profile_of(
    plan: Plan,
    loads: Loads,
    traffic: Traffic | None = None,
    dispatch: PlannedDispatch = "even",
) -> Profile:
    """Profile a plan on loads, whether it was planned on them or not.

    Parameters
    ----------
    plan : Plan
    loads : Loads
    traffic : Traffic, optional
        Of the plan on these loads: ``co.evaluate(plan, loads, trace=trace).traffic``, or with
        ``coactivation=``.
    dispatch : {"even", "nearest-even"}
        How an expert's tokens are split over its copies.

    Raises
    ------
    InputError
        Loads of other layers or experts than the plan's; traffic of another plan.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.serving import profile_of
    >>> plan = co.Plan.from_phy2log([[0, 1, 0, 2]], gpus=2)
    >>> profile = profile_of(plan, co.Loads([[6, 2, 4]]))
    >>> round(float(profile.fullest[0, 0]), 4), float(profile.activated[-1, 0, 0])
    (0.5833, 2.0)
    """
    if (plan.layers, plan.experts) != (loads.layers, loads.experts):
        raise InputError(
            f"the plan has {plan.layers} layers of {plan.experts} experts, the loads "
            f"{loads.layers} of {loads.experts}; both must describe the same model"
        )
    if traffic is not None and (
        traffic.nodes.shape[1] != plan.layers or len(traffic.node_matrix) != plan.nodes
    ):
        raise InputError(
            f"the traffic is of {traffic.nodes.shape[1]} layers on {len(traffic.node_matrix)} "
            f"nodes, the plan has {plan.layers} on {plan.nodes}; pass evaluate(plan, ...).traffic"
        )
    dispatch = choice("dispatch", dispatch, get_args(PlannedDispatch))
    profile = profile_of_copies(plan.copies, loads.tokens, plan.nodes, dispatch)
    return replace(profile, traffic=traffic)


def profile_of_copies(
    copies: Copies, tokens: FloatArray, nodes: int = 1, dispatch: PlannedDispatch = "even"
) -> Profile:
    """Profile placements, uint8 [layers, experts, gpus], on float64 [windows, layers, experts]."""
    windows, layers, _ = tokens.shape
    fullest = np.zeros((windows, layers))
    activated = np.zeros((ASSIGNMENTS.size, windows, layers))
    for layer in range(layers):
        total = tokens[:, layer].sum(axis=1, keepdims=True)
        shares = np.divide(
            tokens[:, layer], total, out=np.zeros_like(tokens[:, layer]), where=total > 0
        )
        loads = layer_gpu_loads(shares, copies[layer], nodes, dispatch)
        fullest[:, layer] = loads.max(axis=1)
        gpu, expert = np.nonzero(copies[layer].T)
        hosted = copies[layer][expert, gpu]  # 2 where a GPU hosts an expert twice
        parts = copies[layer].sum(axis=1)[expert]  # a copy serves 1 / parts of the tokens
        if dispatch != "even":
            parts = hosted / host_shares(copies[layer], nodes, dispatch)[expert, gpu]
        per_copy = shares[:, expert] / parts
        first = np.searchsorted(gpu, np.unique(gpu))
        for point, assignments in enumerate(ASSIGNMENTS):
            read = hosted * -np.expm1(-assignments * per_copy)
            activated[point, :, layer] = np.add.reduceat(read, first, axis=1).max(axis=1)
    weights = tokens.sum(axis=(1, 2))
    weights = weights / weights.sum() if weights.any() else np.full(windows, 1 / windows)
    return Profile(read_only(weights), read_only(fullest), read_only(activated))


@dataclass(frozen=True)
class StepTime:
    """Break down the seconds of a step.

    Parameters
    ----------
    experts : float
        Routed experts on the fullest GPU of every layer.
    exchange : float
        Tokens to the experts and back, without what hides behind the experts.
    attention : float
        Projections, cache and, in a group of several GPUs, its reductions.
    dense : float
        Shared experts, dense layers, routers, output head.
    overhead : float
        Launches and scheduling.
    """

    experts: float
    exchange: float
    attention: float
    dense: float
    overhead: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.experts + self.exchange + self.attention + self.dense + self.overhead


def step_time(
    deployment: Deployment, profile: Profile, phase: Phase, tokens: float, context: float
) -> StepTime:
    """Compute the seconds of one step.

    Parameters
    ----------
    deployment : Deployment
    profile : Profile
    phase : {"prefill", "decode"}
    tokens : float
        Tokens of every attention group: its sequences when decoding.
    context : float
        Positions that a token attends to, on average.

    Raises
    ------
    InputError
        An unknown phase, a number outside its range, or a profile of another model.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.serving import Deployment, find_gpu, find_model, profile_of, step_time
    >>> loads = co.load_example("deepseek-r1")
    >>> spread = Deployment(find_model("deepseek-r1"), find_gpu("h200"), gpus=64, nodes=8)
    >>> plan = co.solve(co.Problem(loads, gpus=64), "placement").plan
    >>> step = step_time(spread, profile_of(plan, loads), "decode", tokens=64, context=4096)
    >>> 0 < step.experts < step.total < 1
    True
    """
    check_shape(deployment, profile.fullest.shape[1], deployment.model.experts)
    phase = choice("phase", phase, get_args(Phase))
    number("tokens", tokens, above=0)
    number("context", context, least=0)
    by_layer = layer_times(deployment, profile, phase, tokens)
    local = tokens / deployment.attention_gpus
    return StepTime(
        experts=float((profile.weights @ by_layer[0]).sum()),
        exchange=float((profile.weights @ by_layer[1]).sum()),
        attention=_attention(deployment, phase, tokens, context),
        dense=_dense(deployment, phase, local),
        overhead=deployment.step_overhead + deployment.model.layers * deployment.layer_overhead,
    )


def layer_times(
    deployment: Deployment, profile: Profile, phase: Phase, tokens: float
) -> tuple[FloatArray, FloatArray]:
    """Compute the seconds of experts and of exchange per window and layer, which the plan decides.

    Returns
    -------
    two of float64 [windows, layers]
    """
    model, gpu = deployment.model, deployment.gpu
    everywhere = tokens * deployment.groups
    assignments = everywhere * model.top_k
    reading = deployment.expert_bytes / (gpu.bandwidth * deployment.bandwidth_efficiency)
    peak = gpu.peak(deployment.expert_kind) * deployment.compute_efficiency
    computing = 2.0 * model.parameters_per_expert / peak
    experts: FloatArray = np.maximum(
        reading * profile.activated_at(assignments), computing * assignments * profile.fullest
    )
    exchange = _exchange(deployment, profile, everywhere)
    return experts, exchange - deployment.overlap * np.minimum(experts, exchange)


def _exchange(deployment: Deployment, profile: Profile, everywhere: float) -> FloatArray:
    """Compute the seconds of both exchanges of a layer, float64 [windows, layers].

    Within a node, the GPU with the most tokens receives them all, each once. Across nodes a token
    goes once to every other node that it needs, from the GPU where it is to its like there. Both
    happen at once. The way back is the same, in bf16.
    """
    gpus, nodes, fullest = deployment.gpus, deployment.domains, profile.fullest
    if gpus == 1:
        return np.zeros_like(fullest)
    width = deployment.model.hidden_width
    there, back = width * bytes_of(deployment.exchange_kind), width * bytes_of("bf16")
    near, far = _received(deployment, profile, everywhere)
    near_there, far_there = near, far
    if deployment.exchange == "all-gather":
        near_there = np.full_like(fullest, everywhere * (1 - nodes / gpus))
        far_there = np.full_like(fullest, everywhere / gpus * (nodes - 1))
    seconds = np.zeros_like(fullest)
    for tokens_near, tokens_far, size in ((near_there, far_there, there), (near, far, back)):
        within = np.zeros_like(fullest)
        if gpus > nodes:
            within = tokens_near * size / deployment.link("node_link")
        across = tokens_far * size / deployment.link("cluster_link") if nodes > 1 else 0.0
        seconds += np.maximum(within, across) + deployment.exchange_latency
    return seconds


def _received(
    deployment: Deployment, profile: Profile, everywhere: float
) -> tuple[FloatArray, FloatArray]:
    """Compute the tokens that bound an exchange, two of float64 [windows, layers].

    Returns
    -------
    near : received by the fullest GPU over the links of its node
    far : sent by a GPU to other nodes, or received from them in the busiest node, whichever is more
    """
    gpus, nodes, fullest = deployment.gpus, deployment.domains, profile.fullest
    k, traffic = deployment.model.top_k, profile.traffic
    if deployment.exchange == "low-latency":  # every choice on its own, straight to its GPU
        choices = everywhere * k * fullest
        return choices * (1 / nodes - 1 / gpus), choices * (1 - 1 / nodes)
    if traffic is None:
        missed = np.log1p(-np.minimum(fullest, 1 - 1e-12))
        near: FloatArray = everywhere * (1 - 1 / gpus) * -np.expm1(k * missed)
        return near, np.full_like(
            fullest, everywhere / gpus * (nodes - 1) * deployment.visit_chance
        )
    measured = len(traffic.node_matrix)
    if nodes not in (1, measured):
        raise InputError(
            f"the traffic is between {measured} nodes, and slow links join {nodes} groups of GPUs; "
            f"pass plans with nodes={nodes}"
        )
    # Tokens are held by all nodes alike, so that the busiest has its share of them already.
    busier = np.maximum(traffic.remote, (1 - 1 / nodes) * traffic.busiest_node)
    per_token = [
        (figure * traffic.tokens).sum(axis=0) / np.maximum(traffic.tokens.sum(axis=0), 1e-300)
        for figure in (traffic.busiest_gpu, busier)
    ]
    most, busy = (np.tile(everywhere / gpus * mean, (len(fullest), 1)) for mean in per_token)
    return (1 - 1 / gpus) * most, busy


def _attention(deployment: Deployment, phase: Phase, tokens: float, context: float) -> float:
    """Compute seconds of attention in all layers: projections, then cache."""
    model, gpu, group = deployment.model, deployment.gpu, deployment.attention_gpus
    seconds = _product(deployment, model.attention_weights(group), tokens)
    # A step reads the cache of every decoding sequence; of a prompt, once per step.
    reads = tokens if phase == "decode" else 1.0
    kv = model.kv_bytes(deployment.kv_dtype)
    if model.attention.kind == "gqa":
        kv /= min(group, model.attention.kv_heads)
    layers = model.layers if model.kv_layers is None else model.kv_layers
    flops = layers * model.attention.flops_per_position(phase) * tokens * context / group
    seconds += max(
        reads * context * kv / (gpu.bandwidth * deployment.bandwidth_efficiency),
        flops / (gpu.peak("bf16") * deployment.compute_efficiency),
    )
    if group > 1:
        size = 2 * (group - 1) / group * tokens * model.hidden_width * bytes_of("bf16")
        seconds += model.layers * size / deployment.link("node_link")
    return seconds


def _dense(deployment: Deployment, phase: Phase, local: float) -> float:
    """Compute seconds of what every GPU does for its own tokens in all layers."""
    model = deployment.model
    held = model.shared_expert_parameters + model.dense_parameters + model.router_parameters
    seconds = _product(deployment, held, local)
    if phase == "decode":  # a prompt needs the output head for its last token only
        group = deployment.attention_gpus
        head = model.embedding_parameters / 2 / group
        seconds += _product(deployment, head, local * group)
    return seconds


def _product(deployment: Deployment, parameters: float, tokens: float) -> float:
    """Compute seconds to read parameters once and to multiply tokens with them."""
    kind = deployment.weight_kind
    gpu = deployment.gpu
    reading = parameters * bytes_of(kind) / gpu.bandwidth / deployment.bandwidth_efficiency
    computing = 2.0 * parameters * tokens / gpu.peak(kind) / deployment.compute_efficiency
    return max(reading, computing)


@dataclass(frozen=True)
class Measured:
    """Hold one measurement of a running engine.

    Parameters
    ----------
    phase : {"prefill", "decode"}
    tokens : float
        Tokens of every attention group in the step.
    context : float
        Positions that a token attends to, on average.
    seconds : float
        What the step took.
    """

    phase: Phase
    tokens: float
    context: float
    seconds: float


def calibrate(
    deployment: Deployment,
    profile: Profile,
    points: Sequence[Measured],
    constants: Sequence[str] = ("compute_efficiency", "bandwidth_efficiency"),
) -> Deployment:
    """Fit constants to measured steps, by least squares on the logarithm of their times.

    Parameters
    ----------
    deployment : Deployment
        Start of the fit; all constants that are not fitted stay.
    profile : Profile
        Of the plan and the traffic that were measured.
    points : sequence of Measured
        At least 2, and at least as many as there are constants to fit.
    constants : sequence of str
        Names of the deployment's numbers that need not be whole, all above 0.

    Raises
    ------
    InputError
        Unknown constants, too few points, or points that do not tell the constants apart: the
        message names one that no point depends on.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.serving import (Deployment, Measured, calibrate, find_gpu, find_model,
    ...                               profile_of, step_time)
    >>> loads = co.load_example("deepseek-r1")
    >>> plan = co.solve(co.Problem(loads, gpus=64), "placement").plan
    >>> guess = Deployment(find_model("deepseek-r1"), find_gpu("h200"), gpus=64, nodes=8)
    >>> truth = guess.replace(compute_efficiency=0.4, bandwidth_efficiency=0.8)
    >>> steps = [("decode", 16, 4000), ("prefill", 4096, 2000)]
    >>> points = [Measured(*step, step_time(truth, profile_of(plan, loads), *step).total)
    ...           for step in steps]
    >>> found = calibrate(guess, profile_of(plan, loads), points)
    >>> round(found.compute_efficiency, 3), round(found.bandwidth_efficiency, 3)
    (0.4, 0.8)
    """
    from scipy.optimize import least_squares  # noqa: PLC0415 (slow to import)

    check_names(constants, [entry.name for entry in fields(Deployment) if entry.type == "float"])
    if len(points) < max(2, len(constants)):
        raise InputError(
            f"{len(points)} measured point(s) for {', '.join(constants)}; pass at least "
            f"{max(2, len(constants))}, from steps of different kinds"
        )
    if any(not point.seconds > 0 for point in points):
        raise InputError("a measured point has no time; seconds must be above 0")
    start = np.array([getattr(deployment, name) for name in constants], dtype=float)
    if not (start > 0).all():
        raise InputError(f"{constants[int(start.argmin())]} is 0; calibrate starts above 0")

    def with_constants(logs: FloatArray) -> Deployment:
        values = {name: float(value) for name, value in zip(constants, np.exp(logs), strict=True)}
        return deployment.replace(**values)

    def errors(logs: FloatArray) -> FloatArray:
        fitted = with_constants(logs)
        steps = [step_time(fitted, profile, p.phase, p.tokens, p.context).total for p in points]
        off: FloatArray = np.log(np.array(steps) / np.array([p.seconds for p in points]))
        return off

    fit = least_squares(errors, np.log(start), x_scale=1.0, xtol=1e-12, ftol=1e-12, gtol=1e-12)
    blind = np.abs(fit.jac).max(axis=0) < 1e-6
    if blind.any():
        raise InputError(
            f"no measured point depends on {constants[int(np.argmax(blind))]}; measure a step that "
            "does (large prefills: compute; small decodes: bandwidth), or do not fit it"
        )
    return with_constants(fit.x)
