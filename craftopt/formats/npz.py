"""``.npz``: a zip of arrays; by their names loads, a token trace, a map of slots, pair counts."""

from __future__ import annotations

import zipfile
from typing import BinaryIO

import numpy as np

from craftopt.coactivation import COACTIVATION_KEYS, Coactivation
from craftopt.errors import FormatError
from craftopt.formats._contents import AnyArray, Contents, Kind, check_rank, plan_of
from craftopt.formats._keys import key_of, kind_of, names_key, window_names
from craftopt.formats._source import size_of
from craftopt.formats._text import brief, shorten
from craftopt.formats.npy import parse_npy
from craftopt.loads import Loads
from craftopt.plan import Plan
from craftopt.traces import Trace

_PAIRS = "pairs"  # of pair counts; the others are `COACTIVATION_KEYS`
_COLUMNS = {
    "layer_ids": ("layer_ids",),
    "domain": ("domain", "step", "task"),
    "domain_names": ("domain_names", "step_names"),
    "sequence": ("sequence", "seq"),
}

# An entry is a decompression bomb when it breaks both. Deflate reaches 1000x; recorded
# loads were measured at 2x to 4x, and small files may shrink as far as they like.
_MAX_ENTRY_BYTES = 2**30
_MAX_EXPANSION = 200


def matches(head: bytes) -> bool:
    """Tell from its first bytes whether a file is a zip archive."""
    return head.startswith(b"PK")


def recognise(stream: BinaryIO) -> Contents:
    """Open the archive, and tell by the names of its arrays what it is.

    Raises
    ------
    InputError
        A damaged archive, or none of the keys.
    """
    return _NamedArrays(Archive(stream))


class _NamedArrays(Contents):
    """Loads under ``counts``, a trace under ``topk_ids``, a map under ``phy2log``, or ``pairs``."""

    def __init__(self, archive: Archive) -> None:
        kind = "coactivation" if _PAIRS in archive.keys else kind_of(archive.keys)
        super().__init__("an .npz archive", kind)
        self._archive = archive

    def loads(self) -> Loads:
        """Read loads from the arrays of the archive.

        Raises
        ------
        InputError
            Arrays that are not loads.
        """
        key, archive = self._key("loads"), self._archive
        tokens = archive.array(key)
        check_rank(repr(key), tokens.shape)
        layer_ids = archive.array("layer_ids") if "layer_ids" in archive.keys else None
        name_key = names_key(archive.keys)
        names = None if name_key is None else texts(name_key, archive.array(name_key))
        return Loads(tokens, layer_ids, names)

    def trace(self, experts: int | None) -> Trace:
        """Read a trace: expert ids, and per token its domain and sequence.

        Raises
        ------
        InputError
            Arrays that are no trace.
        """
        key = self._key("trace")
        columns = {
            name: self._archive.array(alias)
            for name, aliases in _COLUMNS.items()
            if (alias := next((a for a in aliases if a in self._archive.keys), None)) is not None
        }
        names = columns.get("domain_names")
        return self.active_trace(
            self._archive.array(key),
            experts,
            columns.get("layer_ids"),
            columns.get("domain"),
            None if names is None else texts("domain_names", names),
            columns.get("sequence"),
        )

    def plan(self, gpus: int | None) -> Plan:
        """Read a table of experts per slot, such as DeepSeek's EPLB returns.

        Raises
        ------
        InputError
            An array that is no such table.
        """
        key = self._key("plan")
        layer_ids = self._archive.array("layer_ids") if "layer_ids" in self._archive.keys else None
        return plan_of(self._archive.array(key), gpus, layer_ids)

    def coactivation(self) -> Coactivation:
        """Read pair counts, and nothing beside them that is not known.

        Raises
        ------
        InputError
            Arrays that are no pair counts.
        """
        if self.kind != "coactivation":
            raise self.refusal("coactivation")
        keys = self._archive.keys
        foreign = sorted(keys.difference(COACTIVATION_KEYS))
        if foreign:
            raise FormatError(
                f"holds {shorten(foreign)} beside the pairs; arrays of pair counts are "
                f"{', '.join(COACTIVATION_KEYS)}"
            )
        if "top_k" not in keys:
            raise FormatError("holds pairs without 'top_k', the experts that a token chooses")
        held = {key: self._archive.array(key) for key in sorted(keys)}
        top_k = held.pop("top_k")
        if top_k.size != 1 or top_k.dtype.kind not in "iu":
            raise FormatError(f"'top_k' has shape {top_k.shape} and type {top_k.dtype}")
        return active_pairs(
            self.notes, Coactivation(held.pop(_PAIRS), **held, top_k=int(top_k.item()))
        )

    def _key(self, wanted: Kind) -> str:
        key = key_of(wanted, self._archive.keys)
        # Pair counts have a key in common with loads: tokens.
        if key is None or self.kind == "coactivation":
            raise self.refusal(wanted)
        return key


