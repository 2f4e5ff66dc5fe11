"""The web page: its work, its servers' ends, and a real browser, also behind a connection that is cut."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import ntpath
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock
from urllib.parse import urljoin, urlsplit

from dp_basicsr import inference, webui
from dp_basicsr.deploy import page as page_module
from dp_basicsr.deploy.open_engine import open_engine
from dp_basicsr.deploy.page import CROP, Job, Page, Task, Visit, crop_middle
from dp_basicsr.errors import UserError
from dp_basicsr.images.metadata import Picture
from dp_basicsr.webui import PREFIX, find_models, free_port

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from tests.support.images import write_noise
from tests.support.networks import make_network
from tests.support.programs import ROOT

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
WAIT = 300  # seconds, on a machine that is busy with other things


def write_models(folder: Path) -> list[Path]:
    """Two that can be blended."""
    state, files = make_network().state_dict(), [folder / "model.pth", folder / "gan.pth"]
    for file, factor in zip(files, (1, 1.01), strict=True):
        torch.save({"params": {name: value * factor for name, value in state.items()}}, file)
    return files


@pytest.fixture
def page(tmp_path: Path) -> Page:
    (tmp_path / "served").mkdir()
    models = dict(zip(("m", "gan"), write_models(Path()), strict=True))
    return Page(models, tmp_path / "served", 100_000, "cpu", tile=32)


def wait_until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + WAIT
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value


def chosen(page: Page, *files: Path | str, session: str = "me") -> Visit:
    """A visitor who has chosen images; unless told otherwise, a small one."""
    visit = page.visit(session)
    page.choose(visit, [*map(Path, files)] or [write_noise("in.png", 9, 7)])
    return visit


def upscale(page: Page, visit: Visit, task: Task) -> str:
    """Start the work, wait for its end, and return the status."""
    page.start(visit, task)
    wait_until(lambda: visit.job and visit.job.text)
    return page.status(visit)


def result(visit: Visit) -> Path:
    assert visit.job is not None
    assert visit.job.result is not None, visit.job.text
    return visit.job.result


def assert_as_by_command(path: Path, image: Path | str, *arguments: object) -> None:
    """The same pixels as ``dp-basicsr upscale`` gives."""
    words = ["-i", image, "-o", "same.png", "--tile", "32", "--overwrite", *arguments]
    assert inference.main([*map(str, words)]) == 0
    difference = np.subtract(Image.open(path), Image.open("same.png"), dtype=int)
    assert np.abs(difference).max() <= torch.cuda.is_available(), "cuDNN chooses its algorithms anew for each process"


def test_page_upscales_as_the_command_does(page: Page) -> None:
    visit = chosen(page, write_noise("uploaded.png", 40, 50))
    said = upscale(page, visit, Task("m"))
    assert re.fullmatch(r"Done in 0:0\d:\d\d: 200 x 160 pixels, 0\.1 MB\.", said)
    assert result(visit).name == "uploaded_x4.png"
    assert_as_by_command(result(visit), write_noise("in.png", 40, 50), "--model_path", "model.pth")
    assert "model.pth" in page.engine
    assert "cpu" in page.engine.lower()


def test_an_engine_that_fails_later_is_followed_by_the_next(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    upscaler = page.upscaler(Task("m"))
    monkeypatch.setattr(upscaler.engine, "run", Mock(side_effect=RuntimeError("no primitive")))
    next_one = open_engine(page.models["m"], engine="torch", device="cpu")
    monkeypatch.setattr(upscaler.engine, "open_next", lambda: next_one)
    visit = chosen(page)
    assert upscale(page, visit, Task("m")).endswith("failed (no primitive): continuing with the next engine")
    assert_as_by_command(result(visit), write_noise("in.png", 9, 7), "--model_path", "model.pth")
    assert upscale(page, visit, Task("m")).endswith("MB.")
    assert page.engine == next_one.title


def test_a_visitor_is_told_what_a_command_would_warn_of(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """stable-diffusion-webui#1250: `parameters` of a PNG were lost in a JPEG. Options go by the page's names."""
    info = PngInfo()
    info.add_text("parameters", "a tree")
    image = Image.open(write_noise("in.png", 9, 7))

    def told(*files: str, **task: Any) -> str:
        image.save("in.png", pnginfo=info)
        image.save("other.webp", lossless=True)
        return upscale(page, chosen(page, *files), Task("m", **task))

    assert told("other.webp").endswith("MB. dropped: lossless coding, which Quality 100 keeps")
    assert told("in.png", ext="jpg").endswith("MB. dropped: text 'parameters'")
    said = told("in.png", "other.webp", ext="jpg")
    assert said.endswith("in.png: dropped: text 'parameters'"), said
    page.upscaler(Task("m")).overlap = 0
    for _ in range(2):
        said = upscale(page, chosen(page, write_noise("large.png", 70, 70)), Task("m"))
        assert said.endswith("MB. tiles without an overlap do not give what the whole image would")
    monkeypatch.setattr(page_module, "upscale_picture", None)  # nothing is computed
    visit = chosen(page, write_noise("wide.png", 1, 4200))
    assert upscale(page, visit, Task("m", ext="webp")).endswith("and WEBP ends at 16383 pixels: give Format png")
    monkeypatch.setattr(
        "dp_basicsr.images.write.open", lambda *_, **__: io.StringIO("MemAvailable: 0 kB"), raising=False
    )
    assert upscale(page, chosen(page), Task("m")).endswith("give a smaller Times as large, or parts")


