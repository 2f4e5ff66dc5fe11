"""Signals in data loader workers; test_kills.py tests signals to a run."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import time
from multiprocessing.connection import Connection

from dp_basicsr.data.stream import outlive_signals

import pytest


def work(pipe: Connection) -> None:
    outlive_signals()
    while True:
        pipe.send(pipe.recv())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_worker_ignores_signals_except_its_parent_s(number: signal.Signals) -> None:
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    worker = multiprocessing.get_context("fork").Process(target=work, args=(theirs,), daemon=True)
    worker.start()
    for question in (1, 2):  # also a second signal
        ours.send(question)
        assert ours.recv() == question
        subprocess.run(["kill", f"-{number.value}", str(worker.pid)], check=True)
        time.sleep(0.1)
    ours.send("still there")
    assert ours.recv() == "still there"
    worker.terminate()
    worker.join(timeout=20)
    assert worker.exitcode == 0
