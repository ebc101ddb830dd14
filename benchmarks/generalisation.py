"""How plans do on domains of traffic that they have not seen.

    python benchmarks/generalisation.py FILE --gpus 8 --replicas-per-layer 0 8 [--halves]

FILE is a token trace with domains and sequences, or loads whose windows are named
``domain/number``. Each domain in turn is left out: plans are made on windows of the others and
serve it. A trace serves random batches of sequences (``--batch``), and is planned on windows of
several grains; loads are planned and served window by window. With ``--halves``, plans see only
every other sequence (window) of their domains, and "served" scores them on the rest of these.
"Clairvoyant" is ``fast``, planned on the very windows that it serves. All figures are mean
balancedness over layers and windows, then over the domains left out. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

import craftopt as co

# Batches that a domain serves, drawn with a seed that no planned window is drawn with.
SERVED, SERVED_SEED = 64, 123


@dataclass(frozen=True)
class Part:
    """Windows of one domain: the finest there are."""

    domain: str
    loads: co.Loads

    def half(self, which: int) -> Part:
        """Return every other window; a lone one stands in both halves."""
        kept = np.arange(self.loads.windows) % 2 == which
        return Part(self.domain, self.loads.select(np.flatnonzero(kept))) if kept.any() else self


def read(path: str, every: int) -> tuple[list[Part], bool]:
    """Read the domains of a file, every so many layers; say whether it is a trace."""
    try:
        loads, traced = co.read_trace(path).by_sequence(), True
    except co.FormatError:
        loads, traced = co.read_loads(path), False
    loads = co.Loads(loads.tokens[:, ::every], window_names=loads.window_names)
    domain = [name.split("/")[0] for name in loads.window_names]
    return [
        Part(name, loads.select([k for k, other in enumerate(domain) if other == name]))
        for name in dict.fromkeys(domain)
    ], traced


def batches(part: Part, size: int) -> np.ndarray:
    """Cut the windows of a domain into random batches; the last may be short."""
    order = np.random.default_rng(0).permutation(part.loads.windows)
    cuts = range(0, order.size, size)
    return np.stack([part.loads.tokens[order[cut : cut + size]].sum(axis=0) for cut in cuts])


def served(part: Part, size: int) -> co.Loads:
    """Draw the batches that a domain serves; all windows at once where they are few."""
    count = part.loads.windows
    if size == 1 or count <= size:
        return part.loads if size == 1 else part.loads.total()
    generator = np.random.default_rng(SERVED_SEED)
    drawn = [generator.choice(count, size, replace=False) for _ in range(SERVED)]
    return co.Loads(np.stack([part.loads.tokens[chosen].sum(axis=0) for chosen in drawn]))


def grains(parts: list[Part], sizes: list[int]) -> Iterator[tuple[str, co.Loads]]:
    """Make the windows to plan on, from coarse to fine."""
    yield "sums of domains", co.Loads(np.stack([p.loads.total().tokens[0] for p in parts]))
    for size in sizes:
        name = f"batches of {size}" if size > 1 else "single"
        yield name, co.Loads(np.concatenate([batches(part, size) for part in parts]))


def score(plan: co.Plan, loads: co.Loads) -> float:
    return co.evaluate(plan, loads).mean_balancedness


def problem(loads: co.Loads, gpus: int, replicas: int) -> co.Problem:
    slots = "even" if (loads.experts + replicas) % gpus else "uniform"
    return co.Problem(
        loads, gpus, replicas_per_layer=replicas, slots=slots, objective="balancedness"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--replicas-per-layer", type=int, nargs="+", required=True)
    parser.add_argument("--batch", type=int, default=8, help="sequences that are served together")
    parser.add_argument("--grains", type=int, nargs="+", default=[8, 4, 1])
    parser.add_argument("--every", type=int, default=1, help="take every so many layers")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--halves", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore", co.CraftoptWarning)
    parts, traced = read(options.file, options.every)
    size = options.batch if traced else 1
    sizes = options.grains if traced else [1]
    # (planned on, replicas per layer) -> a triple of scores per domain left out.
    found: dict[tuple[str, int], list[list[float]]] = {}

    for out in parts:
        known = [part for part in parts if part is not out]
        seen = [part.half(1) for part in known] if options.halves else known
        unseen = [served(part.half(0), size) for part in known] if options.halves else []
        foreign = served(out, size)
        for replicas in options.replicas_per_layer:

            def add(
                name: str, plan: co.Plan, planned: co.Loads,
                replicas: int = replicas, unseen: list[co.Loads] = unseen,
                foreign: co.Loads = foreign,
            ) -> None:  # fmt: skip
                scores = [score(plan, planned), score(plan, foreign)]
                if unseen:
                    scores.insert(1, statistics.fmean(score(plan, loads) for loads in unseen))
                found.setdefault((name, replicas), []).append(scores)

            for name, loads in grains(seen, sizes):
                task = problem(loads, options.gpus, replicas)
                if name == "sums of domains":
                    method = "eplb" if task.slots == "uniform" else "eplb-counts"
                    add(f"`{method}`", co.solve(task, method).plan, loads)
                for seed in range(options.seeds):
                    add(f"`fast`, {name}", co.solve(task, "fast", seed=seed).plan, loads)
            task = problem(foreign, options.gpus, replicas)
            add("clairvoyant", co.solve(task, "fast").plan, foreign)

    columns = ["planned", "served", "foreign"] if options.halves else ["planned", "foreign"]
    heads = [f"{r}: {' / '.join(columns)}" for r in options.replicas_per_layer]
    print(f"| {options.gpus} GPUs, replicas per layer: | " + " | ".join(heads) + " |")
    print("|---" * (len(heads) + 1) + "|")
    for name in dict.fromkeys(name for name, _ in found):
        cells = []
        for replicas in options.replicas_per_layer:
            # eplb where the slots divide, eplb-counts elsewhere: one row holds some budgets.
            scores = found.get((name, replicas))
            means = [] if scores is None else np.mean(scores, axis=0)
            cells.append(" / ".join(f"{mean:.3f}" for mean in means) or "-")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
