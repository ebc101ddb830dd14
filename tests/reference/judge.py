"""Which claims of a certificate are true, decided from their definitions by listing everything.

All numbers of copies, all configurations, all ways to spend the budget: the judge shares no code
with the package beyond reading loads and plans.
"""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from reference.rules import broken_rules
from reference.scores import slow_scores
from strategies import quiet

import craftopt as co

Box = tuple[tuple[int, int], ...]  # least and most copies of every expert


class FalseClaimError(Exception):
    """A claim is not true."""


class Judge:
    """Decides by listing everything whether all claims of a tiny certificate are true."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        loads = document["loads"]
        self.tokens = [[[Fraction(t) for t in row] for row in rows] for rows in loads["tokens"]]
        self.plan = co.Plan.from_json(json.dumps(document["plan"]))
        stated = dict(document["problem"])
        previous = stated.pop("previous")
        if previous is not None:
            previous = co.Plan.from_json(json.dumps(previous))
        array = np.array([[[float(t) for t in row] for row in rows] for rows in self.tokens])
        self.problem = quiet(
            lambda: co.Problem(
                co.Loads(array, loads["layer_ids"], loads["window_names"]),
                previous=previous,
                **stated,
            )
        )
        self.time = self.problem.objective == "time"
        self.even = self.problem.slots != "free" or self.problem.loads.layers == 1

    def all_true(self) -> bool:
        try:
            self._judge()
        except (FalseClaimError, co.CraftoptError):
            return False
        return True

    def _judge(self) -> None:
        document, problem = self.document, self.problem
        held = self.plan.copies.shape == (problem.loads.layers, problem.loads.experts, problem.gpus)
        insist(held and self.plan.layer_ids.tolist() == problem.loads.layer_ids.tolist())
        insist(not broken_rules(self.plan, problem))
        scores = slow_scores(self.plan.copies.tolist(), self.tokens)
        value = scores.relative_time if self.time else scores.mean_balancedness
        self.judge_value(document, value)
        proven: dict[tuple[int, int | None], list[Any]] = {}
        ids = problem.loads.layer_ids.tolist()
        insist(len(document["layers"]) == len(ids))
        for layer, entry in enumerate(document["layers"]):
            replicas = int(self.plan.copies[layer].sum()) - problem.loads.experts
            insist((entry["layer_id"], entry["replicas"]) == (ids[layer], replicas))
            largest = [row[layer] for row in scores.largest]
            means = [row[layer] for row in scores.mean]
            cost = sum(self.cost(*pair) for pair in zip(largest, means, strict=True))
            bound = self.layer_cost(layer, replicas, entry["witness"])
            proven.setdefault((layer, replicas), []).append(bound)
            self.judge_value(entry, self.objective(cost, sum(means), 1))
            self.judge_bound(entry, "bound", "gap", self.objective(bound, sum(means), 1))
        for entry in document["allocation"]:
            insist(entry["layer_id"] in ids)
            layer = ids.index(entry["layer_id"])
            if entry["replicas"] is None:
                bounds = proven.setdefault((layer, None), [])
                least = self.problem.replica_choices.min()
                bounds.append(self.line(layer, least, entry["witness"], self.box))
            else:
                bounds = proven.setdefault((layer, entry["replicas"]), [])
                bounds.append(self.layer_cost(layer, entry["replicas"], entry["witness"]))
        total = sum(sum(row) for row in scores.mean)
        least = self.objective(self.least_cost(proven), total, len(ids))
        self.judge_bound(document, "bound", "gap", least)
        if not document["claims"]:
            insist(document["solver_bound"] is None and document["solver_gap"] is None)
            return
        for entry in document["claims"]:
            insist(entry["layer_id"] in ids)
            key = ids.index(entry["layer_id"]), entry["replicas"]
            proven.setdefault(key, []).append(Fraction(entry["witness"]["cost"]))
        least = self.objective(self.least_cost(proven), total, len(ids))
        self.judge_bound(document, "solver_bound", "solver_gap", least)

    def judge_value(self, entry: dict[str, Any], true: Fraction) -> None:
        """Time is stated exactly, balancedness at most 1e-23 below what it is."""
        stated = Fraction(entry["value"])
        insist(stated == true if self.time else true - Fraction(1, 10**23) < stated <= true)

    def judge_bound(self, entry: dict[str, Any], bound: str, gap: str, proven: Fraction) -> None:
        value, stated = Fraction(entry["value"]), Fraction(entry[bound])
        insist(stated > 0 and (stated <= proven if self.time else stated >= proven))
        true = (value - stated) / stated if self.time else (stated - value) / value
        insist(Fraction(entry[gap]) == true)

    def cost(self, load: Fraction, mean: Fraction) -> Fraction:
        if self.time:
            return load
        return -mean / load if load else Fraction(-1)

    def objective(self, cost: Fraction, means: Fraction, layers: int) -> Fraction:
        if not self.time:
            return min(Fraction(1), -cost / (self.problem.loads.windows * layers))
        return max(Fraction(1), cost / means) if means else Fraction(1)

    # Whole plans

    def least_cost(self, proven: dict[tuple[int, int | None], list[Any]]) -> Fraction:
        problem = self.problem
        choices = range(0, problem.layer_replicas_limit + 1, problem.replica_step)
        layers = range(problem.loads.layers)
        table = [{r: self.cell(proven, layer, r) for r in choices} for layer in layers]
        if problem.slots == "uniform":
            same = [r for r in choices if (problem.loads.experts + r) % problem.gpus == 0]
            return min(sum(costs[r] for costs in table) for r in same)
        best = {0: Fraction(0)}
        for costs in table:
            fresh: dict[int, Fraction] = {}
            for (spent, sofar), (r, cost) in itertools.product(best.items(), costs.items()):
                if spent + r <= problem.replicas:
                    fresh[spent + r] = min(sofar + cost, fresh.get(spent + r, sofar + cost))
            best = fresh
        return min(best.values())

    def cell(
        self, proven: dict[tuple[int, int | None], list[Any]], layer: int, replicas: int
    ) -> Fraction:
        windows = range(self.problem.loads.windows)
        loads = [self.heaviest(layer, window, replicas, self.box) for window in windows]
        means = [self.mean(layer, window) for window in windows]
        known = [sum(self.cost(*pair) for pair in zip(loads, means, strict=True))]
        known += proven.get((layer, replicas), [])
        known += [start - price * replicas for start, price in proven.get((layer, None), [])]
        return max(known)

    # Witnesses

    @property
    def box(self) -> Box:
        return ((1, self.problem.copies_limit),) * self.problem.loads.experts

    def mean(self, layer: int, window: int) -> Fraction:
        return sum(self.tokens[window][layer], Fraction(0)) / self.problem.gpus

    def heaviest(self, layer: int, window: int, replicas: int, box: Box) -> Fraction:
        """Return the mean or the least heaviest copy, whichever is more."""
        tokens = self.tokens[window][layer]
        least = min(
            (
                max(t / c for t, c in zip(tokens, counts, strict=True))
                for more in range(replicas + 1)
                for counts in all_counts(box, len(tokens) + more)
            ),
            default=Fraction(0),
        )
        return max(least, self.mean(layer, window))

    def layer_cost(self, layer: int, replicas: int, witness: Any) -> Fraction:
        insist(type(replicas) is int and 0 <= replicas <= self.problem.layer_replicas_limit)
        cost = self.of_layer(layer, replicas, witness, self.box)
        insist(cost is not None)
        return cost

    def of_layer(self, layer: int, replicas: int, witness: Any, box: Box) -> Fraction | None:
        kind = witness["kind"]
        if kind in ("branch", "empty"):
            return self.split(
                witness, box, replicas, lambda part, b: self.of_layer(layer, replicas, part, b)
            )
        if kind == "credits":
            start, price = self.line(layer, replicas, witness, box)
            return start - price * replicas
        parts = witness["windows"] if kind == "windows" else [witness]
        insist(len(parts) == self.problem.loads.windows)
        loads = [self.of_window(layer, w, replicas, part, box) for w, part in enumerate(parts)]
        if None in loads:
            return None
        return sum(self.cost(load, self.mean(layer, w)) for w, load in enumerate(loads))

    def of_window(
        self, layer: int, window: int, replicas: int, witness: Any, box: Box
    ) -> Fraction | None:
        kind = witness["kind"]
        if kind in ("branch", "empty"):
            return self.split(
                witness,
                box,
                replicas,
                lambda part, b: self.of_window(layer, window, replicas, part, b),
            )
        mean = self.mean(layer, window)
        if kind == "mean":
            return mean
        tokens = self.tokens[window][layer]
        copies = len(tokens) + replicas
        if kind == "copies":
            if not list(all_counts(box, copies)):
                return None
            return self.heaviest(layer, window, replicas, box)
        insist(kind in ("cardinality", "configuration"))
        load = Fraction(witness["load"])
        insist(load > 0)
        fitting = [
            counts
            for counts in all_counts(box, copies)
            if all(t < c * load for t, c in zip(tokens, counts, strict=True))
        ]
        if kind == "cardinality":
            self.by_price(tokens, copies, fitting, load, Fraction(witness["price"]))
        elif fitting:
            self.by_configurations(tokens, copies, fitting, load, witness)
        return max(load, mean)

    def by_price(
        self, tokens: Any, copies: int, fitting: Any, load: Fraction, price: Fraction
    ) -> None:
        q = copies // self.problem.gpus
        insist(self.even)
        for counts in fitting:
            insist(0 <= price * q <= load)
            pairs = list(zip(tokens, counts, strict=True))
            lack = sum(max(0, t - c * (load - (q - 1) * price)) for t, c in pairs)
            insist(lack > sum(max(0, price * c - t) for t, c in pairs))

    def by_configurations(
        self, tokens: Any, copies: int, fitting: Any, load: Fraction, witness: Any
    ) -> None:
        gpus = self.problem.gpus
        profits, scale = witness["experts"], witness["scale"]
        slot, extra = witness["slot"], witness["extra"]
        insist(len(profits) == len(tokens) and witness["grid"] >= 1)
        q, fuller = divmod(copies, gpus) if self.even else (0, 0)
        insist(sum(profits) - slot * copies - extra * fuller > gpus * scale)
        options = [sorted({counts[e] for counts in fitting}) for e in range(len(tokens))]
        sizes = ({q, q + 1} if fuller else {q}) if self.even else set(range(len(tokens) + 1))
        for size in sizes:
            for members in itertools.combinations(range(len(tokens)), size):
                for counts in itertools.product(*(options[e] for e in members)):
                    held = list(zip(members, counts, strict=True))
                    if sum(tokens[e] / c for e, c in held) < load:
                        worth = sum(Fraction(profits[e], c) for e, c in held) - slot * size
                        insist(worth - (extra if self.even and size > q else 0) <= scale)

    def line(self, layer: int, replicas: int, witness: Any, box: Box) -> tuple[Fraction, Fraction]:
        insist(witness["kind"] == "credits")
        scale, price = Fraction(witness["scale"]), witness["price"]
        insist(scale > 0 and price >= 0)
        offers = {int(w): Fraction(v) for w, v in witness.get("companions", {}).items()}
        insist(all(v >= 0 for v in offers.values()) and (self.even or not any(offers.values())))
        windows = range(self.problem.loads.windows)
        insist(all(int(w) in windows for w in [*witness["windows"], *offers]))
        beside = (len(box) + int(replicas)) // self.problem.gpus - 1 if self.even else -1
        start = Fraction(0)
        # Credits and rebates, in tokens or balancedness, that the steps of experts pay for.
        of_step: dict[tuple[int, int], Fraction] = {}
        rebates: dict[tuple[int, int], Fraction] = {}
        for window in windows:
            tokens, mean = self.tokens[window][layer], self.mean(layer, window)
            floor = max(mean, *(t / most for t, (_, most) in zip(tokens, box, strict=True)))
            start += self.cost(floor, mean)
            v = offers.get(window, Fraction(0))
            lacks = [max(Fraction(0), v - t) for t in tokens]
            for e, k in itertools.product(range(len(box)), range(1, box[0][1] + 1)):
                spared = max(Fraction(0), v - tokens[e] / k)
                hosts = range(1, self.problem.gpus + 1)
                rebate = max(min(j, k) * spared / j - lacks[e] / j for j in hosts)
                if not self.time:
                    rebate *= mean / floor**2 if floor else 0
                rebates[e, k] = rebates.get((e, k), Fraction(0)) + rebate

            def level(
                e: int, step: int, tokens: Any = tokens, v: Any = v, lacks: Any = lacks
            ) -> Fraction:
                ends = [(tokens[e] - sum(lacks)) / j + beside * v for j in (1, step - 1)]
                return max(tokens[e] / (step - 1), min(ends))

            credits = witness["windows"].get(str(window), [])
            for e, step, amount in credits:
                insist(amount >= 0 and step >= 2 and 0 <= e < len(tokens))
            for e, step, amount in credits:
                load = level(e, step)
                below = sum(a for f, s, a in credits if level(f, s) <= load)
                room = (self.cost(load, mean) - self.cost(floor, mean)) * scale
                insist(amount == 0 or below <= room)
                of_step[e, step] = of_step.get((e, step), Fraction(0)) + amount / scale
                start += amount / scale
        for e, (_, most) in enumerate(box):
            owed = []
            for k in range(1, most + 1):
                credit = sum(amount for (f, s), amount in of_step.items() if f == e and s <= k)
                owed.append(credit + rebates.get((e, k), 0) - price * (k - 1) / scale)
            start -= max(owed, default=Fraction(0))
        return start, price / scale

    def split(self, witness: Any, box: Box, replicas: int, prove: Any) -> Fraction | None:
        if witness["kind"] == "empty":
            insist(not list(all_counts(box, len(box) + replicas)))
            return None
        e, k = witness["expert"], witness["copies"]
        insist(0 <= e < len(box))
        low, high = box[e]
        below = prove(witness["below"], (*box[:e], (low, min(high, k)), *box[e + 1 :]))
        above = prove(witness["above"], (*box[:e], (max(low, k + 1), high), *box[e + 1 :]))
        both = [cost for cost in (below, above) if cost is not None]
        return min(both) if both else None


def insist(holds: bool) -> None:
    if not holds:
        raise FalseClaimError


@cache
def all_counts(box: Box, copies: int) -> tuple[tuple[int, ...], ...]:
    """List all numbers of copies in a box that sum to a number."""
    if not box:
        return ((),) if copies == 0 else ()
    (low, high), rest = box[0], box[1:]
    least = sum(other for other, _ in rest)
    return tuple(
        (first, *others)
        for first in range(low, min(high, copies - least) + 1)
        for others in all_counts(rest, copies - first)
    )
