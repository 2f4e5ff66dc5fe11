"""Join and leave the process group, and decide whether a restarted job resumes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from dp_basicsr.distributed.collectives import all_gather
from dp_basicsr.distributed.failure import fail
from dp_basicsr.distributed.slurm import adopt_slurm
from dp_basicsr.errors import ProcessError, UserError

import torch
from torch import distributed
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]

# File in the experiment's folder with torchrun's job id, by which a restarted job recognises its run.
JOB_ID_FILE = "job_id"

SILENT_SECONDS = 15.0  # after which a process says that it waits for the others

_store: Store | None = None  # shared by the processes of this start


def init_distributed(
    launcher: str, port: int | None = None, backend: str | None = None, timeout: float = 600.0, *, cpu: bool = False
) -> bool:
    """Join the process group, if there is one: return whether. With CUDA, the GPU of the local rank is selected.

    Args:
        launcher: ``none``, ``pytorch`` (torchrun) or ``slurm`` (srun). Under torchrun, ``none`` means ``pytorch``.
        port: Port of the first process under SLURM. Default: MASTER_PORT, or one derived from the job id.
        backend: Backend of torch.distributed. Default: nccl with CUDA, else gloo.
        timeout: Seconds to wait for the other processes, at the start and in every collective operation; NCCL's own
            default.
        cpu: Use no GPU, even if there is one (``num_gpu: 0``).

    Raises:
        UserError: The launcher's environment variables are missing, there are fewer GPUs than processes, torchrun's
            store does not support its restarts, or the other processes do not join in time.
    """
    variables = {"RANK", "WORLD_SIZE", "LOCAL_RANK"}
    if launcher == "none" and not variables <= os.environ.keys():
        rank, world_size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE", "1")
        if rank and world_size != "1":
            print(
                f"warning: RANK={rank} and WORLD_SIZE={world_size} are set without LOCAL_RANK: this process works "
                "alone; start several with torchrun",
                file=sys.stderr,
            )
        return False
    if launcher == "slurm":
        adopt_slurm(port)
    if missing := sorted(variables - os.environ.keys()):
        raise UserError(
            f"--launcher {launcher}: {', '.join(missing)} not set; start with "
            "`torchrun --nproc_per_node=N -m dp_basicsr train FILE`"
        )
    hosts, restarts = (int(os.environ.get(name, "0")) for name in ("GROUP_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS"))
    shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    # In a store that all restarts share, those on several hosts would find the keys of an earlier start.
    if hosts > 1 and restarts > 0 and shares_store:
        raise UserError(
            f"torchrun --max-restarts={restarts} on {hosts} hosts shares one store between all restarts, so a "
            "host that was lost cannot rejoin: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on all hosts"
        )
    on_gpu = torch.cuda.is_available() and not cpu
    if on_gpu:
        local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
        if processes > gpus:  # torchrun shows all GPUs to all processes, so all raise this
            raise UserError(
                f"torchrun --nproc_per_node={processes}: expected at most one process per GPU, got {gpus} GPUs: "
                f"use --nproc_per_node={gpus}, or num_gpu: 0 to train on the CPU"
            )
        if local_rank >= gpus > 1:
            raise ProcessError(f"local rank {local_rank}: expected at most one process per GPU, got {gpus} GPUs")
        # srun may show each task only its own GPUs, numbered from 0.
        torch.cuda.set_device(local_rank % gpus)
    if not distributed.is_initialized():
        _join((backend or "nccl") if on_gpu else "gloo", timeout, shares_store)
    return True


def _join(backend: str, timeout: float, shares_store: bool) -> None:
    """Form the process group."""
    global _store
    rank, world_size, limit = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), timedelta(seconds=timeout)
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    says = f"rank {rank}: waiting for {world_size - 1} other process(es) at {address}, as RANK and WORLD_SIZE ask for"
    patience = threading.Timer(SILENT_SECONDS, print, [says], {"file": sys.stderr})
    patience.daemon = True
    patience.start()
    try:
        _store = next(rendezvous("env://", timeout=limit))[0]
        if shares_store:
            # torchrun keeps this store over restarts; the addresses of ended processes must not be found in it.
            _store = PrefixStore(f"start_{os.environ['TORCHELASTIC_RESTART_COUNT']}_{world_size}", _store)
        distributed.init_process_group(backend, store=_store, rank=rank, world_size=world_size, timeout=limit)
        # Without it, DistributedDataParallel numbers the parameters that a step does not use.
        os.environ.setdefault("TORCH_DISTRIBUTED_DEBUG", "INFO")
        distributed.set_debug_level_from_env()  # type: ignore[attr-defined]
    except (RuntimeError, ValueError) as error:  # torch's DistError, and gloo's errors
        reason = str(error).partition("\n")[0]
        raise ProcessError(
            f"rank {rank} of {world_size}: the processes could not connect at {address}: {reason} (another program "
            "on that port? a firewall? under SLURM set dist_params: port; the time limit is dist_params: timeout; with "
            f"several network cards set the shared one: {backend.upper()}_SOCKET_IFNAME=eth0)"
        ) from error
    finally:
        patience.cancel()


@contextmanager
def in_group() -> Iterator[None]:
    """Leave the process group at the end. An error in one process ends all of them; see ``failure.py``."""
    global _store
    try:
        yield
    except Exception as error:
        if _store is not None and distributed.is_initialized() and distributed.get_world_size() > 1:
            fail(error, _store)
        raise
    finally:
        _store = None
        if distributed.is_initialized():
            distributed.destroy_process_group()


def should_resume(asked: bool, experiment: str) -> bool:
    """Whether this run resumes, ``asked`` by --auto_resume or because its job was restarted; alike on all processes."""
    counts = [os.environ.get(name, "") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")]
    mark = Path(experiment, JOB_ID_FILE)
    # torchrun counts its restarts (--max-restarts), but not those after a host joined or left, nor those before its own
    # host came back: the job's id in the folder tells them, and the knowledge of any process counts.
    is_restarted = any(count.isdecimal() and int(count) > 0 for count in counts) or (
        bool(job_id()) and mark.is_file() and mark.read_text(encoding="utf-8") == job_id()
    )
    return any(all_gather(asked or is_restarted))


def job_id() -> str:
    """Return torchrun's ``--rdzv-id``, the same for all restarts and hosts of a job; "" without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return "" if name == "none" else name


def mark_experiment(experiment: str) -> None:
    """Write the job's id into its experiment's folder, for ``should_resume``."""
    if job_id():
        Path(experiment, JOB_ID_FILE).write_text(job_id(), encoding="utf-8")
