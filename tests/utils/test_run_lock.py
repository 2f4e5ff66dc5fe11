"""One run of the same name at a time, and locks released on death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from dp_basicsr.errors import UserError
from dp_basicsr.utils.file_lock import run_lock

import pytest

HOLD = """
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(handle, fcntl.LOCK_EX)
os.write(handle, b"process 123 on somewhere")
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_live_run_holds_its_lock_and_a_dead_one_releases_it(tmp_path: Path) -> None:
    folder = tmp_path / "experiments" / "run"
    folder.mkdir(parents=True)
    command = [sys.executable, "-c", HOLD, str(folder.with_name(".run.lock"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        in_use = pytest.raises(UserError, match="experiments/run is in use by process 123 on somewhere")
        with in_use, run_lock(str(folder)):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with run_lock(str(folder)):
        assert folder.with_name(".run.lock").read_text().startswith(f"process {os.getpid()} on ")
    assert os.listdir(tmp_path / "experiments") == ["run"]


def test_the_lock_leaves_nothing_without_an_experiment(tmp_path: Path) -> None:
    with run_lock(str(tmp_path / "experiments" / "run")):
        pass
    assert list(tmp_path.iterdir()) == []
