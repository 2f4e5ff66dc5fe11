"""Every fault of a data set is reported, and an intact one has none, in every format."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dp_basicsr.data.preparation.check import (
    Pair,
    PairedSet,
    check_set,
    paired_sets,
    read_pair,
    refuse_turned,
    table,
)
from dp_basicsr.data.preparation.convert import create_lmdb, make_lr
from dp_basicsr.data.preparation.extract import Extraction, Window, cut_image
from dp_basicsr.data.preparation.jobs import PrepJob
from dp_basicsr.data.preparation.likeness import _shift
from dp_basicsr.data.sources import find_sources
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import BadImageError
from dp_basicsr.images.png import HEADER_END, join
from dp_basicsr.images.strict import encode_png

import cv2
import lmdb
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from scripts import check_dataset
from tests.support.fuzz import draws
from tests.support.images import ImageFolder, smooth_noise

ONE = PrepJob(workers=1)


@pytest.fixture
def good(image_folder: ImageFolder, tmp_path: Path) -> Path:
    """GT and LQ, x4, of five pairs."""
    make_lr(image_folder("GT", **{f"i{number}": (40, 48) for number in range(5)}), tmp_path / "LQ", 4, ONE)
    return tmp_path


def check(
    root: Path, gt_size: int | None = 32, suffix: str = "", scale: int = 4, **changes: Any
) -> list[tuple[str, str, str]]:
    """Return kind, name and text of the problems, sorted."""
    what = PairedSet(root / f"GT{suffix}", root / f"LQ{suffix}", scale, gt_size, **changes)
    return sorted((problem.kind, Path(problem.path).name, problem.text) for problem in check_set(what, 1).problems)


def test_an_intact_set_has_no_problems_in_any_format(good: Path) -> None:
    for name in ("GT", "LQ"):
        create_lmdb(good / name, good / f"{name}.lmdb", ONE)
        create_lmdb(good / name, good / f"{name}_raw.lmdb", ONE, "raw")
    for suffix in ("", ".lmdb", "_raw.lmdb"):
        checked = check_set(PairedSet(good / f"GT{suffix}", good / f"LQ{suffix}", 4, 40), 1)
        assert (checked.pairs, checked.problems) == (5, [])
        assert str(checked) == "5 pairs: nothing wrong"
    assert table([]) == ""


def test_every_fault_in_folders_is_named(good: Path) -> None:
    gt, lq = good / "GT", good / "LQ"
    (gt / "i0.png").write_bytes((gt / "i0.png").read_bytes()[:200])  # truncated
    cv2.imwrite(str(lq / "i1.png"), np.ones((10, 12, 3), np.uint16))  # 12 bits or fewer, of 16
    cv2.imwrite(str(gt / "i2.png"), smooth_noise(40, 44, 9))  # not four times its LQ
    cv2.imwrite(str(gt / "i3.png"), smooth_noise(28, 48, 8))  # too small for the crop
    cv2.imwrite(str(lq / "i3.png"), smooth_noise(7, 12, 8))
    for folder in (gt, lq):
        shutil.copy(folder / "i4.png", folder / "i5.png")  # the same pair under two names
    shutil.copy(gt / "i4.png", gt / "alone.png")
    shutil.copy(lq / "i4.png", lq / "orphan.png")
    (gt / "notes.txt").write_text("mine")
    assert [(kind, name) for kind, name, _ in check(good)] == [
        ("duplicate", "i5.png"),
        ("foreign", "notes.txt"),
        ("missing", "alone.png"),
        ("missing", "orphan.png"),
        ("size", "i2.png"),
        ("size", "i3.png"),
        ("unreadable", "i0.png"),
        ("unreadable", "i1.png"),
    ]
    texts = "\n".join(text for _, _, text in check(good))
    for expected in (
        f"has the same pixels as {gt}/i4.png", "is 44 x 40, its LQ 12 x 10: not 4 times as large",
        "smaller than gt_size 32", "is truncated", "16 bits per channel",
    ):  # fmt: skip
        assert expected in texts


def test_of_16_bits_the_8_that_training_reads_are_checked(good: Path) -> None:
    for path in good.glob("*/*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path)).astype(np.uint16) * 257)
    cv2.imwrite(str(good / "LQ/i1.png"), cv2.imread(str(good / "LQ/i1.png"), -1)[::-1])
    deep, other, mirrored = check(good)
    assert deep[:2] == other[:2] == ("depth", "i0.png")
    assert "16 bits per channel, of which training reads the upper 8" in deep[2]
    assert mirrored[:2] == ("orientation", "i1.png")


def test_the_folder_is_looked_through_for_the_first_missing_name_alone(good: Path) -> None:
    """Of tens of thousands in a list each would take a third of a second."""
    missing = tuple(f"I{number}.png" for number in range(5))
    problems = check_set(PairedSet(good / "GT", good / "LQ", 4, 40, names=missing), 1).problems
    assert ["capital" in problem.text for problem in problems if "lists it" in problem.text] == [True] + 4 * [False]


def test_images_with_another_suffix_are_checked_as_they_are_trained_on(good: Path) -> None:
    """immich#6173: "left out in training", which takes them."""
    for name in ("GT", "LQ"):
        for number in range(5):
            (good / name / f"i{number}.png").rename(good / name / f"i{number}.pic")
        os.mkfifo(good / name / "pipe")  # to open it would wait for ever
    assert str(check_set(PairedSet(good / "GT", good / "LQ", 4, 40), 1)) == "5 pairs: nothing wrong"
    (good / "GT" / "i3.pic").write_bytes((good / "GT" / "i3.pic").read_bytes()[:200])
    assert [(kind, name) for kind, name, _ in check(good)] == [("unreadable", "i3.pic")]


