"""Raw LMDBs give the same samples as BasicSR's dataset from PNG, and refuse unsupported options."""

from __future__ import annotations

import pickle
import random
import shutil
from pathlib import Path
from typing import Any

from dp_basicsr import train
from dp_basicsr.data.lmdb_records import lmdb_reader, read_meta_info
from dp_basicsr.data.preparation.convert import create_lmdb
from dp_basicsr.data.preparation.extract import Extraction, Window, extract_subimages
from dp_basicsr.data.preparation.jobs import PrepJob
from dp_basicsr.data.preparation.writers import make_record
from dp_basicsr.data.seeded import SeededDataset
from dp_basicsr.data.stream import TrainStream
from dp_basicsr.errors import UserError
from dp_basicsr.options.reading import parse_yaml

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from torch.utils.data import DataLoader

from tests.support.images import smooth_noise
from tests.support.options import SMALL, write_small_gan
from tests.support.processes import CONTEXT
from tests.support.stream import options, packed, write_lmdb


@pytest.fixture(scope="module")
def lmdbs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders png and raw with the LMDBs gt_sub and gt_bicubic_X4_sub of the same 23 sub-images of 48 x 48."""
    root = tmp_path_factory.mktemp("lmdbs")
    (root / "gt").mkdir()
    for number, (height, width) in enumerate([(72, 100), (96, 60), (96, 75)], 1):
        cv2.imwrite(f"{root}/gt/{number:04d}.png", smooth_noise(height, width, number))
    for form in ("png", "raw"):
        extract_subimages(Extraction(root / "gt", root / form, Window(48, 24), lmdb=form), PrepJob(workers=1))  # type: ignore[arg-type]
    return root


KINDS = {"png": "PairedImageDataset", "raw": "PairedRawDataset"}


def keys(root: Path, kind: str) -> dict[str, Any]:
    roots = {"dataroot_gt": str(root / "gt_sub.lmdb"), "dataroot_lq": str(root / "gt_bicubic_X4_sub.lmdb")}
    return {"type": kind, "io_backend": {"type": "lmdb"}, **roots}


def dataset(root: Path, kind: str, **changes: Any) -> Any:
    return build_dataset(options(root, train=keys(root, kind) | changes)["datasets"]["train"])


def assert_same(png: dict[str, Any], raw: dict[str, Any]) -> None:
    """BasicSR's float32 in [0, 1] is the raw sample divided by 255, bit for bit."""
    for name in ("lq", "gt"):
        assert png[f"{name}_path"] == raw[f"{name}_path"]
        assert raw[name].dtype == torch.uint8
        # Another memory layout could make convolutions choose another algorithm.
        assert raw[name].is_contiguous()
        assert torch.equal(png[name], raw[name].float() / 255)


@pytest.mark.parametrize(
    ("use_hflip", "use_rot", "gt_size"), [(True, True, 32), (True, False, 32), (False, True, 8), (False, False, 48)]
)
def test_samples_equal_basicsrs_bit_for_bit(lmdbs: Path, use_hflip: bool, use_rot: bool, gt_size: int) -> None:
    """Eighty of each, up to the whole sub-image: from the global random state, and by the seeds of a run."""
    changes = {"use_hflip": use_hflip, "use_rot": use_rot, "gt_size": gt_size}
    png, raw = (dataset(lmdbs / form, kind, **changes) for form, kind in KINDS.items())
    assert len(png) == len(raw) == 23
    seeded = SeededDataset(png, 3), SeededDataset(raw, 3)
    for number in range(80):
        random.seed(number)
        expected = png[number % 23], random.random()
        random.seed(number)
        sample = raw[number % 23], random.random()
        assert_same(expected[0], sample[0])
        assert expected[1] == sample[1]  # the same random numbers were drawn
        key = (number % 5, number, number % 23)
        sample[0]["gt"].zero_()  # a copy, because the map is read-only
        assert_same(seeded[0][key], seeded[1][key])


@pytest.mark.parametrize("start", ["fork", CONTEXT])
def test_each_worker_has_its_own_reader(lmdbs: Path, start: Any) -> None:
    raw = dataset(lmdbs / "raw", "PairedRawDataset")
    seeded = SeededDataset(raw, 0)
    keys = [(0, place, place % 23) for place in range(54)]
    here = [seeded[key]["gt"] for key in keys]  # the parent's reader is open when the workers start
    loader = DataLoader(seeded, batch_size=2, sampler=keys, num_workers=1, multiprocessing_context=start)
    there = torch.cat([batch["gt"] for batch in loader])
    assert torch.equal(torch.stack(here), there)
    assert torch.equal(seeded[keys[0]]["gt"], here[0])  # and it still is


def test_two_datasets_share_a_reader_and_pickle(lmdbs: Path) -> None:
    first, second = (dataset(lmdbs / "raw", "PairedRawDataset") for _ in range(2))
    assert lmdb_reader(lmdbs / "raw" / "gt_sub.lmdb") is lmdb_reader(lmdbs / "png/../raw/gt_sub.lmdb")
    for one in (first, second, pickle.loads(pickle.dumps(first))):
        random.seed(0)
        assert one[3]["gt_path"] == "0001_s004"


