"""Pseudo-Boolean constraints and proof logs, checked step by step in whole numbers.

A *constraint* is ``sum of coefficient x literal >= degree`` over flags x1, x2, ... and their
negations ~x1, ..., all coefficients above 0. A *log* is a text in the proof format of VeriPB,
version 1.1, that derives a contradiction from the constraints of a formula. `check_log` knows the
steps that the solver Exact writes, and no other:

``l N``
    Take constraint N of the formula.
``rup CONSTRAINT ;``
    Reverse unit propagation: if the constraint were false, flags that are then forced, one after
    the other, would break a constraint of the formula or one derived flag.
``pol STEPS``
    Cutting planes in Polish notation: the number of a derived constraint, or a literal (which is
    at least 0); ``+`` adds two, ``k *`` multiplies, ``k d`` divides and rounds up, ``s`` lowers
    coefficients to the degree. Each holds for every choice of flags that its premises hold for.
``c N``
    The derived constraint N cannot hold.

Every step derives the next constraint, numbered from 1.
"""

from __future__ import annotations

import lzma
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from craftopt.errors import FormatError, VerificationError
from craftopt.verification.checks import require

HEADER = "pseudo-Boolean proof version 1.1"

_LITERAL = re.compile(r"~?x[1-9][0-9]*")
# A constraint of so few flags is short; the place of a constraint that is denied.
_SHORT = 2
_DENIED = -1
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


@dataclass(frozen=True)
class Step:
    """One step of a log: its line, and the numbers of the steps that it rests on."""

    line: str
    premises: tuple[int, ...]
    repeats: bool = False


def check_log(formula: Formula, log: Iterable[str]) -> list[Step]:
    """Check that a log derives a contradiction from a formula; return its steps.

    Raises
    ------
    VerificationError
        A step that does not follow, or one of a kind that is not known here; the message names
        its line.

    Examples
    --------
    Two flags cannot be three:

    >>> from craftopt.verification.pseudo_boolean import Formula, check_log
    >>> formula = Formula()
    >>> formula.at_least([(1, formula.flag("a")), (1, formula.flag("b"))], 3)
    >>> len(check_log(formula, ["pseudo-Boolean proof version 1.1", "l 1", "c 1"]))
    2
    """
    lines = iter(log)
    require(next(lines, "").strip() == HEADER, f"a log begins with {HEADER!r}")
    derivation = _Derivation(formula)
    for number, line in enumerate(lines, 2):
        try:
            derivation.follow(line.strip())
        except VerificationError as error:
            raise VerificationError(f"line {number} of the log: {error}") from None
        if derivation.refuted:
            return derivation.steps
    raise VerificationError("the log ends without a contradiction")


def read_log(path: str | os.PathLike[str]) -> list[str]:
    """Read the lines of a log, compressed or not.

    Raises
    ------
    FormatError
        A file that cannot be read.
    """
    try:
        text = Path(path).read_bytes()
        packed = text.startswith(b"\xfd7zXZ")
        return (lzma.decompress(text) if packed else text).decode().splitlines()
    except (OSError, UnicodeDecodeError, lzma.LZMAError) as error:
        raise FormatError(f"cannot read {path}: {error}") from None


def trim_log(steps: list[Step]) -> list[str]:
    """Keep what the contradiction rests on, renumbered.

    Examples
    --------
    >>> from craftopt.verification.pseudo_boolean import Formula, check_log, trim_log
    >>> formula = Formula()
    >>> formula.at_least([(1, formula.flag("a")), (1, formula.flag("b"))], 3)
    >>> log = ["pseudo-Boolean proof version 1.1", "rup +1 x1 >= 0 ;", "l 1", "c 2"]
    >>> trim_log(check_log(formula, log))
    ['pseudo-Boolean proof version 1.1', 'l 1', 'c 1']
    """
    first = [step.premises[0] - 1 if step.repeats else place for place, step in enumerate(steps)]
    waiting, kept = [len(steps) - 1], set[int]()
    while waiting:
        place = first[waiting.pop()]
        if place not in kept:
            kept.add(place)
            waiting.extend(premise - 1 for premise in steps[place].premises)
    new = {place: str(number) for number, place in enumerate(sorted(kept), 1)}
    lines = [HEADER]
    for place in sorted(kept):
        kind, _, rest = steps[place].line.partition(" ")
        if kind in ("pol", "c"):
            parts = rest.split()
            named = _names(parts)
            rest = " ".join(
                new[first[int(part) - 1]] if at in named else part for at, part in enumerate(parts)
            )
        lines.append(f"{kind} {rest}")
    return lines


