"""Train a model from an option file: ``python dp_basicsr/train.py -opt options/train_esrgan_dp.yml``."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

if not __package__:  # run as a file: this folder's names (data, losses ...) must not be top-level modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Sequence
from typing import Any

import dp_basicsr.archs
import dp_basicsr.losses
import dp_basicsr.models  # noqa: F401  (the three register their members)
from dp_basicsr.checkpoint import find_resume_state, require_networks
from dp_basicsr.data.stream import TrainStream, evaluation_loaders, require_training_data
from dp_basicsr.errors import UserError, exit_on_user_error
from dp_basicsr.launch import beat, in_group, mark_experiment
from dp_basicsr.metrics import drop_unavailable
from dp_basicsr.options import parse_options
from dp_basicsr.progress import describe_batch, open_tensorboard, progress_bar, show_losses, start_log, write_log

import torch
from basicsr.models import build_model
from basicsr.utils import AvgTimer, MessageLogger, get_root_logger, make_exp_dirs
from basicsr.utils.options import copy_opt_file
from torch.utils.data import DataLoader


def train(opt: dict[str, Any], option_file: str) -> None:
    """Set a run up, or take one up where it stopped, and train to its end.

    Args:
        opt: Options, completed by :func:`~dp_basicsr.options.parse_options`.
        option_file: Where they come from; a copy is kept with the experiment.

    Raises:
        UserError: Missing data, weights or states; what to do is in the message.
    """
    torch.backends.cudnn.benchmark = True
    require_training_data(opt)
    require_networks(opt)
    state = find_resume_state(opt)
    held_log = start_log(opt)
    logger = get_root_logger()
    drop_unavailable(opt)
    stream = TrainStream(opt)
    val_loaders = evaluation_loaders(opt, "val") if opt.get("val") else []
    model = build_model(opt)
    iteration = 0
    if state is not None:
        model.resume_training(state)
        iteration = state["iter"]
        logger.info(f"Resuming training from epoch: {stream.epoch_of(iteration)}, iter: {iteration}.")
    # Only what has started so far may write: an earlier run of this name is moved aside here.
    make_folders(opt, option_file, resuming=state is not None)
    write_log(opt, "train", held_log)
    tb_logger = open_tensorboard(opt, resuming=state is not None)
    loop(opt, model, stream, val_loaders, tb_logger, iteration)
    if tb_logger:
        tb_logger.close()


def make_folders(opt: dict[str, Any], option_file: str, resuming: bool) -> None:
    """Make the experiment's folders (rank 0; an earlier one of a new run's name is renamed), with the option file."""
    if opt["rank"] != 0:
        return
    try:
        if not resuming:
            make_exp_dirs(opt)
        for folder in ("models", "training_states", "visualization"):
            os.makedirs(opt["path"][folder], exist_ok=True)
        copy_opt_file(option_file, opt["path"]["experiments_root"])
        mark_experiment(opt["path"]["experiments_root"])
    except OSError as error:
        raise UserError(f"cannot make {opt['path']['experiments_root']}: {error}") from error


def loop(
    opt: dict[str, Any],
    model: Any,
    stream: TrainStream,
    val_loaders: Sequence[DataLoader],
    tb_logger: Any,
    iteration: int,
) -> None:
    """Train from just after ``iteration`` until ``train: total_iter``, logging, saving and validating on the way."""
    every, total_iter = opt["logger"], int(opt["train"]["total_iter"])
    val_freq, save_img = (opt["val"]["val_freq"], opt["val"]["save_img"]) if opt.get("val") else (0, False)
    log_line = MessageLogger(opt, iteration + 1, tb_logger)
    log_line.max_iters = total_iter + 1  # its ETA counts one iteration too few, and ends below zero
    data_timer, iter_timer = AvgTimer(), AvgTimer()
    logger = get_root_logger()
    batch_size = opt["world_size"] * (stream.loader.batch_size or 1)
    logger.info(describe_batch(opt, batch_size))
    logger.info(f"Start training from epoch: {stream.epoch_of(iteration)}, iter: {iteration}")

    def validate() -> None:
        for loader in val_loaders:
            model.validation(loader, iteration, tb_logger, save_img)

    with progress_bar(opt, iteration) as bar:
        batches = stream.batches(iteration)
        while iteration < total_iter:
            data_timer.start()
            batch = next(batches)
            data_timer.record()
            epoch = stream.epoch_of(iteration)
            iteration += 1
            beat(iteration)
            model.update_learning_rate(iteration, warmup_iter=opt["train"].get("warmup_iter", -1))
            model.feed_data(batch)
            model.optimize_parameters(iteration)
            iter_timer.record()
            bar.update()
            if iteration % every["print_freq"] == 0:
                times = {"time": iter_timer.get_avg_time(), "data_time": data_timer.get_avg_time()}
                losses = finite(model.get_current_log(), iteration)
                show_losses(bar, losses, times["data_time"] / times["time"])
                times["img_per_s"] = batch_size / times["time"]
                log_line({"epoch": epoch, "iter": iteration, "lrs": model.get_current_learning_rate()} | times | losses)
            if iteration % every["save_checkpoint_freq"] == 0:
                finite(model.get_current_log(), iteration)
                logger.info("Saving models and training states.")
                model.save(epoch, iteration)
            if val_freq and iteration % val_freq == 0:
                validate()
                iter_timer.start()  # validation is not a part of the time per iteration

    logger.info(f"End of training, {total_iter} iterations. Save the latest model.")
    model.save(epoch=-1, current_iter=-1)  # BasicSR's name for net_g_latest.pth
    if val_freq and iteration % val_freq != 0:
        validate()


def finite(losses: dict[str, float], iteration: int) -> dict[str, float]:
    """Pass losses on; a UserError names those that are not finite, before they are saved or trained on for days."""
    broken = [name for name, value in losses.items() if not math.isfinite(value)]
    if broken:
        raise UserError(
            f"iteration {iteration}: {', '.join(broken)} not finite; go on from the last state (--auto_resume) with "
            "another learning rate or loss weight"
        )
    return losses


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: see ``--help``."""
    with exit_on_user_error(), in_group():
        try:
            train(*parse_options(__doc__, argv, is_train=True))
        except KeyboardInterrupt:
            print("interrupted; --auto_resume goes on from the last saved state", file=sys.stderr)
            raise SystemExit(130) from None


if __name__ == "__main__":
    main()
