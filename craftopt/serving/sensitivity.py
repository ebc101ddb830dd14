"""Which constants flip the answer, and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from craftopt.errors import InputError
from craftopt.serving.candidates import Candidate, winner
from craftopt.serving.deployment import Deployment, Workload, with_constants
from craftopt.serving.goodput import service_of
from craftopt.serving.memory import memory_of

# How far constants are changed.
_FURTHEST = 16.0
# Steps that narrow a flip down: to 2 % of its value.
_HALVINGS = 5
SCALED = (
    "input_tokens",
    "output_tokens",
    "prefill_tokens",
    "compute_efficiency",
    "bandwidth_efficiency",
    "link_efficiency",
    "reserve",
    "exchange_latency",
    "layer_overhead",
    "step_overhead",
)
NAMED: Mapping[str, tuple[Any, ...]] = {
    "kv_dtype": ("fp8", "bf16"),
    "expert_dtype": ("bf16", "fp8", "mxfp4"),
    "exchange": ("all-gather", "all-to-all"),
    "attention_gpus": (1, 8),
    "prefill_elsewhere": (True, False),
}
# Where the plans' traffic is known.
TRAFFIC_NAMED: Mapping[str, tuple[Any, ...]] = {
    "exchange": ("all-gather", "low-latency", "all-to-all"),
    "overlap": (0.0, 0.5, 1.0),
}


@dataclass(frozen=True)
class Sensitivity:
    """Say where a constant flips the answer, all others kept.

    Parameters
    ----------
    constant, value : str
    tried : str
        Values that were tried.
    flips : tuple of (value, winner)
        The nearest values below and above at which another candidate is recommended; empty
        where none is.
    """

    constant: str
    value: str
    tried: str
    flips: tuple[tuple[str, str], ...]


def sensitivities(
    deployment: Deployment, workload: Workload, candidates: Sequence[Candidate], best: Candidate
) -> tuple[Sensitivity, ...]:
    """Find, constant by constant, where another candidate is recommended.

    Parameters
    ----------
    candidates : sequence of Candidate
        The first hosts no replicas. Plans stay as they are; only their scores change.
    best : Candidate
        Recommended as things are.
    """
    asked = _Asked(deployment, workload, candidates)
    rows = [_scaled_row(asked, name, best) for name in SCALED if asked.value(name)]
    start = best.served.tpot
    flip = _flip(lambda factor: asked.winner({"tpot": start * factor}), best, 1 / 2, _FURTHEST)
    now = "no limit" if workload.tpot is None else f"{_figure(workload.tpot)} s"
    tighter = () if flip is None else ((f"{_figure(start * flip[0])} s", flip[1].name),)
    tried = f"{_figure(start / _FURTHEST)} to {_figure(start)} s"
    rows.append(Sensitivity("tpot", now, tried, tighter))
    named = NAMED if best.profile.traffic is None else {**NAMED, **TRAFFIC_NAMED}
    for name, choices in named.items():
        value = deployment.expert_kind if name == "expert_dtype" else asked.value(name)
        found = [(choice, asked.winner({name: choice})) for choice in choices if choice != value]
        flips = tuple((str(choice), won.name) for choice, won in found if won and won is not best)
        tried = ", ".join(str(choice) for choice, _ in found)
        rows.append(Sensitivity(name, str(value), tried, flips))
    if best is not candidates[0]:
        rows.append(_kept_row(asked, best))
    return tuple(rows)


class _Asked:
    """Answers which candidate wins under other constants."""

    def __init__(
        self, deployment: Deployment, workload: Workload, candidates: Sequence[Candidate]
    ) -> None:
        self.deployment, self.workload, self.candidates = deployment, workload, candidates

    def value(self, name: str) -> Any:
        """Return the present value of a constant."""
        return getattr(self.deployment if hasattr(self.deployment, name) else self.workload, name)

    def winner(self, changes: Mapping[str, Any], kept: float = 1.0) -> Candidate | None:
        """Find the winner with constants changed; None where none of the candidates can run.

        ``kept`` is the share of what a plan takes off the fullest GPUs that it keeps.
        """
        try:
            deployment, workload = with_constants(self.deployment, self.workload, changes)
        except InputError:
            return None
        goodputs = []
        for candidate in self.candidates:
            profile = candidate.profile
            none = self.candidates[0].profile.fullest
            if kept < 1:
                fullest = profile.fullest + (1 - kept) * (none - profile.fullest)
                profile = replace(profile, fullest=fullest)
            memory = memory_of(deployment, candidate.plan)
            runs = memory.concurrency(workload.context) > 0
            goodputs.append(
                service_of(deployment, profile, memory, workload).requests_per_second
                if runs
                else 0.0
            )
        return winner(self.candidates, goodputs) if max(goodputs) > 0 else None


def _scaled_row(asked: _Asked, name: str, best: Candidate) -> Sensitivity:
    """Make a number smaller and larger until another candidate wins."""
    value = asked.value(name)
    whole = isinstance(value, int)

    def at(factor: float) -> Candidate | None:
        return asked.winner({name: max(1, round(value * factor)) if whole else value * factor})

    # Nothing reaches more than all of what its data sheet says.
    most = 1 / value if name.endswith("efficiency") else _FURTHEST
    found = (_flip(at, best, 1 / 2, _FURTHEST), _flip(at, best, 2.0, most))
    flips = tuple((_figure(value * flip[0]), flip[1].name) for flip in found if flip is not None)
    tried = f"{_figure(value / _FURTHEST)} to {_figure(value * most)}"
    return Sensitivity(name, _figure(value), tried, flips)


def _kept_row(asked: _Asked, best: Candidate) -> Sensitivity:
    """Reduce the gain in balance, as drifting traffic does, until another candidate wins."""
    name = "balance gain kept on live traffic"
    last = asked.winner({}, kept=0.0)
    if last is None or last is best:
        return Sensitivity(name, "100%", "0% to 100%", ())
    low, high = 0.0, 1.0
    while high - low > 0.01:
        middle = (low + high) / 2
        found = asked.winner({}, kept=middle)
        if found is None or found is best:
            high = middle
        else:
            low, last = middle, found
    return Sensitivity(name, "100%", "0% to 100%", ((f"{low:.0%}", last.name),))


def _flip(
    winner_at: Callable[[float], Candidate | None],
    best: Candidate,
    direction: float,
    furthest: float,
) -> tuple[float, Candidate] | None:
    """Find the factor nearest to 1, upward or downward, at which another candidate wins."""
    near, far = 1.0, 1.0
    found: Candidate | None = best
    while found is best:
        near = far
        if max(far, 1 / far) >= furthest * 0.999:
            return None
        far = min(far * direction, furthest) if direction > 1 else far * direction
        found = winner_at(far)
    for _ in range(_HALVINGS):
        middle = (near * far) ** 0.5
        other = winner_at(middle)
        if other is best:
            near = middle
        elif other is not None or found is None:
            far, found = middle, other
        else:
            near = middle
    if found is None:  # nothing runs there, and up to there the answer stays
        return None
    return far, found


def _figure(value: float) -> str:
    if value >= 1e8:  # bytes
        return f"{value / 2**30:.3g} GiB"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
