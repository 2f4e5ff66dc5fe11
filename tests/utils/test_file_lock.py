"""Without lock support there is a warning, and everything else works."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

from dp_basicsr.utils import file_lock
from dp_basicsr.utils.file_lock import run_lock
from dp_basicsr.utils.staging import StagedFolder

import pytest


@pytest.fixture(params=["EBADF", "ENOSYS", "ENOLCK", "no fcntl"])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "no fcntl":
        monkeypatch.setattr(file_lock, "fcntl", None)
        return request.param
    number = getattr(errno, request.param)

    def refuse(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    for kind in ("flock", "lockf"):
        monkeypatch.setattr(f"fcntl.{kind}", refuse)
    return os.strerror(number)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("basicsr"), "propagate", True)
    return caplog


def test_a_staged_folder_is_written(without_locks: str, warnings: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "left").touch()
    with StagedFolder(tmp_path / "out") as staged:
        (staged.path / "file").touch()
        staged.commit()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["out", "out/file"]
    assert warnings.text.count("out.partial cannot be locked") == 1
    assert without_locks in warnings.text


def test_a_run_is_not_locked(without_locks: str, warnings: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with run_lock(str(tmp_path / "experiments" / "run")):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "experiments"]
    assert ".run.lock cannot be locked" in warnings.text
    assert without_locks in warnings.text
    assert "start no second run of this name" in warnings.text
