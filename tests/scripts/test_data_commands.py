"""The data commands as typed by a user: exit codes, messages, and remains after they are stopped."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--crop-size", "48", "--step", "24", "--workers", "1"]


def start(script: str, *arguments: object, folder: Path) -> subprocess.Popen[str]:
    """Start a script in ``folder`` in its own process group, like a terminal."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def run(script: str, *arguments: object, folder: Path) -> tuple[int, str, str]:
    """Run a script; return exit code, stdout and stderr."""
    with start(script, *arguments, folder=folder) as process:
        out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def write_images(folder: Path, count: int, size: int = 60) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(1, count + 1):
        cv2.imwrite(str(folder / f"{index:04d}.png"), rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
    return folder


def test_extract_prints_what_it_wrote(tmp_path: Path) -> None:
    write_images(tmp_path / "datasets" / "DIV2K" / "DIV2K_train_HR", 3)
    code, out, err = run("extract_subimages.py", *SMALL, folder=tmp_path)
    assert (code, err) == (0, "")
    assert "wrote datasets/DIV2K/DIV2K_train_HR_sub.lmdb: 12 images" in out
    assert "wrote datasets/DIV2K/DIV2K_train_LR_bicubic_X4_sub.lmdb: 12 images" in out


def test_without_the_data_the_error_gives_the_command(tmp_path: Path) -> None:
    code, out, err = run("extract_subimages.py", folder=tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith(
        "error: no such folder: datasets/DIV2K/DIV2K_train_HR; run `python scripts/download_datasets.py div2k`"
    )
    assert len(err.splitlines()) == 1


def test_a_bad_image_is_exit_code_two_and_skip_bad_zero(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "HR", 2)
    (folder / "0002.png").write_bytes(b"")
    code, out, err = run("extract_subimages.py", "--input", "HR", *SMALL, folder=tmp_path)
    assert (code, out) == (2, "")
    assert "1 of 2 images cannot be used" in err
    assert "0002.png is empty" in err
    code, out, _ = run("extract_subimages.py", "--input", "HR", *SMALL, "--skip-bad", folder=tmp_path)
    assert code == 0
    assert "skipped: HR/0002.png is empty" in out
    assert "1 images skipped" in out


def test_create_lmdb_and_make_lr(tmp_path: Path) -> None:
    write_images(tmp_path / "GT", 2, size=41)
    code, out, err = run("make_lr.py", "--input", "GT", "--output", "LRbicx4", "--workers", "1", folder=tmp_path)
    assert (code, err) == (0, "")
    assert out.startswith("wrote LRbicx4: 2 images")
    code, out, err = run(
        "create_lmdb.py", "--input", "LRbicx4", "--output", "LR.lmdb", "--workers", "1", folder=tmp_path
    )
    assert (code, err) == (0, "")
    assert (tmp_path / "LR.lmdb" / "meta_info.txt").read_text().splitlines()[0] == "0001.png (10,10,3) 1"
    code, _, err = run("create_lmdb.py", "--input", "LRbicx4", "--output", "LR.lmdb", folder=tmp_path)
    assert code == 2
    assert err.startswith("error: already exists: LR.lmdb")


def running_workers(parent: int) -> list[int]:
    """Process ids of the pool's workers; multiprocessing's resource tracker is also a child, but not a worker."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for the workers in /proc")
@pytest.mark.parametrize(
    ("victim", "number", "code", "message"),
    [
        ("worker", signal.SIGKILL, 2, "a worker process was killed at or near"),
        ("group", signal.SIGINT, 130, "interrupted"),
        ("parent", signal.SIGTERM, 143, ""),
    ],
)
def test_a_stopped_command_leaves_nothing(tmp_path: Path, victim: str, number: int, code: int, message: str) -> None:
    write_images(tmp_path / "HR", 30, size=400)
    arguments = ["--input", "HR", "--crop-size", "48", "--step", "8", "--format", "both", "--workers", "1"]
    with start("extract_subimages.py", *arguments, folder=tmp_path) as process:
        data = tmp_path / "HR_sub.lmdb.partial" / "data.mdb"
        while process.poll() is None and not (data.exists() and data.stat().st_size > 500_000):
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()
        if victim == "worker":
            os.kill(running_workers(process.pid)[0], number)
        elif victim == "group":
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["HR"]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for the workers in /proc")
def test_a_killed_command_leaves_no_output_and_the_next_run_succeeds(tmp_path: Path) -> None:
    write_images(tmp_path / "HR", 10, size=400)
    arguments = ["--input", "HR", "--crop-size", "48", "--step", "16", "--workers", "1"]
    with start("extract_subimages.py", *arguments, folder=tmp_path) as process:
        while process.poll() is None and not running_workers(process.pid):
            time.sleep(0.01)
        process.kill()
    assert not (tmp_path / "HR_sub.lmdb").exists()
    assert (tmp_path / "HR_sub.lmdb.partial").exists()
    code, out, _ = run("extract_subimages.py", *arguments, folder=tmp_path)
    assert code == 0
    # 400 pixels, crop 48, step 16: 0, 16 ... 352 are 23 windows and reach 400
    assert f"HR_sub.lmdb: {10 * 23 * 23:,} images" in out
    assert not list(tmp_path.glob("*.partial"))


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A folder and the URL of a server for its files."""
    folder = tmp_path / "mirror"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


def pack(path: Path, names: list[str]) -> None:
    png = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(png)
            archive.addfile(info, io.BytesIO(png))


def test_download_puts_a_benchmark_into_its_folder(tmp_path: Path, mirror: tuple[str, Path]) -> None:
    address, folder = mirror
    pack(folder / "Set5_HR.tar.gz", [f"Set5_HR/{name}.png" for name in ("baby", "bird", "butterfly", "head", "woman")])
    code, out, err = run("download_datasets.py", "set5", "--base-url", address, folder=tmp_path)
    assert (code, err) == (0, "")
    assert out.startswith("datasets/Set5/GT: 5 images\ndatasets/Set5/LRbicx4: 5 images, ")
    assert len(list((tmp_path / "datasets" / "Set5" / "GT").iterdir())) == 5
    assert [path.name for path in (tmp_path / "datasets").iterdir()] == ["Set5"]
    code, out, _ = run("download_datasets.py", "set5", "--base-url", address, folder=tmp_path)
    assert code == 0
    assert "already exists" in out
    (tmp_path / "datasets" / "Set5" / "GT" / "bird.png").unlink()
    code, _, err = run("download_datasets.py", "set5", "--base-url", address, folder=tmp_path)
    assert code == 2
    assert "already exists with 4 images, expected 5" in err


@pytest.mark.parametrize(
    ("name", "archive", "members", "message"),
    [
        ("set5", None, [], "answered 404"),
        ("set5", "Set5_HR.tar.gz", ["Set5_HR/a.png", "../../evil.png"], "would be written outside the folder"),
        ("set14", "Set14_HR.tar.gz", ["Set14_HR/a.png"], "has 1 images in its folder Set14_HR, expected 14"),
        ("urban100", "Urban100_HR.tar.gz", ["Urban100_HR/a.png"], "expected md5:65d9d84a34b72c6f7ca1e26a12df1e4c"),
        ("div2k", "DIV2K_train_HR.zip", ["a.png"], "expected 3,530,603,713"),
        ("set6", None, [], "unknown data set 'set6', expected one of div2k, "),
    ],
)
def test_download_refuses_what_is_not_the_published_set(
    tmp_path: Path, mirror: tuple[str, Path], name: str, archive: str | None, members: list[str], message: str
) -> None:
    address, folder = mirror
    if archive:
        pack(folder / archive, members)
    code, out, err = run("download_datasets.py", name, "--base-url", address, folder=tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("evil.png"))
    assert not list((tmp_path / "datasets").glob("*/GT"))
