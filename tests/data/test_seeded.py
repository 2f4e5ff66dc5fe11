"""Samples that cannot be used: the run stops, or another sample replaces them, the same in every run."""

from __future__ import annotations

import errno
import gc
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dp_basicsr.data.seeded import BadSamples, SeededDataset
from dp_basicsr.data.stream import TrainStream
from dp_basicsr.errors import UserError

import cv2
import numpy as np
import pytest
import torch
from basicsr.data.ffhq_dataset import FFHQDataset
from torch.utils.data import DataLoader, Dataset

from tests.support.fuzz import no_hang
from tests.support.stream import options, packed, take


class Numbers(Dataset):
    """Sample n is n, except for the bad ones."""

    def __init__(self, size: int, *bad: int) -> None:
        self.size, self.bad = size, bad

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index in self.bad:
            raise ValueError("torn")
        return {"index": index, "drawn": torch.rand(()).item()}


@pytest.fixture
def spoilt(pairs: Path) -> Path:
    """``pairs`` with 20 images; image1 is truncated."""
    for folder in (pairs / "GT", pairs / "LRbicx4"):
        for number in range(4, 20):
            (folder / f"image{number}.png").write_bytes((folder / f"image{number % 4}.png").read_bytes())
    torn = pairs / "GT" / "image1.png"
    torn.write_bytes(torn.read_bytes()[:100])
    return pairs


def test_the_replacement_depends_only_on_seed_epoch_and_position() -> None:
    taken, again = ([samples[epoch, place, 7] for epoch in range(3) for place in range(30)]
                    for samples in (SeededDataset(Numbers(100, 7, 8), 0) for _ in range(2)))  # fmt: skip
    assert taken == again
    indices = {sample["index"] for sample in taken}
    assert len(indices) > 30
    assert not {7, 8} & indices
    assert all(sample["bad"].startswith("sample 7 cannot be used: ValueError: torn (") for sample in taken)


def test_a_set_with_only_bad_samples_is_an_error() -> None:
    message = r"11 samples in a row; the first: sample 3 cannot be used: ValueError: torn .*data check -opt FILE` lists"
    with pytest.raises(UserError, match=message):
        SeededDataset(Numbers(5, *range(5)), 0)[0, 0, 3]


def test_another_error_of_opencv_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """GFPGAN's degradation: the image was there, and "missing or does not decode"."""
    dataset = Numbers(5)
    monkeypatch.setattr(Numbers, "__getitem__", lambda *_: cv2.imencode(".jpg", np.zeros((2, 2, 3)), [1, "high"]))
    with pytest.raises(UserError, match="sample 3 cannot be used: .*in function 'imencode'"):
        SeededDataset(dataset, 0)[0, 0, 3]