def test_png_records_are_refused_with_the_command(lmdbs: Path) -> None:
    with pytest.raises(UserError, match=r"gt_bicubic_X4_sub.lmdb has PNG.*data lmdb -i .* --lmdb raw"):
        dataset(lmdbs / "png", "PairedRawDataset")
    with pytest.raises(UserError, match=r"raw records, which PairedImageDataset cannot read.*--lmdb png"):
        TrainStream(options(lmdbs, train=keys(lmdbs / "raw", "PairedImageDataset")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phase": "val"}, "PairedRawDataset is for training"),
        ({"mean": [0.5, 0.5, 0.5]}, "does not support mean"),
        ({"color": "y"}, "does not support color"),
        ({"io_backend": {"type": "disk"}}, "raw LMDBs only"),
    ],
)
def test_options_that_raw_records_do_not_support_are_refused(
    lmdbs: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        dataset(lmdbs / "raw", "PairedRawDataset", **changes)


def write_black(root: Path, gt: tuple[int, ...], lq: tuple[int, ...]) -> list[Path]:
    """Write LMDBs of one black pair of these shapes."""
    shapes = {"gt_sub": gt, "gt_bicubic_X4_sub": lq}
    return [write_lmdb(root / f"{name}.lmdb", make_record("raw", "a", np.zeros(shape, np.uint8)))
            for name, shape in shapes.items()]  # fmt: skip


@pytest.mark.parametrize(
    ("gt", "lq", "message"),
    [
        ((48, 48, 3), (10, 12, 3), r"GT = 4 x LQ, got GT \(3, 48, 48\) and LQ \(3, 10, 12\)"),
        ((48, 48, 2), (12, 12, 2), "expected one or three planes"),
        ((24, 24, 3), (6, 6, 3), "LQ is 6 x 6, expected at least 8"),
    ],
)
def test_mismatched_sizes_are_reported(tmp_path: Path, gt: Any, lq: Any, message: str) -> None:
    write_black(tmp_path, gt, lq)
    with pytest.raises(UserError, match=f"the first: sample a cannot be used: .*{message}"):
        SeededDataset(dataset(tmp_path, "PairedRawDataset"), 0)[0, 0, 0]


def test_records_that_contradict_meta_info_are_refused(tmp_path: Path) -> None:
    for path, side in zip(write_black(tmp_path, (48, 48, 3), (12, 12, 3)), (48, 12), strict=True):
        (path / "meta_info.txt").write_text(f"a.raw ({side + 4},{side},3) planes\nb.raw ({side},{side},3) planes\n")
    raw = SeededDataset(dataset(tmp_path, "PairedRawDataset"), 0)
    with pytest.raises(UserError, match=r"sample a cannot be used: has 432 bytes, .* meta_info.txt says 12 x 16 x 3"):
        raw[0, 0, 0]
    with pytest.raises(UserError, match=r"sample b cannot be used: is not in .*gt_bicubic_X4_sub.lmdb, though"):
        raw[0, 0, 1]


@pytest.mark.parametrize(("form", "kind"), KINDS.items())
def test_a_truncated_lmdb_is_refused_before_reading(lmdbs: Path, tmp_path: Path, form: str, kind: str) -> None:
    """Its map would end within the records, and a bus error would kill the process."""
    root = shutil.copytree(lmdbs / form, tmp_path / "lmdbs")
    opt = options(tmp_path, train=keys(root, kind))
    TrainStream(opt)
    with (root / "gt_sub.lmdb" / "data.mdb").open("r+b") as file:
        file.truncate(100_000)
    with pytest.raises(UserError, match=r"data.mdb is truncated: it has 100,000 of [0-9,]+ bytes"):
        TrainStream(opt)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("a.png (1,2,3) 1\nnonsense\n", "line 2 is 'nonsense'"),
        ("a.png (1,2,3) 1\nb.raw (1,2,3) planes\n", "got both"),
        ("ä.png (1,2,3) 1\n", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_meta_info_of_unknown_format_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "meta_info.txt").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_meta_info(tmp_path)


def test_a_run_on_raw_records_ends_with_the_weights_of_one_on_png(pairs: Path) -> None:
    """By name in the options, with a worker."""
    opt, weights = parse_yaml(SMALL, "SMALL"), []
    for form in KINDS:
        opt["datasets"]["train"] |= packed(pairs, form)  # type: ignore[arg-type]
        write_small_gan(name=form, datasets={"train": opt["datasets"]["train"]}, train=opt["train"] | {"total_iter": 5})
        train.main(["-opt", "small.yml"])
        weights.append(torch.load(f"experiments/{form}/models/net_g_latest.pth")["params"])
        shutil.rmtree(pairs / "GT.lmdb"), shutil.rmtree(pairs / "LRbicx4.lmdb")
    assert all(map(torch.equal, weights[0].values(), weights[1].values()))


def test_gray_among_colour_is_read_as_from_png(tmp_path: Path) -> None:
    for name, side in (("gt_sub", 48), ("gt_bicubic_X4_sub", 12)):
        (tmp_path / name).mkdir()
        cv2.imwrite(f"{tmp_path}/{name}/colour.png", smooth_noise(side, side, 1))
        cv2.imwrite(f"{tmp_path}/{name}/gray.png", smooth_noise(side, side, 2)[..., 0])
        for form in KINDS:
            create_lmdb(tmp_path / name, tmp_path / form / f"{name}.lmdb", PrepJob(workers=1), form)  # type: ignore[arg-type]
    png, raw = (SeededDataset(dataset(tmp_path / form, kind), 0) for form, kind in KINDS.items())
    for index in range(2):
        assert_same(png[0, 0, index], raw[0, 0, index])
