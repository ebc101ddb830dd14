"""Groups of options that several commands share, and what holds for the arguments of all."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from craftopt.errors import InputError


def grouped(
    name: str, options: Mapping[str, tuple[Any, Any]], make: Callable[..., Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give commands a group of options, and one argument called ``name`` made of them.

    Parameters
    ----------
    name : str
    options : mapping
        Type and `typer.Option` by name; None by default.
    make : callable
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            given = {option: arguments.pop(option) for option in options}
            _keep_inputs(command.__name__, arguments | given)
            command(**{name: make(**given)}, **arguments)

        keyword = inspect.Parameter.KEYWORD_ONLY
        signature = inspect.signature(command, eval_str=True)
        parameters = [one for one in signature.parameters.values() if one.name != name]
        names = [one.name for one in parameters]
        at = names.index("as_json") if "as_json" in names else len(names)
        parameters[at:at] = [
            inspect.Parameter(option, keyword, default=None, annotation=Annotated[kind, said])
            for option, (kind, said) in options.items()
        ]
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[one.replace(kind=keyword) for one in parameters]
        )
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def is_there(name: str | Path) -> bool:
    """Say whether there is such a file; there is none of a name too long for one."""
    try:
        return Path(name).exists()
    except OSError:
        return False


def _keep_inputs(command: str, arguments: Mapping[str, Any]) -> None:
    """Refuse to write over what is read; `rebalance` may write over the plan it makes anew."""
    for name in ("output", "steps"):
        target = arguments.get(name)
        for read in ("plan", "loads", "trace", "coactivation", "to"):
            source = arguments.get(read)
            if not target or not source or (command, read) == ("rebalance", "plan"):
                continue
            if is_there(source) and is_there(target) and Path(source).samefile(target):
                raise InputError(f"{target} is what {command} reads; name another file to write")
