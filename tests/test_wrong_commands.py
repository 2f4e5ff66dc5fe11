"""Every program with wrong files in every argument: exit code not 0, one readable message, no other files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import dropwhile
from pathlib import Path

import pytest

from tests.support.fuzz import judge, no_hang
from tests.support.networks import network_file
from tests.support.options import SMALL_PSNR
from tests.support.programs import ROOT, code_of, main_of, python

WRONG = {
    "nowhere": "wrong/nowhere",
    "empty": "wrong/empty.png",
    "a folder": "wrong/folder.png",
    "a link to itself": "wrong/loop",
    "a pipe": "wrong/pipe",
    "an endless file": "wrong/zero",
    "rubbish": "wrong/rubbish.png",
    "a strange name": "wrong/a b\nü😀\x1b.png",
    "bytes as a name": os.fsdecode(b"wrong/a\xe9.png"),
    "a long name": "a" * 300,
    "unreadable memory": "/proc/self/mem",
}

TEST_SET = (
    "datasets={test_1: {name: t, type: PairedImageDataset, dataroot_gt: pairs/GT, dataroot_lq: pairs/LRbicx4, "
    "io_backend: {type: disk}}}"
)

# Program and arguments, with {} for the wrong file.
READING = [
    "train.py -opt {}",
    "test.py -opt {}",
    "train.py -opt small.yml --force_yml path:pretrain_network_g={}",
    "train.py -opt small.yml --force_yml path:resume_state={}",
    "train.py -opt small.yml --force_yml datasets:train:dataroot_gt={}",
    "test.py -opt small.yml --force_yml SET path:pretrain_network_g={}",
    "inference.py -i {} -o out --model_path net.pth",
    "inference.py -i pairs/GT/image0.png -o out --model_path {}",
    "export_model --model_path {} --format pth -o o.pth",
    "export_model --model_path net.pth --format pth -o o.pth --metrics {}",
    "create_lmdb --input {} --output o.lmdb --workers 1",
    "make_lr --input {} --output o --workers 1",
    "extract_subimages --input {} --output o --workers 1",
    "check_dataset -opt {}",
    "compare_crops {} image0 --crop 0,0,9,9",
    "evaluate --gt {} --bicubic --metrics psnr_y",
    "evaluate --gt pairs/GT --result A={} --metrics psnr_y",
    "make_report {}",
    "plot_features {} --weights random",
]


@pytest.fixture
def place(pairs: Path) -> None:
    """Valid input, and the wrong files in WRONG."""
    wrong = Path("wrong")
    (wrong / "folder.png").mkdir(parents=True)
    (wrong / "loop").symlink_to("loop")
    (wrong / "zero").symlink_to("/dev/zero")
    os.mkfifo(wrong / "pipe")
    (wrong / "empty.png").touch()
    for name in ("rubbish", "a strange name", "bytes as a name"):
        Path(WRONG[name]).write_bytes(b"\x93\0rubbish\xff" * 20)
    network_file()
    Path("small.yml").write_text(SMALL_PSNR)


def everything() -> set[bytes]:
    return {os.fsencode(path) for path in Path().rglob("*")}


def message_of(error: str) -> str:
    """The message after the log: ``error:``, or ``failed:`` for one image of several."""
    lines = dropwhile(lambda line: not line.startswith(("error: ", "failed: ")), error.splitlines())
    return "\n".join(lines)


@pytest.mark.parametrize("command", READING)
def test_wrong_files(command: str, place: None, capsys: pytest.CaptureFixture[str]) -> None:
    name, *words = command.split()
    main = main_of(name)
    for what, path in WRONG.items():
        before = everything()
        arguments = [word.replace("{}", path).replace("SET", TEST_SET) for word in words]
        with no_hang():
            code = code_of(main, arguments)
        message = message_of(capsys.readouterr().err)
        assert code in (1, 2), what
        assert len(message) > 20, what
        judge(message)
        assert everything() == before, what


@pytest.mark.parametrize(
    "command",
    [
        "train.py -opt small.yml --force_yml train:total_iter=1e30",
        "train.py -opt small.yml --force_yml datasets:train:batch_size_per_gpu=99999999999",
        "inference.py -i pairs/GT -o out --model_path net.pth --outscale nan",
        "make_lr --input pairs/GT --output o --scale 99999999999999999999",
        "make_lr --input pairs/GT --output wrong/loop",
        "make_lr --input pairs/GT --output wrong/empty.png/o",
        "extract_subimages --input pairs/GT --output o --crop-size 99999999999999999999",
        "download_datasets set5 --root wrong/empty.png --base-url http://127.0.0.1:1",
        f"make_report wrong --quality {'9' * 5000}",
    ],
)
def test_wrong_values(command: str, place: None, refused: Callable[..., str]) -> None:
    name, *words = command.split()
    main, before = main_of(name), everything()
    with no_hang():
        assert "error: " in refused(main, words)
    assert everything() == before


def shell(*command: str) -> list[str]:
    folder = "dp_basicsr" if command[0] in ("train.py", "test.py", "inference.py") else "scripts"
    return [sys.executable, str(ROOT / folder / command[0]), *command[1:]]


@pytest.mark.parametrize("command", [
    ("train.py", "-opt", WRONG["bytes as a name"]),
    ("inference.py", "-i", WRONG["a strange name"], "-o", "out", "--model_path", "net.pth"),
])  # fmt: skip
def test_commands_as_a_user_types_them(command: tuple[str, ...], place: None) -> None:
    """In new processes with their own locale: no traceback, and no other files."""
    before = everything()
    done = subprocess.run(shell(*command), capture_output=True, timeout=300, check=False)
    assert done.returncode in (1, 2)
    assert b"Traceback" not in done.stderr
    judge(message_of(done.stderr.decode()))
    assert everything() == before


@pytest.mark.parametrize("command", [
    ("train.py", "-opt", "small.yml"),
    ("make_lr.py", "--input", "pairs/GT", "--output", "o"),
])  # fmt: skip
def test_an_early_ctrl_c(command: tuple[str, ...], place: None) -> None:
    """After it starts reading its options (before, Python itself prints KeyboardInterrupt)."""
    begun = "import sys, runpy, threading, os, signal, time; sys.argv = sys.argv[1:]\n" \
        "import argparse; parse = argparse.ArgumentParser.parse_args\n" \
        "def late(*a): threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start(); return parse(*a)\n" \
        "argparse.ArgumentParser.parse_args = late\n" \
        "runpy.run_path(sys.argv[0], run_name='__main__')"  # fmt: skip
    done = python(begun, *shell(*command)[1:], check=False)
    assert done.returncode in (0, 75, 128 + signal.SIGINT), done.stderr
    assert "Traceback" not in done.stderr
