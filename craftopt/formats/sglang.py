"""SGLang: what its expert distribution recorder dumps, and its expert location files.

Modes ``stat`` and ``stat_approx`` dump ``logical_count`` [steps, layers, experts] on rank 0.
Modes ``per_pass`` and ``per_token`` dump ``records`` on every rank, with counts per physical slot
[layers, slots] of that rank's tokens, and the last map of slots. Dense layers are rows of zeros.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator

import numpy as np

from craftopt.errors import FormatError
from craftopt.formats import pt
from craftopt.formats._contents import AnyArray, Contents, check_rank
from craftopt.formats._source import check_ranks
from craftopt.formats._text import shorten
from craftopt.formats.pt import Document, Documents, whole_array
from craftopt.loads import FloatArray, IntArray, Loads
from craftopt.slot_tables import to_logical
from craftopt.traces import Trace, repeated

MAP = "physical_to_logical_map"
_STALE = (
    "the map changed while it was recorded, and only the last one is kept; record without "
    "--enable-eplb, or in mode stat"
)

_REPEATED = (
    "rank(s) {} recorded the same tokens as a rank before them, as without an all-to-all backend; "
    "they are counted once"
)


def describes(document: Document) -> bool:
    """Tell whether a dump is of this recorder."""
    return "logical_count" in document or "records" in document


def dumps(document: Document, documents: Documents) -> Contents:
    """Take the dumps, of which one is given, for one recording."""
    if "logical_count" in document:
        return _Steps(documents)
    return _Records(documents, per_token=_has_tokens(document))


def location(phy2log: IntArray, layer_ids: IntArray) -> str:
    """Write an expert location as JSON, with the one key that SGLang accepts.

    SGLang wants a row for every layer of the model. Layers that are not planned, such as dense
    ones, get its own start: the experts in order, then again from the first.

    Parameters
    ----------
    phy2log : int64 [layers, slots]
    layer_ids : int64 [layers]
        The model's numbers of the layers.
    """
    slots, experts = phy2log.shape[1], int(phy2log.max()) + 1
    rows = np.tile(np.arange(slots) % experts, (int(layer_ids.max()) + 1, 1))
    rows[layer_ids] = phy2log
    return json.dumps({MAP: rows.tolist()}) + "\n"


class _Steps(Contents):
    """Counts per logical expert, step by step; steps that the buffer did not use are zero.

    SGLang adds the ranks up before it dumps, on rank 0 alone. Recorders like it dump on every rank:
    its own part, which is added up here, or the sum again, of which one is taken.
    """

    def __init__(self, documents: Documents) -> None:
        super().__init__("a dump of SGLang's recorder, mode stat", "loads")
        self._documents = documents

    def loads(self) -> Loads:
        """Read the steps that were used, as windows."""
        dumps: dict[int, list[tuple[str, AnyArray]]] = {}
        for file, document in self._documents():
            if "logical_count" not in document:
                raise FormatError(
                    f"{file} holds no 'logical_count', as the files before it do; pass the dumps "
                    "of one recording"
                )
            counts = whole_array(document, "logical_count")
            check_rank("'logical_count'", counts.shape)
            counts = counts.reshape(-1, *counts.shape[-2:])
            first = next(iter(dumps.values()))[0][1] if dumps else counts
            if counts.shape[1:] != first.shape[1:]:
                raise FormatError(
                    f"{file} has [layers, experts] = {counts.shape[1:]}, the files before it "
                    f"{first.shape[1:]}; pass the dumps of one model"
                )
            dumps.setdefault(_rank_of(file, document), []).append((file, counts))
        parts: list[FloatArray] = []
        names: list[str] = []
        for file, counts in self._whole(dumps):
            used = np.flatnonzero(counts.any(axis=(1, 2)))
            parts.append(counts[used].astype(np.float64))
            prefix = f"{file.removesuffix('.pt')}/" if file else ""
            names += [f"{prefix}{step}" for step in used.tolist()]
        if not names:
            raise FormatError("holds no tokens: no step of the buffer was used")
        return Loads(np.concatenate(parts), window_names=names)

    def _whole(self, dumps: dict[int, list[tuple[str, AnyArray]]]) -> list[tuple[str, AnyArray]]:
        """Add the ranks up, dump by dump in the order of the files' names."""
        if len(dumps) == 1:
            rank, held = next(iter(dumps.items()))
            for (first, counts), (second, others) in itertools.combinations(held, 2):
                if np.array_equal(counts, others):
                    raise FormatError(f"{first} and {second} hold the same counts; pass one")
            if rank:
                self.notes.append(f"holds the dumps of rank {rank} alone, which may be its part")
            return held
        check_ranks(dumps)
        ranks = [dumps[rank] for rank in sorted(dumps)]
        shapes = {tuple(counts.shape for _, counts in rank) for rank in ranks}
        if len(shapes) > 1:
            raise FormatError(
                f"its ranks 0 to {len(ranks) - 1} differ in their dumps or steps; pass dumps that "
                "all ranks wrote"
            )
        each = list(zip(*ranks, strict=True))
        if all(np.array_equal(counts, dump[0][1]) for dump in each for _, counts in dump):
            self.notes.append(_REPEATED.format(shorten(range(1, len(ranks)))))
            return ranks[0]
        self.notes.append(f"added up the dumps of {len(ranks)} ranks")
        return [(dump[0][0], sum(counts.astype(np.int64) for _, counts in dump)) for dump in each]


