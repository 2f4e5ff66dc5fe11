"""The set-up files: the Makefile's guards, the installation of BasicSR, and the commands that CI runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import dp_basicsr
from dp_basicsr import get_basicsr

import pytest
import yaml

from tests.support.programs import ROOT, python

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def run_make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make on the project's Makefile as a user would, whatever make started the tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PYTHON"))}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def shim(tmp_path: Path) -> Path:
    """The folder that get_basicsr.py puts on the path of BasicSR's build."""
    folder = tmp_path / "shim"
    folder.mkdir()
    shutil.copyfile(get_basicsr.__file__, folder / "sitecustomize.py")
    return folder


def printed(code: str, *python_path: Path) -> str:
    """What ``code`` prints in a Python with these folders on PYTHONPATH."""
    return python(code, env={"PYTHONPATH": os.pathsep.join(map(str, python_path))}).stdout


def test_a_clone_by_git_for_windows_has_the_line_ends_of_linux() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a clone")
    listed = subprocess.run(
        ["git", "ls-files", "--eol"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    ).stdout
    # Of each file: its line ends in the repository and here, its attributes, its name.
    files = [line.split(maxsplit=2) for line in listed.splitlines()]
    assert len(files) > 300
    assert all("eol=lf" in rest for stored, _, rest in files if stored != "i/-text")


@needs_make
def test_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    assert targets is not None
    listed = re.findall(r"^  make ([\w-]+)\t", run_make("help").stdout, flags=re.MULTILINE)
    assert sorted(listed) == sorted(targets.group(1).split())


@needs_make
@pytest.mark.parametrize(
    ("target", "extra", "command"),
    [("demo", "demo", "scripts/demo.py"), ("docs", "docs", "-m mkdocs"), ("lint", "lint", "-m mypy"),
     ("test", "dev", "-m pytest")],
)  # fmt: skip
def test_every_target_first_installs_what_it_needs(target: str, extra: str, command: str, tmp_path: Path) -> None:
    commands = run_make("--dry-run", target, f"VENV={tmp_path / 'venv'}").stdout
    installs = re.findall(r"--editable '\.\[(\w+)\]'", commands)
    assert installs == [extra]
    steps = ["-m pip install torch torchvision", f"'.[{extra}]'", f".{extra}-done", command]
    assert [commands.index(step) for step in steps] == sorted(commands.index(step) for step in steps)
    assert ("get_basicsr.py" in commands) == (extra in ("demo", "dev"))


@needs_make
def test_torch_index_reaches_the_torch_install_only(tmp_path: Path) -> None:
    url = "https://example.org/whl"
    commands = run_make("--dry-run", "setup", f"VENV={tmp_path / 'venv'}", f"TORCH_INDEX={url}").stdout
    assert commands.count(url) == 1
    assert f"index='{url}'" in commands


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@needs_make
def test_an_old_python_is_refused_and_setup_is_not_marked_done(tmp_path: Path) -> None:
    pretend = "import sys; sys.version_info = (3, 9); sys.version = '3.9.18 x'"
    old_python = program(tmp_path / "python3.9", f'exec {sys.executable} -c "{pretend}; $2"')
    venv = tmp_path / "venv"
    result = run_make("setup", f"PYTHON={old_python}", f"VENV={venv}")
    assert result.returncode != 0
    assert f"Python 3.10 or newer is needed, {old_python} is 3.9.18" in result.stderr
    assert not venv.exists()


@needs_make
def test_an_interrupted_setup_is_not_marked_done(tmp_path: Path) -> None:
    """A stale environment whose pip fails half-way: the earlier set-up's mark stays older than its sources."""
    venv = tmp_path / "venv"
    program(venv / "bin/python", 'test "$3" = --version')
    done = venv / ".setup-done"
    done.touch()
    os.utime(done, (0, 0))
    assert run_make("setup", f"VENV={venv}").returncode != 0
    assert done.stat().st_mtime == 0
    assert [path.name for path in venv.glob(".*-done")] == [done.name]


@needs_make
def test_clean_removes_no_folder_that_is_not_an_environment(tmp_path: Path) -> None:
    commands = run_make("--dry-run", "clean", f"VENV={tmp_path}").stdout.splitlines()
    subprocess.run(["sh", "-c", commands[0]], check=True)
    assert tmp_path.exists()


BARE_EXEC_IN_A_FUNCTION = """
def version():
    exec(compile("__version__ = '1.4.2'", "version.py", "exec"))
    return locals()["__version__"]
print(version())
"""


def test_shim_lets_a_bare_exec_write_into_a_function(shim: Path) -> None:
    assert printed(BARE_EXEC_IN_A_FUNCTION, shim) == "1.4.2\n"


@pytest.mark.skipif(sys.version_info < (3, 13), reason="exec reaches locals() before Python 3.13")
def test_without_the_shim_exec_is_pythons_own() -> None:
    assert "KeyError: '__version__'" in python(BARE_EXEC_IN_A_FUNCTION, check=False).stderr


def test_shim_leaves_every_other_exec_as_it_is(shim: Path) -> None:
    code = """
def run():
    here = 1
    given = {}
    exec("a = 1", given)
    both = {}
    exec("b = 2", {}, both)
    nothing_global = {}
    exec("c = here + 2", None, nothing_global | {"here": here})
    try:
        exec("raise RuntimeError('seen')")
    except RuntimeError as error:
        print(given["a"], both, error)
run()
exec("d = 4")
print(d)
"""
    assert printed(code, shim) == printed(code) == "1 {'b': 2} seen\n4\n"


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="that is what the shim is for")
def test_shim_does_nothing_before_python_313(shim: Path) -> None:
    assert printed("print(type(exec).__name__)", shim) == "builtin_function_or_method\n"


