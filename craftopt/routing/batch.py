"""Route a batch: the tokens of all layers at once, by one of the dispatch rules."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from craftopt.errors import CraftoptError, InputError, choice, deprecated, renamed
from craftopt.loads import BoolArray, FloatArray, IntArray, as_array, read_only
from craftopt.plan import Plan
from craftopt.traces import Trace

Dispatch = Literal[
    "even", "hash", "nearest", "nearest-even", "metro", "exact", "lp", "mixed", "cover"
]
DISPATCHES: tuple[Dispatch, ...] = get_args(Dispatch)
# All but `cover`, which asks which experts a token chose together.
COUNT_DISPATCHES = DISPATCHES[:-1]

# Microseconds of a DeepSeek-V3 layer in fp8 as TEMPO fits them (arXiv 2608.13057): to read a copy
# and to compute a token. Below 156 tokens per copy, reading takes longer.
DECODE_COST = (0.0, 14.78, 0.0, 0.0945)

# What is minimised by the rules that minimise something.
_AIMS: dict[Dispatch, str] = {
    "metro": "the most activated copies on a GPU",
    "exact": "the most activated copies on a GPU",
    "lp": "the most tokens on a GPU",
    "mixed": "the longest time of a GPU",
}
_CLOSE = 1e-6  # relative: a value that is this close to its bound has attained it


@dataclass(frozen=True, eq=False)
class Routing:
    """Say which copies serve a batch, and how good that is.

    Parameters
    ----------
    plan : Plan
    dispatch : str
        The rule.
    share : float64 [hosts]
        Tokens that every host of an expert serves, layer by layer, expert by expert, GPUs rising.
    activated : int64 [layers, gpus]
        Copies that a GPU reads: those that serve a token.
    loads : float64 [layers, gpus]
        Tokens that a GPU serves.
    value, bound : float64 [layers] or None
        What the rule minimises (see `explanation`), and the least that it can be in any routing
        as far as proven; None for rules that minimise nothing.
    witness : bool [layers, gpus] or None
        For ``exact``, the GPUs that prove it: the experts with all hosts among these GPUs are too
        many for any routing with fewer activated copies on the fullest. See `check_witness`.
    """

    plan: Plan
    dispatch: Dispatch
    share: FloatArray
    activated: IntArray
    loads: FloatArray
    value: FloatArray | None = None
    bound: FloatArray | None = None
    witness: BoolArray | None = None

    @cached_property
    def tokens(self) -> FloatArray:
        """Tokens by expert and GPU, float64 [layers, experts, gpus], made on first use."""
        dense = np.zeros(self.plan.copies.shape)
        dense[np.nonzero(self.plan.copies)] = self.share
        return read_only(dense)

    @property
    def max_activated(self) -> IntArray:
        """Most copies that a GPU reads, int64 [layers]."""
        most: IntArray = self.activated.max(axis=1)
        return most

    @property
    def max_tokens(self) -> FloatArray:
        """Most tokens that a GPU serves, float64 [layers]."""
        most: FloatArray = self.loads.max(axis=1)
        return most

    @property
    def optimal(self) -> BoolArray:
        """Whether proven that no routing does better, to 1e-6, at what the rule minimises."""
        if self.value is None or self.bound is None:
            return np.zeros(self.plan.layers, dtype=bool)
        return self.value <= self.bound * (1 + _CLOSE)

    @property
    def explanation(self) -> str:
        """Why this is optimal, or not, in one line."""
        if self.dispatch not in _AIMS:
            return f"{self.dispatch}: a fixed rule, it minimises nothing"
        layers, proven = self.plan.layers, int(self.optimal.sum())
        text = f"{self.dispatch}: minimises {_AIMS[self.dispatch]}; "
        text += f"optimal in {proven} of {layers} layers"
        if self.witness is not None:
            text += ", as the experts hosted by the witness alone are too many for fewer"
        elif proven < layers:
            text += ", where it attains a lower bound"
        return text

    @property
    def rule(self) -> Dispatch:
        """Old name of ``dispatch``."""
        deprecated("Routing.rule", "Routing.dispatch")
        return self.dispatch

    def __repr__(self) -> str:
        return (
            f"Routing(dispatch={self.dispatch!r}, layers={self.plan.layers}, "
            f"max_activated={self.max_activated.max()}, max_tokens={self.max_tokens.max():.6g})"
        )


@renamed(rule="dispatch")
def route(
    plan: Plan,
    tokens: npt.ArrayLike | Trace,
    dispatch: Dispatch = "exact",
    *,
    cost: tuple[float, float, float, float] = DECODE_COST,
) -> Routing:
    """Choose the copies that serve one batch, all layers at once.

    Parameters
    ----------
    plan : Plan
    tokens : array_like [layers, experts] or Trace
        Tokens of the batch that chose each expert, or the tokens themselves.
    dispatch : {"even", "hash", "nearest", "nearest-even", "metro", "exact", "lp", "mixed", "cover"}
        ``even``: every copy the same share. ``hash``: a hash of the token's index chooses, as in
        vLLM. ``nearest``: a copy on the token's GPU, else the first in its node, else each in
        turn, as SGLang's static dispatch. ``nearest-even``: evenly the copies on the token's GPU,
        else those in its node, else all, as SGLang's dynamic dispatch with an all-to-all backend.
        ``metro``: the least activated host, expert by expert,
        as METRO has it; by id, so that it is deterministic. ``exact``: the fewest activated copies
        on the fullest GPU. ``lp``: the fewest tokens on the fullest GPU. ``mixed``: the least time
        of the slowest GPU, max(a + b * activated, c + d * tokens), by search.
        ``metro`` and ``exact`` send all tokens of an expert to one copy. ``cover``: every token to
        the fewest nodes that host its experts (a set cover, exact), its own among them where that
        takes no more; copies there evenly. It needs a `Trace`. Every GPU holds the same share of
        the tokens.
    cost : tuple of 4 floats
        a, b, c and d of ``mixed``, at least 0; a and c are times of a GPU, b and d those of a copy
        and a token. Other rules do not look at it.

    Returns
    -------
    Routing

    Raises
    ------
    InputError
        Tokens of another shape than the plan's, negative or not finite; an unknown rule; counts
        where the rule asks for tokens; a cost below 0.

    References
    ----------
    METRO, arXiv 2512.09277. TEMPO, arXiv 2608.13057.

    Examples
    --------
    >>> import craftopt as co
    >>> plan = co.Plan.from_phy2log([[0, 1, 0, 2]], gpus=2)
    >>> co.route(plan, [[6, 2, 4]], "even").activated
    array([[2, 2]])
    >>> routing = co.route(plan, [[6, 2, 0]], "exact")
    >>> routing.activated, routing.tokens[0].tolist()
    (array([[1, 1]]), [[0.0, 6.0], [2.0, 0.0], [0.0, 0.0]])
    >>> routing.explanation.split("; ")[1].split(",")[0]
    'optimal in 1 of 1 layers'
    """
    dispatch = choice("dispatch", dispatch, DISPATCHES)
    if len(cost) != 4 or not all(0 <= rate < np.inf for rate in cost):
        raise InputError(f"cost={cost}; pass four finite numbers of at least 0: a, b, c, d")
    if dispatch not in COUNT_DISPATCHES:
        return _route_tokens(plan, tokens, dispatch)
    counts = tokens.batches(tokens.tokens).tokens[0] if isinstance(tokens, Trace) else tokens
    return _route(plan, _valid_batch(plan, counts), dispatch, cost)


def _route_tokens(plan: Plan, trace: npt.ArrayLike | Trace, dispatch: Dispatch) -> Routing:
    from craftopt.routing.cover import cover_layer  # noqa: PLC0415 (it loads numba)
    from craftopt.routing.visits import tokens_of  # noqa: PLC0415

    if not isinstance(trace, Trace):
        raise InputError(f"dispatch={dispatch!r} asks which experts a token chose; pass a Trace")
    plan.check_layers(trace, "trace")
    loads = np.zeros((plan.layers, plan.gpus))
    shares = []
    for layer in range(plan.layers):
        _, loads[layer : layer + 1], share = cover_layer(plan, layer, tokens_of(trace, layer))
        shares.append(share)
    share = np.concatenate(shares)
    serving = np.zeros(plan.copies.shape, dtype=bool)
    serving[np.nonzero(plan.copies)] = share > 0
    return Routing(
        plan,
        dispatch,
        read_only(share),
        read_only(serving.sum(axis=1, dtype=np.int64)),
        read_only(loads),
    )


def _route(
    plan: Plan, batch: FloatArray, dispatch: Dispatch, cost: tuple[float, float, float, float]
) -> Routing:
    from craftopt.routing.hosts import Served, hosts_of  # noqa: PLC0415

    hosts = hosts_of(plan)
    share = np.zeros(hosts.gpu.size)
    activated = np.zeros((plan.layers, plan.gpus), dtype=np.int64)
    loads = np.zeros((plan.layers, plan.gpus))
    filled = Served(share, activated, loads)
    value: FloatArray | None = None
    bound: FloatArray | None = None
    witness: BoolArray | None = None
    if dispatch in ("even", "hash", "nearest", "nearest-even"):
        from craftopt.routing import fixed  # noqa: PLC0415 (it loads numba)

        gpus_per_node = plan.gpus // plan.nodes
        if dispatch == "nearest":
            fixed.serve_nearest(hosts.first, hosts.gpu, batch, gpus_per_node, *filled)
        elif dispatch == "nearest-even":
            fixed.serve_nearest_evenly(
                hosts.first, hosts.gpu, hosts.copies, batch, gpus_per_node, *filled
            )
        else:
            serve = fixed.serve_evenly if dispatch == "even" else fixed.serve_by_hash
            serve(hosts.first, hosts.gpu, hosts.copies, batch, *filled)
    elif dispatch in ("metro", "exact"):
        from craftopt.routing.activated import serve_by_one_copy  # noqa: PLC0415

        exact = dispatch == "exact"
        witness = np.zeros((plan.layers, plan.gpus), dtype=bool)
        serve_by_one_copy(hosts, batch, exact, filled, witness)
        if exact:
            # An expert served by a GPU of the witness has all its hosts in it.
            inside, size = (activated * witness).sum(axis=1), witness.sum(axis=1)
        else:
            inside, size = activated.sum(axis=1), np.int64(plan.gpus)
            witness = None
        value, bound = activated.max(axis=1).astype(np.float64), np.ceil(inside / size)
    elif dispatch == "lp":
        from craftopt.routing.tokens import split_tokens  # noqa: PLC0415

        bound = np.zeros(plan.layers)
        split_tokens(hosts.first, hosts.gpu, batch, *filled, bound)
        value = loads.max(axis=1)
    else:
        from craftopt.routing.mixed import serve_mixed  # noqa: PLC0415

        fewest_copies = _route(plan, batch, "exact", cost)
        fewest_tokens = _route(plan, batch, "lp", cost)
        level = np.zeros(plan.layers) if fewest_tokens.bound is None else fewest_tokens.bound
        share[:] = fewest_copies.share
        activated[:] = fewest_copies.activated
        loads[:] = fewest_copies.loads
        value, bound = np.zeros(plan.layers), np.zeros(plan.layers)
        serve_mixed(hosts, batch, cost, fewest_tokens.share, level, filled, value, bound)
    for array in (share, activated, loads, value, bound, witness):
        if array is not None:
            array.setflags(write=False)
    return Routing(plan, dispatch, share, activated, loads, value, bound, witness)


def _valid_batch(plan: Plan, tokens: npt.ArrayLike) -> FloatArray:
    batch = as_array("tokens", tokens)
    if batch.shape != (plan.layers, plan.experts) or batch.dtype.kind not in "iuf":
        raise InputError(
            f"tokens has shape {batch.shape} and type {batch.dtype}; the plan takes numbers "
            f"[layers, experts] = {(plan.layers, plan.experts)}, one batch"
        )
    # A view that is always read-only: one kind of array, so that kernels are compiled once.
    batch = read_only(np.ascontiguousarray(batch, dtype=np.float64).view())
    # The least is not a number where any is not.
    if not (batch.min() >= 0 and batch.max() < np.inf):
        layer, expert = np.argwhere(~((batch >= 0) & (batch < np.inf)))[0]
        raise InputError(
            f"tokens[{layer}, {expert}] is {batch[layer, expert]}; token counts must be finite "
            "and at least 0"
        )
    return batch


def check_witness(routing: Routing, tokens: npt.ArrayLike) -> None:
    """Check that an ``exact`` routing serves the batch and cannot be better: whole numbers only.

    Nothing is taken from the routing but its choice and its witness: the activated copies are
    counted again from the plan.

    Parameters
    ----------
    routing : Routing
    tokens : array_like [layers, experts]
        The batch.

    Raises
    ------
    CraftoptError
        A choice or a proof that does not hold; the message names the layer.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.routing import check_witness
    >>> plan = co.Plan.from_phy2log([[0, 1, 0, 2]], gpus=2)
    >>> check_witness(co.route(plan, [[6, 2, 4]], "exact"), [[6, 2, 4]])
    """
    plan, witness = routing.plan, routing.witness
    batch = _valid_batch(plan, tokens)
    if witness is None:
        raise CraftoptError(
            f"a routing by dispatch={routing.dispatch!r} has no witness; only exact has"
        )
    for layer in range(plan.layers):
        name = f"layer {layer} (the model's {plan.layer_ids[layer]})"
        counts = [0] * plan.gpus
        inside = 0
        for expert in np.flatnonzero(batch[layer]).tolist():
            hosts = set(np.flatnonzero(plan.copies[layer, expert]).tolist())
            serving = np.flatnonzero(routing.tokens[layer, expert]).tolist()
            if len(serving) != 1 or serving[0] not in hosts:
                raise CraftoptError(f"{name}: expert {expert} is not served by one of its copies")
            if routing.tokens[layer, expert, serving[0]] != batch[layer, expert]:
                raise CraftoptError(f"{name}: expert {expert} is served with other tokens")
            counts[serving[0]] += 1
            inside += all(witness[layer, gpu] for gpu in hosts)
        size = int(witness[layer].sum())
        if counts != routing.activated[layer].tolist():
            raise CraftoptError(f"{name}: other copies are activated than is said")
        if max(counts) > 0 and inside <= (max(counts) - 1) * size:
            raise CraftoptError(
                f"{name}: {inside} experts are hosted by the {size} GPUs of the witness alone, "
                f"which is not too many for {max(counts) - 1} on each"
            )
