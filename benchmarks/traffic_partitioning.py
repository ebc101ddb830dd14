"""Nodes per token at zero imbalance: planners against Mt-KaHyPar and against proven bounds.

    python benchmarks/traffic_partitioning.py trace.npz [...] [--nodes 2 4 8] [--tokens 4000]

The middle layer of every trace, a random sample of its tokens, one copy per expert, as many
experts on every node: balanced hypergraph partitioning with objective "connectivity", for which
Mt-KaHyPar is the state of the art (``pip install mtkahypar``; without it, only the planners and
the bound are printed). Ours anneal by exchanges with the package's random numbers and cooling: the
tokens' own visits, or the pairs of experts apart, which is all that pair counts can say. Every
planner gets the same tokens, runs with three seeds and counts with its best plan. Prints a Markdown
table of nodes per token, CPU seconds per run in parentheses.

Gottesbüren, Heuer, Maas, Sanders, Schlag: Scalable high-quality hypergraph partitioning (2024).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numba import njit

import craftopt as co
from craftopt.bounds.traffic import (
    TokenSets,
    column_bound,
    companion_bound,
    count_visits,
    token_sets,
)
from craftopt.loads import FloatArray, IntArray
from craftopt.search.kernels import Schedule, accepts, draw, seeded
from craftopt.verification.witnesses.columns import MOST_SETS

try:
    import mtkahypar
except ImportError:
    mtkahypar = None

# A planner takes tokens, nodes and a seed, and returns the node of every expert.
Planner = Callable[[TokenSets, int, int], IntArray]

SEEDS = 3
# Temperatures in nodes per token.
SCHEDULE = Schedule(steps=2000, hot=1e-2, cold=1e-4)  # steps of every expert
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


def by_tokens(sets: TokenSets, nodes: int, seed: int) -> IntArray:
    """Anneal the nodes per token by exchanges."""
    has = sets.has()
    experts, ids = np.nonzero(has.T)
    first = np.searchsorted(experts, np.arange(sets.experts + 1))
    start = round_robin(sets, nodes, seed)
    held = has.astype(np.int64) @ np.eye(nodes, dtype=np.int64)[start]
    weight = sets.counts / sets.tokens
    schedule = SCHEDULE._replace(steps=SCHEDULE.steps * sets.experts)
    return _anneal_visits(first, ids, weight, held, start, schedule, seed)


def by_pairs(sets: TokenSets, nodes: int, seed: int) -> IntArray:
    """Do the same with sets of two, one for each pair of experts that tokens chose together."""
    has = sets.has().astype(np.int64)
    pairs = np.triu((has.T * sets.counts) @ has, 1)
    members = np.argwhere(pairs)
    # Of as many tokens, so that temperatures are as high.
    counts = pairs[pairs > 0] / pairs.sum() * sets.tokens
    return by_tokens(TokenSets(members, counts, sets.experts), nodes, seed)


@njit(cache=True)
def _anneal_visits(
    first: IntArray,
    ids: IntArray,
    weight: FloatArray,
    held: IntArray,
    node_of: IntArray,
    schedule: Schedule,
    seed: int,
) -> IntArray:
    """Exchange experts between nodes; sets ``ids[first[e] : first[e + 1]]`` have expert e.

    ``held`` [sets, nodes] counts the experts of a set in a node.
    """
    random = seeded(seed)
    cost = best_cost = 0.0
    best = node_of.copy()
    temperature = schedule.hot
    for _ in range(schedule.steps):
        temperature *= (schedule.cold / schedule.hot) ** (1.0 / schedule.steps)
        pair = (draw(random, node_of.size), draw(random, node_of.size))
        a, b = node_of[pair[0]], node_of[pair[1]]
        if a == b:
            continue
        change = 0.0
        for expert, here, there in ((pair[0], a, b), (pair[1], b, a)):  # one after the other
            for k in range(first[expert], first[expert + 1]):
                t = ids[k]
                held[t, here] -= 1
                if held[t, here] == 0:
                    change -= weight[t]
                if held[t, there] == 0:
                    change += weight[t]
                held[t, there] += 1
        if accepts(random, change, temperature):
            node_of[pair[0]], node_of[pair[1]] = b, a
            cost += change
            if cost < best_cost:
                best_cost = cost
                best[:] = node_of
            continue
        for expert, here, there in ((pair[0], a, b), (pair[1], b, a)):
            for k in range(first[expert], first[expert + 1]):
                held[ids[k], here] += 1
                held[ids[k], there] -= 1
    return best


PLANNERS: dict[str, Planner] = {"random": round_robin, "pairs": by_pairs, "tokens": by_tokens}
if mtkahypar is not None:
    PLANNERS |= {f"Mt-KaHyPar {preset}": mt_kahypar(preset) for preset in PRESETS}


def best_of(planner: Planner, sets: TokenSets, nodes: int) -> tuple[int, IntArray, float]:
    """Return the fewest visits over the seeds, the plan, and CPU seconds per run."""
    planner(sets, nodes, 0)  # load what is compiled
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
