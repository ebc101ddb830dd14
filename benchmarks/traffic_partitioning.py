"""Nodes per token at zero imbalance: planners against Mt-KaHyPar and against proven bounds.

    python benchmarks/traffic_partitioning.py trace.npz [...] [--nodes 2 4 8] [--tokens 4000]

The middle layer of every trace, a random sample of its tokens, one copy per expert, as many
experts on every node: balanced hypergraph partitioning with objective "connectivity", for which
Mt-KaHyPar is the state of the art (``pip install mtkahypar``; without it, only the planners and
the bound are printed). Every planner gets the same tokens, runs with three seeds and counts with
its best plan. Prints a Markdown table of nodes per token, CPU seconds per run in parentheses.

Gottesbüren, Heuer, Maas, Sanders, Schlag: Scalable high-quality hypergraph partitioning (2024).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import craftopt as co
from craftopt.bounds.traffic import (
    TokenSets,
    column_bound,
    companion_bound,
    count_visits,
    token_sets,
)
from craftopt.loads import IntArray
from craftopt.verification.witnesses.columns import MOST_SETS

try:
    import mtkahypar
except ImportError:
    mtkahypar = None

# A planner takes tokens, nodes and a seed, and returns the node of every expert.
Planner = Callable[[TokenSets, int, int], IntArray]

SEEDS = 3
PRESETS = ("DEFAULT", "QUALITY", "HIGHEST_QUALITY")


def round_robin(sets: TokenSets, nodes: int, seed: int) -> IntArray:
    """Place experts at random: what planning starts from."""
    return np.random.default_rng(seed).permutation(sets.experts) % nodes


def mt_kahypar(preset: str) -> Planner:
    """Make a planner of a preset of Mt-KaHyPar, on one thread."""
    started = mtkahypar.initialize(1, print_warnings=False)

    def plan(sets: TokenSets, nodes: int, seed: int) -> IntArray:
        mtkahypar.set_seed(seed)
        context = started.context_from_preset(getattr(mtkahypar.PresetType, preset))
        context.set_partitioning_parameters(nodes, 0.0, mtkahypar.Objective.KM1)
        context.logging = False
        edges = [list(token) for token in sets.as_tuples()]
        hypergraph = started.create_hypergraph(
            context, sets.experts, len(edges), edges, [1] * sets.experts, sets.counts.tolist()
        )
        return np.array(hypergraph.partition(context).get_partition(), dtype=np.int64)

    return plan


PLANNERS: dict[str, Planner] = {"random": round_robin}
if mtkahypar is not None:
    PLANNERS |= {f"Mt-KaHyPar {preset}": mt_kahypar(preset) for preset in PRESETS}


def best_of(planner: Planner, sets: TokenSets, nodes: int) -> tuple[int, IntArray, float]:
    """Return the fewest visits over the seeds, the plan, and CPU seconds per run."""
    start = time.process_time()
    plans = [planner(sets, nodes, seed) for seed in range(SEEDS)]
    seconds = (time.process_time() - start) / SEEDS
    for node_of in plans:
        held = np.bincount(node_of, minlength=nodes)
        assert held.max() == sets.experts // nodes, f"a plan is not balanced: {held}"
    best = min(plans, key=lambda node_of: count_visits(sets, node_of))
    return count_visits(sets, best), best, seconds


def proven(sets: TokenSets, nodes: int, start: IntArray) -> tuple[str, float]:
    """Return the best bound, by name, in visits."""
    size = sets.experts // nodes
    if math.comb(sets.experts, size) > MOST_SETS:
        return "companions", float(companion_bound(sets, nodes, size).visits)
    columns = column_bound(sets, nodes, (size, size), start)
    return "optimum" if columns.optimal else "columns", float(columns.visits)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("traces", nargs="+", type=Path)
    parser.add_argument("--nodes", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0, help="of the sample of tokens")
    options = parser.parse_args()
    print(f"| trace, nodes | {' | '.join(PLANNERS)} | proven | gap of the best |")
    print(f"|---|{'---|' * len(PLANNERS)}---|---|")
    for path in options.traces:
        trace = co.read_trace(path)
        layer = trace.layers // 2
        sample = np.random.default_rng(options.seed).permutation(trace.tokens)[: options.tokens]
        sets = token_sets(trace.topk_ids[np.sort(sample), layer], trace.experts)
        for nodes in options.nodes:
            results = [best_of(planner, sets, nodes) for planner in PLANNERS.values()]
            visits, plan, _ = min(results, key=lambda result: result[0])
            name, bound = proven(sets, nodes, plan)
            cells = [f"{found / sets.tokens:.4f} ({spent:.2f})" for found, _, spent in results]
            print(
                f"| {path.stem}, {nodes} | {' | '.join(cells)} | "
                f"{bound / sets.tokens:.4f} ({name}) | {visits / bound - 1:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
