"""From an old plan to a better one with few moves, and in which order to make them."""

from craftopt.rebalancing.links import relabel_for_links
from craftopt.rebalancing.migration import Migration, Step, plan_migration
from craftopt.rebalancing.planning import Rebalancing, rebalance
from craftopt.rebalancing.relabelling import arrange_slots, count_moves, relabel

__all__ = [
    "Migration",
    "Rebalancing",
    "Step",
    "arrange_slots",
    "count_moves",
    "plan_migration",
    "rebalance",
    "relabel",
    "relabel_for_links",
]
