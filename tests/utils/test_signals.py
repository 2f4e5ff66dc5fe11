"""Signals in data loader workers; test_kills.py tests signals to a run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

from dp_basicsr.data.stream import outlive_signals
from dp_basicsr.utils.signals import SAME_SIGNAL, SIGNALS, Interruption

import pytest

from tests.support.processes import CONTEXT


def work(pipe: Connection) -> None:
    outlive_signals()
    while True:
        pipe.send(pipe.recv())


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_worker_ignores_signals_except_its_parent_s(method: str) -> None:
    """torchgeo#886: forkserver, the default of Python 3.14, whose server is the worker's parent for the system."""
    context: Any = CONTEXT if method == "forkserver" else multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    worker = context.Process(target=work, args=(theirs,), daemon=True)
    worker.start()
    for number in SIGNALS * 2:
        ours.send(number)
        assert ours.recv() == number
        os.system(f"kill -{number.value} {worker.pid}")  # by another process
        time.sleep(0.05)
    ours.send("still there")
    assert ours.recv() == "still there"
    worker.terminate()
    worker.join(timeout=60)
    assert worker.exitcode == 0


def test_a_second_signal_ends_the_first_process_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    """mrmn2/PdfDing#165: for the kernel such a process outlives a signal without a handler."""
    ended = list[int]()
    monkeypatch.setattr(os, "kill", lambda process, number: None)
    monkeypatch.setattr(os, "_exit", ended.append)
    now = time.monotonic()
    with Interruption(dist=False):
        for moment in (now, now + SAME_SIGNAL / 2, now + 2 * SAME_SIGNAL):
            assert not ended
            monkeypatch.setattr(time, "monotonic", lambda moment=moment: moment)
            signal.raise_signal(signal.SIGTERM)
    assert ended == [128 + signal.SIGTERM]


def test_workers_stop_when_their_torchrun_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """lightly-train#92."""
    monkeypatch.setattr("dp_basicsr.utils.signals.start_maximum", lambda number: lambda: number)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with Interruption(dist=True) as interruption:
        assert not interruption.all_agree(now=True)
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert interruption.all_agree(now=True)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_of_a_scheduler_is_noted_and_ends_nothing(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """submitit#1708: its warning is SIGUSR2. The kernel repeats SIGXCPU each second, also during the last step."""
    monkeypatch.setattr("dp_basicsr.utils.signals.SAME_SIGNAL", -1.0)
    before = signal.signal(number, lambda *_: None)
    try:
        with Interruption(dist=False) as interruption:
            for _ in range(1 + (number == signal.SIGXCPU)):
                signal.raise_signal(number)
        assert interruption.received()
    finally:
        signal.signal(number, before)
