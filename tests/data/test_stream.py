"""The training stream: the same samples for any workers, processes and starting position."""

from __future__ import annotations

import multiprocessing
import pickle
import random
import shutil
import struct
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal
from unittest.mock import Mock

from dp_basicsr.data.datasets import evaluation_loaders, open_dataset
from dp_basicsr.data.preparation.check import check_set, paired_sets
from dp_basicsr.data.preparation.writers import RecordForm
from dp_basicsr.data.seeded import BadSamples
from dp_basicsr.data.stream import RecordingPrefetcher, SeededDataset, TrainStream, start_worker
from dp_basicsr.errors import UserError

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.support.fuzz import draws
from tests.support.gpu import needs_gpus
from tests.support.options import REAL_ESRGAN_KERNELS
from tests.support.stream import evaluation_options, options, packed, take


@pytest.mark.parametrize(
    ("starts", "loader"),
    # Four iterations are an epoch here: 3 is inside one, 4 and 8 are borders.
    [([0, 1, 3, 4, 7, 8], {}), ([1], {"workers": 2}), ([1], {"workers": 1, "train": {"prefetch_mode": "cpu"}})],
    ids=["no worker", "two workers", "prefetching"],
)
def test_it_continues_where_it_was_interrupted_with_any_loader(
    starts: list[int], loader: dict[str, Any], pairs: Path
) -> None:
    before = torch.get_rng_state()
    whole = take(options(pairs), 0, 10)
    for start in starts:
        assert torch.equal(whole[start:], take(options(pairs, **loader), start, 10 - start))
    assert torch.equal(torch.get_rng_state(), before), "a loader draws its seed from the program's random state"


def test_batch_size_total_is_the_same_on_any_number_of_processes(pairs: Path) -> None:
    """Even if the processes cannot share an epoch evenly: 13 samples, mini-batches of 12."""
    opt = {"dataset_enlarge_ratio": 3.25, "batch_size_total": 12}
    alone = take(options(pairs, train=opt), 0, 3)
    for count in (1, 2, 3, 4):
        ranks = [take(options(pairs, train=opt, rank=rank, world_size=count, dist=True), 0, 3) for rank in range(count)]
        assert torch.equal(alone, torch.stack(ranks, dim=2).flatten(1, 2))  # samples are distributed round-robin


def test_another_mini_batch_size_continues_with_the_unseen_samples(pairs: Path) -> None:
    """Of an epoch of 13, three mini-batches of 2 are seen; 7 samples are left, which is two mini-batches of 3."""
    ratio = {"dataset_enlarge_ratio": 3.25}
    order = take(options(pairs, batch=1, train=ratio), 0, 13).flatten(0, 1)
    before = TrainStream(options(pairs, batch=2, train=ratio))
    opt = options(pairs, batch=3, train=ratio)
    stream = TrainStream(opt, origin=before.position(3))
    batches = stream.batches(3)
    assert torch.equal(torch.cat([next(batches)["gt"] for _ in range(2)]), order[6:12])
    assert [stream.epoch_of(iteration) for iteration in (3, 4, 5, 8, 9)] == [0, 0, 1, 1, 2]
    again = TrainStream(opt, origin=stream.position(4))  # a run that was interrupted once more
    assert torch.equal(next(again.batches(4))["gt"], order[9:12])
    assert [again.position(iteration) for iteration in (5, 9)] == [stream.position(iteration) for iteration in (5, 9)]


def test_a_position_after_a_smaller_data_set_starts_the_next_epoch(pairs: Path) -> None:
    origin = {"iter": 9, "epoch": 0, "sample": 18, "epoch_size": 100, "batch_size": 2}
    assert TrainStream(options(pairs), origin=origin).position(9)["epoch"] == 1


