"""Start and exit of the command lines."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from dp_basicsr.errors import UserError, exit_on_user_error


def require_paths(paths: Sequence[Path], what: str) -> None:
    """Check that files and folders exist before the imports that take seconds.

    Args:
        paths: Files and folders of the command line.
        what: Description for the message.

    Raises:
        UserError: One of them does not exist.
    """
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise UserError(f"{what} {', '.join(missing)}: no such file or folder")


@contextlib.contextmanager
def data_command() -> Iterator[None]:
    """Run a command: exit code 2 on a UserError, 130 on Ctrl-C, 143 on SIGTERM, after removing partial results."""
    previous = signal.signal(signal.SIGTERM, exit_on_signal)
    try:
        with exit_on_user_error("interrupted: partial results have been removed"):
            yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def exit_on_signal(number: int, frame: FrameType | None) -> None:
    """Handle a signal by exiting like a shell command killed by it."""
    raise SystemExit(128 + number)
