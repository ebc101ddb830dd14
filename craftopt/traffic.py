"""What GPUs send: the nodes and GPUs that a token visits under a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from craftopt.coactivation import Coactivation, name_error, standard_error
from craftopt.display import Displayed
from craftopt.errors import InputError
from craftopt.loads import FloatArray, IntArray, Loads, as_array, read_only
from craftopt.plan import Copies, Plan
from craftopt.traces import Trace

if TYPE_CHECKING:
    from craftopt.routing.visits import Visits

# Rules under which a token's nodes follow from its experts and its home alone.
TRAFFIC_RULES = ("even", "nearest", "nearest-even", "cover")

NOT_MEASURED = "not measured; pass a trace or pair counts"


@dataclass(frozen=True, eq=False)
class Traffic(Displayed):
    """Say how many nodes and GPUs a token visits: what an all-to-all with deduplication sends.

    A token *visits* a node that serves at least one of its experts: there it is sent once. All
    figures are per token, means over tokens; those over windows and layers weigh every window by
    its tokens.

    Parameters
    ----------
    tokens : float64 [windows, layers]
        Tokens with at least one expert.
    nodes, remote : float64 [windows, layers]
        Nodes that a token visits, and those without its own (its *home*).
    busiest_node : float64 [windows, layers]
        Number of nodes times the share of the tokens that reach the busiest one: what ``nodes``
        would be if all received as many. At least ``nodes``.
    gpus, busiest_gpu : float64 [windows, layers]
        The same for GPUs.
    node_matrix : float64 [nodes, nodes]
        Share of the tokens at home in a node (row) that visit a node (column), over all layers.
    standard_error : float
        Of a layer's nodes per token, as far as the tokens are a sample.
    estimated : bool
        Whether from pair counts, so that only the number of assignments on a node and of pairs
        there are exact.
    windows : str
        What the windows are.

    Examples
    --------
    Experts 0 and 1 are on one node, 2 and 3 on the other:

    >>> import craftopt as co
    >>> plan = co.Plan([[[1, 0], [1, 0], [0, 1], [0, 1]]], nodes=2)
    >>> trace = co.Trace([[[0, 1]], [[0, 1]], [[1, 2]]], experts=4)
    >>> traffic = co.evaluate(plan, trace.batches(3), trace=trace).traffic
    >>> traffic.nodes_per_token, traffic.critical_nodes
    (1.3333333333333333, 2.0)
    >>> traffic.node_matrix.round(2).tolist()
    [[1.0, 0.33], [1.0, 0.33]]
    """

    tokens: FloatArray
    nodes: FloatArray
    remote: FloatArray
    busiest_node: FloatArray
    gpus: FloatArray
    busiest_gpu: FloatArray
    node_matrix: FloatArray
    standard_error: float
    estimated: bool
    windows: str

    @property
    def nodes_per_token(self) -> float:
        """Nodes that a token visits, its own included."""
        return self._mean(self.nodes)

    @property
    def remote_nodes(self) -> float:
        """Nodes that a token visits beside its own: what a GPU sends between nodes."""
        return self._mean(self.remote)

    @property
    def critical_nodes(self) -> float:
        """Tokens that the busiest node of each window receives, in nodes per token.

        The time of the exchange between nodes; at least `nodes_per_token`, and the same where all
        nodes receive as many.
        """
        return self._mean(self.busiest_node)

    @property
    def gpus_per_token(self) -> float:
        """GPUs that a token visits."""
        return self._mean(self.gpus)

    @property
    def critical_gpus(self) -> float:
        """Tokens that the fullest GPU of each window receives, in GPUs per token."""
        return self._mean(self.busiest_gpu)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, for JSON."""
        return {
            "nodes_per_token": self.nodes_per_token,
            "remote_nodes": self.remote_nodes,
            "critical_nodes": self.critical_nodes,
            "gpus_per_token": self.gpus_per_token,
            "critical_gpus": self.critical_gpus,
            "node_matrix": self.node_matrix.tolist(),
            "standard_error": self.standard_error,
            "estimated": self.estimated,
            "windows": self.windows,
        }

    def summary(self) -> dict[str, str]:
        """Return the figures in words, for a table."""
        kind = "estimated from pair counts" if self.estimated else "exact for the trace"
        return {
            "nodes per token": f"{self.nodes_per_token:.4f}",
            "remote nodes": f"{self.remote_nodes:.4f}",
            "critical nodes": f"{self.critical_nodes:.4f} (the busiest of each window)",
            "GPUs per token": f"{self.gpus_per_token:.4f}",
            "critical GPUs": f"{self.critical_gpus:.4f}",
            "traffic": f"{kind}; windows: {self.windows}",
            "standard error": name_error(self.standard_error),
        }

    def _mean(self, figure: FloatArray) -> float:
        total = float(self.tokens.sum())
        return float((figure * self.tokens).sum()) / total if total > 0 else 0.0

    def __repr__(self) -> str:
        about = ", estimated" if self.estimated else ""
        return (
            f"Traffic(nodes_per_token={self.nodes_per_token:.4f}, "
            f"critical_nodes={self.critical_nodes:.4f}, "
            f"standard_error={self.standard_error:.4f}{about})"
        )


