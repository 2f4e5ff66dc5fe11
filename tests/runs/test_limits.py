"""The system's limits: memory that runs out, freed memory that is kept, open files."""

from __future__ import annotations

import ctypes
import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_NOFILE

from dp_basicsr import train
from dp_basicsr.checkpoint.manifest import check_manifest
from dp_basicsr.errors import UserError
from dp_basicsr.models import SRGANDPModel
from dp_basicsr.options import parse_command_line, read_given_options
from dp_basicsr.runs.limits import (
    keep_freed_memory,
    out_of_memory_is_user_error,
    raise_open_file_limit,
    shorten_socket_names,
)
from dp_basicsr.runs.start import start_run

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.support.options import write_small_gan
from tests.support.processes import CONTEXT

ERROR = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation ...")


@pytest.fixture
def options(pairs: Path) -> list[str]:
    write_small_gan(logger={"print_freq": 1, "save_checkpoint_freq": 2, "use_tb_logger": False})
    return ["-opt", "small.yml"]


def test_a_run_stops_with_the_options_that_help_and_resumes(
    options: list[str], monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    step = SRGANDPModel.optimize_parameters

    def greedy(model: SRGANDPModel, iteration: int) -> None:
        if iteration == 4:
            raise ERROR
        step(model, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(SRGANDPModel, "optimize_parameters", greedy)
        (line,) = [line for line in refused(train.main, options).splitlines() if line.startswith("error: ")]
    for words in (
        "Tried to allocate 2.00 GiB", "checkpointing: true (now false)", "amp: bf16 (now none)",
        "grad_accumulation (now 1)", "batch_size_per_gpu (now 2)", "gt_size (now 32)", "--auto_resume",
    ):  # fmt: skip
        assert words in line
    states = Path("experiments/small/training_states")
    assert sorted(path.name for path in states.iterdir()) == ["2.sha256", "2.state"]
    check_manifest(states / "2.sha256")
    train.main([*options, "--auto_resume"])
    assert (states / "4.state").is_file()


def lack() -> Exception:
    """torch's own error."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    return raised.value


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ERROR, "does not fit into memory"),
        (lack(), "does not fit into memory"),
        (MemoryError(), "does not fit into memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ..."),
         "does not fit into memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
         "does not fit into memory"),
        (RuntimeError("onnxruntime: Failed to allocate memory for requested buffer"), "does not fit into memory"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "^mat1 and mat2 shapes cannot be multiplied$"),
        (UserError("validation of a: out of memory"), "^validation of a: out of memory$"),
    ],
)  # fmt: skip
def test_gpu_and_cpu_memory_are_handled_alike_and_other_errors_pass(
    error: Exception, expected: str, options: list[str]
) -> None:
    args = parse_command_line("", options)
    run = start_run(read_given_options(args), args)
    kind = UserError if "memory" in expected else type(error)
    with pytest.raises(kind, match=expected), out_of_memory_is_user_error(run):
        raise error


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [(1024, 4096, 4096), (1024, 2**20, 65536), (1024, RLIM_INFINITY, 65536), (100_000, RLIM_INFINITY, 100_000),
     (RLIM_INFINITY, RLIM_INFINITY, RLIM_INFINITY)],
)  # fmt: skip
def test_the_soft_limit_is_raised(soft: int, hard: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytorch#973, zju3dv/NeuralRecon#91: a few dozen workers reach the usual 1024. A higher limit stays."""
    limits = {RLIMIT_NOFILE: (soft, hard)}
    monkeypatch.setattr("resource.getrlimit", limits.__getitem__)
    monkeypatch.setattr("resource.setrlimit", limits.__setitem__)
    raise_open_file_limit()
    assert limits[RLIMIT_NOFILE] == (expected, hard)


def load_a_batch(folder: str) -> None:
    """Load a batch by a worker, with a folder for temporary files that was chosen before the program."""
    multiprocessing.set_start_method("fork", force=True)
    multiprocessing.current_process()._config.pop("tempdir", None)  # type: ignore[attr-defined]
    tempfile.tempdir = folder
    shorten_socket_names()
    assert tempfile.gettempdir() == folder
    assert len(list(DataLoader(TensorDataset(torch.zeros(2, 3)), num_workers=1))) == 2


def test_workers_pass_batches_under_a_long_tmpdir(tmp_path: Path) -> None:
    """RiboDetector#57: "AF_UNIX path too long", and the run waited for ever, also after SIGTERM."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    process = CONTEXT.Process(target=load_a_batch, args=(str(folder),))
    process.start()
    process.join(120)
    process.kill()
    assert process.exitcode == 0


def count_faults(keep: bool, file: str) -> None:
    """Count the page faults of writing 32 MiB a second time, after it was freed."""
    assert not keep or keep_freed_memory()
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    faults = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = ctypes.c_void_p(libc.malloc(1 << 25))
        ctypes.memset(block, 1, 1 << 25)
        libc.free(block)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    Path(file).write_text(str(faults[1]))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has mallopt")
def test_freed_memory_is_not_cleared_again() -> None:
    """In processes of their own, because it cannot be undone."""
    faults = []
    for keep in (True, False):
        process = CONTEXT.Process(target=count_faults, args=(keep, str(Path("faults").absolute())))
        process.start()
        process.join()
        faults.append(int(Path("faults").read_text()))
    assert faults[0] < 100 < faults[1]