def test_shim_still_runs_the_machines_own_sitecustomize(shim: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('company certificates installed')\n")
    assert printed("print('ready')", shim, tmp_path) == "company certificates installed\nready\n"


def test_basicsr_is_installed_into_the_running_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shim is on the path of its build, and of no other step; a failing step ends it."""
    calls: list[tuple[list[str], str]] = []
    codes = iter((0, 0, 0, 0, 7))

    def run(command: list[str], env: dict[str, str], check: bool) -> subprocess.CompletedProcess[str]:
        calls.append((command, env.get("PYTHONPATH", "")))
        return subprocess.CompletedProcess(command, next(codes))

    monkeypatch.setenv("PYTHONPATH", "mine")
    monkeypatch.setattr(subprocess, "run", run)
    assert get_basicsr.main() == 0
    assert all(command[:4] == [sys.executable, "-m", "pip", "install"] for command, _ in calls)
    without_dependencies = [("--no-deps" in command, path != "mine") for command, path in calls]
    assert without_dependencies == [(False, False), (True, True), (False, False)]
    assert calls[1][1].endswith(f"{os.pathsep}mine")
    assert get_basicsr.main() == 7
    assert len(calls) == 5


def test_help_of_get_basicsr_installs_nothing() -> None:
    done = subprocess.run([sys.executable, get_basicsr.__file__, "--help"], capture_output=True, text=True, check=True)
    assert "Install BasicSR" in done.stdout
    assert "Requirement" not in done.stdout


def test_citation_and_changelog_name_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == dp_basicsr.__version__
    assert f"\n## [{dp_basicsr.__version__}] - " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation["preferred-citation"]["title"].startswith("Dual Perceptual Loss")


def test_ci_and_pre_commit_run_the_makefile_s_commands() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["check"]
    assert job["strategy"]["matrix"]["python"] == ["3.10", "3.13"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci/run", os.X_OK)
    wheel = workflow["jobs"]["wheel"]["strategy"]["matrix"]
    assert wheel["python"] == [f"3.{minor}" for minor in range(10, 15)]
    assert {entry["os"] for entry in wheel["include"]} == {"windows-latest", "macos-latest"}
    release = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8"))["jobs"]
    assert release["test"]["uses"] == "./.github/workflows/ci.yml"
    assert release["publish"]["permissions"] == {"id-token": "write"}, "trusted publishing"
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == ["make lint"]


def test_pytest_does_not_take_the_test_command_for_a_test() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "--noconftest", "--rootdir", str(ROOT), "dp_basicsr"]
    collected = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert "no tests collected" in collected.stdout
