"""Checkpoints: whole or not there, and read without running code."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

from dp_basicsr.checkpoint import find_resume_state, read_state, write_checkpoint
from dp_basicsr.errors import UserError

import pytest
import torch


def options(folder: Path, auto_resume: bool = True) -> dict:
    return {
        "auto_resume": auto_resume,
        "network_g": {},
        "path": {"models": str(folder), "training_states": str(folder), "resume_state": None},
    }


def test_a_full_disk_stops_the_run_and_spares_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "net_g_latest.pth"
    write_checkpoint({"params": {"a": torch.ones(3)}}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="net_g_latest.pth cannot be saved"):
            write_checkpoint({"params": {"a": torch.ones(100_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.equal(torch.load(path, weights_only=True)["params"]["a"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone/1\.state"):
        write_checkpoint({"iter": 1}, tmp_path / "gone" / "1.state")


def test_auto_resume_takes_the_newest(tmp_path: Path) -> None:
    assert find_resume_state(options(tmp_path)) is None
    for iteration in (5, 20, 100):
        write_checkpoint({"iter": iteration}, tmp_path / f"{iteration}.state")
    opt = options(tmp_path)
    assert find_resume_state(opt) == {"iter": 100}
    assert opt["path"]["pretrain_network_g"] == str(tmp_path / "net_g_100.pth")
    assert find_resume_state(options(tmp_path, auto_resume=False)) is None


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    path = tmp_path / "7.state"
    write_checkpoint({"iter": 7, "optimizers": [torch.ones(1000)]}, path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"7\.state"):
        read_state(path)
