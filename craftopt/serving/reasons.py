"""Why a budget is recommended, in figures that can be checked by hand."""

from __future__ import annotations

from collections.abc import Sequence

from craftopt.coactivation import Coactivation
from craftopt.serving.candidates import Candidate
from craftopt.serving.deployment import GIB, TIE, Deployment, TrafficPrice, Workload
from craftopt.traces import Trace


def reasons(
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


def traffic_reasons(
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
