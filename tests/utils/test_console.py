"""A program outlives the terminal, the pipe and the disk that it writes to."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dp_basicsr.errors import exit_on_user_error
from dp_basicsr.utils.console import data_command, outlive_terminal

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


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGXCPU"])
def test_a_signal_lets_a_command_remove_its_partial_results(name: str) -> None:
    """mmsegmentation#1998 (sibling): the limit of CPU time ended it at once."""
    number, removed = getattr(signal, name), []

    def work() -> None:
        try:
            signal.raise_signal(number)
        finally:
            if name == "SIGXCPU":  # the kernel repeats it each second
                signal.raise_signal(number)
            removed.append(name)

    with pytest.raises(SystemExit, match=f"^{128 + number}$"), data_command():
        work()
    assert removed == [name]


def test_a_command_runs_in_a_thread_too() -> None:
    """In a notebook's, Streamlit's or a server's."""

    def work() -> int:
        with data_command():
            return 1

    with ThreadPoolExecutor() as threads:
        assert threads.submit(work).result() == 1


def broken_stream(kind: str) -> io.TextIOWrapper:
    """A stream to a full disk, or to a pipe that nobody reads."""
    if kind == "full":
        number = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, number = os.pipe()
        os.close(reader)
    return io.TextIOWrapper(io.BufferedWriter(io.FileIO(number, "w")), encoding="utf-8")


@pytest.mark.parametrize("kind", ["full", "unread"])
def test_a_run_outlives_what_its_lines_go_to(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``train ... | head``, and telefonicaid/perseo-fe#27: the disk of the output is full."""
    monkeypatch.setattr(sys, "stdout", broken_stream(kind))
    with exit_on_user_error(), outlive_terminal():
        for number in range(2000):
            print("dropped", number)


def test_a_full_disk_behind_stdout_is_told_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", broken_stream("full"))
    steps = iter(range(3))

    def command() -> None:
        with exit_on_user_error():
            for number in steps:
                print("not written", number)

    with pytest.raises(SystemExit, match="1"):
        command()
    assert next(steps, None) is None
    told = "error: stdout cannot be written (No space left on device); everything else is done"
    assert told in capsys.readouterr().err


def test_closed_streams_are_opened_to_nowhere() -> None:
    """treeverse/dvc#10041: otherwise the next file gets the number of stdout, and lines are written into it."""
    code = """if True:
        from dp_basicsr.errors import exit_on_user_error
        with exit_on_user_error():
            file = open("file", "w")
            assert file.fileno() > 2
            print("lost")"""
    assert subprocess.run(["sh", "-c", f'{sys.executable} -c "$0" >&- 2>&- <&-', code], check=False).returncode == 0
    assert Path("file").read_text() == ""


def test_a_stream_of_a_notebook_stays_itself() -> None:
    before = sys.stdout, sys.stderr
    with outlive_terminal():
        assert (sys.stdout, sys.stderr) == before
