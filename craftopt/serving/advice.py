"""How many replicas to pay for: a sweep over budgets, full plans for the best, and why.

Where it is known which experts tokens choose together, none, the best budget and the best that
engines can load are planned again for balance and traffic together, at the price that the
deployment's facts give, and for both dispatches; the modelled goodput decides between all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from craftopt.coactivation import Coactivation
from craftopt.display import Displayed, Table, data_frame
from craftopt.errors import InfeasibleError, InputError, choice
from craftopt.loads import Loads
from craftopt.problem import Problem, SlotRule
from craftopt.result import Options
from craftopt.serving.candidates import Candidate, Plans, winner
from craftopt.serving.catalogue import find_gpu, find_model
from craftopt.serving.deployment import (
    GIB,
    Deployment,
    TrafficPrice,
    Workload,
    with_constants,
)
from craftopt.serving.facts import Gpu, Model
from craftopt.serving.memory import check_shape
from craftopt.serving.reasons import reasons, traffic_reasons
from craftopt.serving.sensitivity import Sensitivity, sensitivities
from craftopt.serving.sweep import Budget, Sweep, finalists, label, none_of
from craftopt.traces import Trace
from craftopt.windows import holdout as split_windows
from craftopt.windows import planned_tokens

# Annealing steps of a layer in the plans that are compared: `fast` takes several times as many.
WORK = 100_000


@dataclass(frozen=True, eq=False)
class Advice(Displayed):
    """Hold a recommendation with its reasons.

    Parameters
    ----------
    deployment : Deployment
    workload : Workload
    planned_windows, served_windows : int
    curve : tuple of Budget
        What the sweep predicts, by slot rule and rising budget.
    candidates : tuple of Candidate
        Full plans, best first: the best budgets, and no replicas.
    recommended, runner_up : Candidate
    loadable : Candidate or None
        The best that engines can load today.
    eplb : Candidate or None
        What engines do by default: EPLB with one extra slot per GPU and layer. None where it
        leaves no cache.
    reasons : tuple of str
    sensitivity : tuple of Sensitivity
    price : TrafficPrice or None
        What a node that a token visits costs, where ``coactivation`` was given.
    """

    deployment: Deployment
    workload: Workload
    planned_windows: int
    served_windows: int
    curve: tuple[Budget, ...]
    candidates: tuple[Candidate, ...]
    recommended: Candidate
    runner_up: Candidate
    loadable: Candidate | None
    eplb: Candidate | None
    reasons: tuple[str, ...]
    sensitivity: tuple[Sensitivity, ...]
    price: TrafficPrice | None = None

    @property
    def ratio_to_eplb(self) -> float | None:
        """Modelled goodput of the recommendation over EPLB's, on the windows served."""
        if self.eplb is None or self.eplb.goodput == 0:
            return None
        return self.recommended.goodput / self.eplb.goodput

    def flags(self) -> dict[str, str]:
        """Return the options that load `loadable`, by engine."""
        if self.loadable is None:
            return {}
        plan = self.loadable.plan
        extra = plan.replicas // plan.layers
        slots = plan.experts + extra
        dispatch = "" if self.loadable.dispatch == "even" else " --ep-dispatch-algorithm dynamic"
        return {
            "sglang": f"--ep-num-redundant-experts {extra} --init-expert-location <the plan's map>"
            f"{dispatch}",
            "vllm": f"--enable-eplb --eplb-config '{{\"num_redundant_experts\": {extra}}}' "
            "(it places the copies itself)",
            "tensorrt-llm": f"moe_config.load_balancer: num_slots: {slots}, "
            "initial_global_assignments: <the plan's map>, layer_updates_per_iter: 0",
            "vllm-ascend": f"eplb_config: num_redundant_experts: {extra}, "
            "expert_map_path: <the plan's map>",
        }

    @property
    def answer(self) -> str:
        """The recommendation in one sentence."""
        best, second = self.recommended, self.runner_up
        text = f"{best.name}: {best.goodput:.2f} requests/s modelled on windows not planned on"
        if self.ratio_to_eplb is not None:
            text += f", {self.ratio_to_eplb:.3f} x EPLB's default"
        return f"{text}; runner-up {second.name}, {second.goodput:.2f}"

    @property
    def compared(self) -> tuple[Candidate, ...]:
        """The candidates, and EPLB's default after them."""
        return (*self.candidates, *([self.eplb] if self.eplb else []))

    def table(self) -> Table:
        """Lay out the plans side by side, and below them the answer and its reasons."""
        header = (
            "plan", "replicas", "GiB/GPU", "cache GiB", "sequences", "fullest/mean\nplanned",
            "\nserved", "TPOT ms", "TTFT s", "set by", "requests/s\nplanned", "\nserved",
        )  # fmt: skip
        rows = [
            (
                candidate.name,
                str(candidate.plan.replicas),
                f"{candidate.memory.replicas / GIB:.2f}",
                f"{candidate.memory.kv / GIB:.2f}",
                f"{candidate.served.concurrency}",
                f"{candidate.relative_time_planned:.3f}",
                f"{candidate.relative_time_served:.3f}",
                f"{candidate.served.tpot * 1e3:.0f}",
                f"{candidate.served.ttft:.2f}",
                candidate.served.bound,
                f"{candidate.planned.requests_per_second:.2f}",
                f"{candidate.served.requests_per_second:.2f}",
            )
            for candidate in self.compared
        ]
        title = (
            f"full plans, made on {self.planned_windows} windows and served "
            f"{self.served_windows} others"
        )
        return Table(title, header, rows, (self.answer, *self.reasons))

    def to_frame(self) -> Any:
        """Return a pandas data frame with a row per plan."""
        return data_frame(map(_plain, self.compared))

    def __str__(self) -> str:
        return str(self.table())

    def to_dict(self) -> dict[str, Any]:
        """Return the advice as plain values, for JSON; plans by what they cost."""
        deployment = asdict(self.deployment)
        deployment["model"], deployment["gpu"] = (
            self.deployment.model.name,
            self.deployment.gpu.name,
        )
        return {
            "deployment": deployment,
            "workload": asdict(self.workload),
            "planned_windows": self.planned_windows,
            "served_windows": self.served_windows,
            "recommended": self.recommended.name,
            "runner_up": self.runner_up.name,
            "loadable": self.loadable.name if self.loadable else None,
            "ratio_to_eplb": self.ratio_to_eplb,
            "reasons": list(self.reasons),
            "price": self.price and self.price.to_dict(),
            "candidates": [_plain(candidate) for candidate in self.candidates],
            "eplb": _plain(self.eplb) if self.eplb else None,
            "curve": [asdict(budget) for budget in self.curve],
            "sensitivity": [asdict(row) for row in self.sensitivity],
            "flags": self.flags(),
        }


