"""What the data commands share: their common arguments, and how they end."""

from __future__ import annotations

import argparse
import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from dp_basicsr.data.preparation.jobs import Job
from dp_basicsr.errors import exit_on_user_error


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that :func:`job_from` reads."""
    parser.add_argument("--workers", type=int, help="processes (default: the CPUs that this process may use)")
    parser.add_argument("--compression", type=int, default=1, help="of PNG, 0 (none) to 9 (slowest)")
    parser.add_argument("--skip-bad", action="store_true", help="name and leave out images that cannot be used")
    parser.add_argument("--overwrite", action="store_true", help="replace existing output, once the new one is whole")


def job_from(args: argparse.Namespace) -> Job:
    """Turn parsed arguments into a :class:`~dp_basicsr.data.preparation.jobs.Job`."""
    return Job(args.workers, args.skip_bad, args.overwrite, args.compression)


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
