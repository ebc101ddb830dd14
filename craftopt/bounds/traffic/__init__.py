"""Lower bounds on the nodes that tokens visit, whatever the placement."""

from craftopt.bounds.traffic.certificate import certify_traffic, visits_witness
from craftopt.bounds.traffic.columns import ColumnBound, column_bound
from craftopt.bounds.traffic.companions import CompanionBound, companion_bound
from craftopt.bounds.traffic.tokens import TokenSets, count_visits, token_sets

__all__ = [
    "ColumnBound",
    "CompanionBound",
    "TokenSets",
    "certify_traffic",
    "column_bound",
    "companion_bound",
    "count_visits",
    "token_sets",
    "visits_witness",
]
