"""``train.py --check``: try one step without writing anything, and estimate the cost of the run."""

from __future__ import annotations

import logging
import math
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from dp_basicsr.archs.any_network_arch import TIMM
from dp_basicsr.archs.pretrained import PRETRAINED_DIR, weights_url
from dp_basicsr.checkpoint.resume import require_networks
from dp_basicsr.data.datasets import evaluation_loaders
from dp_basicsr.data.stream import Batch, TrainStream, batch_size_per_gpu
from dp_basicsr.errors import UserError, first_line, message_for_user
from dp_basicsr.losses.dual_perceptual_loss import imagenet_networks, with_random_weights
from dp_basicsr.metrics import refuse_small_images
from dp_basicsr.options.metrics import needs_network
from dp_basicsr.options.run import RunOptions
from dp_basicsr.options.schema import DATASETS
from dp_basicsr.runs.limits import out_of_memory_is_user_error
from dp_basicsr.runs.log import PAPER_BATCH, current_losses, require_loggers

import torch
from basicsr.models import build_model
from basicsr.utils import get_root_logger
from torch.utils.data import DataLoader, Dataset


def check(run: RunOptions) -> None:
    """Try one step of a run with valid options, and print the estimated cost.

    Args:
        run: Options of the run.

    Raises:
        UserError: The model cannot be built or trained, or files are missing. If files are missing, the step is tried
            on random images (weights), so that a run can be planned before its data exists.
    """
    opt, missing = run.as_dict(), list(run.missing)
    require_loggers(opt)
    trial = trial_options(opt, without_files=bool(missing))
    if not missing:
        require_networks(trial)
    with quiet_log():
        batch, source, loading = first_batch(trial, missing)
        try:
            seconds, losses = try_step(run, trial, batch)
        except UserError as error:
            raise UserError("\n".join([*missing, str(error)])) from error
    notes = [f"  note:   {note}" for note in run.notes]
    if opt["rank"] == 0:
        print("\n".join([summary(opt, batch, source, loading, seconds, losses), *downloads(opt), *notes]), flush=True)
    # After the summary, whose losses show which term is not finite.
    broken = [name for name, value in losses.items() if not math.isfinite(value)]
    if broken:
        missing.append(f"{', '.join(broken)} not finite: lower the learning rate or the loss weights")
    if missing:
        raise UserError("\n".join(missing))


@contextmanager
def quiet_log() -> Iterator[None]:
    """Suppress the network listings and warnings, which belong in a run's log."""
    logger = get_root_logger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def trial_options(opt: dict[str, Any], without_files: bool) -> dict[str, Any]:
    """Copy the options for the trial: no worker processes, no downloads, and no files that may be missing."""
    trial = deepcopy(opt)
    trial["datasets"]["train"] |= {"num_worker_per_gpu": 0, "persistent_workers": False, "prefetch_mode": None}
    loss = trial["train"].get("perceptual_opt") or {}
    if loss.get("type") == "DPLoss":
        # The cost does not depend on the weights, which may have to be downloaded.
        trial["train"]["perceptual_opt"] = with_random_weights(loss)
    if without_files:
        for key in ("pretrain_network_g", "pretrain_network_d", "resume_state"):
            trial["path"][key] = None
    return trial


