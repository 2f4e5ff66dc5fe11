"""The page in a real browser: upload, watch, compare, download, cancel; and what it does not give away."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from dp_basicsr import inference
from dp_basicsr.deploy.page import CROP, Cancelled, Page, Result, Task
from dp_basicsr.errors import UserError
from dp_basicsr.webui import find_models

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.networks import make_network

ROOT = Path(inference.__file__).resolve().parents[1]
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
WAIT = 120
PICTURE = os.environ.get("PAGE_PICTURE")  # where to save a screenshot


@pytest.fixture
def model() -> Path:
    torch.save({"params": make_network().state_dict()}, "model.pth")
    return Path("model.pth")


def write_image(path: str, height: int, width: int) -> Path:
    rng = np.random.default_rng(2)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return Path(path)


def test_page_works_in_a_thread_and_can_be_cancelled(model: Path, tmp_path: Path) -> None:
    page = Page({"m": model}, tmp_path, 10_000, "cpu", tile=32)
    steps = list(page.upscale("me", write_image("in.png", 40, 50), Task("m")))
    assert isinstance(steps[-1], Result)
    assert Image.open(steps[-1].after).size == (200, 160)
    assert steps[-1].after.name == "in_x4.png"
    work = page.upscale("me", Path("in.png"), Task("m"))
    next(work)
    page.cancel("me")
    with pytest.raises(Cancelled):
        list(work)
    page.cancel("nobody")


def test_nothing_of_a_session_remains_when_it_ends(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "served"
    page = Page({"m": model}, folder, 10_000, "cpu", tile=32)
    for name in ("mine", "shared"):
        (folder / name).mkdir(parents=True)
    mine, shared = (write_image(f"served/{name}/in.png", 40, 50) for name in ("mine", "shared"))
    outside = write_image("outside.png", 4, 4)
    for upload in (shared, outside):
        page.keep("me", upload)
    page.keep("other", shared)
    first, second = (list(page.upscale("me", mine, Task("m")))[-1] for _ in range(2))
    assert isinstance(first, Result)
    assert isinstance(second, Result)
    assert not first.after.exists(), "the next result replaces the last one"
    assert second.after.exists()
    work = page.upscale("me", mine, Task("m"))
    next(work)
    page.close("me")
    with pytest.raises(Cancelled):
        list(work)
    assert list(page._sessions) == ["other"]
    assert shared.exists()
    assert outside.exists(), "only what lies in the served folder is deleted"
    page.close("other")
    page.close("nobody")
    end = time.monotonic() + 30
    while list(folder.iterdir()) and time.monotonic() < end:  # the thread ends its tile first
        time.sleep(0.05)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_strength_interpolates_two_models(model: Path, tmp_path: Path, strength: float) -> None:
    torch.save({"params": {name: value * 1.01 for name, value in make_network().state_dict().items()}}, "gan.pth")
    page = Page({"psnr": model, "gan": Path("gan.pth")}, tmp_path, 10_000, "cpu")
    result = list(page.upscale("me", write_image("in.png", 9, 7), Task("psnr", other="gan", strength=strength)))[-1]
    assert isinstance(result, Result)
    arguments = ["-i", "in.png", "-o", "same.png", "--engine", "torch", "--model_path", str(model), "gan.pth"]
    assert inference.main([*arguments, "--alpha_interp", str(strength)]) == 0
    assert np.array_equal(np.asarray(Image.open(result.after)), np.asarray(Image.open("same.png")))


def test_what_does_not_change_the_network_does_not_load_it_again(model: Path, tmp_path: Path) -> None:
    page = Page({"m": model}, tmp_path, 10_000, "cpu")
    first = page._upscaler(Task("m"))
    assert page._upscaler(Task("m", alpha="drop", strength=0.1, is_trial=True)) is first


def test_a_trial_upscales_the_middle(model: Path, tmp_path: Path) -> None:
    page = Page({"m": model}, tmp_path, 100_000, "cpu")
    large = write_image("large.png", 100, CROP + 50)
    result = list(page.upscale("me", large, Task("m", is_trial=True)))[-1]
    assert isinstance(result, Result)
    assert result.after.name == "large_crop_x4.png"
    assert Image.open(result.after).size == (4 * CROP, 400)
    assert np.array_equal(np.asarray(Image.open(result.before)), np.asarray(Image.open(large))[:, 25 : 25 + CROP])


def test_page_errors_are_readable(model: Path, tmp_path: Path) -> None:
    page = Page({"m": model}, tmp_path, 10_000, "cpu")
    with pytest.raises(UserError, match="choose an image first"):
        list(page.upscale("me", None, Task("m")))
    with pytest.raises(UserError, match="the image is 200 x 100, more than 0.01 megapixels"):
        list(page.upscale("me", write_image("large.png", 100, 200), Task("m")))
    with pytest.raises(UserError, match="unknown model '../secret'"):
        list(page.upscale("me", Path("large.png"), Task("m", other="../secret")))


def test_models_of_a_folder_without_discriminators(model: Path, tmp_path: Path) -> None:
    Path("net_d_5.pth").touch()
    assert list(find_models([tmp_path])) == ["model.pth"]
    with pytest.raises(UserError, match=r"no such file: gone.pth"):
        find_models([Path("gone.pth")])
    with pytest.raises(UserError, match="two files have one name"):
        find_models([model, model])


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
    weights = make_network().state_dict()
    torch.save({"params": weights}, folder / "model.pth")
    torch.save({"params": {name: value * 1.01 for name, value in weights.items()}}, folder / "gan.pth")
    models = ["--model_path", "model.pth", "gan.pth"]
    command = [sys.executable, "-u", "-m", "dp_basicsr.webui", *models, "--port", "0"]
    command += ["--tile", "32", "--max_megapixels", "0.3", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        found = next((match for line in lines if (match := re.match(r"open (http://\S+)", line))), None)
        try:
            assert found is not None, "the page did not start"
            yield found[1]
        finally:
            process.terminate()
            process.wait(timeout=30)
    assert not list(folder.glob("dp_basicsr_*")), "uploads and results go with the page"


@pytest.fixture
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(Path("downloads").resolve())})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def wait_for(browser: Any, condition: Any) -> Any:
    """Wait until a function of the browser gives something true."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, WAIT, 0.2, [StaleElementReferenceException]).until(condition)


