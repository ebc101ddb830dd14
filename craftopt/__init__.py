"""Plan which GPU hosts which expert, how many copies, and which copy serves.

Names are loaded on first use (PEP 562), so that ``import craftopt`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from craftopt.baselines import eplb
    from craftopt.comparison import Comparison, blend, compare, compare_domains, holdout
    from craftopt.datasets import example_names, load_example
    from craftopt.errors import (
        CraftoptError,
        CraftoptWarning,
        FormatError,
        InfeasibleError,
        InputError,
        NoPlanError,
    )
    from craftopt.evaluation import Evaluation, evaluate
    from craftopt.formats import read_loads
    from craftopt.formats.plans import read_plan
    from craftopt.formats.traces import read_trace
    from craftopt.loads import Loads
    from craftopt.plan import Plan
    from craftopt.problem import Problem
    from craftopt.result import Result, Status
    from craftopt.solving import methods, solve
    from craftopt.traces import Trace

__version__ = "0.1.0"

_HOMES = {
    "Comparison": "craftopt.comparison",
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
    "Status": "craftopt.result",
    "Trace": "craftopt.traces",
    "evaluate": "craftopt.evaluation",
    "example_names": "craftopt.datasets",
    "load_example": "craftopt.datasets",
    "methods": "craftopt.solving",
    "read_loads": "craftopt.formats",
    "read_plan": "craftopt.formats.plans",
    "read_trace": "craftopt.formats.traces",
    "solve": "craftopt.solving",
}

__all__ = [
    "Comparison",
    "CraftoptError",
    "CraftoptWarning",
    "Evaluation",
    "FormatError",
    "InfeasibleError",
    "InputError",
    "Loads",
    "NoPlanError",
    "Plan",
    "Problem",
    "Result",
    "Status",
    "Trace",
    "blend",
    "compare",
    "compare_domains",
    "eplb",
    "evaluate",
    "example_names",
    "holdout",
    "load_example",
    "methods",
    "read_loads",
    "read_plan",
    "read_trace",
    "solve",
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
