"""Certificates as data: what they state, and the file that holds it, written and read here."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from craftopt.display import Displayed, Table
from craftopt.documents import check_envelope, read_json, write_atomically, write_json
from craftopt.errors import CraftoptWarning, FormatError
from craftopt.loads import Loads
from craftopt.plan import Plan
from craftopt.problem import Problem
from craftopt.verification.checks import Witness, fraction, require

CERTIFICATE_FORMAT = "craftopt-certificate"
CERTIFICATE_VERSION = 1

# Layers with a gap of that or less are counted in the summary.
_CLOSE = 0.001


@dataclass(frozen=True)
class LayerCertificate:
    """Say how far one layer is from the best placement with as many copies.

    Parameters
    ----------
    layer_id : int
        The model's own number of the layer.
    replicas : int
        Extra copies that the plan has there.
    value, bound : float
        The problem's objective on this layer alone, and what no placement of the layer with
        exactly as many replicas, under the slot rule, can better.
    gap : float
        Their distance, relative.
    kind : str
        What the witness argues with: mean, copies, cardinality, configuration, branch, ...
    witness : dict
        The proof, as `craftopt.verification` describes it.
    """

    layer_id: int
    replicas: int
    value: float
    bound: float
    gap: float
    kind: str
    witness: Witness


@dataclass(frozen=True)
class TrafficCertificate:
    """Say how far the node visits of a plan are from the fewest, under even dispatch.

    Parameters
    ----------
    price : float
        Of a node that a token visits, in mean GPU loads; 0: it does not count in the objective.
    nodes_per_token, critical_nodes : float
        Of the plan, as in `Traffic`.
    bound : float
        No plan under the rules has fewer nodes per token, nor fewer critical nodes.
    gap : float
        Distance of nodes per token and bound, relative.
    layers : tuple of LayerCertificate
        The same of every layer, in nodes per token.
    """

    price: float
    nodes_per_token: float
    critical_nodes: float
    bound: float
    gap: float
    layers: tuple[LayerCertificate, ...]


@dataclass(frozen=True, eq=False)
class Certificate(Displayed):
    """Hold a plan, its loads, a bound on all plans, and the proof; made by `certify`.

    Nothing is checked by reading one: that is `verify`.

    Parameters
    ----------
    document : dict
        What the file holds: all numbers exact, as ints or texts "p/q".
    """

    document: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        problem: Problem,
        plan: Plan,
        figures: Mapping[str, Any],
        *,
        layers: Sequence[Mapping[str, Any]],
        allocation: Sequence[Mapping[str, Any]],
        claims: Sequence[Mapping[str, Any]],
        traffic: Mapping[str, Any] | None = None,
    ) -> Certificate:
        """Put a certificate together.

        Parameters
        ----------
        problem : Problem
        plan : Plan
        figures : mapping
            ``value``, ``bound``, ``gap``, ``solver_bound`` and ``solver_gap``, exact.
        layers : sequence of mapping
            Of every layer ``layer_id``, ``replicas``, ``value``, ``bound``, ``gap``, ``witness``.
        allocation, claims : sequence of mapping
            Witnesses for other numbers of replicas, and solvers' claims: ``layer_id``,
            ``replicas`` (None for all numbers) and ``witness``.
        traffic : mapping, optional
            The fields of node visits: ``traffic``, its ``traffic_layers`` and
            ``traffic_allocation``, ``token_windows`` and ``tokens``.
        """
        return cls(
            {
                "format": CERTIFICATE_FORMAT,
                "version": CERTIFICATE_VERSION,
                **figures,
                "problem": _problem_to_dict(problem),
                "layers": list(layers),
                "allocation": list(allocation),
                "claims": list(claims),
                "plan_digest": plan_digest(plan),
                "plan": plan.to_dict(),
                "loads": _loads_to_dict(problem.loads),
                **(traffic or {}),
            }
        )

    @property
    def value(self) -> float:
        """The plan's objective: relative time or mean balancedness."""
        return _float(self.document["value"])

    @property
    def bound(self) -> float:
        """No plan under the problem's rules has a better objective."""
        return _float(self.document["bound"])

    @property
    def gap(self) -> float:
        """Relative distance of value and bound, by certified bounds alone."""
        return _float(self.document["gap"])

    @property
    def solver_bound(self) -> float | None:
        """The bound if the claims of solvers are believed; None without claims."""
        stated = self.document["solver_bound"]
        return None if stated is None else _float(stated)

    @property
    def solver_gap(self) -> float | None:
        """The gap if the claims of solvers are believed; None without claims."""
        stated = self.document["solver_gap"]
        return None if stated is None else _float(stated)

    @property
    def solvers(self) -> tuple[str, ...]:
        """The solvers that claim something, with their versions."""
        claims = [entry["witness"] for entry in self.document["claims"]]
        return tuple(sorted({f"{claim['solver']} {claim['version']}" for claim in claims}))

    @cached_property
    def layers(self) -> tuple[LayerCertificate, ...]:
        """What is certified of every layer."""
        return _layers(self.document["layers"])

    @cached_property
    def traffic(self) -> TrafficCertificate | None:
        """What is certified of node visits; None without tokens."""
        stated = self.document.get("traffic")
        return stated and TrafficCertificate(
            price=_float(stated["price"]),
            nodes_per_token=_float(stated["value"]),
            critical_nodes=_float(stated["critical_nodes"]),
            bound=_float(stated["bound"]),
            gap=_float(stated["gap"]),
            layers=_layers(self.document["traffic_layers"]),
        )

    @cached_property
    def loads(self) -> Loads:
        """The loads that value and bound refer to."""
        stated = self.document["loads"]
        tokens = [[[_exact_float(t) for t in row] for row in rows] for rows in stated["tokens"]]
        return Loads(np.array(tokens), stated["layer_ids"], stated["window_names"])

    @cached_property
    def problem(self) -> Problem:
        """The problem that value and bound refer to."""
        stated = self.document["problem"]
        previous = stated["previous"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CraftoptWarning)  # budget left unused: no claim
            return Problem(
                self.loads,
                stated["gpus"],
                nodes=stated["nodes"],
                replicas=stated["replicas"],
                slots=stated["slots"],
                objective=stated["objective"],
                expert_groups=stated["expert_groups"],
                max_copies=stated["max_copies"],
                previous=None if previous is None else Plan.from_dict(previous).copies,
                max_moves=stated["max_moves"],
            )

    @cached_property
    def plan(self) -> Plan:
        """The plan that is certified."""
        return Plan.from_dict(self.document["plan"])

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, as ``craftopt certify --json`` prints them."""
        gaps = [layer.gap for layer in self.layers]
        return {
            "value": self.value,
            "bound": self.bound,
            "gap": self.gap,
            "solver_bound": self.solver_bound,
            "solver_gap": self.solver_gap,
            "solvers": self.solvers,
            "layers": len(gaps),
            "layers_within_0.1%": sum(gap <= _CLOSE for gap in gaps),
            "worst_layer_gap": max(gaps),
            "proofs": dict(Counter(layer.kind for layer in self.layers)),
            "traffic": self.traffic
            and {
                "price": self.traffic.price,
                "nodes_per_token": self.traffic.nodes_per_token,
                "critical_nodes": self.traffic.critical_nodes,
                "bound": self.traffic.bound,
                "gap": self.traffic.gap,
                "proofs": dict(Counter(layer.kind for layer in self.traffic.layers)),
            },
        }

    def summary(self) -> dict[str, str]:
        """Return the figures in words, for a table."""
        figures = self.to_dict()
        rules = self.document["problem"]
        traffic = self.traffic
        priced = traffic is not None and traffic.price > 0
        rows = {
            "among plans with": f"{rules['replicas']} replicas, slots {rules['slots']}",
            "time and traffic" if priced else self.problem.goal.label: f"{self.value:.6f}",
            "no plan is better than": f"{self.bound:.6f}",
            "certified gap": f"{self.gap:.4%}",
        }
        if self.solver_gap is not None:
            rows[f"gap by {', '.join(self.solvers)}"] = f"{self.solver_gap:.4%}"
        rows[f"layers within {_CLOSE:.1%}"] = (
            f"{figures['layers_within_0.1%']} of {figures['layers']}"
        )
        rows["worst layer"] = f"{figures['worst_layer_gap']:.4%}"
        rows["layers proven by"] = _counts(figures["proofs"])
        if traffic is not None:
            rows["nodes per token"] = (
                f"{traffic.nodes_per_token:.4f} (critical {traffic.critical_nodes:.4f}), "
                f"no plan below {traffic.bound:.4f}: gap {traffic.gap:.2%}"
            )
            rows["visits proven by"] = _counts(figures["traffic"]["proofs"])
        return rows

    def to_json(self) -> str:
        """Write the certificate as versioned JSON, long lists one entry a line."""
        tables = (
            "layers",
            "allocation",
            "claims",
            "traffic_layers",
            "traffic_allocation",
            "tokens",
        )
        return write_json(self.document, dict.fromkeys(tables, 1))

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        """Read what `to_json` wrote, without checking its claims.

        Raises
        ------
        FormatError
            Text that is no certificate, or one of a version that this one cannot read.
        """
        document = read_json(text)
        return cls(check_envelope(document, "certificate", CERTIFICATE_FORMAT, CERTIFICATE_VERSION))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Certificate:
        """Read a file that `save` wrote, without checking its claims.

        Raises
        ------
        FormatError
            A file that cannot be read, or as `from_json`.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FormatError(f"cannot read {path}: {error}") from None
        try:
            return cls.from_json(text)
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the certificate to a file: whole or not at all."""
        write_atomically(path, self.to_json())

    def __repr__(self) -> str:
        return (
            f"Certificate(value={self.value:.6g}, bound={self.bound:.6g}, gap={self.gap:.4%}, "
            f"layers={len(self.document['layers'])})"
        )

    def __str__(self) -> str:
        return str(Table("", (), tuple(self.summary().items())))


def _layers(entries: Sequence[Mapping[str, Any]]) -> tuple[LayerCertificate, ...]:
    return tuple(
        LayerCertificate(
            layer_id=entry["layer_id"],
            replicas=entry["replicas"],
            value=_float(entry["value"]),
            bound=_float(entry["bound"]),
            gap=_float(entry["gap"]),
            kind=entry["witness"]["kind"],
            witness=entry["witness"],
        )
        for entry in entries
    )


def _counts(proofs: Mapping[str, int]) -> str:
    ordered = sorted(proofs.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{kind} {count}" for kind, count in ordered)


def plan_digest(plan: Plan) -> str:
    """SHA-256 over the plan as it is written: equal plans, equal digest."""
    return sha256(plan.to_json().encode()).hexdigest()


def _problem_to_dict(problem: Problem) -> dict[str, Any]:
    previous = None if problem.previous is None else Plan(problem.previous_copies).to_dict()
    return {**problem.rules, "max_moves": problem.max_moves, "previous": previous}


def _loads_to_dict(loads: Loads) -> dict[str, Any]:
    return {
        "digest": loads.digest,
        "layer_ids": loads.layer_ids.tolist(),
        "window_names": list(loads.window_names),
        "tokens": [
            [[_exact(value) for value in row] for row in rows] for rows in loads.tokens.tolist()
        ],
    }


def _exact(value: float) -> int | str:
    above, below = value.as_integer_ratio()
    return above if below == 1 else f"{above}/{below}"


def _exact_float(value: Any) -> float:
    if type(value) is int and -(2**53) < value < 2**53:
        return float(value)
    number = fraction(value)
    result = number.numerator / number.denominator
    require(Fraction(result) == number, f"tokens of {value} are no 64-bit floating-point number")
    return result


def _float(stated: Any) -> float:
    return float(Fraction(stated))
