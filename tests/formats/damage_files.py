"""Damage files at random and read them, in a process of its own with little memory.

``python damage_files.py FORMAT COUNT SEED`` prints what happened as JSON, and fails on anything
but a result or an error of craftopt's: another exception, an import by a pickle, a program
started, ten seconds, a gigabyte.
"""

from __future__ import annotations

import io
import json
import re
import resource
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from engine_files import (
    COUNTS,
    PHY2LOG,
    Pickle,
    per_pass,
    per_token,
    safetensors,
    stat,
    statistics,
    torch_zip,
)

import craftopt as co

Files = dict[str, bytes]
Rng = np.random.Generator

HUGE = (b"-1", b"99999999", b"9" * 25, b"1e308", b"0.5", b"9" * 5000)
GIGABYTE = 2**20  # kilobytes, as the system counts
# What no reader may do; each is an event that CPython reports.
FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove",
             "subprocess.Popen", "socket.", "ctypes.")  # fmt: skip


def flip(data: bytes, rng: Rng) -> bytes:
    """Damage bytes: flip bits, replace, insert, repeat, cut, or put huge numbers."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        if not changed:
            break
        at = int(rng.integers(len(changed)))
        match int(rng.integers(8)):
            case 0 | 1:
                changed[at] ^= 1 << int(rng.integers(8))
            case 2:
                changed[at] = int(rng.choice([0, 0xFF, 0x80, 0x7F, *b'(){}[]:,"-e9\\.']))
            case 3:
                changed[at : at + 4] = b"\xff\xff\xff\x7f"
            case 4:
                changed[at:at] = rng.bytes(int(rng.integers(1, 9)))
            case 5:
                piece = changed[at : at + int(rng.integers(1, 40))]
                changed[at:at] = bytes(piece) * int(rng.integers(1, 50))
            case 6:
                numbers = list(re.finditer(rb"\d+", bytes(changed)))
                if numbers:
                    found = numbers[int(rng.integers(len(numbers)))]
                    huge = rng.choice(
                        [b"-1", b"99999999", b"9" * 25, b"1e308", b"0.5", b"9" * 5000]
                    )
                    changed[found.start() : found.end()] = huge
            case _:
                del changed[at:]
    return bytes(changed)


def whole(make: Callable[[], bytes], name: str = "file") -> Callable[[Rng], Files]:
    return lambda rng: {name: flip(make(), rng)}


def torch(*documents: dict) -> Callable[[Rng], Files]:
    """Damage the pickle or a tensor's bytes inside a sound archive, or the whole file."""

    def make(rng: Rng) -> Files:
        files = {}
        target = int(rng.integers(len(documents)))
        for rank, document in enumerate(documents):
            pickle = Pickle()
            text, storages = pickle.write(wrong(document, rng)), pickle.storages
            how = int(rng.integers(4)) if rank == target else -1
            if how in (0, 1):
                text = flip(text, rng)
            elif how == 2 and storages:
                at = int(rng.integers(len(storages)))
                storages[at] = flip(storages[at], rng)
            data = torch_zip(text, storages)
            files[f"recorder_{rank}.pt"] = flip(data, rng) if how == 3 else data
        return files

    return make


def wrong(document: dict, rng: Rng) -> dict:
    """Now and then give an array another type or shape."""

    def change(value):
        if isinstance(value, dict):
            return {key: change(item) for key, item in value.items()}
        if isinstance(value, list) and len(value) < 50:
            return [change(item) for item in value]
        if not isinstance(value, np.ndarray) or value.dtype.kind == "U" or rng.random() > 0.1:
            return value
        match int(rng.integers(6)):
            case 0:
                return value.astype(rng.choice(["f4", "f8", "i8", "u1", "i2"]))
            case 1:
                return value.ravel()
            case 2:
                return value[:0]
            case 3:
                return value[..., :-1]
            case 4:
                return value[np.newaxis]
            case _:
                return value * int(rng.choice([-1, 2**20]))

    return change(document) if rng.random() < 0.3 else document


def arrays(**held: object) -> Callable[[Rng], Files]:
    """Damage an array inside a sound .npz, its type or shape, or the whole file."""

    def make(rng: Rng) -> Files:
        given = {key: np.asarray(value) for key, value in held.items()}
        given = {key: np.asarray(value) for key, value in wrong(given, rng).items()}
        file = io.BytesIO()
        np.savez(file, **given)
        data = file.getvalue()
        if rng.random() < 0.5:
            return {"file": flip(data, rng)}
        key = rng.choice(list(given))
        out = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(data)) as source,
            zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target,
        ):
            for name in source.namelist():
                content = source.read(name)
                target.writestr(name, flip(content, rng) if name == f"{key}.npy" else content)
        return {"file": out.getvalue()}

    return make


def npy(array: object) -> Callable[[Rng], Files]:
    def make(rng: Rng) -> Files:
        file = io.BytesIO()
        np.save(file, np.asarray(wrong({"array": np.asarray(array)}, rng)["array"]))
        return {"file": flip(file.getvalue(), rng)}

    return make


def trtllm(rng: Rng) -> Files:
    files = {
        "meta_info.json": b'{"num_experts": 4}',
        "rank0.safetensors": safetensors(wrong(statistics(0), rng) if rng.random() < 0.2 else
                                         statistics(0)),
        "rank1.safetensors": safetensors(statistics(1)),
    }  # fmt: skip
    name = str(rng.choice(list(files)))
    data = files[name]
    if name.startswith("rank") and rng.random() < 0.5:  # the header alone, its length kept true
        length = int.from_bytes(data[:8], "little")
        header = flip(data[8 : 8 + length], rng)
        files[name] = len(header).to_bytes(8, "little") + header + data[8 + length :]
    else:
        files[name] = flip(data, rng)
    return files


