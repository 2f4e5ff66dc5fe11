"""The pool: order, bounded lookahead, and every way in which a worker can fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.utils import pool
from dp_basicsr.utils.pool import available_cpus, ordered_map

import pytest


def slow_square(number: int) -> int:
    time.sleep(0.02 * (number % 3))
    return number * number


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die_while_sending_three(number: int) -> bytes:
    def send_a_part(self: Connection, buffer: bytes, *_: Any) -> None:
        os.write(self.fileno(), bytes(buffer[: len(buffer) // 2]))
        os.kill(os.getpid(), signal.SIGKILL)

    if number == 3:
        Connection._send = send_a_part  # type: ignore[attr-defined]
    return bytes(1000)


def fail_at_three(number: int) -> int:
    if number == 3:
        raise KeyError("a mistake in the program")
    return number


def hold_back_ctrl_c(number: int) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set())


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs POSIX signals")
def test_ctrl_c_does_not_reach_workers_that_still_import() -> None:
    # What a worker inherits holds from its first instruction.
    assert list(ordered_map(hold_back_ctrl_c, range(2), workers=1)) == [True, True]
    assert not hold_back_ctrl_c(0)


def test_results_come_in_the_order_of_the_tasks() -> None:
    assert list(ordered_map(slow_square, range(20), workers=2)) == [number * number for number in range(20)]


def test_tasks_are_taken_only_as_results_are_taken_out() -> None:
    taken = []

    def tasks() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    with closing(ordered_map(slow_square, tasks(), workers=1)) as results:
        for count, _ in enumerate(results, start=1):
            assert len(taken) <= count + 1
            if count == 5:
                break
    assert len(taken) < 10


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "200000 100000"}, 2), ({"cpu.max": "50000 100000"}, 1), ({"cpu.max": "max 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu.max": "1600000 100000"}, 8), ({"cpu.max": ""}, 8), ({}, 8),
    ],
)  # fmt: skip
def test_a_share_of_the_time_counts_as_cpus(
    files: dict[str, str], cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dmlc/xgboost#7653: ``docker run --cpus 2`` shows all CPUs, and stops those who use them all."""
    monkeypatch.setattr(pool, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert available_cpus() == cpus


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_is_killed_while_it_sends_a_result_is_noticed(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a kernel without memory: the parent would wait for the rest of the result."""
    monkeypatch.setattr(pool, "PATIENCE", 0.2)
    with pytest.raises(UserError, match=r"a worker process was killed at or near: .*3"):
        list(ordered_map(die_while_sending_three, range(9), workers))


def test_a_worker_that_fails_is_an_error_that_names_the_task() -> None:
    with pytest.raises(UserError, match=r"a worker process was killed at or near: .*3.*fewer --workers \(now 1\)"):
        list(ordered_map(die_at_three, range(5), workers=1))
    with pytest.raises(RuntimeError, match=r"a worker failed on 3: KeyError.*a mistake in the program") as caught:
        list(ordered_map(fail_at_three, range(5), workers=1))
    assert isinstance(caught.value.__cause__, KeyError)
    assert available_cpus() >= 1
    with pytest.raises(UserError, match="at least 1 worker"):
        list(ordered_map(slow_square, [1], workers=0))


PARENT = """
import os, time
from dp_basicsr.utils.pool import ordered_map
if __name__ == "__main__":
    for pid in ordered_map(eval, ["__import__('os').getpid()"] * 4, workers=1):
        print(pid, flush=True)
        time.sleep(60)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for the worker in /proc")
def test_workers_do_not_outlive_a_killed_parent() -> None:
    Path("parent.py").write_text(PARENT)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "parent.py"], env=env, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 60
    while is_alive(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
