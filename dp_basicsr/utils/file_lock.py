"""Advisory file locks, where the system and the file system support them."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
from pathlib import Path
from typing import Any, Literal

fcntl: Any = None
# Windows has no fcntl.
with contextlib.suppress(ImportError):
    fcntl = importlib.import_module("fcntl")


def open_folder(folder: Path) -> int:
    """Open a folder for locking; on systems without locks (Windows), open the null device instead."""
    return os.open(folder if fcntl else os.devnull, os.O_RDONLY)


def try_lock(handle: int, path: Path, kind: Literal["flock", "lockf"], instead: str) -> bool | None:
    """Try to lock an open file for this process, without waiting.

    Args:
        handle: File descriptor.
        path: File name for the warning.
        kind: ``flock`` also locks folders; ``lockf`` (a POSIX record lock) works over NFS and is not inherited.
        instead: What the user must do without locks, for the warning.

    Returns:
        True if it is now locked, False if another process holds it. None, after a warning, if locks are unsupported.
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
