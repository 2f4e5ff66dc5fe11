"""From HR images to the data that BasicSR trains on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dp_basicsr  # noqa: F401  (makes basicsr importable)
from dp_basicsr.data.imresize import downsample
from dp_basicsr.data.preparation.extract import Extraction, extract_subimages
from dp_basicsr.data.preparation.jobs import PrepJob
from dp_basicsr.data.preparation.subimages import Window, count_subimages
from dp_basicsr.data.sources import find_sources
from dp_basicsr.errors import UserError
from dp_basicsr.images.strict import encode_png, read_image

import lmdb
import numpy as np
import pytest

from tests.support.images import smooth_noise

WINDOW = Window(48, 24)
ONE = PrepJob(workers=1)
SIZES = {"0001": (72, 100), "0002": (48, 48), "0003": (96, 60)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def paired_dataset(gt: Path, lq: Path, kind: str) -> Any:
    from basicsr.data.paired_image_dataset import PairedImageDataset

    options = {"dataroot_gt": str(gt), "dataroot_lq": str(lq), "io_backend": {"type": kind}, "phase": "val", "scale": 4}
    return PairedImageDataset(options)


@pytest.mark.parametrize(("form", "suffix", "kind"), [("lmdb", ".lmdb", "lmdb"), ("png", "", "disk")])
def test_basicsr_reads_what_is_written(image_folder: Any, form: Any, suffix: str, kind: str) -> None:
    hr = image_folder("DIV2K_train_HR", **SIZES)
    report = extract_subimages(Extraction(hr, window=WINDOW, form=form), ONE)
    assert names(hr.parent) == [
        "DIV2K_train_HR",
        f"DIV2K_train_HR_sub{suffix}",
        f"DIV2K_train_LR_bicubic_X4_sub{suffix}",
    ]
    count = count_subimages(SIZES.values(), WINDOW)
    assert [written.images for written in report.written] == [count, count]
    dataset = paired_dataset(report.written[0].path, report.written[1].path, kind)
    assert len(dataset) == count
    image = read_image(hr / "0003.png")
    for index in range(count):
        pair = dataset[index]
        gt, lq = (
            (pair[name].permute(1, 2, 0).numpy()[:, :, ::-1] * 255).round().astype(np.uint8) for name in ("gt", "lq")
        )
        np.testing.assert_array_equal(downsample(gt, 4), lq)
        if Path(pair["gt_path"]).stem == "0003_s001":
            np.testing.assert_array_equal(gt, image[:48, :48])


def test_several_scales_and_both_formats_in_one_pass(image_folder: Any) -> None:
    hr = image_folder("in/HR", **SIZES)
    out = hr.parent.parent / "out"
    report = extract_subimages(Extraction(hr, out, WINDOW, (2, 3), form="both"), ONE)
    stems = ["HR_sub", "LR_bicubic_X2_sub", "LR_bicubic_X3_sub"]
    assert names(out) == sorted(stem + suffix for stem in stems for suffix in ("", ".lmdb"))
    assert len({written.images for written in report.written}) == 1
    with lmdb.open(str(out / "LR_bicubic_X3_sub.lmdb"), readonly=True, lock=False) as env, env.begin() as transaction:
        for path in (out / "LR_bicubic_X3_sub").iterdir():
            assert transaction.get(path.stem.encode()) == path.read_bytes()
            assert read_image(path).shape == (16, 16, 3)


def test_raw_lmdbs_and_png_folders_in_one_pass(image_folder: Any) -> None:
    hr = image_folder("HR", **SIZES)
    report = extract_subimages(Extraction(hr, window=WINDOW, form="both", lmdb="raw"), ONE)
    assert len(report.written) == 4
    for name in ("HR_sub", "LR_bicubic_X4_sub"):
        raw, png = (find_sources(hr.parent / f"{name}{suffix}") for suffix in (".lmdb", ""))
        assert all(source.raw for source in raw)
        for one, other in zip(raw, png, strict=True):
            assert one.key == other.key
            np.testing.assert_array_equal(one.read(), other.read())


def test_the_result_does_not_depend_on_the_number_of_workers(image_folder: Any) -> None:
    hr = image_folder("HR", **{f"{index:04d}": (60, 52 + index) for index in range(8)})
    infos = []
    for workers in (1, 3):
        out = hr.parent / str(workers)
        extract_subimages(Extraction(hr, out, WINDOW), PrepJob(workers=workers))
        infos.append((out / "HR_sub.lmdb" / "meta_info.txt").read_text())
    assert infos[0] == infos[1]
    assert infos[0].splitlines() == sorted(infos[0].splitlines())


def test_div2ks_own_lr_is_cut_and_named_as_basicsr_names_it(image_folder: Any) -> None:
    hr = image_folder("DIV2K_train_HR", **SIZES)
    lr = image_folder("DIV2K_train_LR_bicubic/X4", **{f"{name}x4": (h // 4, w // 4) for name, (h, w) in SIZES.items()})
    report = extract_subimages(Extraction(hr, window=WINDOW, lr=(lr,), form="png"), ONE)
    folder = report.written[1].path
    assert folder.name == "DIV2K_train_LR_bicubic_X4_sub"
    np.testing.assert_array_equal(read_image(folder / "0002_s001.png"), read_image(lr / "0002x4.png"))


def bad_folder(image_folder: Any) -> Path:
    hr: Path = image_folder("HR", good=(48, 48), small=(40, 60), last=(60, 60))
    (hr / "broken.png").write_bytes((hr / "good.png").read_bytes()[:500])
    return hr


def test_every_bad_image_is_named_and_counted_and_nothing_is_written(image_folder: Any) -> None:
    hr = bad_folder(image_folder)
    with pytest.raises(UserError) as caught:
        extract_subimages(Extraction(hr, window=WINDOW), ONE)
    message = str(caught.value)
    assert message.startswith("2 of 4 images cannot be used")
    assert "broken.png is truncated" in message
    assert "small.png is 60 x 40, smaller than the crop of 48" in message
    assert "--skip-bad" in message
    assert names(hr.parent) == ["HR"]


def test_skip_bad_skips_and_reports_bad_images(image_folder: Any) -> None:
    report = extract_subimages(Extraction(bad_folder(image_folder), window=WINDOW), PrepJob(workers=1, skip_bad=True))
    assert [image.path.stem for image in report.skipped] == ["broken", "small"]
    assert [written.images for written in report.written] == [1 + 4, 1 + 4]
    assert "2 images skipped" in str(report)


def test_only_bad_images_are_an_error_even_with_skip_bad(image_folder: Any) -> None:
    hr = image_folder("HR", a=(40, 40))
    with pytest.raises(UserError, match="1 of 1 images cannot be used"):
        extract_subimages(Extraction(hr, window=WINDOW), PrepJob(workers=1, skip_bad=True))
    assert names(hr.parent) == ["HR"]


def test_all_existing_outputs_are_reported_before_any_work(image_folder: Any) -> None:
    hr = image_folder("HR", a=(48, 48))
    for name in ("HR_sub.lmdb", "LR_bicubic_X4_sub.lmdb"):
        (hr.parent / name).mkdir()
    with pytest.raises(UserError, match=r"already exists: .*HR_sub\.lmdb, .*LR_bicubic_X4_sub\.lmdb"):
        extract_subimages(Extraction(hr, window=WINDOW), ONE)
    report = extract_subimages(Extraction(hr, window=WINDOW), PrepJob(workers=1, overwrite=True))
    assert all((written.path / "data.mdb").is_file() for written in report.written)
    assert len(names(hr.parent)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": (5,)}, "multiples of the scale, got crop 48, step 24, scale 5"),
        ({"scales": (4, 4)}, "different scales"),
        ({"scales": ()}, "different scales"),
        ({"scales": (1,)}, "at least 2"),
        ({"scales": (2, 4), "lr": (Path("LR"),)}, "one LR folder for each scale, got 1"),
        ({"lr": (Path("no such folder"),)}, "no such folder: no such folder"),
    ],
)
def test_inconsistent_settings_are_refused(image_folder: Any, changes: dict[str, Any], message: str) -> None:
    hr = image_folder("HR", a=(48, 48))
    with pytest.raises(UserError, match=message):
        extract_subimages(Extraction(hr, window=WINDOW, **changes), ONE)
    assert names(hr.parent) == ["HR"]


def test_hr_and_lr_with_the_same_output_path_are_refused(image_folder: Any) -> None:
    hr = image_folder("a/HR", x=(48, 48))
    lr = image_folder("b/HR", x=(12, 12))
    with pytest.raises(UserError, match="have the same output path"):
        extract_subimages(Extraction(hr, window=WINDOW, lr=(lr,)), ONE)


def test_colliding_names_are_refused_before_any_work(image_folder: Any) -> None:
    hr = image_folder("HR", a=(48, 48))
    (hr / "a.jpg").write_bytes((hr / "a.png").read_bytes())
    with pytest.raises(UserError, match=r"a\.jpg and a\.png would both"):
        extract_subimages(Extraction(hr, window=WINDOW), ONE)
    assert names(hr.parent) == ["HR"]


def test_without_div2k_the_error_gives_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"no such folder: datasets/DIV2K/DIV2K_train_HR; .*`dp-basicsr data download div2k`"
    ):
        extract_subimages(Extraction(), ONE)


def test_folders_given_as_dots_still_have_names(image_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lr = image_folder("set_LR/X4", a=(12, 12))
    monkeypatch.chdir(lr.parent)
    assert Extraction(Path(), lr=(Path("X4"),)).output_paths() == {
        1: [lr.parents[1] / "set_LR_sub.lmdb"],
        4: [lr.parents[1] / "set_LR_X4_sub.lmdb"],
    }


def test_defaults_are_what_the_training_options_expect() -> None:
    assert Extraction().output_paths() == {
        1: [Path("datasets/DIV2K/DIV2K_train_HR_sub.lmdb")],
        4: [Path("datasets/DIV2K/DIV2K_train_LR_bicubic_X4_sub.lmdb")],
    }


def test_names_that_are_not_lmdb_keys_are_allowed_in_png_folders(tmp_path: Path) -> None:
    (tmp_path / "hr").mkdir()
    for name in ("a.b.png", "a.c.png", "bäume.png"):
        (tmp_path / "hr" / name).write_bytes(encode_png(smooth_noise(16, 16, 1)))
    (tmp_path / "hr/notes.txt").touch()
    report = extract_subimages(Extraction(tmp_path / "hr", window=Window(16, 16), form="png"), PrepJob(workers=1))
    assert sorted(path.name for path in (tmp_path / "hr_sub").iterdir()) == [
        "a.b_s001.png", "a.c_s001.png", "bäume_s001.png",
    ]  # fmt: skip
    assert "ignored 1 that are not images (1 .txt)" in str(report)
    (tmp_path / "hr/a.b.bmp").touch()
    with pytest.raises(UserError, match=r"a\.b\.bmp and a\.b\.png would both be written as 'a\.b'"):
        extract_subimages(Extraction(tmp_path / "hr", window=Window(16, 16), form="png"), PrepJob(workers=1))