class _Derivation:
    """What a log has derived so far."""

    def __init__(self, formula: Formula) -> None:
        self.steps: list[Step] = []
        self.refuted = False
        self._formula = formula
        self._derived: list[Constraint] = []
        # Most steps follow from short constraints; all are looked at where these do not do.
        self._short, self._all = Propagation(formula), Propagation(formula)
        self._short_steps: list[int] = []
        # Solvers repeat themselves: by its line, the first step of propagation that says it.
        self._known: dict[str, int] = {}

    def follow(self, line: str) -> None:
        kind, _, rest = line.partition(" ")
        premises: tuple[int, ...] = ()
        if kind == "l":
            constraints = self._formula.constraints
            constraint = constraints[_position(rest, len(constraints))]
        elif kind == "rup":
            known = self._known.setdefault(rest, len(self.steps) + 1)
            if known <= len(self.steps):
                self.steps.append(Step(line, (known,), repeats=True))
                self._derived.append(self._derived[known - 1])
                return
            constraint = parse(rest)
            premises = self._propagate(constraint)
        elif kind == "pol":
            parts = rest.split()
            constraint, premises = _polish(parts, self._derived)
        elif kind == "c":
            refuted = self._derived[_position(rest, len(self._derived))]
            require(refuted.slack < 0, f"constraint {rest} can hold")
            constraint, premises, self.refuted = refuted, (int(rest),), True
        else:
            raise VerificationError(f"{kind!r} is no step that is known here")
        self.steps.append(Step(line, premises))
        self._derived.append(constraint)
        if len(constraint.weights) <= _SHORT and kind != "l":
            self._short.add(constraint)
            self._short_steps.append(len(self.steps))

    def _propagate(self, stated: Constraint) -> tuple[int, ...]:
        own = len(self._formula.constraints)
        used = self._short.breaking(stated)
        if used is not None:
            return tuple(self._short_steps[place - own] for place in used if place >= own)
        for constraint in self._derived[self._all.size - own :]:
            self._all.add(constraint)
        used = self._all.breaking(stated)
        require(used is not None, f"{stated} does not follow by propagation")
        return tuple(place - own + 1 for place in used or () if place >= own)


class Propagation:
    """Find what constraints force, and which of them a denied constraint breaks.

    Parameters
    ----------
    formula : Formula
        The first constraints; `add` adds more.
    """

    def __init__(self, formula: Formula) -> None:
        self._constraints: list[Constraint] = []
        # By literal, as a flag's number and sign, the constraints that lose weight if it is true.
        self._uses: dict[int, list[int]] = defaultdict(list)
        self._slack: list[int] = []
        self._forced: dict[int, bool] = {}
        # By flag, the constraint that forced it; the denied one is _DENIED.
        self._reason: dict[int, int] = {}
        self._conflict: tuple[int, ...] = ()
        for constraint in formula.constraints:
            self.add(constraint)

    @property
    def size(self) -> int:
        """Constraints that were added."""
        return len(self._constraints)

    def add(self, constraint: Constraint) -> None:
        """Use one more constraint, and what it forces, for good."""
        place = len(self._constraints)
        self._constraints.append(constraint)
        for flag, weight in constraint.weights.items():
            self._uses[-flag if weight > 0 else flag].append(place)
        self._slack.append(self._slack_of(constraint))
        if not self._conflict:
            self._settle([place], [], [])

    def breaking(self, stated: Constraint) -> set[int] | None:
        """Deny a constraint; return the constraints that break then, and those that force it."""
        if self._conflict:
            return self._antecedents(self._conflict)
        # Not (sum w l >= d): sum w ~l >= sum w - d + 1.
        denied = Constraint(
            {flag: -weight for flag, weight in stated.weights.items()}, stated.slack + 1
        )
        slack = self._slack_of(denied)
        forced = [
            (flag if weight > 0 else -flag, _DENIED)
            for flag, weight in denied.weights.items()
            if flag not in self._forced and abs(weight) > slack
        ]
        trail: list[int] = []
        if slack < 0:
            self._conflict = tuple(self._reason[f] for f in denied.weights if f in self._forced)
        else:
            self._settle([], forced, trail)
        used = self._antecedents(self._conflict) if self._conflict or slack < 0 else None
        self._conflict = ()
        for literal in trail:
            del self._forced[abs(literal)], self._reason[abs(literal)]
            for place in self._uses[literal]:
                self._slack[place] += abs(self._constraints[place].weights[abs(literal)])
        return used

    def _slack_of(self, constraint: Constraint) -> int:
        """Compute the slack, given what is forced."""
        forced = self._forced
        return constraint.slack - sum(
            abs(weight)
            for flag, weight in constraint.weights.items()
            if forced.get(flag, weight > 0) != (weight > 0)
        )

    def _settle(self, queue: list[int], waiting: list[tuple[int, int]], trail: list[int]) -> None:
        """Assign literals, each with its reason, and what follows, until a constraint breaks."""
        while True:
            while waiting:
                literal, reason = waiting.pop()
                flag = abs(literal)
                if flag in self._forced:
                    if self._forced[flag] != (literal > 0):
                        self._conflict = (reason, self._reason[flag])
                        return
                    continue
                trail.append(literal)
                self._forced[flag], self._reason[flag] = literal > 0, reason
                for place in self._uses[literal]:
                    self._slack[place] -= abs(self._constraints[place].weights[flag])
                    queue.append(place)
            if not queue:
                return
            place = queue.pop()
            slack = self._slack[place]
            if slack < 0:
                self._conflict = (place,)
                return
            for flag, weight in self._constraints[place].weights.items():
                if abs(weight) > slack and flag not in self._forced:
                    waiting.append((flag if weight > 0 else -flag, place))

    def _antecedents(self, places: tuple[int, ...]) -> set[int]:
        """Collect the constraints behind a conflict: those whose flags forced those that broke."""
        found: set[int] = set()
        waiting = list(places)
        while waiting:
            place = waiting.pop()
            if place == _DENIED or place in found:
                continue
            found.add(place)
            waiting += [
                self._reason[flag]
                for flag, weight in self._constraints[place].weights.items()
                if self._forced.get(flag, weight > 0) != (weight > 0)
            ]
        return found


