"""The program of node visits and load agrees with enumeration, whatever the solver."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from reference.visits import fewest_visits, tiny_layer

from craftopt.bounds.traffic import column_bound, count_visits
from craftopt.errors import InfeasibleError

pytest.importorskip("ortools")
pytest.importorskip("pulp")

from craftopt_formulations import traffic


def least_cost(sets, gpus, nodes, replicas, load_price, visit_price):
    """Try every placement with even slots: load under even dispatch, the fewest visits."""
    copies, of_node = sets.experts + replicas, gpus // nodes
    has = sets.has()
    slots = range(copies // gpus, -(-copies // gpus) + 1)
    held = [set(s) for size in slots for s in combinations(range(sets.experts), size)]
    groups = [group for n in range(nodes, 0, -1) for group in combinations(range(nodes), n)]
    best = math.inf
    for chosen in product(held, repeat=gpus):
        hosted = np.array([[e in of_gpu for of_gpu in chosen] for e in range(sets.experts)])
        if hosted.sum() != copies or not hosted.any(axis=1).all():
            continue
        load = (sets.counts @ has / hosted.sum(axis=1)) @ hosted
        at_hand = hosted.reshape(-1, nodes, of_node).any(axis=2)
        visits = np.full(len(has), nodes)
        for group in groups:
            visits[~(has & ~at_hand[:, group].any(axis=1)).any(axis=1)] = len(group)
        best = min(best, load_price * load.max() + visit_price * int(sets.counts @ visits))
    return best


@pytest.mark.parametrize("solver", ["cp-sat", "cbc"])
def test_the_optimum_is_that_of_enumeration(solver):
    rng = np.random.default_rng(11)
    for experts, gpus, nodes, replicas in ((6, 2, 2, 0), (5, 2, 2, 1), (4, 4, 2, 2), (4, 3, 3, 2)):
        sets = tiny_layer(rng, experts, 3)
        for prices in ((0, 1), (2, 3), (1, 0)):
            found = traffic.build(
                sets,
                gpus,
                nodes,
                replicas,
                load_price=prices[0],
                visit_price=prices[1],
                solver=solver,
            ).solve()
            best = least_cost(sets, gpus, nodes, replicas, *prices)
            assert found.status == "optimal"
            assert found.objective == pytest.approx(best)
            assert found.copies.sum() == experts + replicas
            load = 0.0 if found.largest is None else found.largest
            assert prices[0] * load + prices[1] * found.visits == pytest.approx(best)


def test_without_replicas_it_finds_what_the_column_bound_proves():
    rng = np.random.default_rng(12)
    for experts, nodes in ((8, 2), (9, 3), (12, 3)):
        sets = tiny_layer(rng, experts, 3)
        found = traffic.build(sets, nodes, nodes).solve()
        size = experts // nodes
        assert found.visits == column_bound(sets, nodes, (size, size)).visits
        assert found.visits == fewest_visits(sets, nodes, (size, size))
        assert found.visits == count_visits(sets, found.copies.argmax(axis=1))


def test_more_copies_than_experts_may_have_are_refused():
    with pytest.raises(InfeasibleError, match=r"pass 0\.\.4"):
        traffic.build(tiny_layer(np.random.default_rng(13), 4, 2), 2, 2, replicas=5)
