"""Processes for tests: forked from one that has imported torch, so that they start at once."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.run
from torch.utils.data import _utils, dataloader

# The command `torchrun`, whose workers are forked too.
TORCHRUN = [torch.distributed.run.__file__, "--run-path", "--start-method=fork"]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.support.preload"])

# The server must find that module in any folder; until Python 3.12.8 it ignores sys.path, and a module that it does not
# find, so that each process would import everything by itself.
ROOT = str(Path(__file__).resolve().parents[2])
os.environ["PYTHONPATH"] = os.pathsep.join([ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])

# torch asks NVML whether there is a GPU: the CUDA runtime, once asked, cannot be used in what is forked afterwards.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"


# Seconds, instead of 5, after which a data loader looks whether its workers live, and waits for their ends.
_utils.MP_STATUS_CHECK_INTERVAL = 0.5
dataloader._MultiProcessingDataLoaderIter._try_get_data.__defaults__ = (0.5,)


def prepare_process(environment: dict[str, str]) -> None:
    """Set a forked process's environment variables, and what its own children need."""
    # This process has the start method that made it; loader workers of the program must start as they do elsewhere.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    os.environ.update(environment)


def redirect_output(path: str) -> None:
    """Append stdout and stderr of this process to a file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115


def run_program(words: Sequence[str], folder: str, output: str, environment: dict[str, str]) -> None:
    """Run a Python file as ``python FILE ARGUMENTS`` does, in this process."""
    prepare_process(environment)
    os.chdir(folder)
    redirect_output(output)
    sys.argv = list(words)
    runpy.run_path(words[0], run_name="__main__")


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def wait_until(happened: Callable[[], object], alive: Callable[[], object] = lambda: True) -> None:
    """Wait for processes, which must be ``alive``; minutes for what takes a second on a quiet machine."""
    end = time.monotonic() + 200
    while not happened():
        assert alive() and time.monotonic() < end, "the processes do not come to this"  # noqa: PT018
        time.sleep(0.02)


def rank_variables(rank: int, count: int, port: str) -> dict[str, str]:
    """torchrun's environment variables of one of ``count`` processes."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip


class Processes:
    """Processes of one run, as several ``python FILE ARGUMENTS``.

    Args:
        folder: Where they run.
        outputs: For a file of what each prints.

    Attributes:
        all: By rank.
    """

    def __init__(self, folder: Path, outputs: Path) -> None:
        self.folder, self.outputs = folder, outputs
        self.all: list[multiprocessing.process.BaseProcess] = []
        self.port = free_port()

    def start(self, *commands: Sequence[str], folders: Sequence[Path] = (), **environment: str) -> None:
        """Start a process for each command, with torchrun's variables unless ``environment`` has others."""
        for rank, words in enumerate(commands):
            variables = environment or rank_variables(rank, len(commands), self.port)
            settings = {name: value.format(rank=rank) for name, value in variables.items()}
            folder = folders[rank] if folders else self.folder
            arguments = (list(words), str(folder), str(self.output(rank)), settings)
            process = CONTEXT.Process(target=run_program, args=arguments)
            process.start()
            self.all.append(process)

    def output(self, rank: int) -> Path:
        return self.outputs / str(rank)

    def ends(self, *ranks: int, limit: float = 300) -> tuple[list[int | None], list[str]]:
        """Exit codes and outputs of processes that must end by themselves."""
        for rank in ranks:
            self.all[rank].join(limit)
            assert self.all[rank].exitcode is not None, f"rank {rank} does not end: {self.output(rank).read_text()}"
        return [self.all[rank].exitcode for rank in ranks], [self.output(rank).read_text() for rank in ranks]


@contextmanager
def processes_in(folder: Path) -> Iterator[Processes]:
    """Processes, none of which outlives the block."""
    with tempfile.TemporaryDirectory() as outputs:
        made = Processes(folder, Path(outputs))
        try:
            yield made
        finally:
            for process in made.all:
                process.kill()
                process.join()


class Program:
    """``subprocess.Popen`` of a Python program, forked; its stdout and stderr are one."""

    def __init__(self, command: Sequence[str], cwd: Path, **streams: Any) -> None:
        self.output = Path(getattr(streams["stdout"], "name", cwd / "output"))
        self.process = CONTEXT.Process(target=run_program, args=(command[1:], str(cwd), str(self.output), {}))
        self.process.start()
        self.pid, self.kill = self.process.pid, self.process.kill

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float) -> int | None:
        self.process.join(timeout)
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        assert self.pid
        os.kill(self.pid, number)

    def communicate(self) -> tuple[None, str]:
        self.process.join()
        return None, self.output.read_text()


class ForkedSubprocess:
    """The module ``subprocess`` whose ``Popen`` forks, and whose ``run`` forks Python files."""

    Popen = Program

    def run(self, command: Sequence[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        if not command[1].endswith(".py"):
            return subprocess.run(command, **settings)
        with tempfile.NamedTemporaryFile() as output:
            words = [str(Path(settings["cwd"], command[1])), *command[2:]]
            process = Program([command[0], *words], Path(settings["cwd"]), stdout=output)
            _, printed = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode or 0, printed, printed)

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)
