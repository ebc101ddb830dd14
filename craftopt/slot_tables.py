"""Tables of physical slots, as engines keep them: which expert a slot hosts, and the reverse."""

from __future__ import annotations

import numpy as np

from craftopt.errors import InputError
from craftopt.loads import FloatArray, IntArray


def slots_of_experts(phy2log: IntArray, experts: int) -> tuple[IntArray, IntArray]:
    """List the slots of every expert.

    Parameters
    ----------
    phy2log : int64 [layers, slots]
        Expert of every slot.
    experts : int
        Logical experts.

    Returns
    -------
    log2phy : int64 [layers, experts, most copies]
        Slots of every expert in rising order, -1 padded.
    logcnt : int64 [layers, experts]
        Copies of every expert.

    Examples
    --------
    >>> import numpy as np
    >>> from craftopt.slot_tables import slots_of_experts
    >>> slots_of_experts(np.array([[0, 1, 0]]), experts=2)
    (array([[[ 0,  2],
            [ 1, -1]]]), array([[2, 1]]))
    """
    layers, slots = phy2log.shape
    every = np.arange(layers)[:, np.newaxis]
    logcnt = np.zeros((layers, experts), dtype=np.int64)
    np.add.at(logcnt, (every, phy2log), 1)
    order = np.argsort(phy2log, axis=1, kind="stable")
    hosted = np.take_along_axis(phy2log, order, axis=1)
    first = np.cumsum(logcnt, axis=1) - logcnt
    rank = np.arange(slots) - np.take_along_axis(first, hosted, axis=1)
    log2phy = np.full((layers, experts, int(logcnt.max())), -1, dtype=np.int64)
    log2phy[every, hosted, rank] = order
    return log2phy, logcnt


def to_logical(counts: FloatArray, phy2log: IntArray) -> FloatArray:
    """Add up the counts of slots, expert by expert.

    Parameters
    ----------
    counts : float64 [windows, layers, slots]
        Tokens of every slot.
    phy2log : int64 [layers, slots]

    Returns
    -------
    float64 [windows, layers, experts]

    Raises
    ------
    InputError
        A map of another shape, with empty slots, or that does not host every expert.
    """
    windows, layers, width = counts.shape
    least, most = int(phy2log.min()), int(phy2log.max())
    if phy2log.shape != (layers, width) or least < 0 or most >= width:
        raise InputError(
            f"counts [layers, slots] {layers, width} do not fit the map, shape {phy2log.shape} of "
            f"experts {least}..{most}; pass the map that the run used"
        )
    every = np.arange(layers)
    hosted = np.zeros((layers, most + 1), dtype=np.bool_)
    hosted[every[:, np.newaxis], phy2log] = True
    if not hosted.all():
        layer, expert = np.argwhere(~hosted)[0]
        raise InputError(f"the map hosts expert {expert} nowhere in layer {layer}")
    result = np.zeros((windows, layers, most + 1))
    for slot in range(width):
        result[:, every, phy2log[:, slot]] += counts[:, :, slot]
    return result
