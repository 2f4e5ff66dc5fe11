"""Raw LMDBs give the same samples as BasicSR's dataset from PNG, and refuse unsupported options."""

from __future__ import annotations

import pickle
import random
import shutil
from pathlib import Path
from typing import Any

from dp_basicsr import train
from dp_basicsr.data.lmdb_records import from_planes, lmdb_reader, read_meta_info, to_planes
from dp_basicsr.data.preparation.convert import create_lmdb
from dp_basicsr.data.preparation.extract import Extraction, Window, extract_subimages
from dp_basicsr.data.preparation.jobs import PrepJob
from dp_basicsr.data.preparation.writers import LmdbWriter, Record, RecordForm, make_record
from dp_basicsr.data.seeded import SeededDataset
from dp_basicsr.data.stream import TrainStream
from dp_basicsr.errors import UserError

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from torch.utils.data import DataLoader

from tests.support.images import smooth_noise
from tests.support.options import SMALL
from tests.support.processes import CONTEXT
from tests.support.stream import options, packed


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


def dataset(root: Path, kind: str, **changes: Any) -> Any:
    return build_dataset(
        {
            "name": "small", "type": kind, "phase": "train",
            "scale": 4, "gt_size": 32, "use_hflip": True, "use_rot": True,
            "dataroot_gt": str(root / "gt_sub.lmdb"), "dataroot_lq": str(root / "gt_bicubic_X4_sub.lmdb"),
            "io_backend": {"type": "lmdb"}, **changes,
        }
    )  # fmt: skip


def same(png: dict[str, Any], raw: dict[str, Any]) -> bool:
    """BasicSR's float32 in [0, 1] is the raw sample divided by 255, bit for bit."""
    keys = png["lq_path"] == raw["lq_path"] and png["gt_path"] == raw["gt_path"]
    assert raw["gt"].dtype == torch.uint8
    # Another memory layout could make convolutions choose another algorithm.
    assert raw["gt"].is_contiguous()
    assert raw["lq"].is_contiguous()
    return keys and all(torch.equal(png[name], raw[name].float() / 255) for name in ("lq", "gt"))


@pytest.mark.parametrize("flags", [(True, True), (True, False), (False, True), (False, False)])
def test_samples_equal_basicsrs_bit_for_bit(lmdbs: Path, flags: tuple[bool, bool]) -> None:
    """Eighty of each: from the global random state, and by the seeds of a run."""
    changes = {"use_hflip": flags[0], "use_rot": flags[1]}
    png, raw = (
        dataset(lmdbs / "png", "PairedImageDataset", **changes),
        dataset(lmdbs / "raw", "PairedRawDataset", **changes),
    )
    assert len(png) == len(raw) == 23
    seeded = SeededDataset(png, 3), SeededDataset(raw, 3)
    for number in range(80):
        random.seed(number)
        expected = png[number % 23], random.random()
        random.seed(number)
        got = raw[number % 23], random.random()
        assert same(expected[0], got[0])
        assert expected[1] == got[1]  # the same random numbers were drawn
        key = (number % 5, number, number % 23)
        assert same(seeded[0][key], seeded[1][key])


@pytest.mark.parametrize("gt_size", [8, 48])
def test_the_smallest_and_the_whole_sub_image(lmdbs: Path, gt_size: int) -> None:
    png, raw = (
        SeededDataset(dataset(lmdbs / form, kind, gt_size=gt_size), 0)
        for form, kind in (("png", "PairedImageDataset"), ("raw", "PairedRawDataset"))
    )
    samples = [raw[0, place, place] for place in range(23)]
    assert all(same(png[0, place, place], sample) for place, sample in enumerate(samples))
    samples[0]["gt"].zero_()  # a copy, because the map is read-only
    assert same(png[0, 0, 0], raw[0, 0, 0])


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


