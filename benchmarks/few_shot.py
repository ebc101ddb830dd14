"""One window's notice: what a few windows of a new kind of traffic are worth, beside old ones.

    python -m benchmarks.few_shot LOADS --gpus 64 --replicas 8 64 [--every 5]
    python -m benchmarks.few_shot TRACE --gpus 8 --tokens 2000 --replicas 0 8

Every domain in turn is new: plans are made from its first k windows before the served ones, from
the windows of all other domains, or from both, and served on its last windows, half of them, four
at most. Windows of a token trace are whole sequences of one domain, as many as make the tokens;
domains of fewer than eight windows are left out and named. Prints the mean balancedness over the
domains under even dispatch, and what is kept of the gain over the plan for the old windows where
only a part of the copies may move and all windows, old and new, are handed in.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np

import craftopt as co
from craftopt.kinds import near_latest

LEAST = 8
SHOTS = (0, 1, 2, 4)
PARTS = (0.05, 0.1, 0.25, 1.0)
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


def problem(
    tokens: Tokens, gpus: int, replicas: int, objective: co.ObjectiveName = "balancedness"
) -> co.Problem:
    """State the problem for windows."""
    slots = "even" if (tokens.shape[2] + replicas) % gpus else "uniform"
    return co.Problem(
        co.Loads(tokens), gpus, replicas_per_layer=replicas, slots=slots, objective=objective
    )


def read(file: str, tokens: int, every: int) -> dict[str, Tokens]:
    """Read every domain's windows; domains of fewer than `LEAST` are left out and named."""
    try:
        parts = of_trace(co.read_trace(file), tokens, every)
    except co.CraftoptError:
        parts = of_loads(co.read_loads(file), every)
    few = [name for name, windows in parts.items() if len(windows) < LEAST]
    print(f"left out, fewer than {LEAST} windows: {', '.join(few) or 'none'}\n")
    return {name: windows for name, windows in parts.items() if name not in few}


def arguments(text: str) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=text.partition("\n")[0])
    parser.add_argument("file")
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--replicas", type=int, nargs="+", required=True, help="per layer")
    parser.add_argument("--tokens", type=int, default=2000, help="of a window of a trace")
    parser.add_argument("--every", type=int, default=1, help="take one layer in so many")
    return parser.parse_args()


def main() -> None:
    options = arguments(__doc__)
    warnings.simplefilter("ignore", co.CraftoptWarning)
    parts = read(options.file, options.tokens, options.every)
    found: dict[tuple[str, int, int], list[float]] = {}
    kept: dict[tuple[str, int, int, float], list[tuple[float, float]]] = {}
    for replicas in options.replicas:
        task = partial(problem, gpus=options.gpus, replicas=replicas)

        def plan(
            tokens: Tokens, method: str, task: Callable[[Tokens], co.Problem] = task
        ) -> co.Plan:
            return co.solve(task(tokens), method).plan

        for name, windows in parts.items():
            half = min(4, len(windows) // 2)
            served = co.Loads(windows[-half:])
            old = np.concatenate([alike(parts[other]) for other in parts if other != name])

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
                add("`fast`, new windows only (k = 0: old ones)", k, plan(new, "fast"))
                both = np.concatenate([old, new])
                add("`fast`, old and new alike", k, plan(both, "fast"))
                made = plan(both[near_latest(both)], "fast")
                add("`fast`, new and near old ones", k, made)
                whole = score(made) - score(before)
                copies = before.layers * (windows.shape[2] + replicas)
                for part in PARTS if k in (1, 4) else ():
                    most = int(part * copies)
                    changed = {"rebalance": co.rebalance(task(both), before, max_moves=most).plan}
                    if k == 1:
                        start = task(old, objective="time")
                        online = co.OnlinePlanner(start, before, max_moves=most)
                        changed["OnlinePlanner"] = online.observe(new[0]).plan
                    for by, after in changed.items():
                        gained = (score(after) - score(before), whole)
                        kept.setdefault((by, replicas, k, part), []).append(gained)
            add("clairvoyant (plans on what is served)", SHOTS[-1], plan(served.tokens, "fast"))
            print(f"{replicas} per layer, {name}: done", flush=True)
    heads = [f"{r} per layer, k = {k}" for r in options.replicas for k in SHOTS]
    print(f"\n| {options.gpus} GPUs, planned on | {' | '.join(heads)} |")
    print("|---" * (len(heads) + 1) + "|")
    for row in dict.fromkeys(row for row, _, _ in found):
        cells = [found.get((row, r, k)) for r in options.replicas for k in SHOTS]
        print(f"| {row} | " + " | ".join(f"{np.mean(c):.3f}" if c else "" for c in cells) + " |")
    print("\n| copies that may move | gain | " + " | ".join(f"{p:.0%}" for p in PARTS) + " |")
    print("|---|---|" + "---|" * len(PARTS))
    for by, r, k in dict.fromkeys(key[:3] for key in kept):
        gains = np.array([kept[by, r, k, part] for part in PARTS]).mean(axis=1)  # [parts, 2]
        shares = " | ".join(f"{share:.0%}" for share in gains[:, 0] / gains[:, 1])
        print(f"| `{by}`, {r} per layer, k = {k} | {gains[0, 1]:.3f} | {shares} |")


if __name__ == "__main__":
    main()