@pytest.mark.parametrize("settings", [[], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]])
def test_a_damaged_jpeg_that_is_decoded_is_named(
    good: Path, settings: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    """libjpeg-turbo#151: nothing told that a part of the picture is shifted."""
    for folder in (good / "GT", good / "LQ"):
        cv2.imwrite(str(folder / "i0.jpg"), cv2.imread(str(folder / "i0.png")), settings)
        (folder / "i0.png").unlink()
    assert check(good) == []
    path = good / "GT" / "i0.jpg"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + data[len(data) // 2 + 50 :])
    damaged, *others = check(good)
    assert damaged[:2] == ("damaged", "i0.jpg")
    # What is shifted does not fit its LQ.
    assert {kind for kind, *_ in others} <= {"content", "tone"}
    assert capfd.readouterr().err == "", "the table names the file, to which libjpeg's line has no name"


def test_a_png_with_surplus_pixels_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = encode_png(np.zeros((4, 4), np.uint8))
    pixels = (b"IDAT", zlib.compress(bytes(4 * 5 + 9)))
    (tmp_path / "a.png").write_bytes(join(content[:HEADER_END] + content[-12:], [pixels]))
    problems, *_ = read_pair(Pair(*find_sources(tmp_path), *find_sources(tmp_path)), 1, None)
    assert [problem.kind for problem in problems] == ["damaged", "damaged"]
    assert "IDAT: Too much image data" in problems[0].text
    assert capfd.readouterr().err == ""


def test_every_fault_in_an_lmdb_is_named(good: Path) -> None:
    for name in ("GT", "LQ"):
        create_lmdb(good / name, good / f"{name}.lmdb", ONE)
    with lmdb.open(str(good / "GT.lmdb")) as env, env.begin(write=True) as transaction:
        transaction.delete(b"i0")
        transaction.put(b"extra", b"x")
        transaction.put(b"i1", transaction.get(b"i1")[:100])
    info = good / "GT.lmdb" / "meta_info.txt"
    info.write_text(info.read_text().replace("i2.png (40,48,3)", "i2.png (44,48,3)") + "i3.png (40,48,3) 1\n")
    assert check(good, suffix=".lmdb") == [
        ("meta_info", "extra", "is a record without a line in meta_info.txt"),
        ("meta_info", "i3", "has more than one line in meta_info.txt"),
        ("unreadable", "i0", f"is not in {good}/GT.lmdb, though its meta_info.txt names it"),
        ("unreadable", "i1", "is truncated"),
        ("unreadable", "i2", "is 40 x 48 x 3, but its meta_info.txt says 44 x 48 x 3"),
    ]


def test_a_set_may_have_a_remainder_and_gray_images(good: Path) -> None:
    cv2.imwrite(str(good / "GT" / "i0.png"), smooth_noise(43, 49, 0))
    cv2.imwrite(str(good / "GT" / "i1.png"), np.asarray(cv2.imread(str(good / "GT" / "i1.png"), cv2.IMREAD_GRAYSCALE)))
    cv2.imwrite(str(good / "GT" / "i2.png"), smooth_noise(44, 48, 0))
    found = [("size", "i2.png"), ("tone", "i1.png")]  # its LQ has colours
    assert [(kind, name) for kind, name, _ in check(good, None)] == found
    assert [(kind, name) for kind, name, _ in check(good)] == found


def test_names_and_templates_of_basicsr(good: Path) -> None:
    """Subfolders are dropped from the LQ's name, so two GT of the same name would share an LQ."""
    for folder in ("a", "b"):
        (good / "GT" / folder).mkdir()
        shutil.copy(good / "GT/i0.png", good / "GT" / folder)
    assert check(good, names=("a/i0.png", "i1.png")) == []
    assert [kind for kind, _, _ in check(good, names=("a/i0.png", "b/i0.png"))] == ["shared"]
    for path in (good / "LQ").iterdir():
        path.rename(path.with_name(f"{path.stem}x4.png"))
    assert len(check(good)) == 10
    assert check(good, template="{}x4") == []
    (good / "LQ" / "i0x4.png").unlink()
    assert check(good, template="{}x4", names=("i1.png", "i2.png")) == []
    assert [name for _, name, _ in check(good, template="{}x4", names=("i0.png", "i9.png"))] == ["i0.png", "i9.png"]


def test_a_missing_or_broken_set_is_a_problem(good: Path) -> None:
    (good / "GT.lmdb").mkdir()
    for suffix, message in (("_nowhere", "no such folder"), (".lmdb", "meta_info.txt cannot be read")):
        assert message in check(good, suffix=suffix)[0][2]


def test_all_sets_of_an_option_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a.png (4,4,3)\nb.png (4,4,3)\n")
    roots = {"dataroot_gt": "~/GT", "dataroot_lq": "LQ"}
    train = {"name": "t", "gt_size": 64, "meta_info_file": str(tmp_path / "names.txt"), **roots}
    val = {"name": "v", "gt_size": 64, "filename_tmpl": "{}x4", **roots}
    single = {"name": "s", "dataroot_lq": "LQ"}
    # Real-ESRGAN's list, whose one root may have no image itself.
    pairs = {"name": "p", "meta_info": train["meta_info_file"], "dataroot_gt": ".", "dataroot_lq": "."}
    sets = {"train": train, "val_1": val, "val_2": pairs, "test": single}
    found = dict(paired_sets({"scale": 4, "datasets": sets}))
    assert found == {
        "train (t)": PairedSet(Path.home() / "GT", Path("LQ"), 4, 64, "{}", ("a.png", "b.png")),
        "val_1 (v)": PairedSet(Path.home() / "GT", Path("LQ"), 4, None, "{}x4"),
        "val_2 (p)": PairedSet(Path("."), Path("."), 4, None, "{}", ("a.png", "b.png")),
    }
    with pytest.raises(UserError, match="the list nowhere cannot be read"):
        list(paired_sets({"scale": 4, "datasets": {"train": train | {"meta_info_file": "nowhere"}}}))


def test_a_validation_image_that_is_trained_on_is_named(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PlantSeg#11: under another name, and in the training folder itself."""
    for name in ("GT", "LQ"):
        (good / f"val_{name}").mkdir()
        shutil.copy(good / name / "i3.png", good / f"val_{name}" / "v.png")
    sets = {
        key: {"name": key, "dataroot_gt": str(good / f"{folder}GT"), "dataroot_lq": str(good / f"{folder}LQ")}
        for key, folder in (("train", ""), ("val_1", "val_"), ("val_2", ""))
    }
    sets["train"] |= {"gt_size": 32}
    Path("a.yml").write_text(json.dumps({"scale": 4, "datasets": sets}))
    assert check_dataset.main(["-opt", "a.yml", "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"train \(train\): 5 pairs: nothing wrong\nval_1 .*: 1 pairs: 1 duplicate\nval_2 .*: 5 pairs: 5 duplicate", said
    )
    assert re.search(r"val_GT/v.png +\| has the same pixels as .*/GT/i3.png", said)
    assert re.search(r"/GT/i3.png +\| is in an earlier set, too", said)


def test_the_command_s_exit_code_and_table(
    good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--gt", str(good / "GT"), "--lq", str(good / "LQ"), "--gt-size", "40", "--workers", "1"]
    assert check_dataset.main(arguments) == 0
    assert capsys.readouterr().out == f"{good / 'GT'}: 5 pairs: nothing wrong\n"
    for name in ("GT", "LQ"):
        shutil.copy(good / name / "i4.png", good / name / "again.png")
    (good / "GT" / "notes.txt").write_text("mine")
    assert check_dataset.main(arguments) == 0, "what training can do with stops no script"
    assert "6 pairs: 1 duplicate, 1 foreign" in capsys.readouterr().out
    for path in ("GT/again.png", "LQ/again.png", "GT/notes.txt", "LQ/i3.png"):
        (good / path).unlink()
    (good / "registering_module.py").write_text("print('registered')")
    monkeypatch.chdir(good)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("set.yml").write_text(
        "{name: x, model_type: x, scale: 4, num_gpu: 0, network_g: {}, "
        f"datasets: {{val: {{name: mine, dataroot_gt: {good}/GT, dataroot_lq: {good}/LQ}}}}}}"
    )
    assert check_dataset.main(["-opt", "set.yml", "--workers", "1", "--import", "registering_module"]) == 2
    out = capsys.readouterr().out
    assert out.startswith("registered\nval (mine): 4 pairs: 1 missing\n\n| problem |")
    assert f"| {good / 'GT' / 'i3.png'} | has no LQ in {good / 'LQ'} |" in out


def test_mistakes_in_the_command_are_named(good: Path, refused: Callable[..., str]) -> None:
    # Real-ESRGAN's has GT alone: nothing would be checked.
    Path("gt.yml").write_text("{scale: 4, datasets: {train: {name: t, type: RealESRGANDataset, dataroot_gt: GT}}}")
    for arguments, message in (
        ([], "expected"),
        (["--gt", "a"], "expected"),
        (["-opt", "a", "--gt", "b", "--lq", "c"], "expected"),
        (["-opt", "gt.yml", "--import", "no_such"], "no_such"),
        (["-opt", "gt.yml"], "expected a set with dataroot_gt and dataroot_lq, got none"),
    ):
        assert message in refused(check_dataset.main, arguments)


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("turn_both", [False, True])
def test_a_pair_with_only_one_image_rotated_by_exif_is_reported(
    tmp_path: Path, orientation: int, turn_both: bool
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    gt = smooth_noise(48, 48, 1)
    for name, pixels in (("GT", gt), ("LQ", cv2.resize(gt, (12, 12), interpolation=cv2.INTER_AREA))):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "a.png", exif=exif if name == "GT" or turn_both else None)
    found = check(tmp_path)
    assert [kind for kind, _, _ in found] == ([] if turn_both else ["orientation"])
    # detectron2#5366: its sub-images were written, and showed different places.
    cutting = Extraction(tmp_path / "GT", window=Window(16, 16), lr=(tmp_path / "LQ",))
    with nullcontext() if turn_both else pytest.raises(BadImageError, match="EXIF orientation of .*GT/a.png is appl"):
        cut_image(tmp_path / "GT/a.png", cutting)
    # A dataset of another package may have other paths, and read the pixels as they are stored.
    for paths in (None, [{"gt_path": tmp_path / "GT/a.png", "lq_path": tmp_path / "LQ/a.png"}]):
        refuse_turned(SimpleNamespace(paths=paths), 4)
    make_lr(tmp_path / "GT", tmp_path / "made", 4, ONE)
    what = PairedSet(tmp_path / "GT", tmp_path / "made", 4, 32)
    assert check_set(what, 1).problems == [], "our own LR image is turned as training turns the GT"


@pytest.mark.parametrize("shift", [(0, 2), (-4, 3), (5, -7), (0, 1)])
def test_an_lq_with_other_margins_is_named(tmp_path: Path, shift: tuple[int, int]) -> None:
    """epishchik/SRGD#2 (sibling): cut at the centre, its GT at the corner."""
    rng, (down, right) = np.random.default_rng(0), shift
    for folder in ("GT", "LQ"):
        (tmp_path / folder).mkdir()
    for number in range(3):
        scene = cv2.resize(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8), (288, 288), interpolation=cv2.INTER_CUBIC)
        small = cv2.resize(scene, (72, 72), interpolation=cv2.INTER_AREA)
        top, left = (10 - down, 10 - right) if number == 1 else (10, 10)
        cv2.imwrite(str(tmp_path / f"GT/{number}.png"), scene[40:248, 40:248])
        cv2.imwrite(str(tmp_path / f"LQ/{number}.png"), small[top : top + 52, left : left + 52])
    said = ("content", "1.png", f"its LQ shows the same, {right} pixels further right and {down} down")
    assert check(tmp_path) == [said] * (shift != (0, 1))


@pytest.mark.parametrize("flat", [0, 560])
def test_a_shift_is_found_in_the_middle_of_a_large_lq_or_around_it(flat: int) -> None:
    rng, side, middle = np.random.default_rng(0), 1203, slice(600 - flat // 2, 600 + flat // 2)
    scene = cv2.resize(rng.integers(0, 256, (80, 80), dtype=np.uint8), (side, side), interpolation=cv2.INTER_CUBIC)
    scene[middle, middle] = 128
    assert _shift(scene[3:, 2:-1], scene[:-3, 3:]) == "its LQ shows the same, -1 pixels further right and 3 down"


@pytest.mark.parametrize("size", [0.8, 1, 1.02, 1.18, 1.3])
def test_an_lq_of_another_field_of_view_is_named(size: float) -> None:
    """IanYeung/RealVSR#3: LR and HR of lenses that see differently much."""
    noise = np.random.default_rng(3)
    scene = cv2.resize(noise.integers(0, 256, (16, 20), dtype=np.uint8), (80, 64), interpolation=cv2.INTER_CUBIC)
    lens = cv2.getRotationMatrix2D((39.5, 31.5), 0, size)
    lq = cv2.warpAffine(scene, lens, (80, 64), borderMode=cv2.BORDER_REFLECT) * 0.8 + noise.normal(0, 4, scene.shape)
    is_named = abs(size - 1) > 0.04
    assert _shift(scene, lq) == (f"its LQ shows the same, {size:.2f} times as large" if is_named else "")


def test_a_noisy_lq_of_a_fine_texture_is_not_called_enlarged() -> None:
    rng = np.random.default_rng(0)
    scene = rng.normal(100, 17, (512, 512))  # flat when it is reduced
    assert _shift(scene.astype(np.uint8), scene + rng.normal(0, 5, scene.shape)) == ""


def test_another_picture_is_not_called_shifted() -> None:
    rng = np.random.default_rng(0)
    coarse = (rng.integers(0, 256, (6, 6), dtype=np.uint8) for _ in range(400))
    pictures = (cv2.resize(image, (40, 40), interpolation=cv2.INTER_CUBIC) for image in coarse)
    assert {_shift(gt, lq) for gt, lq in zip(pictures, pictures, strict=True)} == {""}


@pytest.mark.parametrize("cast", [(1, 1, 1), (0.5, 0.85, 1.2)])
def test_a_noisy_sky_is_not_called_shifted_or_a_tinted_one_swapped(
    cast: tuple[float, ...], tmp_path: Path, image_folder: ImageFolder
) -> None:
    rng, gt = np.random.default_rng(3), image_folder("GT")
    for number in range(20):
        sky = 60 + rng.uniform(60, 150) * np.linspace(0, 1, 192)[:, None, None] ** rng.uniform(1.5, 4)
        cv2.imwrite(str(gt / f"{number}.png"), (sky * (1, 0.85, 0.7) * np.ones((192, 192, 3))).astype(np.uint8))
    make_lr(gt, tmp_path / "LQ", 4, ONE)
    for path in (tmp_path / "LQ").iterdir():
        noisy = cv2.imread(str(path)) * np.array(cast) + rng.normal(0, 10, (48, 48, 3))
        cv2.imwrite(str(path), noisy.clip(0, 255).astype(np.uint8))
    assert [text for kind, _, text in check(tmp_path) if kind == "content"] == []


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("way", ["data lr", "area", "cubic", "cubic, noisy", "linear", "every so many"])
def test_lq_without_antialiasing_are_named_once(
    way: str, scale: int, tmp_path: Path, image_folder: ImageFolder
) -> None:
    gt = image_folder("GT", a=(97, 96), b=(96, 97), flat=(96, 96))
    cv2.imwrite(str(gt / "flat.png"), np.full((96, 96, 3), 70, np.uint8))
    make_lr(gt, tmp_path / "LQ", scale, ONE)
    ways = {"area": cv2.INTER_AREA, "cubic": cv2.INTER_CUBIC, "linear": cv2.INTER_LINEAR}
    for path in gt.iterdir():
        image = cv2.imread(str(path))[: 96 // scale * scale, : 96 // scale * scale]
        if way.split(",")[0] in ways:
            lq = cv2.resize(image, None, fx=1 / scale, fy=1 / scale, interpolation=ways[way.split(",")[0]])
            noise = np.random.default_rng(0).integers(0, 3, lq.shape, np.uint8) if "noisy" in way else 0
            cv2.imwrite(str(tmp_path / "LQ" / path.name), cv2.add(lq, noise))
        elif way != "data lr":
            cv2.imwrite(str(tmp_path / "LQ" / path.name), image[::scale, ::scale])
    # Of two pixels the linear one is the mean.
    is_named = way in ("cubic", "every so many") or (way == "linear" and scale > 2)
    assert [(kind, name) for kind, name, _ in check(tmp_path, scale=scale)] == [("aliased", "a.png")] * is_named


CHANGES: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "is mirrored": lambda image: image[:, ::-1],
    "is rotated clockwise by 90 degrees": lambda image: np.rot90(image, -1),
    "is rotated clockwise by 180 degrees": lambda image: np.rot90(image, 2),
    "is rotated clockwise by 270 degrees": np.rot90,
    "is mirrored and rotated clockwise by 180 degrees": lambda image: image[::-1],
    "does not show the same picture": np.zeros_like,
    "has red, green and blue in another order": lambda image: image[..., ::-1],  # HCIILAB/Scene-Text-Removal#13
}


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8])
def test_a_small_lq_is_compared_at_its_own_size(side: int, tmp_path: Path, image_folder: ImageFolder) -> None:
    """8 pixels, taken for 16, fitted the GT's colours in another order; 2 were another picture."""
    gt, noise = image_folder("GT"), np.random.default_rng(376)
    shape = 4 * side, 4 * side
    for number in range(4):
        gray = noise.integers(0, 256, (*shape, 1), dtype=np.uint8)
        image = gray * 0.5 + 60 + noise.normal(0, 10, (*shape, 3)) * [1, 0.3, 1]
        cv2.imwrite(str(gt / f"{number}.png"), image.clip(0, 255).astype(np.uint8))
    make_lr(gt, tmp_path / "LQ", 4, ONE)
    assert check(tmp_path, None) == []


def test_an_lq_that_shows_something_else_is_named_and_a_degraded_one_is_not(tmp_path: Path) -> None:
    for rng in draws(8):
        shutil.rmtree(tmp_path / "GT", ignore_errors=True)
        shutil.rmtree(tmp_path / "LQ", ignore_errors=True)
        noise, expected = np.random.default_rng(rng.randrange(10**6)), []
        side = rng.choice([128, 160, 192])
        coarse = [noise.integers(0, 256, (6, 6, 3), dtype=np.uint8) for _ in range(6)]
        pictures = [cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC) for image in coarse]
        small = [cv2.resize(gt, (side // 4, side // 4), interpolation=cv2.INTER_AREA) for gt in pictures]
        # As real and blind degradations do: noise, contrast, brightness, a shift of a pixel.
        lq = [image * rng.uniform(0.6, 1) + rng.uniform(0, 40) + noise.normal(0, 8, image.shape) for image in small]
        lq = [np.roll(image, rng.choice([0, 1]), axis=1).clip(0, 255).astype(np.uint8) for image in lq]
        wrong, other, changed = rng.sample(range(6), 3)
        if rng.random() < 0.7:
            lq[wrong], lq[other] = lq[other], lq[wrong]
            expected += [("content", number, f"shows what {tmp_path}/GT/{partner}.png shows")
                         for number, partner in ((wrong, other), (other, wrong))]  # fmt: skip
        if rng.random() < 0.7:
            said = rng.choice(list(CHANGES))
            lq[changed] = np.ascontiguousarray(CHANGES[said](lq[changed]))
            expected.append(("orientation" if said.startswith("is ") else "content", changed, said))
        for name, images in (("GT", pictures), ("LQ", lq)):
            (tmp_path / name).mkdir()
            for number, image in enumerate(images):
                cv2.imwrite(str(tmp_path / name / f"{number}.png"), image)
        found = [problem for problem in check(tmp_path) if problem[0] != "tone"]  # see the next test
        assert found == sorted((kind, f"{number}.png", f"its LQ {said}") for kind, number, said in expected)


@pytest.mark.parametrize(
    ("change", "is_named"),
    [
        (lambda lq: lq / 2, True),
        (lambda lq: 255 * (lq / 255) ** 0.45, True),
        (lambda lq: lq.mean(axis=2), True),
        (lambda lq: 16 + lq * (219 / 255), True),  # csjcai/RealSR#20: the range of video
        (lambda lq: lq * (0.9, 1, 1.1), False),
        (lambda lq: lq + np.random.default_rng(0).normal(0, 25, lq.shape), False),
        (lambda lq: cv2.imdecode(cv2.imencode(".jpg", lq, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], 1), False),
    ],
)
def test_an_lq_of_other_brightness_or_colours_is_named_once(
    change: Callable[[NDArray[Any]], NDArray[Any]], is_named: bool, tmp_path: Path, image_folder: ImageFolder
) -> None:
    """A wrong gamma, or gray in place of colour; no degradation does this."""
    gt, rng, levels = image_folder("GT"), np.random.default_rng(1), []
    for name in "ab":
        coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
        lq = change(coarse.repeat(8, axis=0).repeat(8, axis=1)).round().clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(gt / f"{name}.png"), coarse.repeat(32, axis=0).repeat(32, axis=1))
        (tmp_path / "LQ").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f"LQ/{name}.png"), lq)
        levels.append(np.abs(lq.reshape(4, 8, 4, 8, -1).mean(axis=(1, 3)) - coarse).mean())
    problems = check(tmp_path)
    assert [(kind, name) for kind, name, _ in problems] == [("tone", "a.png")] * is_named
    for _, _, text in problems:
        assert int(re.search(r"by (\d+) of 255 levels", text)[1]) == pytest.approx(levels[0], abs=1)
