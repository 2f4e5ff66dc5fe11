"""Several processes: who started them, and how they find each other."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from typing import Any, TypeVar

from dp_basicsr.errors import UserError

import torch
from torch import distributed

T = TypeVar("T")

DEFAULT_PORT = 29500  # torch.distributed's own default


def init_distributed(launcher: str, port: int | None = None, backend: str | None = None) -> bool:
    """Join the process group, if there is one.

    Args:
        launcher: ``none``, ``pytorch`` (torchrun) or ``slurm`` (srun). Under torchrun ``none`` is taken as ``pytorch``.
        port: Of the first process under SLURM. Default: MASTER_PORT, else 29500.
        backend: Of torch.distributed; BasicSR's files name nccl. Default: nccl with CUDA, else gloo.

    Returns:
        True if this process is one of a group; with CUDA on the GPU of its local rank.

    Raises:
        UserError: The launcher was named but has not set its environment variables.
    """
    if launcher == "none" and not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        return False
    if launcher == "slurm":
        _take_over_slurm(port)
    missing = sorted({"RANK", "WORLD_SIZE", "LOCAL_RANK"} - os.environ.keys())
    if missing:
        raise UserError(
            f"--launcher {launcher}: {', '.join(missing)} not set; start with "
            "`torchrun --nproc_per_node=N dp_basicsr/train.py -opt ...`"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    if not distributed.is_initialized():
        if backend == "nccl" and not torch.cuda.is_available():
            backend = None
        distributed.init_process_group(backend or ("nccl" if torch.cuda.is_available() else "gloo"))
    return True


def agree_on(value: T) -> T:
    """Rank 0's value, on every process."""
    if not distributed.is_initialized():
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def on_rank_0(function: Callable[[], T]) -> T:
    """Call a function on rank 0 alone; every process gets what it returns, or its UserError."""
    outcome: tuple[Any, UserError | None] = (None, None)
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        try:
            outcome = (function(), None)
        except UserError as error:
            outcome = (None, error)
    value, failure = agree_on(outcome)
    if failure is not None:
        raise failure
    return value


def leave_distributed() -> None:
    """Leave the process group, if this process is in one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _take_over_slurm(port: int | None) -> None:
    """Translate srun's variables into those that torch.distributed reads."""
    names = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
    missing = sorted({*names.values(), "SLURM_NODELIST"} - os.environ.keys())
    if missing:
        raise UserError(f"--launcher slurm: {', '.join(missing)} not set; start with srun")
    os.environ |= {name: os.environ[slurm] for name, slurm in names.items()}
    nodes = ["scontrol", "show", "hostnames", os.environ["SLURM_NODELIST"]]
    try:
        os.environ["MASTER_ADDR"] = subprocess.run(nodes, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise UserError(f"--launcher slurm: `{' '.join(nodes)}` does not name the first host ({error})") from error
    if port is not None:
        os.environ["MASTER_PORT"] = str(port)
    os.environ.setdefault("MASTER_PORT", str(DEFAULT_PORT))
