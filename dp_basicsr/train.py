"""Train a model from an option file: ``python dp_basicsr/train.py -opt options/train_esrgan_dp.yml``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if not __package__:  # run as a file: this folder's names (data, losses ...) must not be top-level modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dp_basicsr.archs
import dp_basicsr.losses
import dp_basicsr.models  # noqa: F401  (the three register their members)
from dp_basicsr.checkpoint.resume import find_resume_state, require_networks, resume_warnings
from dp_basicsr.data.stream import TrainStream, evaluation_loaders, require_training_data
from dp_basicsr.distributed.collectives import on_rank_0
from dp_basicsr.distributed.launch import beat, in_group, mark_experiment
from dp_basicsr.errors import UserError, exit_on_user_error
from dp_basicsr.metrics import drop_unavailable
from dp_basicsr.options import parse_options
from dp_basicsr.training.dry_run import check
from dp_basicsr.training.malloc import keep_freed_memory
from dp_basicsr.training.out_of_memory import out_of_memory_is_user_error
from dp_basicsr.training.progress import (
    close_tensorboard,
    describe_batch,
    open_tensorboard,
    progress_bar,
    show_losses,
    start_log,
    write_log,
)
from dp_basicsr.training.random_state import same_random_state_after, set_determinism
from dp_basicsr.training.run_lock import run_lock
from dp_basicsr.training.signals import Interruption
from dp_basicsr.utils.atomic_io import await_archive_name, first_line, no_room_is_user_error, remove_partial_files

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
        UserError: Missing data, weights or states, or a full disk; what to do is in the message.
        SystemExit: A signal stopped the run: :data:`~dp_basicsr.errors.EXIT_RETRY`.
    """
    set_determinism(opt.get("deterministic", False))
    if opt["num_gpu"] == 0:
        keep_freed_memory()
    require_training_data(opt)
    require_networks(opt)
    intact = "; saved checkpoints are intact: continue with --auto_resume"
    with run_lock(opt["path"]["experiments_root"]), out_of_memory_is_user_error(opt, intact):
        held_log = start_log(opt)
        state = find_resume_state(opt)
        drop_unavailable(opt)
        stream = TrainStream(opt, origin=state and state.get("position"))
        val_loaders = evaluation_loaders(opt, "val") if opt.get("val") else []
        model = build_model(opt)
        if state is not None:
            resume(opt, model, stream, state)
        # Only what has started so far may write: an earlier run of this name is moved aside here.
        on_rank_0(lambda: make_folders(opt, option_file, resuming=state is not None))
        write_log(opt, "train", held_log)
        tb_logger = open_tensorboard(opt, resuming=state is not None)
        try:
            with no_room_is_user_error(), Interruption(opt["dist"]) as interruption:
                model.interrupted = interruption.noted  # for a validation, which may stop between two images
                loop(Run(opt, model, stream, val_loaders, tb_logger, interruption, state["iter"] if state else 0))
        finally:
            close_tensorboard(tb_logger)


def resume(opt: dict[str, Any], model: Any, stream: TrainStream, state: dict[str, Any]) -> None:
    """Take the state up, and say what will not be as in a run that never stopped.

    Raises:
        UserError: The state is of another model.
    """
    logger, iteration = get_root_logger(), state["iter"]
    try:
        model.resume_training(state)
    except Exception as error:  # what another model's state makes of that is of any kind
        raise UserError(
            f"the state of iteration {iteration} does not fit these options ({first_line(error)}): go on with those it "
            "was made with, or start anew without --auto_resume"
        ) from error
    logger.info(f"Resuming training from epoch: {stream.epoch_of(iteration)}, iter: {iteration}.")
    for reason in resume_warnings(opt, state, stream.position(iteration)):
        logger.warning(f"Not the bits of a run that never stopped: {reason}.")


def make_folders(opt: dict[str, Any], option_file: str, resuming: bool) -> None:
    """Make the experiment's folders (an earlier one of a new run's name is renamed), with the option file."""
    try:
        if not resuming:
            await_archive_name(opt["path"]["experiments_root"])
            make_exp_dirs(opt)
        for folder in ("models", "training_states", "visualization"):
            os.makedirs(opt["path"][folder], exist_ok=True)
            remove_partial_files(opt["path"][folder])
        copy_opt_file(option_file, opt["path"]["experiments_root"])
        mark_experiment(opt["path"]["experiments_root"])
    except OSError as error:
        raise UserError(f"cannot make {opt['path']['experiments_root']}: {error}") from error


