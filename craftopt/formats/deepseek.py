"""DeepSeek's EPLB: the three tables that its ``rebalance_experts`` returns, as ``.npz``."""

from __future__ import annotations

import io

import numpy as np

from craftopt.loads import IntArray
from craftopt.slot_tables import slots_of_experts


def tables(phy2log: IntArray, experts: int) -> bytes:
    """Write ``phy2log``, ``log2phy`` and ``logcnt``, int64, as the bytes of an ``.npz``.

    Parameters
    ----------
    phy2log : int64 [layers, slots]
        Expert of every slot.
    experts : int
    """
    log2phy, logcnt = slots_of_experts(phy2log, experts)
    file = io.BytesIO()
    np.savez(file, phy2log=phy2log, log2phy=log2phy, logcnt=logcnt)
    return file.getvalue()
