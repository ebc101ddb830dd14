"""Imports go one way, solvers stay optional, and importing the package costs nothing."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import craftopt

PACKAGE = Path(craftopt.__file__).parent
FORMULATIONS = PACKAGE.parent / "formulations" / "craftopt_formulations"

# A module may import only from lines below its own, and freely within its own package folder.
RANKING = (
    {"__main__"},
    {"cli"},
    {"reporting"},
    {"diagnosis"},
    {"online", "replaying", "serving", "engines", "certificates"},
    {"proving"},
    {"formats"},
    {"comparing", "bench_exact"},
    {"solving"},
    {"rebalancing"},
    {"planners", "baselines"},
    {"search"},
    {"result"},
    {"bounds", "compiling"},
    {"knapsack", "heap"},
    {"comparison"},
    {"evaluation", "rules"},
    {"traffic"},
    {"routing"},
    {"verification"},
    {"problem"},
    {"objective"},
    {"plan"},
    {"slot_tables"},
    {"recordings"},
    {"windows", "kinds"},
    {"datasets"},
    {"traces"},
    {"coactivation", "links"},
    {"portable"},
    {"loads"},
    {"executors"},
    {"jit"},
    {"documents", "display"},
    {"errors"},
)
RANK = {name: rank for rank, names in enumerate(RANKING) for name in names}
DATA_TYPES = {
    "coactivation",
    "documents",
    "errors",
    "links",
    "loads",
    "objective",
    "plan",
    "problem",
    "slot_tables",
    "traces",
}
OPTIONAL = {"ortools", "pulp", "networkx", "torch", "dask"}


def imported(file: Path, package: Path) -> set[str]:
    """List the modules that a file imports anywhere, in dotted names."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if file == PACKAGE / "__init__.py":  # its names are loaded on first use, by strings
        tree.body = [node for node in tree.body if not _is_type_checking(node)]
    parts = (package.name, *file.relative_to(package).with_suffix("").parts)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*parts[: -node.level], *([base] if base else [])])
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def _is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def own_modules(names: set[str]) -> set[str]:
    """Return the modules or folders of craftopt, by their first name, among dotted names."""
    return {[*name.split("."), "__init__"][1] for name in names if name.split(".")[0] == "craftopt"}


def sources(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def names(files: list[Path]) -> list[str]:
    return [file.relative_to(PACKAGE.parent).as_posix() for file in files]


each_file = pytest.mark.parametrize("file", sources(PACKAGE), ids=names(sources(PACKAGE)))
each_formulation = pytest.mark.parametrize(
    "file", sources(FORMULATIONS), ids=names(sources(FORMULATIONS))
)


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


@each_file
def test_imports_go_one_way(file):
    part = part_of(file)
    own = own_modules(imported(file, PACKAGE))
    if part == "__init__":
        assert own <= {"__init__"}, f"craftopt/__init__.py loads {own} before they are used"
        return
    assert part in RANK, f"give {part} a rank in this test and in DESIGN.md"
    if part == "cli":  # the one user of the public names, like anyone outside
        own.discard("__init__")
    assert own - {part} <= set(RANK), f"{file.name} imports {own - {part} - set(RANK)}"
    wrong = {name for name in own - {part} if RANK[name] <= RANK[part]}
    assert not wrong, f"{part} may not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("file", sources(PACKAGE / "verification"), ids=lambda file: file.name)
def test_verification_shares_no_arithmetic_with_what_it_verifies(file):
    allowed = {"display", "documents", "errors", "loads", "plan", "problem", "verification"}
    assert own_modules(imported(file, PACKAGE)) <= allowed


@pytest.mark.parametrize("file", sources(PACKAGE / "formats"), ids=lambda file: file.name)
def test_formats_need_the_data_types_alone(file):
    assert own_modules(imported(file, PACKAGE)) <= DATA_TYPES | {"formats"}


@each_file
def test_no_solver_is_imported(file):
    roots = {name.split(".")[0] for name in imported(file, PACKAGE)}
    assert not roots & (OPTIONAL | {"craftopt_formulations"})


@each_formulation
def test_formulations_need_the_data_types_bounds_and_evaluation_alone(file):
    own = own_modules(imported(file, FORMULATIONS))
    # Result is a data type, too: exact methods return its Outcome.
    allowed = DATA_TYPES | {"result", "bounds", "evaluation", "jit", "rules"}
    if file.name in ("exact.py", "_layers.py", "_search.py"):  # it starts from the fast path
        allowed |= {"planners", "search", "knapsack"}
    if file.name == "refuting.py":  # it proves the claim that is checked there
        allowed |= {"verification"}
    assert own <= allowed


def test_the_reader_of_imports_sees_every_kind(tmp_path):
    package = tmp_path / "craftopt"
    (package / "search").mkdir(parents=True)
    file = package / "search" / "swaps.py"
    file.write_text(
        "import craftopt.solving\n"
        "from . import moves\n"
        "from .. import cli\n"
        "from ..reporting import plots\n"
        "from craftopt import Plan, online\n"
        "def late():\n    import pulp\n    from ortools.sat import cp_model\n"
        "if TYPE_CHECKING:\n    from craftopt.serving import advise\n"
    )
    found = imported(file, package)
    assert found == {
        "craftopt.solving",
        "craftopt.search.moves",
        "craftopt.cli",
        "craftopt.reporting.plots",
        "craftopt.Plan",
        "craftopt.online",
        "pulp",
        "ortools.sat.cp_model",
        "craftopt.serving.advise",
    }
    assert own_modules(found) >= {
        "solving",
        "search",
        "cli",
        "reporting",
        "Plan",
        "online",
        "serving",
    }


# --- importing the package ------------------------------------------------------------------


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


# Engines load plugins in every process, whether their switch is set or not.
@pytest.mark.parametrize("name", ["craftopt", "craftopt.engines.sglang", "craftopt.engines.vllm"])
def test_importing_the_package_or_a_plugin_loads_nothing_heavy(name):
    loaded = set(json.loads(run(f"import sys, json, {name}; print(json.dumps(list(sys.modules)))")))
    heavy = {"numba", "scipy", "matplotlib", "typer", "rich"} | OPTIONAL
    assert not loaded & heavy


def test_planning_loads_nothing_that_takes_long_and_is_not_needed():
    code = (
        "import json, sys, craftopt as co\n"
        "problem = co.Problem(co.load_example('olmoe-1b-7b'), gpus=8, replicas=24)\n"
        "co.solve(problem, 'fast', work_limit=1)\n"
        "print(json.dumps(list(sys.modules)))"
    )
    heavy = {"scipy.optimize", "scipy.special", "scipy.interpolate"} | OPTIONAL
    assert not set(json.loads(run(code))) & heavy
