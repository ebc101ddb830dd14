"""Proof logs, checked step by step in whole numbers.

A *log* is a text in the proof format of VeriPB, version 1.1, that derives a contradiction from the
constraints of a formula (`craftopt.verification.pseudo_boolean`). `check_log` knows the steps that
the solver Exact writes, and no other:

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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from craftopt.errors import FormatError, VerificationError
from craftopt.verification.checks import require
from craftopt.verification.propagation import Propagation
from craftopt.verification.pseudo_boolean import LITERAL, Constraint, Formula, parse, whole

HEADER = "pseudo-Boolean proof version 1.1"
# A constraint of so few flags is short.
_SHORT = 2


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

    >>> from craftopt.verification.logs import check_log
    >>> from craftopt.verification.pseudo_boolean import Formula
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
    >>> from craftopt.verification.logs import check_log, trim_log
    >>> from craftopt.verification.pseudo_boolean import Formula
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
            require(bool(LITERAL.fullmatch(step)), f"{step!r} is no literal")
            flag = int(step.lstrip("~x"))
            stack.append(({flag: -1 if step[0] == "~" else 1}, 0))
        elif step in ("*", "d"):
            weights, degree = _pop(stack)
            factor = whole(steps[place - 1])
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


def _position(text: str, constraints: int) -> int:
    number = whole(text)
    require(number <= constraints, f"{number} is stated, of {constraints} constraints")
    return number - 1
