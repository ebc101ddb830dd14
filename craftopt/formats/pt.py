"""PyTorch's ``.pt`` without PyTorch, and without running anything that the file holds.

``torch.save`` writes a zip archive: ``NAME/data.pkl``, a pickle that says what is there, and
``NAME/data/0``, ``NAME/data/1``, ..., the raw bytes of the tensors. A pickle is a program. Here
it is decoded by the standard library (`pickletools.genops` decodes and never runs) and acted on
by a machine that knows plain numbers, texts, lists, tuples and dicts, and tensors: it can make
nothing else, so there is nothing that a file could make it do.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from craftopt.errors import FormatError
from craftopt.formats._bare import as_whole
from craftopt.formats._contents import AnyArray
from craftopt.formats._source import size_of
from craftopt.formats._text import brief

# What files from before PyTorch 1.6 begin with: no zip, but a pickled number.
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."

# A pickle within these limits takes seconds and megabytes; recordings of a million tokens do.
_MOST_BYTES = 2**25
_MOST_STEPS = 3_000_000
_MOST_CONTAINERS = 2**20

_STORAGES = {
    "ByteStorage": "u1",
    "CharStorage": "i1",
    "ShortStorage": "i2",
    "IntStorage": "i4",
    "LongStorage": "i8",
    "HalfStorage": "f2",
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
}
_BFLOAT16 = np.dtype([("high half of a float32", "<u2")])  # numpy has no such type
_NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


# The dumps of a recording, by file name; each is read again for every pass over them.
Document = dict[str, Any]
Documents = Callable[[], Iterator[tuple[str, Document]]]


def matches(head: bytes) -> bool:
    """Tell from its first bytes whether a file is a zip archive that begins with a pickle."""
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head.startswith(b"PK\x03\x04") and name.endswith(b"/data.pkl")


def is_legacy(head: bytes) -> bool:
    """Tell whether a file was written by PyTorch before 1.6, or in its old format."""
    return head.startswith(_LEGACY)


@dataclass(frozen=True)
class Tensor:
    """A tensor whose claims were checked, and whose bytes are not read yet."""

    shape: tuple[int, ...]
    dtype: npt.DTypeLike
    _strides: tuple[int, ...]
    _offset: int
    _key: str
    _archive: Archive

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def array(self) -> AnyArray:
        """Read the values, a read-only array.

        Raises
        ------
        FormatError
            A damaged entry of the archive.
        """
        values = np.frombuffer(self._archive.read(self._key), self.dtype)
        if values.dtype.names:
            values = (values.view(values.dtype[0]).astype(np.uint32) << 16).view(np.float32)
        size = values.itemsize
        if not math.prod(self.shape):
            return np.zeros(self.shape, self.dtype)
        return np.lib.stride_tricks.as_strided(
            values[self._offset :],
            self.shape,
            tuple(stride * size for stride in self._strides),
            writeable=False,
        )


def load(stream: BinaryIO) -> object:
    """Read what the file holds: plain containers, numbers and texts, and `Tensor`.

    Raises
    ------
    FormatError
        A damaged archive, a pickle that asks for anything else, or a tensor that claims more
        than its bytes.
    """
    return _Machine(Archive(stream)).run()


def whole_array(document: Document, key: str) -> AnyArray:
    """Read a tensor of whole numbers by its name.

    Raises
    ------
    FormatError
        No such tensor, or numbers that are not whole.
    """
    value = document.get(key)
    if not isinstance(value, Tensor):
        raise FormatError(f"damaged: {key!r} is no tensor")
    array = as_whole(value.array())
    if array.dtype.kind not in "iu":
        raise FormatError(
            f"damaged: {key!r} holds {array.dtype}, not whole numbers; if they are shares, scale "
            "them, and save them with numpy.savez(FILE, counts=...)"
        )
    return array


class Archive:
    """The entries of the zip file, by their names without the leading folder."""

    def __init__(self, stream: BinaryIO) -> None:
        self.size = size_of(stream)
        try:
            self._zip = zipfile.ZipFile(stream)
            entries = {info.filename: info for info in self._zip.infolist()}
        except Exception as error:  # zipfile raises a dozen types on damaged archives
            raise FormatError(f"damaged or truncated zip archive: {brief(error)}") from error
        pickles = [name for name in entries if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise FormatError(f"damaged: {len(pickles)} entries data.pkl; torch.save writes one")
        folder = pickles[0].removesuffix("data.pkl")
        self._entries = {name.removeprefix(folder): info for name, info in entries.items()}
        self._read = 0
        order = self.read("byteorder") if "byteorder" in self._entries else b"little"
        if order not in (b"little", b"big"):
            raise FormatError(f"damaged: byte order {order[:20]!r}")
        self.byte_order: Literal["<", ">"] = "<" if order == b"little" else ">"

    def bytes_of(self, key: str) -> int:
        """Return how many bytes an entry has; stored plainly, it cannot claim more than it has."""
        info = self._entries.get(key)
        if info is None:
            raise FormatError(f"damaged: entry {key[:40]!r} is missing")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise FormatError(f"entry {key[:40]!r} is compressed; torch.save stores plainly")
        if info.file_size > self.size:
            raise FormatError(
                f"damaged or truncated: entry {key[:40]!r} claims {info.file_size} bytes in a "
                f"file of {self.size}"
            )
        return info.file_size

    def read(self, key: str) -> bytes:
        """Read an entry; its checksum is compared.

        A recording's tensors have bytes of their own. Many tensors of the same bytes would claim
        more memory than the file has, so no more is given out than twice the file.
        """
        self._read += self.bytes_of(key)
        if self._read > 2 * self.size:
            raise FormatError(f"its tensors claim more bytes than the {self.size} of the file")
        try:
            return self._zip.read(self._entries[key])
        except Exception as error:  # as above
            raise FormatError(f"damaged or truncated zip entry: {brief(error)}") from error


class _Name:
    """Something that the pickle may call: a constructor of this module, never a Python object."""

    def __init__(self, text: str) -> None:
        self.text = text


_REBUILD = _Name("torch._utils _rebuild_tensor_v2")
_ORDERED_DICT = _Name("collections OrderedDict")
_CALLABLE = {name.text: name for name in (_REBUILD, _ORDERED_DICT)}


@dataclass(frozen=True)
class _Storage:
    dtype: np.dtype[Any]
    key: str
    count: int


class _Machine:
    """Acts on the pickle's operations, of which it knows those that torch.save uses."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._containers = 0

    def run(self) -> object:
        if self._archive.bytes_of("data.pkl") > _MOST_BYTES:
            raise FormatError(
                f"its data.pkl has {self._archive.bytes_of('data.pkl')} bytes; at most "
                f"{_MOST_BYTES} are read: dump the recording more often"
            )
        operations = pickletools.genops(io.BytesIO(self._archive.read("data.pkl")))
        steps = 0
        try:
            for operation, argument, _ in operations:
                steps += 1
                if operation.name == "STOP":
                    return self._stack.pop()
                if steps > _MOST_STEPS:
                    raise FormatError(
                        f"its data.pkl holds over {_MOST_STEPS} values; dump the recording more "
                        "often"
                    )
                self._step(operation.name, argument)
        except FormatError:
            raise
        except Exception as error:  # genops raises several types; an empty stack IndexError
            raise FormatError(f"its data.pkl is damaged: {brief(error)}") from error
        raise FormatError("its data.pkl is damaged: it has no end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _NUMBERS:
            stack.append(argument)
        elif name in {"BINPUT", "LONG_BINPUT"}:
            self._memo[argument] = stack[-1]
        elif name in {"BINGET", "LONG_BINGET"}:
            stack.append(self._memo[argument])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name == "EMPTY_DICT":
            stack.append(self._counted({}))
        elif name == "EMPTY_LIST":
            stack.append(self._counted([]))
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name == "TUPLE":
            stack.append(self._counted(tuple(self._from_mark())))
        elif name in _TUPLES:
            count = _TUPLES[name]
            items = tuple(stack[-count:])
            if len(items) < count:
                raise FormatError("its data.pkl is damaged: a tuple without items")
            stack[-count:] = [self._counted(items)]
        elif name == "APPEND":
            item = stack.pop()
            _of_type(list, stack[-1]).append(item)
        elif name == "APPENDS":
            items_ = self._from_mark()
            _of_type(list, stack[-1]).extend(items_)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _of_type(dict, stack[-1])[_valid_key(key)] = value
        elif name == "SETITEMS":
            flat = self._from_mark()
            target = _of_type(dict, stack[-1])
            for key, value in zip(flat[::2], flat[1::2], strict=True):
                target[_valid_key(key)] = value
        elif name == "GLOBAL":
            stack.append(_named(argument))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(self._call(stack.pop(), arguments))
        elif name != "PROTO":
            raise FormatError(
                f"its data.pkl asks for {name}, which torch.save does not write for tensors and "
                "plain values; craftopt runs no code from files"
            )

    def _from_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _counted(self, container: Any) -> Any:
        self._containers += 1
        if self._containers > _MOST_CONTAINERS:
            raise FormatError(
                f"its data.pkl holds over {_MOST_CONTAINERS} containers; dump the recording more "
                "often"
            )
        return container

    def _storage(self, description: object) -> _Storage:
        match description:
            case ("storage", np.dtype() as dtype, str(key), str(), int(count)):
                there = self._archive.bytes_of(f"data/{key}")
                if 0 <= count * dtype.itemsize <= there:
                    return _Storage(dtype, f"data/{key}", count)
                raise FormatError(
                    f"tensor storage {key[:40]!r} claims {count} values of {dtype}, and has "
                    f"{there} bytes"
                )
        raise FormatError("its data.pkl is damaged: a storage without description")

    def _call(self, function: object, arguments: object) -> object:
        if function is _ORDERED_DICT and arguments == ():
            return self._counted({})
        if function is not _REBUILD:
            raise FormatError("its data.pkl calls what is no function; craftopt runs no code")
        match arguments:
            case (_Storage() as storage, int(offset), tuple(shape), tuple(strides), *_):
                return self._tensor(storage, offset, shape, strides)
        raise FormatError("its data.pkl is damaged: a tensor without description")

    def _tensor(
        self, storage: _Storage, offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...]
    ) -> Tensor:
        numbers = (offset, *shape, *strides)
        if (
            len(shape) != len(strides)
            or len(shape) > 8
            or any(type(number) is not int or not 0 <= number < 2**62 for number in numbers)
        ):
            raise FormatError("its data.pkl is damaged: a tensor of no valid shape")
        last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
        count = math.prod(shape)
        # A tensor of more values than its storage repeats them; recorders never write that.
        if count and (last >= storage.count or count > storage.count):
            raise FormatError(
                f"a tensor claims shape {shape} from a storage of {storage.count} values"
            )
        dtype = storage.dtype.newbyteorder(self._archive.byte_order)
        return Tensor(shape, dtype, strides, offset, storage.key, self._archive)


def _of_type(kind: type[Any], value: object) -> Any:
    if type(value) is not kind:
        raise FormatError(
            f"its data.pkl is damaged: {type(value).__name__} where a {kind.__name__} belongs"
        )
    return value


def _valid_key(key: object) -> object:
    if type(key) not in (str, int):
        raise FormatError("its data.pkl is damaged: a key that is no text or number")
    return key


def _named(text: str) -> object:
    """Return what a name means: a storage's type, or one of the two constructors."""
    module, _, name = text.partition(" ")
    if module == "torch" and name in _STORAGES:
        return np.dtype(_STORAGES[name])
    if text == "torch BFloat16Storage":
        return _BFLOAT16
    if text in _CALLABLE:
        return _CALLABLE[text]
    raise FormatError(
        f"its data.pkl names {text[:80]!r}, neither a tensor nor a plain container; craftopt runs "
        "no code from files. Save tensors of whole or floating-point numbers alone"
    )