def traffic_summary(traffic: Traffic | None) -> dict[str, str]:
    """Return traffic in words, or that there is none to tell of."""
    return {"traffic": NOT_MEASURED} if traffic is None else traffic.summary()


def traffic_of_trace(
    plan: Plan,
    trace: Trace,
    served: Loads,
    rule: str = "even",
    homes: npt.ArrayLike | None = None,
) -> tuple[Traffic, FloatArray | None]:
    """Measure the traffic of a token trace, exactly.

    Windows are those of ``served`` where they were cut from the trace (`Trace.windows_of`), else
    consecutive batches of the trace with as many tokens as a served window has on average.

    Parameters
    ----------
    plan : Plan
    trace : Trace
        Of the plan's layers and experts.
    served : Loads
        The windows that the plan is scored on.
    rule : {"even", "nearest", "nearest-even", "cover"}
    homes : array_like of int, shape [tokens], optional
        GPU that holds each token; every GPU equally likely by default.

    Returns
    -------
    Traffic
    float64 [windows, layers, gpus] or None
        For ``cover``, the loads of the GPUs.

    Raises
    ------
    InputError
        A trace or homes that do not match; for ``cover``, windows that are not the trace's.
    """
    from craftopt.routing.cover import cover_layer  # noqa: PLC0415 (they load numba)
    from craftopt.routing.visits import count_of, layer_visits, tokens_of  # noqa: PLC0415

    plan.check_layers(trace, "trace")
    window, windows, name = token_windows(trace, served)
    if rule == "cover" and name != SERVED_WINDOWS:
        raise InputError(
            "dispatch='cover' serves tokens one by one, so the windows must be cut from the "
            "trace; pass loads such as trace.batches(1024)"
        )
    home = valid_homes(homes, trace.tokens, plan.gpus)
    counts = np.empty((windows, plan.layers))
    loads = np.zeros((windows, plan.layers, plan.gpus)) if rule == "cover" else None
    found = []
    for layer in range(plan.layers):
        tokens = tokens_of(trace, layer, window, windows, home)
        counts[:, layer] = count_of(tokens.window, windows)
        if loads is None:
            found.append(layer_visits(plan, layer, tokens, rule))
        else:
            visits, loads[:, layer], _ = cover_layer(plan, layer, tokens)
            found.append(visits)
    return _assembled(found, counts, estimated=False, windows=name), loads


def traffic_of_pairs(
    plan: Plan, pairs: Coactivation, served: Loads, loads: FloatArray, rule: str = "even"
) -> Traffic:
    """Estimate the traffic from pair counts.

    Known are the assignments that a node serves per token, in every window from the loads, and the
    pairs of them that one token chose, over all windows. A token's assignments on a node are taken
    as beta-binomial with ``top_k`` trials: in a window their mean is the known one, and the
    correlation of two trials is that which gives the known pairs over all windows. The probability
    of none is the share of the tokens that stay away.

    Parameters
    ----------
    plan : Plan
    pairs : Coactivation
        Of the plan's layers and experts.
    served : Loads
        The windows that the plan is scored on.
    loads : float64 [windows, layers, gpus]
        The GPUs' loads in these windows, under the same rule.
    rule : {"even", "nearest", "nearest-even"}

    Raises
    ------
    InputError
        Pair counts that do not match; a rule that asks for tokens.
    """
    from craftopt.routing.visits import Visits  # noqa: PLC0415 (it loads numba)

    plan.check_layers(pairs, "pair counts")
    if rule == "cover":
        raise InputError("dispatch='cover' asks which experts a token chose; pass trace=")
    counts = _window_tokens(pairs, served)
    found = []
    for layer in range(plan.layers):
        tokens = counts[:, layer]
        by_node, mean, inside = _visits_of_pairs(
            plan, layer, pairs, tokens, loads[:, layer], plan.nodes, rule
        )
        by_gpu, _, _ = _visits_of_pairs(
            plan, layer, pairs, tokens, loads[:, layer], plan.gpus, rule
        )
        chance = _chance_of_any(
            mean / pairs.top_k, _correlation(mean, inside, pairs.top_k), pairs.top_k
        )
        by_home = np.broadcast_to(chance, (plan.nodes, plan.nodes))
        own = np.trace(by_home) / max(float(by_home.sum()), 1e-300)
        found.append(Visits(by_node, by_gpu, by_home, by_node.sum(axis=1) * own))
    return _assembled(found, counts, estimated=True, windows=SERVED_WINDOWS, seen=pairs.tokens)


