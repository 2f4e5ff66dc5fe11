"""Measuring folders of images with the command line: files, marked values, refused input."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dp_basicsr.data.imresize import downsample, mod_crop
from dp_basicsr.errors import UserError
from dp_basicsr.evaluation.evaluate import Evaluation, Measured, evaluate
from dp_basicsr.evaluation.files import as_json, csv_text, mark_best, markdown, read_evaluation, write_evaluation
from dp_basicsr.evaluation.matching import BICUBIC, Method, find_test_set
from dp_basicsr.metrics import measure
from dp_basicsr.report.build import write_report

import cv2
import numpy as np
import pytest
from basicsr.utils import imfrombytes

from scripts.evaluate import main

Refused = Callable[[Any, list[str]], str]
PIXELS = ("psnr_rgb", "psnr_y", "ssim_rgb", "ssim_y")
NAMES = ["one", "two", "gray"]


def smooth(seed: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, channels), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two sets with sizes that 4 does not divide and a gray original; a good method and a bad one."""
    for name in ("A", "B"):
        for number, image in enumerate(NAMES):
            gt = smooth(number, 65, 50 + number, 1 if image == "gray" else 3)
            cropped = mod_crop(gt, 4)
            noisy = np.clip(cropped.astype(int) + np.random.default_rng(9).integers(-40, 41, cropped.shape), 0, 255)
            for folder, file, pixels in (
                ("gt", image, gt),
                ("lr", image, downsample(gt, 4)),
                ("good", f"{image}_good_x4", np.clip(cropped.astype(int) + 2, 0, 255)),
                ("bad", f"{image}_bad_x4", noisy),
            ):
                target = tmp_path / folder / name / f"{file}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(target), pixels.astype(np.uint8))
    return tmp_path


def test_the_command_writes_complete_files(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = ["--result", "Good=good", "--result", "Bad=bad/{set}", "--bicubic", "--metrics", *PIXELS]
    assert main(["--gt", "gt/A", "gt/B", "--lr", "lr/A", "lr/B", *results, "--out", "out"]) == 0
    assert sorted(path.name for path in (data / "out").iterdir()) == ["evaluation.json", "per_image.csv", "table.md"]

    table = (data / "out/table.md").read_text()
    assert table in capsys.readouterr().out
    for label in ("PSNR RGB [dB]", "PSNR Y [dB]", "SSIM RGB", "SSIM Y", "### A (3 images)", "### B (3 images)"):
        assert label in table
    good = next(line for line in table.splitlines() if line.startswith("| Good"))
    assert good.count("**") == 8  # the best in all four columns
    assert table.count("*second best*") == 1

    rows = list(csv.DictReader((data / "out/per_image.csv").open()))
    assert len(rows) == 2 * 3 * 3
    row = next(row for row in rows if (row["set"], row["image"], row["method"]) == ("B", "two", "Bad"))
    gt, bad = (cv2.imread(name) for name in ("gt/B/two.png", "bad/B/two_bad_x4.png"))
    assert {name: float(row[name]) for name in PIXELS} == measure(bad, mod_crop(gt, 4), 4, PIXELS)

    stored = json.loads((data / "out/evaluation.json").read_text())
    assert stored["averages"]["B"]["Bad"]["psnr_y"] == pytest.approx(
        np.mean([float(row["psnr_y"]) for row in rows if row["method"] == "Bad" and row["set"] == "B"])
    )
    assert (data / "out" / stored["images"][-1]["result"]).resolve() == data / "bad/B/two_bad_x4.png"


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_files_of_16_bits_are_measured_as_in_validation(suffix: str, tmp_path: Path) -> None:
    """By 8 bits; values of 12 bits are refused, because almost black they would be alike."""
    deep = smooth(0, 40, 44).astype(np.uint16) << 8 | smooth(1, 40, 44)
    for folder, pixels in (
        ("gt", deep), ("good", np.minimum(deep, 60_000)), ("dark", deep >> 4), ("black", deep & 0),
    ):  # fmt: skip
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / f"a{suffix}"), pixels)
    sets = [find_test_set(Path("gt"))]
    (image,) = evaluate(sets, [Method("Good", Path("good"))], 4, PIXELS).images
    gt, good = (imfrombytes(Path(f"{folder}/a{suffix}").read_bytes()) for folder in ("gt", "good"))
    assert image.scores == measure(good, gt, 4, PIXELS)
    assert len(evaluate(sets, [Method("Black", Path("black"))], 4, PIXELS).images) == 1
    with pytest.raises(UserError, match=r"dark/a\.... has 16 bits per channel, expected 8: .* multiply 16"):
        evaluate(sets, [Method("Dark", Path("dark"))], 4, PIXELS)


