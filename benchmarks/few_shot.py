"""One window's notice: what a few windows of a new kind of traffic are worth, beside old ones.

    python -m benchmarks.few_shot LOADS --gpus 64 --replicas 8 64 [--every 5]
    python -m benchmarks.few_shot TRACE --gpus 8 --tokens 2000 --replicas 0 8

Every domain in turn is new: plans are made from its first k windows before the served ones, from
the windows of all other domains, or from both, and served on its last windows, half of them, four
at most. Windows of a token trace are whole sequences of one domain, as many as make the tokens;
domains of fewer than eight windows are left out and named. Prints the mean balancedness over the
domains under even dispatch, and the gain that is kept where only a part of the copies may move:
served balancedness less that of the old plan, as a share of the gain when all may.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np

import craftopt as co
from craftopt.windows import NEAR, hellinger, root_shares

LEAST = 8
SHOTS = (0, 1, 2, 4)
PARTS = (0.05, 0.1, 0.25)
Tokens = np.ndarray  # float64 [windows, layers, experts]


def of_trace(trace: co.Trace, tokens: int, every: int) -> dict[str, Tokens]:
    """Cut each domain's sequences, in order, into windows of so many tokens."""
    found = {}
    for number, name in enumerate(trace.domain_names):
        at = np.flatnonzero(trace.domain == number)
        order = at[np.argsort(trace.sequence[at], kind="stable")]
        _, place, length = np.unique(trace.sequence[order], return_inverse=True, return_counts=True)
        middle = np.cumsum(length) - length / 2  # a sequence is in the window of its middle
        window = (middle // tokens).astype(np.int64)[place]
        windows = [order[window == count] for count in range(at.size // tokens)]
        ids = trace.topk_ids[:, ::every]
        found[name] = np.array(
            [
                [np.bincount(layer.ravel(), minlength=trace.experts) for layer in of_window]
                for of_window in (ids[rows].swapaxes(0, 1) for rows in windows)
            ],
            dtype=float,
        )
    return found


def of_loads(loads: co.Loads, every: int) -> dict[str, Tokens]:
    """Take each domain's windows in order."""
    names = np.array([name.split("/")[0] for name in loads.window_names])
    return {name: loads.tokens[names == name, ::every] for name in dict.fromkeys(names.tolist())}


def alike(tokens: Tokens) -> Tokens:
    """Scale windows to the same number of tokens."""
    return tokens / tokens.sum(axis=2, keepdims=True).clip(1) * 1e4


def near(old: list[Tokens], new: Tokens) -> Tokens:
    """Select the old windows within 1.6 usual distances of the new ones; see `near_latest`."""
    roots = [[root_shares(window) for window in windows] for windows in old]
    steps = [hellinger(a, b) for kind in roots for a, b in pairwise(kind)]
    mean = np.mean([root_shares(window) for window in new], axis=0)
    found = [
        window
        for windows, kind in zip(old, roots, strict=True)
        for window, root in zip(windows, kind, strict=True)
        if hellinger(root, mean) <= NEAR * np.median(steps)
    ]
    return np.array(found).reshape(-1, *new.shape[1:])


def problem(tokens: Tokens, gpus: int, replicas: int) -> co.Problem:
    """State the problem for windows."""
    slots = "even" if (tokens.shape[2] + replicas) % gpus else "uniform"
    return co.Problem(
        co.Loads(tokens), gpus, replicas_per_layer=replicas, slots=slots, objective="balancedness"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("file")
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--replicas", type=int, nargs="+", required=True, help="per layer")
    parser.add_argument("--tokens", type=int, default=2000, help="of a window of a trace")
    parser.add_argument("--every", type=int, default=1, help="take one layer in so many")
    options = parser.parse_args()
    warnings.simplefilter("ignore", co.CraftoptWarning)
    try:
        parts = of_trace(co.read_trace(options.file), options.tokens, options.every)
    except co.CraftoptError:
        parts = of_loads(co.read_loads(options.file), options.every)
    few = [name for name, windows in parts.items() if len(windows) < LEAST]
    parts = {name: windows for name, windows in parts.items() if name not in few}
    print(f"left out, fewer than {LEAST} windows: {', '.join(few) or 'none'}\n")
    found: dict[tuple[str, int, int], list[float]] = {}
    kept: dict[tuple[int, int, float], list[float]] = {}
    for replicas in options.replicas:
        task = partial(problem, gpus=options.gpus, replicas=replicas)

        def plan(
            tokens: Tokens, method: str, task: Callable[[Tokens], co.Problem] = task
        ) -> co.Plan:
            return co.solve(task(tokens), method).plan

        for name, windows in parts.items():
            half = min(4, len(windows) // 2)
            served = co.Loads(windows[-half:])
            others = [alike(part) for other, part in parts.items() if other != name]
            old = np.concatenate(others)

            def score(made: co.Plan, served: co.Loads = served) -> float:
                return co.evaluate(made, served).mean_balancedness

            def add(
                row: str, k: int, made: co.Plan, replicas: int = replicas,
                score: Callable[[co.Plan], float] = score,
            ) -> None:  # fmt: skip
                found.setdefault((row, replicas, k), []).append(score(made))

            eplb = "eplb-counts" if (windows.shape[2] + replicas) % options.gpus else "eplb"
            before = plan(old, "fast")
            for k in SHOTS:
                if k == 0:
                    add("EPLB, new windows only (k = 0: old ones)", 0, plan(old, eplb))
                    add("`fast`, new windows only (k = 0: old ones)", 0, before)
                    continue
                new = alike(windows[len(windows) - half - k : len(windows) - half])
                add("EPLB, new windows only (k = 0: old ones)", k, plan(new, eplb))
                mean = new.mean(axis=0, keepdims=True)
                add("`nominal`, new windows only", k, plan(mean, "nominal"))
                made = plan(new, "fast")
                add("`fast`, new windows only (k = 0: old ones)", k, made)
                add("`fast`, old and new alike", k, plan(np.concatenate([old, new]), "fast"))
                alike_old = near(others, new)
                add(
                    "`fast`, new and near old ones",
                    k,
                    plan(np.concatenate([alike_old, new]), "fast"),
                )
                whole = score(made) - score(before)
                copies = before.layers * (windows.shape[2] + replicas)
                for part in PARTS if k in (1, 4) and whole > 0 else ():
                    moved = co.rebalance(task(new), before, max_moves=int(part * copies))
                    share = (score(moved.plan) - score(before)) / whole
                    kept.setdefault((replicas, k, part), []).append(share)
            add("clairvoyant (plans on what is served)", SHOTS[-1], plan(served.tokens, "fast"))
            print(f"{replicas} per layer, {name}: done", flush=True)
    heads = [f"{r} per layer, k = {k}" for r in options.replicas for k in SHOTS]
    print(f"\n| {options.gpus} GPUs, planned on | {' | '.join(heads)} |")
    print("|---" * (len(heads) + 1) + "|")
    for row in dict.fromkeys(row for row, _, _ in found):
        cells = [found.get((row, r, k)) for r in options.replicas for k in SHOTS]
        print(f"| {row} | " + " | ".join(f"{np.mean(c):.3f}" if c else "" for c in cells) + " |")
    print("\n| copies that may move | " + " | ".join(f"{p:.0%}" for p in PARTS) + " |")
    print("|---|" + "---|" * len(PARTS))
    for r in options.replicas:
        for k in (1, 4):
            cells = [kept.get((r, k, part), [float("nan")]) for part in PARTS]
            shares = " | ".join(f"{np.mean(c):.0%}" for c in cells)
            print(f"| {r} per layer, k = {k} | {shares} |")


if __name__ == "__main__":
    main()
