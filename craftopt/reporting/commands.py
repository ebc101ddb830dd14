"""The commands from a verdict to a server: make the plan, write the engine's file, load it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from craftopt.diagnosis import Diagnosis
from craftopt.formats.writing import EngineName, load_flags

# How the servers are started, beside what loads the map.
SERVERS: dict[EngineName, tuple[str, str]] = {
    "sglang": ("SGLang", "python -m sglang.launch_server --model-path MODEL --tp-size {gpus}"),
    "vllm": ("vLLM, experimental: open pull request 49572",
             "vllm serve MODEL --tensor-parallel-size {gpus}"),
    "tensorrt-llm": ("TensorRT-LLM", "trtllm-serve MODEL --tp_size {gpus}"),
    "vllm-ascend": ("vllm-ascend", "vllm serve MODEL --tensor-parallel-size {gpus}"),
}  # fmt: skip


def commands(found: Diagnosis, source: str, today: str | None) -> Iterator[tuple[str, str]]:
    """Yield headings and the commands below them; none where there is nothing to load.

    Parameters
    ----------
    found : Diagnosis
    source : str
        The recording as a command line names it, with the options that read it.
    today : str or None
        File of the plan that is served with.
    """
    if found.verdict not in {"place", "replicate"}:
        return
    gpus = found.gpus
    # Engines load whole slots: the fewest replicas that fill them, and are not below the verdict's.
    redundant = -(-(found.experts + found.replicas_per_layer) // gpus) * gpus - found.experts
    cluster = f"--gpus {gpus} --nodes {found.nodes} --slots uniform"
    if today is None:
        plan = (
            f"craftopt plan {source} {cluster} \\\n  --replicas-per-layer {redundant} -o plan.json"
        )
    else:
        plan = (
            f"craftopt rebalance {shlex.quote(today)} {source} {cluster} \\\n"
            f"  --replicas {redundant * found.layers} -o plan.json --steps steps.json"
        )
    yield f"The plan, {redundant} copies per layer: engines load whole slots", plan
    for engine, (title, server) in SERVERS.items():
        file = "moe.yaml" if engine == "tensorrt-llm" else "location.json"
        options, *rest = load_flags(engine, file, gpus, redundant)
        more = "".join(f" \\\n  {flag}" for flag in rest if flag.startswith("--"))
        notes = "".join(f"\n{flag}" for flag in rest if not flag.startswith("--"))
        yield (
            title,
            (
                f"craftopt export plan.json --engine {engine} -o {file}\n"
                f"{server.format(gpus=gpus)} \\\n  {options}{more}{notes}"
            ),
        )
