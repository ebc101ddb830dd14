"""Deployment and workload: every constant of the serving model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from dataclasses import replace as dataclass_replace
from typing import Any, Literal, get_args

from craftopt.errors import InputError, choice, divide_gpus, number, unknown, whole
from craftopt.serving.facts import BYTES, Gpu, Model, bytes_of

Exchange = Literal["all-to-all", "all-gather"]

GIB = 2.0**30
# Goodputs this close, relative, are equal: the model is not that good.
TIE = 0.02

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
    exchange : {"all-to-all", "all-gather"}
        How tokens come to the experts: sent to the GPUs that they need after top-k, or all of
        them to all GPUs before it (METRO). They come back all-to-all.
    exchange_dtype : str, optional
        Dtype of tokens on their way to the experts; fp8 where experts are, else bf16. They
        come back in bf16.
    exchange_latency : float
        Seconds that an exchange takes beyond its bytes; two per layer.
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

    def link(self, name: str) -> float:
        """Return the bytes per second that ``node_link`` or ``cluster_link`` reaches.

        Raises
        ------
        InputError
            The GPU's link is not known.
        """
        speed = getattr(self.gpu, name)
        if speed is None:
            raise InputError(
                f"the {name} of {self.gpu.name} is not known; pass a Gpu with one: "
                f"gpu.replace({name}=bytes_per_second), or a file of facts"
            )
        return float(speed) * self.link_efficiency

    def traffic_price(self) -> TrafficPrice:
        """Price a node that a token visits, where exchange and computation do not overlap.

        Raises
        ------
        InputError
            The link between nodes, or the arithmetic, of the GPU is not known.

        Examples
        --------
        >>> from craftopt.serving import Deployment, find_gpu, find_model
        >>> spread = Deployment(find_model("deepseek-r1"), find_gpu("h100"), gpus=64, nodes=8)
        >>> round(spread.traffic_price().price, 2)
        0.66
        """
        model, link = self.model, self.link("cluster_link")
        reason = ""
        if self.nodes == 1:
            reason = "all GPUs are in one node"
        elif self.gpu.node_link is not None and link >= self.link("node_link"):
            reason = "nodes are linked as fast as the GPUs of a node"
        # Before an all-gather nobody knows which nodes a token needs: it visits all.
        there = 0.0 if self.exchange == "all-gather" else bytes_of(self.exchange_kind)
        return TrafficPrice(
            remote=1.0 - 1.0 / self.nodes,
            dispatch_bytes=model.hidden_width * there,
            combine_bytes=model.hidden_width * bytes_of("bf16"),
            link=link,
            flops=model.top_k * 2.0 * model.parameters_per_expert,
            compute=self.gpu.peak(self.expert_kind) * self.compute_efficiency,
            reason=reason,
        )

    @property
    def exchange_kind(self) -> str:
        """Dtype of tokens on their way to the experts."""
        return self.exchange_dtype or ("fp8" if self.expert_kind == "fp8" else "bf16")


@dataclass(frozen=True)
class TrafficPrice:
    """Price a node that a token visits, in the time of a mean GPU load, and show every term.

    Both times are per token that one GPU holds: at full load it computes as many tokens' choices
    as it holds tokens. So the price depends neither on the batch nor on the number of GPUs.

    Parameters
    ----------
    remote : float
        Share of a visit that crosses nodes: 1 - 1 / nodes, homes being equally likely.
    dispatch_bytes, combine_bytes : float
        Of one token on its way to a node, and back.
    link : float
        Bytes per second that a GPU reaches between nodes.
    flops : float
        Of all choices of a token in a layer.
    compute : float
        FLOP/s that a GPU reaches.
    reason : str
        Why traffic counts for nothing; empty where it counts.
    """

    remote: float
    dispatch_bytes: float
    combine_bytes: float
    link: float
    flops: float
    compute: float
    reason: str = ""

    @property
    def exchange_seconds(self) -> float:
        """Seconds that a visit of one more node takes."""
        return self.remote * (self.dispatch_bytes + self.combine_bytes) / self.link

    @property
    def compute_seconds(self) -> float:
        """Seconds that the mean GPU computes."""
        return self.flops / self.compute

    @property
    def price(self) -> float:
        """Mean GPU loads per node visited, what `Problem` takes as ``traffic``; 0 for a reason."""
        return 0.0 if self.reason else self.exchange_seconds / self.compute_seconds


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
