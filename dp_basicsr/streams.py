"""Standard streams whose other end may be gone: a closed terminal, a pipe without a reader, a full disk, or nothing."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, TextIO

GONE = (errno.EIO, errno.EPIPE)  # a closed terminal, a pipe that nobody reads
FULL = (errno.ENOSPC, errno.EDQUOT)


class _Outliving(io.FileIO):
    """A standard stream that drops what cannot be written, for the errors ``dropped``; ``lost`` is the last one."""

    def __init__(self, number: int, dropped: tuple[int, ...]) -> None:
        super().__init__(number, "w", closefd=False)
        self.dropped = dropped
        self.lost: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in self.dropped:
                raise
            self.lost = error
            # What others have kept, such as a logger's handler, must not raise either. A disk may have room again.
            if error.errno in GONE:
                write_nowhere(self.fileno())
            return len(data)


def write_nowhere(number: int) -> None:
    """Make a file descriptor drop what is written to it."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, number)
    if nowhere != number:
        os.close(nowhere)


def outliving(stream: TextIO, dropped: tuple[int, ...]) -> TextIO:
    """Return a standard stream that drops what cannot be written for one of these errors.

    Streams of other kinds, such as those of a test or a notebook, are returned as they are.
    """
    if type(stream) is not io.TextIOWrapper:
        return stream
    stream.flush()
    buffer = io.BufferedWriter(_Outliving(stream.fileno(), dropped))
    return io.TextIOWrapper(buffer, stream.encoding, stream.errors, line_buffering=True, write_through=True)


def open_standard_streams() -> None:
    """Open those of the three standard streams that the caller has closed (``>&-``), to nowhere.

    Otherwise the next files get their numbers, and what a library prints is written into them.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            write_nowhere(number)
    sys.stdout, sys.stderr = (
        stream or open(number, "w", encoding="utf-8")  # noqa: SIM115 (as long as the program)
        for number, stream in ((1, sys.stdout), (2, sys.stderr))
    )


def why_incomplete(stream: TextIO) -> str | None:
    """Return why a stream of ``outliving`` has dropped something, or None."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.lost.strerror if isinstance(raw, _Outliving) and raw.lost else None
