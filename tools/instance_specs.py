"""The problems of the instances: drawn by Python's own generator, or layers of recordings.

The generator is seeded by the name, so that problems are the same byte for byte.
"""

from __future__ import annotations

import math
import random
import zlib
from dataclasses import dataclass

import numpy as np

from craftopt.datasets import load_example
from craftopt.loads import Loads
from craftopt.objective import ObjectiveName
from craftopt.problem import Problem, SlotRule

# Popularity of the i-th expert is 1/i to this power: from flat to steeper than Zipf's law.
SKEWS = {"flat": 0.0, "mild": 0.5, "zipf": 1.0, "steep": 1.5}
# Tokens per expert and window, and how far windows and layers stray, in natural log.
_TOKENS, _DRIFT = 100, 0.5


@dataclass(frozen=True)
class Spec:
    """Shape and rules of an instance; its name says them.

    ``skew`` is one of `SKEWS`, or a recording and its first layer: ``"olmoe-1b-7b/7"``.
    """

    slots: SlotRule
    experts: int
    gpus: int
    replicas: int
    skew: str
    layers: int = 1
    windows: int = 1
    nodes: int = 1
    groups: int | None = None
    max_copies: int | None = None
    objective: ObjectiveName = "time"

    @property
    def name(self) -> str:
        """The name: rule, experts x GPUs, and what is not usual."""
        parts = [self.slots, f"{self.experts}x{self.gpus}"]
        parts += [f"l{self.layers}"] * (self.layers > 1)
        parts += [f"w{self.windows}"] * (self.windows > 1)
        parts += [f"r{self.replicas}"]
        parts += [f"n{self.nodes}"] * (self.nodes > 1)
        parts += [f"c{self.max_copies}"] * (self.max_copies is not None)
        parts += ["balancedness"] * (self.objective == "balancedness")
        return "-".join([*parts, self.skew.replace("/", "-")])

    def tokens(self) -> list[list[list[int]]]:
        """Draw or read tokens [windows][layers][experts]."""
        if self.skew not in SKEWS:
            return self._recorded()
        draw = random.Random(zlib.crc32(self.name.encode()))
        popularity = []
        for _ in range(self.layers):
            ranks = list(range(1, self.experts + 1))
            draw.shuffle(ranks)
            popularity.append([rank ** -SKEWS[self.skew] for rank in ranks])
        drawn = []
        for _ in range(self.windows):
            window = []
            for popular in popularity:
                rates = [rate * math.exp(_DRIFT * _noise(draw)) for rate in popular]
                scale = _TOKENS * self.experts / sum(rates)
                window.append([round(rate * scale) for rate in rates])
            drawn.append(window)
        return drawn

    def _recorded(self) -> list[list[list[int]]]:
        """Add up the windows of a recording in as many groups of neighbours."""
        recording, layer = self.skew.split("/")
        loads = load_example(recording)
        first = loads.layer_ids.tolist().index(int(layer))
        tokens = loads.tokens[:, first : first + self.layers].astype(int)
        return [part.sum(axis=0).tolist() for part in np.array_split(tokens, self.windows)]

    def problem(self) -> Problem:
        """Make the problem."""
        return Problem(
            Loads(self.tokens()),
            self.gpus,
            nodes=self.nodes,
            replicas=self.replicas,
            slots=self.slots,
            objective=self.objective,
            expert_groups=self.groups,
            max_copies=self.max_copies,
        )


