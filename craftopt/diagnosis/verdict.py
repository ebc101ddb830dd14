"""One verdict on a recording: leave it, place, replicate, or collect more windows first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from craftopt.diagnosis.measuring import STEPS, Cost, Measuring, Persistence
from craftopt.diagnosis.rules import (
    LEAST_GAIN,
    LEVEL,
    Gain,
    Verdict,
    candidate,
    cautions,
    decide,
    margin,
)
from craftopt.display import Displayed, Table, data_frame
from craftopt.errors import InputError
from craftopt.loads import Loads
from craftopt.plan import Plan
from craftopt.problem import Problem
from craftopt.recordings import LEAST_WINDOWS, in_words, windows_needed
from craftopt.serving.catalogue import find_gpu, find_model
from craftopt.serving.deployment import GIB, Deployment
from craftopt.serving.facts import Gpu, Model
from craftopt.serving.memory import check_shape
from craftopt.traces import Trace
from craftopt.windows import without_idle

# What the parts of today's layer time are.
SHARES = {
    "work": "is the work itself (all GPUs equally loaded)",
    "moving": "is saved by moving experts",
    "copies": "more by copies, at the best budget",
    "dispatch": "more by a better dispatch",
    "unforeseen": "is waiting that these plans did not foresee",
    "unavoidable": "is waiting that no plan can remove",
}


@dataclass(frozen=True, eq=False)
class Diagnosis(Displayed):
    """Hold a verdict with its reasons.

    Parameters
    ----------
    verdict : {"collect more windows first", "leave it", "place", "replicate"}
    replicas_per_layer : int
        Of the verdict: 0 but for ``replicate``.
    gpus, nodes, windows : int
    today : str
        What the gains are measured against.
    relative_time : float
        Load of the fullest GPU over the mean today, at least 1.
    gains : tuple of Gain
        By rising budget; the first is moving alone. Empty with a single window.
    dispatch : float
        What the best split of tokens over the copies would gain on top, held out.
    persistence : Persistence or None
        None with a single window.
    windows_needed : int
        Windows at which the gain would be known to a tenth, or to half of what is worth having;
        one more than can be said where those recorded are too few for an estimate.
    critical_nodes : tuple of float or None
        Nodes per token of the busiest node, today and planned, where a trace was given.
    cost : Cost or None
    cautions : tuple of str
        When not to, as far as it applies here.
    plans : mapping of int to (Plan, Plan)
        What the gains were measured with, by copies per layer: made for windows 1, 3, 5, ..., and
        for windows 0, 2, 4, ... by a short search, of the layers that were measured. To look at;
        `solve` makes those to serve with.
    """

    verdict: Verdict
    replicas_per_layer: int
    gpus: int
    nodes: int
    windows: int
    experts: int
    layers: int
    today: str
    relative_time: float
    gains: tuple[Gain, ...]
    dispatch: float
    persistence: Persistence | None
    windows_needed: int
    critical_nodes: tuple[float, float] | None
    cost: Cost | None
    cautions: tuple[str, ...]
    plans: Mapping[int, tuple[Plan, Plan]] = field(repr=False)

    @property
    def chosen(self) -> Gain | None:
        """The gain of the candidate that the verdict is on; None with a single window."""
        return candidate(self.gains) if self.gains else None

    @property
    def answer(self) -> str:
        """The verdict in one sentence, with the reason and the gain."""
        gain = self.chosen
        if gain is None:
            return "collect more windows first: with a single window no gain can be held out"
        figures = (
            f"{'saves' if gain.held_out > -0.0005 else 'loses'} {_percent(abs(gain.held_out))} of "
            "layer time on windows that the plans had not seen "
            f"({LEVEL:.0%} interval {_percent(gain.low)} to {_percent(gain.high)}) and "
            f"saves {_percent(gain.planned)} on those they were made for"
        )
        if gain.replicas:
            what, figures = f"copying {gain.replicas} per layer", f"{figures}; moving alone "
            figures += _percent(self.gains[0].held_out)
        else:
            what = "moving experts, without copies,"
            figures += f"; copies add {_percent(self.shares['copies'])}"
        if self.windows < LEAST_WINDOWS:
            return (
                f"{self.verdict}: {self.windows} are too few to say how certain a gain is, have "
                f"at least {LEAST_WINDOWS}; {what} {figures}"
            )
        if self.verdict == "collect more windows first":
            needed = in_words(self.windows_needed, self.windows)
            return (
                f"{self.verdict}: {what} may save nothing, or more than {LEAST_GAIN:.0%}; it "
                f"{figures}; {needed} windows would tell, and there are {self.windows}"
            )
        if self.verdict == "leave it":
            return f"leave it: {what} {figures}; below {LEAST_GAIN:.0%} it is not worth it"
        if self.verdict == "place":
            text = f"place: {what} {figures}"
        else:
            text = f"replicate {self.replicas_per_layer} per layer: {figures}"
        new = self.persistence.new_domains if self.persistence else None
        return text if new is None else f"{text}; on domains not recorded, {_percent(new)}"

    @property
    def shares(self) -> dict[str, float]:
        """What today's layer time is made of; sums to 1.

        Gains are on windows not planned, at the largest budget. What is left beyond them is what
        plans could save that knew the windows, as far as known, and what no plan can.
        """
        ideal = 1.0 / self.relative_time
        if not self.gains:
            return {"work": ideal, "unforeseen": 1.0 - ideal}
        moving, best = self.gains[0].held_out, max(gain.held_out for gain in self.gains)
        most = min(1.0 - ideal, max(gain.most for gain in self.gains))
        saved = best + self.dispatch
        return {
            "work": ideal,
            "moving": moving,
            "copies": best - moving,
            "dispatch": self.dispatch,
            "unforeseen": max(most, saved) - saved,
            "unavoidable": 1.0 - ideal - max(most, saved),
        }

    @property
    def reasons(self) -> tuple[str, ...]:
        """What the verdict rests on, a sentence each."""
        shares = ", ".join(
            f"{_percent(part)} {SHARES[name]}"
            for name, part in self.shares.items()
            if part >= 0.0005
        )
        found = [
            f"Today ({self.today}) the fullest GPU of a layer has {self.relative_time:.2f} times "
            f"the mean load, and the others wait for it. Of today's layer time, {shares}.",
            *_persistence_text(self.persistence, self.chosen.held_out if self.chosen else 0.0),
        ]
        measured = next(iter(self.plans.values()))[0].layers if self.plans else self.layers
        if measured < self.layers:
            found.append(f"Measured on {measured} of the {self.layers} layers, evenly spread.")
        if self.gains:
            found.append(
                "Limit: proven, no plan with as many copies (slots even) saves more on the windows "
                "that it was made for."
            )
        if self.dispatch >= 0.0005:
            found.append(
                "Splitting every batch over the copies in the best way (dispatch lp) would save "
                f"{self.dispatch:.1%} more."
            )
        if self.replicas_per_layer:
            part = self.replicas_per_layer / self.experts
            memory = f": {self.cost.memory / GIB:.2f} GiB per GPU" if self.cost else ""
            found.append(f"The copies take {part:.1%} more memory for experts{memory}.")
            whole = self.gpus - self.experts % self.gpus
            extra = next((gain for gain in self.gains if gain.replicas == whole), None)
            if extra is not None and (self.replicas_per_layer + self.experts) % self.gpus:
                found.append(
                    f"Engines today load whole slots on every GPU only: {whole} per layer, "
                    f"{_percent(extra.held_out)} held out."
                )
        if self.cost is not None:
            parts = (-self.cost.prefill, self.cost.exchange, -self.cost.decode)
            prefill, exchange, decode = (_percent(part, sign="+") for part in parts)
            found.append(
                "A whole step, modelled with its attention and exchange, changes by "
                f"{prefill} for a prefill of {STEPS['prefill']:,.0f} tokens per GPU ({exchange} "
                f"from the exchange) and by {decode} for a decode of {STEPS['decode']:.0f}."
            )
        if self.critical_nodes is not None:
            now, then = self.critical_nodes
            found.append(
                f"Exchange: a token visits {now:.2f} nodes today and {then:.2f} with the plan "
                "(nodes of the busiest node)."
            )
        elif self.nodes > 1:
            found.append("Exchange between nodes is not known without a trace.")
        if self.chosen:
            needed = in_words(self.windows_needed, self.windows)
            found.append(
                f"Windows: {self.windows}; {needed} are needed to know the gain "
                f"to within {margin(self.chosen):.1%}."
            )
        return (*found, *self.cautions)

    def table(self) -> Table:
        """Lay out the answer, the budgets and the reasons."""
        header = ("copies per layer", "planned", "held out", f"{LEVEL:.0%} interval", "limit")
        rows = [
            (
                f"{gain.replicas}" if gain.replicas else "0 (moving alone)",
                _percent(gain.planned),
                _percent(gain.held_out),
                f"{_percent(gain.low)} to {_percent(gain.high)}",
                _percent(gain.most),
            )
            for gain in self.gains
        ]
        title = f"{self.answer}\n\nlayer time saved, by budget"
        if not rows:
            return Table(self.answer, (), [("windows", "1")], self.reasons)
        return Table(title, header, rows, ("", *self.reasons))

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain values, for JSON."""
        figures = asdict(replace(self, plans={}))
        del figures["plans"]
        return {"answer": self.answer, **figures, "shares": self.shares,
                "reasons": list(self.reasons)}  # fmt: skip

    def to_frame(self) -> Any:
        """Return a pandas data frame with a row per budget."""
        return data_frame(map(asdict, self.gains))

    def __str__(self) -> str:
        return str(self.table())


