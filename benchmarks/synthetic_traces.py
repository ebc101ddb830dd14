"""Synthetic token traces whose experts are chosen together, for models without a public trace.

    python -m benchmarks.synthetic_traces  # prints what they are calibrated to

A token's k experts have the largest scores: its expert's popularity, what its domain adds, and
the product of six hidden directions of the expert with those of the token, half of which it shares
with its sequence; plus Gumbel noise, so that the choice is drawn without replacement in proportion
to exp(score). Layers are independent. Three spreads were fixed by two figures of real traces, and
by nothing that a plan or an advice says: the most chosen expert of a domain gets 6.5 to 8.4 times
the mean (GLM-5.2: 8.4), and gathering experts by pairs on 4 nodes brings the nodes per token to
0.70 to 0.75 of random placement (DeepSeek-V2-Lite 0.72, gpt-oss-20b 0.70).
"""

from __future__ import annotations

import numpy as np

import craftopt as co
from benchmarks.traffic_partitioning import by_pairs, round_robin
from craftopt.bounds.traffic import count_visits, token_sets

DOMAINS, SEQUENCES, LENGTH, DIRECTIONS = 5, 40, 64, 6
# Standard deviations of the scores' parts, in units of log(rate).
POPULARITY, DOMAIN, HIDDEN = 0.5, 1.4, 4.4


def synthetic_trace(layers: int, experts: int, top_k: int, seed: int = 0) -> co.Trace:
    """Make a trace of 12,800 tokens: 5 domains of 40 sequences of 64 tokens."""
    generator = np.random.default_rng(seed)
    domain = np.repeat(np.arange(DOMAINS), SEQUENCES * LENGTH)
    sequence = np.repeat(np.arange(DOMAINS * SEQUENCES), LENGTH)
    ids = np.empty((domain.size, layers, top_k), dtype=np.int16)
    for layer in range(layers):
        shared = generator.normal(size=(DOMAINS * SEQUENCES, DIRECTIONS))[sequence]
        hidden = np.sqrt(0.5) * (shared + generator.normal(size=shared.shape))
        expert = generator.normal(size=(DIRECTIONS, experts)) * HIDDEN / np.sqrt(DIRECTIONS)
        liked = generator.normal(size=(DOMAINS, experts)) * DOMAIN
        scores = hidden @ expert + liked[domain] + generator.normal(size=experts) * POPULARITY
        scores += generator.gumbel(size=scores.shape)
        ids[:, layer] = np.argpartition(-scores, top_k, axis=1)[:, :top_k]
    names = [f"domain-{number}" for number in range(DOMAINS)]
    return co.Trace(ids, experts, None, domain, names, sequence)


def skew(trace: co.Trace) -> float:
    """Compute the most chosen expert of a domain over the mean; mean over domains and layers."""
    by_domain = [
        trace.select([name]).batches(trace.tokens).tokens[0] for name in trace.domain_names
    ]
    tokens = np.stack(by_domain)
    return float((tokens.max(axis=2) / tokens.mean(axis=2)).mean())


def gain(trace: co.Trace, nodes: int = 4) -> float:
    """Compute the nodes per token of placement by pairs, over those of random placement."""
    shares = []
    for layer in range(trace.layers):
        sets = token_sets(trace.topk_ids[:, layer], trace.experts)
        gathered, random = by_pairs(sets, nodes, layer), round_robin(sets, nodes, layer)
        shares.append(count_visits(sets, gathered) / count_visits(sets, random))
    return float(np.mean(shares))


def main() -> None:
    print("| experts, top-k | skew of a domain | nodes per token by pairs / random, 4 nodes |")
    print("|---|---|---|")
    for experts, top_k in [(256, 8), (128, 4)]:
        trace = synthetic_trace(3, experts, top_k, seed=1)
        print(f"| {experts}, {top_k} | {skew(trace):.2f} | {gain(trace):.3f} |")


if __name__ == "__main__":
    main()
