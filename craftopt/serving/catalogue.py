"""Models and accelerators by name: packaged tables, and the user's own in the same form."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from craftopt.errors import FormatError, InputError, unknown
from craftopt.serving.facts import Attention, Gpu, Model

Fact = TypeVar("Fact", Model, Gpu)


def read_facts(path: str | os.PathLike[str]) -> tuple[dict[str, Model], dict[str, Gpu]]:
    """Read models and accelerators from a TOML file.

    The form is that of the packaged tables: ``[model."NAME"]`` and ``[gpu."NAME"]``, each with
    the fields of `Model` and `Gpu`; a model's ``attention`` is a table of `Attention`'s fields.

    Raises
    ------
    FormatError
        A file that is no TOML; an unknown or a missing field.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from craftopt.serving import read_facts
    >>> text = '[gpu.mine]' + chr(10) + 'memory = 8e10' + chr(10) + 'bandwidth = 2e12' + chr(10)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "facts.toml"
    ...     _ = file.write_text(text + 'flops = { bf16 = 3e14 }')
    ...     read_facts(file)[1]["mine"].memory
    80000000000.0
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"cannot read {path}: {error}") from None
    return _parse(text, str(path))


@cache
def known_models() -> dict[str, Model]:
    """Return the packaged models by name."""
    return _parse(_packaged("models.toml"), "models.toml")[0]


@cache
def known_gpus() -> dict[str, Gpu]:
    """Return the packaged accelerators by name."""
    return _parse(_packaged("gpus.toml"), "gpus.toml")[1]


def find_model(name: str, own: Mapping[str, Model] | None = None) -> Model:
    """Look a model up by name, in any case; the start of one name is enough.

    Parameters
    ----------
    name : str
    own : mapping of str to Model, optional
        Models that come before the packaged ones, as `read_facts` returns them.

    Raises
    ------
    InputError
        A name that no model has, or the start of several; the message names the nearest.

    Examples
    --------
    >>> from craftopt.serving import find_model
    >>> find_model("GLM-5.2").moe_layers, find_model("kimi-k2").name
    (75, 'Kimi-K2-Instruct')
    """
    return _find("model", name, {**known_models(), **(own or {})})


def find_gpu(name: str, own: Mapping[str, Gpu] | None = None) -> Gpu:
    """Look an accelerator up by name, as `find_model` does."""
    return _find("gpu", name, {**known_gpus(), **(own or {})})


def _find(what: str, name: str, known: Mapping[str, Fact]) -> Fact:
    wanted = _plain(name)
    by_name: dict[str, Fact] = {}
    for entry in known.values():
        by_name[_plain(entry.name)] = entry
        for alias in entry.aliases:
            by_name[_plain(alias)] = entry
    if wanted in by_name:
        return by_name[wanted]
    starts = {fact.name: fact for plain, fact in by_name.items() if plain.startswith(wanted)}
    if wanted and len(starts) == 1:
        return next(iter(starts.values()))
    if wanted and starts:
        raise InputError(f"{what}={name!r} could be {', '.join(starts)}; pass one of them")
    raise unknown(what, name, known, cutoff=0.3)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", str(name).lower())


def _packaged(name: str) -> str:
    return (resources.files("craftopt") / "data" / name).read_text(encoding="utf-8")


def _parse(text: str, source: str) -> tuple[dict[str, Model], dict[str, Gpu]]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"{source} is no TOML: {error}") from None
    extra = set(document) - {"model", "gpu"}
    if extra or not document:
        raise FormatError(
            f"{source} holds {', '.join(sorted(extra)) or 'nothing'}; it takes tables like "
            '[model."NAME"] and [gpu."NAME"]'
        )
    models = {}
    for name, entry in _tables(document, "model", source):
        given = dict(entry)
        if isinstance(given.get("attention"), dict):
            given["attention"] = _make(Attention, given["attention"], f"{source}, model {name}")
        models[name] = _make(Model, {"name": name, **given}, f"{source}, model {name}")
    gpus = {
        name: _make(Gpu, {"name": name, **entry}, f"{source}, gpu {name}")
        for name, entry in _tables(document, "gpu", source)
    }
    return models, gpus


def _tables(document: dict[str, Any], kind: str, source: str) -> list[tuple[str, dict[str, Any]]]:
    tables = document.get(kind, {})
    if not isinstance(tables, dict) or not all(isinstance(row, dict) for row in tables.values()):
        raise FormatError(f'{source}: {kind} must be tables like [{kind}."NAME"]')
    return list(tables.items())


Made = TypeVar("Made")


def _make(kind: type[Made], given: dict[str, Any], where: str) -> Made:
    hints = get_type_hints(kind)
    for name in sorted(set(given) - set(hints)):
        raise FormatError(f"{where}: {unknown('field', name, hints)}")
    known = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    values = {}
    for name, value in given.items():
        values[name] = tuple(value) if isinstance(value, list) else value
        kinds = (int, float) if "float" in str(known[name].type) else (int,)
        if str(known[name].type).startswith(("int", "float")) and (
            isinstance(value, bool) or not isinstance(value, kinds)
        ):
            raise FormatError(f"{where}: {name}={value!r} is no number of the kind it needs")
    try:
        return kind(**values)
    except TypeError as error:
        missing = str(error).rpartition(": ")[2]
        raise FormatError(f"{where}: missing {missing}") from None
