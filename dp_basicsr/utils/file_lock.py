"""Advisory locks on open files, where the system and the file system have them."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
from pathlib import Path
from typing import Any, Literal

fcntl: Any = None
with contextlib.suppress(ImportError):  # Windows
    fcntl = importlib.import_module("fcntl")


def open_folder(folder: Path) -> int:
    """Open a folder for locking; without locks (Windows cannot open folders either), open nothing in its place."""
    return os.open(folder if fcntl else os.devnull, os.O_RDONLY)


def try_lock(handle: int, path: Path, kind: Literal["flock", "lockf"], instead: str) -> bool | None:
    """Lock an open file for this process without waiting.

    Args:
        handle: Of the file.
        path: Its name, for the warning.
        kind: ``flock`` also locks folders; ``lockf`` (a POSIX record lock) reaches over NFS and is not inherited.
        instead: What the user must do where there are no locks, for the warning.

    Returns:
        Whether it is locked now; False if another process holds it. None, and a warning, where there are no locks.
    """
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "this system has no fcntl")
        getattr(fcntl, kind)(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        # The logger of BasicSR, whose import takes seconds.
        logging.getLogger("basicsr").warning(f"{path} cannot be locked ({error.strerror}): {instead}")
        return None
    return True
