"""Atomic file writes: temporary file, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dp_basicsr.errors import UserError, first_line

# Seconds before a failed write is retried once, so that a short outage of network storage does not end a run.
RETRY_AFTER = 3.0

PARTIAL = ".partial"  # suffix of temporary files
LONGEST_NAME = 143  # bytes, in a home folder that eCryptfs encrypts; elsewhere 255
# In errors of torch's and safetensors' writers.
_DISK_REFUSED = ("inline_container.cc", "iostream error", "I/O error")


class _HashedFile:
    """A file that computes the SHA-256 of what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def atomic_write(path: Path, write: Callable[[Any], Any]) -> str:
    """Write a temporary file, fsync it and rename it to ``path``; retry once on an error.

    ``write`` writes the content to a binary file, and its SHA-256 in hexadecimal is returned. A failed write (disk
    full, quota, no permission) is a UserError; it leaves an existing file at ``path``, and no temporary one.
    """
    is_retry = False
    while True:
        try:
            with replacing(path, keep_target=True) as temporary, temporary.open("wb") as file:
                hashed = _HashedFile(file)
                write(hashed)
                file.flush()
                os.fsync(file.fileno())
            # The rename too, if the file system supports it for folders (some network ones do not).
            with contextlib.suppress(OSError):
                folder = os.open(path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
            return hashed.sha256.hexdigest()
        except (OSError, RuntimeError) as error:
            # torch's zip writer turns a full disk into a RuntimeError.
            reason = f"[Errno {error.errno}] {error.strerror}" if isinstance(error, OSError) else first_line(error)
            if is_retry:
                raise UserError(
                    f"{path} cannot be saved ({reason}; {free_space(path.parent)}); earlier checkpoints "
                    "are intact; fix this and continue with --auto_resume"
                ) from error
        # BasicSR's logger by name, because importing BasicSR takes seconds.
        logging.getLogger("basicsr").warning(f"{path} cannot be saved ({reason}); retrying in {RETRY_AFTER:g} s")
        time.sleep(RETRY_AFTER)
        # Someone may have cleared the folder of a run, which goes on.
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
        is_retry = True


def write_checkpoint(content: dict[str, Any], path: Path) -> str:
    """Write ``content`` with ``torch.save``; see ``atomic_write``."""
    # Here: upscaling, which writes images, may run without it.
    import torch

    return atomic_write(path, lambda file: torch.save(content, file))


@contextlib.contextmanager
def replacing(path: Path, mark: str = "", *, keep_target: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; rename it to ``path`` at the end, or delete it on an error.

    ``mark`` tells the files of several processes apart. Of a link the target is replaced, as by most programs; the link
    itself with ``keep_target``, as a user may have put it in place of a checkpoint, and if the target is read-only.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not (path.is_file() or keep_target):
        # A device or a pipe, such as /dev/null and /dev/stdout, is written to: root's rename would replace it.
        yield path
        return
    # As root may write anything: stores of versions (DVC, git-annex) protect their files by their modes alone.
    is_link = path.is_symlink() and not keep_target and (not path.exists() or path.stat().st_mode & stat.S_IWUSR)
    target = Path(os.path.realpath(path)) if is_link else path
    temporary = beside(target, f"{mark}{PARTIAL}")
    try:
        with naming(path):
            yield temporary
            temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def beside(path: Path, suffix: str) -> Path:
    """Return a temporary path next to ``path``: in /tmp a rename would not be atomic."""
    name = f"{path.name}{suffix}"
    # The name itself may be as long as file systems allow.
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f"{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}{suffix}"
    return path.with_name(name)


def longest_name(path: str | Path) -> int:
    """Return how many bytes the name of ``path``, whose folder may be missing yet, may have on its file system."""
    if not hasattr(os, "pathconf"):  # Windows, whose drive may be missing
        return 255
    folder = next(filter(os.path.exists, Path(path).absolute().parents))
    # Some tell 0; FAT and exFAT tell 1530, for 255 letters.
    return min(os.pathconf(folder, "PC_NAME_MAX") or 255, 255)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors of the system name the file that was to be written, which the user knows, not a temporary one."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
    except Exception as error:
        if isinstance(error, UserError) or not any(sign in str(error) for sign in _DISK_REFUSED):
            raise
        # torch's writer raises its own also while it closes a file that the system has refused to write.
        cause = error.__context__
        known = (cause.errno, cause.strerror) if isinstance(cause, OSError) else (errno.EIO, "the disk refuses it")
        raise OSError(*known, str(path)) from error


@contextlib.contextmanager
def no_room_is_user_error() -> Iterator[None]:
    """Turn errors of a full, read-only or lost disk in other writes (TensorBoard's) into a UserError."""
    try:
        yield
    except OSError as error:
        gone = (errno.ENOTCONN, errno.ESTALE, errno.EIO)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, *gone):
            raise
        raise UserError(
            f"{error.filename or 'the figures of the run'} cannot be written ({error.strerror}; "
            f"{free_space(Path.cwd())}); the checkpoints are intact; fix this and continue with --auto_resume"
        ) from error


def remove_partial_files(folder: str | Path) -> None:
    """Delete the temporary files of a killed process."""
    for path in Path(folder).glob(f"*{PARTIAL}"):
        path.unlink(missing_ok=True)


def await_archive_name(folder: str | Path) -> None:
    """Wait until BasicSR's archive name, which has a resolution of one second, is free."""
    while Path(f"{folder}_archived_{time.strftime('%Y%m%d_%H%M%S')}").exists():
        time.sleep(0.1)


def free_space(folder: Path) -> str:
    """Describe the free space of a folder's disk."""
    try:
        return f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB free on its disk"
    except OSError as error:
        return f"its folder: {error.strerror}"