def test_the_stream_reads_it(lmdbs: Path) -> None:
    """By name in the options, as train.py does, with workers."""
    streams = []
    for form, kind in (("png", "PairedImageDataset"), ("raw", "PairedRawDataset")):
        opt = options(lmdbs, workers=2)
        roots = {"dataroot_gt": f"{lmdbs / form}/gt_sub.lmdb", "dataroot_lq": f"{lmdbs / form}/gt_bicubic_X4_sub.lmdb"}
        opt["datasets"]["train"] |= {"type": kind, "io_backend": {"type": "lmdb"}, "filename_tmpl": "{}", **roots}
        streams.append(TrainStream(opt).batches(3))
    for _ in range(5):
        png, raw = (next(batches) for batches in streams)
        assert torch.equal(png["gt"], raw["gt"].float() / 255)


def test_two_datasets_share_a_reader_and_pickle(lmdbs: Path) -> None:
    first, second = (dataset(lmdbs / "raw", "PairedRawDataset") for _ in range(2))
    assert lmdb_reader(lmdbs / "raw" / "gt_sub.lmdb") is lmdb_reader(lmdbs / "png/../raw/gt_sub.lmdb")
    for one in (first, second, pickle.loads(pickle.dumps(first))):
        random.seed(0)
        assert one[3]["gt_path"] == "0001_s004"


def test_planes_survive_a_round_trip() -> None:
    rng = np.random.default_rng(0)
    for shape in ((5, 7, 3), (5, 7)):
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        np.testing.assert_array_equal(from_planes(to_planes(image), (*shape, 1)[:3]), image)


def test_png_records_are_refused_with_the_command(lmdbs: Path) -> None:
    with pytest.raises(UserError, match=r"gt_bicubic_X4_sub.lmdb has PNG.*data lmdb -i .* --lmdb raw"):
        dataset(lmdbs / "png", "PairedRawDataset")
    opt = options(lmdbs)
    opt["datasets"]["train"] |= {
        "dataroot_gt": f"{lmdbs}/raw/gt_sub.lmdb", "dataroot_lq": f"{lmdbs}/raw/gt_bicubic_X4_sub.lmdb",
        "io_backend": {"type": "lmdb"},
    }  # fmt: skip
    with pytest.raises(UserError, match=r"raw records, which PairedImageDataset cannot read.*--lmdb png"):
        TrainStream(opt)


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


def write_lmdb(path: Path, *records: Record) -> None:
    writer = LmdbWriter(path)
    writer.write(records)
    writer.close()
    writer.commit()


@pytest.mark.parametrize(
    ("gt", "lq", "message"),
    [
        ((48, 48, 3), (10, 12, 3), r"GT = 4 x LQ, got GT \(3, 48, 48\) and LQ \(3, 10, 12\)"),
        ((48, 48, 2), (12, 12, 2), "expected one or three planes"),
        ((24, 24, 3), (6, 6, 3), "LQ is 6 x 6, expected at least 8"),
    ],
)
def test_mismatched_sizes_are_reported(tmp_path: Path, gt: Any, lq: Any, message: str) -> None:
    write_lmdb(tmp_path / "gt_sub.lmdb", make_record("raw", "a", np.zeros(gt, np.uint8)))
    write_lmdb(tmp_path / "gt_bicubic_X4_sub.lmdb", make_record("raw", "a", np.zeros(lq, np.uint8)))
    with pytest.raises(UserError, match=message):
        dataset(tmp_path, "PairedRawDataset")[0]
    with pytest.raises(UserError, match="the first: sample a cannot be used"):
        SeededDataset(dataset(tmp_path, "PairedRawDataset"), 0)[0, 0, 0]


