"""Facts of models and accelerators: what memory and time depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import replace as dataclass_replace
from typing import Any, Literal, get_args

from craftopt.errors import InputError, choice, number, unknown, whole

# Bytes per value, scales included: blocks of 32 values share a scale of 1 byte (fp4, mxfp4) or
# 2 (int4), of 16 a scale of 1 byte (nvfp4). The scales of fp8's 128 x 128 blocks are 0.02 % and
# left out.
BYTES: Mapping[str, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "nvfp4": 0.5 + 1 / 16,
    "int4": 0.5 + 2 / 32,
    "fp4": 0.5 + 1 / 32,
    "mxfp4": 0.5 + 1 / 32,
}
# The arithmetic that weights of a dtype run in, best first; the first that the GPU has.
_ARITHMETIC: Mapping[str, tuple[str, ...]] = {
    "fp32": ("bf16",),
    "bf16": ("bf16",),
    "fp16": ("bf16",),
    "fp8": ("fp8", "bf16"),
    "int8": ("int8", "bf16"),
    "nvfp4": ("fp4", "fp8", "bf16"),
    "int4": ("bf16",),
    "fp4": ("fp4", "fp8", "bf16"),
    "mxfp4": ("fp4", "fp8", "bf16"),
}


def bytes_of(dtype: str) -> float:
    """Return the bytes that one value takes, scales included.

    Raises
    ------
    InputError
        A dtype that `BYTES` does not list.

    Examples
    --------
    >>> from craftopt.serving.facts import bytes_of
    >>> bytes_of("bf16"), bytes_of("mxfp4")
    (2.0, 0.53125)
    """
    if dtype not in BYTES:
        raise unknown("dtype", dtype, BYTES)
    return BYTES[dtype]


Kind = Literal["gqa", "mla"]


@dataclass(frozen=True)
class Attention:
    """Describe one attention layer.

    Parameters
    ----------
    kind : {"gqa", "mla"}
        Grouped queries (multi-head attention is as many groups as heads), or DeepSeek's latent
        attention, whose cache is shared by all heads.
    heads : int
        Query heads.
    kv_heads, head_width : int
        For ``gqa``: heads that are cached, and channels per head.
    query_rank, kv_rank, nope_width, rope_width, value_width : int
        For ``mla``, as the configs have them; ``query_rank=0`` is a full-rank query.
    """

    kind: Kind
    heads: int
    kv_heads: int = 0
    head_width: int = 0
    query_rank: int = 0
    kv_rank: int = 0
    nope_width: int = 0
    rope_width: int = 0
    value_width: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", choice("attention kind", self.kind, get_args(Kind)))
        needed = ("kv_heads", "head_width") if self.kind == "gqa" else ("kv_rank", "value_width")
        for name in ("heads", *needed):
            whole(f"{self.kind} attention: {name}", getattr(self, name), 1)

    @property
    def cached_values(self) -> int:
        """Values that a token leaves in the cache of one layer."""
        if self.kind == "mla":
            return self.kv_rank + self.rope_width
        return 2 * self.kv_heads * self.head_width

    def shared_parameters(self, hidden: int) -> int:
        """Count weights of a layer that tensor parallelism does not split (down-projections)."""
        if self.kind == "gqa":
            return 0
        return hidden * (self.query_rank + self.kv_rank + self.rope_width)

    def split_parameters(self, hidden: int) -> int:
        """Count weights of a layer that tensor parallelism splits by heads."""
        if self.kind == "gqa":
            return 2 * hidden * (self.heads + self.kv_heads) * self.head_width
        query = (self.query_rank or hidden) * (self.nope_width + self.rope_width)
        latent = self.kv_rank * (self.nope_width + self.value_width)
        return self.heads * (query + latent + self.value_width * hidden)

    def flops_per_position(self, phase: str) -> float:
        """Count FLOPs of one token against one position of its context, in one layer.

        Scores and weighted values, a multiplication and an addition each. Latent attention
        decodes on the latents themselves (absorbed projections) and prefills on full heads.
        """
        if self.kind == "gqa":
            return 4.0 * self.heads * self.head_width
        if phase == "decode":
            return 2.0 * self.heads * (2 * self.kv_rank + self.rope_width)
        return 2.0 * self.heads * (self.nope_width + self.rope_width + self.value_width)


@dataclass(frozen=True)
class Model:
    """Hold what memory and time depend on in a Mixture-of-Experts model.

    Parameters
    ----------
    name : str
    layers, moe_layers : int
        Transformer layers, and those of them with routed experts; the others are dense.
    experts, top_k : int
        Routed experts per layer, and how many of them a token chooses.
    hidden_width, expert_width : int
        Channels of the model, and inside an expert (three matrices: gate, up, down).
    shared_width, dense_width : int
        Channels inside all shared experts of a layer together, and inside a dense layer.
    vocabulary : int
        Rows of the embedding and of the output head.
    attention : Attention
    expert_dtype : str
        What routed experts are published in.
    expert_hidden_width : int, optional
        Channels that experts work on, where they are not the model's.
    kv_layers : int, optional
        Layers whose cache grows with the context; all by default.
    kv_bytes_per_token : int, optional
        In bf16 over all layers, where it does not follow from the attention.
    attention_parameters : int, optional
        Weights of an attention layer on average, where they do not follow from the attention.
    published_parameters : int, optional
        The maker's figure for the whole model.
    expert_groups : int
        Groups of experts in the router; 1 = none.
    aliases : tuple of str
    source, note : str

    Examples
    --------
    >>> from craftopt.serving import find_model
    >>> model = find_model("deepseek-v3")
    >>> model.parameters_per_expert, int(model.kv_bytes())
    (44040192, 70272)
    """

    name: str
    layers: int
    moe_layers: int
    experts: int
    top_k: int
    hidden_width: int
    expert_width: int
    shared_width: int
    dense_width: int
    vocabulary: int
    attention: Attention
    expert_dtype: str = "bf16"
    expert_hidden_width: int | None = None
    kv_layers: int | None = None
    kv_bytes_per_token: int | None = None
    attention_parameters: int | None = None
    published_parameters: int | None = None
    expert_groups: int = 1
    aliases: tuple[str, ...] = ()
    source: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        counted = ("layers", "moe_layers", "experts", "top_k", "hidden_width", "expert_width")
        for name in (*counted, "kv_layers", "kv_bytes_per_token"):
            if name in counted or getattr(self, name) is not None:
                whole(f"model {self.name}: {name}", getattr(self, name), 1)
        if self.moe_layers > self.layers:
            raise InputError(
                f"model {self.name}: moe_layers={self.moe_layers} of layers={self.layers}"
            )
        if self.top_k > self.experts:
            raise InputError(f"model {self.name}: top_k={self.top_k} of experts={self.experts}")
        object.__setattr__(self, "expert_dtype", choice("expert_dtype", self.expert_dtype, BYTES))

    def replace(self, **changes: Any) -> Model:
        """Return the same model with some facts changed."""
        return dataclass_replace(self, **changes)

    @property
    def parameters_per_expert(self) -> int:
        """Weights of one routed expert: gate, up and down."""
        return 3 * (self.expert_hidden_width or self.hidden_width) * self.expert_width

    @property
    def routed_parameters(self) -> int:
        """Weights of all routed experts of all layers."""
        return self.moe_layers * self.experts * self.parameters_per_expert

    @property
    def shared_expert_parameters(self) -> int:
        """Weights of the shared experts of all layers."""
        return 3 * self.hidden_width * self.shared_width * self.moe_layers

    @property
    def dense_parameters(self) -> int:
        """Weights of the feed-forward parts of all dense layers."""
        return 3 * self.hidden_width * self.dense_width * (self.layers - self.moe_layers)

    @property
    def router_parameters(self) -> int:
        """Weights of the routers of all layers."""
        return self.hidden_width * self.experts * self.moe_layers

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding and of the output head."""
        return 2 * self.hidden_width * self.vocabulary

    def attention_weights(self, parallel: int = 1) -> float:
        """Count attention weights of all layers on one of the GPUs that split the heads."""
        shared = self.attention.shared_parameters(self.hidden_width)
        split = self.attention.split_parameters(self.hidden_width)
        if self.attention_parameters is not None:
            split = self.attention_parameters - shared
        return self.layers * (shared + split / parallel)

    @property
    def parameters(self) -> int:
        """All weights that the facts account for."""
        return (
            self.routed_parameters
            + self.shared_expert_parameters
            + self.dense_parameters
            + self.router_parameters
            + self.embedding_parameters
            + int(self.attention_weights())
        )

    def expert_bytes(self, dtype: str | None = None) -> float:
        """Compute the bytes of one routed expert, in its own dtype or another."""
        return self.parameters_per_expert * bytes_of(dtype or self.expert_dtype)

    def kv_bytes(self, dtype: str = "bf16") -> float:
        """Compute the bytes that one token of context takes in the cache of all layers."""
        share = bytes_of(dtype) / bytes_of("bf16")
        if self.kv_bytes_per_token is not None:
            return self.kv_bytes_per_token * share
        layers = self.layers if self.kv_layers is None else self.kv_layers
        return 2.0 * share * self.attention.cached_values * layers


