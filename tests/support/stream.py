"""The training stream on the fixture ``pairs``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dp_basicsr.data.preparation.convert import create_lmdb
from dp_basicsr.data.preparation.jobs import PrepJob
from dp_basicsr.data.preparation.writers import LmdbWriter, Record, RecordForm
from dp_basicsr.data.stream import TrainStream

import torch


def options(pairs: Path, **changes: Any) -> dict[str, Any]:
    train = {
        "name": "small", "type": "PairedImageDataset", "phase": "train", "scale": 4,
        "dataroot_gt": str(pairs / "GT"), "dataroot_lq": str(pairs / "LRbicx4"), "io_backend": {"type": "disk"},
        "gt_size": 32, "use_hflip": True, "use_rot": True,
        "num_worker_per_gpu": changes.pop("workers", 0), "batch_size_per_gpu": changes.pop("batch", 2),
        "dataset_enlarge_ratio": 2, **changes.pop("train", {}),
    }  # fmt: skip
    return {
        "model_type": "SRModel",
        "datasets": {"train": train},
        "manual_seed": 1,
        "rank": 0,
        "world_size": 1,
        "dist": False,
        "num_gpu": 0,
        **changes,
    }


def take(opt: dict[str, Any], start: int, count: int) -> torch.Tensor:
    """Return the GT of ``count`` mini-batches from an iteration on: (count, N, 3, H, W)."""
    batches = TrainStream(opt).batches(start)
    return torch.stack([next(batches)["gt"] for _ in range(count)])


def evaluation_options(pairs: Path, phase: str = "val", **changes: Any) -> dict[str, Any]:
    """Options with the training set and one validation set, which gets ``changes``."""
    opt = options(pairs)
    opt["datasets"]["val"] = opt["datasets"]["train"] | {"phase": phase} | changes
    return opt


def write_lmdb(path: Path, *records: Record) -> Path:
    writer = LmdbWriter(path, overwrite=True)
    writer.write(records)
    writer.close()
    writer.commit()
    return path


def packed(pairs: Path, form: RecordForm = "png") -> dict[str, Any]:
    """Pack the pairs into LMDBs; return the keys of a data set that read them."""
    for name in ("GT", "LRbicx4"):
        create_lmdb(pairs / name, pairs / f"{name}.lmdb", PrepJob(workers=1), form)
    kind = {"png": "PairedImageDataset", "raw": "PairedRawDataset"}[form]
    roots = {"dataroot_gt": f"{pairs}/GT.lmdb", "dataroot_lq": f"{pairs}/LRbicx4.lmdb"}
    return {"type": kind, "io_backend": {"type": "lmdb"}, **roots}
