"""End all processes of a group when one of them fails, and report its error once.

If a process is gone or does not answer, collective operations of torch raise in the others. Torch does not know whether
a restart can succeed, so a process that fails with its own error records it in the shared store.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable
from concurrent import futures
from socket import gethostname
from typing import NoReturn, TypeVar

from dp_basicsr.errors import EXIT_RETRY, UserError, first_line, message_for_user, message_of_others

from torch.distributed import DistError, Store  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

T = TypeVar("T")

STORE_SECONDS = 3.0  # timeout for the store, whose host may be the lost one
LINGER_SECONDS = 4.0  # rank 0, which may host the store, exits this much later: the others still ask it then
FAILED = "failed"  # key in the store


def is_loss_of_another(error: BaseException) -> bool:
    """Whether an error of torch or gloo means that another process is gone or does not answer."""
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def fail(error: Exception, store: Store) -> NoReturn:
    """Report ``error``, which may come from another process, and end this process.

    The exit code is 2 for a UserError and 1 for other errors. A process that lost another one exits with
    ``EXIT_RETRY``, or with 1 if the other one failed with its own error or took the store with it, because a restart
    may fail again.
    """
    rank, code, host = os.environ.get("RANK"), 1, gethostname()
    if is_loss_of_another(error):
        other_failed = _ask(lambda: store.check([FAILED]))
        if other_failed is None:
            # The store is gone with rank 0, which hosted it: it was lost, or ended after another's loss, of which gloo
            # tells a process that waits for rank 0 alone only then.
            is_speaker = rank == "1"
        elif other_failed:
            is_speaker = False  # that one has reported its error, on its machine
            if _ask(lambda: store.add(f"said on {host}", 1)) == 1:
                print(f"error: another process failed, on {_ask(lambda: store.get('error').decode())}", file=sys.stderr)
        else:
            code = EXIT_RETRY
            is_speaker = _ask(lambda: store.add("said/lost", 1)) in (1, None)
        if is_speaker:
            # Torch's description of the connection error, without the location in its source.
            reason = re.sub(r"^\[\S*\] ", "", str(error)).partition(". ")[0].partition("\n")[0]
            # A process that was only slow would be slow again.
            slow = "if one was only slow (a long validation, a slow disk), set a larger dist_params: timeout; "
            is_slow = re.search("time.?out|timed out", reason, re.IGNORECASE)
            print(
                f"error: another process has ended or does not answer ({reason}); {slow if is_slow else ''}saved "
                "checkpoints are intact: continue with --auto_resume",
                file=sys.stderr,
            )
    else:
        message = message_for_user(error) or message_of_others(error)
        # For torchrun's summary, which repeats the traceback of what is being handled.
        if message is None:
            get_error_handler().record_exception(error)
        else:
            try:
                raise UserError(message) from None
            except UserError as shown:
                get_error_handler().record_exception(shown)
        # All may have an error: the first of a machine to count it prints its own, or all if the store is gone.
        is_speaker = _ask(lambda: store.add(f"said on {host}", 1)) in (1, None)
        _ask(lambda: store.set("error", f"{host}: {message or first_line(error)}"))
        _ask(lambda: store.add(FAILED, 1))
        if message is None:
            sys.excepthook(type(error), error, error.__traceback__)
        else:
            code = 2
            if is_speaker:
                print(f"error: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if rank == "0":
        time.sleep(LINGER_SECONDS)
    for child in multiprocessing.active_children():  # data loader workers
        child.terminate()
    # Python's normal exit would wait for process groups that cannot finish.
    os._exit(code)


def _ask(call: Callable[[], T]) -> T | None:
    """Return the store's answer to ``call``, or None if the store is gone or its host does not answer."""
    # Everything that this process writes to stderr is discarded meanwhile, C++ included: torch prints a stack trace if
    # the store is gone.
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        return futures.ThreadPoolExecutor(1).submit(call).result(STORE_SECONDS)
    except (RuntimeError, futures.TimeoutError):
        return None
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
