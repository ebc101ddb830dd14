"""Facts of models and accelerators: packaged tables, and the user's own in the same form."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from dataclasses import replace as dataclass_replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from craftopt.errors import FormatError, InputError

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
        raise InputError(f"dtype={dtype!r} is unknown; pass one of {', '.join(BYTES)}")
    return BYTES[dtype]


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

    kind: Literal["gqa", "mla"]
    heads: int
    kv_heads: int = 0
    head_width: int = 0
    query_rank: int = 0
    kv_rank: int = 0
    nope_width: int = 0
    rope_width: int = 0
    value_width: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("gqa", "mla"):
            raise InputError(f"attention kind={self.kind!r} is unknown; pass gqa or mla")
        needed = ("kv_heads", "head_width") if self.kind == "gqa" else ("kv_rank", "value_width")
        for name in ("heads", *needed):
            if getattr(self, name) < 1:
                raise InputError(f"{self.kind} attention needs {name}, at least 1")

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
        for name in ("layers", "moe_layers", "experts", "top_k", "hidden_width", "expert_width"):
            if getattr(self, name) < 1:
                raise InputError(f"model {self.name}: {name}={getattr(self, name)}; at least 1")
        for name in ("kv_layers", "kv_bytes_per_token"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"model {self.name}: {name}={getattr(self, name)}; at least 1")
        if self.moe_layers > self.layers:
            raise InputError(
                f"model {self.name}: moe_layers={self.moe_layers} of layers={self.layers}"
            )
        if self.top_k > self.experts:
            raise InputError(f"model {self.name}: top_k={self.top_k} of experts={self.experts}")
        bytes_of(self.expert_dtype)

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
    aliases: tuple[str, ...] = ()
    source: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("memory", "bandwidth", "node_link", "cluster_link"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"GPU {self.name}: {name}={value}; it must be above 0")
        if not self.flops.get("bf16", 0) > 0:
            raise InputError(f"GPU {self.name}: flops has no bf16; pass FLOP/s by arithmetic")

    def replace(self, **changes: Any) -> Gpu:
        """Return the same accelerator with some facts changed."""
        return dataclass_replace(self, **changes)

    def peak(self, dtype: str) -> float:
        """Return the FLOP/s at which weights of a dtype run: its own, or the next best."""
        bytes_of(dtype)
        return next(self.flops[name] for name in _ARITHMETIC[dtype] if name in self.flops)


Fact = TypeVar("Fact", Model, Gpu)


def read_facts(path: str | os.PathLike[str]) -> tuple[dict[str, Model], dict[str, Gpu]]:
    """Read models and accelerators from a TOML file.

    The form is that of the packaged tables: ``[model."NAME"]`` and ``[gpu."NAME"]``, each with
    the fields of `Model` and `Gpu`; a model's ``attention`` is a table of `Attention`'s fields.

    Raises
    ------
    FormatError
        A file that is no TOML; an unknown or a missing field.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from craftopt.serving import read_facts
    >>> text = '[gpu.mine]' + chr(10) + 'memory = 8e10' + chr(10) + 'bandwidth = 2e12' + chr(10)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "facts.toml"
    ...     _ = file.write_text(text + 'flops = { bf16 = 3e14 }')
    ...     read_facts(file)[1]["mine"].memory
    80000000000.0
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"cannot read {path}: {error}") from None
    return _parse(text, str(path))


@cache
def known_models() -> dict[str, Model]:
    """Return the packaged models by name."""
    return _parse(_packaged("models.toml"), "models.toml")[0]


@cache
def known_gpus() -> dict[str, Gpu]:
    """Return the packaged accelerators by name."""
    return _parse(_packaged("gpus.toml"), "gpus.toml")[1]