def test_several_images_and_folders_come_back_as_a_zip(page: Page) -> None:
    files = [write_noise(f"{folder}/in.png", 9, 7) for folder in "ab"]
    for name in ("0.png", "broken.png"):
        Path(name).write_bytes(files[0].read_bytes()[:100])
    for name in ("notes.txt", "._in.png"):
        Path(name).touch()
    Image.open(files[0]).save("in.gif")
    visit = chosen(page, "0.png", *files, files[0], "broken.png", "notes.txt", "in.gif", "._in.png")
    assert page.status(visit).startswith("in.png: 7 x 9 pixels, the first of 5 images; ")
    assert "0.png: the image cannot be read" in page.status(visit), "it comes first"
    assert "left out 2 files (1 .txt, 1 .png)" in page.status(visit)
    said = upscale(page, visit, Task("m", ext="jpg", outscale=2))
    assert "3 of 5 images" in said
    assert "broken.png: the image cannot be read" in said
    with zipfile.ZipFile(result(visit)) as archive:
        assert archive.namelist() == ["2/in_x2.jpg", "5/in_x2.jpg", "in_x2.jpg"]
        assert Image.open(archive.open("in_x2.jpg")).size == (14, 18)


def test_a_gradio_that_is_broken_is_told_from_a_missing_one(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """EdgeTAM#20: it is installed, but not the huggingface_hub that it was made for."""
    from dp_basicsr.deploy import page_layout

    Path("gradio").mkdir()
    Path("gradio/__init__.py").write_text("from json import HfFolder")
    monkeypatch.syspath_prepend(".")
    monkeypatch.delitem(sys.modules, "gradio", raising=False)
    with pytest.raises(UserError, match="gradio.* is installed, but cannot be used .*HfFolder.*--force-reinstall"):
        page_layout.build(page)


def test_a_new_image_clears_the_result(page: Page) -> None:
    visit = chosen(page)
    upscale(page, visit, Task("m"))
    page.choose(visit, [write_noise("second.png", 8, 6)])
    assert visit.job is None
    assert page.status(visit) == "second.png: 6 x 8 pixels"
    assert [path.name for path in visit.folder.rglob("*.png")] == ["before.png", "second.png"]


def test_the_second_visitor_waits_and_can_leave(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on = threading.Event()
    monkeypatch.setattr(page_module, "upscale_picture", lambda picture, *_, **__: may_go_on.wait(WAIT) and picture)
    visits = [chosen(page, session=name) for name in ("first", "second", "third")]
    for visit in visits:
        page.start(visit, Task("m"))
    assert page.status(visits[2]) == "waiting: 2 images before yours"
    assert page.status(visits[1]) == "waiting: 1 image before yours"
    page.cancel(visits[1])
    assert page.status(visits[1]) == "Cancelled."
    assert page.status(visits[2]) == "waiting: 1 image before yours"
    may_go_on.set()
    wait_until(lambda: "Done" in page.status(visits[2]))
    assert "Done" in page.status(visits[0])
    assert page.status(visits[1]) == "Cancelled."


@pytest.mark.parametrize("how", ["it cancels its call", "it ends"])
def test_what_a_program_no_longer_waits_for_is_not_computed(
    how: str, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gradio#13323: all the others waited for it."""
    pytest.importorskip("gradio")
    from dp_basicsr.deploy.page_layout import _Handlers

    may_go_on = threading.Event()
    monkeypatch.setattr(page_module, "upscale_picture", lambda picture, *_, **__: may_go_on.wait(WAIT) and picture)
    page.start(first := chosen(page), Task("m"))
    sent, request = str(write_noise("sent.png", 9, 7)), SimpleNamespace(session_hash="a program")

    async def call() -> None:
        task = asyncio.create_task(
            _Handlers(page).handle(sent, "m", "(none)", 0.8, "model", "png", 95, 0, request)  # type: ignore[arg-type]
        )
        while len(page._queue) < 2:
            await asyncio.sleep(0.02)
        if how == "it ends":
            page.leave("a program", 9)
            assert (await task)[0] == "Cancelled."
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(call())
    assert [job.is_active for job in page._queue] == [True, False]
    may_go_on.set()
    wait_until(lambda: "Done" in page.status(first))


def test_the_page_answers_while_the_call_of_a_program_waits_for_the_disk(page: Page) -> None:
    pytest.importorskip("gradio")
    from dp_basicsr.deploy.page_layout import _Handlers

    sent, request = str(write_noise("sent.png", 9, 7)), SimpleNamespace(session_hash="a program")
    start, is_written = page.start, threading.Event()
    page.start = lambda visit, task: is_written.wait(5) and start(visit, task)  # type: ignore[method-assign]

    async def call() -> tuple[str, Path | None]:
        task = asyncio.create_task(
            _Handlers(page).handle(sent, "m", "(none)", 0.8, "model", "png", 95, 0, request)  # type: ignore[arg-type]
        )
        while not any(visit.count for visit in page._visits.values()):
            await asyncio.sleep(0.02)
        is_written.set()
        return await task

    assert asyncio.run(call())[0].startswith("Done")


def test_two_visitors_may_send_the_same_image(page: Page) -> None:
    """Gradio stores equal files in one place, from which the first visitor takes it away."""
    sent = write_noise("same.png", 9, 7)
    visits = [chosen(page, sent, session="me"), chosen(page, sent, session="you")]
    assert [(visit.folder / "in/same.png").is_file() for visit in visits] == [True, True]
    for session in ("me", "you"):
        page.leave(session, -1)
    page.sweep()
    with pytest.raises(UserError, match=r"same.png was not received: choose it again"):
        chosen(page, sent, session="he")


def test_progress_has_an_estimate_and_work_can_be_cancelled(page: Page) -> None:
    visit = chosen(page, write_noise("in.png", 200, 200))
    page.start(visit, Task("m"))
    wait_until(lambda: re.fullmatch(r"Working: \d+%, 0:0\d:\d\d left", page.status(visit)))
    page.cancel(visit)
    assert page.status(visit) == "Cancelled."
    wait_until(lambda: visit.job and visit.job.text)
    assert not (visit.folder / "out").exists()


@pytest.mark.parametrize("count", [1, 2])
def test_a_new_start_after_the_last_image_ends_the_old_work(
    page: Page, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It deletes the images that the old work would pack and measure."""
    visit, write = page.visit("me"), page._write
    jobs: list[Any] = []  # of each file written

    def write_and_start(data: bytes, path: Path, job: Job | None) -> Path:
        write(data, path, job)
        jobs.append(job)
        # The last image; the first one has two views.
        if len(jobs) == count + 2:
            page.start(visit, Task("m"))
        return path

    page.choose(visit, [write_noise(f"{name}.png", 9, 7) for name in "ab"[:count]])
    monkeypatch.setattr(page, "_write", write_and_start)
    page.start(visit, Task("m"))
    wait_until(lambda: len(jobs) > count + 2 and visit.job and visit.job.text)
    assert jobs[0].text == "Cancelled."
    assert "Done" in page.status(visit)


def test_the_result_survives_until_the_visitor_has_left(page: Page) -> None:
    visit = page.visit("key", "before the drop")
    page.choose(visit, [write_noise("in.png", 9, 7)])
    page.leave("before the drop", 3600)
    page.sweep()
    assert page.visit("key", "after the drop") is visit
    assert visit.deadline is None
    page.leave("before the drop", -1)  # the end of the lost connection may be noticed late
    page.sweep()
    assert visit.folder.exists()
    other = page.visit("another key", "other")
    page.start(visit, Task("m"))
    page.leave("key", -1)
    page.sweep()
    wait_until(lambda: visit.job and visit.job.text)
    assert list(page.folder.iterdir()) == [other.folder]


def test_nothing_is_written_after_the_end(page: Page) -> None:
    visit = chosen(page)
    upscale(page, visit, Task("m"))
    page.start(visit, Task("m"))
    page.close()
    shutil.rmtree(page.folder)
    time.sleep(0.5)
    assert not page.folder.exists()


def test_the_end_waits_for_the_tile_that_is_computed(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was stopped at work ended with "terminate called without an active exception"."""
    began, ended = threading.Event(), threading.Event()

    def compute(*_: object, **__: object) -> None:
        began.set()
        time.sleep(0.3)
        ended.set()

    monkeypatch.setattr(page_module, "upscale_picture", compute)
    page.start(chosen(page), Task("m"))
    assert began.wait(WAIT)
    page.close()
    assert ended.is_set()


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_strength_interpolates_two_models(page: Page, strength: float) -> None:
    visit = chosen(page)
    upscale(page, visit, Task("m", other="gan", strength=strength))
    models = ["--model_path", "model.pth", "gan.pth", "--engine", "torch"]
    assert_as_by_command(result(visit), write_noise("in.png", 9, 7), *models, "--alpha_interp", strength)


def test_what_does_not_change_the_network_does_not_load_it_again(page: Page) -> None:
    first = page.upscaler(Task("m"))
    assert page.upscaler(Task("m", alpha="drop", strength=0.1, is_trial=True)) is first
    os.utime("model.pth", (1, 1))  # a training writes its networks anew
    assert page.upscaler(Task("m")) is not first


def test_a_trial_upscales_the_middle(page: Page) -> None:
    image = Image.open(write_noise("large.png", 40, CROP + 50))
    pixels = np.asarray(image)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save("large.png", icc_profile=profile)
    visit = chosen(page, "large.png")
    upscale(page, visit, Task("m", is_trial=True))
    assert Image.open(result(visit)).info["icc_profile"] == profile
    assert result(visit).name == "large_crop_x4.png"
    assert Image.open(result(visit)).size == (4 * CROP, 160)
    assert visit.job is not None
    assert visit.job.shown is not None
    assert np.array_equal(np.asarray(Image.open(visit.job.shown[0])), pixels[:, 25 : 25 + CROP])
    # Of a network with windows of 8 pixels it was up to 20 of 255 away from the whole result.
    assert np.array_equal(crop_middle(Picture(pixels), CROP, 8).colour, pixels[:, 24 : 24 + CROP])


def test_a_phone_photograph_is_shown_small_and_kept_whole(page: Page, recwarn: pytest.WarningsRecorder) -> None:
    Image.new("RGB", (3024, 4032)).save("photo.jpg")
    Image.new("RGB", (8, 8)).save("place.tif", tiffinfo={305: "a program"})
    chosen(page, "place.tif")
    assert not [str(warning.message) for warning in recwarn if "dropped" in str(warning.message)]
    page = Page(page.models, page.folder, 16_000_000)
    visit = chosen(page, "photo.jpg")
    assert page.status(visit) == "photo.jpg: 3024 x 4032 pixels"
    assert visit.before is not None
    assert Image.open(visit.before).size == (1920, 2560)


def test_page_errors_are_readable(page: Page) -> None:
    visit = page.visit("me")
    with pytest.raises(UserError, match="choose an image first"):
        page.start(visit, Task("m"))
    with pytest.raises(UserError, match=r"the image is 500 x 300, more than 0\.1 megapixels"):
        page.choose(visit, [write_noise("large.png", 300, 500)])
    Path("notes.txt").touch()
    with pytest.raises(UserError, match=r"^no image in what was chosen: expected files that end in .png"):
        page.choose(visit, [Path("notes.txt")])
    page.choose(visit, [write_noise("in.png", 9, 7)])
    with pytest.raises(UserError, match=r"unknown model '\.\./secret'"):
        page.start(visit, Task("m", other="../secret"))


def test_a_full_disk_is_named_and_freed(
    page: Page, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """gradio#2660: a traceback, and what was written of the result stayed, so that nothing more could be uploaded."""
    visit = chosen(page)

    def fill(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fill)
        assert re.search("temporary files is full; TMPDIR=FOLDER", upscale(page, visit, Task("m")))
    assert not list(visit.folder.rglob("out/**/*.png"))
    assert "Traceback" not in capsys.readouterr().err
    assert upscale(page, visit, Task("m")).startswith("Done")
    visit = chosen(page, *(write_noise(f"{name}.png", 9, 7) for name in "ab"))
    with monkeypatch.context() as patch:
        patch.setattr("zipfile.ZipFile.write", lambda archive, path, _: fill(path, b""))
        assert "temporary files is full" in upscale(page, visit, Task("m"))
    assert visit.job
    assert (visit.job.shown, visit.job.result) == (None, None), "the files are deleted"


def test_models_of_a_folder_without_discriminators(page: Page) -> None:
    Path("net_d_5.pth").touch()
    model = Path("model.pth")
    assert list(find_models([Path()])) == ["gan.pth", "model.pth"]
    with pytest.raises(UserError, match=r"no such file: gone.pth"):
        find_models([Path("gone.pth")])
    # stable-diffusion-webui#15640: the folder of such files was "no such file".
    torch.save({}, Path("models").mkdir() or "models/last.pt")
    assert list(find_models([Path("models")])) == ["last.pt"]
    # SUPIR#153: torch's own file may end so, too.
    Path("models/last.pt").rename("models/Last.bin")
    assert list(find_models([Path("models")])) == ["Last.bin"]
    for there in ("Last.xml", "Last.XML"):
        Path("models", there).touch()
        with pytest.raises(UserError, match=r"no \.pth, \.pt, .* in models: name a file"):
            find_models([Path("models")])
        Path("models", there).unlink()
    assert find_models([model, Path(".", model)]) == {"model.pth": model}
    runs = [Path("runs", run, "models").mkdir(parents=True) or Path("runs", run, "models", "a.pth") for run in "AB"]
    for run in runs:
        run.touch()
    assert find_models([runs[0], runs[1].parent]) == {"A/models/a.pth": runs[0], "B/models/a.pth": runs[1]}


def test_models_may_lie_on_two_drives_of_windows(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which have no common folder."""
    files = [Path("C:/a.pth"), Path("D:/b.pth"), Path("D:/a.pth")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    monkeypatch.setattr("dp_basicsr.webui.os", SimpleNamespace(path=ntpath))
    assert find_models(files[:2]) == {"a.pth": files[0], "b.pth": files[1]}
    assert find_models(files) == {"C:\\a.pth": files[0], "D:\\b.pth": files[1], "D:\\a.pth": files[2]}


def test_a_wrong_model_is_refused_at_the_start(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = Path("wrong.pth")
    torch.save({"params": {"weight": torch.zeros(1)}}, wrong)
    page.models["wrong"] = wrong
    with pytest.raises(UserError, match=r"wrong\.pth"):
        page.open([wrong])
    page.open([])  # all were found in a folder
    assert list(page.models) == ["m", "gan"]
    assert "left out: model wrong.pth" in capsys.readouterr().out
    # stable-diffusion-webui#14179: a link to a disk that is not mounted ended the page, capitals hid a model.
    folder = Path("models")
    folder.mkdir()
    page.models["m"].rename(folder / "M.PTH")
    (folder / "gone.pth").symlink_to("nowhere")
    page.models = find_models([folder])
    page.open([folder])
    assert list(page.models) == ["M.PTH"]
    assert "left out: model models/gone.pth: no such file" in capsys.readouterr().out


@pytest.mark.parametrize("limit", [("--max-megapixels", "nan"), ("--max-megapixels", "0"), ("--max-megabytes", "-5")])
def test_a_limit_that_is_none_is_refused(limit: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        webui.main(limit)
    assert "above 0 and below 100,000" in capsys.readouterr().err


def test_a_taken_port_gives_the_next_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert port < free_port("127.0.0.1", port) < port + 100
    assert free_port("127.0.0.1", 0) > 0
    with pytest.raises(UserError, match=r"--host 203\.0\.113\.1"):
        free_port("203.0.113.1", 7860)
    with pytest.raises(UserError, match="--port: expected 0 to 65535, got 99999"):
        free_port("127.0.0.1", 99999)


def test_the_path_of_a_proxy_reaches_the_server(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = pytest.importorskip("gradio.blocks").Blocks
    gone = pytest.importorskip("starlette.requests").ClientDisconnect
    launched: dict[str, Any] = {}

    def launch(_: object, **settings: Any) -> None:
        launched.update(settings)
        raise UserError("enough")

    monkeypatch.setattr(blocks, "launch", launch)
    model = next(iter(page.models.values()))
    with pytest.raises(SystemExit):
        webui.main(["-m", str(model), "--port", "0", "--root-path", "/user/me/proxy/7860"])
    assert launched["root_path"] == "/user/me/proxy/7860"
    for given in ("user/me/", "/user/me"):
        assert webui.parse(["--root-path", given]).root_path == "/user/me"
    assert webui.parse(["--root-path", "/"]).root_path == ""
    assert webui.parse(["--root-path", "https://me.org/a"]).root_path == "https://me.org/a"
    assert launched["app_kwargs"]["exception_handlers"][gone](None, gone()).status_code == 499  # no traceback


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130), ("SIGKILL", -9)])
def test_no_file_outlives_the_server(name: str, code: int, tmp_path: Path) -> None:
    program = """if True:
        import signal, time
        # Another test's process may have ignored it, which is inherited.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        from dp_basicsr.utils.console import data_command
        from dp_basicsr.webui import private_folder
        with data_command(), private_folder() as folder:
            (folder / "upload.png").touch()
            print("ready", flush=True)
            time.sleep(100 if __import__("sys").argv[1:] else 0)
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", program]
    with subprocess.Popen([*command, "stay"], env=environment, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        assert [path.name for path in tmp_path.rglob("*.png")] == ["upload.png"], "another server leaves it alone"
        server.send_signal(getattr(signal, name))
    assert server.returncode == code
    if name == "SIGKILL":
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert not list(tmp_path.iterdir())


class Network:
    """Connections to a server, which can be slow and can be cut."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.is_up = True
        self.cuts = 0  # how many requests for pictures will be cut
        self.delay = 0.0  # seconds, of each part of an answer of Gradio's handlers
        self.open: list[socket.socket] = []
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.server.getsockname()[1]}/"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            browser, _ = self.server.accept()
            if not self.is_up:
                browser.close()
                continue
            ends = browser, socket.create_connection(("127.0.0.1", self.target))
            self.open += ends
            for source, target in (ends, ends[::-1]):
                threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.cuts and b"/file=" in data.partition(b"\r\n")[0] and data.startswith(b"GET"):
                    self.cuts -= 1
                    source.shutdown(socket.SHUT_RDWR)
                    break
                if b'"data"' in data or b"close_stream" in data:
                    time.sleep(self.delay)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def drop(self, seconds: float) -> None:
        self.is_up = False
        for end in self.open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.open = []
        time.sleep(seconds)
        self.is_up = True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page runs and keeps its files."""
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """The page, served by a process of its own."""
    pytest.importorskip("gradio")
    if BROWSER is None or DRIVER is None:
        pytest.skip("chromium and chromedriver are not installed (Debian: apt-get install chromium-driver)")
    write_models(folder)
    start = (
        "import sys, dp_basicsr.webui as web, dp_basicsr.deploy.page as page; page.CLOSED = 6.0; sys.exit(web.main())"
    )
    command = [sys.executable, "-u", "-c", start, "--model_path", "model.pth", "gan.pth", "--port", "0"]
    command += ["--tile", "32", "--max_megapixels", "0.3", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        opened = next((match for line in lines if (match := re.match(r"open (http://\S+)", line))), None)
        try:
            assert opened is not None, "the page did not start"
            yield opened[1]
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()  # the block's end would wait for ever
                raise
    assert not list(folder.glob(f"{PREFIX}*")), "uploads and results go with the page"


@pytest.fixture(scope="module")
def chromium(folder: Path) -> Iterator[Any]:
    """Headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(address: str, chromium: Any) -> Iterator[Any]:
    """A new tab, which is a new visitor."""
    first = chromium.current_window_handle
    chromium.switch_to.new_window("tab")
    yield chromium
    chromium.close()
    chromium.switch_to.window(first)


def wait_for(browser: Any, condition: Any) -> Any:
    """Wait until a function of the browser gives something true."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    ignored = [StaleElementReferenceException, NoSuchElementException]
    return WebDriverWait(browser, WAIT, 0.2, ignored).until(condition)


def find(browser: Any, selector: str) -> Any:
    return wait_for(browser, lambda driver: driver.find_element("css selector", selector))


def upload(browser: Any, *paths: Path) -> None:
    """Give the page files, as a visitor does."""
    find(browser, "#image input[type=file]").send_keys("\n".join(str(path.resolve()) for path in paths))
    wait_for(browser, lambda driver: paths[0].stem in driver.find_element("css selector", "#image").text)


def status(browser: Any, pattern: str) -> str:
    """Wait until the first line of the status has ``pattern``."""

    def first_line(driver: Any) -> str | None:
        line = driver.find_element("css selector", "#status").text.partition("\n")[0]
        return line if re.search(pattern, line) else None

    return str(wait_for(browser, first_line))


def download(browser: Any, folder: Path, name: str) -> Path:
    find(browser, "#download").click()
    saved = folder / "downloads" / name
    wait_for(browser, lambda _: saved.is_file())
    return saved


SIZES = "return [...document.querySelectorAll('#slider img')].map(i => [i.naturalWidth, i.naturalHeight])"


def test_a_visit(address: str, browser: Any, folder: Path) -> None:
    browser.get(address)
    small = write_noise("small.png", 20, 30)
    upload(browser, small)
    wait_for(browser, lambda driver: driver.execute_script(SIZES) == [[30, 20], [30, 20]])
    find(browser, "#start").click()
    assert re.fullmatch(r"Done in 0:0\d:\d\d: 120 x 80 pixels, 0\.0 MB\.", status(browser, "Done"))
    wait_for(browser, lambda driver: driver.execute_script(SIZES) == [[30, 20], [120, 80]])
    assert "on cpu" in find(browser, "#status").text
    assert not browser.find_elements("css selector", "footer"), "the developer's links"

    saved = download(browser, folder, "small_x4.png")
    assert_as_by_command(saved, small, "--model_path", folder / "model.pth")

    outside = [str(path.resolve()) for path in (folder / "model.pth", small)] + ["/etc/passwd"]
    for path in outside:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urljoin(address, f"/gradio_api/file={path}"))
        assert refused.value.code in (403, 404)


@pytest.mark.parametrize("size", [(1366, 768), (1280, 900), (390, 844)])
def test_nothing_needs_scrolling(address: str, browser: Any, size: tuple[int, int]) -> None:
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(address)
    upload(browser, write_noise("tall.png", 60, 20))
    for selector in ("#slider", "#start", "#stop", "#download", "#more", "#status"):
        edges = browser.execute_script(
            "const {top, left, right, bottom} = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return [top, left, innerWidth - right, innerHeight - bottom]",
            find(browser, selector) and selector,
        )
        assert min(edges) >= 0, (selector, edges)
    area = find(browser, "#slider").size
    assert area["height"] * area["width"] > 0.5 * size[0] * size[1]


def test_cancel_paste_and_readable_errors(address: str, browser: Any) -> None:
    browser.get(address)
    find(browser, "#start").click()
    assert "choose an image first" in status(browser, "Not done")
    upload(browser, write_noise("long.png", 500, 500))
    find(browser, "#start").click()
    status(browser, r"Working: [1-9]\d?%, .* left")
    find(browser, "#stop").click()
    assert status(browser, "Cancelled|Done") == "Cancelled."
    for name, said in (
        ("pasted.png", "the image is not an image of a supported type"),
        ("phone.heic", r"\(1 \.heic\)"),
    ):
        browser.execute_script(f"""
            const data = new DataTransfer();
            data.items.add(new File(["no image"], "{name}"));
            document.body.dispatchEvent(new ClipboardEvent("paste", {{clipboardData: data, bubbles: true}}));
        """)
        status(browser, f"Not done.*{said}")


def test_a_dropped_folder_is_taken_with_its_subfolders(address: str, browser: Any) -> None:
    browser.get(address)
    find(browser, "#status small")
    for number in range(101):
        write_noise(f"dropped/{number:03}.png", 4, 6)
    write_noise("dropped/below/000.png", 5, 6)
    Path("dropped/notes.txt").touch()
    data = {"items": [], "files": [str(Path("dropped").resolve())], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        browser.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": data})
    assert "the first of 102 images" in status(browser, "000.png")


def test_a_duplicated_tab_is_a_visitor_of_its_own(address: str, browser: Any) -> None:
    """ComfyUI#4014: its end deleted the images and the result of the tab that it was made from."""
    browser.get(address)
    upload(browser, write_noise("original.png", 20, 30))
    original, key = browser.current_window_handle, browser.execute_script("return sessionStorage.visit")
    browser.execute_script("window.open(location.href)")
    browser.switch_to.window(browser.window_handles[-1])
    try:
        find(browser, "#status small")
        wait_for(browser, lambda driver: driver.execute_script("return sessionStorage.visit") != key)
        assert "original" not in find(browser, "#status").text
        browser.refresh()
        other = browser.execute_script("return sessionStorage.visit")
        find(browser, "#status small")
        assert browser.execute_script("return sessionStorage.visit") == other, "a page loaded anew stays the visitor"
    finally:
        browser.close()
        browser.switch_to.window(original)
    assert browser.execute_script("return sessionStorage.visit") == key


def choose(browser: Any, selector: str, name: str) -> None:
    """Choose an entry of a dropdown."""
    wait_for(browser, lambda driver: driver.find_element("css selector", f"{selector} input").is_displayed())
    find(browser, f"{selector} input").click()
    wait_for(browser, lambda driver: [item for item in driver.find_elements("css selector", "[role=option]")
                                      if item.text.strip().endswith(name)])[0].click()  # fmt: skip


def test_strength_and_a_crop_to_try_first(address: str, browser: Any, folder: Path) -> None:
    browser.get(address)
    find(browser, "#more button").click()
    choose(browser, "#other", "gan.pth")
    strength = find(browser, "#strength input[type=number]")
    strength.clear()
    strength.send_keys("0.25\t")
    script = "return Object.keys(sessionStorage).some(key => sessionStorage[key].includes('0.25'))"
    wait_for(browser, lambda driver: driver.execute_script(script))
    browser.refresh()
    upload(browser, write_noise("large.png", 230, 50))
    find(browser, "#more button").click()
    find(browser, "#trial").click()
    assert f"200 x {4 * CROP} pixels" in status(browser, "Done|Not done")
    saved = download(browser, folder, "large_crop_x4.png")
    Image.fromarray(np.asarray(Image.open("large.png"))[19 : 19 + CROP]).save("crop.png")
    models = ["--model_path", folder / "model.pth", folder / "gan.pth", "--engine", "torch"]
    assert_as_by_command(saved, "crop.png", *models, "--alpha_interp", 0.25)


def test_a_lost_connection_loses_nothing(address: str, browser: Any, folder: Path) -> None:
    """Neither while the page works nor when it is done."""
    network = Network(int(urlsplit(address).port or 0))
    network.delay = 1.0
    browser.get(network.address)
    # At once, while the page's first answer is still awaited.
    upload(browser, write_noise("kept.png", 300, 300))
    network.delay = 0.0
    find(browser, "#start").click()
    # With the answer that says Done the page asks for two pictures, and for nothing after them: it does not notice by
    # itself that it was cut. Chromium asks for each once more.
    network.cuts = 4
    for moment in (r"Working: [1-9]", "Done"):
        status(browser, moment)
        network.drop(2)
        time.sleep(1)  # Gradio notices, and loads the page anew
        status(browser, "Done")
        wait_for(browser, lambda driver: driver.execute_script(SIZES) == [[300, 300], [1200, 1200]])
    assert Image.open(download(browser, folder, "kept_x4.png")).size == (1200, 1200)


def test_a_program_sends_an_image_and_gets_the_result(address: str, folder: Path) -> None:
    client_of_gradio = pytest.importorskip("gradio_client")
    client = client_of_gradio.Client(address, verbose=False, download_files=str(folder / "client"))
    image = client_of_gradio.handle_file(str(write_noise("sent.png", 20, 30)))
    text, result = client.predict(image, "model.pth", "(none)", 0.8, "model", api_name="/handle")
    assert "120 x 80 pixels" in text
    assert Image.open(result["value"] if isinstance(result, dict) else result).size == (120, 80)
    Path("bad.png").write_text("no image")
    text, _ = client.predict(client_of_gradio.handle_file("bad.png"), api_name="/handle")
    assert "is not an image" in text


def test_each_call_of_a_program_is_of_its_own(address: str, folder: Path) -> None:
    """gradio#3540: calls at once had one another's images, and one without an image had the last one's."""
    client_of_gradio = pytest.importorskip("gradio_client")
    client = client_of_gradio.Client(address, verbose=False, download_files=str(folder / "client"))
    heights = [20, 22, 24, 20]
    images = [client_of_gradio.handle_file(str(write_noise(f"{height}.png", height, 30))) for height in heights]
    jobs = [client.submit(image, api_name="/handle") for image in images]
    said = [re.findall(r"120 x \d+ pixels", job.result()[0]) for job in jobs]
    assert said == [[f"120 x {4 * height} pixels"] for height in heights]
    text, _ = client.predict(None, api_name="/handle")
    assert "choose an image first" in text


def test_uploads_and_results_go_when_the_visitor_leaves(address: str, folder: Path, browser: Any) -> None:
    browser.get(address)
    upload(browser, write_noise("mine.png", 21, 31))
    find(browser, "#start").click()
    status(browser, "Done")
    (served,) = folder.glob(f"{PREFIX}*")

    def left() -> list[str]:
        # Not by rglob: it raises when the server removes a folder under its eyes.
        return [name for _, _, names in os.walk(served) for name in names if name.startswith("mine")]

    assert left() != []
    browser.get("about:blank")
    wait_for(browser, lambda _: not left())
