"""The public names: listed once, all there, and no module in the place of a function."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

import craftopt as co
from craftopt.objective import OBJECTIVES
from craftopt.solving import METHODS

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(co.__path__, "craftopt.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", co.__all__)
def test_every_public_name_is_there_and_is_what_its_home_calls_so(name):
    value = getattr(co, name)
    home = co._HOMES[name]
    assert value is getattr(importlib.import_module(home), name)
    assert isinstance(value, ModuleType) == (name == "eplb")


def test_dir_shows_the_public_names_alone():
    assert dir(co) == sorted(co.__all__)


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = co.nothing


def test_no_module_has_the_name_of_a_public_function():
    assert {name.split(".")[1] for name in MODULES} & set(co.__all__) == set()


def test_functions_stay_functions_whatever_is_imported():
    """In a process of its own, before and after every module was imported."""
    code = (
        "import importlib, sys, types\n"
        "import craftopt as co\n"
        "before = {name: getattr(co, name) for name in co.__all__[::2]}\n"
        f"for module in {MODULES}:\n"
        "    importlib.import_module(module)\n"
        "assert all(getattr(co, name) is value for name, value in before.items())\n"
        "wrong = [n for n in co.__all__ if isinstance(getattr(co, n), types.ModuleType)]\n"
        "assert wrong == ['eplb'], wrong\n"
        "co.methods(), co.example_names()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_stub_lists_one_name_a_line():
    lines = Path(co.__file__).with_suffix(".pyi").read_text().splitlines()
    names = [line.split() for line in lines if line.startswith("from ")]
    assert all(words[0::2] == ["from", "import", "as"] or words[3] == words[5] for words in names)
    assert [words[5] for words in names if words[5] not in co.__all__] == []


def test_the_types_of_names_list_what_there_is():
    assert get_args(co.MethodName) == tuple(METHODS)
    assert get_args(co.ObjectiveName) == tuple(OBJECTIVES)
