"""Help and refused command lines do not import torch and BasicSR, which take seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dp_basicsr.utils.arguments import COMMANDS

import yaml

from tests.support.programs import ROOT, python

HEAVY = ("torch", "torchvision", "basicsr", "gradio", "matplotlib", "onnxruntime", "scipy")
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))
COMMANDS = [
    *(f"dp_basicsr/{name}.py" for name in ("train", "test", "inference")),
    *(f"scripts/{name}" for name in SCRIPTS if f"scripts/{name}" not in {c.script_path for c in COMMANDS.values()}),
    "-m dp_basicsr.webui",
    "scripts/make_lr.py",
    "-m dp_basicsr",
    *(f"-m dp_basicsr {name}" for name in COMMANDS),
    "-m benchmarks",
]

MISSING = [
    "dp_basicsr/train.py -opt no.yml",
    "dp_basicsr/test.py -opt no.yml",
    "dp_basicsr/inference.py -i no.png --model_path no.pth",
    "-m dp_basicsr.webui --model_path no.pth",
    "-m dp_basicsr data check -opt no.yml",
    "-m dp_basicsr crops no image --crop 0,0,9,9",
    "-m dp_basicsr data lmdb --input no --output o.lmdb",
    "-m dp_basicsr evaluate --gt no --bicubic",
    "-m dp_basicsr export --model_path no.pth --format pth -o o.pth",
    "-m dp_basicsr data extract --input no --output o",
    "-m dp_basicsr data lr --input no --output o",
    "-m dp_basicsr report no",
    "-m dp_basicsr features no.png",
]

# Runs files and modules as __main__, one after the other, and prints for each its code, its output, and what has been
# imported of HEAVY until then.
RUN = """
import contextlib, io, json, runpy, sys
heavy = sys.argv[1].split(",")
for command in json.loads(sys.argv[2]):
    name, *words = command
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = 0
        try:
            if name == "-m":
                sys.argv = words
                runpy.run_module(words[0], run_name="__main__", alter_sys=True)
            else:
                sys.argv = command
                runpy.run_path(name, run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code
    print(json.dumps([code, out.getvalue(), err.getvalue(), [name for name in heavy if name in sys.modules]]))
"""


def run(commands: list[str], heavy: Sequence[str] = HEAVY) -> Iterator[tuple[int, str, str, list[str]]]:
    lines = [[str(ROOT / word) if word.endswith(".py") else word for word in command.split()] for command in commands]
    return map(json.loads, python(RUN, ",".join(heavy), json.dumps(lines)).stdout.splitlines())


def test_help_imports_nothing_heavy() -> None:
    """Nor PyYAML and Pillow, which a clone that is not installed lacks: a missing package is one message."""
    asked, nothing = [f"{name} --help" for name in COMMANDS], (*HEAVY, "yaml", "PIL")
    for command, (code, out, err, heavy) in zip(COMMANDS, run(asked, nothing), strict=True):
        assert (code, heavy) == (0, []), (command, err)
        shown = f"python {command}" if command.startswith("-m dp_basicsr ") else ""
        assert out.startswith(f"usage: {shown}"), command
        # Examples keep their lines.
        assert not any(shown and shown in line[3:] for line in out.splitlines()[1:]), command


def test_a_missing_file_is_reported_before_heavy_imports() -> None:
    for command, (code, _, err, heavy) in zip(MISSING, run(MISSING), strict=True):
        assert (code, heavy) == (2, []), (command, err)
        assert err.startswith("error: "), command
        assert "no" in err, command


def test_scripts_start_in_a_clone_that_is_not_installed(tmp_path: Path) -> None:
    """GFPGAN#45; without site-packages' .pth files, of which one may name a clone."""
    packages = {"PYTHONPATH": str(Path(yaml.__file__).parents[1])}
    for script in ("make_lr", "demo"):
        command = [sys.executable, "-S", str(ROOT / f"scripts/{script}.py"), "--help"]
        assert (
            subprocess.run(command, cwd=tmp_path, env=packages, stdout=subprocess.DEVNULL, check=False).returncode == 0
        )
