"""Signal handling in data loader workers."""

from __future__ import annotations

import os
import signal
import threading


def outlive_signals(worker_id: int = 0) -> None:
    """Ignore signals to the process group in a worker, because the last step still needs its samples.

    SIGTERM from the parent still ends the worker at once. A thread waits for the signal, because only ``sigwaitinfo``
    gives the sender.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # Windows, macOS
        return
    for number in (signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True).start()


def _obey_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
