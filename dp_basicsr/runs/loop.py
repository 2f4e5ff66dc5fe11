"""The training loop: train, log, save and validate."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from dp_basicsr.data.stream import TrainStream
from dp_basicsr.distributed.collectives import agree_on
from dp_basicsr.errors import UserError
from dp_basicsr.runs.judging import Figures, Judge
from dp_basicsr.runs.log import IterationLog, current_losses, describe_batch, progress_bar, show_losses
from dp_basicsr.utils.arguments import advise
from dp_basicsr.utils.random_state import same_random_state_after
from dp_basicsr.utils.signals import Interruption

from basicsr.utils import AvgTimer, get_root_logger
from torch.utils.data import DataLoader


@dataclass
class Run:
    """State of the loop, and its actions besides a step: save, validate, leave."""

    opt: dict[str, Any]
    model: Any
    stream: TrainStream
    val_loaders: Sequence[DataLoader]
    tb_logger: Any
    interruption: Interruption
    judge: Judge | None
    iteration: int  # the last completed one

    saved: int | None = None  # the last one with a checkpoint
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._note_saved(self.iteration or None)

    def _note_saved(self, iteration: int | None) -> None:
        self.saved = iteration
        if (guard := self._guard()) is not None:
            # The guard's message on too many non-finite steps names the checkpoint to go back to.
            guard.saved = iteration

    def _guard(self) -> Any:
        """Return the step guard of the project's own models; BasicSR's models have none."""
        return getattr(getattr(self.model, "step", None), "guard", None)

    def save(self) -> None:
        """Save a checkpoint, unless the step was not finite, because the weights may be corrupt.

        TensorBoard's figures are flushed first, so that none are missing when a run resumes here.
        """
        if (guard := self._guard()) is not None and not guard.last_step_applied():
            get_root_logger().warning(f"Iteration {self.iteration} is not saved: its step was not finite.")
            return
        if self.tb_logger:
            self.tb_logger.flush()
        get_root_logger().info("Saving models and training states.")
        # Of the last step, not of the next, which may begin another epoch.
        epoch = self.stream.epoch_of(self.iteration - 1)
        if saver := getattr(self.model, "saver", None):
            # The position makes a resumed epoch continue with the samples that it has not seen.
            saver.save(epoch, self.iteration, self.stream.position(self.iteration))
        else:  # BasicSR's models, and those of other packages
            self.model.save(epoch, self.iteration)
        self._note_saved(self.iteration)

    def save_latest(self) -> None:
        """Save the networks as BasicSR's ``net_g_latest``.

        Raises:
            UserError: The last steps, or all of them, were not finite, so the weights may be corrupt.
        """
        if (guard := self._guard()) is not None and not guard.last_step_applied():
            # One skipped step left the weights of the step before it, unless there was none.
            if guard.in_a_row > 1 or self.iteration == 1:
                raise UserError(
                    f"the last {guard.in_a_row} step(s) were not finite: net_g_latest is not saved; {guard.advice()}"
                )
            get_root_logger().warning("The last step was not finite and is not part of net_g_latest.")
        # BasicSR's way to ask for the name `latest`.
        self.model.save(epoch=-1, current_iter=-1)

    def validate(self, is_start: bool = False) -> None:
        """Validate on all sets. A signal interrupts it; the resumed run repeats it.

        Args:
            is_start: This is the baseline of the start weights, which counts neither for ``patience`` nor as best.
        """
        figures: Figures = {}
        validator: Any = getattr(self.model, "validator", None)
        if validator is not None:
            validator.is_start = is_start
        # So that the training does not depend on how often it is validated.
        with same_random_state_after():
            for loader in self.val_loaders:
                complete = self.model.validation(loader, self.iteration, self.tb_logger, self.opt["val"]["save_img"])
                if validator is not None and complete:
                    figures[loader.dataset.opt["name"]] = dict(validator.results)  # type: ignore[attr-defined]
        # Before the results are used: an interrupted validation has none of some sets.
        if self.interruption.all_agree(now=True):
            self.leave()
        if is_start and self.judge is not None:
            self.judge.take_start(figures, validator.color_shifts)
            return
        if self.judge is not None:
            self.judge.judge(self.iteration, figures, validator.color_shifts)
        if self.opt["logger"]["keep_best"]:
            self.model.saver.save_best(self.iteration, self.model.validator.best)

    def is_over(self) -> bool:
        """Save and say so if the patience is used up."""
        if self.judge is None or not self.judge.is_over():
            return False
        best = self.model.validator.best
        names = [f"{name}/{metric} {entry['val']:.4f} @ {entry['iter']}: net_g_best_{name}_{metric}.pth"
                 for name, record in best.items() for metric, entry in record.items() if entry["iter"] > 0]  # fmt: skip
        self.save()
        get_root_logger().info(
            f"val: patience: no improvement in {self.judge.waited} validations, the training ends after iteration "
            f"{self.iteration}. Best: {', '.join(names) or 'none'}"
        )
        return True

    def leave(self) -> None:
        """Save a checkpoint and exit on all processes together, because torchrun stops the rest after the first."""
        self.save()
        # Rank 0 may still be saving when the others get here.
        agree_on(None)
        if self.saved is not None:
            program = sys.argv[0] if os.access(sys.argv[0], os.X_OK) else f"python {sys.argv[0]}"
            command = f"{program} {shlex.join(sys.argv[1:])}"
            self.say_what_is_next(self.saved, command if "--auto" in command else f"{command} --auto_resume")
        self.interruption.leave(self.iteration, self.saved)

    def say_what_is_next(self, name: int | str, command: str) -> None:
        """Log the path of the network, the time that this start took, and the next command."""
        network = os.path.relpath(Path(self.opt["path"]["models"], f"net_g_{name}.pth"))
        took = timedelta(seconds=round(time.monotonic() - self.started))
        get_root_logger().info(f"{network} after {took}; next: {command}")


def starts_from_file(opt: dict[str, Any]) -> bool:
    """Whether the start weights are validated: as ``val: at_start`` says, or if they come from a file."""
    given = (opt.get("val") or {}).get("at_start")
    from_file = opt["path"].get("pretrain_network_g") is not None or opt["network_g"].get("type") == "FromFile"
    return from_file if given is None else bool(given)


def loop(run: Run) -> None:
    """Train from ``run.iteration`` to ``train: total_iter``, with logging, checkpoints and validation."""
    opt, model, every, total_iter = run.opt, run.model, run.opt["logger"], run.opt["train"]["total_iter"]
    val_freq = opt["val"]["val_freq"] if opt.get("val") else 0
    log_line = IterationLog(opt, run.iteration, run.tb_logger)
    data_timer, iter_timer = AvgTimer(), AvgTimer()
    logger = get_root_logger()
    logger.info(describe_batch(opt, run.stream.batch_size, model))
    logger.info(f"Start training from epoch: {run.stream.epoch_of(run.iteration)}, iter: {run.iteration}")
    if run.iteration and val_freq and run.iteration % val_freq == 0:
        # The checkpoint precedes its validation, which may be missing.
        run.validate()
    elif run.iteration == 0 and starts_from_file(opt) and run.judge is not None and run.val_loaders:
        logger.info("The baseline: validation of the start weights.")
        run.validate(is_start=True)

    with progress_bar(opt, run.iteration) as bar:
        batches = run.stream.batches(run.iteration)
        # Asked before the first step, too: a run that is resumed after its end does not go on.
        while run.iteration < total_iter and not run.is_over():
            data_timer.start()
            batch = next(batches)
            data_timer.record()
            epoch = run.stream.epoch_of(run.iteration)
            run.iteration += 1
            # BasicSR's order: the rate of an iteration is set before its step.
            model.update_learning_rate(run.iteration, warmup_iter=opt["train"]["warmup_iter"])
            model.feed_data(batch)
            model.optimize_parameters(run.iteration)
            iter_timer.record()
            bar.update()
            if run.iteration % every["print_freq"] == 0:
                times = {"time": iter_timer.get_avg_time(), "data_time": data_timer.get_avg_time()}
                losses = current_losses(model)
                show_losses(bar, losses, times["data_time"] / times["time"])
                times["img_per_s"] = run.stream.batch_size / times["time"]
                log_line(epoch, run.iteration, model.get_current_learning_rate(), times | losses)
            # Before validation, which may take long: killed in it, the run repeats it and no step.
            if run.iteration % every["save_checkpoint_freq"] == 0:
                run.save()
            if run.interruption.all_agree():
                run.leave()
            if val_freq and run.iteration % val_freq == 0:
                run.validate()
                # Validation does not count as time per iteration.
                iter_timer.start()

    logger.info(f"End of training, {run.iteration} iterations. Save the latest model.")
    run.save_latest()
    if val_freq and run.iteration % val_freq != 0:
        run.validate()
    network = os.path.relpath(Path(opt["path"]["models"], "net_g_latest.pth"))
    run.say_what_is_next("latest", advise("upscale", f"-m {network} -i IMAGES -o FOLDER"))
