"""vllm-ascend and MindIE: expert maps in JSON, and MindIE's hotspot recordings in CSV."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from craftopt.errors import FormatError, whole
from craftopt.formats._contents import Contents, plan_of, with_gpus
from craftopt.formats._source import check_ranks
from craftopt.formats._text import shorten
from craftopt.loads import FloatArray, IntArray, Loads
from craftopt.plan import Plan
from craftopt.slot_tables import to_logical

_HOTSPOT = re.compile(r"(prefill|decode)_(\d{1,6})\.csv")


# --- expert maps ----------------------------------------------------------------------------


def describes(document: dict[str, Any]) -> bool:
    """Tell whether a JSON object is an expert map."""
    return "layer_list" in document


class ExpertMap(Contents):
    """``{moe_layer_count, layer_list: [{layer_id, device_count, device_list: [...]}]}``.

    vllm-ascend reads the layers by position; their ids count the MoE layers, not the model's. With
    ``pool_mode``, ``pool_start`` and a layer's ``pool_size``, layers differ in their slots: so
    reads the branch behind vllm-ascend's pull request 16871 (sokosad/vllm-ascend-deepseekv4 at
    2247149, vllm_ascend/eplb/core/eplb_utils.py). The pool of the pull request itself is filled
    while serving, and reads no map.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        super().__init__("an expert map of vllm-ascend and MindIE", "plan")
        self._document = document

    def plan(self, gpus: int | None) -> Plan:
        """Read the map.

        Raises
        ------
        InputError
            A damaged map.
        """
        table, devices = self.phy2log()
        return with_gpus(plan_of(table, devices), gpus)

    def phy2log(self) -> tuple[IntArray, int]:
        """Return the expert of every slot, int64 [layers, slots], -1 = none, and the devices."""
        try:
            layers = [
                [device["device_expert"] for device in layer["device_list"]]
                for layer in self._document["layer_list"]
            ]
            devices = {len(layer) for layer in layers}
            widths = {len(experts) for layer in layers for experts in layer}
            for number, held in [("layer_id", self._document["layer_list"]),
                                 *(("device_id", one["device_list"])
                                   for one in self._document["layer_list"])]:  # fmt: skip
                given = [one.get(number, at) for at, one in enumerate(held)]
                if given != sorted(given):
                    raise FormatError(
                        f"the expert map lists {number} {shorten(given)}, and engines read it in "
                        "order; sort it"
                    )
            ids = {type(e) for layer in layers for experts in layer for e in experts}
        except (KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"the expert map is damaged: {_reason(error)}") from None
        if len(devices) != 1 or not ids <= {int} or min(widths, default=0) < 1:
            raise FormatError(
                "the expert map is damaged: every layer needs the same devices, and every device "
                "experts, as whole numbers"
            )
        claimed = self._document.get("moe_layer_count", len(layers))
        if claimed != len(layers):
            raise FormatError(
                f"damaged or truncated: the map claims {claimed!r} MoE layers and lists "
                f"{len(layers)}"
            )
        width = max(widths)
        rows = [[experts + [-1] * (width - len(experts)) for experts in layer] for layer in layers]
        try:
            table = np.array(rows, dtype=np.int64).reshape(len(layers), -1)
        except (OverflowError, ValueError) as error:
            raise FormatError(f"the expert map is damaged: {error}") from None
        return table, devices.pop()


def maps_of(folder: Path) -> list[ExpertMap]:
    """Read the expert maps of a folder; other JSON files are left alone."""
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            document = json.loads(file.read_bytes())
        except (ValueError, RecursionError):
            continue
        if isinstance(document, dict) and describes(document):
            found.append(ExpertMap(document))
    return found


def expert_map(phy2log: IntArray, gpus: int, main: int | None = None) -> str:
    """Write the map as JSON, equally many slots for every device of a layer.

    Parameters
    ----------
    phy2log : int64 [layers, slots]
        Expert of every slot, -1 = none, in the order of the MoE layers.
    gpus : int
    main : int, optional
        Slots of a device and layer that are in no pool; without it, there is no pool.
    """
    table = phy2log.reshape(len(phy2log), gpus, -1)
    layers = [
        {
            "layer_id": number,
            "device_count": gpus,
            "device_list": [
                {"device_id": device, "device_expert": experts[experts >= 0].tolist()}
                for device, experts in enumerate(row)
            ],
        }
        | ({} if main is None else {"pool_size": int((row[0] >= 0).sum()) - main})
        for number, row in enumerate(table)
    ]
    pool = {} if main is None else {"pool_mode": True, "pool_start": main}
    return json.dumps({"moe_layer_count": len(layers), **pool, "layer_list": layers}) + "\n"


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


# --- hotspots -------------------------------------------------------------------------------


