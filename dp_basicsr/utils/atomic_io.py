"""Files that are there whole or not at all, whenever the program or the machine stops."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dp_basicsr.errors import UserError

import torch
from basicsr.utils import get_root_logger, get_time_str
from basicsr.utils.misc import sizeof_fmt

# Seconds until a write that failed is tried once more: a moment without network storage is not the end of a run.
RETRY_AFTER = 3.0

PARTIAL = ".partial"  # what is being written, beside its place


class _HashedFile:
    """A file that knows the SHA-256 of what went into it, so that nothing is read again for it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def write_checkpoint(content: dict[str, Any], path: Path) -> str:
    """Save by ``torch.save``; see ``atomic_write``."""
    return atomic_write(path, lambda file: torch.save(content, file))


def atomic_write(path: Path, write: Callable[[Any], Any]) -> str:
    """Write a file beside its place, onto the disk, then rename it. What fails is tried once more.

    Args:
        path: Where the file belongs.
        write: Writes its content into a binary file.

    Returns:
        The content's SHA-256, in hexadecimal.

    Raises:
        UserError: It cannot be written (disk full, quota, no permission). What was at ``path`` before is still there,
            and nothing of the attempt is left.
    """
    try:
        return _write_once(path, write)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        get_root_logger().warning(f"{path} cannot be saved ({first_line(error)}); once more in {RETRY_AFTER:g} s")
    time.sleep(RETRY_AFTER)
    try:
        return _write_once(path, write)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path} cannot be saved ({first_line(error)}; {free_space(path.parent)}); what was saved before is whole: "
            "mend this and go on with --auto_resume"
        ) from error


def _write_once(path: Path, write: Callable[[Any], Any]) -> str:
    beside = path.with_name(path.name + PARTIAL)
    try:
        with beside.open("wb") as file:
            hashed = _HashedFile(file)
            write(hashed)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    return hashed.sha256.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Bring a rename onto the disk, where the file system can do that for a folder (some network ones cannot)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def no_room_is_user_error() -> Iterator[None]:
    """Turn what a full or read-only disk makes of any other write (TensorBoard's) into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
            raise
        raise UserError(
            f"{error.filename or 'the figures of the run'} cannot be written ({error.strerror}; "
            f"{free_space(Path.cwd())}); the checkpoints are whole: mend this and go on with --auto_resume"
        ) from error


def remove_partial_files(folder: str | Path) -> None:
    """Remove what a killed process was writing."""
    for path in Path(folder).glob(f"*{PARTIAL}"):
        path.unlink(missing_ok=True)


def await_archive_name(folder: str | Path) -> None:
    """Wait until BasicSR's name for an earlier folder, which counts seconds, is free: runs may die within one."""
    while Path(f"{folder}_archived_{get_time_str()}").exists():
        time.sleep(0.1)


def free_space(folder: Path) -> str:
    """How much room there is, in words."""
    try:
        return f"{sizeof_fmt(shutil.disk_usage(folder).free)} free on its disk"
    except OSError as error:
        return f"its folder: {error.strerror}"


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return str(error).partition("\n")[0][:300] or type(error).__name__
