"""Which key of an object or archive holds what, and the names of its windows."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from craftopt.errors import FormatError
from craftopt.formats._contents import Kind
from craftopt.formats._text import brief, shorten

# craftopt's own names, then those of SGLang, vLLM and DeepSeek's EPLB.
KEYS: dict[Kind, tuple[str, ...]] = {
    "loads": ("counts", "tokens", "logical_count", "weight"),
    "trace": ("topk_ids", "routed_experts"),
    "plan": ("phy2log", "physical_to_logical_map"),
}


def kind_of(keys: Collection[str]) -> Kind:
    """Tell by its keys what a file holds; loads before a trace, a trace before a plan.

    Raises
    ------
    FormatError
        None of the known keys is there; the message names what is.
    """
    for kind, known in KEYS.items():
        if any(key in keys for key in known):
            return kind
    known_keys = " nor ".join(repr(key) for known in KEYS.values() for key in known)
    raise FormatError(f"holds neither {known_keys}; its keys are {shorten(sorted(keys)) or 'none'}")


def key_of(kind: Kind, keys: Collection[str]) -> str | None:
    """Return the key of loads, trace or plan, the first of `KEYS`, or None where there is none."""
    return next((key for key in KEYS[kind] if key in keys), None)


def names_key(keys: Collection[str]) -> str | None:
    """Return the key of the window names, or None where there is none."""
    return next((key for key in ("window_names", "step_names") if key in keys), None)


def window_names(key: str, values: Sequence[object]) -> list[str]:
    """Check window names: text, or whole numbers such as step numbers.

    Raises
    ------
    FormatError
        Anything else, or text that cannot be written in UTF-8.
    """
    names = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise FormatError(f"{key!r} holds {brief(value)}; pass one name per window")
        names.append(str(value))
    try:
        "".join(names).encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"{key!r} holds text that is not valid Unicode") from error
    return names
