"""The commands from a verdict to a server, and the plan that the first of them makes."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from craftopt.diagnosis import Diagnosis
from craftopt.formats.writing import EngineName, load_flags
from craftopt.loads import Loads
from craftopt.plan import Plan
from craftopt.problem import Problem
from craftopt.rebalancing import rebalance
from craftopt.solving import solve

# How the servers are started, beside what loads the map.
SERVERS: dict[EngineName, tuple[str, str]] = {
    "sglang": ("SGLang", "python -m sglang.launch_server --model-path MODEL --tp-size {gpus}"),
    "vllm": ("vLLM, experimental: open pull request 49572",
             "vllm serve MODEL --tensor-parallel-size {gpus}"),
    "tensorrt-llm": ("TensorRT-LLM", "trtllm-serve MODEL --tp_size {gpus}"),
    "vllm-ascend": ("vllm-ascend", "vllm serve MODEL --tensor-parallel-size {gpus}"),
}  # fmt: skip


def whole_slots(found: Diagnosis) -> int:
    """Return the fewest copies per layer that engines load, and not below the candidate's.

    They hold equally many slots on every GPU in every layer.
    """
    replicas = found.chosen.replicas if found.chosen else 0
    return -(-(found.experts + replicas) // found.gpus) * found.gpus - found.experts


def new_plan(
    found: Diagnosis, loads: Loads, today: Plan | None, seed: int, workers: int | None
) -> Plan:
    """Make the plan that the first of the `commands` makes, for these windows."""
    problem = Problem(
        loads, found.gpus, nodes=found.nodes, slots="uniform", replicas_per_layer=whole_slots(found)
    )
    if today is None:
        return solve(problem, seed=seed, workers=workers).plan
    # The verdict is on all windows, so the plan is for all.
    return rebalance(problem, today, all_windows=True, seed=seed, workers=workers).plan


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
    redundant = whole_slots(found)
    cluster = f"--gpus {gpus} --nodes {found.nodes} --slots uniform"
    if today is None:
        plan = (
            f"craftopt plan {source} {cluster} \\\n  --replicas-per-layer {redundant} -o plan.json"
        )
    else:
        plan = (
            f"craftopt rebalance {shlex.quote(today)} {source} {cluster} \\\n"
            f"  --replicas {redundant * found.layers} --all-windows -o plan.json --steps steps.json"
        )
    yield f"The plan, {redundant} copies per layer: engines load whole slots", plan
    for engine, (title, server) in SERVERS.items():
        file = "moe.yaml" if engine == "tensorrt-llm" else "location.json"
        lines = load_flags(engine, file, gpus, redundant)
        flags = " ".join(line for line in lines if line.startswith("--"))
        notes = "".join(f"\n{line}" for line in lines if not line.startswith("--"))
        serve = f"{server.format(gpus=gpus)} {flags}".replace(" --", " \\\n  --")
        yield title, f"craftopt export plan.json --engine {engine} -o {file}\n{serve}{notes}"
