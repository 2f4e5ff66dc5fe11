"""The training loop: train, log, save and validate."""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from threading import Timer
from typing import Any

from dp_basicsr.archs.open_network import open_network
from dp_basicsr.checkpoint.weights import read_weights
from dp_basicsr.data.stream import Batch, TrainStream
from dp_basicsr.distributed.collectives import all_gather
from dp_basicsr.distributed.failure import is_loss_of_another
from dp_basicsr.errors import UserError, first_line, is_out_of_memory, message_of_others
from dp_basicsr.models.validation import validate
from dp_basicsr.options import USED_OPTIONS
from dp_basicsr.options.run import RunOptions
from dp_basicsr.runs.judging import Figures, Judge
from dp_basicsr.runs.limits import first_step_is_user_error
from dp_basicsr.runs.log import IterationLog, current_losses, describe_batch, progress_bar
from dp_basicsr.utils.arguments import advise
from dp_basicsr.utils.random_state import random_state, same_random_state_after, set_random_state
from dp_basicsr.utils.signals import Interruption, Woken, resume_advice

from basicsr.utils import AvgTimer, get_root_logger
from torch.utils.data import DataLoader


@dataclass
class Training:
    """State of the loop, and its actions besides a step: save, validate, leave."""

    run: RunOptions
    model: Any
    stream: TrainStream
    val_loaders: Sequence[DataLoader]
    judge: Judge | None
    iteration: int  # the last completed one

    tb_logger: Any = field(init=False)  # the last two are opened when nothing can be refused any more
    interruption: Interruption = field(init=False)

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        # BasicSR's models, and those of other packages, have none of the three.
        self.guard: Any = getattr(getattr(self.model, "step", None), "guard", None)
        self.validator: Any = getattr(self.model, "validator", None)
        self.saver: Any = getattr(self.model, "saver", None)
        self.is_intact = True  # as after the last completed iteration
        self._note_saved(self.iteration or None)

    def _note_saved(self, iteration: int | None) -> None:
        self.saved = iteration  # the last one with a checkpoint
        if self.guard is not None:
            # Its message on too many non-finite steps names the checkpoint to go back to.
            self.guard.saved = iteration

    def batches(self) -> Iterator[Batch]:
        """Yield the batches that are left.

        Several processes read two ahead: where an image ends the run (UserError), all then stop after the same step.
        One among the first three, before any step, ends them as other errors do.
        """
        left = islice(self.stream.batches(self.iteration), self.run.options.training.total_iter - self.iteration)
        ahead: deque[Batch] = deque()
        while True:
            text = "no images for 60 s: a loader's worker, or their disk, is slow or stuck; Ctrl-C "
            text += f"twice ends the run at once: {resume_advice(self.saved)}" if self.run.dist else "saves and ends"
            # As an error, because BasicSR silences lower levels on ranks other than 0.
            waiting = Timer(60, get_root_logger().error, [text])
            waiting.start()
            try:
                # One process has no collective to complete, and a worker that hangs would be awaited for ever.
                self.interruption.ends_wait = not self.run.dist
                # A signal may have come before the wait, too.
                if self.interruption.error is None and (self.run.dist or not self.interruption.received()):
                    ahead.extend(islice(left, 1 + 2 * self.run.dist - len(ahead)))
            except Woken:
                pass
            except UserError as error:
                self.interruption.error = error
            finally:
                self.interruption.ends_wait = False
                waiting.cancel()
            if not ahead:
                if self.interruption.error is not None:
                    raise self.interruption.error
                if not self.run.dist and self.interruption.all_agree():
                    # The exit would wait for a worker that hangs, and torch takes one that is killed for an error.
                    if hasattr(signal, "SIGCHLD"):
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for worker in multiprocessing.active_children():
                        worker.kill()
                    self.leave()
                return
            yield ahead.popleft()

    @contextmanager
    def undoing(self) -> Iterator[None]:
        """Undo a step that raises before it changes weights, so that the one before it can be saved."""
        # The next step takes its rates from the schedulers.
        random, schedules = random_state(), deepcopy([scheduler.state_dict() for scheduler in self.model.schedulers])
        try:
            yield
        except Exception:
            # As in the step: what is undone must not hide the error.
            with suppress(Exception):
                set_random_state(random)
                for scheduler, values in zip(self.model.schedulers, schedules, strict=True):
                    scheduler.load_state_dict(values)
                # BasicSR's models and those of other packages do not tell.
                self.is_intact |= getattr(getattr(self.model, "step", None), "is_undone", False)
            raise

    @contextmanager
    def saving_first(self, together: bool = False) -> Iterator[None]:
        """Save before a UserError, or what others' code raises, ends the run, and add to its message how to continue.

        With several processes only if they raise ``together``, because one cannot save alone.
        """
        try:
            yield
        except Exception as error:
            if (is_out_of_memory(error) and not isinstance(error, UserError)) or is_loss_of_another(error):
                raise
            message = str(error) if isinstance(error, UserError) else message_of_others(error)
            if message is None:
                raise
            if self.iteration and self.is_intact and (together or not self.run.dist):
                try:
                    self.save()
                # A full disk, or a GPU that answers no more.
                except Exception as failed:
                    get_root_logger().error(f"Iteration {self.iteration} is not saved: {first_line(failed)}")
            raise UserError(self._with_advice(message)) from error

    def _with_advice(self, message: str) -> str:
        if self.saved is None or "--auto_resume" in message:
            return message
        return f"{message}; iteration {self.saved} is saved: continue with --auto_resume"

    def save(self) -> None:
        """Save a checkpoint, unless the step was not finite, because the weights may be corrupt.

        TensorBoard's figures are flushed first, so that none are missing when a run resumes here.
        """
        if self.guard is not None and not self.guard.last_step_applied():
            get_root_logger().warning(f"Iteration {self.iteration} is not saved: its step was not finite.")
            return
        if self.tb_logger:
            self.tb_logger.flush()
        get_root_logger().info("Saving models and training states.")
        # Of the last step, not of the next, which may begin another epoch.
        epoch = self.stream.epoch_of(self.iteration - 1)
        if self.saver is not None:
            # The position makes a resumed epoch continue with the samples that it has not seen.
            self.saver.save(epoch, self.iteration, self.stream.position(self.iteration))
        else:
            self.model.save(epoch, self.iteration)
        self._note_saved(self.iteration)

    def save_latest(self) -> None:
        """Save the networks as BasicSR's ``net_g_latest``; a UserError if the last steps, or all, were not finite."""
        if self.guard is not None and not self.guard.last_step_applied():
            # One skipped step left the weights of the step before it, unless there was none.
            if self.guard.in_a_row > 1 or self.iteration == 1:
                text = f"the last {self.guard.in_a_row} step(s) were not finite: net_g_latest is not saved"
                raise UserError(f"{text}; {self.guard.advice()}")
            get_root_logger().warning("The last step was not finite and is not part of net_g_latest.")
        # BasicSR's way to ask for the name `latest`.
        self.model.save(epoch=-1, current_iter=-1)

    def validate(self, is_start: bool = False) -> None:
        """Validate on all sets. A signal interrupts it; the resumed run repeats it.

        With ``is_start`` it is the baseline of the start weights, which counts neither for ``patience`` nor as best.
        """
        assert self.run.options.val is not None
        figures: Figures = {}
        if self.validator is not None:
            self.validator.is_start = is_start
        # For the curves: BasicSR's lines of a validation do not tell its iteration.
        get_root_logger().info(f"Validating, iter: {self.iteration}", extra={"for_file": True})
        # So that the training does not depend on how often it is validated.
        with self.saving_first(together=True), same_random_state_after():
            for loader in self.val_loaders:
                save_img = bool(self.run.options.val.save_img)
                complete = validate(self.model, loader, self.iteration, self.tb_logger, save_img)
                if self.validator is not None and complete:
                    figures[loader.dataset.opt["name"]] = dict(self.validator.results)  # type: ignore[attr-defined]
        # Before the results are used: an interrupted validation has none of some sets.
        if self.interruption.all_agree(now=True):
            self.leave()
        if self.judge is not None and is_start:
            self.judge.take_start(figures, self.validator.color_shifts)
        elif self.judge is not None:
            self.judge.judge(self.iteration, figures, self.validator.color_shifts)
        if self.run.options.logs.keep_best and self.saver is not None and not is_start:
            self.saver.save_best(self.iteration, self.validator.best)

    def is_over(self) -> bool:
        """Save and say so if the patience is used up."""
        if self.judge is None or not self.judge.is_over():
            return False
        names = [f"{name}/{metric} {entry['val']:.4f} @ {entry['iter']}: net_g_best_{name}_{metric}.pth"
                 for name, record in self.validator.best.items() for metric, entry in record.items()
                 if entry["iter"] > 0]  # fmt: skip
        self.save()
        get_root_logger().info(
            f"val: patience: no improvement in {self.judge.waited} validations, the training ends after iteration "
            f"{self.iteration}. Best: {', '.join(names) or 'none'}"
        )
        return True

    def leave(self) -> None:
        """Save a checkpoint and exit on all processes together, because torchrun stops the rest after the first."""
        if self.iteration:
            self.save()
        # Rank 0 may still be saving when the others get here.
        for error in filter(None, all_gather(self.interruption.error)):
            raise UserError(self._with_advice(str(error)))
        if self.saved is not None:
            program = sys.argv[0] if os.access(sys.argv[0], os.X_OK) else f"python {sys.argv[0]}"
            command = f"{program} {shlex.join(sys.argv[1:])}"
            self.say_what_is_next(self.saved, command if "--auto" in command else f"{command} --auto_resume")
        self.interruption.leave(self.iteration, self.saved)

    def say_what_is_next(self, name: int | str, command: str = "") -> None:
        """Log the path of the network, the time that this start took, and the next command (default: to upscale)."""
        network = os.path.relpath(self.run.folders.models / f"net_g_{name}.pth")
        took = timedelta(seconds=round(time.monotonic() - self.started))
        command = command or (how_to_upscale(self.model, Path(network)) if self.run.rank == 0 else "")
        get_root_logger().info(f"{network} after {took}; next: {command}")