def exported(engine: str) -> bytes:
    plan = co.Plan.from_phy2log(PHY2LOG, gpus=2)
    with tempfile.TemporaryDirectory() as folder:
        co.export(plan, engine, Path(folder) / "map.json")
        return (Path(folder) / "map.json").read_bytes()


def mindie(rng: Rng) -> Files:
    files = {
        "map.json": exported("vllm-ascend"),
        "decode_0.csv": b"1,2,3\n4,5,6\n7,8,9\n" * 2,
        "decode_1.csv": b"9,2,3\n4,5,6\n7,8,9\n" * 2,
    }
    name = str(rng.choice(list(files)))
    return {**files, name: flip(files[name], rng)}


def jsonl() -> bytes:
    meta = {"record_type": "eplb_load_meta", "version": 1}
    step = {
        "record_type": "eplb_load_stats",
        "version": 1,
        "step": 4,
        "expert_load": PHY2LOG.tolist(),
        "p2l_map": PHY2LOG.tolist(),
    }
    return "".join(json.dumps(record) + "\n" for record in (meta, step, step)).encode()


def mapping() -> bytes:
    rows = {str(layer): row for layer, row in enumerate(PHY2LOG.tolist())}
    record = {"record_type": "eplb_initial_mapping", "version": 1}
    return json.dumps({**record, "initial_global_assignments": rows}).encode()


def table() -> bytes:
    rows = [f"w{w},{layer},{e},{COUNTS[w, layer, e]}" for w, layer, e in np.ndindex(COUNTS.shape)]
    return "\n".join(["window,layer,expert,tokens", *rows, ""]).encode()


def routed() -> np.ndarray:
    return np.argsort(np.random.default_rng(0).random((20, 3, 16)), axis=2)[:, :, :4]


FORMATS: dict[str, Callable[[Rng], Files]] = {
    "npz": arrays(counts=COUNTS, layer_ids=[3, 4, 5], step_names=["a", "b", "c"]),
    "npz of a trace": arrays(topk_ids=routed(), sequence=np.arange(20)),
    "npz of DeepSeek's EPLB": arrays(weight=COUNTS[0], phy2log=PHY2LOG),
    "npy": npy(COUNTS),
    "npy of routed experts": npy(routed()),
    "npy of a map": npy(np.concatenate([PHY2LOG, PHY2LOG], axis=1)),
    "json": whole(lambda: json.dumps({"counts": COUNTS.tolist(), "layer_ids": [1, 2, 3]}).encode()),
    "csv": whole(table),
    "craftopt plan": whole(lambda: co.Plan.from_phy2log(PHY2LOG, gpus=2).to_json().encode()),
    "sglang stat": torch(stat()),
    "sglang per_pass": torch(per_pass(0), per_pass(1)),
    "sglang per_token": torch(per_token(0), per_token(1)),
    "sglang location pt": torch({"physical_to_logical_map": PHY2LOG}),
    "sglang location json": whole(lambda: exported("sglang")),
    "tensorrt-llm statistics": trtllm,
    "tensorrt-llm yaml": whole(lambda: exported("tensorrt-llm")),
    "vllm-ascend map": whole(lambda: exported("vllm-ascend")),
    "mindie hotspots": mindie,
    "vllm jsonl": whole(jsonl),
    "vllm jsonl mapping": whole(mapping),
}

READERS: tuple[Callable[[Path], object], ...] = (
    co.read_loads,
    co.read_trace,
    lambda path: co.read_plan(path, gpus=2),
)


SEEN: list[str] = []  # forbidden events; a hook that is added once stays for good


def watch() -> None:
    """Note forbidden events from now on."""
    sys.addaudithook(lambda event, _: SEEN.append(event) if event.startswith(FORBIDDEN) else None)


def check(error: co.CraftoptError, path: Path) -> None:
    """One short line that names the file."""
    text = str(error)
    assert str(path) in text, text
    assert "\n" not in text, text
    assert len(text) < len(str(path)) + 400, text


def peak_kilobytes() -> int:
    """Read the most memory that this process has held; getrusage counts its parent's, too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])


def main(name: str, count: int, seed: int) -> dict[str, object]:
    """Damage and read a number of files of one format."""
    rng = np.random.default_rng([seed, *name.encode()])
    read = refused = 0
    before = peak_kilobytes()
    with tempfile.TemporaryDirectory() as place:
        for number in range(count):
            folder = Path(place) / str(number)
            folder.mkdir()
            files = FORMATS[name](rng)
            for file, data in files.items():
                (folder / file).write_bytes(data)
            # a single file by its own path, now and then as a folder's only one
            single = len(files) == 1 and not (next(iter(files)).endswith(".pt") and number % 2)
            path = next(iter(folder.iterdir())) if single else folder
            SEEN.clear()
            good = False
            for reader in READERS:
                try:
                    good |= isinstance(reader(path), co.Loads | co.Trace | co.Plan)
                except co.CraftoptError as error:
                    check(error, path)
            assert not SEEN, f"{name} {number}: {SEEN}"
            read, refused = read + good, refused + (not good)
    peak = peak_kilobytes() - before
    assert peak < GIGABYTE, f"{name}: {peak} kB"
    return {"read": read, "refused": refused, "peak_mb": peak // 1024}


if __name__ == "__main__":
    limit = 3 * 2**30  # addresses, of which numpy takes most without using them
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("ignore")
    watch()
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
