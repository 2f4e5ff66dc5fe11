"""Which errors are the user's, and what they say."""

from __future__ import annotations

import errno
import os

from dp_basicsr.errors import exit_on_user_error

import pytest


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
