"""Plan which GPU hosts which expert, how many copies, and which copy serves.

Names are loaded on first use (PEP 562), so that ``import craftopt`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from craftopt.baselines import eplb
    from craftopt.certificates import certify
    from craftopt.comparison import Comparison, blend, compare, compare_domains, holdout
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
    from craftopt.formats import export, read_loads, read_plan, read_trace
    from craftopt.loads import Loads
    from craftopt.online import Decision, OnlinePlanner, Replay, move_cost, replay
    from craftopt.plan import Plan
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
    from craftopt.verification import Certificate, verify

__version__ = "0.1.0"

_HOMES = {
    "relabel": "craftopt.rebalancing",
    "rebalance": "craftopt.rebalancing",
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
    "Comparison": "craftopt.comparison",
    "advise": "craftopt.serving",
    "blend": "craftopt.comparison",
    "compare": "craftopt.comparison",
    "compare_domains": "craftopt.comparison",
    "holdout": "craftopt.comparison",
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
    "evaluate": "craftopt.evaluation",
    "example_names": "craftopt.datasets",
    "export": "craftopt.formats",
    "load_example": "craftopt.datasets",
    "methods": "craftopt.solving",
    "read_loads": "craftopt.formats",
    "read_plan": "craftopt.formats",
    "read_trace": "craftopt.formats",
    "route": "craftopt.routing",
    "solve": "craftopt.solving",
}

__all__ = [
    "Certificate",
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
    "plan_migration",
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
