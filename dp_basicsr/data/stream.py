"""A stream of training batches that can start at any iteration."""

from __future__ import annotations

import math
import multiprocessing.queues
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dp_basicsr.data.datasets import describe_empty, fingerprint, open_dataset
from dp_basicsr.data.seeded import BadSamples, SeededDataset
from dp_basicsr.errors import UserError
from dp_basicsr.options.schema import dataset_model
from dp_basicsr.utils.signals import SIGNALS

import torch
from basicsr.data import build_dataloader
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.data.prefetch_dataloader import CUDAPrefetcher, PrefetchDataLoader, PrefetchGenerator
from basicsr.utils.registry import MODEL_REGISTRY
from torch.utils.data import DataLoader, Dataset

Batch = dict[str, Any]


class TrainSampler(EnlargedSampler):
    """BasicSR's sample order with the keys of ``SeededDataset``, starting anywhere in the epoch.

    BasicSR extends an epoch to a multiple of the number of processes, so the order depends on that number. Here the few
    samples that cannot be shared are dropped at the end instead.
    """

    start = 0  # number of samples to skip at the beginning of the epoch

    def __init__(self, dataset: Dataset, num_replicas: int, rank: int, ratio: float) -> None:
        super().__init__(dataset, num_replicas, rank, ratio)
        self.total_size = math.ceil(len(dataset) * ratio)  # type: ignore[arg-type]
        self.num_samples = self.total_size // num_replicas

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        order = torch.randperm(self.total_size, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        each = (self.total_size - self.start) // self.num_replicas
        for position in range(self.start + self.rank, self.start + each * self.num_replicas, self.num_replicas):
            # An enlarged epoch repeats the data set.
            yield self.epoch, position, order[position] % len(self.dataset)


class TrainStream:
    """Endless training batches. Iterating from iteration ``n`` gives what an uninterrupted run sees after ``n``.

    Args:
        opt: All options; reads ``datasets: train``, ``manual_seed``, ``rank``, ``world_size``, ``dist``, ``num_gpu``.
        origin: The ``position`` of the run that is resumed. The current epoch continues with the samples not yet seen,
            whatever the mini-batch size was.
    """

    def __init__(self, opt: dict[str, Any], origin: Mapping[str, int] | None = None) -> None:
        self.opt = opt
        # Validated again, because programs may pass bare dicts, which lack the defaults.
        given = opt["datasets"]["train"] | {"batch_size_per_gpu": batch_size_per_gpu(opt)}
        self.dataset_opt = dataset_model(given).of(given).as_dict()
        self.origin = {"iter": 0, "epoch": 0, "sample": 0, **(origin or {})}
        self.dataset = open_dataset(self.dataset_opt)
        if len(self.dataset) == 0:
            raise UserError(f"datasets: train: {describe_empty(self.dataset_opt)}")
        self.names = fingerprint(self.dataset)
        ratio = self.dataset_opt["dataset_enlarge_ratio"]
        self.sampler = TrainSampler(self.dataset, opt["world_size"], opt["rank"], ratio)
        # torch warns about pinned memory without a GPU.
        pin_memory = self.dataset_opt["pin_memory"] and opt["num_gpu"] > 0
        persistent = self.dataset_opt["persistent_workers"] and self.dataset_opt.get("num_worker_per_gpu") != 0
        # Of more workers than CPUs, which names no option; the start does.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        self.loader: DataLoader = build_dataloader(
            SeededDataset(self.dataset, opt["manual_seed"]),
            self.dataset_opt | {"persistent_workers": persistent, "pin_memory": pin_memory},
            num_gpu=opt["num_gpu"],
            dist=opt["dist"],
            sampler=self.sampler,
            seed=opt["manual_seed"],
        )
        # Each iteration over a loader draws a seed for its workers; keep that out of the training's random state.
        self.loader.generator = torch.Generator()
        self.loader.worker_init_fn = start_worker
        self.batch_size = (self.loader.batch_size or 1) * opt["world_size"]  # over all processes
        self.iters_per_epoch = len(self.loader)
        if self.iters_per_epoch == 0:
            raise UserError(
                f"datasets: train: {len(self.sampler)} samples per process do not fill one batch of "
                f"{self.loader.batch_size}; lower batch_size_per_gpu or raise dataset_enlarge_ratio"
            )
        on_bad, most = self.dataset_opt["on_bad_image"], self.dataset_opt["max_bad_share"]
        self.bad_samples = BadSamples(on_bad, most, len(self.sampler))

    def position(self, iteration: int) -> dict[str, int]:
        """Return the position of the stream after ``iteration`` iterations, for a checkpoint.

        It has ``iter``, ``epoch``, ``sample`` (samples of the epoch consumed over all processes), and what they depend
        on: ``batch_size``, ``epoch_size`` and ``names``, a checksum.
        """
        sizes = {"batch_size": self.batch_size, "epoch_size": self.sampler.total_size, "names": self.names}
        # The resumed epoch ends with the samples that were left of it; from then on every epoch has the same length.
        epoch, sample = self.origin["epoch"], self.origin["sample"]
        done = iteration - self.origin["iter"]
        # Rounded down, because the loader drops an incomplete batch at the end.
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
            loaded: Iterable[Batch] = self.loader
            if self.dataset_opt.get("prefetch_mode") == "cuda":
                loaded = iter(RecordingPrefetcher(self.loader, self.opt).next, None)
            elif isinstance(self.loader, PrefetchDataLoader):
                loaded = _from_thread(self.loader)
            yield from self.bad_samples.watch(loaded)
            # Only the epoch that a run is resumed in starts in its middle.
            epoch, self.sampler.start = epoch + 1, 0


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
            # Past the class's own __iter__, whose thread would end without a word.
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
    share, queue = total // processes, opt.get("queue_size") or 180
    if hasattr(MODEL_REGISTRY.get(opt["model_type"]), "_dequeue_and_enqueue") and queue % share:
        raise UserError(f"queue_size: expected a multiple of each process's batch ({share}), got {queue}")
    return share


def start_worker(worker_id: int = 0) -> None:
    """Prepare a loader worker for signals, and to end if it cannot send a batch, which the run would wait for."""

    def end(error: Exception, batch: object) -> None:
        traceback.print_exception(error)
        sys.stderr.flush()
        os._exit(1)

    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(end)  # type: ignore[attr-defined]
    outlive_signals()


def outlive_signals() -> None:
    """Ignore signals to the process group in a worker, because the last step still needs its samples.

    SIGTERM from the parent still ends the worker at once. A thread waits for the signal, because only ``sigwaitinfo``
    gives the sender.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # Windows, macOS
        return
    for number in {*SIGNALS} - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    # Before the thread starts, which inherits the mask: only a blocked signal can be waited for.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = multiprocessing.parent_process()  # for the system it may be forkserver's process

    def obey_parent() -> None:
        # SIGTERM to the group must not end a worker whose parent still finishes its step.
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != (parent and parent.pid):
            pass
        # In a thread, sys.exit would end the thread alone.
        os._exit(0)

    threading.Thread(target=obey_parent, daemon=True).start()
