"""Replay traffic that changes, and compare ways to keep up with it.

    python benchmarks/online_replay.py [loads.npz] --gpus 64 --replicas-per-layer 64 --every 15

Two streams are made of the windows' domains (a window's domain is its name up to the first ``/``):

* switch: half of every domain's windows, one domain after the other, and then the other half in
  the same order, so that every domain comes back with windows that nothing has seen;
* blend: windows that mix all in shares that drift (`craftopt.blend`).

Contenders start from EPLB's plan for the first window: `never` keeps it, `eplb` plans anew on the
sum of the last k windows every k windows, `online` is `craftopt.OnlinePlanner`, and
`clairvoyant` plans every window with `fast` on itself. A plan made after a window serves the next.
Moves are copies hosted on a GPU that did not host them. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np

import craftopt as co

BLENDED = 40


def switch(loads: co.Loads) -> co.Loads:
    """Put the windows in order of a hard switch of domains, each seen twice."""
    domain = [name.split("/")[0] for name in loads.window_names]
    order = []
    for half in (0, 1):
        for name in dict.fromkeys(domain):
            own = [window for window, other in enumerate(domain) if other == name]
            order += own[: len(own) // 2] if half == 0 else own[len(own) // 2 :]
    return loads.select(order)


def contenders(
    problem: co.Problem, stream: co.Loads, every: list[int], cost: float, horizon: float
) -> Iterator[tuple[str, co.Replay, float]]:
    """Replay the stream with every contender; seconds are all it took to decide."""
    first = problem.replace(loads=stream.select([0]))
    start = co.solve(first, "eplb").plan
    yield "never", co.replay(stream, start, lambda window, tokens: start), 0.0
    for k in every:
        plan = start
        began = time.perf_counter()

        def eplb(window: int, tokens: np.ndarray, k: int = k) -> co.Plan:
            nonlocal plan
            if (window + 1) % k == 0:
                seen = stream.select(np.arange(window + 1 - k, window + 1)).total()
                plan = co.solve(problem.replace(loads=seen), "eplb").plan
            return plan

        yield f"eplb every {k}", co.replay(stream, start, eplb), time.perf_counter() - began
    planner = co.OnlinePlanner(first, start, horizon=horizon, move_cost=cost)
    actions: list[str] = []

    def online(window: int, tokens: np.ndarray) -> co.Plan:
        if window == 0:
            return start  # it is the past that the planner was made with
        decision = planner.observe(tokens)
        actions.append(f"{decision.domain}{decision.action[:3] if decision.moves else ''}")
        return decision.plan

    began = time.perf_counter()
    served = co.replay(stream, start, online)
    yield "online", served, time.perf_counter() - began
    print(f"<!-- online: {' '.join(actions)} -->")
    began = time.perf_counter()
    plans = [
        co.solve(problem.replace(loads=stream.select([window])), "fast").plan
        for window in range(stream.windows)
    ]
    ahead = co.replay(stream, plans[0], lambda window, _: plans[min(window + 1, len(plans) - 1)])
    yield "clairvoyant", ahead, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", help="loads; the example glm-5.2 by default")
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--replicas-per-layer", type=int, default=64)
    parser.add_argument("--every", type=int, default=1, help="take every so many layers")
    parser.add_argument("--eplb", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--alpha", type=float, default=0.1, help="of the blend's shares")
    parser.add_argument("--move-cost", type=float, default=5.0, help="token-loads per move")
    parser.add_argument("--horizon", type=float, default=8.0, help="windows")
    parser.add_argument("--expert-bytes", type=float, default=37.7e6)
    options = parser.parse_args()
    loads = co.read_loads(options.file) if options.file else co.load_example("glm-5.2")
    loads = co.Loads(
        loads.tokens[:, :: options.every], loads.layer_ids[:: options.every], loads.window_names
    )
    problem = co.Problem(
        loads, options.gpus, replicas_per_layer=options.replicas_per_layer, slots="uniform"
    )
    streams = {
        "switch": switch(loads),
        "blend": co.blend(loads, options.alpha, windows=BLENDED, seed=0),
    }
    print("| stream | contender | relative time | moves | of all copies | GB | s |")
    print("|---|---|---|---|---|---|---|")
    for name, stream in streams.items():
        for contender, served, seconds in contenders(
            problem, stream, options.eplb, options.move_cost, options.horizon
        ):
            moves = int(served.moves.sum())
            copies = loads.layers * (loads.experts + options.replicas_per_layer)
            print(
                f"| {name} | {contender} | {served.relative_time:.3f} | {moves} "
                f"| {moves / copies:.2f} | {moves * options.expert_bytes / 1e9:.1f} "
                f"| {seconds:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
