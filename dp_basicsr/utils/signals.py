"""Signals that stop a run: it finishes the step, saves, and exits with a code that requests a restart."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from dp_basicsr.distributed.collectives import start_maximum
from dp_basicsr.errors import EXIT_RETRY, UserError

from basicsr.utils import get_root_logger

# SIGTERM: schedulers, torchrun, systemd. SIGINT: Ctrl-C. SIGUSR1, and submitit's SIGUSR2: SLURM's warning
# (`sbatch --signal=USR1@120`).
# SIGHUP: a closed terminal, and torchrun, which forwards it even under nohup.
# SIGXCPU: the limit of CPU time (SGE, LSF, `ulimit -St`), each second anew until the hard limit kills.
NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGXCPU")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))

# Seconds in which a repeated signal counts as the first: a launcher and a terminal may both send it.
SAME_SIGNAL = 1.0


class Woken(BaseException):
    """A signal came while it may end what is done; nothing that handles errors may take it for one."""


class Interruption:
    """Records a signal and stops all processes of a run at the same iteration. A second signal stops at once.

    Signals are handled inside the ``with`` block, in the main thread. Processes, of which ``dist`` says that there are
    several, agree on one number, sent after one iteration and read after the next, so that nothing waits for it.
    """

    def __init__(self, dist: bool) -> None:
        self.error: UserError | None = None  # of this process, which is to stop all as a signal does
        self._signal = 0  # of this process
        self.ends_wait = False  # whether the first signal raises Woken
        self._agreed = 0  # of any process, known to all
        self._since = 0.0
        self._pid, self._parent = os.getpid(), os.getppid()
        self._dist = dist
        self._pending: Callable[[], int] | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # nohup ignores SIGHUP, and the run must outlive it.
                if signal.Signals(number).name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        # After an error, another process may never answer.
        if kind is None or kind is SystemExit:
            self._read()

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A forked child handles only SIGTERM, from its parent.
        if os.getpid() != self._pid and number != signal.SIGTERM:
            return
        is_warning = number == getattr(signal, "SIGXCPU", None)
        is_repeated = self._signal and not is_warning and time.monotonic() - self._since > SAME_SIGNAL
        if os.getpid() != self._pid or is_repeated:
            # As if killed by the signal: a shell sees 128 + its number.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            os._exit(128 + number)  # the first process of a container outlives it
        # Only a note: the step, and the collectives in it, must be completed on all processes.
        if not self._signal:
            self._signal, self._since = number, time.monotonic()
            if self.ends_wait:
                raise Woken

    def received(self) -> bool:
        """Whether this process received a signal; for interrupting long work such as a validation."""
        return bool(self._signal or self._agreed or self.error)

    def all_agree(self, now: bool = False) -> bool:
        """Whether to stop; the same on all processes, which must call it equally often.

        With ``now`` it waits for the state of the others, which may otherwise follow one call later.
        """
        if not self._dist:
            self._agreed = self._signal
            return self.received()
        # A torchrun that was killed stops nobody: its workers would train on, and hold the run and the GPUs.
        if not self._signal and os.getppid() != self._parent and "TORCHELASTIC_RUN_ID" in os.environ:
            self._signal = signal.SIGTERM
        # The answer to the last call's question has arrived during the step, so nothing waits for it.
        self._read()
        if not self._agreed:
            self._pending = start_maximum(self._signal or int(self.error is not None))
            if now:
                self._read()
        return self._agreed != 0

    def _read(self) -> None:
        """Read the result of the last exchange, if there is one."""
        if self._pending is not None:
            finish, self._pending = self._pending, None
            self._agreed = finish()

    def leave(self, iteration: int, saved: int | None) -> None:
        """Exit after ``iteration``; ``saved`` is the last iteration with a checkpoint, if any."""
        name = signal.Signals(self._agreed).name
        get_root_logger().warning(f"{name}: stopped after iteration {iteration}; {resume_advice(saved)}")
        raise SystemExit(EXIT_RETRY)


def resume_advice(saved: int | None) -> str:
    """Describe how to continue, given the last saved iteration."""
    if saved is None:
        return "nothing is saved: the same command starts again"
    return f"iteration {saved} is saved: the same command with --auto_resume resumes from it"
