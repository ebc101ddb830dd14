"""``.npz``: a zip of arrays; by their names loads, a token trace, a map of slots, pair counts."""

from __future__ import annotations

import zipfile
from typing import BinaryIO

from craftopt.errors import FormatError
from craftopt.formats._bare import BareArray
from craftopt.formats._contents import AnyArray, Contents
from craftopt.formats._named import NamedArrays, checked_names
from craftopt.formats._source import size_of
from craftopt.formats._text import brief, shorten
from craftopt.formats.npy import parse_npy

# An entry is a decompression bomb when it breaks both. Deflate reaches 1000x; recorded
# loads were measured at 2x to 4x, and small files may shrink as far as they like.
_MAX_ENTRY_BYTES = 2**30
_MAX_EXPANSION = 200
_UNNAMED = "arr_0"  # what numpy.savez calls an array without a name


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
    archive = Archive(stream)
    if archive.keys == {_UNNAMED}:
        return BareArray("an array", archive.array(_UNNAMED))
    return NamedArrays("an .npz archive", archive)


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
        self.tables = self.keys
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

    column = array

    def names(self, key: str) -> list[str]:
        """Read an array of texts or whole numbers."""
        return _texts(key, self.array(key))


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


def _texts(key: str, names: AnyArray) -> list[str]:
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
    return checked_names(key, values)
