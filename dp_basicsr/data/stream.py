"""Build datasets and loaders from options, and a training stream that can start at any iteration."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dp_basicsr.data.paired_raw_dataset  # noqa: F401  (registers it)
from dp_basicsr.data.lmdb_records import LmdbClient, is_raw, lmdb_reader
from dp_basicsr.data.lmdb_walk import refuse_damaged
from dp_basicsr.data.seeded import BadSamples, SeededDataset
from dp_basicsr.data.sources import listed_names
from dp_basicsr.data.worker_signals import outlive_signals
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import IMAGE_SUFFIXES
from dp_basicsr.options.schema import dataset_model
from dp_basicsr.utils.arguments import advise

import cv2
import lmdb
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.data.prefetch_dataloader import CUDAPrefetcher, PrefetchDataLoader, PrefetchGenerator
from basicsr.utils import get_root_logger
from torch.utils.data import DataLoader, Dataset

Batch = dict[str, Any]


def how_to_get_data() -> str:
    """Return the commands that create the paper's data."""
    return f"to create the paper's data, run\n  {advise('data download', 'div2k')}\n  {advise('data extract')}"


def how_to_get_test_sets() -> str:
    """Return the command that downloads the paper's test sets."""
    return f"to download the paper's, run\n  {advise('data download', 'set5 set14 bsd100 urban100')}"


