"""End all processes of a group when one of them fails, and report its error once.

If a process is gone or does not answer, collective operations of torch raise in the others. Torch does not know whether
a restart can succeed, so a process that fails with its own error records it in the shared store.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import sys
import threading
import time
import zlib
from collections.abc import Callable
from typing import NoReturn, TypeVar

from dp_basicsr.errors import EXIT_RETRY, message_for_user

from torch.distributed import DistError, Store  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

T = TypeVar("T")

STORE_SECONDS = 3.0  # timeout for the store, whose host may be the lost one
LINGER_SECONDS = 2.0  # rank 0, which may host the store, exits this much later
FAILED = "failed"  # key in the store


def fail(error: Exception, store: Store) -> NoReturn:
    """Report ``error``, which may come from another process, and end this process.

    The exit code is 2 for a UserError and 1 for other errors. A process that lost another one exits with
    ``EXIT_RETRY``, or with 1 if the other one failed with its own error or took the store with it, because a restart
    may fail again.
    """
    # Torch's and gloo's errors mean that another process is gone or does not answer.
    is_loss = isinstance(error, DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))
    code = _report_loss(error, store) if is_loss else _report_own(error, store)
    sys.stdout.flush()
    sys.stderr.flush()
    if os.environ.get("RANK") == "0":
        time.sleep(LINGER_SECONDS)
    for child in multiprocessing.active_children():  # data loader workers
        child.terminate()
    # Python's normal exit would wait for process groups that cannot finish.
    os._exit(code)


def _report_own(error: Exception, store: Store) -> int:
    """Report an error of this process; return the exit code."""
    message = message_for_user(error)
    get_error_handler().record_exception(error)  # for torchrun's summary
    _ask(lambda: store.add(FAILED, 1))
    if message is None:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    # All processes may have the same error: the first one to count it prints it, or all if the store is gone.
    if _ask(lambda: store.add(f"said/{zlib.crc32(message.encode())}", 1)) in (1, None):
        print(f"error: {message}", file=sys.stderr)
    return 2


def _report_loss(error: Exception, store: Store) -> int:
    """Report that another process is lost, unless that one reported its own error; return the exit code."""
    other_failed = _ask(lambda: store.check([FAILED]))
    if other_failed:
        return 1
    # Without the store rank 0, which hosted it, is gone, and rank 1 speaks; otherwise the first one to count.
    is_gone = other_failed is None
    speaks = os.environ.get("RANK") == "1" if is_gone else _ask(lambda: store.add("said/lost", 1)) in (1, None)
    if speaks:
        # Torch's description of the connection error, without the location in its source.
        reason = re.sub(r"^\[\S*\] ", "", str(error)).partition(". ")[0].partition("\n")[0]
        print(
            f"error: another process has ended or does not answer ({reason}); saved checkpoints are intact: continue "
            "with --auto_resume",
            file=sys.stderr,
        )
    return 1 if is_gone else EXIT_RETRY


def _ask(call: Callable[[], T]) -> T | None:
    """Return the store's answer to ``call``, or None if the store is gone or its host does not answer."""
    answers: list[T] = []

    def ask() -> None:
        with contextlib.suppress(RuntimeError):
            answers.append(call())

    thread = threading.Thread(target=ask, daemon=True)
    # Everything that this process writes to stderr is discarded meanwhile, C++ included: torch prints a stack trace if
    # the store is gone.
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        thread.start()
        thread.join(STORE_SECONDS)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
    return answers[0] if answers else None