def _rank_of(file: str, document: Document) -> int:
    """Read the rank from the dump, else from the name that SGLang gives it, else take 0."""
    found = re.fullmatch(r".*_[\d.]+_(\d{1,5})\.pt", file)
    rank = str(document.get("rank", found and found[1]))
    return int(rank) if rank.isdecimal() and len(rank) < 6 else 0


class _Records(Contents):
    """Counts per slot, forward pass by forward pass and rank by rank."""

    def __init__(self, documents: Documents, per_token: bool) -> None:
        mode = "per_token" if per_token else "per_pass"
        super().__init__(f"a dump of SGLang's recorder, mode {mode}", "loads")
        self._documents = documents
        self._per_token = per_token

    def loads(self) -> Loads:
        """Add the ranks up, a window per forward pass, and map slots back to experts."""
        sums: dict[int, FloatArray] = {}
        ranks_of: dict[int, set[int]] = {}
        repeats = self._repeats()
        for number, rank, record, phy2log in self._each():
            if rank in repeats:
                continue
            if self._per_token:
                _logical_ids(record, phy2log)  # refuses a map that the choices contradict
            counts = _physical_counts(record, phy2log)
            if rank in ranks_of.setdefault(number, set()):
                raise FormatError(
                    f"forward pass {number} of rank {rank} is there twice; pass one dump"
                )
            ranks_of[number].add(rank)
            if number in sums:
                sums[number] += counts
            else:
                sums[number] = counts.astype(np.float64)
        if not sums:
            raise FormatError("holds no records")
        ranks = set().union(*ranks_of.values())
        if len(ranks | repeats) == 1:
            self.notes.append(
                f"holds the tokens of rank {max(ranks)} alone; pass the folder of all ranks' files"
            )
        else:
            check_ranks(ranks | repeats)
        whole = sorted(number for number, held in ranks_of.items() if held == ranks)
        if not whole:
            raise FormatError("no forward pass was recorded by all ranks; pass one dump")
        if len(whole) < len(sums):
            self.notes.append(
                f"left out {len(sums) - len(whole)} forward pass(es) that not all ranks recorded"
            )
        slots = np.stack([sums[number] for number in whole])
        return Loads(to_logical(slots, phy2log), window_names=[str(number) for number in whole])

    def trace(self, experts: int | None) -> Trace:
        """Read the choices of every token, forward pass by forward pass and rank by rank."""
        if not self._per_token:
            raise self.refusal("trace")
        parts: list[AnyArray] = []
        lengths: list[int] | None = []
        hosted, repeats = 1, self._repeats()
        for _, rank, record, phy2log in self._each():
            if rank in repeats:
                continue
            parts.append(_logical_ids(record, phy2log))
            hosted = int(phy2log.max()) + 1
            pieces = record.get("extend_seq_lens")
            if (
                lengths is not None
                and type(pieces) is list
                and all(type(piece) is int and piece >= 0 for piece in pieces)
                and sum(pieces) == len(parts[-1])
            ):
                lengths += pieces
            else:
                lengths = None  # decoding: no word on which request a token belongs to
        if not parts:
            raise FormatError("holds no records")
        if len({part.shape[1:] for part in parts}) > 1:
            raise FormatError("damaged: records differ in layers or choices")
        ids = np.concatenate(parts)
        chosen = (ids >= 0).any(axis=(0, 1))  # eight columns, whatever k is
        sequence = None if lengths is None else np.repeat(np.arange(len(lengths)), lengths)
        ids = ids[:, :, chosen] if chosen.any() else ids
        return self.active_trace(ids, experts or hosted, sequence=sequence)

    def _repeats(self) -> set[int]:
        """Find ranks that recorded the very tokens of a rank before them, in every pass.

        Without an all-to-all backend all ranks of a tensor-parallel group do.
        """
        if len({rank for _, rank, _, _ in self._each()}) < 2:
            return set()
        seen: dict[int, list[tuple[int, str]]] = {}
        for number, rank, record, _ in self._each():
            digest = hashlib.sha256()
            for key in ("global_physical_count", "topk_ids_of_layer", "input_ids", "positions"):
                value = record.get(key)
                held = value.array().tobytes() if isinstance(value, pt.Tensor) else repr(value)
                digest.update(held if isinstance(held, bytes) else held.encode())
            seen.setdefault(rank, []).append((number, digest.hexdigest()))
        first: dict[tuple[tuple[int, str], ...], int] = {}
        repeats = {
            rank
            for rank in sorted(seen)
            if first.setdefault(tuple(sorted(seen[rank])), rank) != rank
        }
        if repeats:
            self.notes.append(_REPEATED.format(shorten(sorted(repeats))))
        return repeats

    def _each(self) -> Iterator[tuple[int, int, Document, IntArray]]:
        """Yield forward pass, rank, record and the map, which all files share."""
        first: IntArray | None = None
        for file, document in self._documents():
            phy2log = whole_array(document, f"last_{MAP}")
            if phy2log.ndim != 2 or phy2log.size == 0:
                raise FormatError(f"damaged: 'last_{MAP}' has shape {phy2log.shape}")
            if first is None:
                first = phy2log.astype(np.int64)
            elif not np.array_equal(first, phy2log):
                raise FormatError(f"{file} ends with another map than the ones before it: {_STALE}")
            records = document.get("records")
            if type(records) is not list or any(type(record) is not dict for record in records):
                raise FormatError("damaged: 'records' is no list of records")
            for record in records:
                number, rank = record.get("forward_pass_id"), record.get("rank")
                if type(number) is not int or type(rank) is not int or not 0 <= rank < 2**20:
                    raise FormatError("damaged: a record without forward_pass_id and rank")
                yield number, rank, record, first