class TrainSampler(EnlargedSampler):
    """BasicSR's sample order with the keys of ``SeededDataset``, starting anywhere in the epoch.

    BasicSR extends an epoch to a multiple of the number of processes, so the order depends on that number. Here the few
    samples that cannot be shared are dropped at the end instead.

    Attributes:
        start: Number of samples to skip at the beginning of the epoch.
    """

    start = 0

    def __init__(self, dataset: Dataset, num_replicas: int, rank: int, ratio: float) -> None:
        super().__init__(dataset, num_replicas, rank, ratio)
        self.total_size = math.ceil(len(dataset) * ratio)  # type: ignore[arg-type]
        self.num_samples = self.total_size // num_replicas

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        order = torch.randperm(self.total_size, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        each = (self.total_size - self.start) // self.num_replicas
        for place in range(self.start + self.rank, self.start + each * self.num_replicas, self.num_replicas):
            yield self.epoch, place, order[place] % len(self.dataset)


class TrainStream:
    """Endless training batches. Iterating from iteration ``n`` gives what an uninterrupted run sees after ``n``.

    Args:
        opt: All options; reads ``datasets: train``, ``manual_seed``, ``rank``, ``world_size``, ``dist``, ``num_gpu``.
        origin: The ``position`` of the run that is resumed. The current epoch continues with the samples not yet seen,
            whatever the mini-batch size was.

    Attributes:
        batch_size: Samples per iteration over all processes.

    Raises:
        UserError: There is not enough data for one batch.
    """

    def __init__(self, opt: dict[str, Any], origin: Mapping[str, int] | None = None) -> None:
        self.opt = opt
        given = opt["datasets"]["train"] | {"batch_size_per_gpu": batch_size_per_gpu(opt)}
        self.dataset_opt = dataset_model(given).of(given).as_dict()
        self.origin = {"iter": 0, "epoch": 0, "sample": 0, **(origin or {})}
        self.dataset = _build(self.dataset_opt)
        if len(self.dataset) == 0:
            roots = " and ".join(
                dict.fromkeys(str(self.dataset_opt.get(key)) for key in ("dataroot_gt", "dataroot_lq"))
            )
            raise UserError(f"datasets: train: no image directly in {roots} (subfolders are not searched)")
        ratio = self.dataset_opt["dataset_enlarge_ratio"]
        self.sampler = TrainSampler(self.dataset, opt["world_size"], opt["rank"], ratio)
        self.loader = self._build_loader()
        self.batch_size = (self.loader.batch_size or 1) * opt["world_size"]
        self.iters_per_epoch = len(self.loader)
        if self.iters_per_epoch == 0:
            raise UserError(
                f"datasets: train: {len(self.sampler)} samples per process do not fill one batch of "
                f"{self.loader.batch_size}; lower batch_size_per_gpu or raise dataset_enlarge_ratio"
            )
        on_bad, most = self.dataset_opt["on_bad_image"], self.dataset_opt["max_bad_share"]
        self.bad_samples = BadSamples(on_bad, most, len(self.sampler))

    def _build_loader(self) -> DataLoader:
        prefetch_mode, workers = self.dataset_opt.get("prefetch_mode"), self.dataset_opt.get("num_worker_per_gpu")
        if prefetch_mode == "cuda" and not torch.cuda.is_available():
            raise UserError("datasets: train: prefetch_mode: cuda needs a GPU: use ~ or cpu")
        if prefetch_mode == "cpu" and workers == 0:
            raise UserError(
                "datasets: train: prefetch_mode: cpu without workers reads in a thread that shares the random state "
                "of the training: set num_worker_per_gpu to 1 or more, or prefetch_mode to ~"
            )
        loader: DataLoader = build_dataloader(
            SeededDataset(self.dataset, self.opt["manual_seed"]),
            self.dataset_opt | {"persistent_workers": self.dataset_opt["persistent_workers"] and workers != 0},
            num_gpu=self.opt["num_gpu"],
            dist=self.opt["dist"],
            sampler=self.sampler,
            seed=self.opt["manual_seed"],
        )
        # Each iteration over a loader draws a seed for its workers; keep that out of the training's random state.
        loader.generator = torch.Generator()
        loader.worker_init_fn = outlive_signals
        return loader

    def position(self, iteration: int) -> dict[str, int]:
        """Return the position of the stream after ``iteration`` iterations, for a checkpoint.

        Returns:
            ``iter``, ``epoch``, ``sample`` (samples of the epoch consumed over all processes), and the sizes they
            depend
            on: ``batch_size`` and ``epoch_size``.
        """
        sizes = {"batch_size": self.batch_size, "epoch_size": self.sampler.total_size}
        epoch, sample = self.origin["epoch"], self.origin["sample"]
        done = iteration - self.origin["iter"]
        left = max(self.sampler.total_size - sample, 0) // self.batch_size
        if done < left:
            return {"iter": iteration, "epoch": epoch, "sample": sample + done * self.batch_size, **sizes}
        epochs, done = divmod(done - left, self.iters_per_epoch)
        return {"iter": iteration, "epoch": epoch + 1 + epochs, "sample": done * self.batch_size, **sizes}

    def epoch_of(self, iteration: int) -> int:
        """Return the epoch of the batch that follows ``iteration`` iterations."""
        return self.position(iteration)["epoch"]

    def batches(self, iteration: int) -> Iterator[Batch]:
        """Yield batches endlessly, starting after ``iteration`` iterations."""
        position = self.position(iteration)
        epoch, self.sampler.start = position["epoch"], position["sample"]
        while True:
            self.sampler.set_epoch(epoch)
            yield from self._one_epoch()
            epoch, self.sampler.start = epoch + 1, 0

    def _one_epoch(self) -> Iterator[Batch]:
        if self.dataset_opt.get("prefetch_mode") != "cuda":
            in_thread = isinstance(self.loader, PrefetchDataLoader)
            yield from self.bad_samples.watch(_from_thread(self.loader) if in_thread else self.loader)
            return
        prefetcher = RecordingPrefetcher(self.loader, self.opt)
        yield from self.bad_samples.watch(iter(prefetcher.next, None))


class RecordingPrefetcher(CUDAPrefetcher):
    """BasicSR's prefetcher, keeping a batch's memory alive until the training stream has read it.

    Batches are allocated on the copy stream. Without ``record_stream`` the allocator could reuse a dropped batch's
    memory for the next copy while queued kernels of the training stream still read it.
    """

    def next(self) -> Batch | None:
        """Return the next batch, or None at the end of the epoch."""
        batch: Batch | None = super().next()
        for value in (batch or {}).values():
            if isinstance(value, torch.Tensor):
                value.record_stream(torch.cuda.current_stream())
        return batch


def _from_thread(loader: PrefetchDataLoader) -> Iterator[Batch]:
    """Yield batches from BasicSR's prefetch thread and re-raise its errors, which would otherwise hang the run."""

    def outcomes() -> Iterator[Batch | Exception]:
        try:
            yield from DataLoader.__iter__(loader)
        except Exception as error:
            yield error

    for outcome in PrefetchGenerator(outcomes(), loader.num_prefetch_queue):
        if isinstance(outcome, Exception):
            raise outcome
        yield outcome


def batch_size_per_gpu(opt: dict[str, Any]) -> int:
    """Return ``batch_size_per_gpu``, or this process's share of ``batch_size_total``."""
    dataset_opt = opt["datasets"]["train"]
    total, processes = dataset_opt.get("batch_size_total"), opt["world_size"] if opt["dist"] else max(opt["num_gpu"], 1)
    if total is None:
        return dataset_opt["batch_size_per_gpu"]
    if total < processes or total % processes:
        raise UserError(f"datasets: train: batch_size_total: {total} is not a multiple of the {processes} processes")
    return total // processes


def _build(dataset_opt: dict[str, Any]) -> Any:
    """Build BasicSR's dataset; problems with the files (counts, names, a damaged LMDB) become a UserError."""
    # BasicSR checks these keys with `in` only, and would open or format None.
    unset = [key for key in ("meta_info_file", "filename_tmpl") if dataset_opt.get(key, "") is None]
    dataset_opt = {key: value for key, value in dataset_opt.items() if key not in unset}
    try:
        _refuse_bad_lmdbs(dataset_opt)
        dataset = build_dataset(dataset_opt)
    except KeyError as error:
        raise UserError(f"datasets: {dataset_opt['name']}: {dataset_opt['type']} needs the key {error}") from error
    except (AssertionError, ValueError, OSError, lmdb.Error) as error:
        raise UserError(f"datasets: {dataset_opt['name']}: {error}") from error
    if isinstance(getattr(dataset, "paths", None), list):
        _use_list(dataset, dataset_opt)
        # BasicSR keeps the file system's order, which may differ between machines and therefore between ranks.
        dataset.paths.sort(key=str)
        _refuse_foreign_files(dataset, dataset_opt)
    backend = getattr(dataset, "io_backend_opt", None) or {}
    if "db_paths" in backend:
        roots, names = backend["db_paths"], backend.get("client_keys", "default")
        dataset.file_client = LmdbClient(roots, names)
    return dataset


def _refuse_foreign_files(dataset: Any, dataset_opt: dict[str, Any]) -> None:
    """Refuse files such as Thumbs.db: BasicSR treats every file as an image and would fail during training."""
    paths = [path for entry in dataset.paths for path in (entry.values() if isinstance(entry, dict) else [entry])]
    for path in paths:
        unusual = os.path.splitext(str(path))[1].lower() not in IMAGE_SUFFIXES
        if unusual and os.path.isfile(path) and not cv2.haveImageReader(str(path)):
            raise UserError(f"datasets: {dataset_opt['name']}: expected images only, got {path}: remove it")


def _use_list(dataset: Any, dataset_opt: dict[str, Any]) -> None:
    """Read a ``meta_info_file`` again, with blanks in names; refuse missing files and two GT that share an LQ."""
    meta_info_file, kind = dataset_opt.get("meta_info_file"), dataset_opt["type"]
    on_disk = (dataset_opt.get("io_backend") or {}).get("type") == "disk"
    if meta_info_file is None or not on_disk or kind not in ("PairedImageDataset", "SingleImageDataset"):
        return
    lq_root, template = str(dataset_opt["dataroot_lq"]), dataset_opt.get("filename_tmpl", "{}")
    gt_root = str(dataset_opt["dataroot_gt"]) if kind == "PairedImageDataset" else ""
    pairs: list[dict[str, str]] = []
    first: dict[str, str] = {}
    for name in listed_names(meta_info_file, Path(gt_root or lq_root)):
        base, suffix = os.path.splitext(os.path.basename(name))
        lq = os.path.join(lq_root, f"{template.format(base)}{suffix}" if gt_root else name)
        pairs.append({"lq_path": lq} | ({"gt_path": os.path.join(gt_root, name)} if gt_root else {}))
    name = f"datasets: {dataset_opt['name']}: meta_info_file {meta_info_file}"
    missing = [path for pair in pairs for path in pair.values() if not os.path.isfile(path)]
    if missing:
        raise UserError(f"{name}: expected one file name per line, {len(missing)} files are missing, e.g. {missing[0]}")
    for pair in pairs:
        lq, gt = pair["lq_path"], pair.get("gt_path", "")
        if gt and first.setdefault(lq, gt) != gt:
            raise UserError(f"{name}: {first[lq]} and {gt} would both be paired with {lq}: rename one of them")
    dataset.paths = pairs if gt_root else [pair["lq_path"] for pair in pairs]


def _refuse_bad_lmdbs(dataset_opt: dict[str, Any]) -> None:
    """Refuse damaged LMDBs, and raw records for BasicSR's datasets."""
    kind = dataset_opt["type"]
    for root in (str(dataset_opt.get(name)) for name in ("dataroot_gt", "dataroot_lq")):
        if not root.endswith(".lmdb"):
            continue
        lmdb_reader(root).open()
        refuse_damaged(root)
        if kind != "PairedRawDataset" and is_raw(root):
            raise UserError(
                f"{root} has raw records, which {kind} cannot read: set type: PairedRawDataset (to train), or convert "
                f"it with `{advise('data lmdb', f'-i {root} --lmdb png -o NEW.lmdb')}`"
            )


def missing_folders(dataset_opt: dict[str, Any]) -> list[str]:
    """Return the data folders in a dataset's options that do not exist."""
    roots = (dataset_opt.get("dataroot_gt"), dataset_opt.get("dataroot_lq"))
    return [root for root in roots if root is not None and not Path(root).is_dir()]


def require_training_data(opt: dict[str, Any]) -> None:
    """Raise a UserError that names the missing training data and the commands that create it."""
    if "train" not in opt["datasets"]:
        raise UserError("datasets: expected a `train` entry, which train.py needs")
    missing = missing_folders(opt["datasets"]["train"])
    if missing:
        raise UserError(f"datasets: train: no such folder: {' and '.join(missing)}; {how_to_get_data()}")


def evaluation_loaders(opt: dict[str, Any], phase: str) -> list[DataLoader]:
    """Build loaders for the data sets of a phase (``val`` or ``test``), without missing ones, which ``checks`` name."""
    logger = get_root_logger()
    loaders = []
    for dataset_opt in opt["datasets"].values():
        if dataset_opt["phase"] != phase or missing_folders(dataset_opt):
            continue
        dataset = _build(dataset_opt)
        if len(dataset) == 0:
            logger.warning(f"{dataset_opt['name']} is skipped: no image directly in its folders")
            continue
        # BasicSR loads these in the process itself, where torch refuses workers that persist.
        alone = dataset_opt | {"persistent_workers": False, "prefetch_mode": None}
        loaders.append(build_dataloader(dataset, alone, num_gpu=opt["num_gpu"], dist=opt["dist"]))
        logger.info(f"{dataset_opt['name']}: {len(dataset)} images")
    return loaders
