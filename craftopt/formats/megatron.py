"""Megatron-LM's routing trace: ``router_trace_rank{r}.jsonl``, a record per step and layer.

``{step, stage, block, layer, rank, num_tokens, topk, top_indices: [[expert, ...], ...]}``, as
megatron/core/transformer/moe/router_trace.py writes it (commit 059f0f5, pull request 5220, option
``--moe-routing-trace-path``). Layers are numbered as the module is, so the stages of a pipeline
number theirs alike. Records of multi-token prediction (block ``mtp``) number theirs from 0 again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from craftopt.errors import FormatError
from craftopt.formats._contents import AnyArray, Contents
from craftopt.formats._json import records
from craftopt.formats._source import check_ranks
from craftopt.formats._text import shorten
from craftopt.traces import Trace

FILES = "router_trace_rank*.jsonl"
_KEYS = (b'"layer"', b'"rank"', b'"num_tokens"', b'"topk"')

# The records of a recording, by file name.
_Files = Callable[[], Iterator[tuple[str, Iterator[dict[str, Any]]]]]


def matches(head: bytes) -> bool:
    """Tell from its first bytes whether a file begins with such a record."""
    start = head.lstrip()[:400]
    return start.startswith(b"{") and all(key in start for key in _KEYS)


def recognise(stream: BinaryIO) -> Contents:
    """Take a file for one rank's trace."""
    return _Records(lambda: iter([("", records(stream))]))


def recognise_folder(files: Sequence[Path]) -> Contents:
    """Take the files of all ranks for one trace."""

    def each() -> Iterator[tuple[str, Iterator[dict[str, Any]]]]:
        for file in files:
            with file.open("rb") as stream:
                yield file.name, records(stream)

    return _Records(each)


class _Records(Contents):
    """Every rank's tokens, step by step."""

    def __init__(self, files: _Files) -> None:
        super().__init__("a routing trace of Megatron-LM", "trace")
        self._files = files

    def trace(self, experts: int | None) -> Trace:
        """Read the choices, step by step and rank by rank.

        A layer's records of one step, such as those of micro-batches, are in order. Ranks that
        repeat all that a rank before them recorded, as in a tensor-parallel group, count once.

        Raises
        ------
        FormatError
            Damaged records, missing ranks, or layers that differ.
        """
        held: dict[int, dict[int, dict[int, list[AnyArray]]]] = {}  # by rank, step and layer
        outside = 0
        for file, lines in self._files():
            for number, record in enumerate(lines, 1):
                if record.get("block", "decoder") != "decoder":
                    outside += 1
                    continue
                where = ", ".join(filter(None, (file, f"record {number}")))
                step, layer, rank, ids = _fields(record, where)
                held.setdefault(rank, {}).setdefault(step, {}).setdefault(layer, []).append(ids)
        if not held:
            raise FormatError("holds no record of a layer")
        if outside:
            self.notes.append(f"left out {outside} record(s) of multi-token prediction")
        tokens = {rank: self._tokens(steps, rank) for rank, steps in sorted(held.items())}
        layers = {rank: layers for rank, (layers, _) in tokens.items()}
        first = min(tokens)
        if len(set(map(tuple, layers.values()))) > 1:
            raise FormatError(
                "its ranks hold different layers, as stages of a pipeline do; pass a stage's files"
            )
        kept: dict[int, AnyArray] = {}
        for rank, (_, ids) in tokens.items():
            if not any(np.array_equal(ids, other) for other in kept.values()):
                kept[rank] = ids
        if len(tokens) == 1:
            self.notes.append(
                f"holds the tokens of rank {first} alone; pass the folder of all ranks' files"
            )
        else:
            check_ranks(tokens)
            repeats = shorten(sorted(set(tokens) - set(kept)))
            again = f"; rank(s) {repeats} repeat one before them and count once" if repeats else ""
            self.notes.append(
                f"{len(tokens)} ranks were taken for data-parallel ones{again}; stages of a "
                "pipeline number their layers alike, so pass one stage's files"
            )
        ids = np.concatenate(list(kept.values()))
        return self.active_trace(ids, experts, np.array(layers[first]))

    def _tokens(
        self, steps: dict[int, dict[int, list[AnyArray]]], rank: int
    ) -> tuple[list[int], AnyArray]:
        """Put the layers of a rank side by side, [tokens, layers, k].

        Raises
        ------
        FormatError
            Steps of different layers, or layers of different tokens or choices.
        """
        layers = sorted(next(iter(steps.values())))
        parts: list[AnyArray] = []
        for step, by_layer in sorted(steps.items()):
            found = [np.concatenate(by_layer[layer]) for layer in sorted(by_layer)]
            if sorted(by_layer) != layers or len({ids.shape for ids in found}) > 1:
                if parts and step == max(steps) and set(by_layer) < set(layers):
                    self.notes.append(f"left out step {step} of rank {rank}, which was cut off")
                    break
                raise FormatError(
                    f"step {step} of rank {rank} does not hold the same tokens in every layer; "
                    "leave its records out"
                )
            parts.append(np.stack(found, axis=1))
        if len({part.shape[2] for part in parts}) > 1:
            raise FormatError(f"steps of rank {rank} differ in the experts of a token")
        return layers, np.concatenate(parts)


def _fields(record: dict[str, Any], where: str) -> tuple[int, int, int, AnyArray]:
    numbers: Any = [record.get(key) for key in ("step", "layer", "rank")]
    ids: Any = record.get("top_indices")
    if ids == [] and type(record.get("topk")) is int and 0 < record["topk"] < 2**10:
        ids = np.empty((0, record["topk"]), dtype=np.int32)  # an idle rank
    if any(type(number) is not int or not 0 <= number < 2**31 for number in numbers):
        raise FormatError(f"{where}: damaged: step, layer and rank are {numbers}")
    if isinstance(ids, np.ndarray):
        return (*numbers, ids)
    if (
        type(ids) is not list
        or not ids
        or any(type(row) is not list or len(row) != len(ids[0]) or not row for row in ids)
        or {type(expert) for row in ids for expert in row} != {int}
        or not all(-1 <= expert < 2**31 for row in ids for expert in row)
    ):
        raise FormatError(f"{where}: damaged: 'top_indices' is no table of expert ids")
    return (*numbers, np.array(ids, dtype=np.int32))
