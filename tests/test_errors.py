"""Which errors are the user's, and what they say."""

from __future__ import annotations

import errno
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

from dp_basicsr.errors import EXTRAS, UserError, exit_on_user_error, import_optional

import pytest

from tests.support.programs import ROOT


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),  # from os.pipe, which starts a worker
        OSError(errno.EMFILE, os.strerror(errno.EMFILE), "image.png"),
        RuntimeError("received 0 items of ancdata"),  # pytorch#973
    ],
)
def test_the_limit_of_open_files_is_one_message(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    """zju3dv/NeuralRecon#91."""
    with pytest.raises(SystemExit) as stopped, exit_on_user_error():
        raise error
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: too many open files: raise the limit (ulimit -n 65536)")
    assert said.count("\n") == 1
    assert "num_worker_per_gpu" in said


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are others there")
def test_a_reader_that_is_gone_ends_a_command_quietly() -> None:
    """Backblaze/B2_Command_Line_Tool#1071: ``dp-basicsr options | head -n 1``."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "dp_basicsr", "options"]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


FAULTS = {
    "broken": ("raise TypeError('Descriptors cannot be created directly')", "TypeError: Descriptors cannot be created"),
    "lacks a library": ("raise ImportError('libtbb.so: cannot open')", "ImportError: libtbb.so: cannot open"),
    "lacks a package": ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
    "too old": ("", "AttributeError: module '{}' has no attribute 'new_function'"),
}


@pytest.mark.parametrize("package", EXTRAS)
def test_each_optional_package_may_be_missing_broken_or_too_old(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever its import raises, a program ends with one line: the package, the reason and a command."""

    def use() -> str:
        monkeypatch.delitem(sys.modules, package, raising=False)
        with pytest.raises(SystemExit) as stopped, exit_on_user_error():
            importlib.import_module(package).new_function()
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    monkeypatch.syspath_prepend(str(tmp_path))
    for number, (code, reason) in enumerate(FAULTS.values()):
        folder = tmp_path / str(number)
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text(code)
        monkeypatch.syspath_prepend(str(folder))
        line = use()
        assert re.match(f"error: {package}( [\\d.]\\S*)? is installed, but cannot be used ", line)
        assert reason.format(package) in line
        assert line.endswith(f": pip install --upgrade --force-reinstall {package}")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"{package} is not installed: p"):
        import_optional(package)
