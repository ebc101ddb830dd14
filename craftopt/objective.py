"""Objectives: sense, label, the cost of a window, and the gap to a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from craftopt.errors import InputError
from craftopt.loads import FloatArray, Loads

ObjectiveName = Literal["time", "balancedness", "activated"]


@dataclass(frozen=True)
class Objective:
    """Say what a plan is judged by.

    Searches minimise a *cost*: what a layer adds to the objective, summed over its windows. A
    user reads a *value*: the objective of the whole plan.

    Parameters
    ----------
    name : {"time", "balancedness", "activated"}
    label : str
        What tables call it.
    maximised : bool
    even_dispatch : bool
        Whether it scores GPU loads under even dispatch, rather than activated copies under
        exact routing.

    Examples
    --------
    >>> from craftopt.objective import OBJECTIVES
    >>> OBJECTIVES["time"].gap(1.5, 1.0), OBJECTIVES["balancedness"].gap(0.5, 1.0)
    (0.5, 1.0)
    """

    name: ObjectiveName
    label: str
    maximised: bool
    even_dispatch: bool

    def order(self, value: float) -> float:
        """Turn a value into something to be minimised."""
        return -value if self.maximised else value

    def tighter(self, bound: float, other: float) -> float:
        """Return the bound that says more."""
        return min(bound, other) if self.maximised else max(bound, other)

    def gap(self, value: float, bound: float) -> float:
        """Compute how far a value is from its bound, relative and at least 0."""
        if self.maximised:
            return max(0.0, (bound - value) / value)
        # Without tokens both are 0.
        return (value - bound) / bound if value > bound else 0.0

    def cost(self, value: float, loads: Loads, gpus: int) -> float:
        """Turn a plan's value into its cost, summed over all windows and layers."""
        if self.maximised:
            return -value * loads.windows * loads.layers
        return value * float(loads.tokens.sum()) / gpus

    def window_weights(self, mean: FloatArray) -> FloatArray:
        """Compute what every window counts in its layer, from the mean GPU loads.

        Relative time weighs windows by their tokens; balancedness counts those with tokens once.
        """
        return (mean > 0).astype(np.float64) if self.maximised else mean

    def costs(self, largest: FloatArray, mean: FloatArray) -> FloatArray:
        """Compute costs from largest and mean GPU loads of the same shape.

        The largest load itself, or minus the balancedness, which is 1 without tokens.
        """
        if not self.maximised:
            return largest
        return -np.divide(mean, largest, out=np.ones_like(largest), where=largest > 0)

    def summed_cost(self, largest: FloatArray, mean: FloatArray) -> float:
        """Sum a layer's costs over its windows with tokens.

        Parameters
        ----------
        largest : float64 [windows]
            Largest GPU loads, in mean GPU loads; 0 without tokens.
        mean : float64 [windows]
            Mean GPU loads.
        """
        if not self.maximised:
            return float((largest * mean).sum())
        return -float((1.0 / largest[largest > 0]).sum())

    def require_even_dispatch(self, what: str) -> None:
        """Refuse the objective ``activated`` where only those of even dispatch are known.

        Raises
        ------
        InputError
            The objective is ``activated``.
        """
        if not self.even_dispatch:
            raise InputError(
                f"{what} knows no objective={self.name!r}; pass objective='time' or 'balancedness'"
            )


OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("time", "relative time", maximised=False, even_dispatch=True),
        Objective("balancedness", "mean balancedness", maximised=True, even_dispatch=True),
        Objective("activated", "activated copies", maximised=False, even_dispatch=False),
    )
}
