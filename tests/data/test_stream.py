"""The training stream: the same samples whatever the workers, the processes and the place it starts from."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from dp_basicsr.data.stream import SeededDataset, TrainStream, evaluation_loaders, require_training_data
from dp_basicsr.errors import UserError

import numpy as np
import pytest
import torch


def options(pairs: Path, **changes: Any) -> dict[str, Any]:
    train = {
        "name": "small", "type": "PairedImageDataset", "phase": "train", "scale": 4,
        "dataroot_gt": str(pairs / "GT"), "dataroot_lq": str(pairs / "LRbicx4"), "io_backend": {"type": "disk"},
        "gt_size": 32, "use_hflip": True, "use_rot": True,
        "num_worker_per_gpu": changes.pop("workers", 0), "batch_size_per_gpu": changes.pop("batch", 2),
        "dataset_enlarge_ratio": 2,
    }  # fmt: skip
    return {
        "datasets": {"train": train},
        "manual_seed": 1,
        "rank": 0,
        "world_size": 1,
        "dist": False,
        "num_gpu": 0,
        **changes,
    }


def take(opt: dict[str, Any], start: int, count: int) -> list[torch.Tensor]:
    batches = TrainStream(opt).batches(start)
    return [next(batches)["gt"] for _ in range(count)]


def test_it_goes_on_where_it_was_interrupted(pairs: Path) -> None:
    """Four iterations are an epoch here: 3 is inside one, 4 and 8 are borders."""
    whole = take(options(pairs), 0, 10)
    for start in (1, 3, 4, 7, 8):
        assert all(
            torch.equal(a, b) for a, b in zip(whole[start:], take(options(pairs), start, 10 - start), strict=True)
        )


def test_workers_do_not_change_the_samples(pairs: Path) -> None:
    alone, helped = (take(options(pairs, workers=workers), 1, 5) for workers in (0, 2))
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_processes_share_the_samples_of_one(pairs: Path) -> None:
    """Two processes with half the batch see, together, what one sees."""
    one = take(options(pairs, batch=2), 0, 4)
    ranks = [take(options(pairs, batch=1, rank=rank, world_size=2, dist=True), 0, 4) for rank in (0, 1)]
    for batch, first, second in zip(one, *ranks, strict=True):
        assert torch.equal(batch, torch.cat([first, second]))


def test_every_epoch_and_seed_has_its_own_crops(pairs: Path) -> None:
    epochs = take(options(pairs), 0, 8)
    assert not any(torch.equal(a, b) for a, b in zip(epochs[:4], epochs[4:], strict=True))
    assert not torch.equal(epochs[0], take(options(pairs, manual_seed=2), 0, 1)[0])


def test_the_program_s_random_state_is_left_alone() -> None:
    class Drawing(torch.utils.data.Dataset):
        def __getitem__(self, index: int) -> dict[str, float]:
            return {"python": random.random(), "numpy": np.random.rand(), "torch": torch.rand(()).item()}

    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    dataset = SeededDataset(Drawing(), seed=0)
    assert dataset[0, 1, 2] == dataset[0, 1, 5] != dataset[0, 2, 2]
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])


def test_less_than_a_batch_is_refused(pairs: Path) -> None:
    with pytest.raises(UserError, match="8 samples.*batch of 16"):
        TrainStream(options(pairs, batch=16))


def test_missing_folders_are_named(pairs: Path) -> None:
    opt = options(pairs)
    opt["datasets"]["train"]["dataroot_gt"] = "datasets/not_there"
    opt["datasets"]["val"] = opt["datasets"]["train"] | {"phase": "val"}
    with pytest.raises(UserError, match=r"datasets/not_there(?s:.*)extract_subimages\.py"):
        require_training_data(opt)
    assert evaluation_loaders(opt, "val") == []


def test_the_order_of_the_file_system_does_not_matter(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine may list the same folder in another order, and its ranks must not take other samples for it."""
    from basicsr.data import data_util

    listing = data_util.scandir
    orders = []
    for reverse in (False, True):
        monkeypatch.setattr(data_util, "scandir", lambda *args, r=reverse: iter(sorted(listing(*args), reverse=r)))
        orders.append([path["lq_path"] for path in TrainStream(options(pairs)).dataset.paths])
    assert orders[0] == orders[1] == sorted(orders[0])