def _has_tokens(document: Document) -> bool:
    records = document["records"]
    return (
        type(records) is list
        and bool(records)
        and type(records[0]) is dict
        and "topk_ids_of_layer" in records[0]
    )


def _physical_counts(record: Document, phy2log: IntArray) -> AnyArray:
    if "global_physical_count" in record or "topk_ids_of_layer" not in record:
        counts = whole_array(record, "global_physical_count")
        if counts.shape != phy2log.shape:
            raise FormatError(
                f"counts of slots have shape {counts.shape}, the map {phy2log.shape}: {_STALE}"
            )
        return counts
    counts = np.zeros(phy2log.shape, dtype=np.int64)  # recorders before counts were added
    for layer, ids in enumerate(_choices(record, phy2log)):
        counts[layer] = np.bincount(ids[ids >= 0], minlength=phy2log.shape[1])
    return counts


def _choices(record: Document, phy2log: IntArray) -> AnyArray:
    """Return the slots that tokens chose, [layers, tokens, 8], -1 padded."""
    ids = whole_array(record, "topk_ids_of_layer")
    layers, slots = phy2log.shape
    if (
        ids.ndim != 3
        or ids.shape[0] != layers
        or (ids.size and not -1 <= ids.min() <= ids.max() < slots)
    ):
        raise FormatError(
            f"damaged: 'topk_ids_of_layer' has shape {ids.shape}, and is to name slots "
            f"0..{slots - 1} in {layers} layers"
        )
    return ids


def _logical_ids(record: Document, phy2log: IntArray) -> AnyArray:
    """Return the experts that tokens chose, [tokens, layers, 8], -1 padded.

    Raises
    ------
    FormatError
        A token with one expert twice: no router does that, so the map is not the one that the
        slots were chosen by.
    """
    slots = _choices(record, phy2log)
    if phy2log.min() < 0 or phy2log.max() >= phy2log.shape[1]:
        raise FormatError(f"damaged: the map holds {phy2log.min()}..{phy2log.max()}")
    padded = np.pad(phy2log, ((0, 0), (0, 1)), constant_values=-1).astype(np.int32)
    ids = np.stack([padded[layer][chosen] for layer, chosen in enumerate(slots)], axis=1)
    twice = repeated(ids.reshape(-1, ids.shape[2])).reshape(ids.shape[:2])
    if twice.any():
        token, layer = np.argwhere(twice)[0]
        raise FormatError(
            f"token {token} of forward pass {record.get('forward_pass_id')} has one expert twice "
            f"in layer {layer} under the map: {_STALE}"
        )
    return ids