def find(browser: Any, selector: str) -> Any:
    return wait_for(browser, lambda driver: next(iter(driver.find_elements("css selector", selector)), None))


def upload(browser: Any, path: Path) -> None:
    """Give the page a file, as a visitor does."""
    find(browser, "#image input[type=file]").send_keys(str(path.resolve()))
    wait_for(browser, lambda driver: path.stem in driver.find_element("css selector", "#image").text)


def status(browser: Any, pattern: str) -> str:
    """Press the button's work through: wait until the status line has ``pattern``."""
    return str(
        wait_for(
            browser,
            lambda driver: (text := find(driver, "#status").text) and re.search(pattern, text) and text,
        )
    )


def test_a_visit(address: str, browser: Any, model: Path) -> None:
    browser.get(address)
    small = write_image("small.png", 20, 30)
    upload(browser, small)
    find(browser, "#start").click()
    assert re.fullmatch(r"Done in \d+ s: 120 x 80 pixels\.", status(browser, "Done"))
    sizes = "return [...document.querySelectorAll('#slider img')].map(i => [i.naturalWidth, i.naturalHeight])"
    wait_for(browser, lambda driver: sorted(driver.execute_script(sizes)) == [[30, 20], [120, 80]])

    find(browser, "#download").click()
    saved = Path("downloads/small_x4.png")
    wait_for(browser, lambda _: saved.is_file())
    assert inference.main(["-i", str(small), "-o", "same.png", "--model_path", "model.pth", "--tile", "32"]) == 0
    assert np.array_equal(np.asarray(Image.open(saved)), np.asarray(Image.open("same.png")))

    outside = [str(Path(name).resolve()) for name in ("model.pth", "small.png")] + ["/etc/passwd"]
    for path in outside:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urljoin(address, f"/gradio_api/file={path}"))
        assert refused.value.code in (403, 404)


def test_cancel_and_readable_errors(address: str, browser: Any) -> None:
    browser.get(address)
    find(browser, "#start").click()
    assert "choose an image first" in status(browser, "Not done")
    upload(browser, write_image("long.png", 500, 500))
    find(browser, "#start").click()
    status(browser, r"Working: [1-9]")
    find(browser, "#stop").click()
    assert status(browser, "Cancelled|Done") == "Cancelled."
    Path("broken.png").write_bytes(Path("long.png").read_bytes()[:5000])
    browser.refresh()
    upload(browser, Path("broken.png"))
    find(browser, "#start").click()
    assert "the image cannot be read" in status(browser, "Not done")


def choose(browser: Any, selector: str, name: str) -> None:
    """Choose an entry of a dropdown."""
    find(browser, f"{selector} input").click()
    wait_for(browser, lambda driver: [item for item in driver.find_elements("css selector", "[role=option]")
                                      if item.text.strip().endswith(name)])[0].click()  # fmt: skip


def test_strength_and_a_crop_to_try_first(address: str, browser: Any, model: Path) -> None:
    browser.get(address)
    upload(browser, write_image("large.png", 230, 250))
    choose(browser, "#other", "gan.pth")
    strength = find(browser, "#strength input[type=number]")
    strength.clear()
    strength.send_keys("0.25\t")
    find(browser, "#trial").click()
    assert re.fullmatch(rf"Done in \d+ s: {4 * CROP} x {4 * CROP} pixels\.", status(browser, "Done|Not done"))
    if PICTURE:
        browser.save_screenshot(PICTURE)
    find(browser, "#download").click()
    saved = Path("downloads/large_crop_x4.png")
    wait_for(browser, lambda _: saved.is_file())
    Image.fromarray(np.asarray(Image.open("large.png"))[19 : 19 + CROP, 29 : 29 + CROP]).save("crop.png")
    torch.save({"params": {name: value * 1.01 for name, value in make_network().state_dict().items()}}, "gan.pth")
    models = ["--model_path", "model.pth", "gan.pth", "--alpha_interp", "0.25", "--engine", "torch"]
    assert inference.main(["-i", "crop.png", "-o", "same.png", *models, "--tile", "32"]) == 0
    assert np.array_equal(np.asarray(Image.open(saved)), np.asarray(Image.open("same.png")))


def test_uploads_and_results_go_when_the_visitor_leaves(address: str, folder: Path, browser: Any) -> None:
    browser.get(address)
    upload(browser, write_image("mine.png", 21, 31))
    find(browser, "#start").click()
    status(browser, "Done")
    (served,) = folder.glob("dp_basicsr_*")
    assert [path.name for path in served.rglob("mine*")] != []
    browser.get("about:blank")
    wait_for(browser, lambda _: not any(served.rglob("mine*")))