def active_pairs(notes: list[str], pairs: Coactivation) -> Coactivation:
    """Keep the layers that have tokens; note which were dropped."""
    active = pairs.tokens > 0
    if not active.any():
        raise FormatError("holds no tokens: 0 in every layer")
    if active.all():
        return pairs
    dropped = shorten(pairs.layer_ids[~active].tolist())
    notes.append(f"dropped layers without tokens, such as dense layers: {dropped}")
    return pairs.select(np.flatnonzero(active).tolist())


class Archive:
    """The arrays of an ``.npz`` file; those not asked for are not even decompressed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._size = size_of(stream)
        try:
            self._zip = zipfile.ZipFile(stream)
            self._entries = {info.filename: info for info in self._zip.infolist()}
        except Exception as error:  # zipfile raises a dozen types on damaged archives
            raise FormatError(f"damaged or truncated zip archive: {brief(error)}") from error
        self.keys = {name.removesuffix(".npy") for name in self._entries if name.endswith(".npy")}
        if any(name.endswith(".pkl") for name in self._entries):
            raise FormatError(
                "a zip archive around a pickle, as PyTorch writes, which can run code when it is "
                "opened, so craftopt never unpickles; save the array with numpy.savez"
            )
        if not self.keys:
            raise FormatError(
                "a zip archive without arrays, so no .npz; "
                f"it holds {shorten(sorted(self._entries)) or 'nothing'}"
            )

    def array(self, key: str) -> AnyArray:
        """Read one array; errors name it."""
        try:
            return parse_npy(_content(self._zip, self._entries[f"{key}.npy"], self._size))
        except FormatError as error:
            raise FormatError(f"array {key!r}: {error}") from error


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, archive_bytes: int) -> bytes:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FormatError("compressed by a method that numpy does not write; use savez_compressed")
    packed = min(info.compress_size, archive_bytes)
    if info.file_size > _MAX_ENTRY_BYTES and info.file_size > _MAX_EXPANSION * packed:
        raise FormatError(
            f"claims {info.file_size} bytes packed into {packed}, as decompression bombs do; "
            f"above {_MAX_ENTRY_BYTES} bytes at most {_MAX_EXPANSION} times is read. "
            "If the file is to be trusted, save it with numpy.savez (not compressed)"
        )
    try:
        return archive.read(info)
    except Exception as error:  # as above, and zlib's own
        raise FormatError(f"damaged or truncated zip entry: {brief(error)}") from error


def texts(key: str, names: AnyArray) -> list[str]:
    """Make a list of names of an array of texts or whole numbers."""
    if names.ndim != 1 or names.dtype.kind not in "USiu":
        raise FormatError(
            f"{key!r} has shape {names.shape} and type {names.dtype}; pass one name per window"
        )
    try:
        if names.dtype.kind == "U":  # beyond Unicode, tolist() fails inside CPython
            names.astype(names.dtype.newbyteorder("<")).tobytes().decode("utf-32-le")
        values = names.tolist()
        if names.dtype.kind == "S":
            values = [value.decode() for value in values]
    except UnicodeDecodeError as error:
        raise FormatError(f"{key!r} holds text that is not valid Unicode") from error
    return window_names(key, values)
