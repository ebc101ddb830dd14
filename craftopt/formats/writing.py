"""Write plans as the maps that serving engines load."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from craftopt.documents import write_atomically
from craftopt.errors import InputError, choice, whole
from craftopt.formats import ascend, deepseek, sglang, tensorrt_llm
from craftopt.loads import IntArray, layer_text
from craftopt.plan import Copies, Plan

EngineName = Literal[
    "sglang", "tensorrt-llm", "vllm-ascend", "vllm-ascend-pool", "vllm", "deepseek"
]

_MOST_LAYERS = 10_000  # far above any model; SGLang's file has a row for every number below


@dataclass(frozen=True)
class Exported:
    """What `export` wrote, and how the engine is told to load it.

    ``str()`` gives the text that the command line prints.

    Parameters
    ----------
    engine, path : str
    flags : tuple of str
        The engine's own options that go with the file, line by line.
    padding : int
        Copies that were added to make all slot counts equal.
    notes : tuple of str
        What this costs, and what to know.
    """

    engine: str
    path: str
    flags: tuple[str, ...]
    padding: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"wrote {self.path} for {self.engine}", *self.flags]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class _Engine:
    title: str
    write: Callable[[IntArray, Plan], bytes]
    flags: Callable[[str, int, int], tuple[str, ...]]  # of file, GPUs, redundant experts
    duplicates: bool = True
    notes: tuple[str, ...] = ()
    suffix: str = ""  # that the engine insists on
    by_position: bool = False  # the file does not number its layers
    by_layer: bool = False  # slots are equally many on the GPUs of a layer, not in all layers


def export(
    plan: Plan,
    engine: EngineName,
    path: str | os.PathLike[str],
    pad: bool = False,
    *,
    fill: Iterable[int] = (),
) -> Exported:
    """Write a plan as a serving engine loads it: whole or not at all.

    - ``sglang``: JSON for ``--init-expert-location``. Layers that the plan does not hold, such
      as dense ones, get SGLang's own start.
    - ``tensorrt-llm``: YAML for ``moe_config.load_balancer``.
    - ``vllm-ascend``: JSON, the expert map of vllm-ascend and MindIE.
    - ``vllm-ascend-pool``: the same with a pool of slots, of which layers have different shares:
      experimental, for the branch behind vllm-ascend's open pull request 16871.
    - ``vllm``: JSON for ``initial_expert_map_path`` of vLLM's open pull request 49572, a list of
      experts per slot for every MoE layer. Experimental: no released vLLM loads it.
    - ``deepseek``: ``.npz`` with ``phy2log``, ``log2phy`` and ``logcnt``, as DeepSeek's EPLB
      returns them.

    All of them want equally many slots on every GPU, and all but the pool in every layer.

    Parameters
    ----------
    plan : Plan
    engine : {"sglang", "tensorrt-llm", "vllm-ascend", "vllm-ascend-pool", "vllm", "deepseek"}
        In any case.
    path : str or os.PathLike
        File to write; SGLang and vllm-ascend insist on ``.json``.
    pad : bool
        Fill up smaller GPUs and layers with further copies, of experts with the fewest. This
        takes the memory that the plan saved; the result says how much.
    fill : iterable of int
        The model's numbers of further MoE layers, such as those of multi-token prediction, which
        no recording has: they host the experts in order, then again from the first.

    Returns
    -------
    Exported
        The engine's flags to go with the file, and what padding cost.

    Raises
    ------
    InputError
        An unknown engine, a plan that it cannot hold, a name that it refuses, or a file that
        cannot be written.

    Examples
    --------
    >>> import craftopt as co, tempfile
    >>> from pathlib import Path
    >>> plan = co.Plan.from_phy2log([[0, 1, 0, 2]], gpus=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "location.json")
    ...     exported = co.export(plan, "sglang", file)
    ...     print(file.read_text().strip())
    {"physical_to_logical_map": [[0, 1, 0, 2]]}
    >>> exported.flags[0]
    '--ep-size 2 --ep-num-redundant-experts 1'
    """
    if not isinstance(plan, Plan):
        raise InputError(f"export takes a Plan, not {type(plan).__name__}; co.read_plan reads one")
    engine = choice("engine", engine, _ENGINES)
    found = _ENGINES[engine]
    if plan.duplicates and not found.duplicates:
        raise InputError(
            f"{plan.duplicates} copies share a GPU with a copy of the same expert, and "
            f"{found.title} finds only one of them; plan with a method that makes no duplicates, "
            "such as fast"
        )
    name, notes = os.fsdecode(path), list(found.notes)
    if plan.dead:
        notes.append(
            f"GPU(s) {', '.join(map(str, plan.dead))} are dead: the file is for the "
            f"{plan.gpus - len(plan.dead)} others, numbered in their order"
        )
        plan = plan.survivors()
    most = int(plan.slots.max())
    widths = plan.slots.max(axis=1) if found.by_layer else np.full(plan.layers, most)
    unequal = bool((plan.slots < widths[:, np.newaxis]).any())
    if unequal and not pad:
        every = "GPU of a layer" if found.by_layer else "GPU in every layer"
        raise InputError(
            f"the plan has {plan.slots.min()} to {most} slots per GPU and layer, and {found.title} "
            f"loads equally many on every {every}; plan with slots='uniform' (--slots uniform), or "
            "fill up with pad=True (--pad)"
        )
    if found.suffix and not name.endswith(found.suffix):
        raise InputError(
            f"{found.title} refuses files whose names do not end in {found.suffix}, such as "
            f"{name}; pass {name}{found.suffix}"
        )
    copies = plan.copies
    if unequal:
        copies = padded(copies, widths)
        notes.insert(0, _cost_of_padding(plan, widths))
    if plan.duplicates:
        notes.append(
            f"{plan.duplicates} slots are wasted on a second copy of an expert on the same GPU"
        )
    full = Plan(copies, plan.layer_ids, plan.nodes)
    if further := sorted(
        {whole("fill", layer, 0) for layer in fill} - set(full.layer_ids.tolist())
    ):
        full = _filled(full, further)
        notes.append(f"not planned: layers {layer_text(further)}, the experts in order")
    numbers = full.layer_ids.tolist()
    span = range(numbers[0], min(numbers[-1], numbers[0] + _MOST_LAYERS))
    if gaps := sorted(set(span) - set(numbers)):
        notes.append(
            f"the plan lacks the layers {layer_text(gaps)}; if they have experts, add them with "
            "fill= (--fill)" + (", since rows are read by position" if found.by_position else "")
        )
    write_atomically(path, found.write(full.phy2log(), full))
    flags = found.flags(name, full.gpus, most * full.gpus - full.experts)
    return Exported(engine, name, flags, int(copies.sum() - plan.slots.sum()), tuple(notes))


def load_flags(engine: EngineName, path: str, gpus: int, redundant: int) -> tuple[str, ...]:
    """List the options that load a file, line by line, as `Exported.flags` does."""
    return _ENGINES[engine].flags(path, gpus, redundant)


def padded(copies: Copies, slots: IntArray) -> Copies:
    """Add copies until every GPU has that many in a layer.

    A GPU gets the expert with the fewest copies that it does not host, of equal ones the first:
    without loads, the one that is likeliest to be light.

    Parameters
    ----------
    copies : uint8 [layers, experts, gpus]
    slots : int64 [layers]
        At least as many as any GPU has.

    Raises
    ------
    InputError
        More slots than experts that a GPU lacks.
    """
    filled = copies.copy()
    counts = filled.sum(axis=2, dtype=np.int64)
    for layer, gpu in np.argwhere(filled.sum(axis=1, dtype=np.int64) < slots[:, np.newaxis]):
        column = filled[layer, :, gpu]
        missing = int(slots[layer]) - int(column.sum())
        absent = np.flatnonzero(column == 0)
        if absent.size < missing:
            raise InputError(
                f"GPU {gpu} cannot fill {slots[layer]} slots in layer {layer} with "
                f"{copies.shape[1]} experts and no duplicates; plan with fewer replicas"
            )
        chosen = absent[np.argsort(counts[layer, absent], kind="stable")[:missing]]
        filled[layer, chosen, gpu] = 1
        counts[layer, chosen] += 1
    return filled


def _filled(plan: Plan, layers: list[int]) -> Plan:
    """Add layers that host the experts in order, then again from the first."""
    table = plan.phy2log()
    start = np.tile(np.arange(table.shape[1]) % plan.experts, (len(layers), 1))
    numbers = np.concatenate([plan.layer_ids, layers])
    order = np.argsort(numbers)
    rows = np.concatenate([table, start])[order]
    return Plan.from_phy2log(rows, plan.gpus, plan.experts, numbers[order], plan.nodes)


def _cost_of_padding(plan: Plan, slots: IntArray) -> str:
    before, after = int(plan.slots.sum(axis=0).max()), int(slots.sum())
    added = after * plan.gpus - int(plan.slots.sum())
    least, most = int(slots.min()), int(slots.max())
    each = str(most) if least == most else f"{least} to {most}"
    return (
        f"padding added {added} copies: every GPU hosts {each} in each of {plan.layers} layers, "
        f"{after} in all, where the plan needs at most {before}; the memory of "
        f"{after - before} experts per GPU ({(after - before) / before:.1%}) is lost"
    )


def _write_sglang(phy2log: IntArray, plan: Plan) -> bytes:
    if plan.layer_ids.min() < 0 or plan.layer_ids.max() >= _MOST_LAYERS:
        raise InputError(
            f"layer_ids are {plan.layer_ids.min()}..{plan.layer_ids.max()}; SGLang's file has a "
            f"row for every layer of the model, so they must be the model's own, 0..{_MOST_LAYERS}"
        )
    return sglang.location(phy2log, plan.layer_ids).encode()


def _sglang_flags(path: str, gpus: int, redundant: int) -> tuple[str, ...]:
    return (
        f"--ep-size {gpus} --ep-num-redundant-experts {redundant}",
        f"--init-expert-location {shlex.quote(path)}",
        "--ep-dispatch-algorithm dynamic",
    )


def _tensorrt_flags(path: str, gpus: int, redundant: int) -> tuple[str, ...]:
    return (
        f"--ep_size {gpus} --extra_llm_api_options options.yaml",
        "# options.yaml:",
        "moe_config:",
        f"  load_balancer: {path}",
    )


def _ascend_flags(path: str, gpus: int, redundant: int) -> tuple[str, ...]:
    config = {"expert_map_path": path, "num_redundant_experts": redundant}
    return (
        "--enable-expert-parallel --additional-config "
        + shlex.quote(json.dumps({"eplb_config": config})),
        "# MindIE: models.deepseekv2.eplb = " + json.dumps({"level": 1, "expert_map_file": path}),
    )


def _write_pool(phy2log: IntArray, plan: Plan) -> bytes:
    main = plan.experts // plan.gpus
    if plan.experts % plan.gpus or int(plan.slots.min()) < main:
        raise InputError(
            f"the pool of vllm-ascend wants {plan.experts} experts to divide among {plan.gpus} "
            f"GPUs, and {max(main, 1)} slots or more on each; the plan has {plan.slots.min()}"
        )
    return ascend.expert_map(phy2log, plan.gpus, main).encode()


def _pool_flags(path: str, gpus: int, redundant: int) -> tuple[str, ...]:
    config = shlex.quote(json.dumps({"eplb_config": {"expert_map_path": path}}))
    return (f"--enable-expert-parallel --additional-config {config}",)


def _vllm_flags(path: str, gpus: int, redundant: int) -> tuple[str, ...]:
    config = {"num_redundant_experts": redundant, "initial_expert_map_path": path}
    return (
        f"--enable-expert-parallel --enable-eplb --eplb-config {shlex.quote(json.dumps(config))}",
    )


def _deepseek_flags(path: str, gpus: int, redundant: int) -> tuple[str, ...]:
    return (f"numpy.load({path!r}): phy2log, log2phy, logcnt",)


_ENGINES: dict[EngineName, _Engine] = {
    "sglang": _Engine(
        "SGLang",
        _write_sglang,
        _sglang_flags,
        notes=(
            "with an all-to-all backend, such as deepep, SGLang serves a map that it starts with "
            "by the nearest copies: plan --dispatch nearest-even plans for that, and evaluate "
            "--dispatch nearest-even says what it makes of loads. Of several copies in one of "
            "several nodes it takes one alone, which is worse yet",
        ),
        suffix=".json",
    ),
    "tensorrt-llm": _Engine(
        "TensorRT-LLM",
        lambda phy2log, plan: tensorrt_llm.load_balancer(phy2log, plan.layer_ids).encode(),
        _tensorrt_flags,
        notes=(
            "TensorRT-LLM fails on MoE layers that the file lacks, such as those of multi-token "
            "prediction; add them with fill= (--fill)",
        ),
    ),
    "vllm-ascend": _Engine(
        "vllm-ascend",
        lambda phy2log, plan: ascend.expert_map(phy2log, plan.gpus).encode(),
        _ascend_flags,
        duplicates=False,
        notes=(
            "vllm-ascend is to remove static maps in v0.25.1, and its model runner V2 rejects them",
        ),
        suffix=".json",
        by_position=True,
    ),
    "vllm-ascend-pool": _Engine(
        "vllm-ascend's pool",
        _write_pool,
        _pool_flags,
        duplicates=False,
        notes=(
            "experimental: the branch behind vllm-ascend's open pull request 16871 loads this map "
            "(pool_mode); the pull request's own pool reads none, and no release has either",
        ),
        suffix=".json",
        by_position=True,
        by_layer=True,
    ),
    "vllm": _Engine(
        "vLLM",
        lambda phy2log, plan: f"{json.dumps(phy2log.tolist())}\n".encode(),
        _vllm_flags,
        notes=(
            "vLLM's open pull request 49572 is experimental: no released vLLM loads this map, and "
            "its option may still change. 53022, for DeepSeek V4, reads it from expert_map_path, "
            "and wants a row for every hidden and draft layer: add those with fill= (--fill)",
        ),
        suffix=".json",
        by_position=True,
    ),
    "deepseek": _Engine(
        "DeepSeek's EPLB",
        lambda phy2log, plan: deepseek.tables(phy2log, plan.experts),
        _deepseek_flags,
        by_position=True,
    ),
}
