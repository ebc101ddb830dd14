"""Plan which GPU hosts which expert, how many copies, and which copy serves.

The names that ``__init__.pyi`` lists, loaded on first use (PEP 562): ``import craftopt`` is light.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# Lines are "from module import name as name".
_LINES = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8").splitlines()
_HOMES = {line.split()[-1]: line.split()[1] for line in _LINES if line.startswith("from ")}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - one list


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'craftopt' has no attribute {name!r}")
    # As "from home import name": the name of a module loads it.
    value = getattr(__import__(_HOMES[name], fromlist=[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
