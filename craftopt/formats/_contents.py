"""What a recognised file holds; what it does not hold is refused in the same words everywhere."""

from __future__ import annotations

from typing import Literal

from craftopt.errors import FormatError
from craftopt.loads import Loads
from craftopt.plan import Plan
from craftopt.traces import Trace

Kind = Literal["loads", "trace", "plan"]
_WORDS = {"loads": "loads", "trace": "a token trace", "plan": "a plan"}


class Contents:
    """Hold an opened file whose format is known, not yet read.

    A format overrides those of `loads`, `trace` and `plan` that it can give, in its module's
    ``recognise(stream)``. Readers append what they drop or doubt to ``notes``.
    """

    def __init__(self, name: str, kind: Kind) -> None:
        self.name = name
        self.kind = kind
        self.notes: list[str] = []

    def loads(self) -> Loads:
        """Read loads, layers without tokens included."""
        raise self._refusal("loads")

    def trace(self, experts: int | None) -> Trace:
        """Read a token trace; layers without experts are dropped."""
        raise self._refusal("trace")

    def plan(self, gpus: int | None) -> Plan:
        """Read a plan; ``gpus`` is needed where the file does not say it."""
        raise self._refusal("plan")

    def _refusal(self, wanted: Kind) -> FormatError:
        return FormatError(
            f"is {self.name}: it holds {_WORDS[self.kind]}, not {_WORDS[wanted]}; "
            f"co.read_{self.kind} reads it"
        )
