"""vLLM's API with ``enable_return_routed_experts``: the experts of every token, by response.

``choices[i].routed_experts`` is the base64 text of an ``.npy`` [tokens - 1, layers, k].
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from craftopt.errors import FormatError
from craftopt.formats._contents import Contents
from craftopt.formats.npy import parse_npy
from craftopt.traces import Trace

_KEY = "routed_experts"


def describes(document: dict[str, Any]) -> bool:
    """Tell whether a JSON document is a response, with the experts of its tokens or without."""
    choices = document.get("choices")
    return isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices)


class Response(Contents):
    """A response; every choice is a sequence. Dense layers are 0 in all places."""

    def __init__(self, document: dict[str, Any]) -> None:
        super().__init__("a response of vLLM's API with routed experts", "trace")
        self._choices = document["choices"]

    def trace(self, experts: int | None) -> Trace:
        """Read the choices that were served, one after the other."""
        parts = []
        for number, choice in enumerate(self._choices):
            text = choice.get(_KEY)
            if not isinstance(text, str):
                self.notes.append(f"choice {number} has no {_KEY}, as where it was aborted")
                continue
            try:
                parts.append(parse_npy(base64.b64decode(text, validate=True)))
            except (ValueError, binascii.Error) as error:
                raise FormatError(f"choice {number}: damaged {_KEY}: {error}") from error
        if not parts:
            raise FormatError(
                f"no choice of this response has a text {_KEY}; start vLLM with "
                "--enable-return-routed-experts"
            )
        if any(part.ndim != 3 or part.shape[1:] != parts[0].shape[1:] for part in parts):
            shapes = ", ".join(str(part.shape) for part in parts[:4])
            raise FormatError(f"choices hold {shapes}; they must be [tokens, layers, k] alike")
        sequence = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return self.active_trace(np.concatenate(parts), experts, sequence=sequence)
