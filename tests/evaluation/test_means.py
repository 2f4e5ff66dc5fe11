"""The contract *measuring*: generated means against a closed form, and lossy files."""

from __future__ import annotations

import html
import math
import re
import statistics
from dataclasses import replace
from itertools import product
from pathlib import Path

from dp_basicsr.evaluation import crops
from dp_basicsr.evaluation.evaluate import Evaluation, Measured, evaluate, lossy_format
from dp_basicsr.evaluation.files import as_json, markdown, read_evaluation, write_evaluation
from dp_basicsr.evaluation.matching import Method, find_test_set

import PIL.Image
import pytest

from tests.support.fuzz import draws
from tests.support.images import smooth_noise

NUMBERS = (20.0, 27.5, 31.25, 40.0)


def test_means_are_over_the_images_that_every_method_has_a_finite_value_for() -> None:
    """Against the definition, image by image, for values that are numbers, infinite or missing."""
    for rng in draws(100):
        methods, images = [f"m{n}" for n in range(rng.randint(1, 3))], [f"i{n}" for n in range(rng.randint(1, 5))]
        odd = rng.choice([0.0, 0.2, 0.6, 1.0])
        values = {
            pair: rng.choice((None, math.inf) if rng.random() < odd else NUMBERS) for pair in product(methods, images)
        }
        measured = tuple(
            Measured("set", image, method, Path("gt.png"), None, None, {"psnr_y": values[method, image]})
            for image in images
            for method in methods
        )
        evaluation = Evaluation(4, ("psnr_y",), {}, measured)
        common = [image for image in images if all(values[method, image] in NUMBERS for method in methods)]
        for method in methods:
            mean = evaluation.average("set", method)["psnr_y"]
            perfect = all(values[method, image] == math.inf for image in images)
            if common:
                assert mean == pytest.approx(statistics.fmean(values[method, image] or 0 for image in common))
            else:
                assert mean == (math.inf if perfect else None)
        text = markdown(evaluation)
        assert (f"is the mean over {len(common)} of {len(images)} images" in text) == (0 < len(common) < len(images))


def test_a_metric_that_no_image_is_large_enough_for_is_n_a_with_the_reason() -> None:
    measured = Measured("set", "tiny", "A", Path(), None, None, {"psnr_y": math.inf, "niqe": None, "deep": None})
    text = markdown(Evaluation(4, ("psnr_y", "niqe", "deep"), {"deep": "not installed"}, (measured,)))
    assert "NIQE of set is n/a; without a finite value for every method (it needs 12 x 96 x 96 pixels): tiny." in text
    assert [line for line in text.splitlines() if "PSNR Y" in line or "Deep distance" in line][1:] == [
        "Deep distance is n/a: not installed"
    ]
    # IQA-PyTorch#182: the originals were given as a method, and no other had a PSNR.
    both = tuple(replace(measured, method=name, scores={"psnr_y": psnr}) for name, psnr in (("HR", math.inf), ("B", 1)))
    text = markdown(Evaluation(4, ("psnr_y",), {}, both))
    assert "PSNR Y [dB] of set is n/a; without a finite value for HR: tiny." in text


def test_names_are_shown_as_they_are_in_the_table() -> None:
    """papaja#116: a name is no markup."""
    markup = pytest.importorskip("markdown")
    names = ["a_b_c", "x|y", "*z*", "<b>", "[t](u)", "`c`", "__d__", r"m\n", "_old", "x_4_"]
    images = tuple(Measured("set", "i", name, Path(), None, None, {"psnr_y": 1.0}) for name in names)
    page = markup.markdown(markdown(Evaluation(4, ("psnr_y",), {}, images)), extensions=["tables"])
    assert [html.unescape(cell) for cell in re.findall(r"<tr>\s*<td>(.*?)</td>", page)] == names


@pytest.mark.parametrize(
    ("suffix", "settings", "kind"),
    [
        (".png", {}, ""),
        (".jpg", {}, "JPEG"),
        (".webp", {"quality": 80}, "lossy WebP"),
        (".webp", {"lossless": True}, ""),
        (".webp", {"quality": 80, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}, "lossy WebP"),
        (".webp", {"lossless": True, "icc_profile": b"VP8 " * 5 + b"x"}, ""),
        (".tif", {"compression": "jpeg"}, "JPEG in TIFF"),
        (".tif", {"compression": "tiff_lzw"}, ""),
        (".gif", {}, "GIF"),
    ],
)
def test_lossy_files_are_known_by_their_content(tmp_path: Path, suffix: str, settings: dict, kind: str) -> None:
    path = tmp_path / f"a{suffix}"
    PIL.Image.fromarray(smooth_noise(48, 40, 0)).save(path, **settings)
    assert lossy_format(path) == kind


def test_a_palette_of_colours_is_lossy_and_one_of_grays_is_not(tmp_path: Path) -> None:
    image = PIL.Image.fromarray(smooth_noise(48, 40, 0))
    image.quantize(256).save(tmp_path / "colours.png")
    image.convert("L").convert("P").save(tmp_path / "grays.png")
    assert lossy_format(tmp_path / "colours.png") == "PNG of at most 256 colours"
    assert lossy_format(tmp_path / "grays.png") == ""


def test_lossy_results_are_named_in_table_json_and_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, name, suffix in (("gt", "a", "png"), ("gt", "b", "png"), ("A", "a", "jpg"), ("A", "b", "png")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / "gray").mkdir(exist_ok=True)
        PIL.Image.fromarray(smooth_noise(48, 40, 0)).save(tmp_path / folder / f"{name}.{suffix}")
        PIL.Image.fromarray(smooth_noise(48, 40, 0)).convert("L").save(tmp_path / "gray" / f"{name}.png")
    methods = [Method("A", tmp_path / "A"), Method("B", tmp_path / "gt"), Method("C", tmp_path / "gray")]
    evaluation = evaluate([find_test_set(tmp_path / "gt")], methods, 4, ("psnr_y",))
    assert "B has files that are the originals, measured against themselves." in evaluation.notes()  # IQA-PyTorch#86
    assert "A is measured from lossy files (1 JPEG), which" in markdown(evaluation)
    below = list[str]()
    monkeypatch.setattr(crops, "save_figure", lambda figure, *_, **__: below.append(figure.get_supxlabel()))
    crops.compare_crops(crops.images_of(evaluation, "a"), evaluation, crops.Crop(0, 0, 8, 8), tmp_path / "a.png")
    assert "\nA is of lossy files (1 JPEG)." in below[0]
    write_evaluation(evaluation, tmp_path / "out")
    assert read_evaluation(tmp_path / "out").notes() == evaluation.notes()
    assert as_json(evaluation, tmp_path)["lossy"] == {"A": "1 JPEG", "C": "2 gray of coloured originals"}