class BusiestNodes:
    """Measure what the busiest node of each window receives, for one placement after another.

    The figures of `Traffic.busiest_node`, layer by layer and nothing else.

    Parameters
    ----------
    source : Trace or Coactivation
    served : Loads
        The windows, as for `traffic_of_trace` and `traffic_of_pairs`.
    nodes : int
    rule : {"even", "nearest-even"}
    """

    def __init__(self, source: Trace | Coactivation, served: Loads, nodes: int, rule: str) -> None:
        from craftopt.routing.visits import count_of, tokens_of  # noqa: PLC0415 (loads numba)

        self._source, self._nodes, self._rule = source, nodes, rule
        if isinstance(source, Coactivation):
            self._tokens = _window_tokens(source, served)
            return
        window, windows, _ = token_windows(source, served)
        self._traced = [tokens_of(source, layer, window, windows) for layer in range(source.layers)]
        counts = [count_of(tokens.window, windows) for tokens in self._traced]
        self._tokens = np.stack(counts, axis=1).astype(np.float64)

    @property
    def tokens(self) -> FloatArray:
        """Tokens with at least one expert, float64 [windows, layers]."""
        return self._tokens

    def of_layer(self, layer: int, copies: Copies, loads: FloatArray) -> FloatArray:
        """Measure a placement of one layer, float64 [windows].

        Parameters
        ----------
        layer : int
            Position.
        copies : uint8 [experts, gpus]
        loads : float64 [windows, gpus]
            The GPUs' loads in the served windows, under the same rule.
        """
        from craftopt.routing.visits import node_visits  # noqa: PLC0415 (it loads numba)

        # Of all layers of the source, this one is placed so: the others are not looked at.
        plan = Plan(copies[np.newaxis], nodes=self._nodes)
        if isinstance(self._source, Coactivation):
            tokens = self._tokens[:, layer]
            by_node, _, _ = _visits_of_pairs(
                plan, 0, self._source.select([layer]), tokens, loads, self._nodes, self._rule
            )
        else:
            by_node = node_visits(plan, 0, self._traced[layer], self._rule)
        busiest: FloatArray = by_node.max(axis=1) * self._nodes
        return busiest


SERVED_WINDOWS = "the served windows"


def _window_tokens(pairs: Coactivation, served: Loads) -> FloatArray:
    """Return the tokens of the windows, [windows, layers], from the choices of a token."""
    choices = pairs.assignments.sum(axis=1) / np.maximum(pairs.tokens, 1)
    tokens: FloatArray = served.tokens.sum(axis=2) / np.where(choices > 0, choices, np.inf)
    return tokens