def hotspot_files(folder: Path) -> list[Path]:
    """List the recordings of a folder and of its folders ``prefill`` and ``decode``."""
    inside = [folder, folder / "prefill", folder / "decode"]
    return sorted(
        file
        for part in inside
        if part.is_dir()
        for file in part.iterdir()
        if _HOTSPOT.fullmatch(file.name)
    )


class Hotspots(Contents):
    """``{prefill|decode}/{phase}_{rank}.csv``: blocks of MoE layers x experts of that rank.

    The files do not say how many layers a block has, nor which experts the columns are. The
    expert map that the run used says both, if it is in the folder too; else the caller says the
    layers, and the columns are taken for consecutive experts, as without redundancy.
    """

    def __init__(self, folder: Path, maps: list[ExpertMap]) -> None:
        super().__init__("a MindIE hotspot recording", "loads")
        self._folder = folder
        if len(maps) > 1:
            raise FormatError("holds several expert maps; leave the one that the run used")
        self._map = maps[0] if maps else None

    def loads(self) -> Loads:
        """Read every phase: a window per block, named ``decode/00012``.

        Raises
        ------
        InputError
            Damaged numbers, missing ranks, or no word on the layers of a block.
        """
        phases: dict[str, dict[int, Path]] = {}
        for file in hotspot_files(self._folder):
            found = _HOTSPOT.fullmatch(file.name)
            assert found is not None
            ranks = phases.setdefault(found[1], {})
            if ranks.setdefault(int(found[2]), file) != file:
                raise FormatError(f"holds {file.name} twice; pass one recording")
        blocks, names = [], []
        for phase, files in sorted(phases.items()):
            tokens = self._phase(phase, files)
            blocks.append(tokens)
            names += [f"{phase}/{window:05d}" for window in range(len(tokens))]
        if len({tokens.shape[1:] for tokens in blocks}) > 1:
            raise FormatError("prefill and decode differ in layers or experts; pass one of them")
        return Loads(np.concatenate(blocks), window_names=names)

    def _phase(self, phase: str, files: dict[int, Path]) -> FloatArray:
        check_ranks(files, f"{phase}: ")
        given = self.layers
        count = len(given) if isinstance(given, Sequence) else given
        table, layers = None, None if count is None else whole("layers", count, 1)
        if self._map is not None:
            table, devices = self._map.phy2log()
            if devices != len(files):
                raise FormatError(
                    f"{phase} has {len(files)} ranks, the expert map {devices} devices; "
                    "pass the map that the run used"
                )
            if (table < 0).any():
                raise FormatError("the expert map has unequal devices, which MindIE does not load")
            if layers not in (None, len(table)):
                raise FormatError(f"the expert map has {len(table)} layers, not layers={layers}")
            layers = len(table)
        if layers is None:
            raise FormatError(
                "does not say how many MoE layers a block has; put the expert map that the run "
                "used into the folder, or pass layers= to co.read_loads"
            )
        ranks = [_rows(files[rank]) for rank in range(len(files))]
        if len({rank.shape[1] for rank in ranks}) > 1:
            raise FormatError(f"{phase}: ranks differ in their number of experts")
        windows = min(len(rank) for rank in ranks) // layers
        if not windows:
            raise FormatError(f"{phase}: no whole block of {layers} layers in every file")
        if any(len(rank) != windows * layers for rank in ranks):
            self.notes.append(f"{phase}: left out what is behind the last block of all ranks")
        # [windows, layers, slots], slot by slot as the map lists them
        slots = np.concatenate([rank[: windows * layers] for rank in ranks], axis=1)
        slots = slots.reshape(windows, layers, -1)
        if table is None:
            return slots
        if table.shape[1] != slots.shape[2]:
            raise FormatError(
                f"{phase} has {slots.shape[2]} columns over all ranks, the expert map "
                f"{table.shape[1]} slots; pass the map that the run used"
            )
        return to_logical(slots, table)


def _rows(file: Path) -> FloatArray:
    """Read rows of equally many whole numbers, line by line."""
    rows: list[IntArray] = []
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                rows.append(_row(file, number, line, rows[0].size if rows else None))
    if not rows:
        raise FormatError(f"{file.name} is empty")
    return np.array(rows, dtype=np.float64)


def _row(file: Path, number: int, line: str, width: int | None) -> IntArray:
    texts = [cell.strip() for cell in line.split(",")]
    wrong = next((t for t in texts if not (t.isascii() and t.isdigit() and len(t) <= 18)), None)
    if wrong is not None:
        raise FormatError(f"{file.name}, line {number}: {wrong[:40]!r} is not a token count")
    if width not in (None, len(texts)):
        raise FormatError(
            f"{file.name}, line {number} has {len(texts)} numbers, the lines above {width}; "
            "the file may be truncated"
        )
    return np.array([int(text) for text in texts], dtype=np.int64)
