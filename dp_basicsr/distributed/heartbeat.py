"""Several processes watch over each other: who is gone or hangs, on which host, since when.

A collective operation that fails says that *something* is gone ("Connection closed by peer"), one that waits says
nothing. So each process posts a pulse to the process group's store, from a thread of its own: it stops with the
process, and goes on during a long validation. What the pulse carries is the iteration of the training loop.

- A pulse that stands still for the timeout, or for a few seconds once a collective operation has failed: that process
  is gone (killed, out of memory, stopped, its host off).
- A pulse that goes on, with an iteration that all others have left behind for the timeout: that process hangs.
- A process that ends by an error of its own says so, and the others need not wait.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import NoReturn, TypeVar

from dp_basicsr.errors import EXIT_RETRY, UserError

from torch.distributed import Store  # type: ignore[attr-defined]

T = TypeVar("T")

PULSE = 1.0  # seconds between two posts
PATIENCE = 5.0  # seconds that a pulse may stand still once something is known to be wrong


@dataclass
class Pulse:
    """What one process posts.

    Attributes:
        host, pid: Where it is.
        iteration: That its training loop is in; 0 before the first.
        number: Counts the posts, so that no clock of another host is read.
        ended: Why it has ended; empty while it runs, ``done`` after a regular end.
        at_fault: It ended by an error of its own, not because others were lost.
    """

    host: str
    pid: int
    iteration: int = 0
    number: int = 0
    ended: str = ""
    at_fault: bool = False


class Heartbeat:
    """The pulses of all processes of a group, as one of them sees them.

    Args:
        store: A connection of its own to the store that all processes share.
        rank: Of this process.
        places: Host and process id of every rank.
        timeout: Seconds after which a process that does not answer or stays behind is given up.
    """

    def __init__(self, store: Store, rank: int, places: Sequence[tuple[str, int]], timeout: float) -> None:
        self.store, self.rank, self.timeout = store, rank, timeout
        self.seen = [Pulse(*place) for place in places]
        self.own = Pulse(*places[rank])
        self.keys = [f"pulse/{number}" for number in range(len(places))]
        now = time.monotonic()
        self.moved = [now] * len(places)  # when each pulse was last seen to move
        self.advanced = self.answered = now  # when this process came to its iteration; when the store last answered
        self.failing = threading.Lock()  # whoever takes it ends this process
        self.stopped = threading.Event()
        for task in (self._talk, self._watch):
            threading.Thread(target=task, daemon=True, name=f"heartbeat{task.__name__}").start()

    def beat(self, iteration: int) -> None:
        """The training loop has its batch of this iteration, and now works together with the others."""
        self.own.iteration, self.advanced = iteration, time.monotonic()

    def leave(self, reason: str = "") -> None:
        """End regularly, or for a ``reason`` that ends the others too.

        The others do not end before rank 0, which may be saving: torchrun takes the first end with an exit code as a
        failure, and stops the rest. Rank 0 gives them time to see that it has come to its end: the store may go with
        it.
        """
        self.own.ended, self.own.at_fault = reason or "done", bool(reason)
        _within(PATIENCE, self._post)
        if self.rank == 0:
            self._outlast(range(1, len(self.seen)), PATIENCE if reason else self.timeout)
            time.sleep(2 * PULSE)
        elif not reason:
            self._outlast([0], self.timeout)
        self.stopped.set()

    def fail(self, error: Exception) -> NoReturn:
        """End this process because of ``error``, with the name of the process that caused it where it was another.

        Python's own way out is not taken: it waits for process groups that can no longer come to an end.
        """
        with self.failing:  # for ever: the watching thread must not end us while we find out why
            lost = "" if isinstance(error, UserError) or not isinstance(error, RuntimeError) else self._wait_for_cause()
            if not lost and not isinstance(error, UserError):
                traceback.print_exception(error)
                self._end(f"{type(error).__name__}: {error}", at_fault=True, code=1)
            self._say(lost or str(error), "lost" if lost else f"error/{zlib.crc32(str(error).encode())}")
            self._end(lost or str(error), at_fault=not lost, code=self._code() if lost else 2)

    def causes(self, patience: float) -> str:
        """Which processes are lost, in words; empty if none is.

        Args:
            patience: Seconds that a pulse may stand still.
        """
        now = time.monotonic()
        if self.rank != 0 and now - self.answered > patience and not self.seen[0].ended:
            return f"{self._name(0)}, on whose host the group's store is, has not answered for {self._since(0)} s"
        ended = [f"{self._name(rank)} ended: {one.ended}" for rank, one in enumerate(self.seen) if one.at_fault]
        silent = [
            f"{self._name(rank)} has not answered for {self._since(rank)} s"
            for rank, one in enumerate(self.seen)
            if rank != self.rank and not one.ended and now - self.moved[rank] > patience
        ]
        given_up = [one.ended for one in self.seen if one.ended not in ("", "done") and not one.at_fault]
        return "; ".join(ended + silent or given_up[:1])

    def behind(self) -> str:
        """Which living processes have kept this one waiting for the timeout, in words; empty if none has."""
        waited = time.monotonic() - self.advanced
        if waited < self.timeout:
            return ""
        return "; ".join(
            f"{self._name(rank)} hangs: this process has waited for it in iteration {self.own.iteration} for "
            f"{waited:.0f} s"
            for rank, one in enumerate(self.seen)
            if not one.ended and one.iteration < self.own.iteration
        )

    def _name(self, rank: int) -> str:
        one = self.seen[rank]
        return f"rank {rank} on {one.host} (pid {one.pid}, iteration {one.iteration})"

    def _since(self, rank: int) -> str:
        return f"{time.monotonic() - self.moved[rank]:.0f}"

    def _wait_for_cause(self) -> str:
        """Who is lost, asked until a living process must have shown its pulse."""
        end = time.monotonic() + PATIENCE + 2 * PULSE
        while time.monotonic() < end:
            if found := self.causes(PATIENCE):
                return found
            time.sleep(PULSE / 4)
        return self.behind()

    def _code(self) -> int:
        """Exit code where others were lost; after an error of one of them a new start would come to the same end."""
        return 1 if any(one.at_fault for one in self.seen) else EXIT_RETRY

    def _talk(self) -> None:
        """Thread: post this process's pulse, read the others'. May hang where the store does."""
        while not self.stopped.wait(PULSE):
            try:
                self._post()
                self._read()
            except (RuntimeError, OSError):  # the connection is not made again; `causes` sees that nothing comes
                return

    def _post(self) -> None:
        self.own.number += 1
        self.store.set(self.keys[self.rank], json.dumps(asdict(self.own)))

    def _read(self) -> None:
        there = [key for key, one in zip(self.keys, self.seen, strict=True) if one.number or self.store.check([key])]
        for key, text in zip(there, self.store.multi_get(there), strict=True):
            rank, pulse = self.keys.index(key), Pulse(**json.loads(text))
            if pulse.number != self.seen[rank].number:
                self.seen[rank], self.moved[rank] = pulse, time.monotonic()
        self.answered = time.monotonic()

    def _watch(self) -> None:
        """Thread: end this process where its main thread waits in vain. Touches nothing that can hang."""
        while not self.stopped.wait(PULSE / 2):
            if not (self.causes(self.timeout) or self.behind()):
                continue
            self.stopped.wait(PATIENCE)  # the main thread may come to an end by itself
            lost = self.causes(self.timeout) or self.behind()
            if lost and not self.stopped.is_set() and self.failing.acquire(blocking=False):
                self._say(lost, "lost")
                self._end(lost, at_fault=False, code=self._code())

    def _say(self, message: str, key: str) -> None:
        """Print an error once, not once a process; where the store cannot tell, too often rather than not at all."""
        first = _within(PULSE, lambda: self.store.add(f"said/{key}", 1) == 1)
        if first is not False:
            print(f"error: {message}", file=sys.stderr, flush=True)

    def _end(self, reason: str, at_fault: bool, code: int) -> NoReturn:
        self.own.ended, self.own.at_fault = reason, at_fault
        _within(PULSE, self._post)
        if self.rank == 0:
            self._outlast(range(1, len(self.seen)), PATIENCE)
        for child in multiprocessing.active_children():  # the loader's workers
            child.terminate()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _outlast(self, ranks: Iterable[int], limit: float) -> None:
        """Wait until these processes have ended or are lost."""
        ranks, end = list(ranks), time.monotonic() + limit
        while time.monotonic() < end:
            if all(self.seen[rank].ended or time.monotonic() - self.moved[rank] > PATIENCE for rank in ranks):
                return
            time.sleep(PULSE / 4)


def _within(seconds: float, call: Callable[[], T]) -> T | None:
    """The result of a call that may hang for ever; None where it does, or fails."""
    results: list[T] = []

    def attempt() -> None:
        with contextlib.suppress(RuntimeError, OSError):
            results.append(call())

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
