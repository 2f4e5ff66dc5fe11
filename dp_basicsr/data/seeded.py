"""Samples that are the same in every run, and what to do with those that cannot be used."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from dp_basicsr.errors import UserError

import cv2
import numpy as np
import torch
from basicsr.utils import get_root_logger
from torch.utils.data import Dataset

Batch = dict[str, Any]

_MAX_CONSECUTIVE_BAD = 10  # replacements that are bad as well: then it is not one image, it is the disk
_WORKER_PREFIX = f"{UserError.__module__}.{UserError.__qualname__}: "


class SeededDataset(Dataset):
    """A dataset whose random choices depend on (seed, epoch, place in the epoch) alone.

    Not on the number of workers or processes, and not on where a run was interrupted. The program's own random state is
    left as it was. Another sample takes the place of one that cannot be used: an error in a worker process would reach
    the user as a traceback, and hold the run up while it ends. What follows from it :class:`BadSamples` decides.

    Args:
        dataset: Any dataset that draws from Python's, NumPy's or torch's global generator (CPU), as BasicSR's do. One
            that has a method ``sample(index, rng)`` is given a generator of its own instead, in the same state as
            Python's would be: setting and restoring three global states takes longer than some samples.
        seed: ``manual_seed`` of the run.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, int, int]) -> Batch:
        """The sample of ``(epoch, place, index)``, with an entry ``bad``: what it stands in for and why, a line each.

        Raises:
            UserError: None of its replacements can be used either; the message names the file or key.
        """
        epoch, place, index = key
        bad: list[str] = []
        while len(bad) <= _MAX_CONSECUTIVE_BAD:
            seeds = np.random.SeedSequence((self.seed, epoch, place, *([len(bad)] if bad else [])))
            if bad:
                index = int(seeds.generate_state(4)[3]) % len(self)
            try:
                return {**self._draw(index, seeds), "bad": "\n".join(bad)}
            except Exception as error:
                bad.append(f"sample {self._name(index)} cannot be used: {_readable(error)}")
        raise UserError(f"{len(bad)} samples in a row; the first: {bad[0]}")

    def _draw(self, index: int, seeds: np.random.SeedSequence) -> Batch:
        sample = getattr(self.dataset, "sample", None)
        if sample is not None:
            return sample(index, random.Random(int(seeds.generate_state(1)[0])))
        with _random_state(seeds):
            return self.dataset[index]

    def _name(self, index: int) -> str:
        paths = getattr(self.dataset, "paths", None)  # BasicSR's paired datasets have them
        if paths is None:
            return str(index)
        path = paths[index]
        return " or ".join(dict.fromkeys(path.values())) if isinstance(path, dict) else str(path)


def _reason_of_dead_worker(text: str) -> str | None:
    """What to tell the user where shared memory or memory ended a loader's worker; None for other errors."""
    fewer = "lower datasets: train: num_worker_per_gpu (0 needs none) or the mini-batch"
    if any(sign in text for sign in ("Bus error", "shared memory", "shm", "No space left on device")):
        free = f"{shutil.disk_usage('/dev/shm').free / 1e6:,.0f} MB are free" if os.path.isdir("/dev/shm") else "full"
        return f"shared memory (/dev/shm, {free}) is too small for the batches: docker run --shm-size=8g, or {fewer}"
    if "killed by signal: Killed" in text or "exited unexpectedly" in text:
        return f"a loader's worker was killed, which is what happens when memory runs out: {fewer}"
    return None


def _readable(error: Exception) -> str:
    # What BasicSR says of a file that does not decode, is empty, or of a key that is not there.
    if isinstance(error, cv2.error) or "NoneType" in str(error):
        return "it is missing or does not decode"
    text = " ".join(" ".join(map(str, error.args or [error])).split())
    advice = "cut the GT to a multiple of the scale (extract_subimages.py --crop), or make the LQ again by make_lr.py"
    return f"{text} {advice}" if text.startswith("Scale mismatches.") else text


@contextmanager
def _random_state(seeds: np.random.SeedSequence) -> Iterator[None]:
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    python_seed, numpy_seed, torch_seed = (int(word) for word in seeds.generate_state(3))
    random.seed(python_seed)
    np.random.seed(numpy_seed)
    torch.default_generator.manual_seed(torch_seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class BadSamples:
    """What could not be used in this process: ends the run, or is logged and counted until it is too much.

    With ``skip``, a share of an epoch (at least one sample) may be bad within the first epoch, later a share of the
    samples seen; an image counts every time it is met. A run that is resumed begins to count anew.

    Args:
        on_bad_image: ``stop`` or ``skip``.
        most: ``max_bad_share``, 0 to 1.
        epoch: Samples of this process in an epoch.
    """

    def __init__(self, on_bad_image: str, most: float, epoch: int) -> None:
        self.on_bad_image = on_bad_image
        self.most = most
        self.epoch = epoch
        self.seen = 0
        self.count = 0

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass batches on, without their entry ``bad``.

        Raises:
            UserError: One is bad (``stop``), or too many are (``skip``); or a worker's, without the worker's traceback.
        """
        try:
            for batch in batches:
                self._note(batch.pop("bad"))
                yield batch
        except UserError as error:
            raise UserError(str(error).rpartition(_WORKER_PREFIX)[2].rstrip()) from error
        except RuntimeError as error:  # torch's, of a worker that was killed or that got no shared memory
            reason = _reason_of_dead_worker(str(error))
            if reason is None:
                raise
            raise UserError(reason) from None

    def _note(self, bad: list[str]) -> None:
        self.seen += len(bad)
        for reason in (line for lines in bad for line in lines.splitlines()):
            if self.on_bad_image == "stop":
                raise UserError(f"{reason}; mend or remove it, or leave such out: datasets: train: on_bad_image: skip")
            self.count += 1
            # An error, for BasicSR silences the warnings of all processes but the first.
            get_root_logger().error(f"skipped ({self.count} so far): {reason}")
            if self.count > max(1, self.most * max(self.seen, self.epoch)):
                raise UserError(
                    f"{self.count} samples cannot be used, more than max_bad_share: {self.most:g} of those seen; "
                    f"`python scripts/check_dataset.py` names all of them; the last: {reason}"
                )