def _visits_of_pairs(
    plan: Plan,
    layer: int,
    pairs: Coactivation,
    tokens: FloatArray,
    loads: FloatArray,
    targets: int,
    rule: str,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Estimate the visits of one layer's targets, which are nodes or GPUs.

    Parameters
    ----------
    tokens : float64 [windows]
    loads : float64 [windows, gpus]

    Returns
    -------
    visits : float64 [windows, targets]
        Share of the tokens.
    mean, inside : float64 [sources, targets]
        Assignments per token that a target serves, and pairs of them.
    """
    from craftopt.routing.visits import count_pairs, draws_of  # noqa: PLC0415

    draws = draws_of(plan, layer, plan.gpus // targets, rule)
    sources = (draws.first.size - 1) // plan.experts
    inside, assigned = np.zeros((2, sources, targets))
    count_pairs(pairs.pairs[layer], pairs.assignments[layer], draws, inside, assigned)
    seen = max(int(pairs.tokens[layer]), 1)
    mean, inside = assigned / seen, inside / seen
    per_token = loads / np.where(tokens > 0, tokens, np.inf)[:, np.newaxis]
    of_target = per_token.reshape(len(tokens), targets, -1).sum(axis=2)
    return _window_visits(of_target, tokens, mean, inside, pairs.top_k), mean, inside


def _window_visits(
    loads: FloatArray, tokens: FloatArray, mean: FloatArray, inside: FloatArray, trials: int
) -> FloatArray:
    """Estimate the share of a window's tokens that visits a target, [windows, targets].

    Parameters
    ----------
    loads : float64 [windows, targets]
        Assignments per token.
    tokens : float64 [windows]
    mean, inside : float64 [sources, targets]
        Assignments and pairs per token where pairs were counted.
    """
    weight = (tokens / max(float(tokens.sum()), 1e-300))[:, np.newaxis]
    p = loads / trials
    between = (weight * p**2).sum(axis=0) - (weight * p).sum(axis=0) ** 2
    alike = _correlation(mean.mean(axis=0), inside.mean(axis=0), trials, between)
    return _chance_of_any(p, alike, trials)


def _correlation(
    mean: FloatArray, inside: FloatArray, trials: int, between: FloatArray | float = 0.0
) -> FloatArray:
    """Return the correlation of two trials that gives these pairs per token.

    Parameters
    ----------
    between : float64
        Variance of the probability of a trial from window to window, which makes pairs as well.
    """
    p = mean / trials
    excess = 2 * inside / max(trials * (trials - 1), 1) - p**2 - between
    spread = p * (1 - p) - between
    return np.divide(excess, spread, out=np.zeros_like(p), where=spread > 1e-12).clip(-1.0, 1.0)


def _chance_of_any(p: FloatArray, alike: FloatArray, trials: int) -> FloatArray:
    """Return the probability that a beta-binomial number of ``trials`` is not 0.

    Parameters
    ----------
    p, alike : float64
        Probability of a trial, and correlation of two. Where that is negative, the product is
        that of drawing without putting back (Polya's urn), down to 0.
    """
    not_this = 1 - p.clip(0.0, 1.0)
    none = not_this
    for trial in range(1, trials):
        left = (not_this * (1 - alike) + trial * alike).clip(0.0)
        below = 1 + (trial - 1) * alike
        none = none * np.divide(left, below, out=np.zeros_like(left), where=below > 0).clip(0, 1)
    return 1 - none


def _assembled(
    found: list[Visits],
    counts: FloatArray,
    *,
    estimated: bool,
    windows: str,
    seen: IntArray | None = None,
) -> Traffic:
    """Put the layers together; ``counts`` are tokens, [windows, layers]."""

    def table(columns: list[FloatArray]) -> FloatArray:
        return read_only(np.stack(columns, axis=1))

    weight = counts.sum(axis=0)
    matrix = sum(visits.by_home * part for visits, part in zip(found, weight, strict=True))
    if seen is None:
        seen = weight
    return Traffic(
        tokens=read_only(counts),
        nodes=table([visits.by_node.sum(axis=1) for visits in found]),
        remote=table([visits.by_node.sum(axis=1) - visits.at_home for visits in found]),
        busiest_node=table([v.by_node.max(axis=1) * v.by_node.shape[1] for v in found]),
        gpus=table([visits.by_gpu.sum(axis=1) for visits in found]),
        busiest_gpu=table([v.by_gpu.max(axis=1) * v.by_gpu.shape[1] for v in found]),
        node_matrix=read_only(np.asarray(matrix) / max(float(weight.sum()), 1.0)),
        standard_error=standard_error(int(seen.min())),
        estimated=estimated,
        windows=windows,
    )


def token_windows(trace: Trace, served: Loads) -> tuple[IntArray, int, str]:
    """Return the window of every token, -1 = none, how many there are, and what they are."""
    window = trace.windows_of(served)
    if window is not None:
        return window, served.windows, SERVED_WINDOWS
    size = round(served.tokens.sum(axis=2).mean() / trace.topk_ids.shape[2])
    size = min(max(size, 1), trace.tokens)
    windows = -(-trace.tokens // size)
    name = f"{windows} batch{'es' if windows > 1 else ''} of {size} tokens"
    return np.arange(trace.tokens) // size, windows, name


def valid_homes(homes: npt.ArrayLike | None, tokens: int, gpus: int) -> IntArray:
    """Return the GPU that holds each token, -1 = all equally likely."""
    if homes is None:
        return np.full(tokens, -1, dtype=np.int64)
    column = as_array("homes", homes)
    if column.dtype.kind not in "iu" or column.shape != (tokens,):
        raise InputError(
            f"homes has shape {column.shape} and type {column.dtype}; "
            f"pass the GPU of every token of the trace, shape ({tokens},)"
        )
    if column.min() < 0 or column.max() >= gpus:
        raise InputError(
            f"homes holds {column.min()}..{column.max()}; GPUs are numbered 0..{gpus - 1}"
        )
    return column.astype(np.int64)