def test_a_position_tells_other_files_and_not_another_folder(pairs: Path) -> None:
    """yolov5#306: as many files, but others."""
    before = TrainStream(options(pairs)).position(1)
    assert TrainStream(options(pairs.rename("moved"))).position(1) == before
    for folder in ("GT", "LRbicx4"):
        Path("moved", folder, "image0.png").rename(Path("moved", folder, "other.png"))
    after = TrainStream(options(Path("moved"))).position(1)
    assert {key for key in before if before[key] != after[key]} == {"names"}


def test_every_epoch_and_seed_has_its_own_crops(pairs: Path) -> None:
    epochs = take(options(pairs), 0, 8)
    assert not any(map(torch.equal, epochs[:4], epochs[4:]))
    assert not torch.equal(epochs[0], take(options(pairs, manual_seed=2), 0, 1)[0])


def test_the_program_s_random_state_is_unchanged() -> None:
    class Drawing(torch.utils.data.Dataset):
        def __getitem__(self, index: int) -> dict[str, float]:
            return {"python": random.random(), "numpy": np.random.rand(), "torch": torch.rand(()).item()}

    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    dataset = SeededDataset(Drawing(), seed=0)
    assert dataset[0, 1, 2] == dataset[0, 1, 5] != dataset[0, 2, 2]
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 16}, "8 samples.*batch of 16"),
        ({"train": {"batch_size_total": 4}, "world_size": 3, "dist": True}, "4 is not a multiple of the 3 processes"),
        # WongKinYiu/ScaledYOLOv4#76: the number of processes decides.
        (
            {"train": {"batch_size_total": 14}, "model_type": "RealESRGANModel", "world_size": 2, "dist": True},
            r"queue_size: expected a multiple of .* \(7\), got 180",
        ),
        (
            {"train": {"dataroot_gt": "outer", "dataroot_lq": "outer"}},
            r"no image directly in .* are not searched; name one \(outer/inner\), list .* or unpack it",
        ),
        # Real-ESRGAN#703: an empty list was "no image directly in" a folder that has some.
        ({"train": {"meta_info_file": "blank.txt"}}, "meta_info_file blank.txt: expected .* per line, got none"),
    ],
)
def test_what_cannot_be_loaded_is_refused(pairs: Path, changes: dict[str, Any], message: str) -> None:
    shutil.copytree(pairs, Path("outer/inner"))
    Path("outer/GT.zip").touch()
    Path("blank.txt").write_text("\n  \n")
    with pytest.raises(UserError, match=message):
        TrainStream(options(pairs, **changes))


def test_a_validation_set_without_its_folder_is_skipped(pairs: Path) -> None:
    opt = options(pairs)
    opt["datasets"]["train"]["dataroot_gt"] = "datasets/not_there"
    opt["datasets"]["val"] = opt["datasets"]["train"] | {"phase": "val"}
    assert evaluation_loaders(opt, "val") == []


