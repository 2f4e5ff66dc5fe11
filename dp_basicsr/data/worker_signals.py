"""Signals in the worker processes of a data loader."""

from __future__ import annotations

import os
import signal
import threading


def outlive_signals(worker_id: int = 0) -> None:
    """For a loader's workers: a signal to the whole process group is not for them, the last step needs their samples.

    SIGTERM of their own parent ends them, at once: so it does at its exit. That a signal's sender is known takes a
    thread that waits for it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True).start()


def _obey_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
