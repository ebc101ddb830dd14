"""Rules that look at no load: even, hash, nearest and nearest-even.

All kernels of this package fill what a `Routing` holds: ``share`` [hosts], the tokens that a host
gets, ``activated`` [layers, gpus], the copies that it reads, and ``loads`` [layers, gpus].
"""

from __future__ import annotations

import numpy as np

from craftopt.jit import inner, njit
from craftopt.loads import FloatArray, IntArray
from craftopt.routing.hosts import Int32Array

_KNUTH = np.uint64(2654435761)
_LOW = np.uint64(0xFFFFFFFF)
_MOST_PARCELS = 2**16


@njit()
def serve_evenly(
    first: Int32Array,
    gpu: Int32Array,
    copies: Int32Array,
    tokens: FloatArray,
    share: FloatArray,
    activated: IntArray,
    loads: FloatArray,
) -> None:
    """Let every copy serve the same share."""
    layers, experts = tokens.shape
    for layer in range(layers):
        for expert in range(experts):
            count = tokens[layer, expert]
            if count <= 0.0:
                continue
            cell = layer * experts + expert
            total = 0
            for place in range(first[cell], first[cell + 1]):
                total += copies[place]
            for place in range(first[cell], first[cell + 1]):
                share[place] = count * copies[place] / total
                activated[layer, gpu[place]] += copies[place]
                loads[layer, gpu[place]] += share[place]


@njit()
def serve_by_hash(
    first: Int32Array,
    gpu: Int32Array,
    copies: Int32Array,
    tokens: FloatArray,
    share: FloatArray,
    activated: IntArray,
    loads: FloatArray,
) -> None:
    """Let each token's index choose the copy: Knuth's hash modulo the number of copies.

    Counts do not say which tokens chose an expert, so the i-th token of an expert gets an index
    that is arbitrary and always the same (SplitMix64 of expert and i). Counts that are no whole
    numbers, or above 65,536, are cut into that many equal parcels at most.
    """
    layers, experts = tokens.shape
    parcels_of = np.empty(255 * activated.shape[1], dtype=np.int64)
    for layer in range(layers):
        for expert in range(experts):
            count = tokens[layer, expert]
            if count <= 0.0:
                continue
            cell = layer * experts + expert
            total = 0
            for place in range(first[cell], first[cell + 1]):
                total += copies[place]
            parcels = int(np.ceil(min(count, float(_MOST_PARCELS))))
            parcels_of[:total] = 0
            for i in range(parcels):
                index = _mixed_bits(np.uint64(expert) * np.uint64(_MOST_PARCELS) + np.uint64(i))
                hashed = ((index & _LOW) * _KNUTH) & _LOW
                parcels_of[np.int64(hashed % np.uint64(total))] += 1
            copy = 0
            for place in range(first[cell], first[cell + 1]):
                served = 0
                for _ in range(copies[place]):
                    served += parcels_of[copy]
                    activated[layer, gpu[place]] += parcels_of[copy] > 0
                    copy += 1
                share[place] = count * served / parcels
                loads[layer, gpu[place]] += share[place]


@inner()
def _mixed_bits(value: np.uint64) -> np.uint64:
    """Return SplitMix64's output for a state."""
    z = value * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit()
def serve_nearest(
    first: Int32Array,
    gpu: Int32Array,
    tokens: FloatArray,
    gpus_per_node: int,
    share: FloatArray,
    activated: IntArray,
    loads: FloatArray,
) -> None:
    """Let every GPU's tokens go to a copy on it, else to the first copy in its node.

    Every GPU sends the same share of an expert's tokens. GPUs whose node has no copy take all
    copies in turn, the first of them the first copy, and so on.
    """
    layers, experts = tokens.shape
    gpus = activated.shape[1]
    for layer in range(layers):
        for expert in range(experts):
            count = tokens[layer, expert]
            if count <= 0.0:
                continue
            cell = layer * experts + expert
            begin, end = first[cell], first[cell + 1]
            turn = begin
            for source in range(gpus):
                node = source // gpus_per_node
                nearest = -1
                for place in range(begin, end):
                    if gpu[place] == source:
                        nearest = place
                        break
                    if nearest < 0 and gpu[place] // gpus_per_node == node:
                        nearest = place
                if nearest < 0:
                    nearest = turn
                    turn = turn + 1 if turn + 1 < end else begin
                share[nearest] += count / gpus
            for place in range(begin, end):
                activated[layer, gpu[place]] += share[place] > 0.0
                loads[layer, gpu[place]] += share[place]


@njit()
def serve_nearest_evenly(
    first: Int32Array,
    gpu: Int32Array,
    copies: Int32Array,
    tokens: FloatArray,
    gpus_per_node: int,
    share: FloatArray,
    activated: IntArray,
    loads: FloatArray,
) -> None:
    """Let every GPU's tokens go evenly to the copies on it, else in its node, else to all.

    Every GPU sends the same share of an expert's tokens.
    """
    layers, experts = tokens.shape
    gpus = activated.shape[1]
    for layer in range(layers):
        for expert in range(experts):
            count = tokens[layer, expert]
            if count <= 0.0:
                continue
            cell = layer * experts + expert
            for source in range(gpus):
                begin, end = nearest_places(
                    gpu, first[cell], first[cell + 1], source, gpus_per_node
                )
                total = 0
                for place in range(begin, end):
                    total += copies[place]
                for place in range(begin, end):
                    share[place] += count / gpus * copies[place] / total
            for place in range(first[cell], first[cell + 1]):
                activated[layer, gpu[place]] += share[place] > 0.0
                loads[layer, gpu[place]] += share[place]


@inner()
def nearest_places(
    gpu: Int32Array, begin: int, end: int, source: int, gpus_per_node: int
) -> tuple[int, int]:
    """Return which of an expert's hosts are nearest to a GPU: itself, else its node, else all.

    Hosts are in rising order, so these are places of one stretch of the list.
    """
    node = source // gpus_per_node
    low = begin
    while low < end and gpu[low] // gpus_per_node < node:
        low += 1
    high = low
    while high < end and gpu[high] // gpus_per_node == node:
        if gpu[high] == source:
            return high, high + 1
        high += 1
    return (low, high) if low < high else (begin, end)