def diagnose(
    loads: Loads,
    gpus: int,
    nodes: int = 1,
    *,
    plan: Plan | None = None,
    model: str | Model | None = None,
    gpu: str | Gpu | None = None,
    trace: Trace | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Say whether to leave a deployment, move experts, copy some, or record more traffic first.

    Every other window is planned and the rest served, then the other way round; gains are of the
    windows served. docs/diagnose.md has the rules of the verdict.

    Parameters
    ----------
    loads : Loads
        Windows of traffic, best as short as a few batches and as varied as what will be served;
        those without tokens are left out.
    gpus, nodes : int
    plan : Plan, optional
        What is served with today; experts by id, without copies, by default.
    model, gpu : str or Model and str or Gpu, optional
        Both, for memory and for the gain in whole steps.
    trace : Trace, optional
        Tokens to measure the exchange between nodes on.
    seed, workers : int
        As in `solve`.
    progress : callable, optional
        Called with what is done next.

    Raises
    ------
    InputError
        A plan of another shape; model without gpu; loads without tokens.

    Examples
    --------
    >>> import craftopt as co
    >>> loads = co.Loads([[[80, 40, 20, 20]], [[70, 50, 30, 10]]] * 10)
    >>> found = co.diagnose(loads, gpus=2)
    >>> found.verdict, found.windows
    ('place', 20)
    """
    loads = without_idle(loads)
    if (model is None) != (gpu is None):
        raise InputError("model and gpu go together; pass both, or neither")
    if plan is not None and plan.gpus != gpus:
        raise InputError(f"the plan is for {plan.gpus} GPUs; pass gpus={plan.gpus}")
    every = Measuring(
        Problem(loads, gpus, nodes=nodes, slots="even"), plan, seed, workers, progress
    )
    work = every.sample()
    deployment = None
    if model is not None and gpu is not None:
        found = model if isinstance(model, Model) else find_model(model)
        device = gpu if isinstance(gpu, Gpu) else find_gpu(gpu)
        deployment = Deployment(found, device, gpus, nodes)
        check_shape(deployment, loads.layers, loads.experts)
    gains = work.gains() if loads.windows > 1 else ()
    verdict, replicas = decide(gains, loads.windows)
    gain = candidate(gains) if gains else None
    diagnosis = Diagnosis(
        verdict=verdict,
        replicas_per_layer=replicas,
        gpus=gpus,
        nodes=nodes,
        windows=loads.windows,
        experts=loads.experts,
        layers=loads.layers,
        today="experts by id, no copies" if plan is None else "the given map",
        relative_time=float(work.now.sum() / work.mean.sum()),
        gains=gains,
        dispatch=0.0,
        persistence=None,
        windows_needed=LEAST_WINDOWS
        if gain is None
        else windows_needed(loads.windows, (gain.high - gain.low) / 2, margin(gain)),
        critical_nodes=None,
        cost=None,
        cautions=tuple(cautions(loads, gpus, plan, every.now, every.mean)),
        plans={gain.replicas: work.plans(gain.replicas) for gain in gains},
    )
    if gain is None:
        return diagnosis
    return replace(
        diagnosis,
        dispatch=work.dispatch(gain.replicas),
        persistence=work.persistence(gain.replicas),
        critical_nodes=every.critical_nodes(gain.replicas, trace),
        cost=every.cost(gain.replicas, deployment),
    )


def _percent(part: float, decimals: int = 1, sign: str = "") -> str:
    text = f"{part:{sign}.{decimals}%}"
    return text.lstrip("-+") if not text.strip("-+0.%") else text


def _persistence_text(found: Persistence | None, held_out: float) -> Iterator[str]:
    """Say how persistent hot experts and gains are."""
    if found is None:
        return
    text = (
        f"Of a window's hottest experts (the top eighth), {found.next_window:.0%} are among the "
        "hottest of the next window"
    )
    if found.other_domain is not None:
        text += f", and {found.other_domain:.0%} in a window of another domain"
    yield f"{text}; by chance it would be {found.chance:.0%}."
    yield (
        f"The mean of all other windows explains {_percent(max(0.0, found.foreseen), 0)} of how "
        "unevenly a window loads its experts."
    )
    if found.near is not None and found.far is not None:
        yield (
            f"Horizon: a plan for the first half of the windows saves {_percent(found.near)} in "
            f"the third quarter and {_percent(found.far)} in the last."
        )
    if found.new_domains is not None:
        text = f"On domains that a plan has not seen it saves {_percent(found.new_domains)}"
        if found.new_domains < held_out / 2:
            text += ": record every kind of traffic that you serve, and plan again when it changes"
        yield f"{text}."
