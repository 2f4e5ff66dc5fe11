"""Several processes: who started them, how they find each other, and how they end together."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from dp_basicsr.distributed.collectives import all_gather
from dp_basicsr.distributed.heartbeat import PATIENCE, Heartbeat
from dp_basicsr.distributed.slurm import adopt_slurm
from dp_basicsr.errors import EXIT_RETRY, UserError

import torch
from torch import distributed
from torch.distributed import PrefixStore, Store, TCPStore, rendezvous  # type: ignore[attr-defined]

T = TypeVar("T")

TIMEOUT = 600.0  # seconds; NCCL's own default

# Seconds between two looks at whether the others have come.
POLL = 0.02

# Where this job leaves its torchrun id, so that it knows its own run again.
JOB_ID_FILE = "job_id"

_heartbeat: Heartbeat | None = None


def init_distributed(
    launcher: str,
    port: int | None = None,
    backend: str | None = None,
    timeout: float = TIMEOUT,
    *,
    cpu: bool = False,
) -> bool:
    """Join the process group, if there is one.

    Args:
        launcher: ``none``, ``pytorch`` (torchrun) or ``slurm`` (srun). Under torchrun ``none`` is taken as ``pytorch``.
        port: Of the first process under SLURM. Default: MASTER_PORT, else one that belongs to the job.
        backend: Of torch.distributed; BasicSR's files name nccl. Default: nccl with CUDA, else gloo.
        timeout: Seconds after which a process that does not come, does not answer or stays behind is given up.
        cpu: Leave the GPUs alone, if there are any (``num_gpu: 0``).

    Returns:
        True if this process is one of a group; with CUDA on the GPU of its local rank.

    Raises:
        UserError: The launcher was named but has not set its environment variables; the others do not come in time.
    """
    if launcher == "none" and not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        return False
    if not timeout > 0:
        raise UserError(f"dist_params: timeout: expected seconds > 0, got {timeout!r}")
    if launcher == "slurm":
        adopt_slurm(port)
    missing = sorted({"RANK", "WORLD_SIZE", "LOCAL_RANK"} - os.environ.keys())
    if missing:
        raise UserError(
            f"--launcher {launcher}: {', '.join(missing)} not set; start with "
            "`torchrun --nproc_per_node=N dp_basicsr/train.py -opt ...`"
        )
    on_gpu = torch.cuda.is_available() and not cpu
    if on_gpu:
        _choose_gpu()
    if not distributed.is_initialized():
        if backend is None or not on_gpu:
            backend = "nccl" if on_gpu else "gloo"
        _join(backend, timeout)
    return True


def _join(backend: str, timeout: float) -> None:
    """Form the process group, and begin to watch over each other."""
    global _heartbeat
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    later = timedelta(seconds=timeout + 2 * PATIENCE)  # than the heartbeat gives up, which can say who is lost
    try:
        store, _, _ = next(rendezvous("env://", timeout=later))
        name = _name_of_this_start(store, rank, world_size, later.total_seconds())
        own = PrefixStore(name, store)
        distributed.init_process_group(backend, store=own, rank=rank, world_size=world_size, timeout=later)
    except (RuntimeError, ValueError) as error:  # torch's DistError, and what gloo says
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"rank {rank} of {world_size}: the processes have not come together at {where}: {reason} (another program "
            "on that port? a firewall? dist_params: port is the port under SLURM, dist_params: timeout the time; with "
            f"several network cards name the shared one: {backend.upper()}_SOCKET_IFNAME=eth0)"
        ) from error
    if rank == 0 and returns_are_lost():
        print(
            "warning: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on all hosts: without, torchrun does not "
            "let a host back in that was lost",
            file=sys.stderr,
        )
    if world_size > 1:
        places = all_gather((socket.gethostname(), os.getpid()))
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        pulses = TCPStore(address, port, wait_for_workers=False, timeout=timedelta(seconds=timeout))
        _heartbeat = Heartbeat(PrefixStore(name, pulses), rank, places, timeout)


def _name_of_this_start(store: Store, rank: int, world_size: int, timeout: float) -> str:
    """A name that the processes which are starting now agree on, and no earlier ones had.

    torchrun keeps one store for all its restarts. What earlier processes have left in it would be taken for that of
    those which start now: a dead one's address, for one. So each process leaves a mark of its own. Rank 0 makes a name
    of the marks that it sees, and another one when a mark turns out to have been an earlier process'; a process agrees
    to a name that its own mark is in.

    Raises:
        DistStoreError: They have not agreed in ``timeout`` seconds.
    """
    mark, ranks = uuid.uuid4().hex, range(world_size)
    store.set(f"mark/{rank}", mark)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if rank == 0 and store.check([f"mark/{other}" for other in ranks]):
            store.set("marks", "".join(store.get(f"mark/{other}").decode() for other in ranks))
        marks = store.get("marks").decode() if store.check(["marks"]) else ""
        name = hashlib.sha256(marks.encode()).hexdigest()
        if mark in marks:
            store.set(f"{name}/agreed/{rank}", "")
            if rank == 0 and store.check([f"{name}/agreed/{other}" for other in ranks]):
                store.set(f"{name}/all", "")
            if store.check([f"{name}/all"]):
                return name
        time.sleep(POLL)
    raise distributed.DistStoreError(f"the {world_size} processes have not agreed in {timeout:g} seconds")


def returns_are_lost() -> bool:
    """Whether torchrun, on several hosts and with restarts, keeps the first round's store for all the others."""
    hosts, restarts = (int(os.environ.get(name, "0")) for name in ("GROUP_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS"))
    return hosts > 1 and restarts > 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _choose_gpu() -> None:
    """The GPU of the local rank; srun may show each task its own GPUs alone, which count from 0."""
    local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local_rank >= gpus and "LOCAL_WORLD_SIZE" in os.environ:  # torchrun shows all of them to everybody
        raise UserError(f"torchrun --nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}: there are {gpus} GPUs here")
    torch.cuda.set_device(local_rank % gpus)