def test_records_that_contradict_meta_info_are_refused(tmp_path: Path) -> None:
    for name, side in (("gt_sub", 48), ("gt_bicubic_X4_sub", 12)):
        path = tmp_path / f"{name}.lmdb"
        write_lmdb(path, make_record("raw", "a", np.zeros((side, side, 3), np.uint8)))
        lines = f"a.raw ({side + 4},{side},3) planes\nb.raw ({side},{side},3) planes\n"
        (path / "meta_info.txt").write_text(lines)
    raw = SeededDataset(dataset(tmp_path, "PairedRawDataset"), 0)
    with pytest.raises(UserError, match=r"sample a cannot be used: has 432 bytes, .* meta_info.txt says 12 x 16 x 3"):
        raw[0, 0, 0]
    with pytest.raises(UserError, match=r"sample b cannot be used: is not in .*gt_bicubic_X4_sub.lmdb, though"):
        raw[0, 0, 1]


@pytest.mark.parametrize("kind", ["PairedImageDataset", "PairedRawDataset"])
def test_a_truncated_lmdb_is_refused_before_reading(lmdbs: Path, tmp_path: Path, kind: str) -> None:
    """Its map would end within the records, and a bus error would kill the process."""
    root = tmp_path / "lmdbs"
    shutil.copytree(lmdbs / ("raw" if kind == "PairedRawDataset" else "png"), root)
    opt = options(tmp_path)
    roots = {"dataroot_gt": f"{root}/gt_sub.lmdb", "dataroot_lq": f"{root}/gt_bicubic_X4_sub.lmdb"}
    opt["datasets"]["train"] |= {"type": kind, "io_backend": {"type": "lmdb"}, **roots}
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


@pytest.mark.parametrize(("form", "compression"), [("png", 1), ("raw", None)])
def test_meta_info_has_the_format_and_a_key_for_basicsr(
    tmp_path: Path, form: RecordForm, compression: int | None
) -> None:
    from basicsr.data.data_util import paths_from_lmdb

    write_lmdb(tmp_path / "a.lmdb", Record("0001_s001", b"x", (480, 470, 3), compression))
    info = read_meta_info(tmp_path / "a.lmdb")
    assert (info.shapes, info.raw) == ({"0001_s001": (480, 470, 3)}, form == "raw")
    assert paths_from_lmdb(str(tmp_path / "a.lmdb")) == ["0001_s001"]


def test_a_run_on_raw_records_ends_with_the_weights_of_one_on_png(pairs: Path) -> None:
    Path("small.yml").write_text(SMALL)
    weights = []
    for form in ("png", "raw"):
        data = {key: value for key, value in packed(pairs, form).items() if key != "io_backend"}  # type: ignore[arg-type]
        settings = [f"name={form}", "train:total_iter=2", "val=~", "logger:use_tb_logger=false"]
        settings += ["datasets:train:io_backend:type=lmdb"]
        settings += [f"datasets:train:{key}={value}" for key, value in data.items()]
        train.main(["-opt", "small.yml", "--force_yml", *settings])
        weights.append(torch.load(f"experiments/{form}/models/net_g_latest.pth")["params"])
        shutil.rmtree(pairs / "GT.lmdb"), shutil.rmtree(pairs / "LRbicx4.lmdb")
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_gray_among_colour_is_read_as_from_png(tmp_path: Path) -> None:
    for name, side in (("gt_sub", 48), ("gt_bicubic_X4_sub", 12)):
        (tmp_path / name).mkdir()
        cv2.imwrite(f"{tmp_path}/{name}/colour.png", smooth_noise(side, side, 1))
        cv2.imwrite(f"{tmp_path}/{name}/gray.png", smooth_noise(side, side, 2)[..., 0])
        for form in ("png", "raw"):
            create_lmdb(tmp_path / name, tmp_path / form / f"{name}.lmdb", PrepJob(workers=1), form)  # type: ignore[arg-type]
    png, raw = dataset(tmp_path / "png", "PairedImageDataset"), dataset(tmp_path / "raw", "PairedRawDataset")
    for index in range(2):
        random.seed(index)
        expected = png[index]
        random.seed(index)
        assert same(expected, raw[index])
