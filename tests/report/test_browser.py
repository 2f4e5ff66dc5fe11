"""The report in a real browser: opening without errors, dragging the slider, zooming, sorting a table."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dp_basicsr.evaluation.evaluate import evaluate
from dp_basicsr.evaluation.files import write_evaluation
from dp_basicsr.evaluation.matching import BICUBIC, Method, find_test_set
from dp_basicsr.report.build import write_report

import cv2
import numpy as np
import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

if BROWSER is None or DRIVER is None:
    pytest.skip("no Chromium with chromedriver here (Debian: chromium, chromium-driver)", allow_module_level=True)
webdriver = pytest.importorskip("selenium.webdriver")
ActionChains, By = webdriver.ActionChains, pytest.importorskip("selenium.webdriver.common.by").By


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two images; the left version is black, the right one white."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    for number in range(2):
        gt = cv2.resize(rng.integers(90, 160, (8, 8, 3), dtype=np.uint8), (128, 96))
        versions = {"GT": gt, "Black": gt * 0, "White": gt * 0 + 255, "Half": gt // 2}
        for name, image in versions.items():
            (folder / name).mkdir(exist_ok=True)
            cv2.imwrite(str(folder / name / f"image{number}.png"), image)
    methods = [Method(BICUBIC, None), *(Method(name, folder / name) for name in ("Black", "Half", "White"))]
    result = evaluate([find_test_set(folder / "GT", name="Set")], methods, 4, ("psnr_y", "ssim_y"))
    return write_report([write_evaluation(result, folder / "evaluation")], folder / "report.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium without a network."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    profile = tmp_path_factory.mktemp("profile")
    arguments = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
    arguments += ["--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1200,900", "--force-prefers-reduced-motion"]
    arguments += ["--no-sandbox"] if os.getuid() == 0 else []  # Chromium refuses its sandbox to root
    for argument in arguments:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def viewer(browser: Any, page: Path) -> Any:
    """The first viewer of the freshly opened report, Black against White."""
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get(page.as_uri())
    figure = browser.find_element(By.CLASS_NAME, "viewer")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", figure)
    for side, name in (("left", "Black"), ("right", "White")):
        figure.find_element(By.CSS_SELECTOR, f".choose-{side} option[value='{name}']").click()
    return figure


def shown(browser: Any, viewer: Any) -> np.ndarray:
    """The rendered viewer along a line near its top: 1 is white, 0 is black."""
    png = np.frombuffer(viewer.find_element(By.CLASS_NAME, "stage").screenshot_as_png, np.uint8)
    image = cv2.imdecode(png, cv2.IMREAD_GRAYSCALE)
    return image[image.shape[0] // 8] / 255


def split(viewer: Any) -> int:
    return int(viewer.find_element(By.CLASS_NAME, "handle").get_attribute("aria-valuenow"))


def test_it_opens_without_errors(browser: Any, viewer: Any) -> None:
    assert browser.get_log("browser") == []
    assert len(browser.find_elements(By.CLASS_NAME, "viewer")) == 2
    loaded = "return [...document.images].every(image => image.complete && image.naturalWidth > 0)"
    assert browser.execute_script(loaded)


def test_dragging_the_line_moves_what_is_seen(browser: Any, viewer: Any) -> None:
    """A quarter to the right of the middle: three quarters of the picture are now the left image."""
    before = shown(browser, viewer)
    assert np.mean(before) == pytest.approx(0.5, abs=0.02)
    handle = viewer.find_element(By.CLASS_NAME, "handle")
    width = viewer.find_element(By.CLASS_NAME, "stage").size["width"]
    ActionChains(browser).drag_and_drop_by_offset(handle, width // 4, 0).perform()
    assert split(viewer) == pytest.approx(75, abs=1)
    after = shown(browser, viewer)
    assert np.mean(after) == pytest.approx(0.25, abs=0.02)
    assert np.mean(after[: int(0.7 * after.size)]) < 0.05
    assert np.mean(after[int(0.8 * after.size) :]) > 0.95


def test_the_keyboard_moves_it_too(browser: Any, viewer: Any) -> None:
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    viewer.find_element(By.CLASS_NAME, "handle").send_keys(keys.ARROW_LEFT, keys.ARROW_LEFT)
    assert split(viewer) == 46
    viewer.find_element(By.CLASS_NAME, "handle").send_keys(keys.HOME)
    assert split(viewer) == 0
    assert np.mean(shown(browser, viewer)) > 0.95


def test_any_two_versions_can_be_compared(browser: Any, viewer: Any) -> None:
    names = [option.text for option in viewer.find_elements(By.CSS_SELECTOR, ".choose-left option")]
    assert names == ["LR (nearest)", BICUBIC, "Black", "Half", "White", "Original"]
    viewer.find_element(By.CSS_SELECTOR, ".choose-left option[value='White']").click()
    assert np.mean(shown(browser, viewer)) > 0.95  # except the slider
    left = viewer.find_element(By.CSS_SELECTOR, ".layer.left")
    assert left.get_attribute("data-name") == "White"
    scores = viewer.find_element(By.CLASS_NAME, "scores-left").get_property("textContent")
    assert scores == left.get_attribute("data-scores")
    assert scores.split()[:2] == ["PSNR", "Y"]


def test_zoom_and_pan_move_both_images_together(browser: Any, viewer: Any) -> None:
    stage = viewer.find_element(By.CLASS_NAME, "stage")
    for _ in range(2):
        viewer.find_element(By.CSS_SELECTOR, "[data-zoom=in]").click()
    assert viewer.find_element(By.TAG_NAME, "output").text == "4\N{MULTIPLICATION SIGN}"
    images = "[...arguments[0].querySelectorAll('.left img, .right img')]"
    places = f"return {images}.map(image => image.getBoundingClientRect().toJSON())"
    left, right = browser.execute_script(places, viewer)
    assert left == right
    assert left["width"] == pytest.approx(4 * stage.rect["width"], rel=0.01)
    ActionChains(browser).move_to_element_with_offset(stage, -100, -60).click_and_hold().move_by_offset(
        30, 20
    ).release().perform()
    moved, other = browser.execute_script(places, viewer)
    assert moved == other
    assert (moved["x"] - left["x"], moved["y"] - left["y"]) == pytest.approx((30, 20), abs=1)
    assert split(viewer) == 50
    for _ in range(3):
        viewer.find_element(By.CSS_SELECTOR, "[data-zoom=out]").click()
    assert browser.execute_script(places, viewer)[0]["width"] == pytest.approx(stage.rect["width"], rel=0.01)


def test_a_click_on_a_header_sorts_the_table_with_the_best_first(browser: Any, viewer: Any) -> None:
    table = browser.find_element(By.CSS_SELECTOR, "#results table")
    head = table.find_element(By.CSS_SELECTOR, "th:nth-child(2)")

    def rows() -> list[list[str]]:
        return [row.text.split() for row in table.find_elements(By.CSS_SELECTOR, "tbody tr")]

    before = rows()
    assert [row[0] for row in before] == [BICUBIC, "Black", "Half", "White"]
    head.find_element(By.TAG_NAME, "button").click()
    assert head.get_attribute("aria-sort") == "descending"  # PSNR: higher is better
    assert rows() == sorted(before, key=lambda row: -float(row[1]))
    head.find_element(By.TAG_NAME, "button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert rows() == sorted(before, key=lambda row: float(row[1]))


def test_a_phone_needs_no_sideways_scrolling(browser: Any, viewer: Any) -> None:
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    assert viewer.find_element(By.CLASS_NAME, "stage").size["width"] > 300


def test_dark_and_print_differ_from_the_screen_in_the_light(browser: Any, viewer: Any) -> None:
    """Dark: light ink on dark paper. Print: all versions side by side, without a slider."""
    paper = "return getComputedStyle(document.body).backgroundColor"
    seen = {}
    for scheme in ("light", "dark"):
        feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
        seen[scheme] = browser.execute_script(paper)
    assert seen == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    layers = viewer.find_elements(By.CLASS_NAME, "layer")
    assert len({layer.rect["x"] for layer in layers}) == 5  # six versions, five in a row
    assert all(layer.is_displayed() for layer in layers)
    assert not viewer.find_element(By.CLASS_NAME, "handle").is_displayed()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