def test_any_name_of_a_file_is_written_as_the_disk_has_it(data: Path) -> None:
    """No UTF-8 (dupeguru#210), and UTF-8 as Python reads it under LC_ALL=C (rich#212)."""
    names = [b"\xff\xe9", "\u00e9t\u00e9".encode()]
    file, scores = Path("gt/A/one.png"), {"psnr_rgb": 30.0}
    images = [Measured("A", name.decode("ascii", "surrogateescape"), "m", file, None, file, scores) for name in names]
    evaluation = Evaluation(4, ("psnr_rgb",), {}, tuple(images))
    write_evaluation(evaluation, Path("out"))
    rows = Path("out/per_image.csv").read_bytes().splitlines()
    assert rows[1:] == [b"A," + name + b",m,30.0" for name in names]
    assert [image.image for image in read_evaluation(Path("out")).images] == [image.image for image in images]
    write_report([Path("out")], Path("report.html"))
    assert all(name in Path("report.html").read_bytes() for name in names)


def test_an_evaluation_survives_a_round_trip(data: Path) -> None:
    test_set = find_test_set(Path("gt/A"))
    evaluation = evaluate(
        [test_set], [Method("Same", Path("gt"), "{}"), Method(BICUBIC, None)], 4, (*PIXELS, "lpips_alex")
    )
    assert evaluation.average("A", "Same")["psnr_y"] == float("inf")
    assert evaluation.average("A", BICUBIC)["lpips_alex"] is None
    assert "alexnet" in evaluation.missing["lpips_alex"]
    assert "LPIPS AlexNet is n/a: the ImageNet weights" in markdown(evaluation)
    write_evaluation(evaluation, Path("out"))
    read = read_evaluation(Path("out"))
    assert read.average("A", "Same") == evaluation.average("A", "Same")
    assert [image.scores for image in read.images] == [image.scores for image in evaluation.images]
    assert read.missing == evaluation.missing
    # Bicubic from LR files is bicubic of the original.
    given = evaluate([find_test_set(Path("gt/A"), Path("lr/A"))], [Method(BICUBIC, None)], 4, evaluation.metrics)
    assert [image.scores for image in given.images] == [image.scores for image in evaluation.of("A", BICUBIC)]


def test_the_best_are_marked() -> None:
    assert mark_best([26.504, 26.501, 25.0, None], "psnr_y") == ["**26.50**", "**26.50**", "*25.00*", "n/a"]
    assert mark_best([0.2, 0.1, 0.3], "lpips_alex") == ["*0.2000*", "**0.1000**", "0.3000"]
    assert mark_best([0.1, 0.2], "ssim_y") == ["0.1000", "**0.2000**"]
    assert mark_best([0.1], "ssim_y") == ["0.1000"]