@dataclass(frozen=True)
class Gpu:
    """Hold what memory and time depend on in an accelerator.

    Parameters
    ----------
    name : str
    memory : float
        Bytes.
    bandwidth : float
        Bytes per second of that memory.
    flops : mapping of str to float
        Dense FLOP/s by arithmetic: bf16, fp8, int8, fp4.
    node_link, cluster_link : float, optional
        Bytes per second, one direction, to GPUs of the same node and of other nodes.
    domain : int, optional
        GPUs that ``node_link`` joins, where it goes beyond a node.
    aliases : tuple of str
    source, note : str

    Examples
    --------
    >>> from craftopt.serving import find_gpu
    >>> find_gpu("h200").name, find_gpu("a100").peak("fp8") == find_gpu("a100").flops["bf16"]
    ('H200-SXM', True)
    """

    name: str
    memory: float
    bandwidth: float
    flops: Mapping[str, float] = field(default_factory=dict)
    node_link: float | None = None
    cluster_link: float | None = None
    domain: int | None = None
    aliases: tuple[str, ...] = ()
    source: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("memory", "bandwidth", "node_link", "cluster_link"):
            if name in ("memory", "bandwidth") or getattr(self, name) is not None:
                number(f"GPU {self.name}: {name}", getattr(self, name), above=0)
        if self.domain is not None:
            whole(f"GPU {self.name}: domain", self.domain, 1)
        if not self.flops.get("bf16", 0) > 0:
            raise InputError(f"GPU {self.name}: flops has no bf16; pass FLOP/s by arithmetic")

    def replace(self, **changes: Any) -> Gpu:
        """Return the same accelerator with some facts changed."""
        return dataclass_replace(self, **changes)

    def peak(self, dtype: str) -> float:
        """Return the FLOP/s at which weights of a dtype run: its own, or the next best."""
        bytes_of(dtype)
        return next(self.flops[name] for name in _ARITHMETIC[dtype] if name in self.flops)
