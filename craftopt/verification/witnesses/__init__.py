"""What witnesses prove: a module for every kind that has a check of its own, called by `kinds`."""

from craftopt.verification.witnesses.box import Box, heaviest_copies, window_cost
from craftopt.verification.witnesses.columns import check_columns
from craftopt.verification.witnesses.companions import check_companions
from craftopt.verification.witnesses.credits import line_of_credits
from craftopt.verification.witnesses.kinds import layer_cost
from craftopt.verification.witnesses.visits import VisitsCase

__all__ = [
    "Box",
    "VisitsCase",
    "check_columns",
    "check_companions",
    "heaviest_copies",
    "layer_cost",
    "line_of_credits",
    "window_cost",
]
