"""Samples that cannot be used: the run stops, or another sample replaces them, the same in every run."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dp_basicsr.data.seeded import BadSamples, SeededDataset
from dp_basicsr.data.stream import TrainStream
from dp_basicsr.errors import UserError

import pytest
import torch
from torch.utils.data import Dataset

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
    first, second = (SeededDataset(Numbers(100, 7, 8), 0) for _ in range(2))
    taken = [first[epoch, place, 7] for epoch in range(3) for place in range(30)]
    assert taken == [second[epoch, place, 7] for epoch in range(3) for place in range(30)]
    assert len({sample["index"] for sample in taken}) > 30
    assert not {7, 8} & {sample["index"] for sample in taken}
    assert all(sample["bad"].startswith("sample 7 cannot be used: torn") for sample in taken)


def test_a_set_with_only_bad_samples_is_an_error() -> None:
    with pytest.raises(UserError, match="11 samples in a row; the first: sample 3 cannot be used: torn"):
        SeededDataset(Numbers(5, *range(5)), 0)[0, 0, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_stop_names_the_file_without_a_traceback(spoilt: Path, workers: int) -> None:
    with pytest.raises(UserError) as caught:
        take(options(spoilt, workers=workers), 0, 20)
    message = str(caught.value)
    assert message.startswith("sample ")
    assert str(spoilt / "GT" / "image1.png") in message
    assert "cannot be used: it is missing or does not decode; fix or remove it" in message


def test_errors_of_the_prefetch_thread_are_raised(pairs: Path) -> None:
    """BasicSR's thread (prefetch_mode: cpu) would end, and the training would wait forever."""
    for path in (pairs / "GT").iterdir():
        path.write_bytes(b"torn")
    opt = options(pairs, workers=1, train={"prefetch_mode": "cpu", "on_bad_image": "skip"})
    said = []

    def train() -> None:
        try:
            take(opt, 0, 1)
        except UserError as error:
            said.append(str(error))

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    thread.join(60)
    assert len(said) == 1
    assert said[0].startswith("11 samples in a row; the first: sample ")


def test_skip_logs_the_file_and_counts_the_same_for_all_workers(spoilt: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("basicsr").addHandler(caplog.handler)
    runs = []
    for workers in (0, 2):
        opt = options(spoilt, workers=workers)
        opt["datasets"]["train"] |= {"on_bad_image": "skip", "max_bad_share": 0.5}
        stream = TrainStream(opt)
        batches = stream.batches(0)
        runs.append([next(batches) for _ in range(20)])  # an epoch: 20 images, twice, by two
        assert (stream.bad_samples.count, stream.bad_samples.seen) == (2, 40)
    logging.getLogger("basicsr").removeHandler(caplog.handler)
    assert sum(str(spoilt / "GT" / "image1.png") in message for message in caplog.messages) == 4
    assert "bad" not in runs[0][0]
    assert all(torch.equal(a["gt"], b["gt"]) for a, b in zip(*runs, strict=True))


def test_skip_stops_above_the_share(spoilt: Path) -> None:
    opt = options(spoilt)
    opt["datasets"]["train"] |= {"on_bad_image": "skip", "max_bad_share": 0.01}
    with pytest.raises(UserError, match=r"2 samples cannot be used, more than max_bad_share: 0.01 .*image1.png"):
        take(opt, 0, 20)


def test_the_share_is_of_an_epoch_first_and_of_what_was_seen_later() -> None:
    def batch(*skipped: str) -> dict[str, Any]:
        return {"bad": list(skipped)}

    skips = BadSamples("skip", 0.1, epoch=20)
    good = (batch(*[""] * 10) for _ in range(3))
    assert len(list(skips.watch([batch("a", "b"), *good, batch("c")]))) == 5
    with pytest.raises(UserError, match="4 samples"):
        list(skips.watch([batch("d")]))


def test_a_key_missing_from_the_lmdb_is_named(pairs: Path) -> None:
    lmdbs = packed(pairs)
    for name in ("GT", "LRbicx4"):
        (pairs / f"{name}.lmdb/meta_info.txt").write_text("image0.png (1,1,3) 1\nnot_there.png (1,1,3) 1\n")
    with pytest.raises(UserError, match=r"sample not_there cannot be used: is not in .*GT\.lmdb"):
        take(options(pairs, train=lmdbs), 0, 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DataLoader worker (pid 9) is killed by signal: Bus error. It is possible that dataloader's", "--shm-size"),
        ("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)", "--shm-size"),
        ("DataLoader worker (pid 9) is killed by signal: Killed.", "memory ran out"),
        ("received 0 items of ancdata", "ulimit -n"),  # pytorch#973
        ("Too many open files. Communication with the workers is no longer possible.", "ulimit -n"),
    ],
)
def test_a_worker_without_memory_is_one_message(text: str, expected: str) -> None:
    def batches() -> Iterator[dict[str, Any]]:
        yield {"bad": [""]}
        raise RuntimeError(text)

    with pytest.raises(UserError, match=f"{expected}.*num_worker_per_gpu|num_worker_per_gpu.*{expected}"):
        list(BadSamples("stop", 0, 4).watch(batches()))


def test_the_limit_of_open_files_is_no_fault_of_an_image(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*args: Any) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files", "image0.png")

    stream = TrainStream(options(pairs, train={"on_bad_image": "skip"}))
    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(UserError, match="^too many open files: raise the limit .ulimit -n"):
        next(stream.batches(0))


def test_other_errors_of_workers_keep_their_traceback() -> None:
    def batches() -> Iterator[dict[str, Any]]:
        raise RuntimeError("a mistake of the program")
        yield {}

    with pytest.raises(RuntimeError, match="a mistake of the program"):
        list(BadSamples("stop", 0, 4).watch(batches()))
