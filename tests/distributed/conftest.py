"""Shared fixtures of the tests with several processes."""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from torch.distributed.launcher.api import LaunchConfig


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> Iterator[LaunchConfig]:
    """torchrun with one restart on two processes, in this process; its signal handlers are removed after the test."""
    monkeypatch.setattr(inspect, "stack", partial(inspect.stack, 0))  # as in preload.py
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    yield LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=1, monitor_interval=0.05, start_method="forkserver",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id="test", local_addr="localhost",
    )  # fmt: skip
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake `scontrol` for one list of hosts, first on PATH."""
    program = tmp_path / "bin/scontrol"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\n[ "$*" = "show hostnames node[1-2]" ] || exit 1\nprintf "127.0.0.1\\nnode2\\n"\n', encoding="utf-8"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
