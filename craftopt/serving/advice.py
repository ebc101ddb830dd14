"""How many replicas to pay for: a sweep over budgets, full plans for the best, and why.

Where it is known which experts tokens choose together, none, the best budget and the best that
engines can load are planned again for balance and traffic together, at the price that the
deployment's facts give, and for both dispatches; the modelled goodput decides between all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np

from craftopt.coactivation import Coactivation
from craftopt.display import Displayed, Table, data_frame
from craftopt.errors import InfeasibleError, InputError, choice
from craftopt.loads import Loads
from craftopt.plan import Plan
from craftopt.problem import PlannedDispatch, Problem, SlotRule
from craftopt.result import Options
from craftopt.serving.candidates import Candidate, score, winner
from craftopt.serving.catalogue import find_gpu, find_model
from craftopt.serving.deployment import (
    GIB,
    TIE,
    Deployment,
    TrafficPrice,
    Workload,
    with_constants,
)
from craftopt.serving.facts import Gpu, Model
from craftopt.serving.memory import check_shape, memory_of
from craftopt.serving.sensitivity import Sensitivity, sensitivities
from craftopt.serving.sweep import Budget, Sweep, finalists, label, none_of
from craftopt.solving import solve
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
    makes = _Plans(deployment, workload, problem, served, coactivation, options)
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
        reasons=_reasons(deployment, workload, best, candidates, eplb)
        + _traffic_reasons(deployment, price, best, candidates, coactivation),
        sensitivity=sensitivities(deployment, workload, candidates, best),
        price=price,
    )


@dataclass(frozen=True)
class _Plans:
    """Makes and scores full plans for budgets.

    Parameters
    ----------
    problem : Problem
        The planned windows, and what is known of their tokens.
    served : Loads
    coactivation : Coactivation or Trace or None
        Of all windows.
    """

    deployment: Deployment
    workload: Workload
    problem: Problem
    served: Loads
    coactivation: Coactivation | Trace | None
    options: Options

    def score(self, name: str, problem: Problem, plan: Plan) -> Candidate:
        """Score a plan of a problem."""
        return score(
            name, problem, plan, self.deployment, self.workload, self.served, self.coactivation
        )

    def balanced(self, budget: Budget) -> Candidate:
        """Plan for balance alone."""
        from craftopt.planners.windowed import WindowedSearch  # noqa: PLC0415 (loads numba)

        problem = self._problem(budget)
        search = WindowedSearch(problem, self.options)
        plan = problem.plan(search.plan(np.array(budget.allocation)), "fast")
        return self.score(label(budget), problem, plan)

    def with_traffic(self, budget: Budget, balanced: Candidate) -> list[Candidate]:
        """Plan for balance and traffic together; list the plans that are new."""
        from craftopt.planners.joint import JointSearch  # noqa: PLC0415 (loads numba)

        found = []
        dispatches: tuple[PlannedDispatch, ...] = ("even", "nearest-even")
        for dispatch in dispatches if budget.replicas else dispatches[:1]:
            problem = self._problem(budget, traffic=self.deployment, dispatch=dispatch)
            search = JointSearch(problem, self.options, balanced.plan.copies)
            plan = problem.plan(search.plan(np.array(budget.allocation)), "fast")
            name = f"{label(budget)}, traffic"
            if dispatch != "even":
                name += f", {dispatch}"
            elif plan == balanced.plan:
                continue
            found.append(self.score(name, problem, plan))
        return found

    def eplb(self) -> Candidate | None:
        """Plan as engines do by default: one extra slot on every GPU in every layer."""
        experts, gpus = self.problem.loads.experts, self.problem.gpus
        extra = (experts // gpus + 1) * gpus - experts
        if extra > experts * (self.problem.copies_limit - 1):
            return None
        problem = self.problem.replace(slots="uniform", replicas_per_layer=extra)
        grouped = problem.expert_groups is not None
        found = solve(problem, "eplb-hierarchical" if grouped else "eplb")
        if not found.has_plan:
            return None
        if not memory_of(self.deployment, found.plan).concurrency(self.workload.context):
            return None
        return self.score("EPLB's default", problem, found.plan)

    def _problem(self, budget: Budget, **changes: Any) -> Problem:
        return self.problem.replace(slots=budget.slots, replicas=budget.replicas, **changes)


def _reasons(
    deployment: Deployment,
    workload: Workload,
    best: Candidate,
    candidates: Sequence[Candidate],
    eplb: Candidate | None,
) -> tuple[str, ...]:
    """Give the reasons in numbers that can be checked by hand."""
    lines = []
    bare = [candidate for candidate in candidates if candidate.plan.replicas == 0]
    none = max(bare, key=lambda candidate: candidate.goodput) if best not in bare else best
    for candidate in [none] if best is none else [none, best]:
        service, memory = candidate.served, candidate.memory
        lines.append(
            f"{candidate.name}: {memory.kv / GIB:.2f} GiB of cache per GPU hold "
            f"{memory.kv_tokens:,} tokens = {service.concurrency} sequences of "
            f"{workload.context:,}; the fullest GPU computes {candidate.relative_time_served:.2f} "
            f"times the mean; a round takes {service.tpot * 1e3:.1f} ms with "
            f"{service.sequences:.0f} sequences per group ({service.bound} sets this), so "
            f"{deployment.groups} x {service.sequences:.1f} / ({workload.output_tokens - 1} x "
            f"{service.tpot:.4f} s) = {service.requests_per_second:.2f} requests/s"
        )
    if best is not none:
        copies = (best.memory.replicas - none.memory.replicas) / deployment.expert_bytes
        lines.append(
            f"the price: {copies:.0f} copies x {deployment.expert_bytes / 2**20:.1f} MiB = "
            f"{copies * deployment.expert_bytes / GIB:.2f} GiB per GPU, "
            f"{1 - best.memory.kv_tokens / none.memory.kv_tokens:.1%} of the cache; what it buys: "
            f"a prefill step's experts take {best.served.prefill.experts * 1e3:.0f} instead of "
            f"{none.served.prefill.experts * 1e3:.0f} ms, {_gain(best, none)} goodput"
        )
    elif len(candidates) > len(bare):
        other = max(
            (candidate for candidate in candidates if candidate not in bare),
            key=lambda candidate: candidate.goodput,
        )
        lines.append(
            f"no replica earns its memory here: the best plan with replicas, {other.name}, gives "
            f"{other.goodput:.2f} requests/s ({_gain(other, none)}) and takes "
            f"{1 - other.memory.kv_tokens / none.memory.kv_tokens:.1%} of the cache; the model "
            f"does not tell plans within {TIE:.0%} apart"
        )
    if eplb is not None:
        lines.append(
            f"EPLB's default gives {eplb.goodput:.2f} requests/s with "
            f"{eplb.memory.replicas / GIB:.2f} GiB of replicas per GPU and a fullest GPU of "
            f"{eplb.relative_time_served:.2f} times the mean"
        )
    if not best.loadable:
        lines.append(
            "no engine can load this today: SGLang, vLLM, TensorRT-LLM and vllm-ascend want the "
            "same slots on every GPU in every layer (slots='uniform')"
        )
    most = max(candidates, key=lambda candidate: candidate.goodput)
    if most is not best and best is not none:
        lines.append(
            f"{most.name} gives {_gain(most, best)}, within the {TIE:.0%} that "
            f"the model cannot tell apart, and {best.name} "
            + (
                "can be loaded"
                if best.loadable > most.loadable
                else "takes less memory"
                if best.memory.used < most.memory.used
                else "needs no dispatch of its own"
            )
        )
    return tuple(lines)


def _traffic_reasons(
    deployment: Deployment,
    price: TrafficPrice | None,
    best: Candidate,
    candidates: Sequence[Candidate],
    coactivation: Coactivation | Trace | None,
) -> tuple[str, ...]:
    """Say what the exchange takes, what a visit costs and whether planning for it pays."""
    domains = deployment.domains
    if price is None:
        if domains == 1 or deployment.exchange == "low-latency":
            return ()
        return (
            "which experts tokens choose together is not known, so every plan is taken to need "
            f"{(domains - 1) * deployment.visit_chance:.2f} remote nodes per token; pass a trace "
            "or pair counts (coactivation=) to count each plan's own and to plan for fewer",
        )
    parts = [
        f"{step.exchange / step.total:.0%} of a {phase} step"
        for phase, step in (("decode", best.served.decode), ("prefill", best.served.prefill))
        if phase == "decode" or not deployment.prefill_elsewhere
    ]
    lines = [f"{best.name}: the exchange takes {' and '.join(parts)}", str(price)]
    traffic, none = best.profile.traffic, candidates[0].profile.traffic
    if domains > 1 and traffic is not None and none is not None:
        lines[0] += (
            f"; a token visits {traffic.nodes_per_token:.2f} nodes, {traffic.critical_nodes:.2f} "
            f"at the rate of the busiest ({candidates[0].name}: {none.nodes_per_token:.2f} and "
            f"{none.critical_nodes:.2f})"
        )
    even = [candidate for candidate in candidates if candidate.dispatch == "even"]
    priced = [candidate for candidate in even if candidate.price > 0]
    balanced = [candidate for candidate in even if candidate.price == 0]
    if priced:
        ahead, behind = (
            max(group, key=lambda candidate: candidate.goodput) for group in (priced, balanced)
        )
        verdict = "pays" if ahead.goodput > behind.goodput * (1 + TIE) else "does not pay"
        lines.append(
            f"planning for traffic {verdict} here: {ahead.name} gives {_gain(ahead, behind)} over "
            f"the best plan for balance alone, {behind.name}"
        )
    elif price.price > 0:
        lines.append("planning for traffic does not pay here: it finds the plans for balance alone")
    for near in candidates:
        if near.dispatch != "even":
            rival = max(
                (candidate for candidate in even if candidate.plan.replicas == near.plan.replicas),
                key=lambda candidate: candidate.goodput,
            )
            lines.append(
                "serving tokens by their nearest copies, as SGLang's dynamic dispatch with an "
                f"all-to-all backend, gives {_gain(near, rival)} over even dispatch: {near.name} "
                f"against {rival.name}"
            )
    if isinstance(coactivation, Coactivation):
        lines.append(
            "pair counts are not held out: they are of the served windows' tokens, too, and node "
            "visits are estimated from them; a trace has neither fault"
        )
    return tuple(lines)


def _gain(candidate: Candidate, other: Candidate) -> str:
    if not other.goodput:
        return "from nothing to some"
    return f"{candidate.goodput / other.goodput - 1:+.1%}"


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