def test_only_an_evaluation_is_replaced_and_only_on_request(
    data: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--gt", "gt/A", "--bicubic", "--metrics", "psnr_y", "--out"]
    for arguments in ([*command, "out"], [*command, "out", "--overwrite"]):
        main(arguments)
    # Refused before anything is measured.
    monkeypatch.setattr("dp_basicsr.evaluation.evaluate.evaluate", None)
    for arguments in ([*command, "out"], [*command, "gt", "--overwrite"]):
        refused(main, arguments)
    assert len(list((data / "gt").rglob("*.png"))) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to measure"),
        (["--result", "Good"], "--result: expected NAME=VALUE"),
        (["--result", "Good=good/A", "--pattern", "Bod={}"], "no --result is called Bod"),
        (["--result", "Good=good/A", "--result", "Good=bad/A"], "two of the methods are called Good"),
        (["--bicubic", "--lr", "lr/A", "lr/B"], "one folder for each of the 1 folders"),
        (["--result", "Good=nowhere"], "no such folder: nowhere"),
        (["--result", "Good=gt/A/gray.png"], "expected a folder of images, got a file: gt/A/gray.png; name its folder"),
        (
            ["--result", "LR=lr/A"],
            r"gray.png: expected 52 x 64 pixels \(the original, cropped to a multiple of 4\), got 13 x 16: "
            r".* or cut the original and the other results to the same size\n.*one.png: expected .*\n.*two.png: expe",
        ),
        (["--bicubic", "--scale", "0"], "scale: expected a whole number from 1, got 0"),
        (["--bicubic", "--lr", "gt/A"], "LR of gray: expected 1/4 .--scale. of the original's 52 x 64, got 52 x 65"),
    ],
)
def test_mistakes_are_named(data: Path, arguments: list[str], message: str, refused: Refused) -> None:
    text = refused(main, ["--gt", "gt/A", "--metrics", "psnr_y", *arguments, "--out", "out"])
    assert re.search(f"error: .*{message}", text)
    assert not list(data.glob("out*"))


def test_folders_have_equals_signs_in_their_names(
    data: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    """hydra#1314: runs are called after their options."""
    for folder in ("gt", "good"):
        (data / folder).rename(f"{folder},mu=1")
    for gt, result in (("gt,mu=1/A", "Good=good,mu=1/A"), ("A=gt,mu=1/A", "Good=good,mu=1/{set}")):
        assert main(["--gt", gt, "--result", result, "--metrics", "psnr_y"]) == 0
    text = refused(main, ["--gt", "gt,mu=1/A", "--result", "good,mu=1/A"])
    assert "--result: expected NAME=VALUE, got 'good,mu=1/A'" in text


def test_niqe_needs_no_originals(data: Path, capsys: pytest.CaptureFixture[str], refused: Refused) -> None:
    """IQA-PyTorch#273: photographs of which there are none."""
    assert main(["--result", "Good=good/A", "--metrics", "niqe"]) == 0
    out = capsys.readouterr().out
    assert "NIQE of A is n/a; without a finite value" in out  # too small
    assert "measured against" not in out
    for more in (["--metrics", "niqe", "psnr_y"], ["--metrics", "niqe", "--bicubic"], []):
        assert "--gt is required: without originals only" in refused(main, ["--result", "Good=good/A", *more])


def test_a_damaged_evaluation_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dp-basicsr evaluate` and test.py create it"):
        read_evaluation(tmp_path)
    unknown = json.dumps({"metrics": ["vmaf"], "missing": {}})
    for content, reason in (("{}", ""), ("[" * 100_000, ""), (unknown, ".*metrics that are unknown here: vmaf")):
        (tmp_path / "evaluation.json").write_text(content)
        with pytest.raises(UserError, match=f"not an evaluation of dp_basicsr{reason}.*create it again"):
            read_evaluation(tmp_path)


def test_an_evaluation_with_anything_changed_is_read_or_refused(tmp_path: Path) -> None:
    """What is read can also be printed."""
    image = Measured("A", "one", "Good", Path("gt.png"), None, Path("good.png"), {"psnr_y": 30.0})
    whole = as_json(Evaluation(4, ("psnr_y",), {"lpips_alex": "no weights"}, (image,), {"Good": "1 JPEG"}), tmp_path)

    def places(part: Any) -> Iterator[tuple[Any, Any]]:
        for key in list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ():
            yield from [(part, key), *places(part[key])]

    refused = 0
    for part, key in places(whole):
        before = part[key]
        for part[key] in (None, [], ["x"], {}, {"x": 1}, "x", 0, -1, math.inf, math.nan):
            (tmp_path / "evaluation.json").write_text(json.dumps(whole))
            try:
                evaluation = read_evaluation(tmp_path)
            except UserError:
                refused += 1
            else:
                assert markdown(evaluation).count("(1 image)") == len(evaluation.images)
                assert csv_text(evaluation)
        part[key] = before
    assert refused > 50