def test_the_order_of_the_file_system_does_not_matter(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine may list the same folder in another order, but its ranks must use the same samples."""
    from basicsr.data import data_util

    listing = data_util.scandir
    orders = []
    for reverse in (False, True):
        monkeypatch.setattr(data_util, "scandir", lambda *args, r=reverse: iter(sorted(listing(*args), reverse=r)))
        orders.append([path["lq_path"] for path in TrainStream(options(pairs)).dataset.paths])
    assert orders[0] == orders[1] == sorted(orders[0])


def test_prefetched_tensors_are_recorded_on_the_training_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """On imitated streams: the allocator is told which stream reads each tensor of the prefetcher."""
    training_stream, recorded = Mock(), []
    monkeypatch.setattr(torch.cuda, "Stream", Mock)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: training_stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: recorded.append((tensor, stream)))
    loader = [{"lq": torch.zeros(1), "gt": torch.ones(1), "lq_path": ["a.png"]} for _ in range(2)]
    prefetcher = RecordingPrefetcher(loader, {"num_gpu": 0})
    batches = list(iter(prefetcher.next, None))
    assert len(batches) == 2
    handed_out = [batch[name] for batch in batches for name in ("lq", "gt")]
    assert [tensor for tensor, _ in recorded] == handed_out
    assert {stream for _, stream in recorded} == {training_stream}


@needs_gpus(1, "prefetch_mode: cuda")
@pytest.mark.parametrize("pin_memory", [True, False])
def test_prefetched_batches_last_until_a_busy_gpu_has_read_them(pairs: Path, pin_memory: bool) -> None:
    expected = take(options(pairs), 0, 8)
    opt = options(pairs, num_gpu=1, train={"prefetch_mode": "cuda", "pin_memory": pin_memory})
    batches, copies = TrainStream(opt).batches(0), []
    for _ in expected:
        batch = next(batches)
        torch.cuda._sleep(100_000_000)  # the copy below is queued behind it, and the batch dropped before it runs
        copies.append(batch["gt"].clone())
        del batch
    assert torch.equal(torch.stack(copies).cpu(), expected)


def test_an_empty_validation_set_is_skipped_by_name(pairs: Path, caplog: pytest.LogCaptureFixture) -> None:
    (pairs / "empty").mkdir()
    empty = {"name": "nothing", "dataroot_gt": str(pairs / "empty"), "dataroot_lq": str(pairs / "empty")}
    assert evaluation_loaders(evaluation_options(pairs, **empty), "val") == []
    assert "nothing is skipped: no image" in caplog.text


@pytest.mark.parametrize("phase", ["val", "test"])
def test_a_result_that_no_file_can_be_named_after_is_known_at_the_start(pairs: Path, phase: str) -> None:
    for path in pairs.glob("*/image0.png"):
        path.rename(path.with_stem("é" * 122))
    opt = evaluation_options(pairs) | {"name": "run", "train": {"total_iter": 10**6}}
    opt["datasets"]["val"]["phase"] = phase
    opt["val"] = {"save_img": False, "suffix": "a long one"}
    assert len(evaluation_loaders(opt, phase)) == 1
    opt["val"]["save_img"] = True
    with pytest.raises(
        UserError, match="é.png: its result's name, with _.*, is longer than 255 bytes: rename it, or set"
    ):
        evaluation_loaders(opt, phase)
    opt |= {"name": "r", "val": {"save_img": True}, "train": {"total_iter": 1}}
    assert len(evaluation_loaders(opt, phase)) == 1


@pytest.mark.parametrize("kind", ["PairedImageDataset", "SingleImageDataset"])
@pytest.mark.parametrize(
    "keys", [{"persistent_workers": True}, {"num_worker_per_gpu": 2}, {"prefetch_mode": "cpu", "batch_size_per_gpu": 4},
             {"prefetch_mode": "cuda", "pin_memory": True}, {"meta_info_file": None}, {"filename_tmpl": None}],
)  # fmt: skip
def test_loader_keys_of_training_and_keys_without_a_value_do_nothing_in_validation(
    pairs: Path, kind: str, keys: dict[str, Any]
) -> None:
    (loader,) = evaluation_loaders(evaluation_options(pairs, type=kind, **keys), "val")
    assert [tuple(batch["lq"].shape) for batch in loader] == [(1, 3, 40, 36)] * 4


def test_a_meta_info_file_never_makes_a_wrong_pair(pairs: Path) -> None:
    """BasicSR drops the subfolder from the LQ's name, so two GT of the same name would share an LQ."""
    for folder in ("a", "b"):
        (pairs / "GT" / folder).mkdir()
        shutil.copy(pairs / "GT/image0.png", pairs / "GT" / folder)
    listed = pairs / "meta.txt"
    listed.write_text("a/image0.png\nb/image0.png\n")
    train = {"meta_info_file": str(listed)}
    with pytest.raises(UserError, match=r"a/image0\.png and .*b/image0\.png would both be paired with .*image0\.png"):
        TrainStream(options(pairs, train=train))
    listed.write_text("a/image0.png\nimage1.png\n")
    assert len(TrainStream(options(pairs, train=train)).dataset) == 2
    listed.write_text("image0.png\nimage 9.png\n")
    with pytest.raises(UserError, match=r"missing files: 2, e.g. .*/image 9.png$"):
        TrainStream(options(pairs, train=train))
    (pairs / "LRbicx4/image0.png").unlink(missing_ok=True)
    listed.write_text(str((pairs / "GT/a/image0.png").resolve()))
    with pytest.raises(UserError, match=r"missing files: 1, e.g. .*; a line `gt, lq` names an LQ"):  # OSEDiff#74
        TrainStream(options(pairs, train=train))
    # Real-ESRGAN's lists of pairs have one root, below which a line without its LQ names the GT alone.
    listed.write_text("GT/image1.png, LRbicx4/image1.png\nGT/image2.png\n")
    one = {"dataroot_gt": str(pairs), "dataroot_lq": f"{pairs}/", "meta_info": str(listed)}
    with pytest.raises(UserError, match=r"meta_info .*GT/image2\.png would be its own LQ: .* `gt, lq`"):
        TrainStream(options(pairs, train=one | {"type": "RealESRGANPairedDataset"}))


@pytest.mark.parametrize(
    ("gt", "lq", "line"),
    [("image0.png", "b/c/other.png", "image0.png, b/c/other.png"), ("a/image0.png", "image0.png", "a/image0.png"),
     ("a/image0.png", "a/image0.png", "a/image0.png"), ("a/image0.png", "b.png", "a/image0.png, b.png"),
     ("# 1.png", "b.png", "# 1.png, b.png"), ("a/image0.png", "b.png", "a/image0.png,b.png"),
     ("a, 0.png", "b,c, 0.png", "a, 0.png, b,c, 0.png"), ("a,0.png", "a,0.png", "a,0.png, a,0.png")],
)  # fmt: skip
def test_a_list_pairs_images_of_any_folders(gt: str, lq: str, line: str, pairs: Path) -> None:
    """Real-ESRGAN#643: its lists of pairs; and LQ in the subfolders of their GT."""
    for folder, name in (("GT", gt), ("LRbicx4", lq)):
        Path(pairs, folder, name).parent.mkdir(parents=True, exist_ok=True)
        Path(pairs, folder, "image0.png").rename(Path(pairs, folder, name))
    (pairs / "list.txt").write_text(f"{line}\n")
    opt = options(pairs, train={"meta_info_file": str(pairs / "list.txt")})
    (pair,) = TrainStream(opt).dataset.paths
    assert (pair["gt_path"], pair["lq_path"]) == (f"{pairs}/GT/{gt}", f"{pairs}/LRbicx4/{lq}")
    ((_, paired_set),) = paired_sets({**opt, "scale": 4})
    assert (check_set(paired_set, 1).pairs, check_set(paired_set, 1).problems) == (1, [])
    shutil.rmtree(pairs / "LRbicx4")
    assert [problem.text.partition(":")[0] for problem in check_set(paired_set, 1).problems] == ["no such folder"]


def test_torch_does_not_warn_of_more_workers_than_cpus(pairs: Path, recwarn: pytest.WarningsRecorder) -> None:
    """ignite#1558: it names no option."""
    TrainStream(options(pairs, workers=999))
    assert [str(warning.message) for warning in recwarn] == []


def test_any_name_in_a_list_is_read_to_its_end(pairs: Path) -> None:
    """Blanks and brackets belong to a name; BasicSR's ``(h,w,c)`` and other words behind it do not."""
    for rng in draws(10):
        words = ["".join(rng.choices("ab1()-.,#", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 4))]
        name = rng.choice(["", " (1,2,3).png", " (1,2)"]) + (" " * rng.randint(1, 2)).join(words) + ".png"
        for folder in ("GT", "LRbicx4"):
            shutil.copy(pairs / folder / "image0.png", pairs / folder / name)
        comment = rng.choice(["", " (160,144,3)", " (160, 144, 3) 1", "  "])
        (pairs / "meta.txt").write_text(
            rng.choice(["", "\ufeff"]) + f"# of {99 * 'many '}\n{name}{comment}{rng.choice(['', chr(13)])}\n\n#\n",
            encoding="utf-8",
        )
        train = options(pairs, train={"meta_info_file": str(pairs / "meta.txt")})["datasets"]["train"]
        (pair,) = open_dataset(train).paths
        assert [Path(pair[key]).name for key in ("gt_path", "lq_path")] == [name, name]
        degraded = {"type": "RealESRGANDataset", "meta_info": train.pop("meta_info_file"), **REAL_ESRGAN_KERNELS}
        for alone in ({"type": "SingleImageDataset", "meta_info_file": degraded["meta_info"]}, degraded):
            (path,) = open_dataset(train | alone).paths
            assert Path(path).name == name
        (pair,) = open_dataset(train | degraded | {"type": "RealESRGANPairedDataset"}).paths
        assert [Path(pair[key]).name for key in ("gt_path", "lq_path")] == [name, name]


@pytest.mark.parametrize(
    "kind", ["PairedImageDataset", "SingleImageDataset", "RealESRGANDataset", "RealESRGANPairedDataset"]
)
def test_a_list_that_is_not_utf_8_is_named(kind: str, pairs: Path) -> None:
    """eyegrade#70: lists of Windows."""
    (pairs / "meta.txt").write_text("image0.png", encoding="utf-16")
    key = "meta_info" if kind.startswith("RealESRGAN") else "meta_info_file"
    train = options(pairs, train={key: str(pairs / "meta.txt"), "type": kind, **REAL_ESRGAN_KERNELS})
    with pytest.raises(UserError, match=r"^datasets: \w+: .*meta\.txt is not UTF-8 .*; save it as UTF-8"):
        open_dataset(train["datasets"]["train"])


def test_several_sets_can_share_an_lmdb(pairs: Path) -> None:
    """Training, with and without workers, and two validation sets, which are also pickled."""
    plain, lmdbs = take(options(pairs), 0, 1)[0], packed(pairs)
    opt = evaluation_options(pairs, **lmdbs)
    opt["datasets"]["val_2"] = opt["datasets"]["val"] | {"type": "SingleImageDataset"}
    opt["datasets"]["train"] |= lmdbs
    assert torch.equal(next(TrainStream(opt).batches(0))["gt"], plain)
    first, second = evaluation_loaders(opt, "val")
    for dataset in (second.dataset, pickle.loads(pickle.dumps(first.dataset))):
        assert torch.equal(first.dataset[1]["lq"], dataset[1]["lq"])
    helped = opt | {"datasets": {"train": opt["datasets"]["train"] | {"num_worker_per_gpu": 1}}}
    assert torch.equal(next(TrainStream(helped).batches(0))["gt"], plain)


def test_a_gt_that_is_not_a_multiple_of_the_scale_is_named_with_advice(pairs: Path) -> None:
    for number in range(4):
        path = pairs / f"GT/image{number}.png"
        cv2.imwrite(str(path), cv2.imread(str(path))[:158])
    with pytest.raises(
        UserError, match=r"GT/image\d\.png cannot be used: Scale mismatches\. GT \(158.*lr`, or cut both"
    ):
        next(TrainStream(options(pairs)).batches(0))


@pytest.mark.parametrize("form", ["", "png", "raw"])
@pytest.mark.parametrize("workers", [0, 1])
def test_the_rest_of_a_gt_is_left_out_as_in_validation(
    form: RecordForm | Literal[""], workers: int, pairs: Path
) -> None:
    """Photographs of any size with LR of `data lr`, as docs/data.md has them."""
    expected = take(options(pairs), 0, 3)
    for number in range(4):
        path = f"{pairs}/GT/image{number}.png"
        cv2.imwrite(path, np.pad(cv2.imread(path), ((0, 3), (0, 1), (0, 0)), mode="edge"))
    opt = options(pairs, train={"num_worker_per_gpu": workers, **(packed(pairs, form) if form else {})})
    assert torch.equal(take(opt, 0, 3).float() / (255 if form == "raw" else 1), expected)


def test_an_lmdb_with_damaged_inner_pages_is_refused_at_the_start(pairs: Path) -> None:
    """Whichever page is overwritten, the run is refused or continues, and the process survives."""
    opt = options(pairs, train=packed(pairs, "raw"))
    data = (pairs / "GT.lmdb/data.mdb").read_bytes()
    heads = [struct.unpack_from("<QHH", data, 4096 * page) for page in range(len(data) // 4096)]
    tree = [page for page, (number, _, flags) in enumerate(heads) if page > 1 and number == page and flags in (1, 2)]
    assert tree
    refused = 0
    for page in tree:
        damaged = bytearray(data)
        damaged[4096 * page + 64 : 4096 * (page + 1)] = b"\x7f" * (4096 - 64)
        (pairs / "GT.lmdb/data.mdb").write_bytes(damaged)
        try:
            TrainStream(opt)
        except UserError as error:
            refused += "GT.lmdb is damaged" in str(error)
    assert refused


def test_what_is_no_image_is_left_out(pairs: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In validation it would stop the run hours later; an image with an unusual suffix is accepted."""
    for name in ("GT", "LRbicx4"):
        (pairs / name / "image3.png").rename(pairs / name / "image3.picture")
    for name in ("Thumbs.db", "desktop.ini", "notes.txt"):
        (pairs / "GT" / name).write_bytes(b"\xd0\xcf\x11\xe0")
    for build in (lambda: evaluation_loaders(evaluation_options(pairs), "val"), lambda: TrainStream(options(pairs))):
        caplog.clear()
        build()
        assert "3 files are no images, and are left out" in caplog.text
        assert "Thumbs.db" in caplog.text
    (loader,) = evaluation_loaders(evaluation_options(pairs), "val")
    assert len(loader.dataset) == 4  # type: ignore[arg-type]
    single = {"type": "SingleImageDataset", "dataroot_lq": str(pairs / "GT")}
    (loader,) = evaluation_loaders(evaluation_options(pairs, **single), "val")
    assert len(loader.dataset) == 4  # type: ignore[arg-type]
    Path("list.txt").write_text("image0.png\nThumbs.db\n")
    (pairs / "LRbicx4/Thumbs.db").touch()
    with pytest.raises(UserError, match=r"got .*Thumbs\.db: take it off the list"):
        evaluation_loaders(evaluation_options(pairs, meta_info_file="list.txt"), "val")


class Unsendable(Dataset):
    """Samples that cannot be pickled."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return threading.Lock()


def test_a_batch_that_cannot_be_sent_ends_its_worker(capfd: pytest.CaptureFixture[str]) -> None:
    """A sibling of RiboDetector#57: multiprocessing prints the error and goes on, and the run waits for ever."""
    loader = DataLoader(Unsendable(), num_workers=1, collate_fn=list, worker_init_fn=start_worker)
    with pytest.raises(UserError, match="a data loader worker ended: its error stands above"):
        list(BadSamples("stop", 0, 4).watch(loader))
    assert "cannot pickle" in capfd.readouterr().err


def test_a_worker_that_is_killed_is_found_by_the_loader_not_in_a_step(pairs: Path) -> None:
    """BasicSR#475: torch raised in the middle of a step, whose weights could not be saved any more."""
    loader = DataLoader([{"bad": ""}] * 40, num_workers=2, worker_init_fn=start_worker)
    batches, others = BadSamples("stop", 0, 40).watch(loader), set(multiprocessing.active_children())
    next(batches)
    (set(multiprocessing.active_children()) - others).pop().kill()
    time.sleep(0.5)  # a step
    with pytest.raises(UserError, match="a data loader worker"):
        list(batches)