def beat(iteration: int) -> None:
    """Tell the other processes, if there are any, that the training loop has its batch of this iteration."""
    if _heartbeat is not None:
        _heartbeat.beat(iteration)


@contextmanager
def in_group() -> Iterator[None]:
    """Leave the process group at the end, however it comes.

    Where one of several processes fails, all end: the error is printed once, with the process that caused it.
    """
    stopped: int | str | None = None
    try:
        yield
    except Exception as error:
        if _heartbeat is not None:
            _heartbeat.fail(error)
        raise
    except SystemExit as error:
        stopped = error.code
        raise
    finally:
        leave_distributed("" if stopped in (None, 0, EXIT_RETRY) else f"exit code {stopped}")


def leave_distributed(reason: str = "") -> None:
    """Leave the process group, if this process is in one; a ``reason`` means that the others cannot go on without."""
    global _heartbeat
    if _heartbeat is not None:
        _heartbeat.leave(reason)
        _heartbeat = None
    if distributed.is_initialized():
        distributed.destroy_process_group()


def should_resume(asked: bool, experiment: str) -> bool:
    """Whether this run goes on from its newest state: asked to, or its job was started before. Same on every process.

    torchrun counts its restarts (``--max-restarts``), but not those for a node that comes or goes, nor those before its
    own host came back: what any process knows counts, and so does the job's own folder.

    Args:
        asked: ``--auto_resume``.
        experiment: The run's folder.
    """
    return any(all_gather(asked or restarted(Path(experiment))))


def restarted(experiment: Path) -> bool:
    """Whether this process knows that its job was started before: by torchrun, or by SLURM (``--requeue``)."""
    counts = [os.environ.get(name) or "0" for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")]
    if any(count.isdecimal() and int(count) > 0 for count in counts):
        return True
    mark = experiment / JOB_ID_FILE
    return bool(job_id()) and mark.is_file() and mark.read_text(encoding="utf-8") == job_id()


def job_id() -> str:
    """torchrun's ``--rdzv-id``, the same for all rounds of a job on all its hosts; empty without."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return "" if name == "none" else name


def mark_experiment(experiment: str) -> None:
    """Leave the job's id in its experiment's folder, for :func:`should_resume`."""
    if job_id():
        Path(experiment, JOB_ID_FILE).write_text(job_id(), encoding="utf-8")