def advise(
    loads: Loads,
    model: str | Model,
    gpu: str | Gpu,
    gpus: int,
    nodes: int = 1,
    *,
    coactivation: Coactivation | Trace | None = None,
    slots: Sequence[SlotRule] = ("uniform", "even"),
    holdout: str = "odd-even",
    expert_groups: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[str], None] | None = None,
    **constants: Any,
) -> Advice:
    """Say how many replicas to pay for, and why.

    Parameters
    ----------
    loads : Loads
        Two windows or more, of all MoE layers of the model.
    model, gpu : str or Model and str or Gpu
        Names of packaged facts, or facts of one's own.
    gpus, nodes : int
    coactivation : Coactivation or Trace, optional
        Which experts tokens choose together: the trace that the loads are windows of, or pair
        counts. Then the exchange is that of every plan's own nodes, and some plans are made for
        balance and traffic together, for ``even`` and for ``nearest-even`` dispatch. Else tokens
        are taken to need experts on any node.
    slots : sequence of str
        Memory layouts to consider. ``free`` plans differ little from ``even`` ones.
    holdout : str
        Which windows to score on and not to plan on, as in `craftopt.holdout`.
    expert_groups : int, optional
        As in `Problem`.
    seed, workers : int
        As in `solve`.
    progress : callable, optional
        Called with what is done next.
    **constants
        Any other constant of `Deployment` or `Workload`, such as ``input_tokens=2000`` or
        ``kv_dtype="fp8"``.

    Returns
    -------
    Advice
        A model's word, not a measurement: its constants are guesses until calibrated.
        Its plans have few annealing steps, which is enough to compare them: serve that of
        ``solve(advice.recommended.problem, "fast")``.
        ``sensitivity`` says what would change the answer.

    Raises
    ------
    InputError
        Unknown names or constants; loads of another shape than the model's, or no windows of the
        trace.
    InfeasibleError
        A model that does not fit, or that leaves no cache for one sequence; limits on waiting
        that no plan keeps.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.serving import find_model
    >>> small = find_model("olmoe-1b-7b").replace(layers=2, moe_layers=2, experts=8, top_k=2)
    >>> loads = co.Loads([[[9, 3, 2, 2, 4, 4, 1, 1], [1, 1, 2, 8, 5, 5, 2, 2]]] * 4)
    >>> advice = co.advise(loads, model=small, gpu="h100", gpus=4, input_tokens=500)
    >>> advice.recommended in advice.candidates, advice.served_windows
    (True, 2)
    """
    if not isinstance(loads, Loads):
        raise InputError(f"loads is a {type(loads).__name__}; pass craftopt.Loads(tokens)")
    found = model if isinstance(model, Model) else find_model(model)
    device = gpu if isinstance(gpu, Gpu) else find_gpu(gpu)
    deployment, workload = with_constants(
        Deployment(found, device, gpus, nodes), Workload(), constants
    )
    check_shape(deployment, loads.layers, loads.experts)
    if isinstance(slots, str) or not slots:
        raise InputError(
            f"slots={slots!r}; pass a list of one or more of {', '.join(get_args(SlotRule))}"
        )
    rules = tuple(dict.fromkeys(choice("slots", rule, get_args(SlotRule)) for rule in slots))
    planned, served = split_windows(loads, holdout)
    price = None if coactivation is None else deployment.traffic_price()
    say = progress or (lambda _: None)
    problem = Problem(
        planned,
        gpus,
        nodes=nodes,
        slots="even",
        expert_groups=expert_groups,
        coactivation=planned_tokens(coactivation, planned),
    )
    sweep = Sweep(deployment, workload, problem)
    say("measuring the layers' benefit")
    sweep.measure(seed, workers)
    say("sweeping budgets")
    curve = tuple(sweep.curve(rules))
    options = Options(seed, workers=workers, work_limit=WORK)
    makes = Plans(deployment, workload, problem, served, coactivation, options)
    budgets = (none_of(curve), *finalists(curve))
    candidates = []
    for budget in budgets:
        say(f"planning {label(budget)}")
        candidates.append(makes.balanced(budget))
    if price is not None and price.price > 0:
        places = sorted(range(1, len(budgets)), key=lambda place: -candidates[place].goodput)
        uniform = [place for place in places if candidates[place].loadable]
        for place in sorted({0, *places[:1], *uniform[:1]}):
            say(f"planning {label(budgets[place])} with traffic")
            candidates += makes.with_traffic(budgets[place], candidates[place])
    if not any(candidate.goodput > 0 for candidate in candidates):
        waits = min((candidate.served for candidate in candidates), key=lambda found: found.tpot)
        raise InfeasibleError(
            f"no plan keeps ttft={workload.ttft} and tpot={workload.tpot} seconds, not even for "
            f"one request at a time: a token takes at least {waits.tpot:.3g} s and a prompt "
            f"{waits.prefill.total:.3g} s a step; allow more, or use more GPUs"
        )
    say("planning as EPLB does")
    eplb = makes.eplb()
    best = winner(candidates, [candidate.goodput for candidate in candidates])
    others = [candidate for candidate in candidates if candidate is not best]
    others.sort(key=lambda candidate: -candidate.goodput)
    loadable = [candidate for candidate in candidates if candidate.loadable]
    return Advice(
        deployment=deployment,
        workload=workload,
        planned_windows=planned.windows,
        served_windows=served.windows,
        curve=curve,
        candidates=(best, *others),
        recommended=best,
        runner_up=others[0] if others else best,
        loadable=winner(loadable, [candidate.goodput for candidate in loadable])
        if loadable
        else None,
        eplb=eplb,
        reasons=reasons(deployment, workload, best, candidates, eplb)
        + traffic_reasons(deployment, price, best, candidates, coactivation),
        sensitivity=sensitivities(deployment, workload, candidates, best),
        price=price,
    )


def _plain(candidate: Candidate) -> dict[str, Any]:
    return {
        "name": candidate.name,
        "slots": candidate.slots,
        "dispatch": candidate.dispatch,
        "price": candidate.price,
        "traffic": candidate.profile.traffic and candidate.profile.traffic.to_dict(),
        "replicas": candidate.plan.replicas,
        "loadable": candidate.loadable,
        "memory": {**asdict(candidate.memory), "kv": candidate.memory.kv},
        "kv_tokens": candidate.memory.kv_tokens,
        "relative_time_planned": candidate.relative_time_planned,
        "relative_time_served": candidate.relative_time_served,
        "planned": asdict(candidate.planned),
        "served": asdict(candidate.served),
    }
