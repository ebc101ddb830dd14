"""Lower bounds on what any plan can reach, without a solver."""

from craftopt.bounds.copies import max_copy_load, sift_down
from craftopt.bounds.whole_plan import layer_costs, whole_plan_bound

__all__ = ["layer_costs", "max_copy_load", "sift_down", "whole_plan_bound"]
