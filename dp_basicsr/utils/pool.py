"""A process pool for images: ordered results, bounded memory, and workers that never outlive their parent."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from dp_basicsr.errors import UserError

import cv2

# Of Linux's control groups: `docker run --cpus 2` and Kubernetes give a share of the time on all CPUs.
CGROUP = Path("/sys/fs/cgroup")
QUOTAS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))  # of version 2 and 1

PATIENCE = 2.0  # seconds between two looks at the workers

Task = TypeVar("Task")
Result = TypeVar("Result")


def available_cpus() -> int:
    """Return the number of CPUs available to this process: SLURM and containers may restrict them, or their time."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in QUOTAS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or `max`
            quota, period = (int(number) for name in files for number in (CGROUP / name).read_text().split())
            allowed = min(allowed, max(1, round(quota / period))) if quota > 0 else allowed
    return allowed


def ordered_map(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Generator[Result, None, None]:
    """Yield ``function(task)`` for each task, in order, computed in ``workers`` spawned processes.

    Tasks are consumed only as results are taken: at most two per worker are in flight, so memory is bounded and a
    generator of tasks can react to earlier results.

    Args:
        function: Importable from a module; its argument and result are pickled.
        tasks: ``str(task)`` names the task in messages.

    Raises:
        UserError: ``workers`` is below 1, or a worker was killed.
        RuntimeError: ``function`` raised another error (the cause); the message names the task.
    """
    if workers < 1:
        raise UserError(f"expected at least 1 worker, got {workers}")
    # Spawned, not forked: a fork would copy the locks of OpenCV, BLAS and tqdm in an undefined state.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker)
    pending: deque[tuple[Task, Future[Result]]] = deque()
    waiting = iter(tasks)
    try:
        while True:
            for task in itertools.islice(waiting, 2 * workers - len(pending)):
                with _without_ctrl_c():
                    pending.append((task, pool.submit(function, task)))
            if not pending:
                return
            task, future = pending[0]
            # Of a worker that is killed while it sends a result, the pool would wait for the rest, which it holds the
            # other end of as well, and the other workers for their turn.
            pool._result_queue._writer.close()  # type: ignore[attr-defined]
            processes = list(pool._processes.values())
            while not wait([future], PATIENCE).done:
                if not all(process.is_alive() for process in processes):
                    for process in processes:
                        process.kill()
            try:
                result = future.result()
            except (BrokenProcessPool, UserError):
                raise
            except Exception as error:
                raise RuntimeError(f"a worker failed on {task}: {error!r}") from error
            # Only now, so that the message after a kill lists it.
            pending.popleft()
            yield result
    except BrokenProcessPool:
        names = ", ".join(str(task) for task, _ in pending) or "the last task"
        raise UserError(
            f"a worker process was killed at or near: {names}; if memory ran out, use fewer --workers (now {workers})"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _without_ctrl_c() -> Generator[None, None, None]:
    # It reaches the whole group: a worker that still imports would end with a traceback. Workers inherit the mask.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_worker() -> None:
    # Ctrl-C reaches the whole group; only the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The processes are the parallelism.
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()

    def die_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    # Of a killed parent: its worker would wait for tasks forever.
    threading.Thread(target=die_with_parent, daemon=True).start()