def how_to_upscale(model: Any, network: Path) -> str:
    """Return the command: ``upscale``, or ``test`` for another package's generator that it cannot open."""
    net = getattr(model, "net_g", None)  # models of other packages may have other names
    package = type(model.get_bare_model(net)).__module__ if net is not None else "basicsr"
    ours = ("basicsr", "dp_basicsr")
    if package.partition(".")[0] not in ours:
        try:
            # As elsewhere, where its class is unknown; the name keeps a part that opens from being taken for it.
            notes = {"options": json.dumps({"network_g": {"type": package}})}
            open_network(replace(read_weights(network), path=Path(network.name), notes=notes))
        except Exception:  # of any type: it is another package's network
            images = "{name: images, type: SingleImageDataset, dataroot_lq: IMAGES, io_backend: {type: disk}}"
            entries = [f"path:pretrain_network_g={network}", f"datasets={{test: {images}}}", "val={save_img: true}"]
            # A test needs neither: their classes may be other packages', too, and a trial has milestones after its end.
            entries += ["train=~", "network_d=~"]
            entries += ["path:param_key_g=params_ema"] if hasattr(model, "net_g_ema") else []
            names = dict.fromkeys([package, type(model).__module__])
            imports = [word for name in names if name.split(".")[0] not in ours for word in ("--import", name)]
            return advise("test", [str(network.parents[1] / USED_OPTIONS), *imports, "--force_yml", *entries])
    return advise("upscale", ["-m", str(network), "-i", "IMAGES", "-o", "FOLDER"])


