"""Plans of methods that are the same on every processor, against stored hashes.

Annealed plans may differ between kinds of processor, so they have no hash here.
"""

from __future__ import annotations

import hashlib

import pytest

import craftopt as co

STORED = {
    "trivial": "067cc505c2d9638af58379f67eaa7f5bbc6a2e0f4b9205ce9a249fccf00efefb",
    "placement": "3959c7b421fe8587075b3c1f880929eb0009dda7832a15b78e0340a2d819d308",
    "eplb": "3a71df9fe053a81203660976360a2b5a7714dbdd3183e07f7a422195c8cf7fca",
    "eplb-hierarchical": "b7fb57ab01cd076927173ef18e9ab2d442cd843eabb727878568ebc713203e2f",
    "eplb-counts": "67cfa56221567bda542fea5aeaf1e17db7d66bc49ce419ac3bf29efc0a34bcb3",
}


@pytest.mark.parametrize("method", STORED)
def test_plans_are_the_stored_ones_byte_for_byte(method):
    loads = co.load_example("deepseek-r1")
    groups = 8 if method == "eplb-hierarchical" else None
    problem = co.Problem(
        co.Loads(loads.tokens[:6, :5], loads.layer_ids[:5]),
        gpus=64,
        nodes=8,
        replicas_per_layer=64,
        slots="uniform",
        expert_groups=groups,
    )
    plan = co.solve(problem, method).plan
    assert hashlib.sha256(plan.to_json().encode()).hexdigest() == STORED[method]