@dataclass
class Run:
    """What the loop works with, and the three things that it does besides a step."""

    opt: dict[str, Any]
    model: Any
    stream: TrainStream
    val_loaders: Sequence[DataLoader]
    tb_logger: Any
    interruption: Interruption
    iteration: int  # the last one that is done

    def save(self) -> None:
        """Save a checkpoint, after the figures up to here, so that a run which goes on from it misses none.

        None is made where our model's steps have ceased to be finite: its weights may be past saving.
        """
        guard = getattr(self.model, "guard", None)
        if guard is not None and not guard.is_sound():
            get_root_logger().warning(f"Iteration {self.iteration} is not saved: its step was not finite.")
            return
        if self.tb_logger:
            self.tb_logger.flush()
        get_root_logger().info("Saving models and training states.")
        epoch = self.stream.epoch_of(self.iteration - 1)
        self.model.position = self.stream.position(self.iteration)
        self.model.save(epoch, self.iteration)  # BasicSR's models, which may train here too, take no more

    def validate(self) -> None:
        """Validate on all sets, unless a signal comes: then a run that goes on from here does it anew."""
        with same_random_state_after():
            for loader in self.val_loaders:
                self.model.validation(loader, self.iteration, self.tb_logger, self.opt["val"]["save_img"])
        if self.interruption.agreed(now=True):
            self.leave()
        if self.opt["logger"].get("keep_best", False):
            self.model.save_best(self.iteration)

    def leave(self) -> None:
        """End the program, with a checkpoint of where it is."""
        self.save()
        self.interruption.leave(self.iteration)


def loop(run: Run) -> None:
    """Train from just after ``run.iteration`` until ``train: total_iter``, logging, saving, validating on the way."""
    opt, model, every, total_iter = run.opt, run.model, run.opt["logger"], int(run.opt["train"]["total_iter"])
    val_freq = opt["val"]["val_freq"] if opt.get("val") else 0
    log_line = MessageLogger(opt, run.iteration + 1, run.tb_logger)
    log_line.max_iters = total_iter + 1  # its ETA counts one iteration too few, and ends below zero
    data_timer, iter_timer = AvgTimer(), AvgTimer()
    logger = get_root_logger()
    logger.info(describe_batch(opt, run.stream.batch_size))
    logger.info(f"Start training from epoch: {run.stream.epoch_of(run.iteration)}, iter: {run.iteration}")
    if run.iteration and val_freq and run.iteration % val_freq == 0:
        run.validate()  # its checkpoint is from before: whether it was validated then is not known

    with progress_bar(opt, run.iteration) as bar:
        batches = run.stream.batches(run.iteration)
        while run.iteration < total_iter:
            data_timer.start()
            batch = next(batches)
            data_timer.record()
            epoch = run.stream.epoch_of(run.iteration)
            run.iteration += 1
            beat(run.iteration)
            model.update_learning_rate(run.iteration, warmup_iter=opt["train"].get("warmup_iter", -1))
            model.feed_data(batch)
            model.optimize_parameters(run.iteration)
            iter_timer.record()
            bar.update()
            if run.iteration % every["print_freq"] == 0:
                times = {"time": iter_timer.get_avg_time(), "data_time": data_timer.get_avg_time()}
                losses = model.get_current_log()
                show_losses(bar, losses, times["data_time"] / times["time"])
                times["img_per_s"] = run.stream.batch_size / times["time"]
                line = {"epoch": epoch, "iter": run.iteration, "lrs": model.get_current_learning_rate()}
                log_line(line | times | losses)
            if run.iteration % every["save_checkpoint_freq"] == 0:
                run.save()
            if run.interruption.agreed():
                run.leave()
            if val_freq and run.iteration % val_freq == 0:
                run.validate()
                iter_timer.start()  # validation is not a part of the time per iteration

    logger.info(f"End of training, {total_iter} iterations. Save the latest model.")
    model.save(epoch=-1, current_iter=-1)  # BasicSR's name for net_g_latest.pth
    if val_freq and run.iteration % val_freq != 0:
        run.validate()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: see ``--help``."""
    with exit_on_user_error(), in_group():
        try:
            opt, option_file = parse_options(__doc__, argv, is_train=True)
            if opt["check"] is not None:
                check(opt)
            else:
                train(opt, option_file)
        except KeyboardInterrupt:
            print("interrupted; --auto_resume goes on from the last saved state", file=sys.stderr)
            raise SystemExit(130) from None


if __name__ == "__main__":
    main()
