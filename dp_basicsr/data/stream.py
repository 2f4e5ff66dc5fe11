"""From options to batches: datasets, loaders, and a training stream that can start at any iteration."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import dp_basicsr.data.paired_raw_dataset  # noqa: F401  (registers it)
from dp_basicsr.data.lmdb_records import is_raw, lmdb_reader
from dp_basicsr.data.seeded import BadSamples, SeededDataset
from dp_basicsr.errors import UserError

import lmdb
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.data.prefetch_dataloader import CUDAPrefetcher
from basicsr.utils import get_root_logger
from torch.utils.data import DataLoader

Batch = dict[str, Any]

HOW_TO_GET_DATA = (
    "the data of the paper is made by\n"
    "  python scripts/download_datasets.py div2k\n"
    "  python scripts/extract_subimages.py\n"
    "and datasets/README.md shows the tree that is expected"
)

HOW_TO_GET_TEST_SETS = "datasets/README.md says where they come from and shows the tree that is expected"


class TrainSampler(EnlargedSampler):
    """BasicSR's order of samples, with the keys of :class:`SeededDataset`, from any place in the epoch.

    Attributes:
        start: Samples of this process to leave out at the beginning of the epoch.
    """

    start = 0

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        for number, index in islice(enumerate(super().__iter__()), self.start, None):
            yield self.epoch, self.rank + number * self.num_replicas, index


class TrainStream:
    """Endless training batches. Iterating from iteration ``n`` gives what an uninterrupted run sees after ``n``.

    Args:
        opt: All options; reads ``datasets: train``, ``manual_seed``, ``rank``, ``world_size``, ``dist``, ``num_gpu``.

    Raises:
        UserError: There is not enough data for one batch.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        self.opt = opt
        self.dataset_opt = opt["datasets"]["train"]
        self.dataset = _build(self.dataset_opt)
        ratio = self.dataset_opt.get("dataset_enlarge_ratio", 1)
        self.sampler = TrainSampler(self.dataset, opt["world_size"], opt["rank"], ratio)
        workers = self.dataset_opt.get("num_worker_per_gpu")
        persistent = self.dataset_opt.get("persistent_workers", False) and workers != 0
        self.loader: DataLoader = build_dataloader(
            SeededDataset(self.dataset, opt["manual_seed"]),
            self.dataset_opt | {"persistent_workers": persistent},
            num_gpu=opt["num_gpu"],
            dist=opt["dist"],
            sampler=self.sampler,
            seed=opt["manual_seed"],
        )
        if self.dataset_opt.get("prefetch_mode") == "cuda" and not torch.cuda.is_available():
            raise UserError("datasets: train: prefetch_mode: cuda needs a GPU; ~ or cpu work everywhere")
        self.iters_per_epoch = len(self.loader)
        if self.iters_per_epoch == 0:
            raise UserError(
                f"datasets: train: {len(self.sampler)} samples per process do not fill one batch of "
                f"{self.loader.batch_size}; lower batch_size_per_gpu or raise dataset_enlarge_ratio"
            )

        on_bad, most = self.dataset_opt.get("on_bad_image", "stop"), self.dataset_opt.get("max_bad_share", 0.01)
        self.bad_samples = BadSamples(on_bad, most, len(self.sampler))

    def epoch_of(self, iteration: int) -> int:
        """The epoch that the batch after ``iteration`` iterations belongs to."""
        return iteration // self.iters_per_epoch

    def batches(self, iteration: int) -> Iterator[Batch]:
        """Batches from just after ``iteration`` on, for ever."""
        epoch, done = divmod(iteration, self.iters_per_epoch)
        while True:
            self.sampler.set_epoch(epoch)
            self.sampler.start = done * (self.loader.batch_size or 1)
            yield from self._one_epoch()
            epoch, done = epoch + 1, 0

    def _one_epoch(self) -> Iterator[Batch]:
        if self.dataset_opt.get("prefetch_mode") != "cuda":
            yield from self.bad_samples.watch(self.loader)
            return
        prefetcher = CUDAPrefetcher(self.loader, self.opt)
        yield from self.bad_samples.watch(iter(prefetcher.next, None))


def _build(dataset_opt: dict[str, Any]) -> Any:
    """BasicSR's dataset; what it finds wrong with the files (counts, names, a broken LMDB) is a UserError."""
    try:
        _refuse_bad_lmdbs(dataset_opt)
        dataset = build_dataset(dataset_opt)
    except (AssertionError, ValueError, OSError, lmdb.Error) as error:
        raise UserError(f"datasets: {dataset_opt['name']}: {error}") from error
    if isinstance(getattr(dataset, "paths", None), list):
        # BasicSR lists a folder as the file system does, which differs from machine to machine, and so between ranks.
        dataset.paths.sort(key=str)
    return dataset


def _refuse_bad_lmdbs(dataset_opt: dict[str, Any]) -> None:
    """Refuse LMDBs that are cut off, and raw records for BasicSR's datasets: a UserError says what to do."""
    kind = dataset_opt["type"]
    for root in (str(dataset_opt.get(name)) for name in ("dataroot_gt", "dataroot_lq")):
        if not root.endswith(".lmdb"):
            continue
        lmdb_reader(root).open()
        if kind != "PairedRawDataset" and is_raw(root):
            raise UserError(
                f"{root} has raw records, which {kind} cannot read: give type: PairedRawDataset (to train), or convert "
                f"it by `python scripts/create_lmdb.py --input {root} --lmdb png --output NEW.lmdb`"
            )


def missing_folders(dataset_opt: dict[str, Any]) -> list[str]:
    """The data folders of a dataset's options that do not exist."""
    roots = (dataset_opt.get("dataroot_gt"), dataset_opt.get("dataroot_lq"))
    return [root for root in roots if root is not None and not Path(root).is_dir()]


def require_training_data(opt: dict[str, Any]) -> None:
    """Refuse to start without the training data: a UserError names the folder and the commands that make it."""
    if "train" not in opt["datasets"]:
        raise UserError("datasets: there is no `train`, which train.py needs")
    missing = missing_folders(opt["datasets"]["train"])
    if missing:
        raise UserError(f"datasets: train: no such folder: {' and '.join(missing)}; {HOW_TO_GET_DATA}")


def evaluation_loaders(opt: dict[str, Any], phase: str) -> list[DataLoader]:
    """Loaders of the sets of a phase (``val`` or ``test``) that are there; those that are not are named in the log."""
    logger = get_root_logger()
    loaders = []
    for dataset_opt in opt["datasets"].values():
        if dataset_opt["phase"] != phase:
            continue
        missing = missing_folders(dataset_opt)
        if missing:
            logger.warning(f"{dataset_opt['name']} is skipped: no such folder: {' and '.join(missing)}")
            continue
        dataset = _build(dataset_opt)
        loaders.append(build_dataloader(dataset, dataset_opt, num_gpu=opt["num_gpu"], dist=opt["dist"]))
        logger.info(f"{dataset_opt['name']}: {len(dataset)} images")
    return loaders