def parse(text: str) -> Constraint:
    """Read a constraint as `Constraint` writes it."""
    *terms, sign, degree, end = text.split() or [""] * 3
    require(sign == ">=" and end == ";" and len(terms) % 2 == 0, f"{text!r} is no constraint")
    weights: dict[int, int] = {}
    for weight, literal in zip(terms[::2], terms[1::2], strict=True):
        number = _LITERAL.fullmatch(literal) and int(literal.lstrip("~x"))
        require(bool(number) and number not in weights, f"{literal!r} is no literal, or repeated")
        size = _whole(weight.removeprefix("+"))
        weights[int(number or 0)] = -size if literal[0] == "~" else size
    try:
        return Constraint(weights, int(degree))
    except ValueError:
        raise VerificationError(f"{degree!r} is no whole number") from None


def _polish(steps: list[str], derived: list[Constraint]) -> tuple[Constraint, tuple[int, ...]]:
    """Follow the steps of cutting planes; return the constraint and those that it rests on."""
    named = _names(steps)
    stack: list[tuple[dict[int, int], int]] = []
    for place, step in enumerate(steps):
        if step == "+":
            weights, degree = _pop(stack)
            total, sum_of_degrees = _pop(stack)
            stack.append((total, sum_of_degrees + degree + _add(total, weights)))
        elif step == "s":
            weights, degree = _pop(stack)
            most = max(degree, 0)
            lowered = {f: max(-most, min(w, most)) for f, w in weights.items() if most}
            stack.append((lowered, degree))
        elif step[0] in "~x":
            require(bool(_LITERAL.fullmatch(step)), f"{step!r} is no literal")
            flag = int(step.lstrip("~x"))
            stack.append(({flag: -1 if step[0] == "~" else 1}, 0))
        elif step in ("*", "d"):
            weights, degree = _pop(stack)
            factor = _whole(steps[place - 1])
            if step == "*":
                stack.append(({f: w * factor for f, w in weights.items()}, degree * factor))
            else:
                up = {f: -(-w // factor) if w > 0 else w // factor for f, w in weights.items()}
                stack.append((up, -(-degree // factor)))
        elif place in named:
            constraint = derived[_position(step, len(derived))]
            stack.append((dict(constraint.weights), constraint.degree))
    require(len(stack) == 1, f"{len(stack)} constraints are left over")
    return Constraint(*stack[0]), tuple(int(steps[place]) for place in named)


def _names(steps: list[str]) -> set[int]:
    """Find which steps are numbers of constraints: those that no step multiplies or divides by."""
    return {
        place
        for place, (step, following) in enumerate(zip(steps, [*steps[1:], ""], strict=True))
        if step[0].isdigit() and following not in ("*", "d")
    }


def _add(total: dict[int, int], weights: Mapping[int, int]) -> int:
    """Add weights to others, in place; return what a literal and its negation add to the degree."""
    cancelled = 0
    for flag, weight in weights.items():
        other = total.get(flag, 0)
        if weight * other < 0:  # w x + v ~x = (w - v) x + v
            cancelled -= min(abs(weight), abs(other))
        if weight + other:
            total[flag] = weight + other
        else:
            total.pop(flag, None)
    return cancelled


def _pop(stack: list[tuple[dict[int, int], int]]) -> tuple[dict[int, int], int]:
    require(bool(stack), "a step needs a constraint more than there are")
    return stack.pop()


def _whole(text: str) -> int:
    require(bool(_NUMBER.fullmatch(text)), f"{text!r} is no whole number above 0")
    return int(text)


def _position(text: str, constraints: int) -> int:
    number = _whole(text)
    require(number <= constraints, f"{number} is stated, of {constraints} constraints")
    return number - 1
