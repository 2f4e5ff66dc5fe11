"""Start and end of the command lines."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from dp_basicsr.errors import UserError, exit_on_user_error


def require_paths(paths: Sequence[Path], what: str) -> None:
    """Refuse missing files and folders before the imports that take seconds.

    Args:
        paths: Files and folders of the command line.
        what: What they are, for the message.

    Raises:
        UserError: One of them does not exist.
    """
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise UserError(f"{what} {', '.join(missing)}: no such file or folder")


@contextlib.contextmanager
def data_command() -> Iterator[None]:
    """Run a command: UserError gives exit code 2, Ctrl-C 130, SIGTERM 143, each after partial results were removed."""
    previous = signal.signal(signal.SIGTERM, _leave)
    try:
        with exit_on_user_error("interrupted: partial results have been removed"):
            yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
