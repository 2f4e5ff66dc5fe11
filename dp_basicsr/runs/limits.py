"""Memory and open files: ask the system for what a run needs, and say what to do when memory or a step fails."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import multiprocessing.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from dp_basicsr.checks.signatures import members_of
from dp_basicsr.data.stream import Batch, batch_size_per_gpu
from dp_basicsr.distributed.failure import is_loss_of_another
from dp_basicsr.errors import UserError, code_behind, describe, first_line, is_out_of_memory
from dp_basicsr.options.run import RunOptions

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, Registry
from torch import Tensor

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Make this process keep freed memory for its next tensors.

    glibc returns every freed block of 32 MiB or more to the system, which clears its pages again when the next tensor
    touches them, although every training step allocates the same sizes. The peak usage does not change.

    Returns whether it is in effect; False with C libraries other than glibc, which is not an error.
    """
    if not sys.platform.startswith("linux"):
        return False
    # musl, the C library of Alpine Linux, has no mallopt.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_MMAP_MAX, 0) == 1 and mallopt(_M_TRIM_THRESHOLD, -1) == 1


def raise_open_file_limit() -> None:
    """Raise this process's limit of open files to the hard limit, up to 65,536.

    Each worker and each batch that waits needs several; the usual soft limit of 1024 is for programs that use
    ``select``.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(65536, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # macOS has a second, lower limit, and a run may do with the old one.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def require_compiler(run: RunOptions) -> None:
    """Refuse ``train: compile`` where torch.compile does not work (UserError): it needs a compiler, on GPUs Triton."""
    if not run.options.training.compile:
        return
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device="cuda" if run.num_gpu else "cpu"))
    # Compilers fail in any way.
    except Exception as error:
        raise UserError(
            f"train: compile: torch.compile does not work here ({type(error).__name__}: {first_line(error)}): install "
            "a C++ compiler (Debian: apt install g++), or leave compile out"
        ) from error


def require_room(run: RunOptions, model: Any) -> None:
    """Refuse a run that cannot write a checkpoint (UserError): into folders of another user, or for want of room.

    A checkpoint takes the size of its networks, and of the moments of Adam.
    """
    for folder in (run.folders.root, run.folders.models, run.folders.training_states) if run.auto_resume else ():
        if folder.is_dir() and not os.access(folder, os.W_OK):
            # By number: in a container, a user may have no name.
            raise UserError(
                f"{folder} belongs to user {folder.stat().st_uid}, and may not be written: its owner's "
                "`chmod -R ug+w` gives it to the group, as `umask 002` does before the start of a team's run"
            )
    networks = [net for key, net in vars(model).items() if key.startswith("net_") and isinstance(net, torch.nn.Module)]
    needed = sum(value.nbytes for net in networks for value in net.state_dict().values())
    if (freq := run.options.logs.save_checkpoint_freq) and freq <= run.options.training.total_iter:
        adams = [optimizer for optimizer in model.optimizers if isinstance(optimizer, torch.optim.Adam)]
        needed += sum(2 * value.nbytes for adam in adams for group in adam.param_groups for value in group["params"])
    folder = next(path for path in run.folders.models.parents if path.is_dir())
    if (free := shutil.disk_usage(folder).free) < needed:
        raise UserError(
            f"{folder}: its disk has {free / 1e6:,.1f} MB free, a checkpoint takes {needed / 1e6:,.1f}: make room, or "
            "start in a folder of another disk"
        )


def shorten_socket_names() -> None:
    """Let loader workers pass their batches under a long TMPDIR: the name of a socket has at most 107 bytes.

    Python makes the sockets in a folder that a process chooses once, and passes on to its workers.
    """
    folder = tempfile.gettempdir()
    # What is added: /pymp-xxxxxxxx/listener-xxxxxxxx.
    if len(os.fsencode(folder)) > 107 - 32 and os.path.isdir("/tmp"):
        tempfile.tempdir = "/tmp"
        multiprocessing.util.get_temp_dir()
        tempfile.tempdir = folder


@contextlib.contextmanager
def out_of_memory_is_user_error(run: RunOptions, also: str = "") -> Iterator[None]:
    """Turn running out of GPU or CPU memory into a UserError that lists the options that help, then ``also``."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # torch raises plain RuntimeErrors for lack of memory on the CPU, as for all other errors.
        if not is_out_of_memory(error):
            raise
        train, opt = run.options.training, run.as_dict()
        raise UserError(
            f"a training step does not fit into memory ({first_line(error)}); each of these reduces it: "
            f"train: checkpointing: true (now {str(train.checkpointing).lower()}), train: amp: bf16 (now {train.amp}), "
            f"a larger train: grad_accumulation (now {train.grad_accumulation}), "
            f"a smaller datasets: train: batch_size_per_gpu (now {batch_size_per_gpu(opt)}) "
            f"or gt_size (now {opt['datasets']['train'].get('gt_size')}){also}"
        ) from error


@contextlib.contextmanager
def first_step_is_user_error(batch: Batch) -> Iterator[None]:
    """Turn what others' networks, losses and optimizers raise in a first step, which may be anything, into a UserError.

    What others returned may also make our own code raise.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error) or is_loss_of_another(error):
            raise
        shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in batch.items() if isinstance(value, Tensor))
        raise UserError(f"the first step failed: {describe(error, f'; batch: {shapes}')}") from error


def build_run_model(opt: dict[str, Any]) -> Any:
    """Build a run's model; what the class of a network or loss raises, which may be anything, is a UserError by key."""
    try:
        return build_model(opt)
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        # What fails alone at the same line is the cause. Models of other packages may read other keys of these forms.
        parts = [(key, opt[key], ARCH_REGISTRY, build_network) for key in opt if key.startswith("network_")]
        losses = (opt.get("train") or {}).items()
        parts += [(f"train: {key}", value, LOSS_REGISTRY, build_loss) for key, value in losses if key.endswith("_opt")]
        for key, entry, registry, build in parts:
            if not isinstance(entry, dict) or entry.get("type") not in members_of(registry):
                continue
            # Our models take these two out before they build the loss.
            arguments = {name: value for name, value in entry.items() if name not in ("type", "sync_mean", "ramp")}
            try:
                build({"type": entry["type"], **arguments})
            except Exception as cause:
                if code_behind(cause) == code_behind(error):
                    text = f"expected arguments that {entry['type']} takes, got {arguments}: {describe(cause)}"
                    raise UserError(f"{key}: {text}{defaults_of(entry['type'], registry)}") from cause
        raise


def defaults_of(name: str, registry: Registry = ARCH_REGISTRY) -> str:
    """Return the way out for a registered class that its arguments do not fit."""
    return f"; its arguments by default: {inspect.signature(registry.get(name))}"
