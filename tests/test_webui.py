"""The page in a real browser: upload, watch, compare, download, cancel; and what it does not give away."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from dp_basicsr import inference
from dp_basicsr.deploy.page import Cancelled, Page, Result
from dp_basicsr.errors import UserError
from dp_basicsr.webui import find_models

import numpy as np
import pytest
import torch
from PIL import Image

from tests.deploy.conftest import make_network

ROOT = Path(inference.__file__).resolve().parents[1]
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
WAIT = 120


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
    steps = list(page.upscale("me", write_image("in.png", 40, 50), "m", "model"))
    assert isinstance(steps[-1], Result)
    assert Image.open(steps[-1].after).size == (200, 160)
    assert steps[-1].after.name == "in_x4.png"
    work = page.upscale("me", Path("in.png"), "m", "model")
    next(work)
    page.cancel("me")
    with pytest.raises(Cancelled):
        list(work)
    page.cancel("nobody")


def test_page_errors_are_readable(model: Path, tmp_path: Path) -> None:
    page = Page({"m": model}, tmp_path, 10_000, "cpu")
    with pytest.raises(UserError, match="choose an image first"):
        list(page.upscale("me", None, "m", "model"))
    with pytest.raises(UserError, match="the image is 200 x 100, more than 0.01 megapixels"):
        list(page.upscale("me", write_image("large.png", 100, 200), "m", "model"))
    with pytest.raises(UserError, match="unknown model '../secret'"):
        list(page.upscale("me", Path("large.png"), "../secret", "model"))


def test_models_of_a_folder_without_discriminators(model: Path, tmp_path: Path) -> None:
    Path("net_d_5.pth").touch()
    assert list(find_models([tmp_path])) == ["model.pth"]
    with pytest.raises(UserError, match=r"no such file: gone.pth"):
        find_models([Path("gone.pth")])
    with pytest.raises(UserError, match="two files have one name"):
        find_models([model, model])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page, served by a process of its own."""
    pytest.importorskip("gradio")
    if BROWSER is None or DRIVER is None:
        pytest.skip("chromium and chromedriver are not installed (Debian: apt-get install chromium-driver)")
    folder = tmp_path_factory.mktemp("page")
    torch.save({"params": make_network().state_dict()}, folder / "model.pth")
    command = [sys.executable, "-u", "-m", "dp_basicsr.webui", "--model_path", "model.pth", "--port", "0"]
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