def test_an_image_that_ffhq_s_dataset_lacks_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sibling of Real-ESRGAN#470: "cannot access local variable 'img_bytes'", after three others were drawn."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    dataset = FFHQDataset({"dataroot_gt": "GT", "io_backend": {"type": "disk"}, "mean": [0], "std": [1]})
    with pytest.raises(UserError, match=r"the first: sample GT/00000003\.png cannot be used: it is missing or"):
        SeededDataset(dataset, 0)[0, 0, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_stop_names_the_file_without_a_traceback(spoilt: Path, workers: int) -> None:
    reason = "cannot be used: it is missing or does not decode; fix or remove it"
    with pytest.raises(UserError, match=rf"^sample .*{spoilt}/GT/image1\.png.*{reason}"):
        take(options(spoilt, workers=workers), 0, 20)


def test_stop_names_the_file_that_is_missing(pairs: Path) -> None:
    """BasicSR#496: of a data set's own third folder, of which ``paths`` knows nothing."""
    stream = TrainStream(options(pairs))
    stream.dataset.paths = [pair | {"lq_path": "third/a.png"} for pair in stream.dataset.paths]
    with pytest.raises(UserError, match="cannot be used: third/a.png: No such file"):
        next(stream.batches(0))


def test_errors_of_the_prefetch_thread_are_raised(pairs: Path) -> None:
    """BasicSR's thread (prefetch_mode: cpu) would end, and the training would wait forever."""
    for path in (pairs / "GT").iterdir():
        path.write_bytes(b"torn")
    opt = options(pairs, workers=1, train={"prefetch_mode": "cpu", "on_bad_image": "skip"})
    with no_hang(), pytest.raises(UserError, match="^11 samples in a row; the first: sample "):
        take(opt, 0, 1)


def test_skip_logs_the_file_and_counts_the_same_for_all_workers(spoilt: Path, caplog: pytest.LogCaptureFixture) -> None:
    runs = []
    for workers in (0, 2):
        opt = options(spoilt, workers=workers, train={"on_bad_image": "skip", "max_bad_share": 0.5})
        stream = TrainStream(opt)
        runs.append(list(itertools.islice(stream.batches(0), 20)))  # an epoch: 20 images, twice, by two
        assert (stream.bad_samples.count, stream.bad_samples.seen) == (2, 40)
    assert sum(str(spoilt / "GT" / "image1.png") in message for message in caplog.messages) == 4
    assert "bad" not in runs[0][0]
    assert all(torch.equal(a["gt"], b["gt"]) for a, b in zip(*runs, strict=True))


def test_skip_stops_above_the_share(spoilt: Path) -> None:
    with pytest.raises(UserError, match=r"2 samples cannot be used, more than max_bad_share: 0.01 .*image1.png"):
        take(options(spoilt, train={"on_bad_image": "skip", "max_bad_share": 0.01}), 0, 20)


def test_the_share_is_of_an_epoch_first_and_of_what_was_seen_later() -> None:
    skips = BadSamples("skip", 0.1, epoch=20)
    batches = [["a", "b"], *[[""] * 10] * 3, ["c"], ["d"]]
    watched = skips.watch({"bad": bad} for bad in batches)
    assert [next(watched) for _ in range(5)]
    with pytest.raises(UserError, match="4 samples"):
        next(watched)


def test_a_key_missing_from_the_lmdb_is_named(pairs: Path) -> None:
    lmdbs = packed(pairs)
    for name in ("GT", "LRbicx4"):
        (pairs / f"{name}.lmdb/meta_info.txt").write_text("image0.png (1,1,3) 1\nnot_there.png (1,1,3) 1\n")
    with pytest.raises(UserError, match=r"GT\.lmdb lacks 1 records that its meta_info.txt names, e.g. not_there"):
        TrainStream(options(pairs, train=lmdbs))
    with pytest.raises(UserError, match=r"max_bad_share.*sample not_there cannot be used: is not in .*GT\.lmdb"):
        take(options(pairs, train=lmdbs | {"on_bad_image": "skip"}), 0, 20)


def watch(error: str | Exception) -> None:
    """Watch a loader that fails."""

    def batches() -> Iterator[dict[str, Any]]:
        yield {"bad": [""]}
        raise RuntimeError(error) if isinstance(error, str) else error

    list(BadSamples("stop", 0, 4).watch(batches()))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (EOFError(), "memory ran out"),  # nnUNet#2641: killed while it hands a batch over
        (ConnectionResetError(104, "Connection reset by peer"), "memory ran out"),
        ("DataLoader worker (pid 9) is killed by signal: Bus error. It is possible that dataloader's", "--shm-size"),
        ("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)", "--shm-size"),
        ("DataLoader worker (pid 9) is killed by signal: Killed.", "memory ran out"),
        ("received 0 items of ancdata", "ulimit -n"),  # pytorch#973
        ("Too many open files. Communication with the workers is no longer possible.", "ulimit -n"),
    ],
)
def test_a_worker_without_memory_is_one_message(
    error: str | Exception, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # restored afterwards
    with pytest.raises(UserError, match=f"{expected}.*num_worker_per_gpu|num_worker_per_gpu.*{expected}"):
        watch(error)


@pytest.mark.parametrize(("limit", "named"), [(errno.EAGAIN, "ulimit -u"), (errno.EMFILE, "ulimit -n")])
def test_workers_that_cannot_be_started_end_the_others(
    limit: int, named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Project-MONAI/MONAI#1328: the program hung, as started workers ignore the signal to end; fastMRI#318."""
    fork = os.fork
    started: list[int] = []

    def fork_once() -> int:
        if started:
            raise OSError(limit, os.strerror(limit))
        started.append(1)
        return fork()

    def ignore(_: int) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    loader = DataLoader(Numbers(4), num_workers=2, multiprocessing_context="fork", worker_init_fn=ignore)
    monkeypatch.setattr(os, "fork", fork_once)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # restored afterwards
    with pytest.raises(UserError, match=f"{named}.*num_worker_per_gpu"):
        list(BadSamples("stop", 0, 4).watch(loader))
    gc.collect()
    assert "Traceback" not in capsys.readouterr().err
    for worker in multiprocessing.active_children():
        worker.join(30)
    assert not multiprocessing.active_children()


def test_other_errors_of_workers_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match="a mistake of the program"):
        watch("a mistake of the program")


def test_the_limit_of_open_files_is_no_fault_of_an_image(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*args: Any) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files", "image0.png")

    stream = TrainStream(options(pairs, train={"on_bad_image": "skip"}))
    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(UserError, match="^too many open files: raise the limit .ulimit -n"):
        next(stream.batches(0))
