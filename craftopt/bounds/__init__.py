"""Lower bounds on what any plan can reach, without a solver."""

from craftopt.bounds.activated import least_activated
from craftopt.bounds.cardinality import cardinality_bound, cardinality_bound_of_nodes
from craftopt.bounds.common_copies import (
    Companions,
    common_copies_curve,
    common_copies_witness,
)
from craftopt.bounds.companions import best_companions
from craftopt.bounds.copies import max_copy_load, max_copy_load_of_groups
from craftopt.bounds.groups import mean_loads
from craftopt.bounds.whole_plan import (
    bounds_by_budget,
    companions_of,
    cost_table,
    even_costs,
    layer_costs,
    least_cost,
    replica_prices,
    saving,
    shared_cost_table,
    shared_costs,
    whole_plan_bound,
    with_companions,
)

__all__ = [
    "Companions",
    "best_companions",
    "bounds_by_budget",
    "cardinality_bound",
    "cardinality_bound_of_nodes",
    "common_copies_curve",
    "common_copies_witness",
    "companions_of",
    "cost_table",
    "even_costs",
    "layer_costs",
    "least_activated",
    "least_cost",
    "max_copy_load",
    "max_copy_load_of_groups",
    "mean_loads",
    "replica_prices",
    "saving",
    "shared_cost_table",
    "shared_costs",
    "whole_plan_bound",
    "with_companions",
]
