"""Every program that writes, where it cannot: one message, exit code not 0, nothing half-written."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
import resource
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from dp_basicsr.data.downloads.fetch import fetch
from dp_basicsr.data.preparation import jobs
from dp_basicsr.utils import atomic_io

import pytest

from tests.support.fuzz import judge
from tests.support.options import SMALL_PSNR
from tests.support.processes import CONTEXT, prepare_process
from tests.support.programs import code_of, main_of

CAP_DAC_OVERRIDE, CAPABILITIES_3 = 1, 0x20080522  # of Linux's capset

TEST_SET = """
  test_1: {name: t, type: PairedImageDataset, dataroot_gt: pairs/GT, dataroot_lq: pairs/LRbicx4,
           io_backend: {type: disk}}
val: {val_freq: 9, save_img: true, suffix: ~, metrics: {psnr: {type: calculate_psnr, crop_border: 4}}}
network_g"""

WRITING = [
    "train.py -opt small.yml --force_yml name=other",
    "test.py -opt small.yml --force_yml path:pretrain_network_g=net.pth",
    "inference.py -i pairs/LRbicx4/image0.png -o image.png --model_path net.pth --engine torch",
    "export_model --model_path net.pth -o o.pth",
    "export_model --model_path net.pth -o o.safetensors",
    "export_model --model_path net.pth -o o.onnx",
    "export_model --model_path net.pth -o o.param",
    "create_lmdb --input pairs/GT --output o.lmdb --workers 1",
    "make_lr --input pairs/GT --output o --workers 1",
    "extract_subimages --input pairs/GT --output cut --crop-size 48 --step 48 --format both --workers 1",
    "download_datasets set5 --base-url http://127.0.0.1:1",
    "evaluate --gt pairs/GT --bicubic --metrics psnr_y -o other",
    "make_report experiments/small",
]


def make_read_only() -> None:
    """Let this process, even root's, write into no folder here."""
    for folder in (Path(), *(path for path in Path().rglob("*") if path.is_dir())):
        folder.chmod(0o555)
    header, sets = (ctypes.c_uint32 * 2)(CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    assert libc.capget(header, sets) == 0
    for effective_or_permitted in (0, 1):
        sets[effective_or_permitted] &= ~(1 << CAP_DAC_OVERRIDE)
    assert libc.capset(header, sets) == 0


def make_full() -> None:
    """Let this process write no file of more than a byte."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))


def run_all(folder: str, spoil: Callable[[], None], results: Connection) -> None:
    """In a process of its own: run all programs, and send the exit code and the messages of each."""
    prepare_process({"OMP_NUM_THREADS": "1"})
    os.chdir(folder)
    atomic_io.RETRY_AFTER = 0.0
    fetch.__kwdefaults__["pause"] = 0.0
    # Its semaphores are files too, of another disk.
    jobs.ordered_map = lambda function, tasks, workers: (function(task) for task in tasks)  # type: ignore[attr-defined]
    spoil()
    for command in WRITING:
        name, *words = command.split()
        code: int | None = None
        with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
            try:
                code = code_of(main_of(name), words)
            except Exception:
                traceback.print_exc()
        results.send((command, code, err.getvalue()))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "capset"), reason="needs Linux's capabilities")
def test_what_cannot_be_written_is_one_message(pairs: Path) -> None:
    Path("small.yml").write_text(SMALL_PSNR.replace("\nnetwork_g", TEST_SET, 1))
    main_of("train.py")(["-opt", "small.yml", "--force_yml", "train:total_iter=1"])
    Path("experiments/small/models/net_g_latest.pth").rename("net.pth")
    files = {path for path in Path().rglob("*") if path.is_file()}
    for spoil in (make_full, make_read_only):
        ours, theirs = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=run_all, args=(str(Path.cwd()), spoil, theirs))
        process.start()
        theirs.close()
        for command in WRITING:
            of, code, said = ours.recv()
            assert of == command
            assert code in (1, 2), (spoil.__name__, command, said)
            message = "\n".join(line for line in said.splitlines() if line.startswith(("error: ", "failed: ")))
            assert re.search("annot|ould not|too large|refuses|Permission denied", message), (command, said)
            judge(message)
        process.join()
        written = {path for path in Path().rglob("*") if path.is_file()} - files
        assert {path for path in written if path.suffix != ".log"} == set(), spoil.__name__