def loop(training: Training) -> None:
    """Train from ``training.iteration`` to ``train: total_iter``, with logging, checkpoints and validation."""
    run, model, stream, logger = training.run, training.model, training.stream, get_root_logger()
    options, every, val = run.options.training, run.options.logs, run.options.val
    # The checks require both of a training.
    assert every.save_checkpoint_freq is not None
    val_freq = (val.val_freq or 0) if val is not None else 0
    mini_batch = describe_batch(options, run.world_size, stream.batch_size, model)
    sizes = f"The training set has {len(stream.dataset):,} pairs, an epoch {stream.iters_per_epoch} iterations"
    logger.info(f"{mini_batch} {sizes}; a line here every {every.print_freq}.")
    logger.info(f"Start training from epoch: {stream.epoch_of(training.iteration)}, iter: {training.iteration}")
    if training.iteration and val_freq and training.iteration % val_freq == 0:
        # The checkpoint precedes its validation, which may be missing.
        training.validate()
    elif training.iteration == 0 and training.judge is not None and training.val_loaders:
        network, at_start = run.options.network_g, training.judge.val.at_start
        from_file = run.options.path.pretrain_network_g is not None or network.get("type") == "FromFile"
        if at_start or (at_start is None and from_file):
            logger.info("The baseline: validation of the start weights.")
            training.validate(is_start=True)

    data_timer, iter_timer = AvgTimer(), AvgTimer()
    with progress_bar(run, training.iteration) as bar:
        log_line = IterationLog(run, training.iteration, training.tb_logger, bar)
        batches, first = training.batches(), training.iteration + 1
        # Asked before the first step, too: a run that is resumed after its end does not go on.
        while training.iteration < options.total_iter and not training.is_over():
            data_timer.start()
            with training.saving_first():
                batch = next(batches)
            data_timer.record()
            epoch, iteration = stream.epoch_of(training.iteration), training.iteration + 1
            is_first = first_step_is_user_error(batch) if iteration == first else nullcontext()
            with training.saving_first(), training.undoing(), is_first:
                # BasicSR's order: the rate of an iteration is set before its step.
                model.update_learning_rate(iteration, warmup_iter=options.warmup_iter)
                model.feed_data(batch)
                training.is_intact = False
                model.optimize_parameters(iteration)
                training.is_intact = True
            training.iteration = iteration
            iter_timer.record()
            bar.update()
            if training.iteration % every.print_freq == 0:
                times = {"time": iter_timer.get_avg_time(), "data_time": data_timer.get_avg_time()}
                times["img_per_s"] = stream.batch_size / times["time"]
                log_line(epoch, training.iteration, model.get_current_learning_rate(), times | current_losses(model))
            # Before validation, which may take long: killed in it, the run repeats it and no step.
            if training.iteration % every.save_checkpoint_freq == 0:
                training.save()
            if training.interruption.all_agree():
                training.leave()
            if val_freq and training.iteration % val_freq == 0:
                training.validate()
                # Validation does not count as time per iteration.
                iter_timer.start()

    logger.info(f"End of training, {training.iteration} iterations. Save the latest model.")
    training.save_latest()
    if val_freq and training.iteration % val_freq != 0:
        training.validate()
    training.say_what_is_next("latest")
