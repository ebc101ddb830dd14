"""What the models of a layer share: counts and hosts as flags, capacities, order, hints.

The constraints are named in the programs that use them (`joint`, `windowed`, `rebalancing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from craftopt.errors import InfeasibleError
from craftopt.loads import FloatArray, IntArray
from craftopt.plan import Copies
from craftopt_formulations._solvers import Model, Run, Shares


@dataclass(frozen=True, eq=False)
class Placed(Run):
    """What a solver makes of one layer.

    ``copies``: uint8 [experts, gpus], or None; ``objective`` and ``bound`` in tokens.
    """

    copies: Copies | None = None


@dataclass(frozen=True, eq=False)
class LayerModel:
    """A model of one layer, with the variables that say which GPU hosts which expert."""

    model: Model
    hosting: Hosting
    unit: float

    def solve(self, *, work: float | None = None, seconds: float | None = None) -> Placed:
        """Solve, and read the copies off the solution."""
        run = self.model.solve(work=work, seconds=seconds)
        copies = None if run.objective is None else self.hosting.read()
        return Placed.of(run, self.unit, copies=copies)


class Hosting:
    """The variables y and z of a layer, and the constraints that tie them.

    Parameters
    ----------
    model : Model
    experts, gpus, most_copies : int
    name : str
        What the names of variables and constraints end with.
    """

    def __init__(
        self, model: Model, experts: int, gpus: int, most_copies: int, name: str = ""
    ) -> None:
        self.model, self.experts, self.gpus, self.most_copies = model, experts, gpus, most_copies
        self.name = name
        counts = range(1, most_copies + 1)
        self.chosen = {
            (e, c): model.flag(f"y_{e}_{c}{name}") for e in range(experts) for c in counts
        }
        self.hosts = {
            (e, c, g): model.flag(f"z_{e}_{c}_{g}{name}")
            for e, c in self.chosen
            for g in range(gpus)
        }
        for e in range(experts):
            model.add(f"one_count_{e}{name}", model.total(self.chosen[e, c] for c in counts) == 1)
        for (e, c), y in self.chosen.items():
            hosts = [self.hosts[e, c, g] for g in range(gpus)]
            model.add(f"hosted_{e}_{c}{name}", model.total(hosts) == c * y)
            if c > 1:  # one copy: said by hosted
                for g, z in enumerate(hosts):
                    model.add(f"linked_{e}_{c}_{g}{name}", z <= y)

    def copies(self) -> Any:
        """Count all copies."""
        return self.model.total(c * y for (_, c), y in self.chosen.items())

    def on(self, expert: int, gpu: int) -> Any:
        """Whether a GPU hosts an expert."""
        counts = range(1, self.most_copies + 1)
        return self.model.total(self.hosts[expert, c, gpu] for c in counts)

    def slots(self, gpu: int) -> Any:
        """Count the copies that a GPU hosts."""
        return self.model.total(z for (_, _, g), z in self.hosts.items() if g == gpu)

    def level(self, gpus: range) -> Any:
        """Let the slots of some GPUs differ by at most 1; return the fewest."""
        name = f"_{gpus.start}{self.name}"
        base = self.model.count(f"b{name}", 0, self.experts)
        for g in gpus:
            slots = self.slots(g)
            self.model.add(f"base_{g}{self.name}", slots >= base)
            self.model.add(f"top_{g}{self.name}", slots <= base + 1)
        return base

    def carry(self, shares: Shares, window: int, largest: Any) -> None:
        """Keep every GPU's load in a window, and every copy, at or below ``largest``."""
        model, values, name = self.model, shares.values[window], f"_w{window}{self.name}"
        terms: list[list[Any]] = [[] for _ in range(self.gpus)]
        for (e, c, g), z in self.hosts.items():
            if values[e][c - 1]:
                terms[g].append(values[e][c - 1] * z)
        for g in range(self.gpus):
            model.add(f"load_{g}{name}", model.total(terms[g]) <= largest)
        counts = range(1, self.most_copies + 1)
        for e in range(self.experts):
            copy = model.total(values[e][c - 1] * self.chosen[e, c] for c in counts)
            model.add(f"heaviest_{e}{name}", copy <= largest)

    def hint(self, copies: Copies) -> None:
        """Start from a placement."""
        count = copies.sum(axis=1, dtype=np.int64)
        for (e, c), y in self.chosen.items():
            self.model.hint(y, float(c == count[e]))
        for (e, c, g), z in self.hosts.items():
            self.model.hint(z, float(c == count[e] and copies[e, g]))

    def read(self) -> Copies:
        """Read the placement off the solution."""
        copies = np.zeros((self.experts, self.gpus), dtype=np.uint8)
        for (e, _, g), z in self.hosts.items():
            if self.model.value(z) > 0.5:
                copies[e, g] = 1
        return copies


def capacities(copies: int, gpus: int, spread: int | None) -> IntArray | None:
    """Return the copies that every GPU hosts, int64 [gpus]; None where that is open.

    Where they differ by one, GPUs with fewer come first: heavy copies, which go to the lightest
    GPU, then meet fewer companions.
    """
    if spread is None:
        return None
    floor, extra = divmod(copies, gpus)
    slots = np.full(gpus, floor, dtype=np.int64)
    slots[gpus - extra :] += 1
    return slots


def host_layer(
    model: Model,
    tokens: FloatArray,
    gpus: int,
    replicas: int,
    most_copies: int | None,
    spread: int | None,
    hint: Copies | None,
) -> Hosting:
    """Add the flags of a layer, and the constraints copies, capacity and order.

    Raises
    ------
    InfeasibleError
        More copies than the experts may have.
    """
    experts = tokens.shape[1]
    most = gpus if most_copies is None else min(most_copies, gpus)
    if not 0 <= replicas <= experts * (most - 1):
        raise InfeasibleError(
            f"replicas={replicas} does not fit {experts} experts of at most {most} copies; "
            f"pass 0..{experts * (most - 1)}"
        )
    hosting = Hosting(model, experts, gpus, most)
    model.add("copies", hosting.copies() == experts + replicas)
    slots = capacities(experts + replicas, gpus, spread)
    heaviest = int(tokens.sum(axis=0).argmax())
    for g in range(gpus):
        if slots is not None:
            model.add(f"capacity_{g}", hosting.slots(g) == int(slots[g]))
        if g and (slots is None or slots[g] == slots[g - 1]):
            model.add(f"order_{g}", hosting.on(heaviest, g) <= hosting.on(heaviest, g - 1))
    if hint is not None:
        hosting.hint(arranged(hint, heaviest, by_slots=spread is not None))
    return hosting


def arranged(copies: Copies, heaviest: int, by_slots: bool) -> Copies:
    """Relabel the GPUs of a placement as the constraint order wants them."""
    slots = copies.sum(axis=0, dtype=np.int64) if by_slots else np.zeros(copies.shape[1])
    result: Copies = copies[:, np.lexsort((1 - copies[heaviest].astype(np.int64), slots))]
    return result
