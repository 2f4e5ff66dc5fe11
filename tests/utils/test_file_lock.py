"""One run of the same name at a time; without lock support there is a warning, and everything else works."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

from dp_basicsr.errors import UserError
from dp_basicsr.utils import file_lock
from dp_basicsr.utils.atomic_io import no_room_is_user_error
from dp_basicsr.utils.file_lock import run_lock
from dp_basicsr.utils.staging import StagedFolder

import pytest

HOLD = """
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(handle, fcntl.LOCK_EX)
os.write(handle, b"process 123 on somewhere")
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_live_run_holds_its_lock_and_a_dead_one_releases_it() -> None:
    folder, lock = Path("experiments/run"), Path("experiments/.run.lock")
    with run_lock(str(folder)):
        pass
    assert not Path("experiments").exists(), "nothing is left without an experiment"
    folder.mkdir(parents=True)
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        in_use = pytest.raises(UserError, match="experiments/run is in use by process 123 on somewhere")
        with in_use, run_lock(str(folder)):
            pass
        holder.kill()
        holder.wait()
    with run_lock(str(folder)):
        assert lock.read_text().startswith(f"process {os.getpid()} on ")
    assert os.listdir("experiments") == ["run"]


def test_a_disk_that_is_gone_hides_no_other_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """colabtools#3441: "Transport endpoint is not connected", of the lock, in place of how to continue."""

    def fail(*arguments: object, **settings: object) -> None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    def run() -> None:
        with run_lock("experiments/run"):
            monkeypatch.setattr(Path, "unlink", fail)
            monkeypatch.setattr(Path, "rmdir", fail)
            raise UserError("continue with --auto_resume")

    with pytest.raises(UserError, match="continue with --auto_resume"):
        run()


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ESTALE, errno.EIO, errno.ENOSPC])
def test_a_disk_that_is_gone_or_full_says_how_to_continue(number: int) -> None:
    error = OSError(number, os.strerror(number), "tb_logger/a")
    with pytest.raises(UserError, match=r"tb_logger/a cannot .*continue with --auto"), no_room_is_user_error():
        raise error


def test_a_link_to_a_disk_that_is_not_mounted_is_named(tmp_path: Path) -> None:
    """LibreYOLO#187: "File exists", of a file that does not."""
    Path("experiments").symlink_to(tmp_path / "disk/experiments")
    with pytest.raises(UserError, match="experiments leads to nothing: mount its disk"), run_lock("experiments/run"):
        pass


@pytest.mark.parametrize("lack", ["EBADF", "ENOSYS", "ENOLCK", "no fcntl"])
def test_without_locks_a_run_and_a_staged_folder_are_written_with_a_warning(
    lack: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    number = getattr(errno, lack, 0)

    def refuse(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    for kind in ("flock", "lockf"):
        monkeypatch.setattr(f"fcntl.{kind}", refuse)
    if lack == "no fcntl":
        monkeypatch.setattr(file_lock, "fcntl", None)
    Path("out.partial").mkdir()
    Path("out.partial/left").touch()
    with StagedFolder(tmp_path / "out") as staged:
        (staged.path / "file").touch()
        staged.commit()
    assert caplog.text.count("out.partial cannot be locked") == 1
    with run_lock("experiments/run"):
        pass
    assert sorted(path.as_posix() for path in Path().rglob("*")) == ["experiments", "out", "out/file"]
    assert ".run.lock cannot be locked" in caplog.text
    assert caplog.text.count(os.strerror(number) if number else lack) == 2
    assert "start no second run of this name" in caplog.text
