"""Text in, and words for messages: long lists, values and errors on one short line."""

from __future__ import annotations

from collections.abc import Sequence

from craftopt.errors import FormatError


def shorten(items: Sequence[object], limit: int = 8) -> str:
    """Return the items separated by commas, the middle left out where there are many."""
    words = [str(item)[:40] for item in items]
    texts = [word if word.isprintable() else repr(word) for word in words]
    if len(texts) > limit:
        texts = [*texts[: limit - 1], "...", texts[-1]]
    return ", ".join(texts)


def brief(value: object) -> str:
    """Return a value or an error's message on one line, cut where it is long."""
    text = str(value) if isinstance(value, Exception) else repr(value)
    text = " ".join(text.split()) or type(value).__name__
    return text if len(text) <= 100 else text[:97] + "..."


def decoded(data: bytes) -> str:
    """Decode a file's UTF-8 text, with or without a byte order mark.

    Raises
    ------
    FormatError
        Bytes that are no such text.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"is not UTF-8 text: {error.reason} at byte {error.start}") from error
