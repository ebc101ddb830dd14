"""TensorRT-LLM: expert statistics (safetensors), and load balancer configurations (YAML)."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from craftopt.errors import FormatError, InputError
from craftopt.formats._contents import AnyArray, Contents, plan_of
from craftopt.formats._source import check_ranks, size_of
from craftopt.formats._text import brief, decoded, shorten
from craftopt.loads import FloatArray, IntArray, Loads
from craftopt.plan import Plan

META = "meta_info.json"
_ASSIGNMENTS = "initial_global_assignments"
_MOST_META, _MOST_HEADER = 2**20, 100 * 2**20  # bytes; the second is safetensors' own limit
_TYPES = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U8": "<u1", "U32": "<u4"}
_RANK = re.compile(r"rank(\d{1,6})\.safetensors")
_KEY = re.compile(r"(\d{1,15})_(\d{1,6})")


def matches(head: bytes) -> bool:
    """Tell from its first bytes whether a file is safetensors or lists assignments of slots."""
    lists = any(line.strip().startswith(_ASSIGNMENTS.encode()) for line in head.splitlines())
    return lists or _is_safetensors(head)


def recognise(stream: BinaryIO) -> Contents:
    """Take a file of assignments; refuse a rank's statistics alone.

    Raises
    ------
    FormatError
        A safetensors file.
    """
    head = stream.read(9)
    stream.seek(0)
    if _is_safetensors(head):
        raise FormatError(
            "is a safetensors file, such as one rank's part of TensorRT-LLM's expert statistics; "
            f"pass the folder, with {META} and the files of all ranks"
        )
    return LoadBalancer(stream)


def _is_safetensors(head: bytes) -> bool:
    return 0 < int.from_bytes(head[:8], "little") <= _MOST_HEADER and head[8:9] == b"{"


# --- expert statistics ----------------------------------------------------------------------


class Statistics(Contents):
    """``meta_info.json`` and ``rank*.safetensors`` with counts ``{iteration}_{layer}``."""

    def __init__(self, folder: Path) -> None:
        super().__init__("expert statistics of TensorRT-LLM", "loads")
        self._folder = folder

    def loads(self) -> Loads:
        """Add the ranks up, a window per iteration.

        Raises
        ------
        InputError
            A damaged file, a missing rank, iteration or layer.
        """
        files = {
            int(found[1]): file
            for file in sorted(self._folder.iterdir())
            if (found := _RANK.fullmatch(file.name))
        }
        check_ranks(files)
        experts = self._experts()
        sums: dict[tuple[int, int], FloatArray] = {}
        first: set[tuple[int, int]] = set()
        for file in files.values():
            try:
                with file.open("rb") as stream:
                    counts = _read_counts(stream, experts)
            except InputError as error:
                raise FormatError(f"{file.name}: {error}") from error
            if first and set(counts) != first:
                odd = sorted(first ^ set(counts))[0]
                raise FormatError(
                    f"{file.name} and the files before it do not hold the same iterations and "
                    f"layers ({odd[0]}_{odd[1]} is in one alone)"
                )
            first = set(counts)
            for key, values in counts.items():
                sums[key] = sums[key] + values if key in sums else values.astype(np.float64)
        iterations = sorted({iteration for iteration, _ in sums})
        layers = sorted({layer for _, layer in sums})
        if len(sums) != len(iterations) * len(layers):
            raise FormatError("some iterations lack layers; the recording is truncated")
        if iterations[-1] - iterations[0] + 1 != len(iterations):
            raise FormatError(
                f"the iterations {shorten(iterations)} are not contiguous, as recorded ones are"
            )
        tokens = np.array([[sums[i, layer] for layer in layers] for i in iterations])
        return Loads(tokens, layers, [str(iteration) for iteration in iterations])

    def _experts(self) -> int:
        file = self._folder / META
        if file.stat().st_size > _MOST_META:
            raise FormatError(
                f"{META} has {file.stat().st_size} bytes, too many for its few numbers"
            )
        try:
            experts = json.loads(file.read_bytes())["num_experts"]
        except (ValueError, KeyError, TypeError, RecursionError):
            experts = None
        if type(experts) is not int or experts < 1:
            raise FormatError(f"{META} is damaged: it needs num_experts, a whole number")
        return experts


def _read_counts(stream: BinaryIO, experts: int) -> dict[tuple[int, int], AnyArray]:
    """Read the counts [experts] by iteration and layer.

    The header's claims are held against the bytes that are there.
    """
    size = size_of(stream)
    length = int.from_bytes(stream.read(8), "little")
    if not 0 < length <= min(_MOST_HEADER, size - 8):
        raise FormatError(f"damaged or truncated: a header of {length} bytes in a file of {size}")
    try:
        header = json.loads(stream.read(length))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the header is damaged: {brief(error)}") from error
    if type(header) is not dict:
        raise FormatError("the header is damaged: it is no object")
    data = stream.read()
    header.pop("__metadata__", None)
    if not header:
        raise FormatError("holds no counts")
    counts, claimed = {}, 0
    for key, entry in header.items():
        found = _KEY.fullmatch(key)
        if found is None:
            raise FormatError(f"holds {key[:40]!r}; counts are named iteration_layer")
        values = _tensor(key, entry, data)
        if values.shape != (experts,):
            raise FormatError(f"{key} has shape {values.shape}; {META} says {experts} experts")
        claimed += values.nbytes
        if claimed > len(data):
            raise FormatError(f"its counts claim more bytes than the {len(data)} that are there")
        counts[int(found[1]), int(found[2])] = values
    if len(counts) != len(header):
        raise FormatError("names an iteration and layer twice")
    return counts


def _tensor(key: str, entry: Any, data: bytes) -> AnyArray:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            if dtype not in _TYPES:
                raise FormatError(f"{key} is of type {dtype[:20]}; counts are whole numbers")
            kind = np.dtype(_TYPES[dtype])
            fits = all(type(n) is int and n >= 0 for n in shape) and 0 <= start <= end <= len(data)
            if fits and math.prod(shape) * kind.itemsize == end - start and len(shape) == 1:
                return np.frombuffer(data[start:end], kind)
    raise FormatError(f"{key[:40]} is damaged: its shape and place do not fit its bytes")


# --- load balancer configurations -----------------------------------------------------------

_LAYER = re.compile(r"""\s*(?P<quote>['"]?)(\d{1,9})(?P=quote)\s*:\s*(.*)""")
_FLOW = re.compile(r"\[\s*(\d{1,9}(?:\s*,\s*\d{1,9})*\s*,?)?\s*\]\s*")
_BLOCK = re.compile(r"(?:-\s+\d{1,9}\s+)+")


class LoadBalancer(Contents):
    """``moe_config.load_balancer``, inline or a file: the expert of every slot, layer by layer.

    Read without a YAML library: the shape is fixed, its values are whole numbers, and YAML at
    large can claim gigabytes in a line.
    """

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__("a load balancer configuration of TensorRT-LLM (YAML)", "plan")
        self._stream = stream

    def plan(self, gpus: int | None) -> Plan:
        """Read the assignments; the file does not say how many GPUs share the slots."""
        slots, assignments = _assignments(_block(decoded(self._stream.read())))
        if not assignments:
            raise FormatError(f"{_ASSIGNMENTS} lists no layer")
        if {len(experts) for experts in assignments.values()} != {slots}:
            raise FormatError(
                f"num_slots is {'missing' if slots is None else slots}, and layers list "
                f"{shorten(sorted({len(experts) for experts in assignments.values()}))} experts"
            )
        layers = sorted(assignments)
        return plan_of(np.array([assignments[layer] for layer in layers]), gpus, layers)


def load_balancer(phy2log: IntArray, layer_ids: IntArray) -> str:
    """Write a static configuration as YAML.

    Parameters
    ----------
    phy2log : int64 [layers, slots]
    layer_ids : int64 [layers]
        The model's numbers of the layers.
    """
    lines = [
        f"  {layer}: [{', '.join(map(str, experts))}]"
        for layer, experts in zip(layer_ids.tolist(), phy2log.tolist(), strict=True)
    ]
    head, tail = f"{_ASSIGNMENTS}:", ("layer_updates_per_iter: 0", f"num_slots: {phy2log.shape[1]}")
    return "\n".join([head, *lines, *tail]) + "\n"


def _block(text: str) -> str:
    """Cut out the block of the assignments, which `moe_config` of a larger file may hold."""
    lines = text.splitlines()
    indents = [len(line) - len(line.lstrip()) if line.strip() else None for line in lines]
    at = next((n for n, line in enumerate(lines) if line.lstrip().startswith(_ASSIGNMENTS)), 0)
    depth = indents[at] if lines else 0
    if not depth:
        return text
    inside = [indent is None or indent >= depth for indent in indents]
    first = at - next((n for n, yes in enumerate(reversed(inside[:at])) if not yes), at)
    last = at + next((n for n, yes in enumerate(inside[at:]) if not yes), len(lines) - at)
    return "\n".join(line[depth:] for line in lines[first:last])


def _assignments(text: str) -> tuple[int | None, dict[int, list[int]]]:
    """Parse num_slots and the assignments: flow lists (also over several lines) or block lists."""
    slots: int | None = None
    lists: dict[int, list[str]] = {}
    inside, current = False, None
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.partition("#")[0].rstrip()
        if not line or line in ("---", "..."):
            continue
        if line[0] not in " \t-":
            key, colon, value = line.partition(":")
            if not colon:
                raise FormatError(f"line {number} is no 'key: value': {line[:60]!r}")
            inside, current = key == _ASSIGNMENTS, None
            if inside and value.strip():
                raise FormatError(f"line {number}: put every layer of {_ASSIGNMENTS} on a line")
            if key == "num_slots" and re.fullmatch(r"\s*\d{1,9}", value):
                slots = int(value)
        elif inside:
            found = _LAYER.fullmatch(line)
            if found is not None:
                current = int(found[2])
                if current in lists:
                    raise FormatError(f"line {number}: layer {current} is there twice")
                lists[current] = [found[3]]
            elif current is None:
                raise FormatError(f"line {number} belongs to no layer: {line[:60]!r}")
            else:
                lists[current].append(line)
    return slots, {layer: _whole_numbers(layer, "\n".join(parts)) for layer, parts in lists.items()}


def _whole_numbers(layer: int, text: str) -> list[int]:
    text = text.strip() + "\n"
    if _FLOW.fullmatch(text) is None and _BLOCK.fullmatch(text) is None:
        raise FormatError(f"layer {layer} is no list of whole numbers: {text[:60]!r}")
    return [int(digits) for digits in re.findall(r"\d+", text)]
