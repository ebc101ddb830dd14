"""What craftopt raises and warns with, and the refusals that every module shares."""

from __future__ import annotations

import difflib
import functools
import math
import warnings
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

Name = TypeVar("Name", bound=str)
Given = ParamSpec("Given")
Made = TypeVar("Made")


class CraftoptError(Exception):
    """Base of every error that craftopt raises on purpose."""


class InputError(CraftoptError, ValueError):
    """An argument, an array or a file holds something that cannot be used.

    The message says the value, the limit that it breaks and the remedy.
    """


class FormatError(InputError):
    """A file is damaged, unsafe or in no format that craftopt reads."""


class InfeasibleError(InputError):
    """Budget and rules cannot be met by any plan; the message names what could."""


class NoPlanError(CraftoptError, LookupError):
    """A plan was asked of a result that has none."""


class VerificationError(CraftoptError, ValueError):
    """A certificate claims something that is not so; the message names the first such claim."""


class CraftoptWarning(UserWarning):
    """Something was dropped, rounded or left unused; the work went on."""


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return a whole number within its limits.

    Raises
    ------
    InputError
        No whole number, or one below ``least`` or above ``most``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name}={value!r} is not a whole number; pass an int of at least {least}")
    count = int(value)
    if count < least:
        raise InputError(f"{name}={count} is below {least}; pass at least {least}")
    if most is not None and count > most:
        raise InputError(f"{name}={count} is above {most}; pass at most {most}")
    return count


def number(
    name: str,
    value: Any,
    *,
    least: float = -math.inf,
    above: float | None = None,
    most: float = math.inf,
) -> float:
    """Return a finite number within its limits: at least ``least`` or above ``above``.

    Raises
    ------
    InputError
        No finite number, or one outside its limits.
    """
    range_ = f"above {above:g}" if above is not None else f"of at least {least:g}"
    range_ = "" if above is None and least == -math.inf else f" {range_}"
    range_ += f", at most {most:g}" if most < math.inf else ""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f"{name}={value!r} is not a finite number; pass one{range_}")
    real = float(value)
    if real < least or real > most or (above is not None and real <= above):
        raise InputError(f"{name}={value} is out of range; pass a number{range_}")
    return real


def unknown(name: str, value: object, known: Iterable[str], *, cutoff: float = 0.6) -> InputError:
    """Make the refusal of a name that is none of the known ones, with the nearest of them."""
    names = list(known)
    plain = {other.casefold(): other for other in reversed(names)}
    close = difflib.get_close_matches(str(value).casefold(), plain, n=1, cutoff=cutoff)
    hint = f"; did you mean {plain[close[0]]!r}?" if close else ""
    listed = ", ".join(names) if len(names) <= 40 else f"{len(names)} names"
    return InputError(f"{name}={value!r} is unknown; pass one of {listed}{hint}")


def choice(name: str, value: object, known: Iterable[Name]) -> Name:
    """Return the known name that is meant, whatever its case.

    Raises
    ------
    InputError
        None of the known names.
    """
    names = tuple(known)
    for other in names:
        if isinstance(value, str) and value.casefold() == other.casefold():
            return other
    raise unknown(name, value, names)


def divide_gpus(gpus: int, nodes: int) -> int:
    """Return the GPUs of every node.

    Raises
    ------
    InputError
        GPUs that the nodes do not divide.
    """
    if gpus % nodes:
        below = gpus - gpus % nodes
        fitting = f"{below} or {below + nodes}" if below else f"{nodes}"
        raise InputError(
            f"gpus={gpus} does not divide into nodes={nodes}; pass nodes=1 or gpus={fitting}"
        )
    return gpus // nodes


def deprecated(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn, at the line that called the caller, that something has a new name."""
    warnings.warn(f"{old} is deprecated; use {new}", DeprecationWarning, stacklevel=stacklevel)


def renamed(**new_names: str) -> Callable[[Callable[Given, Made]], Callable[Given, Made]]:
    """Let a function take arguments under old names too: ``@renamed(rule="dispatch")``."""

    def decorate(function: Callable[Given, Made]) -> Callable[Given, Made]:
        @functools.wraps(function)
        def call(*args: Given.args, **kwargs: Given.kwargs) -> Made:
            for old in new_names.keys() & kwargs.keys():
                deprecated(f"{old}=", f"{new_names[old]}=")
                kwargs[new_names[old]] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate
