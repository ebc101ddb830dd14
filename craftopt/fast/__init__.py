"""The fast path: dynamic programming, greedy replication, packing and local search."""
