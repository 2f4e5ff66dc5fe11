"""Advisory file locks, where the system and the file system support them; the lock of a run."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from dp_basicsr.errors import UserError

fcntl: Any = None
# Windows has no fcntl.
with contextlib.suppress(ImportError):
    fcntl = importlib.import_module("fcntl")


def lock_folder(folder: Path, instead: str) -> tuple[int, bool | None]:
    """Try to lock a folder until the handle that is returned is closed; see ``try_lock`` for the other value."""
    # Windows, which has no locks, opens no folder either.
    handle = os.open(folder if fcntl else os.devnull, os.O_RDONLY)
    return handle, try_lock(handle, folder, "flock", instead)


def try_lock(handle: int, path: Path, kind: Literal["flock", "lockf"], instead: str) -> bool | None:
    """Try to lock an open file (``handle``) for this process, without waiting; False if another process holds it.

    ``flock`` also locks folders; ``lockf`` (a POSIX record lock) works over NFS and is not inherited. None, after a
    warning that says what the user must do ``instead``, if locks are unsupported.
    """
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "this system has no fcntl")
        getattr(fcntl, kind)(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        # BasicSR's logger by name, because importing BasicSR takes seconds.
        logging.getLogger("basicsr").warning(f"{path} cannot be locked ({error.strerror}): {instead}")
        return None
    return True


@contextlib.contextmanager
def run_lock(folder: str) -> Iterator[None]:
    """Lock an experiment (rank 0) by a file next to its folder, because the folder itself may be moved away.

    It is a POSIX record lock: the kernel releases it when the process dies, it works over NFS, and unlike a ``flock``
    it is not held by a data loader worker that briefly outlives its parent. If another run holds it, every process
    raises a UserError, which names that one.
    """
    # Here, because it needs torch, which other locks do without.
    from dp_basicsr.distributed.collectives import on_rank_0

    path = Path(folder).with_name(f".{Path(folder).name}.lock")
    handles: list[int | None] = []
    on_rank_0(lambda: handles.append(_lock_run(path)))
    try:
        yield
    finally:
        for handle in filter(None, handles):
            # Deleted while it is locked: afterwards the file may be another run's. A folder with experiments
            # stays. On a disk that is gone all fail, which must not hide why the run ended.
            for end in (path.unlink, partial(os.close, handle), path.parent.rmdir):
                with contextlib.suppress(OSError):
                    end()


def _lock_run(path: Path) -> int | None:
    """Open and lock the file; None if the file system has no locks."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # an ending run has just removed the empty folder
        except OSError as error:
            gone = f"; {path.parent} leads to nothing: mount its disk, or make its folder"
            also = gone if path.parent.is_symlink() and not path.parent.exists() else ""
            raise UserError(f"cannot write {path}: {error.strerror}{also}") from error
        locked = try_lock(handle, path, "lockf", "start no second run of this name")
        # A run that ended meanwhile deleted this file; another one may hold a new file.
        with contextlib.suppress(FileNotFoundError):
            if locked and os.path.samestat(path.stat(), os.fstat(handle)):
                break
        holder = os.read(handle, 200).decode(errors="replace").strip()
        os.close(handle)
        if locked is None:
            # Without locks the file is of no use, unless another run has written into it.
            if not holder:
                path.unlink(missing_ok=True)
            return None
        if not locked:
            name = path.with_name(path.name.removeprefix(".").removesuffix(".lock"))
            raise UserError(
                f"{name} is in use by {holder or 'another process'}: wait until it ends, stop it, or give this run "
                "another name"
            )
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
    return handle
