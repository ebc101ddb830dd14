"""What craftopt raises and warns with."""

from __future__ import annotations


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
