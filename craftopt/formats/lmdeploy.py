"""lmdeploy: what the expert distribution recorder of its pull request 3709 dumps.

``{counts: int64 [MoE layers, experts], balancedness, step, rank}``, also with ``total_tokens``,
the ranks added up on the one that dumps. Counts run on from dump to dump. Its first version wrote
``counts`` alone, as a JSON list. Rows are MoE layers in order, without the model's numbers.
"""

from __future__ import annotations

import numpy as np

from craftopt.errors import FormatError
from craftopt.formats._contents import AnyArray, Contents
from craftopt.formats._text import shorten
from craftopt.formats.pt import Document, Documents, whole_array
from craftopt.loads import Loads


def describes(document: Document) -> bool:
    """Tell whether a dump is of this recorder."""
    return {"counts", "balancedness", "step", "rank"} <= document.keys()


class Totals(Contents):
    """Counts up to every dump."""

    def __init__(self, documents: Documents) -> None:
        super().__init__("a dump of lmdeploy's recorder", "loads")
        self._documents = documents

    def loads(self) -> Loads:
        """Read what came between two dumps, as windows.

        Raises
        ------
        FormatError
            Damaged dumps, or those of several ranks or recordings.
        """
        found: dict[int, AnyArray] = {}
        ranks: set[int] = set()
        for file, document in self._documents():
            counts = whole_array(document, "counts")
            step, rank = document.get("step"), document.get("rank")
            if counts.ndim != 2 or type(step) is not int or type(rank) is not int:
                raise FormatError(f"damaged: 'counts' has shape {counts.shape}, step is {step!r}")
            if step in found:
                raise FormatError(
                    f"{file} repeats step {step} of a file before it; pass one of them"
                )
            ranks.add(rank)
            found[step] = counts
        if len(ranks) > 1:
            raise FormatError(
                f"holds dumps of the ranks {shorten(sorted(ranks))}, each of which adds up all "
                "ranks; pass those of one"
            )
        steps = sorted(found)
        if len({counts.shape for counts in found.values()}) > 1:
            raise FormatError("its dumps differ in layers or experts; pass those of one model")
        totals = np.stack([found[step] for step in steps]).astype(np.float64)
        tokens = np.diff(totals, axis=0, prepend=0)
        if (tokens < 0).any():
            raise FormatError(
                "counts fall from dump to dump, so these are several recordings, and lmdeploy's "
                "run on; pass the dumps of one"
            )
        if len(steps) > 1:
            self.notes.append("counts run on from dump to dump; a window is what came between two")
        return Loads(tokens, window_names=[str(step) for step in steps])