_OWN = (
    # One layer, one window.
    Spec("even", 6, 2, 0, "zipf"),
    Spec("even", 6, 2, 1, "mild"),
    Spec("even", 6, 3, 2, "steep"),
    Spec("even", 8, 4, 3, "zipf"),
    Spec("even", 12, 4, 4, "flat"),
    Spec("even", 12, 4, 4, "steep"),
    Spec("even", 16, 4, 0, "mild"),
    Spec("even", 16, 8, 6, "zipf"),
    Spec("even", 24, 8, 2, "zipf"),
    Spec("even", 32, 8, 8, "zipf"),
    Spec("even", 32, 16, 4, "mild"),
    Spec("even", 32, 16, 12, "mild"),
    Spec("even", 64, 8, 16, "mild"),
    Spec("even", 64, 16, 4, "steep"),
    Spec("even", 64, 16, 8, "zipf"),
    Spec("uniform", 12, 4, 4, "zipf"),
    Spec("uniform", 16, 8, 8, "steep"),
    Spec("uniform", 24, 8, 0, "zipf"),
    Spec("uniform", 32, 16, 16, "zipf"),
    Spec("uniform", 64, 8, 0, "mild"),
    # One choice of copies for several windows.
    Spec("even", 8, 4, 2, "zipf", windows=2),
    Spec("even", 12, 4, 0, "mild", windows=5),
    Spec("even", 12, 4, 2, "steep", windows=3),
    Spec("even", 12, 4, 4, "zipf", windows=5),
    Spec("even", 16, 4, 1, "steep", windows=3),
    Spec("even", 16, 8, 2, "steep", windows=4),
    Spec("even", 32, 8, 8, "mild", windows=6),
    Spec("uniform", 12, 6, 0, "zipf", windows=3),
    Spec("uniform", 24, 4, 0, "steep", windows=6),
    # Several layers share the budget.
    Spec("even", 8, 4, 4, "zipf", layers=2),
    Spec("even", 12, 4, 6, "mild", layers=4),
    Spec("uniform", 12, 4, 12, "steep", layers=3),
    Spec("uniform", 16, 8, 16, "zipf", layers=2),
    Spec("free", 8, 4, 4, "zipf", layers=2),
    Spec("free", 8, 3, 3, "steep", layers=3),
    Spec("free", 12, 4, 3, "steep", layers=3),
    Spec("free", 16, 8, 12, "zipf", layers=4),
    Spec("free", 32, 8, 8, "steep", layers=4),
    Spec("free", 8, 4, 4, "zipf", layers=2, windows=2),
    Spec("free", 16, 4, 2, "steep", layers=2, windows=4),
    # Balancedness, groups of experts on nodes, few copies.
    Spec("even", 8, 4, 3, "zipf", objective="balancedness"),
    Spec("free", 8, 4, 3, "steep", layers=2, objective="balancedness"),
    Spec("even", 8, 4, 4, "mild", layers=2, windows=2, objective="balancedness"),
    Spec("uniform", 12, 4, 4, "zipf", windows=3, objective="balancedness"),
    Spec("even", 8, 4, 2, "zipf", nodes=2, groups=4),
    Spec("uniform", 16, 8, 8, "zipf", nodes=2, groups=4),
    Spec("free", 8, 4, 4, "mild", layers=2, nodes=2, groups=4),
    Spec("even", 12, 6, 8, "steep", max_copies=2),
    Spec("uniform", 16, 16, 16, "zipf", windows=2, max_copies=3),
    # Larger shapes.
    Spec("even", 64, 8, 8, "zipf", windows=3, nodes=2, groups=8),
    Spec("even", 64, 32, 8, "zipf"),
    Spec("even", 64, 32, 8, "mild", nodes=4, groups=8),
    Spec("uniform", 64, 32, 64, "steep", max_copies=8),
    Spec("even", 128, 32, 0, "mild", windows=4),
    Spec("uniform", 128, 16, 16, "mild", nodes=4, groups=16),
    Spec("even", 128, 64, 16, "zipf"),
    Spec("uniform", 128, 64, 64, "mild", windows=2, max_copies=4),
    Spec("free", 256, 32, 64, "zipf", layers=2, max_copies=8),
    Spec("even", 256, 64, 0, "mild"),
    Spec("even", 256, 64, 32, "mild", windows=5, max_copies=4),
    Spec("uniform", 256, 64, 64, "zipf", max_copies=8),
    # Layers of gpt-oss-20b, recorded: 32 experts, 11 windows.
    Spec("even", 32, 4, 4, "gpt-oss-20b/0", windows=3),
    Spec("even", 32, 8, 0, "gpt-oss-20b/12"),
    Spec("even", 32, 8, 8, "gpt-oss-20b/12"),
    Spec("even", 32, 8, 8, "gpt-oss-20b/12", windows=11),
    Spec("even", 32, 8, 8, "gpt-oss-20b/12", nodes=2, groups=8),
    Spec("even", 32, 16, 8, "gpt-oss-20b/6", max_copies=2),
    Spec("uniform", 32, 8, 8, "gpt-oss-20b/12", windows=11, objective="balancedness"),
    Spec("uniform", 32, 16, 0, "gpt-oss-20b/23", windows=11),
    Spec("uniform", 32, 16, 16, "gpt-oss-20b/23"),
    Spec("free", 32, 8, 8, "gpt-oss-20b/0", layers=4),
    Spec("free", 32, 8, 48, "gpt-oss-20b/0", layers=24),
    Spec("free", 32, 8, 96, "gpt-oss-20b/0", layers=24, windows=11),
    # Layers 0, 7 and 15 of OLMoE, recorded: 64 experts, 8 windows.
    Spec("even", 64, 8, 0, "olmoe-1b-7b/7"),
    Spec("even", 64, 8, 8, "olmoe-1b-7b/7", windows=8),
    Spec("even", 64, 16, 0, "olmoe-1b-7b/0", windows=8),
    Spec("even", 64, 32, 32, "olmoe-1b-7b/15", max_copies=8),
    Spec("uniform", 64, 16, 16, "olmoe-1b-7b/15"),
    Spec("uniform", 64, 32, 0, "olmoe-1b-7b/7", windows=2),
    Spec("free", 64, 8, 24, "olmoe-1b-7b/0", layers=3, windows=4),
    Spec("free", 64, 16, 12, "olmoe-1b-7b/0", layers=3),
)
SPECS = {spec.name: spec for spec in _OWN}

# FlashLB's example, on which EPLB's largest load is 232 tokens and the least one 590/3.
_FLASHLB = [[[600, 560, 120, 120, 20, 10, 10, 10]]]


def make_problem(name: str) -> Problem:
    """Make the problem of an instance again.

    Examples
    --------
    >>> from craftopt_formulations.instances import load_instance
    >>> from instance_specs import make_problem
    >>> make_problem("flashlb").loads == load_instance("flashlb").problem.loads
    True
    """
    if name == "flashlb":
        return Problem(Loads(_FLASHLB), 8, replicas=8, slots="uniform")
    return SPECS[name].problem()


def _noise(draw: random.Random) -> float:
    """Draw something close to a normal variable, of sums alone: the same on any machine."""
    return math.fsum(draw.random() for _ in range(12)) - 6.0
