"""What a run leaves, and what it starts or goes on from."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.loading import load

import torch
from basicsr.utils import check_resume


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a file that is there whole or not at all: beside its place, onto the disk, then renamed.

    Raises:
        UserError: It cannot be written (disk full, no permission). What was at ``path`` before is still there.
    """
    beside = path.with_name(f"{path.name}.partial")
    try:
        with beside.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        beside.unlink(missing_ok=True)
        raise UserError(
            f"{path} cannot be saved ({first_line(error)}); mend that and go on with --auto_resume"
        ) from error


def find_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    """Read the training state that this run resumes from, and point its networks to the same iteration.

    ``--auto_resume`` takes the newest in the run's folder, otherwise ``path: resume_state`` names it.

    Returns:
        BasicSR's state (``iter``, ``epoch``, ``optimizers``, ``schedulers``) on the CPU, or None for a new run.

    Raises:
        UserError: The state is not there or cannot be read.
    """
    if opt["auto_resume"]:
        states = [path for path in Path(opt["path"]["training_states"]).glob("*.state") if path.stem.isdecimal()]
        if states:
            opt["path"]["resume_state"] = str(max(states, key=lambda path: int(path.stem)))
    path = opt["path"].get("resume_state")
    if path is None:
        return None
    state = read_state(Path(path))
    check_resume(opt, state["iter"])
    require_networks(opt)
    return state


def read_state(path: Path) -> dict[str, Any]:
    """Read a training state without running code from it.

    Raises:
        UserError: No such file, damaged, or with more in it than a training state has.
    """
    advice = "name an earlier one by path:resume_state"
    state = load(path, "training state", advice, allowed=[Counter])  # MultiStepRestartLR keeps its milestones in one
    if not isinstance(state, dict) or "iter" not in state:
        raise UserError(f"{path} is no training state; they are called training_states/<iteration>.state")
    return state


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return str(error).partition("\n")[0] or type(error).__name__


def require_networks(opt: dict[str, Any]) -> None:
    """Refuse to start where a network that the options name is not there or cannot be read (UserError)."""
    for key, path in opt["path"].items():
        if not key.startswith("pretrain_network") or path is None:
            continue
        if not Path(path).is_file():
            raise UserError(f"path: {key}: no such file: {path}")
        load(path, f"path: {key}:", map_location="meta")
