"""Pseudo-Boolean constraints, and formulas of them.

A *constraint* is ``sum of coefficient x literal >= degree`` over flags x1, x2, ... and their
negations ~x1, ..., all coefficients above 0. What follows from a formula is proven in a log
(`craftopt.verification.logs`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from craftopt.errors import VerificationError
from craftopt.verification.checks import require

LITERAL = re.compile(r"~?x[1-9][0-9]*")
_NUMBER = re.compile(r"[1-9][0-9]*")


@dataclass(frozen=True)
class Constraint:
    """State that literals weigh at least ``degree`` together.

    Parameters
    ----------
    weights : mapping of int to int
        By flag, the coefficient of its literal; below 0 for the negated one.
    degree : int
    """

    weights: Mapping[int, int]
    degree: int

    def __str__(self) -> str:
        terms = (
            f"+{abs(weight)} {'~' * (weight < 0)}x{flag}" for flag, weight in self.weights.items()
        )
        return " ".join([*terms, ">=", str(self.degree), ";"])

    @property
    def side(self) -> int:
        """What signed weights times flags sum to at least: a ~x is a - a x."""
        return self.degree + sum(weight for weight in self.weights.values() if weight < 0)

    @property
    def slack(self) -> int:
        """By how much all literals together weigh more than the degree; below 0: impossible."""
        return sum(map(abs, self.weights.values())) - self.degree


@dataclass
class Formula:
    """Collect constraints over named flags.

    Examples
    --------
    >>> from craftopt.verification.pseudo_boolean import Formula
    >>> formula = Formula()
    >>> a, b = formula.flag("a"), formula.flag("b")
    >>> formula.at_most([(3, a), (5, b)], 7)
    >>> print(formula.constraints[0])
    +3 ~x1 +5 ~x2 >= 1 ;
    """

    names: list[str] = field(default_factory=list)
    constraints: list[Constraint] = field(default_factory=list)

    def flag(self, name: str) -> int:
        """Add a flag, 0 or 1; return its number, from 1."""
        self.names.append(name)
        return len(self.names)

    def at_least(self, terms: Iterable[tuple[int, int]], degree: int) -> None:
        """Add a constraint on coefficients, of either sign, and flags."""
        sums: dict[int, int] = defaultdict(int)
        for weight, flag in terms:
            sums[flag] += weight
        weights = {flag: weight for flag, weight in sums.items() if weight}
        # -a x = a ~x - a
        degree -= sum(weight for weight in weights.values() if weight < 0)
        self.constraints.append(Constraint(weights, degree))

    def at_most(self, terms: Iterable[tuple[int, int]], limit: int) -> None:
        """Add a constraint the other way round."""
        self.at_least([(-weight, flag) for weight, flag in terms], -limit)

    def equal(self, terms: Iterable[tuple[int, int]], value: int) -> None:
        """Add both."""
        listed = list(terms)
        self.at_least(listed, value)
        self.at_most(listed, value)

    def to_opb(self) -> str:
        """Write the formula in the format OPB, as solvers and checkers read it."""
        head = f"* #variable= {len(self.names)} #constraint= {len(self.constraints)}"
        return "\n".join([head, *map(str, self.constraints), ""])

    def to_mps(self, name: str, objective: Iterable[tuple[int, int]]) -> str:
        """Write a program that minimises coefficients times flags, in free MPS."""
        columns: list[list[str]] = [[] for _ in self.names]
        for weight, flag in objective:
            columns[flag - 1].append(f" {self.names[flag - 1]} cost {weight}")
        rows, sides = [" N cost"], []
        for number, constraint in enumerate(self.constraints, 1):
            rows.append(f" G c{number}")
            sides.append(f" rhs c{number} {constraint.side}")
            for flag, weight in constraint.weights.items():
                columns[flag - 1].append(f" {self.names[flag - 1]} c{number} {weight}")
        bounds = [f" BV bnd {name}" for name in self.names]
        parts = [f"NAME {name}", "ROWS", *rows, "COLUMNS", " m0 'MARKER' 'INTORG'"]
        parts += [entry for column in columns for entry in column]
        parts += [" m1 'MARKER' 'INTEND'", "RHS", *sides, "BOUNDS", *bounds, "ENDATA", ""]
        return "\n".join(parts)


def parse(text: str) -> Constraint:
    """Read a constraint as `Constraint` writes it."""
    *terms, sign, degree, end = text.split() or [""] * 3
    require(sign == ">=" and end == ";" and len(terms) % 2 == 0, f"{text!r} is no constraint")
    weights: dict[int, int] = {}
    for weight, literal in zip(terms[::2], terms[1::2], strict=True):
        number = LITERAL.fullmatch(literal) and int(literal.lstrip("~x"))
        require(bool(number) and number not in weights, f"{literal!r} is no literal, or repeated")
        size = whole(weight.removeprefix("+"))
        weights[int(number or 0)] = -size if literal[0] == "~" else size
    try:
        return Constraint(weights, int(degree))
    except ValueError:
        raise VerificationError(f"{degree!r} is no whole number") from None


def whole(text: str) -> int:
    """Read a whole number above 0."""
    require(bool(_NUMBER.fullmatch(text)), f"{text!r} is no whole number above 0")
    return int(text)
