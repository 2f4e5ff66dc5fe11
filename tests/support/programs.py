"""Running the programs, and reading what they leave."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.support.processes import processes_in

ROOT = Path(__file__).resolve().parents[2]

Program = Callable[[list[str]], int | None]


def code_of(main: Program, argv: Sequence[object]) -> int:
    """Run a program in this process; its log goes to this test's stderr. Returns the exit code."""
    log = logging.getLogger("basicsr")
    for handler in [*log.handlers]:
        if type(handler) is logging.StreamHandler:
            handler.stream = sys.stderr
        if isinstance(handler, logging.FileHandler):  # of a program before, which a new process would not have
            log.removeHandler(handler)
            with contextlib.suppress(OSError):  # of a full disk
                handler.close()
    try:
        return main([str(word) for word in argv]) or 0
    except SystemExit as stopped:
        return int(stopped.code or 0)


def python(code: str, *arguments: object, check: bool = True, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run code in a new Python that finds the package in any folder; ``check``: it must succeed.

    Args:
        code: As after ``python -c``.
        arguments: ``sys.argv[1:]``.
        check: Whether another exit code than 0 is a failure of the test.
        settings: ``env`` is added to this process's environment; others are those of ``subprocess.run``.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings.pop("env", {})}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    defaults: dict[str, Any] = {"capture_output": True, "encoding": "utf-8", "timeout": 300}
    done = subprocess.run(command, env=environment, check=False, **defaults | settings)
    assert done.returncode == 0 or not check, (done.stdout, done.stderr)
    return done


def logs_of(name: str = "small") -> str:
    """The log files of a run, in the order of their starts."""
    return "".join(path.read_text(encoding="utf-8") for path in sorted(Path("experiments", name).glob("*.log")))


def run(*command: str, processes: int = 0) -> tuple[int | None, str]:
    """Run one of the programs in processes of its own, with torchrun's variables if ``processes``.

    Returns:
        The first process' exit code and output.
    """
    line = [str(ROOT / "dp_basicsr" / command[0]), *command[1:]]
    with processes_in(Path.cwd()) as started:
        if processes:
            started.start(*[line] * processes)
        else:
            started.start(line, OMP_NUM_THREADS="1")
        codes, outputs = started.ends(*range(max(processes, 1)), limit=300)
    assert len(set(codes)) == 1, outputs
    return codes[0], outputs[0]


def run_well(*command: str, processes: int = 0) -> str:
    code, output = run(*command, processes=processes)
    assert code == 0, output
    return output


def losses_of(log: str) -> dict[int, str]:
    """The losses of each iteration, as printed."""
    return {int(number): losses for number, losses in re.findall(r"iter:\s+(\d+),.*?(l_g_pix:.*)", log)}


def difference(one: Any, other: Any, path: str = "all") -> str | None:
    """The path of the first difference between two nested structures, in type or bits."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    elif type(one) is not type(other) or not isinstance(one, dict | list | tuple):
        same = one == other
    else:
        parts, others = (dict(x.items() if isinstance(x, dict) else enumerate(x)) for x in (one, other))
        if same := parts.keys() == others.keys():
            return next(filter(None, (difference(parts[key], others[key], f"{path}/{key}") for key in parts)), None)
    return None if same else path


def same_weights(one: Path, other: Path) -> bool:
    return difference(*(torch.load(path, weights_only=True) for path in (one, other))) is None


def main_of(name: str) -> Program:
    """The ``main`` of a file in dp_basicsr/ or scripts/."""
    path = ROOT / "dp_basicsr" / name if name.endswith(".py") else ROOT / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"program_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.main
