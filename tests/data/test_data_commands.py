"""The commands of data preparation: what they print, exit codes, signals, and what is left behind."""

from __future__ import annotations

import io
import os
import signal
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dp_basicsr.commands.data import download, extract, lmdb, lr

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.support.images import ImageFolder
from tests.support.processes import Program, wait_until
from tests.support.programs import ROOT

Refused = Callable[..., str]


def test_extract_prints_what_it_wrote_and_names_or_skips_all_bad_images(
    image_folder: ImageFolder, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    command = ["--crop-size", "48", "--step", "24", "--overwrite"]
    folder = image_folder("datasets/DIV2K/DIV2K_train_HR", a=(60, 60), b=(60, 60), small=(40, 60))
    broken = folder / "broken.png"
    broken.write_bytes((folder / "a.png").read_bytes()[:500])
    error = refused(extract, command[:-1])
    assert error.startswith("error: 2 of 4 images cannot be used (nothing was written; ")
    for message in ("--skip-bad", "broken.png is truncated", "small.png is 60 x 40, smaller than the crop of 48"):
        assert message in error
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert extract([*command[:-1], "--skip-bad"]) == 0
    out = capsys.readouterr().out
    for name in ("HR_sub", "LR_bicubic_X4_sub"):
        assert f"wrote datasets/DIV2K/DIV2K_train_{name}.lmdb: 8 images" in out
    assert "2 images skipped" in out
    assert "DIV2K_train_HR has 4 of the 800 images that were published" in out  # KAIR#138
    assert f"skipped: {folder.relative_to(Path.cwd())}/broken.png is truncated" in out
    (folder / "a.png").unlink(), (folder / "b.png").unlink()
    assert "2 of 2 images cannot be used" in refused(extract, [*command, "--skip-bad"])  # no result either


def test_create_lmdb_and_make_lr(
    image_folder: ImageFolder, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    Image.open(image_folder("GT", b=(41, 41)) / "b.png").convert("L").save("GT/a.png", transparency=7)
    assert lr(["--input", "GT", "--output", "LRbicx4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("wrote LRbicx4: 2 images")
    assert "GT/a.png: of gray with a transparent value the gray alone is read" in out
    command = ["--input", "LRbicx4", "--output", "LR.lmdb"]
    assert lmdb(command) == 0
    assert Path("LR.lmdb/meta_info.txt").read_text().splitlines()[0] == "a.png (10,10,1) 1"
    assert refused(lmdb, command).startswith("error: already exists: LR.lmdb")


def workers_of(parent: int) -> list[int]:
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
        ("parent", signal.SIGKILL, -9, ""),
    ],
)
def test_a_stopped_command_leaves_nothing(
    image_folder: ImageFolder, victim: str, number: int, code: int, message: str
) -> None:
    """Or, after ``kill -9``, a partial folder that the next run reuses."""
    image_folder("HR", **{f"{index}": (120, 120) for index in range(150)})
    words = ["--input", "HR", "--crop-size", "48", "--step", "8", "--format", "both", "--workers", "1"]
    command = [sys.executable, str(ROOT / "scripts/extract_subimages.py"), *words]
    with Path("output").open("w") as output:
        process = Program(command, Path.cwd(), stdout=output)
    try:
        wait_until(Path("HR_sub.lmdb.partial/data.mdb").exists, lambda: process.poll() is None)
        workers = workers_of(process.pid)
        for pid in {"worker": workers, "group": [process.pid, *workers], "parent": [process.pid]}[victim]:
            os.kill(pid, number)
        assert process.wait(120) == code
    finally:
        process.kill()
    said = Path("output").read_text()
    Path("output").unlink()
    assert message in said
    assert "Traceback" not in said
    names = sorted(path.name for path in Path().iterdir())
    if number != signal.SIGKILL or victim == "worker":
        assert names == ["HR"]
        return
    assert names[1:] == [f"{name}_sub{suffix}.partial" for name in ("HR", "LR_bicubic_X4") for suffix in (".lmdb", "")]
    assert extract(["--input", "HR", "--crop-size", "48", "--step", "72", "--format", "both"]) == 0
    assert len(list(Path("HR_sub").iterdir())) == 150 * 4
    assert not list(Path().glob("*.partial"))


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


def test_download_puts_a_benchmark_into_its_folder(
    mirror: tuple[str, Path], capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    address, folder = mirror
    pack(folder / "Set5_HR.tar.gz", [f"Set5_HR/{name}.png" for name in ("baby", "bird", "butterfly", "head", "woman")])
    command = ["set5", "--base-url", address]
    assert download(command) == 0
    out = capsys.readouterr().out
    assert out.startswith("datasets/Set5/GT: 5 images\ndatasets/Set5/LRbicx4: 5 images, ")
    assert len(list(Path("datasets/Set5/GT").iterdir())) == 5
    assert [path.name for path in Path("datasets").iterdir()] == ["Set5"]
    assert download(command) == 0
    assert "already exists" in capsys.readouterr().out
    Path("datasets/Set5/GT/bird.png").unlink()
    assert "already exists with 4 images, expected 5" in refused(download, command)


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
    mirror: tuple[str, Path], refused: Refused, name: str, archive: str | None, members: list[str], message: str
) -> None:
    address, folder = mirror
    if archive:
        pack(folder / archive, members)
    error = refused(download, [name, "--base-url", address])
    assert error.startswith("error: ")
    assert message in error
    assert not list(Path().rglob("evil.png"))
    assert not list(Path("datasets").glob("*/GT"))
