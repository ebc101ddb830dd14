"""Deployment and workload: every constant of the serving model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from dataclasses import replace as dataclass_replace
from typing import Any, Literal, get_args

from craftopt.errors import InputError, choice, divide_gpus, number, unknown, whole
from craftopt.serving.facts import BYTES, Gpu, Model, bytes_of

Exchange = Literal["all-to-all", "low-latency", "all-gather"]

GIB = 2.0**30
# Goodputs this close, relative, are equal: the model is not that good.
TIE = 0.02
# The most overlap that a price counts: were the shorter of two all hidden, it would cost nothing,
# and which one is shorter changes from layer to layer.
MOST_OVERLAP = 0.9

_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(
        ("gpus", "nodes", "attention_gpus", "prefill_tokens"),
        lambda name, value: whole(name, value, 1),
    ),
    **dict.fromkeys(
        ("compute_efficiency", "bandwidth_efficiency", "link_efficiency"),
        lambda name, value: number(name, value, above=0),
    ),
    **dict.fromkeys(
        ("reserve", "reserve_per_gpu", "exchange_latency", "layer_overhead", "step_overhead"),
        lambda name, value: number(name, value, least=0),
    ),
    **dict.fromkeys(
        ("expert_dtype", "weight_dtype", "kv_dtype", "exchange_dtype"),
        lambda name, value: None if value is None else choice(name, value, BYTES),
    ),
    "exchange": lambda name, value: choice(name, value, get_args(Exchange)),
    "overlap": lambda name, value: number(name, value, least=0, most=1),
}


@dataclass(frozen=True)
class Deployment:
    """Say how a model is spread over GPUs, and how well these do what their data sheets say.

    Every expert layer is spread over all ``gpus``; attention runs in groups of
    ``attention_gpus`` that split the heads, each group serving its own sequences.

    Parameters
    ----------
    model : Model
    gpu : Gpu
    gpus, nodes : int
    expert_dtype : str, optional
        Dtype of the routed experts; as published by default.
    weight_dtype : str, optional
        Dtype of all other weights; fp8 where the experts are fp8, else bf16.
    kv_dtype : str
    attention_gpus : int
        GPUs of an attention group (tensor parallelism within data-parallel attention). Grouped
        queries split their cache over the group; a latent cache is whole on each of its GPUs.
    reserve, reserve_per_gpu : float
        Bytes of every GPU that neither weights nor cache may take: activations, graphs and
        buffers; and what grows with the number of GPUs, their communication. By default 10 GiB
        and 128 MiB per GPU, after SGLang's own rule for ``mem_fraction_static``.
    prefill_tokens : int
        Prompt tokens that an attention group takes in one step.
    prefill_elsewhere : bool
        Whether other GPUs prefill, so that these only decode.
    compute_efficiency, bandwidth_efficiency, link_efficiency : float
        Share of the data sheet's FLOP/s, memory bandwidth and link bandwidth that is reached.
    exchange : {"all-to-all", "low-latency", "all-gather"}
        How tokens come to the experts: after top-k, once to every node and GPU that needs them
        (DeepEP's normal kernels); after top-k, once per expert, straight to its GPU (its
        low-latency kernels); or all to all GPUs before top-k (METRO). They come back the same
        way, after all-gather as in all-to-all.
    exchange_dtype : str, optional
        Dtype of tokens on their way to the experts; fp8 where experts are, else bf16. They
        come back in bf16.
    exchange_latency : float
        Seconds that an exchange takes beyond its bytes; two per layer.
    overlap : float
        Share of the shorter of exchange and expert computation that hides behind the longer, from
        0 (one after the other) to 1, as with two batches in turn.
    layer_overhead, step_overhead : float
        Seconds per layer and per step for all that is not modelled: launches, scheduling.

    Raises
    ------
    InputError
        A value outside its limits; the message says value, limit and remedy.

    Examples
    --------
    >>> from craftopt.serving import Deployment, find_gpu, find_model
    >>> spread = Deployment(find_model("deepseek-r1"), find_gpu("h200"), gpus=64, nodes=8)
    >>> spread.groups, spread.replace(attention_gpus=8).groups
    (64, 8)
    """

    model: Model
    gpu: Gpu
    gpus: int
    nodes: int = 1
    expert_dtype: str | None = None
    weight_dtype: str | None = None
    kv_dtype: str = "bf16"
    attention_gpus: int = 1
    reserve: float = 10 * GIB
    reserve_per_gpu: float = GIB / 8
    prefill_tokens: int = 4096
    prefill_elsewhere: bool = False
    compute_efficiency: float = 0.5
    bandwidth_efficiency: float = 0.7
    link_efficiency: float = 0.8
    exchange: Exchange = "all-to-all"
    exchange_dtype: str | None = None
    exchange_latency: float = 20e-6
    overlap: float = 0.0
    layer_overhead: float = 20e-6
    step_overhead: float = 1e-3

    def __post_init__(self) -> None:
        for name, kind in (("model", Model), ("gpu", Gpu)):
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise InputError(
                    f"{name}={value!r} is no {kind.__name__}; find_{name} looks one up by name"
                )
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        share = divide_gpus(self.gpus, self.nodes)
        if share % self.attention_gpus:
            raise InputError(
                f"attention_gpus={self.attention_gpus} does not divide a node's "
                f"{share} GPUs; pass a divisor"
            )
        if not isinstance(self.prefill_elsewhere, bool):
            raise InputError(f"prefill_elsewhere={self.prefill_elsewhere!r}; pass True or False")

    def replace(self, **changes: Any) -> Deployment:
        """Return the same deployment with some constants changed, checked again."""
        check_names(changes, [entry.name for entry in fields(self)])
        return dataclass_replace(self, **changes)

    @property
    def domains(self) -> int:
        """Groups of GPUs joined by fast links: the nodes, or fewer where these links go on."""
        joined = self.gpu.domain
        return self.nodes if joined is None else min(self.nodes, -(-self.gpus // joined))

    @property
    def groups(self) -> int:
        """Attention groups: each serves sequences of its own."""
        return self.gpus // self.attention_gpus

    @property
    def expert_bytes(self) -> float:
        """Bytes of one copy of an expert."""
        return self.model.expert_bytes(self.expert_dtype)

    @property
    def expert_kind(self) -> str:
        """Dtype of the routed experts."""
        return self.expert_dtype or self.model.expert_dtype

    @property
    def weight_kind(self) -> str:
        """Dtype of all other weights."""
        return self.weight_dtype or ("fp8" if self.expert_kind == "fp8" else "bf16")

    @property
    def exchange_kind(self) -> str:
        """Dtype of tokens on their way to the experts."""
        return self.exchange_dtype or ("fp8" if self.expert_kind == "fp8" else "bf16")

    def link(self, name: str) -> float:
        """Return the bytes per second that ``node_link`` or ``cluster_link`` reaches.

        Raises
        ------
        InputError
            A link that the facts of the GPU do not have.
        """
        speed = getattr(self.gpu, name)
        if speed is None:
            raise InputError(
                f"the {name} of {self.gpu.name} is not known; pass a Gpu with one: "
                f"gpu.replace({name}=bytes_per_second), or a file of facts"
            )
        return float(speed) * self.link_efficiency

    @property
    def visit_chance(self) -> float:
        """Probability that a token needs a given node if each of its experts may be anywhere."""
        return 1 - (1 - 1 / self.domains) ** self.model.top_k

    def traffic_price(self) -> TrafficPrice:
        """Price a node that a token visits, in mean GPU loads.

        Raises
        ------
        InputError
            Several nodes and a ``cluster_link`` that is not known; nodes that are parts of the
            groups which fast links join.

        Examples
        --------
        >>> from craftopt.serving import Deployment, find_gpu, find_model
        >>> spread = Deployment(find_model("deepseek-r1"), find_gpu("h100"), gpus=64, nodes=8)
        >>> round(spread.traffic_price().price, 2)
        0.66
        >>> print(spread.replace(nodes=1).traffic_price())
        traffic has no price: all GPUs are in one node
        """
        model, reason = self.model, ""
        if self.nodes == 1:
            reason = "all GPUs are in one node"
        elif self.domains == 1:
            reason = (
                f"fast links join all {self.gpus} GPUs across the nodes: {self.gpu.name} joins "
                f"{self.gpu.domain}"
            )
        elif (self.gpu.node_link or math.inf) <= (self.gpu.cluster_link or 0):
            reason = "nodes are linked as fast as the GPUs of a node"
        elif self.exchange == "low-latency":
            reason = (
                "exchange='low-latency' sends a token once per expert, whatever their nodes; "
                "experts that gather traffic on a node would only make it busier"
            )
        elif self.domains != self.nodes:
            raise InputError(
                f"the fast links of {self.gpu.name} join the {self.gpus} GPUs in {self.domains} "
                f"groups, and visits are counted by {self.nodes} nodes; pass nodes={self.domains}"
            )
        price = TrafficPrice(
            nodes=self.domains,
            # Before an all-gather nobody knows which nodes a token needs: it visits all.
            dispatch_bytes=0.0
            if self.exchange == "all-gather"
            else model.hidden_width * bytes_of(self.exchange_kind),
            combine_bytes=model.hidden_width * bytes_of("bf16"),
            link=self.link("cluster_link") if self.domains > 1 else math.inf,
            flops=model.top_k * 2.0 * model.parameters_per_expert,
            speed=self.gpu.peak(self.expert_kind) * self.compute_efficiency,
            reason=reason,
        )
        shown = 1 - min(self.overlap, MOST_OVERLAP)
        remote_nodes = (self.domains - 1) * self.visit_chance
        longer = remote_nodes * price.remote_seconds > price.compute_seconds
        return dataclass_replace(price, overlap=1 / shown if longer else shown)


@dataclass(frozen=True)
class TrafficPrice:
    """Hold what a node that a token visits costs, in the time of a mean GPU load, term by term.

    Both times are per token that a GPU holds: with balanced loads it computes for as many tokens
    as it holds, and sends each to as many nodes as the token visits elsewhere. So the price depends
    neither on the batch nor on the number of GPUs. It is that of steps in which computing, not
    reading weights, limits the experts: prefill and large decode batches.

    Parameters
    ----------
    nodes : int
        Of whose visits 1 - 1/nodes are remote, tokens being held by all nodes alike.
    dispatch_bytes, combine_bytes : float
        Bytes of a token on its way to a node, and back, as far as they depend on the plan.
    link : float
        Bytes per second that a GPU reaches between nodes; inf where nothing is sent there.
    flops : float
        Of all choices of a token in a layer.
    speed : float
        FLOP/s that a GPU reaches.
    overlap : float
        Factor for what hides: below 1 where exchange hides behind computation, above 1 where
        computation hides behind exchange. At most 90 % is taken to hide.
    reason : str
        Why traffic has no price; empty where it has one.
    """

    nodes: int
    dispatch_bytes: float
    combine_bytes: float
    link: float
    flops: float
    speed: float
    overlap: float = 1.0
    reason: str = ""

    @property
    def remote_seconds(self) -> float:
        """Seconds that a visit of another node takes, there and back."""
        return (self.dispatch_bytes + self.combine_bytes) / self.link

    @property
    def compute_seconds(self) -> float:
        """Seconds that a token's experts compute."""
        return self.flops / self.speed

    @property
    def price(self) -> float:
        """Mean GPU loads per node visited, mu; 0 for a reason."""
        if self.reason:
            return 0.0
        remote = 1 - 1 / self.nodes
        return remote * self.remote_seconds / self.compute_seconds * self.overlap

    def to_dict(self) -> dict[str, Any]:
        """Return the price and its terms as plain values, for JSON."""
        link = None if math.isinf(self.link) else self.link
        return {**asdict(self), "link": link, "price": self.price}

    def __str__(self) -> str:
        if self.reason:
            return f"traffic has no price: {self.reason}"
        text = (
            f"a node that a token visits costs {self.price:.2f} mean GPU loads: "
            f"{1 - 1 / self.nodes:.3f} of the visits are remote on {self.nodes} nodes; "
            f"one takes {self.remote_seconds * 1e6:.3f} us ({self.dispatch_bytes:,.0f} bytes there "
            f"and {self.combine_bytes:,.0f} back at {self.link / 1e9:.1f} GB/s); a token's experts "
            f"compute {self.compute_seconds * 1e6:.3f} us ({self.flops / 1e9:.3f} GFLOP at "
            f"{self.speed / 1e12:,.0f} TFLOP/s)"
        )
        if self.overlap != 1:
            hidden = "exchange" if self.overlap < 1 else "computation"
            text += f"; times {self.overlap:.2f}, since part of the {hidden} is hidden"
        return text


