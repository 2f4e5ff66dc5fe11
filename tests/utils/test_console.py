"""A program outlives the terminal that it writes to."""

from __future__ import annotations

import io
import os
import sys

from dp_basicsr.utils.console import outlive_terminal

import pytest
from tqdm import tqdm


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_is_written_to_a_closed_terminal_is_dropped(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    terminal = io.TextIOWrapper(io.FileIO(slave, "w"), encoding="utf-8", write_through=True)
    monkeypatch.setattr(sys, stream, terminal)
    with outlive_terminal():
        outliving = getattr(sys, stream)
        assert outliving.isatty()
        print("shown", file=outliving)
        assert os.read(master, 100) == b"shown\r\n"
        os.close(master)
        for number in range(2000):
            print("dropped", number, file=outliving)
        for _ in tqdm(range(3), file=outliving):
            pass
    assert getattr(sys, stream) is terminal
    print("also dropped", file=terminal)  # what others have kept, such as a logger's handler
    terminal.close()


def test_a_file_stays_itself() -> None:
    before = sys.stdout, sys.stderr
    with outlive_terminal():
        assert (sys.stdout, sys.stderr) == before
