"""Help and refused command lines do not import torch and BasicSR, which take seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from dp_basicsr.utils.arguments import COMMANDS

import pytest

ROOT = Path(__file__).resolve().parents[1]
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

# Runs a file or a module as __main__ and prints what it has imported of HEAVY.
RUN = """
import runpy, sys
heavy = sys.argv.pop(1).split(",")
try:
    name = sys.argv.pop(1)
    if name == "-m":
        runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
    else:
        sys.argv[0] = name
        runpy.run_path(name, run_name="__main__")
except SystemExit as stopped:
    print("imported:", *(name for name in heavy if name in sys.modules))
    sys.exit(stopped.code)
"""


def run(command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [str(ROOT / word) if word.endswith(".py") else word for word in command.split()]
    line = [sys.executable, "-c", RUN, ",".join(HEAVY), *words]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command: str) -> None:
    done = run(f"{command} --help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    assert done.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize(
    "command",
    [
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
    ],
)
def test_a_missing_file_is_reported_before_heavy_imports(command: str) -> None:
    done = run(command)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert "no" in done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"