@dataclass(frozen=True)
class Workload:
    """Describe requests, and how long they may wait.

    Parameters
    ----------
    input_tokens, output_tokens : int
        Of every request. Outputs of at least 2: the first comes from the prefill.
    ttft, tpot : float, optional
        Most seconds, on average, to the first token and from one token to the next; no limit
        by default.

    Examples
    --------
    >>> from craftopt.serving import Workload
    >>> Workload(input_tokens=1000, output_tokens=200).context
    1200
    """

    input_tokens: int = 4096
    output_tokens: int = 256
    ttft: float | None = None
    tpot: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("input_tokens", 1), ("output_tokens", 2)):
            object.__setattr__(self, name, whole(name, getattr(self, name), least))
        for name in ("ttft", "tpot"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, number(name, getattr(self, name), above=0))

    def replace(self, **changes: Any) -> Workload:
        """Return the same workload with some values changed, checked again."""
        check_names(changes, [entry.name for entry in fields(self)])
        return dataclass_replace(self, **changes)

    @property
    def context(self) -> int:
        """Tokens of cache that a sequence holds at its end."""
        return self.input_tokens + self.output_tokens

    @property
    def mean_context(self) -> float:
        """Tokens of cache that a sequence holds while it decodes, on average."""
        return self.input_tokens + self.output_tokens / 2


def with_constants(
    deployment: Deployment, workload: Workload, changes: Mapping[str, Any]
) -> tuple[Deployment, Workload]:
    """Change constants of either, by name."""
    of_workload = [entry.name for entry in fields(Workload)]
    check_names(changes, [entry.name for entry in fields(Deployment)] + of_workload)
    requests = {name: value for name, value in changes.items() if name in of_workload}
    rest = {name: value for name, value in changes.items() if name not in of_workload}
    return deployment.replace(**rest), workload.replace(**requests)


def check_names(names: Iterable[str], known: list[str]) -> None:
    """Refuse names of constants that are not known."""
    for name in names:
        if name not in known:
            raise unknown("constant", name, known)
