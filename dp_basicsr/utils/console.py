"""How the command lines end."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from dp_basicsr.errors import exit_on_user_error


@contextlib.contextmanager
def data_command() -> Iterator[None]:
    """Run a command: UserError gives exit code 2, Ctrl-C 130, SIGTERM 143, each after partial results were removed."""
    previous = signal.signal(signal.SIGTERM, _leave)
    try:
        with exit_on_user_error("interrupted: what was not whole has been removed"):
            yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