def first_batch(opt: dict[str, Any], missing: list[str]) -> tuple[Batch, str, float]:
    """Return a batch of the run's own data if it exists, otherwise of random images.

    Returns:
        The batch, its description, and the seconds to load it (0 for random images). Problems of existing data are
        added to ``missing``.

    Raises:
        UserError: Data is missing or wrong, and random batches cannot be made for this type of dataset.
    """
    if not missing:
        try:
            stream = TrainStream(opt)
            start = time.perf_counter()
            batch = next(stream.batches(0))
            return batch, "pairs of the data", time.perf_counter() - start
        except UserError as error:
            missing.append(str(error))
    # The format of its batches is unknown.
    if opt["datasets"]["train"]["type"] not in DATASETS:
        raise UserError("\n".join(missing))
    data, scale = opt["datasets"]["train"], opt["scale"]
    channels, size = opt["network_g"].get("num_in_ch", 3), data["gt_size"]
    shape = (batch_size(opt), channels)
    lq, gt = torch.rand(*shape, size // scale, size // scale), torch.rand(*shape, size, size)
    return {"lq": lq, "gt": gt}, "random pairs", 0.0


def batch_size(opt: dict[str, Any]) -> int:
    """Return the pairs per step of this process: those of all GPUs under DataParallel, as in BasicSR."""
    return batch_size_per_gpu(opt) * (1 if opt["dist"] else max(1, opt["num_gpu"]))


def try_step(run: RunOptions, opt: dict[str, Any], batch: Batch) -> tuple[float, dict[str, float]]:
    """Build the model, train on a batch and validate a corner of each set, in memory only.

    Returns:
        Median seconds of three steps after the first, which also allocates memory and selects kernels; last losses.

    Raises:
        UserError: The step failed; the message is one line.
    """
    train = opt["train"]
    every, first = train["net_d_iters"], train["net_d_init_iters"]
    # The first one that also updates the generator, which costs the most.
    iteration = (first // every + 1) * every
    seconds: list[float] = []
    try:
        with out_of_memory_is_user_error(run):
            model = build_model(opt)
            for _ in range(4):
                start = time.perf_counter()
                model.feed_data(batch)
                model.optimize_parameters(iteration)
                # Kernels run asynchronously: without this, only their launch would be timed.
                if model.device.type == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
            losses = current_losses(model)
            try_validation(opt, model)
            # The first step also allocates memory and selects kernels.
            return statistics.median(seconds[1:]), losses
    except UserError:
        raise
    # Classes may raise anything on impossible values.
    except Exception as error:
        reason = message_for_user(error) or f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"the step failed: {reason}") from error


def try_validation(opt: dict[str, Any], model: Any) -> None:
    """Validate a corner of the first image of each set, so that a run does not fail at its first validation.

    Raises:
        UserError: A set cannot be read or validated.
    """
    if not opt.get("val"):
        return
    loaders = evaluation_loaders(opt, "val")
    refuse_small_images(opt, loaders)
    metrics = opt["val"].get("metrics") or {}
    # A metric with a network may need a download.
    opt["val"]["metrics"] = {name: entry for name, entry in metrics.items() if not needs_network(entry["type"])}
    for loader in loaders:
        model.validation(DataLoader(FirstCorner(loader.dataset, opt["scale"])), 0, None, save_img=False)


class FirstCorner(Dataset):
    """The first sample of a dataset, cropped to ``CORNER``: LR pixels, odd and large enough for every metric."""

    # Odd, because a network or a metric that fails on odd sides would fail at the first validation.
    CORNER = (121, 127)

    def __init__(self, dataset: Any, scale: int) -> None:
        self.dataset, self.scale, self.opt = dataset, scale, dataset.opt
        self.paths = list(getattr(dataset, "paths", []))[:1]

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Batch:
        """Return the sample; ``lq`` and ``gt`` are (C, H, W) as in the dataset."""
        sample = dict(self.dataset[index])
        for key, scale in (("lq", 1), ("gt", self.scale)):
            if key in sample:
                height, width = (scale * side for side in self.CORNER)
                sample[key] = sample[key][..., :height, :width]
        return sample


def summary(
    opt: dict[str, Any], batch: Batch, source: str, loading: float, seconds: float, losses: dict[str, float]
) -> str:
    """Format the trial and the estimate in a few lines."""
    # Some models create the LQ themselves.
    name = "lq" if "lq" in batch else "gt"
    pairs, processes, total = len(batch[name]), int(opt["world_size"]), opt["train"]["total_iter"]
    all_pairs = pairs * processes
    data = f", one batch loaded in {loading:.2f} s by one process" if loading else ""
    relation = "" if all_pairs == PAPER_BATCH else f", the paper's is {PAPER_BATCH}"
    shape = " x ".join(map(str, batch[name].shape))
    return "\n".join(
        [
            f"{opt['name']}: one step of {opt['model_type']} on {pairs} {source} ({name} {shape}){data}",
            f"  losses: {', '.join(f'{name} {value:.4g}' for name, value in losses.items())}",
            f"  time:   {seconds:.3g} s per iteration, {duration(seconds * total)} for {total} iterations, "
            "without validation",
            f"  memory: {memory(opt)}",
            f"  batch:  {all_pairs} ({pairs} on each of {processes} process{'es' if processes > 1 else ''}{relation}), "
            f"{all_pairs / seconds:.3g} pairs per second",
        ]
    )


def memory(opt: dict[str, Any]) -> str:
    """Return the peak memory of this process, on the GPU or in RAM."""
    if opt["num_gpu"] and torch.cuda.is_available():
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


def downloads(opt: dict[str, Any]) -> list[str]:
    """List the ImageNet weights that the run would download at its start."""
    loss = opt["train"].get("perceptual_opt") or {}
    networks = imagenet_networks(loss) if loss.get("type") == "DPLoss" else []
    missing = [network for network in networks if not _is_here(network)]
    text = "  note:   the ImageNet weights of {} are missing: the run will download them first"
    return [text.format(network) for network in missing]


def _is_here(network: str) -> bool:
    # timm has a cache of its own, in which a download is not repeated.
    if network.startswith(TIMM):
        return False
    name = weights_url(network).rsplit("/", 1)[1]
    return any((folder / name).is_file() for folder in (PRETRAINED_DIR, Path(torch.hub.get_dir()) / "checkpoints"))
