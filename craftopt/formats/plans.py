"""Read plans from files, recognised by content."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from craftopt.errors import FormatError, InputError
from craftopt.plan import Plan


def read_plan(source: str | os.PathLike[str] | BinaryIO) -> Plan:
    """Read a plan from the file that `Plan.save` wrote.

    Parameters
    ----------
    source : str, os.PathLike or binary stream

    Raises
    ------
    InputError
        A file that cannot be opened.
    FormatError
        A file that holds no plan, or a damaged one; the message names the file.

    Examples
    --------
    >>> import io
    >>> import craftopt as co
    >>> plan = co.Plan.from_phy2log([[0, 1, 0, 2]], gpus=2)
    >>> co.read_plan(io.BytesIO(plan.to_json().encode())) == plan
    True
    """
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise InputError(f"{name}: {error.strerror}") from None
    else:
        name = str(getattr(source, "name", "stream"))
        data = source.read()
    try:
        return Plan.from_json(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise FormatError(f"{name}: this is no text; plans are JSON") from None
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from None
