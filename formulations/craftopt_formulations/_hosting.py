"""What the models of a layer share: which GPU hosts which expert, and slots.

Variables alone: the constraints on them are in the models (`joint`, `windowed`, `rebalancing`,
`whole`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from craftopt.errors import InfeasibleError
from craftopt.plan import Copies
from craftopt_formulations._solvers import Model, Run


@dataclass(frozen=True, eq=False)
class Placed(Run):
    """A placement of one layer that a solver found.

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
    """The variables of a layer.

    ``y[e, c]`` is 1 if expert e has c copies, ``z[e, c, g]`` if it does and GPU g hosts one;
    e in ``E``, c in ``C``, g in ``G``.

    Parameters
    ----------
    model : Model
    experts, gpus, most_copies : int
    name : str
        What the names of variables end with.
    """

    def __init__(
        self, model: Model, experts: int, gpus: int, most_copies: int, name: str = ""
    ) -> None:
        self.model = model
        self.E, self.C, self.G = range(experts), range(1, most_copies + 1), range(gpus)
        self.y = {(e, c): model.flag(f"y_{e}_{c}{name}") for e in self.E for c in self.C}
        self.z = {(e, c, g): model.flag(f"z_{e}_{c}_{g}{name}") for e, c in self.y for g in self.G}

    def copies(self) -> Any:
        """Count the copies of the layer."""
        return self.model.total(c * y for (_, c), y in self.y.items())

    def slots(self, gpu: int) -> Any:
        """Count the copies that a GPU hosts."""
        return self.model.total(self.z[e, c, gpu] for e, c in self.y)

    def on(self, expert: int, gpu: int) -> Any:
        """Count the copies of an expert on a GPU: 0 or 1."""
        return self.model.total(self.z[expert, c, gpu] for c in self.C)

    def hint(self, copies: Copies) -> None:
        """Start from a placement."""
        count = copies.sum(axis=1, dtype=np.int64)
        for (e, c), y in self.y.items():
            self.model.hint(y, float(c == count[e]))
        for (e, c, g), z in self.z.items():
            self.model.hint(z, float(c == count[e] and copies[e, g]))

    def read(self) -> Copies:
        """Read the placement off the solution."""
        copies = np.zeros((len(self.E), len(self.G)), dtype=np.uint8)
        for (e, _, g), z in self.z.items():
            if self.model.value(z) > 0.5:
                copies[e, g] = 1
        return copies


def copies_limit(experts: int, gpus: int, replicas: int, most_copies: int | None) -> int:
    """Return the most copies of an expert.

    Raises
    ------
    InfeasibleError
        More replicas than the experts may have.
    """
    most = gpus if most_copies is None else min(most_copies, gpus)
    if not 0 <= replicas <= experts * (most - 1):
        raise InfeasibleError(
            f"replicas={replicas} does not fit {experts} experts of at most {most} copies; "
            f"pass 0..{experts * (most - 1)}"
        )
    return most


def slot_counts(copies: int, gpus: int, spread: int | None) -> dict[int, int]:
    """Return the slots of every GPU that has a number to fill; none where that is open.

    Where they differ by one, GPUs with fewer come first: heavy copies, which go to the lightest
    GPU, then meet fewer companions.
    """
    if spread is None:
        return {}
    floor, extra = divmod(copies, gpus)
    return {g: floor + (g >= gpus - extra) for g in range(gpus)}


def twins(gpus: int, slots: dict[int, int]) -> list[int]:
    """List the GPUs that are interchangeable with the one before them."""
    return [g for g in range(1, gpus) if slots.get(g) == slots.get(g - 1)]


def arranged(copies: Copies, heaviest: int, by_slots: bool) -> Copies:
    """Relabel the GPUs of a placement as the constraint order wants them."""
    slots = copies.sum(axis=0, dtype=np.int64) if by_slots else np.zeros(copies.shape[1])
    result: Copies = copies[:, np.lexsort((1 - copies[heaviest].astype(np.int64), slots))]
    return result
