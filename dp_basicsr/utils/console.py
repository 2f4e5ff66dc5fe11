"""Start and exit of the command lines."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from dp_basicsr.errors import exit_on_user_error
from dp_basicsr.streams import FULL, GONE, outliving


@contextlib.contextmanager
def data_command(advice: str = "") -> Iterator[None]:
    """Run a command: exit code 2 on a UserError, 130 on Ctrl-C, 143 on SIGTERM, after removing partial results."""
    with exit_on_signals(), exit_on_user_error(f"interrupted: partial results have been removed{advice}"):
        yield


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """Let SIGHUP (a closed terminal; not under nohup) and SIGXCPU (the limit of CPU time), too, end it like SIGTERM."""
    # Python handles signals in the main thread only. Called in another one, they are the caller's.
    names = ("SIGTERM", "SIGHUP", "SIGXCPU") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    previous = {number: signal.signal(number, exit_on_signal)
                for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}  # fmt: skip
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def outlive_terminal() -> Iterator[None]:
    """Let a run go on when the terminal, the pipe's reader or the disk that it writes its lines to is gone.

    Its log file has them all.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (outliving(stream, GONE + FULL) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def exit_on_signal(number: int, frame: FrameType | None) -> None:
    """Handle a signal by exiting like a shell command killed by it."""
    if number == getattr(signal, "SIGXCPU", None):
        # It comes each second anew, also while partial results are removed.
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)
