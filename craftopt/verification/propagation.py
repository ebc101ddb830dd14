"""Unit propagation over pseudo-Boolean constraints, with the reasons of what is forced."""

from __future__ import annotations

from collections import defaultdict

from craftopt.verification.pseudo_boolean import Constraint, Formula

# The place of a constraint that is denied.
_DENIED = -1


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
