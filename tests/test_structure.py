"""The layout of the package: its folders, and the direction of imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import dp_basicsr

PACKAGE = Path(dp_basicsr.__file__).parent

# From the ground up. A folder imports from lower levels, and within its level in one direction only.
LEVELS = (
    {"__init__", "compat", "errors", "get_basicsr", "registration", "streams"},
    {"distributed"},
    {"utils"},
    {"images", "options"},
    {"archs", "checkpoint", "data"},
    {"losses", "metrics"},
    {"evaluation", "models"},
    {"checks", "deploy", "report", "runs", "studies"},
    {"inference", "test", "train", "webui"},
    {"__main__", "commands"},
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
ROOT_MODULES = LEVELS[0] | LEVELS[-2] | {"__main__"}


@cache
def imported_files(path: Path) -> set[Path]:
    """Files of the package that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: expected an absolute import, got a relative one"
            names.update((str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)))
    bases = [PACKAGE.parent.joinpath(*name.split(".")) for name in names if name.split(".")[0] == PACKAGE.name]
    candidates = {file for base in bases for file in (base.with_suffix(".py"), base / "__init__.py")}
    return {file for file in candidates if file.is_file()} - {path}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def folder_of(path: Path) -> str:
    """The folder of a file; each module at the root counts as a folder."""
    return path.stem if path.parent == PACKAGE else path.parent.relative_to(PACKAGE).as_posix()


def test_every_module_is_in_a_package() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == ROOT_MODULES
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(LEVEL_OF) - ROOT_MODULES


def test_imports_point_down() -> None:
    upwards = [
        f"{path.relative_to(PACKAGE)} imports {target.relative_to(PACKAGE)}"
        for path in PACKAGE.rglob("*.py")
        for target in imported_files(path)
        if LEVEL_OF[room_of(target)] > LEVEL_OF[room_of(path)]
    ]
    assert upwards == []


def test_text_is_utf8_under_every_locale() -> None:
    """Each file is opened with its encoding; the same command is in ``make lint``."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--preview", "--select", "PLW1514"]
    command += [str(PACKAGE.parent / folder) for folder in ("dp_basicsr", "scripts", "benchmarks", "examples")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_test_modules_share_helpers_through_support_alone() -> None:
    """Not through another test module or a conftest: helpers stand in tests/support, fixtures come by their name."""
    tests = PACKAGE.parent / "tests"
    shared = [
        f"{path.relative_to(tests)} imports {name}"
        for path in tests.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if name.startswith("tests") and name.split(".")[-1].startswith(("test_", "conftest"))
    ]
    assert shared == []


def test_no_import_cycles_between_folders() -> None:
    graph: defaultdict[str, set[str]] = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        graph[folder_of(path)] |= {folder_of(target) for target in imported_files(path)} - {folder_of(path)}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the folders
