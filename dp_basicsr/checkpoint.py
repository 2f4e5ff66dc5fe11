"""What a run leaves, and what it starts or goes on from."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

from dp_basicsr.errors import UserError

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
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be saved ({reason}); make room, then go on with --auto_resume") from error


def find_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    """Read the training state that this run resumes from, and point its networks to the same iteration.

    ``--auto_resume`` takes the newest in the run's folder, otherwise ``path: resume_state`` names it.

    Returns:
        BasicSR's state (``iter``, ``epoch``, ``optimizers``, ``schedulers``) on the CPU, or None for a new run.

    Raises:
        UserError: The state is not there or cannot be read.
    """
    if opt["auto_resume"]:
        states = sorted(Path(opt["path"]["training_states"]).glob("*.state"), key=lambda path: int(path.stem))
        if states:
            opt["path"]["resume_state"] = str(states[-1])
    path = opt["path"].get("resume_state")
    if path is None:
        return None
    state = read_state(Path(path))
    check_resume(opt, state["iter"])
    return state


def read_state(path: Path) -> dict[str, Any]:
    """Read a training state without running code from it.

    Raises:
        UserError: No such file, damaged, or with more in it than a training state has.
    """
    try:
        with torch.serialization.safe_globals([Counter]):  # MultiStepRestartLR keeps its milestones in one
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"training state {path} cannot be read: {str(error).splitlines()[0]}") from error


def require_networks(opt: dict[str, Any]) -> None:
    """Refuse to start where a network that the options name is not there (UserError)."""
    for key, path in opt["path"].items():
        if key.startswith("pretrain_network") and path is not None and not Path(path).is_file():
            raise UserError(f"path: {key}: no such file: {path}")
