"""Help and refused command lines do not import torch and BasicSR, which take seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from dp_basicsr.metrics import METRICS

import pytest

from scripts import evaluate

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "torchvision", "basicsr", "gradio", "matplotlib", "onnxruntime", "scipy")
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))
COMMANDS = [
    *(f"dp_basicsr/{name}.py" for name in ("train", "test", "inference")),
    *(f"scripts/{name}" for name in SCRIPTS),
    "-m dp_basicsr.webui",
    "-m scripts.bench",
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
        "scripts/check_dataset.py -opt no.yml",
        "scripts/compare_crops.py no image --crop 0,0,9,9",
        "scripts/create_lmdb.py --input no --output o.lmdb",
        "scripts/evaluate.py --gt no --bicubic",
        "scripts/export_model.py --model_path no.pth --format pth -o o.pth",
        "scripts/extract_subimages.py --input no --output o",
        "scripts/make_lr.py --input no --output o",
        "scripts/make_report.py no",
        "scripts/plot_features.py no.png",
    ],
)
def test_a_missing_file_is_reported_before_heavy_imports(command: str) -> None:
    done = run(command)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert "no" in done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"


def test_evaluate_offers_all_metrics() -> None:
    assert tuple(METRICS) == evaluate.METRICS
