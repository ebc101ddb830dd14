"""One instance, as data and as a file."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from importlib import resources

import numpy as np

from craftopt.documents import check_envelope, read_json, write_json
from craftopt.errors import unknown
from craftopt.loads import Loads
from craftopt.plan import Plan
from craftopt.problem import Problem

INSTANCE_FORMAT = "craftopt-instance"
INSTANCE_VERSION = 1

# A gap below this, relative, counts as proven, as in `craftopt.Status.OPTIMAL`.
_PROVEN = Fraction(1, 10**9)


@dataclass(frozen=True)
class Proof:
    """Say who proved a bound, and what it took.

    Parameters
    ----------
    by : str
        ``certified: ...`` with the kinds of witnesses, which `craftopt.verify` checks in exact
        arithmetic; ``log: ...`` with the solver whose every step was checked
        (``formulations/logs``); or ``solver: ...`` with the solver's name and version, whose word
        it is.
    work : str
        The same on every machine: boxes of branching trees, steps of a log, or a ``work_limit`` of
        the method exact, in CP-SAT's deterministic seconds.
    seconds : float
        On the machine where it was proven; an order of magnitude.
    on : str
        The day, as 2026-11-26.
    """

    by: str
    work: str
    seconds: float
    on: str

    @property
    def certified(self) -> bool:
        """Whether no solver has to be believed."""
        return not self.by.startswith("solver")


@dataclass(frozen=True)
class Found:
    """Say who found the best plan, and on which day."""

    by: str
    on: str


@dataclass(frozen=True, eq=False)
class Instance:
    """Hold a problem with what is known of its best plan.

    Parameters
    ----------
    name : str
    problem : Problem
    best : Fraction
        The problem's objective, relative time or mean balancedness, of ``plan``.
    plan : Plan
        The best plan known.
    found : Found
        Who found it.
    bound : Fraction
        No plan has a better objective.
    proof : Proof
        Who proved the bound.
    work_limit : int or None
        With it the method exact finds a plan as good, and proves as much if the solver did; None
        where it did not with 60.
    """

    name: str
    problem: Problem
    best: Fraction
    plan: Plan
    found: Found
    bound: Fraction
    proof: Proof
    work_limit: int | None

    @property
    def gap(self) -> Fraction:
        """Relative distance of ``best`` and ``bound``, as in `craftopt.Result.gap`."""
        if self.problem.goal.maximised:
            return (self.bound - self.best) / self.best
        return (self.best - self.bound) / self.bound

    @property
    def is_open(self) -> bool:
        """Whether the best plan known is not proven to be the best, to 1e-9."""
        return self.gap > _PROVEN

    def to_json(self) -> str:
        """Write the instance, one layer of a window and one layer of the plan a line."""
        document = {
            "format": INSTANCE_FORMAT,
            "version": INSTANCE_VERSION,
            "name": self.name,
            "problem": self.problem.rules,
            "tokens": self.problem.loads.tokens.astype(np.int64).tolist(),
            "best": str(self.best),
            "found": vars(self.found),
            "bound": str(self.bound),
            "proof": vars(self.proof),
            "work_limit": self.work_limit,
            "experts_of_gpu": [layer["experts_of_gpu"] for layer in self.plan.to_dict()["layers"]],
        }
        return write_json(document, {"tokens": 2, "experts_of_gpu": 1})

    @classmethod
    def from_json(cls, text: str) -> Instance:
        """Read what `to_json` wrote.

        Raises
        ------
        FormatError
            Text that is no instance, or one of a version that this one cannot read.
        """
        document = read_json(text)
        check_envelope(document, "instance", INSTANCE_FORMAT, INSTANCE_VERSION)
        loads = Loads(document["tokens"])
        problem = Problem(loads, **document["problem"])
        copies = np.zeros((loads.layers, loads.experts, problem.gpus), dtype=np.uint8)
        for layer, gpus in enumerate(document["experts_of_gpu"]):
            for gpu, experts in enumerate(gpus):
                copies[layer, experts, gpu] = 1
        return cls(
            name=document["name"],
            problem=problem,
            best=Fraction(document["best"]),
            plan=Plan(copies, nodes=problem.nodes, method="", loads_digest=loads.digest),
            found=Found(**document["found"]),
            bound=Fraction(document["bound"]),
            proof=Proof(**document["proof"]),
            work_limit=document["work_limit"],
        )


def list_instances() -> tuple[str, ...]:
    """List the names that `load_instance` knows.

    Examples
    --------
    >>> from craftopt_formulations.instances import list_instances
    >>> "flashlb" in list_instances()
    True
    """
    files = resources.files(__package__).iterdir()
    return tuple(sorted(file.name[:-5] for file in files if file.name.endswith(".json")))


def load_instance(name: str) -> Instance:
    """Read an instance by its name.

    Raises
    ------
    InputError
        A name that none has.

    Examples
    --------
    >>> from craftopt_formulations.instances import load_instance
    >>> instance = load_instance("flashlb")
    >>> tokens = instance.problem.loads.tokens.sum()
    >>> instance.best * int(tokens) / instance.problem.gpus  # the largest GPU load
    Fraction(590, 3)
    >>> instance.is_open, instance.proof.certified
    (False, True)
    """
    names = list_instances()
    if name not in names:
        raise unknown("instance", name, names)
    file = resources.files(__package__) / f"{name}.json"
    return Instance.from_json(file.read_text(encoding="utf-8"))
