"""Reproducible training samples, and the handling of samples that cannot be used."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dp_basicsr.data.datasets import files_of, how_to_make_lq
from dp_basicsr.errors import UserError, limit_reached, message_of_others
from dp_basicsr.utils.arguments import advise

import numpy as np
import torch
from basicsr.data import paired_image_dataset, realesrgan_paired_dataset, transforms
from basicsr.utils import get_root_logger
from torch.utils.data import Dataset

Batch = dict[str, Any]

_MAX_CONSECUTIVE_BAD = 10  # bad replacements in a row: the cause is the disk, not one image
# torch puts a worker's traceback before the message, and this between the two.
_WORKER_PREFIX = f"{UserError.__module__}.{UserError.__qualname__}: "


def _crop_without_rest(gt: Any, lq: Any, gt_size: int, scale: int, gt_path: str | None = None) -> Any:
    """Leave out a GT's last rows and columns that are of no LQ pixel, as BasicSR does in validation alone, and crop."""
    height, width = lq.shape[:2]
    if (gt.shape[0] // scale, gt.shape[1] // scale) == (height, width):
        gt = gt[: scale * height, : scale * width]
    return transforms.paired_random_crop(gt, lq, gt_size, scale, gt_path)


# Here, because a worker that is spawned imports this module alone of those that train.
for module in (paired_image_dataset, realesrgan_paired_dataset):
    module.paired_random_crop = _crop_without_rest


class SeededDataset(Dataset):
    """A dataset whose random choices depend only on (seed, epoch, position in the epoch).

    They do not depend on the number of workers or processes, nor on where a run was interrupted. The global random
    state is left unchanged. A sample that cannot be used is replaced by another one, because an error in a worker
    process would stall the run and show a traceback; ``BadSamples`` then decides what to do.

    Args:
        dataset: Any dataset that draws from Python's, NumPy's or torch's global generator (CPU), as BasicSR's do. If it
            has a method ``sample(index, rng)``, it is called with a generator in the state that Python's would have:
            setting and restoring three global states takes longer than some samples.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, int, int]) -> Batch:
        """Return the sample of ``(epoch, position, index)``; its entry ``bad`` lists replaced samples, one per line."""
        epoch, position, index = key
        bad: list[str] = []
        while len(bad) <= _MAX_CONSECUTIVE_BAD:
            # A replacement has its own seeds, and the first draw those of a dataset without bad images.
            seeds = np.random.SeedSequence((self.seed, epoch, position, *([len(bad)] if bad else [])))
            if bad:
                # The first three words seed the generators.
                index = int(seeds.generate_state(4)[3]) % len(self)
            try:
                if hasattr(self.dataset, "sample"):
                    # The same first word as below, so both ways give the same crop.
                    drawn = self.dataset.sample(index, random.Random(int(seeds.generate_state(1)[0])))
                else:
                    with _random_state(seeds):
                        drawn = self.dataset[index]
                return {**drawn, "bad": "\n".join(bad)}
            except Exception as error:
                # Not a fault of the image; the cause is that of a ``DiskClient``'s error.
                if limit := limit_reached(error) or (error.__cause__ and limit_reached(error.__cause__)):
                    raise UserError(limit) from error
                # Of BasicSR's datasets: a path, or those of a pair, which are the same key in an LMDB.
                entry = self.dataset.paths[index] if hasattr(self.dataset, "paths") else str(index)
                name = " or ".join(dict.fromkeys(map(str, files_of(entry))))
                reason = " ".join(" ".join(map(str, error.args or [error])).split())
                if is_undecodable(error):
                    reason = "it is missing or does not decode"
                elif reason.startswith("Scale mismatches."):
                    reason += f" {how_to_make_lq()}"
                elif " is smaller than patch size " in reason:
                    reason = f"{reason.partition('. ')[0]}: lower datasets: train: gt_size"
                else:
                    reason = message_of_others(error) or reason
                bad.append(f"sample {name} cannot be used: {reason}")
        way = f"`{advise('data check', '-opt FILE')}` lists all bad ones"
        raise UserError(f"{len(bad)} samples in a row; the first: {bad[0]}; {way}")


def is_undecodable(error: Exception) -> bool:
    """Return whether it is BasicSR's for a file that is missing, empty or does not decode, or for a missing key."""
    # FFHQDataset looks for three others first, and then has no `img_bytes`.
    return any(word in str(error) for word in ("NoneType", "img_bytes", "imdecode"))


@contextmanager
def _random_state(seeds: np.random.SeedSequence) -> Iterator[None]:
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    python_seed, numpy_seed, torch_seed = (int(word) for word in seeds.generate_state(3))
    random.seed(python_seed)
    np.random.seed(numpy_seed)
    # Not torch.manual_seed, which would seed the GPUs, too.
    torch.default_generator.manual_seed(torch_seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


@dataclass
class BadSamples:
    """Samples that this process could not use: the first one stops the run, or they are counted up to a limit.

    With ``skip``, a share of an epoch (at least one sample) may be bad within the first epoch, later a share of the
    samples seen; an image counts each time it is drawn. The count restarts when a run is resumed.
    """

    on_bad_image: str
    most: float  # max_bad_share
    epoch: int  # number of this process's samples in an epoch
    seen: int = 0
    count: int = 0

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches without their entry ``bad``; too many bad samples, and failed workers, are a UserError."""
        try:
            for batch in batches:
                child = getattr(signal, "SIGCHLD", None)
                if child and getattr(signal.getsignal(child), "__module__", "").startswith("torch."):
                    # It would raise in the middle of a step, which cannot be saved; the loader finds out, too.
                    signal.signal(child, signal.SIG_DFL)
                bad = batch.pop("bad")
                self.seen += len(bad)
                for reason in (line for lines in bad for line in lines.splitlines()):
                    if self.on_bad_image == "stop":
                        raise UserError(f"{reason}; fix or remove it, or set datasets: train: on_bad_image: skip")
                    self.count += 1
                    # Log as an error, because BasicSR silences warnings on all ranks but 0.
                    get_root_logger().error(f"skipped ({self.count} so far): {reason}")
                    if self.count > max(1, self.most * max(self.seen, self.epoch)):
                        raise UserError(
                            f"{self.count} samples cannot be used, more than max_bad_share: {self.most:g} of those "
                            f"seen; `{advise('data check', '-opt FILE')}` lists all of them; the last: {reason}"
                        )
                yield batch
        except UserError as error:
            raise UserError(str(error).rpartition(_WORKER_PREFIX)[2].rstrip()) from error
        except (RuntimeError, OSError, EOFError) as error:
            # From torch: a worker was not started, was killed, or got no shared memory.
            fewer = "lower datasets: train: num_worker_per_gpu (0 needs none) or the mini-batch"
            if cause := limit_reached(error):
                # Python would wait for ever for the workers that were started: they ignore the signal to end.
                for worker in multiprocessing.active_children():
                    worker.kill()
                # torch's iterator, which is half made, would add a traceback when it is deleted.
                sys.unraisablehook = lambda _: None
            elif any(sign in str(error) for sign in ("Bus error", "shared memory", "shm", "No space left on device")):
                is_there = os.path.isdir("/dev/shm")
                free = f"{shutil.disk_usage('/dev/shm').free / 1e6:,.0f} MB are free" if is_there else "full"
                cause = f"shared memory (/dev/shm, {free}) is too small for the batches: docker run --shm-size=8g, or "
                cause += fewer
            elif "exited unexpectedly" in str(error):
                cause = f"a data loader worker ended: its error stands above, or memory ran out: {fewer}"
            # The others are from the memory that a worker was about to hand over.
            elif "killed by signal: Killed" in str(error) or isinstance(error, (EOFError, ConnectionError)):
                cause = f"a data loader worker was killed, most likely because memory ran out: {fewer}"
            else:
                raise
            raise UserError(cause) from None
