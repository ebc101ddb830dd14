"""Kinds of traffic that take turns or mix: when is one plan for all of them better?

    python -m benchmarks.kinds LOADS --gpus 64 --replicas 8 64 [--every 15]
    python -m benchmarks.kinds TRACE --gpus 8 --tokens 2000 --replicas 0 8

Domains are kinds; windows are those of `benchmarks.few_shot`, the later half of a kind (four at
most) is served and no plan has seen it. Prints two tables, means over the kinds.

Taking turns: relative time of the plan for another kind, of one plan for all kinds, of that plan
for another kind with a quarter of the copies moved after one window's notice, and of the kind's
own plan; and how many windows a kind must last for a replanned or recalled plan to be better than
the one for all, (away - r) / (all - r), r the relative time of what is changed to, and so many
more for every window's time that the change itself takes, 1 / (all - r).

Mixtures: balancedness where a window is half, or four fifths, of one kind and the rest of another.
"""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np

import craftopt as co
from benchmarks.few_shot import Tokens, alike, arguments, problem, read
from craftopt.kinds import near_latest

MOVED = 0.25


def halves(parts: dict[str, Tokens]) -> dict[str, tuple[Tokens, Tokens]]:
    """Split a kind's last eight windows at most into those known and those served."""
    halved = {name: min(4, len(windows) // 2) for name, windows in parts.items()}
    return {
        name: (alike(parts[name][-2 * half : -half]), alike(parts[name][-half:]))
        for name, half in halved.items()
    }


def turns(parts: dict[str, Tokens], gpus: int, replicas: int) -> list[float]:
    """Measure what the first table lists: away, all, replanned, recalled."""
    task = partial(problem, gpus=gpus, replicas=replicas, objective="time")
    known, served = ({name: half[i] for name, half in halves(parts).items()} for i in (0, 1))
    own = {name: co.solve(task(windows), "fast").plan for name, windows in known.items()}
    everything = co.solve(task(np.concatenate(list(known.values()))), "fast").plan
    most = int(MOVED * everything.copies.sum())
    names = list(parts)
    figures = []
    for before, name in zip(names[-1:] + names, names, strict=False):
        seen = np.concatenate([known[before], known[name][-1:]])
        replanned = co.rebalance(task(seen), own[before], max_moves=most).plan
        plans = (own[before], everything, replanned, own[name])
        loads = co.Loads(served[name])
        figures.append([co.evaluate(plan, loads).relative_time for plan in plans])
    return np.mean(figures, axis=0).tolist()


def mixtures(parts: dict[str, Tokens], gpus: int, replicas: int, share: float) -> dict[str, float]:
    """Measure what the second table lists, every kind mixed with the next."""
    task = partial(problem, gpus=gpus, replicas=replicas)
    split = halves(parts)
    old = np.concatenate([known for known, _ in split.values()])
    names = list(parts)
    found: dict[str, list[float]] = {}
    for one, other in zip(names, names[1:] + names[:1], strict=True):
        many = min(len(split[one][1]), len(split[other][1]))
        mixed = [share * split[one][1][w] + (1 - share) * split[other][1][w] for w in range(many)]
        new, loads = np.array(mixed[:1]), co.Loads(np.array(mixed[many // 2 :]))
        both = np.concatenate([old, new])
        for row, windows in {
            "old windows of all kinds": old,
            "old windows of the two kinds": np.concatenate([split[one][0], split[other][0]]),
            "one new window": new,
            "it and near old ones (the rule)": both[near_latest(both)],
            "clairvoyant": loads.tokens,
        }.items():
            plan = co.solve(task(windows), "fast").plan
            found.setdefault(row, []).append(co.evaluate(plan, loads).mean_balancedness)
    return {row: float(np.mean(values)) for row, values in found.items()}


def main() -> None:
    options = arguments(__doc__)
    warnings.simplefilter("ignore", co.CraftoptWarning)
    parts = read(options.file, options.tokens, options.every)
    print("| per layer | away | all | replanned | recalled | replanned pays | recalled pays |")
    print("|---|---|---|---|---|---|---|")
    for replicas in options.replicas:
        away, static, *changed = turns(parts, options.gpus, replicas)
        cells = [f"{value:.3f}" for value in (away, static, *changed)]
        for time in changed:
            saved = static - time
            pays = f"{(away - time) / saved:.1f} + {1 / saved:.1f} m" if saved > 0 else "never"
            cells.append(pays)
        print(f"| {replicas} | {' | '.join(cells)} |", flush=True)
    for share in (0.5, 0.8):
        found = [mixtures(parts, options.gpus, replicas, share) for replicas in options.replicas]
        print(
            f"\n| {share:.0%} of one kind, planned on | {options.replicas} per layer |\n|---|---|"
        )
        for row in found[0]:
            print(f"| {row} | {' / '.join(f'{of[row]:.3f}' for of in found)} |", flush=True)


if __name__ == "__main__":
    main()
