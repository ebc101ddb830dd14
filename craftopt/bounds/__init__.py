"""Lower bounds on what any plan can reach, without a solver."""

from craftopt.bounds.activated import least_activated
from craftopt.bounds.cardinality import cardinality_bound
from craftopt.bounds.common_copies import common_copies_curve, common_copies_witness
from craftopt.bounds.copies import max_copy_load
from craftopt.bounds.groups import mean_loads
from craftopt.bounds.whole_plan import (
    cost_table,
    even_costs,
    layer_costs,
    least_cost,
    shared_cost_table,
    shared_costs,
    whole_plan_bound,
)

__all__ = [
    "cardinality_bound",
    "common_copies_curve",
    "common_copies_witness",
    "cost_table",
    "even_costs",
    "layer_costs",
    "least_activated",
    "least_cost",
    "max_copy_load",
    "mean_loads",
    "shared_cost_table",
    "shared_costs",
    "whole_plan_bound",
]
