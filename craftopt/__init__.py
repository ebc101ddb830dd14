"""Plan which GPU hosts which expert, how many copies, and which copy serves.

Names are loaded on first use (PEP 562), so that ``import craftopt`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from craftopt.baselines import eplb
    from craftopt.certificates import certify
    from craftopt.coactivation import Coactivation
    from craftopt.comparison import Comparison, compare, compare_domains
    from craftopt.datasets import example_names, load_example
    from craftopt.errors import (
        CraftoptError,
        CraftoptWarning,
        FormatError,
        InfeasibleError,
        InputError,
        NoPlanError,
        VerificationError,
    )
    from craftopt.evaluation import Evaluation, evaluate
    from craftopt.formats import export, read_coactivation, read_loads, read_plan, read_trace
    from craftopt.loads import Loads
    from craftopt.online import Decision, OnlinePlanner, Replay, move_cost, replay
    from craftopt.plan import Plan
    from craftopt.planners.both import plan_for_both
    from craftopt.problem import Problem
    from craftopt.rebalancing import (
        Migration,
        Rebalancing,
        count_moves,
        plan_migration,
        rebalance,
        relabel,
    )
    from craftopt.result import Result, Status
    from craftopt.routing import Routing, route
    from craftopt.serving import advise
    from craftopt.solving import methods, solve
    from craftopt.traces import Trace
    from craftopt.traffic import Traffic
    from craftopt.verification import Certificate, verify
    from craftopt.windows import blend, holdout

__version__ = "0.1.0"

_HOMES = {
    "relabel": "craftopt.rebalancing",
    "rebalance": "craftopt.rebalancing",
    "plan_for_both": "craftopt.planners.both",
    "plan_migration": "craftopt.rebalancing",
    "count_moves": "craftopt.rebalancing",
    "Rebalancing": "craftopt.rebalancing",
    "Migration": "craftopt.rebalancing",
    "replay": "craftopt.online",
    "move_cost": "craftopt.online",
    "Replay": "craftopt.online",
    "OnlinePlanner": "craftopt.online",
    "Decision": "craftopt.online",
    "Certificate": "craftopt.verification",
    "certify": "craftopt.certificates",
    "VerificationError": "craftopt.errors",
    "verify": "craftopt.verification",
    "Coactivation": "craftopt.coactivation",
    "Comparison": "craftopt.comparison",
    "advise": "craftopt.serving",
    "blend": "craftopt.windows",
    "compare": "craftopt.comparison",
    "compare_domains": "craftopt.comparison",
    "holdout": "craftopt.windows",
    "CraftoptError": "craftopt.errors",
    "CraftoptWarning": "craftopt.errors",
    "Evaluation": "craftopt.evaluation",
    "FormatError": "craftopt.errors",
    "InfeasibleError": "craftopt.errors",
    "InputError": "craftopt.errors",
    "Loads": "craftopt.loads",
    "NoPlanError": "craftopt.errors",
    "Plan": "craftopt.plan",
    "Problem": "craftopt.problem",
    "Result": "craftopt.result",
    "Routing": "craftopt.routing",
    "Status": "craftopt.result",
    "Trace": "craftopt.traces",
    "Traffic": "craftopt.traffic",
    "evaluate": "craftopt.evaluation",
    "example_names": "craftopt.datasets",
    "export": "craftopt.formats",
    "load_example": "craftopt.datasets",
    "methods": "craftopt.solving",
    "read_coactivation": "craftopt.formats",
    "read_loads": "craftopt.formats",
    "read_plan": "craftopt.formats",
    "read_trace": "craftopt.formats",
    "route": "craftopt.routing",
    "solve": "craftopt.solving",
}

__all__ = [
    "Certificate",
    "Coactivation",
    "Comparison",
    "CraftoptError",
    "CraftoptWarning",
    "Decision",
    "Evaluation",
    "FormatError",
    "InfeasibleError",
    "InputError",
    "Loads",
    "Migration",
    "NoPlanError",
    "OnlinePlanner",
    "Plan",
    "Problem",
    "Rebalancing",
    "Replay",
    "Result",
    "Routing",
    "Status",
    "Trace",
    "Traffic",
    "VerificationError",
    "advise",
    "blend",
    "certify",
    "compare",
    "compare_domains",
    "count_moves",
    "eplb",
    "evaluate",
    "example_names",
    "export",
    "holdout",
    "load_example",
    "methods",
    "move_cost",
    "plan_for_both",
    "plan_migration",
    "read_coactivation",
    "read_loads",
    "read_plan",
    "read_trace",
    "rebalance",
    "relabel",
    "replay",
    "route",
    "solve",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "eplb":
        value = importlib.import_module("craftopt.baselines.eplb")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'craftopt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
