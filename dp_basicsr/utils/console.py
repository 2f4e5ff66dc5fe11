"""Start and exit of the command lines."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from dp_basicsr.errors import UserError, exit_on_user_error


def require_paths(paths: Sequence[Path], what: str) -> None:
    """Raise a UserError if files of the command line, which are ``what``, are missing: before slow imports."""
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise UserError(f"{what} {', '.join(missing)}: no such file or folder")


@contextlib.contextmanager
def data_command() -> Iterator[None]:
    """Run a command: exit code 2 on a UserError, 130 on Ctrl-C, 143 on SIGTERM, after removing partial results.

    SIGHUP (a closed terminal) ends it like SIGTERM, but not under nohup.
    """
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    previous = {number: signal.signal(number, exit_on_signal)
                for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}  # fmt: skip
    try:
        with exit_on_user_error("interrupted: partial results have been removed"):
            yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Terminal(io.FileIO):
    """A terminal that may be closed: what is written to it then is dropped."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            # Later writes must not raise either: logging would print a traceback for each line.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


@contextlib.contextmanager
def outlive_terminal() -> Iterator[None]:
    """Let the program go on, or save and stop, when the terminal that it writes to is closed."""

    def outliving(stream: TextIO) -> TextIO:
        # Files and pipes report their own errors; only a terminal may vanish while the run is worth going on.
        if not isinstance(stream, io.TextIOWrapper) or not stream.isatty():
            return stream
        stream.flush()
        buffer = io.BufferedWriter(_Terminal(stream.fileno(), "w", closefd=False))
        return io.TextIOWrapper(buffer, stream.encoding, stream.errors, line_buffering=True, write_through=True)

    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(outliving, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def exit_on_signal(number: int, frame: FrameType | None) -> None:
    """Handle a signal by exiting like a shell command killed by it."""
    raise SystemExit(128 + number)
