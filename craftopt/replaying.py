"""Replay a recording: what plans that change from window to window serve it in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from craftopt.errors import InputError
from craftopt.evaluation import evaluate
from craftopt.loads import FloatArray, IntArray, Loads
from craftopt.plan import Plan
from craftopt.rebalancing import count_moves


@dataclass(frozen=True, eq=False)
class Replay:
    """Hold what serving windows took, and what was moved between them.

    Parameters
    ----------
    max_load, mean_load : float64 [windows]
        Largest and mean GPU load, summed over the layers.
    moves : int64 [windows]
        Copies sent before the window.
    """

    max_load: FloatArray
    mean_load: FloatArray
    moves: IntArray

    @property
    def relative_time(self) -> float:
        """Sum of the largest over sum of the mean GPU loads; 1 where there are no tokens."""
        return float(self.cumulative[-1])

    @property
    def cumulative(self) -> FloatArray:
        """Relative time up to every window, float64 [windows]."""
        mean = np.cumsum(self.mean_load)
        return np.divide(np.cumsum(self.max_load), mean, out=np.ones_like(mean), where=mean > 0)

    def __repr__(self) -> str:
        return f"Replay(relative_time={self.relative_time:.4f}, moves={self.moves.sum()})"


def replay(loads: Loads, start: Plan, decide: Callable[[int, FloatArray], Plan]) -> Replay:
    """Serve windows one after the other, with a decision after each.

    Parameters
    ----------
    loads : Loads
    start : Plan
        Serves the first window.
    decide : callable
        ``decide(window, tokens)``, called after a window was served with its position and its
        tokens [layers, experts], returns the plan of the next.

    Returns
    -------
    Replay

    Raises
    ------
    InputError
        Loads of another shape than the plans', or a decision that is no plan.

    Examples
    --------
    >>> import craftopt as co
    >>> loads = co.Loads([[[8, 1, 1, 2]], [[8, 1, 1, 2]]])
    >>> start = co.Plan.from_phy2log([[0, 1, 2, 3]], gpus=2)
    >>> better = co.Plan.from_phy2log([[0, 2, 1, 3]], gpus=2)
    >>> co.replay(loads, start, lambda window, tokens: better)
    Replay(relative_time=1.5000, moves=2)
    """
    plan, most, mean, moves = start, [], [], []
    pending = 0
    for window, tokens in enumerate(loads.tokens):
        scored = evaluate(plan, Loads(tokens, loads.layer_ids))
        most.append(scored.max_load.sum())
        mean.append(scored.mean_load.sum())
        moves.append(pending)
        following = decide(window, tokens)
        if not isinstance(following, Plan):
            raise InputError(
                f"decide returned a {type(following).__name__} after window {window}; return the "
                "plan that serves next, such as the .plan of a Decision"
            )
        pending = count_moves(following, plan) if following is not plan else 0
        plan = following
    return Replay(np.array(most), np.array(mean), np.array(moves, dtype=np.int64))
