"""Tell a file's or folder's format by its content.

A format is a module with ``matches(head)`` and ``recognise(stream)``, named in `FORMATS`; what it
returns gives loads, a trace, pair counts or a plan (`craftopt.formats._contents`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from craftopt.errors import FormatError
from craftopt.formats import (
    ascend,
    csv_,
    json_,
    megatron,
    npy,
    npz,
    pt,
    tensorrt_llm,
    tensors,
    vllm_experimental,
)
from craftopt.formats._contents import Contents
from craftopt.formats._source import Source, errors_named, name_of, opened, read_head, rewound

FORMATS = (tensors, npz, npy, vllm_experimental, megatron, json_, csv_, tensorrt_llm)
_READ = (
    ".npz, .npy, JSON, CSV with columns window, layer, expert, tokens, SGLang's .pt, maps and "
    "recordings of other engines"
)


@contextmanager
def recognised(
    source: Source, function: str, instead: str, layers: int | Sequence[int] | None = None
) -> Iterator[Contents]:
    """Open a file or folder and tell its format; whatever goes wrong names the source.

    Raises
    ------
    InputError, FormatError
        As `read_loads`.
    """
    with errors_named(name_of(source, function, instead)):
        if isinstance(source, str | os.PathLike) and Path(os.fsdecode(source)).is_dir():
            contents = _folder(Path(os.fsdecode(source)))
            contents.layers = layers
            yield contents
            return
        with opened(source) as stream:
            head = read_head(stream)
            for module in FORMATS:
                if module.matches(head):
                    contents = module.recognise(rewound(source, stream, head))
                    contents.layers = layers
                    yield contents
                    return
        raise FormatError(_refusal(head))


def _folder(folder: Path) -> Contents:
    """Tell a recording by the files of its folder."""
    if (folder / tensorrt_llm.META).is_file():
        return tensorrt_llm.Statistics(folder)
    dumps = sorted(file for file in folder.iterdir() if file.suffix == ".pt" and file.is_file())
    if dumps:
        return tensors.recognise_folder(dumps)
    if traces := sorted(folder.glob(megatron.FILES)):
        return megatron.recognise_folder(traces)
    if ascend.hotspot_files(folder):
        return ascend.Hotspots(folder, ascend.maps_of(folder))
    raise FormatError(
        f"is a folder, and not of a recording: neither .pt files of SGLang or lmdeploy, nor "
        f"{tensorrt_llm.META} of TensorRT-LLM, nor {megatron.FILES} of Megatron-LM, nor "
        "{prefill|decode}_{rank}.csv of MindIE; pass a file"
    )


def _refusal(head: bytes) -> str:
    """Say why a file that no module recognises is not read."""
    if not head.strip():
        return f"is empty; craftopt reads {_READ}"
    if pt.is_legacy(head):
        return (
            "is in PyTorch's old format, a pickle, and craftopt never unpickles; convert it: "
            "python -c \"import torch; torch.save(torch.load('OLD.pt', map_location='cpu', "
            "weights_only=True), 'NEW.pt')\""
        )
    if head.startswith(b"\x80"):
        return (
            "is a Python pickle, which can run code when it is opened, so craftopt never "
            "unpickles; save the array with numpy.save or numpy.savez"
        )
    if head.startswith(b"\x1f\x8b"):
        return "is compressed by gzip; decompress it first (gunzip)"
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself; fetch it: git lfs pull"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "is UTF-16 text; save it in UTF-8"
    if text := csv_.hint(head):
        return text
    first_line = head.splitlines()[0][:40]
    return f"is in no format that craftopt reads ({_READ}); it starts with {first_line!r}"
