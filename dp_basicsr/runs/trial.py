"""``train.py --check``: try one step without writing anything, and estimate the cost of the run."""

from __future__ import annotations

import logging
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dp_basicsr.archs.pretrained import PRETRAINED_DIR, without_downloads
from dp_basicsr.checkpoint.resume import find_resume_point, require_networks
from dp_basicsr.data.datasets import evaluation_loaders, paths_of
from dp_basicsr.data.preparation.check import refuse_turned
from dp_basicsr.data.stream import Batch, TrainStream, batch_size_per_gpu
from dp_basicsr.distributed.collectives import on_rank_0
from dp_basicsr.errors import UserError
from dp_basicsr.metrics import refuse_small_images
from dp_basicsr.models.validation import validate
from dp_basicsr.options.run import RunOptions
from dp_basicsr.options.schema import DATASETS
from dp_basicsr.runs.limits import (
    build_run_model,
    first_step_is_user_error,
    out_of_memory_is_user_error,
    require_compiler,
    require_room,
)
from dp_basicsr.runs.log import PAPER_BATCH, current_losses, is_for_terminal, require_loggers
from dp_basicsr.runs.training import refuse_other_patches, restore

import torch
from basicsr.utils import get_root_logger
from torch.utils.data import DataLoader, Dataset


def check(run: RunOptions) -> None:
    """Try one step of a run with valid options, and print the estimated cost; what prevents it is a UserError.

    So are missing files, but the step is tried on random images (weights), to plan a run before its data exists.
    """
    opt, missing = run.as_dict(), list(run.missing)
    require_loggers(run)
    require_compiler(run)
    # No worker processes.
    opt["datasets"]["train"] |= {"num_worker_per_gpu": 0, "persistent_workers": False, "prefetch_mode": None}
    point = None if missing else find_resume_point(opt)
    if missing:
        opt["path"] |= dict.fromkeys(("pretrain_network_g", "pretrain_network_d", "resume_state"))
    # The run reads its checkpoint's networks instead of those that it began with.
    elif point is not None:
        opt = point.options(opt)
    else:
        require_networks(opt)
    logger, warned, level = get_root_logger(), dict[str, None](), get_root_logger().level

    def hold(record: logging.LogRecord) -> bool:
        # What a start warns of is a note here; which step or file an error is of is shown at once.
        if record.levelno < logging.ERROR and is_for_terminal(record):
            warned[record.getMessage()] = None
        return record.levelno >= logging.ERROR

    # Network listings belong in a run's log.
    logger.setLevel(max(level, logging.WARNING))
    logger.addFilter(hold)
    try:
        batch, source, loaded = first_batch(opt, missing)
        # The cost does not depend on the weights.
        with without_downloads() as absent:
            seconds, losses = try_step(run, opt, batch, point.state if point else None)
    except UserError as error:
        raise UserError("\n".join([*missing, str(error)])) from error
    finally:
        logger.removeFilter(hold)
        logger.setLevel(level)
    if run.rank == 0:
        cache = Path(torch.hub.get_dir(), "checkpoints")
        folder = next(filter(os.path.exists, (cache, *cache.parents)))
        is_writable = folder.is_dir() and os.access(folder, os.W_OK)
        downloads = [f"the {name} are missing: the run will download them first" for name in absent if is_writable]
        way = f"{cache} cannot be written: set TORCH_HOME, or put them into {PRETRAINED_DIR}/"
        missing += [f"the {name} are missing, and {way}" for name in absent if not is_writable]
        ended = point.nothing_left(run.options.training.total_iter) if point else ""
        notes = (*downloads, *warned, *run.notes, *scarce_shared_memory(run, batch), *filter(None, [ended]))
        lines = [summary(run, batch, source, loaded, seconds, losses), *(f"  note:   {note}" for note in notes)]
        print("\n".join(lines), flush=True)
    # After the summary, whose losses show which term is not finite.
    broken = [name for name, value in losses.items() if not math.isfinite(value)]
    if broken:
        missing.append(f"{', '.join(broken)} not finite: lower the learning rate or the loss weights")
    if missing:
        raise UserError("\n".join(missing))