def find_model(name: str, own: Mapping[str, Model] | None = None) -> Model:
    """Look a model up by name, in any case; the start of one name is enough.

    Parameters
    ----------
    name : str
    own : mapping of str to Model, optional
        Models that come before the packaged ones, as `read_facts` returns them.

    Raises
    ------
    InputError
        A name that no model has, or the start of several; the message names the nearest.

    Examples
    --------
    >>> from craftopt.serving import find_model
    >>> find_model("GLM-5.2").moe_layers, find_model("kimi-k2").name
    (75, 'Kimi-K2-Instruct')
    """
    return _find("model", name, {**known_models(), **(own or {})})


def find_gpu(name: str, own: Mapping[str, Gpu] | None = None) -> Gpu:
    """Look an accelerator up by name, as `find_model` does."""
    return _find("gpu", name, {**known_gpus(), **(own or {})})


def _find(what: str, name: str, known: Mapping[str, Fact]) -> Fact:
    wanted = _plain(name)
    by_name: dict[str, Fact] = {}
    for entry in known.values():
        by_name[_plain(entry.name)] = entry
        for alias in entry.aliases:
            by_name[_plain(alias)] = entry
    if wanted in by_name:
        return by_name[wanted]
    starts = {fact.name: fact for plain, fact in by_name.items() if plain.startswith(wanted)}
    if wanted and len(starts) == 1:
        return next(iter(starts.values()))
    if wanted and starts:
        raise InputError(f"{what}={name!r} could be {', '.join(starts)}; pass one of them")
    close = difflib.get_close_matches(wanted, by_name, n=1, cutoff=0.0)
    hint = f"; did you mean {by_name[close[0]].name!r}?" if close else ""
    raise InputError(f"{what}={name!r} is unknown{hint} Known: {', '.join(known)}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", str(name).lower())


def _packaged(name: str) -> str:
    return (resources.files("craftopt") / "data" / name).read_text(encoding="utf-8")


def _parse(text: str, source: str) -> tuple[dict[str, Model], dict[str, Gpu]]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"{source} is no TOML: {error}") from None
    extra = set(document) - {"model", "gpu"}
    if extra or not document:
        raise FormatError(
            f"{source} holds {', '.join(sorted(extra)) or 'nothing'}; it takes tables like "
            '[model."NAME"] and [gpu."NAME"]'
        )
    models = {}
    for name, entry in _tables(document, "model", source):
        given = dict(entry)
        if isinstance(given.get("attention"), dict):
            given["attention"] = _make(Attention, given["attention"], f"{source}, model {name}")
        models[name] = _make(Model, {"name": name, **given}, f"{source}, model {name}")
    gpus = {
        name: _make(Gpu, {"name": name, **entry}, f"{source}, gpu {name}")
        for name, entry in _tables(document, "gpu", source)
    }
    return models, gpus


def _tables(document: dict[str, Any], kind: str, source: str) -> list[tuple[str, dict[str, Any]]]:
    tables = document.get(kind, {})
    if not isinstance(tables, dict) or not all(isinstance(row, dict) for row in tables.values()):
        raise FormatError(f'{source}: {kind} must be tables like [{kind}."NAME"]')
    return list(tables.items())


Made = TypeVar("Made")


def _make(kind: type[Made], given: dict[str, Any], where: str) -> Made:
    hints = get_type_hints(kind)
    unknown = sorted(set(given) - set(hints))
    if unknown:
        close = difflib.get_close_matches(unknown[0], hints, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise FormatError(f"{where}: {unknown[0]} is no field{hint}")
    known = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    values = {}
    for name, value in given.items():
        values[name] = tuple(value) if isinstance(value, list) else value
        kinds = (int, float) if "float" in str(known[name].type) else (int,)
        if str(known[name].type).startswith(("int", "float")) and (
            isinstance(value, bool) or not isinstance(value, kinds)
        ):
            raise FormatError(f"{where}: {name}={value!r} is no number of the kind it needs")
    try:
        return kind(**values)
    except TypeError as error:
        missing = str(error).rpartition(": ")[2]
        raise FormatError(f"{where}: missing {missing}") from None
