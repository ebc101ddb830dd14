"""Files as serving engines write them, made here byte by byte; PyTorch is not needed.

`torch_file` writes what ``torch.save`` writes: a zip archive around a pickle of protocol 2 that
names tensors, and their raw bytes beside it.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

STORAGES = {
    "u1": "ByteStorage",
    "i1": "CharStorage",
    "i2": "ShortStorage",
    "i4": "IntStorage",
    "i8": "LongStorage",
    "f2": "HalfStorage",
    "f4": "FloatStorage",
    "f8": "DoubleStorage",
}


class Pickle:
    """Writes protocol 2 by hand; arrays become tensors."""

    def __init__(self) -> None:
        self.storages: list[bytes] = []
        self._memo = 0

    def write(self, value: Any) -> bytes:
        return b"\x80\x02" + self._any(value) + b"."

    def _any(self, value: Any) -> bytes:
        if isinstance(value, bytes):  # raw operations
            return value
        if value is None or isinstance(value, bool):
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, float):
            return b"G" + struct.pack(">d", value)
        if isinstance(value, str):
            data = value.encode()
            self._memo += 1
            return b"X" + struct.pack("<I", len(data)) + data + b"r" + struct.pack("<I", self._memo)
        if isinstance(value, dict):
            items = b"".join(self._any(k) + self._any(v) for k, v in value.items())
            return b"}(" + items + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(map(self._any, value)) + b"e"
        if isinstance(value, tuple):
            return b"(" + b"".join(map(self._any, value)) + b"t"
        return self.tensor(np.asarray(value))

    def tensor(self, array: np.ndarray, **claims: Any) -> bytes:
        """Write a tensor; claims replace what is true of it."""
        kind = f"{array.dtype.kind}{array.dtype.itemsize}"
        strides = tuple(step // array.itemsize for step in array.strides)
        self.storages.append(array.tobytes("A"))
        true = {
            "storage": STORAGES[kind],
            "key": str(len(self.storages) - 1),
            "count": array.size,
            "offset": 0,
            "shape": array.shape,
            "strides": strides,
            "location": "cpu",
        }
        said = {**true, **claims}
        persistent = (
            self._any("storage") + f"ctorch\n{said['storage']}\n".encode() + self._any(said["key"])
            + self._any(said["location"]) + self._any(said["count"])
        )  # fmt: skip
        return (
            b"ctorch._utils\n_rebuild_tensor_v2\n((" + persistent + b"tQ"
            + self._any(said["offset"]) + self._any(said["shape"]) + self._any(said["strides"])
            + b"\x89ccollections\nOrderedDict\n)RtR"
        )  # fmt: skip


def torch_zip(pickle: bytes, storages: list[bytes], order: bytes = b"little") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", order)
        for number, data in enumerate(storages):
            archive.writestr(f"archive/data/{number}", data)
        archive.writestr("archive/version", "3\n")
    return stream.getvalue()


def torch_file(value: Any) -> bytes:
    """Write what ``torch.save`` would of plain values and arrays."""
    pickle = Pickle()
    text = pickle.write(value)
    return torch_zip(text, pickle.storages)


def torch_tensor_file(array: np.ndarray, **claims: Any) -> bytes:
    """Write a stat dump whose tensor claims something else than it has."""
    pickle = Pickle()
    text = pickle.write({"rank": 0, "logical_count": pickle.tensor(array, **claims)})
    return torch_zip(text, pickle.storages)


def safetensors(tensors: dict[str, np.ndarray], change: Callable[[dict], None] = id) -> bytes:
    """Write safetensors; ``change`` may falsify the header."""
    header, data = {}, b""
    kinds = {"i8": "I64", "i4": "I32", "i2": "I16", "u1": "U8", "f4": "F32", "f8": "F64"}
    for name, array in tensors.items():
        kind = f"{array.dtype.kind}{array.dtype.itemsize}"
        end = len(data) + array.nbytes
        header[name] = {
            "dtype": kinds[kind],
            "shape": list(array.shape),
            "data_offsets": [len(data), end],
        }
        data += array.tobytes()
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


# --- a small recording: 3 layers, the first dense; 4 experts, 6 slots, 2 ranks -----------------

PHY2LOG = np.array([[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 3, 1], [2, 0, 1, 3, 2, 0]])
COUNTS = np.array(
    [
        [[0, 0, 0, 0], [9, 4, 2, 1], [3, 3, 8, 2]],
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [7, 1, 6, 2], [5, 1, 9, 1]],
    ],
    dtype=np.int32,
)


def stat(counts: np.ndarray = COUNTS) -> dict[str, Any]:
    return {"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": None}


def physical(rng: np.random.Generator, layers: int = 3, dense: int = 1) -> np.ndarray:
    counts = rng.integers(1, 50, (layers, 6)).astype(np.int32)
    counts[:dense] = 0
    return counts


def per_pass(rank: int, seed: int = 0, phy2log: np.ndarray = PHY2LOG) -> dict[str, Any]:
    rng = np.random.default_rng([seed, rank])
    return {
        "records": [
            {
                "forward_pass_id": number,
                "rank": rank,
                "gatherer_key": "primary",
                "global_physical_count": physical(rng),
            }
            for number in (7, 8, 9)
        ],
        "last_physical_to_logical_map": phy2log,
    }


def per_token(rank: int = 0, tokens: int = 5) -> dict[str, Any]:
    """Tokens whose two slots host different experts; dense layers and columns beyond 2 are -1."""
    rng = np.random.default_rng(rank)
    records = []
    for number in (7, 8):
        ids = np.full((3, tokens, 8), -1, dtype=np.int32)
        for layer in (1, 2):
            for token in range(tokens):
                first = rng.integers(6)
                others = np.flatnonzero(PHY2LOG[layer] != PHY2LOG[layer, first])
                ids[layer, token, :2] = first, rng.choice(others)
        counts = np.stack([np.bincount(row[row >= 0], minlength=6) for row in ids])
        records.append(
            {
                "forward_pass_id": number,
                "rank": rank,
                "gatherer_key": "primary",
                "input_ids": list(range(tokens)),
                "positions": list(range(tokens)),
                "extend_seq_lens": [2, tokens - 2],
                "forward_mode": 1,
                "topk_ids_of_layer": ids,
                "misc_objects": [],
                "global_physical_count": counts,
            }
        )
    return {"records": records, "last_physical_to_logical_map": PHY2LOG}


def to_experts(counts: np.ndarray, phy2log: np.ndarray = PHY2LOG) -> np.ndarray:
    """Add slots up by expert, the slow way."""
    result = np.zeros((len(phy2log), 4))
    for layer, row in enumerate(phy2log):
        for slot, expert in enumerate(row):
            result[layer, expert] += counts[layer, slot]
    return result


def statistics(rank: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rank)
    return {
        f"{iteration}_{layer}": rng.integers(0, 30, 4)
        for iteration in (100, 101, 102)
        for layer in (3, 5)
    }
