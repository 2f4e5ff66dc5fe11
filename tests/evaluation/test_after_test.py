"""The tables after a test contain exactly the tested images."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.evaluation.after_test import evaluate_test_run

import cv2
import pytest
from PIL import Image

from tests.support.images import smooth_noise


def options(root: Path) -> dict[str, Any]:
    path = {"visualization": str(root / "visualization"), "results_root": str(root)}
    return {"name": "run", "scale": 4, "val": {"save_img": True, "suffix": None}, "path": path}


def make_set(root: Path, names: tuple[str, ...], tested: int) -> Any:
    """A loader of the first ``tested`` images, with saved results."""
    for folder, side in (("gt", 32), ("lq", 8), ("visualization/set", 32)):
        (root / folder).mkdir(parents=True)
        for number, name in enumerate(names):
            file = f"{name}_run.png" if folder.startswith("vis") else f"{name}.png"
            if number < tested or not folder.startswith("vis"):
                cv2.imwrite(str(root / folder / file), smooth_noise(side, side, number))
    paths = [{"gt_path": f"{root}/gt/{name}.png", "lq_path": f"{root}/lq/{name}.png"} for name in names[:tested]]
    return SimpleNamespace(dataset=SimpleNamespace(paths=paths, opt={"name": "set"}))


@pytest.mark.parametrize(
    ("names", "tested"),
    [(("a", "b", "c"), 2), (("a", "a_run", "a_run_run"), 3), (("1", "11", "1_1"), 3)],
    ids=["subset", "names that contain the suffix", "names within names"],
)
def test_tables_contain_exactly_the_tested_images(tmp_path: Path, names: tuple[str, ...], tested: int) -> None:
    loader = make_set(tmp_path, names, tested)
    opt = options(tmp_path)
    if tested == 2:  # a suffix of the files does not rename the method
        opt["name"], opt["val"]["suffix"] = "the_run", "run"
    folder = evaluate_test_run(opt, ("psnr_rgb",), [loader])
    assert folder is not None
    lines = (folder / "per_image.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * tested  # bicubic and ours
    assert {line.split(",")[1] for line in lines[1:]} == set(names[:tested])
    assert {line.split(",")[2] for line in lines[1:]} == {"Bicubic", opt["name"]}


@pytest.mark.parametrize("file", ["gt/a.png", "visualization/set/a_run.png"])
@pytest.mark.parametrize("is_there", [True, False])
def test_what_cannot_be_measured_is_told_with_what_is_saved(file: str, is_there: bool, tmp_path: Path) -> None:
    loader = make_set(tmp_path, ("a", "b"), 2)
    image = Image.open(tmp_path / file).convert("RGBA")
    image.putalpha(128)
    if is_there:
        image.save(tmp_path / file)
        said = f"{tmp_path / file} is colour with alpha"
    elif file.startswith("gt"):
        Path(loader.dataset.paths[0]["lq_path"]).unlink()
        said = f"{tmp_path}/lq/a.png cannot be read"
    else:
        (tmp_path / file).unlink()
        said = f"{tmp_path}/visualization/set: .*missing: a"
    with pytest.raises(UserError, match=f"^the results are saved, and not measured: {said}") as raised:
        evaluate_test_run(options(tmp_path), ("psnr_rgb",), [loader])
    # It reads originals and LQ, not results.
    assert ("data check -opt FILE" in str(raised.value)) == file.startswith("gt")


def test_a_set_whose_images_have_the_names_of_others_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The sibling of SRGD#2 in measuring: results, or LQ, shifted by a name were a low PSNR without a word."""
    loader = make_set(tmp_path, ("a", "b", "c"), 3)
    for number in (0, 1, 2):  # that of the next one; and a network that has collapsed
        cv2.imwrite(str(tmp_path / f"lq/{'cab'[number]}.png"), smooth_noise(8, 8, number))
        cv2.imwrite(str(tmp_path / f"gt/{'abc'[number]}.png"), cv2.resize(smooth_noise(8, 8, number), (32, 32)))
        cv2.imwrite(str(tmp_path / f"visualization/set/{'abc'[number]}_run.png"), 0 * smooth_noise(32, 32, 0))
    folder = evaluate_test_run(options(tmp_path), ("psnr_rgb",), [loader])
    said = "a shows what b does, b shows what c does, c shows what a does"
    # Once the log is set up it has the table, too.
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == [f"set: images of Bicubic have the names of others: {said}"]
    assert folder is not None
    assert "gray of coloured" not in (folder / "table.md").read_text(), "they are what was computed"


def test_sets_without_originals_have_no_tables(tmp_path: Path) -> None:
    bare = SimpleNamespace(dataset=SimpleNamespace(paths=[str(tmp_path / "a.png")], opt={"name": "bare"}))
    assert evaluate_test_run(options(tmp_path), ("psnr_rgb",), [bare]) is None


def test_results_of_luma_alone_have_no_tables_against_colours(tmp_path: Path) -> None:
    """The saved image is luma: its table said 13 dB, and the test's own metrics 40."""
    (tmp_path / "a.png").touch()
    paths = [{"gt_path": str(tmp_path / "a.png"), "lq_path": str(tmp_path / "a.png")}]
    luma = SimpleNamespace(dataset=SimpleNamespace(paths=paths, opt={"name": "y", "color": "y"}))
    assert evaluate_test_run(options(tmp_path), ("psnr_rgb",), [luma]) is None
