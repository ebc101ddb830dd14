"""PyTorch's ``.pt``: a recorder's dump, a plain tensor, or tensors by their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from craftopt.errors import FormatError, InputError
from craftopt.formats import lmdeploy, pt, sglang
from craftopt.formats._bare import BareArray, as_whole
from craftopt.formats._contents import AnyArray, Contents
from craftopt.formats._named import NamedArrays, checked_names
from craftopt.formats._text import shorten
from craftopt.formats.pt import Document, Documents


def matches(head: bytes) -> bool:
    """Tell from its first bytes whether a file is ``.pt``."""
    return pt.matches(head)


def recognise(stream: BinaryIO) -> Contents:
    """Read a ``.pt`` file, and tell by its keys what it is.

    Raises
    ------
    InputError
        A damaged file, or one without tensors.
    """
    document = pt.load(stream)
    if isinstance(document, pt.Tensor):
        return BareArray("a PyTorch tensor", document.array())
    held = _dictionary(document)
    return _by_keys(held, lambda: iter([("", held)]))


def recognise_folder(files: Sequence[Path]) -> Contents:
    """Take the ``.pt`` files of a folder for one recording.

    Raises
    ------
    InputError
        As `recognise`.
    """

    def documents() -> Iterator[tuple[str, Document]]:
        for file in files:
            with file.open("rb") as stream:
                try:
                    yield file.name, _dictionary(pt.load(stream))
                except InputError as error:
                    raise FormatError(f"{file.name}: {error}") from error

    contents = _by_keys(next(documents())[1], documents)
    if isinstance(contents, NamedArrays):
        raise FormatError(f"is a folder, and {files[0].name} is {contents.name}; pass the file")
    return contents


def _by_keys(document: Document, documents: Documents) -> Contents:
    if sglang.describes(document):
        return sglang.dumps(document, documents)
    if lmdeploy.describes(document):
        return lmdeploy.Totals(documents)
    tensors = {key: value for key, value in document.items() if isinstance(value, pt.Tensor)}
    if not tensors:
        raise FormatError(
            "is a PyTorch file, and none of SGLang's: it holds neither 'logical_count' nor "
            f"'records' nor '{sglang.MAP}', but {shorten(sorted(map(str, document))) or 'nothing'}"
        )
    is_map = set(tensors) == {sglang.MAP}
    name = "an expert location of SGLang (.pt)" if is_map else "a PyTorch file of tensors"
    return NamedArrays(name, _Tensors(tensors))


class _Tensors:
    """Tensors by their names, of files that are not SGLang's."""

    def __init__(self, tensors: dict[str, pt.Tensor]) -> None:
        self._held = tensors
        self.keys = self.tables = [str(key) for key in tensors]

    def array(self, key: str) -> AnyArray:
        """Read a tensor."""
        return as_whole(self._held[key].array())

    column = array

    def names(self, key: str) -> list[str]:
        """Read numbers as names."""
        return checked_names(key, self.array(key).tolist())


def _dictionary(document: object) -> Document:
    if type(document) is not dict:
        raise FormatError(
            f"is a PyTorch file of a {type(document).__name__}, none of SGLang's; save a tensor: "
            "torch.save(torch.as_tensor(counts), FILE), or numpy.savez(FILE, counts=counts)"
        )
    return document
