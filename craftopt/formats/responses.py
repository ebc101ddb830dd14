"""RL routing replay: responses of vLLM's and SGLang's APIs with the experts of every token.

vLLM: ``choices[i].routed_experts`` is the base64 text of an ``.npy`` [tokens - 1, layers, k]. In
0.21.0 it was nested lists of the generated tokens, and those of the prompt stood beside the
choices, in ``prompt_routed_experts``. SGLang: base64 of int32 without a shape, tokens - 1 rows, in
``meta_info`` (/generate), or in ``sglext`` (before: ``sgl_ext``) of a response or choice
(sglang/srt/managers/tokenizer_manager.py and its documentation, 0.5.23).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from craftopt.errors import FormatError, whole
from craftopt.formats._bare import as_whole
from craftopt.formats._contents import AnyArray, Contents
from craftopt.formats._json import of_lists
from craftopt.formats.npy import parse_npy
from craftopt.traces import Trace

_KEY = "routed_experts"
_PROMPT = f"prompt_{_KEY}"
_MOST_CHOICES = 32  # of a token


def describes(document: object) -> bool:
    """Tell whether a JSON document is a response, with the experts of its tokens or without."""
    if not isinstance(document, dict):
        return False
    choices = document.get("choices", [] if isinstance(document.get("meta_info"), dict) else None)
    return isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices)


class Responses(Contents):
    """Responses; every choice is a sequence. Dense layers are 0 or -1 in all places."""

    def __init__(self, documents: Sequence[dict[str, Any]]) -> None:
        super().__init__("a response of an engine's API with routed experts", "trace")
        self._documents = documents
        self._shapeless = False  # so that the caller's layers are those of the numbers

    def trace(self, experts: int | None) -> Trace:
        """Read the choices that were served, one after the other."""
        parts: list[AnyArray] = []
        for number, document in enumerate(self._documents):
            where = f"response {number}, " if len(self._documents) > 1 else ""
            parts += self._sequences(document, where)
        if not parts:
            raise FormatError(
                f"no choice of this response has {_KEY}; start vLLM or SGLang with "
                "--enable-return-routed-experts, and ask SGLang for them with "
                "return_routed_experts"
            )
        if any(part.ndim != 3 or part.shape[1:] != parts[0].shape[1:] for part in parts):
            shapes = ", ".join(str(part.shape) for part in parts[:4])
            raise FormatError(f"choices hold {shapes}; they must be [tokens, layers, k] alike")
        sequence = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        numbers = None
        if self._shapeless:
            numbers = np.array(self.layers) if isinstance(self.layers, Sequence) else None
            self.layers = None
        return self.active_trace(np.concatenate(parts), experts, numbers, sequence=sequence)

    def _sequences(self, document: dict[str, Any], where: str) -> Iterator[AnyArray]:
        """Yield the rows of every sequence, the prompt's before those of the first choice."""
        shapeless = [document.get("meta_info"), *_extensions(document)]
        prompt = document.get(_PROMPT)
        before = [] if prompt is None else [_rows(prompt, f"{where}prompt")]
        for number, choice in enumerate(document.get("choices", [])):
            name = f"{where}choice {number}"
            shapeless += _extensions(choice)
            if choice.get(_KEY) is not None:
                yield np.concatenate([*before, _rows(choice[_KEY], name)])
                before = []
            elif not any(map(_extensions, (document, choice))):
                self.notes.append(f"{name} has no {_KEY}, as where it was aborted")
        yield from before
        for held in shapeless:
            if isinstance(held, dict) and held.get(_KEY) is not None:
                yield self._shaped(held[_KEY], document, where)

    def _shaped(self, text: object, document: dict[str, Any], where: str) -> AnyArray:
        """Give SGLang's numbers their shape: tokens - 1 rows of as many layers as the caller says.

        Raises
        ------
        FormatError
            No word on the layers or the tokens, or numbers that do not divide by them.
        """
        ids = np.frombuffer(_bytes(text, where.removesuffix(", ")), np.uint8)
        counts = document.get("meta_info") or document.get("usage") or {}
        rows = -1
        for name in ("prompt_tokens", "completion_tokens"):
            rows += counts[name] if type(counts.get(name)) is int else -(2**62)
        if rows < 1 or ids.size % 4:
            raise FormatError(
                f"{where}{_KEY} has {ids.size} bytes without a shape, and the response no "
                "prompt_tokens and completion_tokens that give them one; save them as .npy"
            )
        width = ids.size // 4 // rows
        if width * rows * 4 != ids.size or not width:
            raise FormatError(
                f"{where}{_KEY} has {ids.size // 4} numbers for {rows} tokens; pass responses that "
                "begin with the prompt (routed_experts_start_len=0)"
            )
        layers = self.layers
        count = len(layers) if isinstance(layers, Sequence) else layers
        if count is None or width % whole("layers", count, 1) or width // count > _MOST_CHOICES:
            raise FormatError(
                f"SGLang gives {width} numbers a token without a shape, layers x choices"
                + ("" if count is None else f", which layers={count} do not divide")
                + "; pass the number of hidden layers, dense ones too, such as --layers 48 "
                "(layers=48)"
            )
        self._shapeless = True
        return ids.view("<i4").reshape(rows, count, -1)


def _extensions(held: dict[str, Any]) -> list[dict[str, Any]]:
    """List what SGLang adds to OpenAI's response or choice."""
    found = (held.get("sglext"), held.get("sgl_ext"))
    return [one for one in found if isinstance(one, dict) and one.get(_KEY) is not None]


def _rows(value: object, where: str) -> AnyArray:
    if isinstance(value, list):
        return as_whole(of_lists(f"{where}, {_KEY}", value))
    try:
        return parse_npy(_bytes(value, where))
    except ValueError as error:
        raise FormatError(f"{where}: damaged {_KEY}: {error}") from error


def _bytes(text: object, where: str) -> bytes:
    try:
        return base64.b64decode(text if isinstance(text, str) else "?", validate=True)
    except (ValueError, binascii.Error) as error:
        raise FormatError(f"{where}: damaged {_KEY}: {error}") from error