def first_batch(opt: dict[str, Any], missing: list[str]) -> tuple[Batch, str, str]:
    """Return a batch of the run's own data if it exists, otherwise of random images; what it is, and how it loaded.

    Problems of existing data are added to ``missing``, or raised where no random batch can be made for its type.
    """
    data, scale = opt["datasets"]["train"], opt["scale"]
    if not missing:
        try:
            stream = TrainStream(opt)
            refuse_turned(stream.dataset, scale)
            start = time.perf_counter()
            batch = next(stream.batches(0))
            seconds = time.perf_counter() - start
            source = f"pairs of the set's {len(stream.dataset):,}"
            return batch, source, f", one batch loaded in {seconds:.2f} s by one process"
        except UserError as error:
            missing.append(str(error))
    # The format of its batches is unknown.
    if data["type"] not in DATASETS:
        raise UserError(missing.pop())
    channels = opt["network_g"].get("num_in_ch", opt["network_g"].get("in_chans", 3))
    shape, size = (batch_size(opt), channels), data["gt_size"]
    lq, gt = torch.rand(*shape, size // scale, size // scale), torch.rand(*shape, size, size)
    return {"lq": lq, "gt": gt}, "random pairs", ""


def scarce_shared_memory(run: RunOptions, batch: Batch) -> Iterator[str]:
    """Yield what to do if the workers' batches do not fit into /dev/shm, which has 64 MB in a container of Docker."""
    workers = run.options.datasets["train"].num_worker_per_gpu or 0
    size = sum(value.numel() * value.element_size() for value in batch.values() if isinstance(value, torch.Tensor))
    needed = 2 * workers * size  # each prepares two
    if needed and Path("/dev/shm").is_dir() and (free := shutil.disk_usage("/dev/shm").free) < needed:
        yield (
            f"/dev/shm has {free / 1e6:,.0f} MB free, the batches of {workers} workers take {needed / 1e6:,.0f}: "
            "docker run --shm-size=8g, or lower num_worker_per_gpu (0 needs none)"
        )


def batch_size(opt: dict[str, Any]) -> int:
    """Return the pairs per step of this process: those of all GPUs under DataParallel, as in BasicSR."""
    return batch_size_per_gpu(opt) * (1 if opt["dist"] else max(1, opt["num_gpu"]))


def try_step(
    run: RunOptions, opt: dict[str, Any], batch: Batch, state: dict[str, Any] | None
) -> tuple[float, dict[str, float]]:
    """Build the model, train on a batch and validate a corner of each set, in memory only; a failure is a UserError.

    ``opt`` has the networks to start from, ``state`` is what the run resumes from, if it does. Returns the median
    seconds of three steps after the first, which also allocates memory and selects kernels (of the first alone if it
    takes more than 20 s), and the last losses.
    """
    train = run.options.training
    # The first one that also updates the generator, which costs the most.
    iteration = (train.net_d_init_iters // train.net_d_iters + 1) * train.net_d_iters
    seconds: list[float] = []
    with first_step_is_user_error(batch), out_of_memory_is_user_error(run):
        model = build_run_model(opt)
        refuse_other_patches(model, opt)
        on_rank_0(lambda: require_room(run, model))
        if state is not None:
            restore(run, model, state)
        for _ in range(4):
            start = time.perf_counter()
            model.feed_data(batch)
            model.optimize_parameters(iteration)
            # Kernels run asynchronously: without this, only their launch would be timed.
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            # One slow step tells enough; several processes must take equally many.
            if seconds[0] > 20 and not run.dist:
                break
        losses = current_losses(model)
        if opt.get("val"):
            loaders = evaluation_loaders(opt, "val")
            refuse_small_images(opt, loaders)
            for loader in loaders:
                validate(model, DataLoader(FirstCorner(loader.dataset, opt["scale"])), 0, None, save_img=False)
    return statistics.median(seconds[1:] or seconds), losses


class FirstCorner(Dataset):
    """The first sample of a data set, cropped: large enough for every metric, with odd sides, on which some fail."""

    def __init__(self, dataset: Any, scale: int) -> None:
        self.dataset, self.scale, self.opt = dataset, scale, dataset.opt
        self.paths = paths_of(dataset)[:1]

    def __len__(self) -> int:
        return 1

    # Read here, within the validation, which names an image that cannot be read.
    def __getitem__(self, index: int) -> Batch:
        sample = dict(self.dataset[index])
        for key, scale in (("lq", 1), ("gt", self.scale)):
            if key in sample:
                sample[key] = sample[key][..., : 121 * scale, : 127 * scale]
        return sample


def summary(run: RunOptions, batch: Batch, source: str, loaded: str, seconds: float, losses: dict[str, float]) -> str:
    """Format the trial and the estimate in a few lines."""
    # Some models create the LQ themselves.
    name = "lq" if "lq" in batch else "gt"
    pairs, processes, total = len(batch[name]), run.world_size, run.options.training.total_iter
    all_pairs = pairs * processes
    each = f"{pairs} on each of {processes} {'processes' if processes > 1 else 'process'}"
    relation = "" if all_pairs == PAPER_BATCH else f", the paper's is {PAPER_BATCH}"
    shape = " x ".join(map(str, batch[name].shape))
    return "\n".join(
        [
            f"{run.options.name}: one step of {run.options.model_type} on {pairs} {source} ({name} {shape}){loaded}",
            f"  losses: {', '.join(f'{name} {value:.4g}' for name, value in losses.items())}",
            f"  time:   {seconds:.3g} s per iteration, {duration(seconds * total)} for {total} iterations, "
            "without validation",
            f"  memory: {memory(run)}",
            f"  batch:  {all_pairs} ({each}{relation}), {all_pairs / seconds:.3g} pairs per second",
        ]
    )


def memory(run: RunOptions) -> str:
    """Return the peak memory of this process, on the GPU or in RAM."""
    if run.num_gpu and torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB peak on the GPU"
    try:
        import resource
    except ImportError:  # Windows
        return "not measured on this system"
    # Bytes on macOS, KiB on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"{peak / 2**30:.2f} GiB peak, with {torch.get_num_threads()} thread(s)"


def duration(seconds: float) -> str:
    """Format seconds in a readable unit."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
