"""A training run: check what it needs, start or resume, build the model, train."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dp_basicsr.checkpoint.history import finish_setting_aside, is_of, restore_best, set_aside_later
from dp_basicsr.checkpoint.resume import ResumePoint, find_resume_point, require_networks, resume_warnings
from dp_basicsr.checkpoint.schedule import resume_training
from dp_basicsr.data.datasets import evaluation_loaders
from dp_basicsr.data.preparation.check import refuse_turned
from dp_basicsr.data.stream import TrainStream
from dp_basicsr.distributed.collectives import on_rank_0
from dp_basicsr.distributed.launch import mark_experiment
from dp_basicsr.errors import UserError, code_behind, first_line, is_out_of_memory, readable
from dp_basicsr.metrics import drop_unavailable, refuse_small_images
from dp_basicsr.options import USED_OPTIONS
from dp_basicsr.options.run import RunOptions
from dp_basicsr.options.schema import DATASETS
from dp_basicsr.runs.changes import describe_changes
from dp_basicsr.runs.judging import Judge, Measured
from dp_basicsr.runs.limits import (
    build_run_model,
    defaults_of,
    keep_freed_memory,
    out_of_memory_is_user_error,
    raise_open_file_limit,
    require_compiler,
    require_room,
    shorten_socket_names,
)
from dp_basicsr.runs.log import require_loggers, start_log, start_wandb, tensorboard, write_log
from dp_basicsr.runs.loop import Training, loop
from dp_basicsr.utils.atomic_io import atomic_write, await_archive_name, no_room_is_user_error, remove_partial_files
from dp_basicsr.utils.console import outlive_terminal
from dp_basicsr.utils.file_lock import run_lock
from dp_basicsr.utils.network_size import input_size
from dp_basicsr.utils.random_state import set_determinism
from dp_basicsr.utils.signals import Interruption

import torch
from basicsr.utils import get_root_logger, mkdir_and_rename
from torch import Tensor

# What BasicSR and make_folders put before the option file that is kept with an experiment.
_HEAD = re.compile(r"\A# GENERATE TIME: .*\n# CMD:\n# .*\n\n")


def train(run: RunOptions, option_file: str) -> None:
    """Start or resume a run and train to its end; the option file is kept with the experiment.

    A signal stops the run with a SystemExit of ``EXIT_RETRY``.
    """
    root = run.folders.root
    # First of all, because cuBLAS reads its setting when a GPU is first used.
    set_determinism(run.options.deterministic)
    if run.num_gpu == 0:
        keep_freed_memory()
    raise_open_file_limit()
    shorten_socket_names()
    require_loggers(run)
    require_compiler(run)
    intact = "; saved checkpoints are intact: continue with --auto_resume"
    with run_lock(str(root)), out_of_memory_is_user_error(run, intact), outlive_terminal():
        held_log = start_log(run)
        # A list, read now: the file of the previous start is replaced below.
        changes = list(describe_changes(run.options, root))
        if run.auto_resume:
            on_rank_0(lambda: finish_setting_aside(root))
        point = find_resume_point(run.as_dict())
        if point is None:  # a resumed run has networks of its own: those that it began with may be gone
            require_networks(run.as_dict())
        training = build(run, point)
        on_rank_0(lambda: start_wandb(run))
        # Nothing is written before this point: an earlier run of this name is moved aside here.
        on_rank_0(lambda: make_folders(run, option_file, resuming=point is not None))
        write_log(run, "train", held_log)
        keep = 0
        if point is not None:
            keep_one_history(run, training.model, point)
            # A state of another run starts this one: its figures are not in this run's TensorBoard.
            keep = training.iteration if is_of(root, point.path) else 0
        with (
            tensorboard(run, resuming=point is not None, keep=keep) as training.tb_logger,
            no_room_is_user_error(),
            Interruption(run.dist) as training.interruption,
        ):
            if training.validator is not None:
                # Lets a validation stop between two images.
                training.validator.interrupted = training.interruption.received
            # Options of a start that trains nothing have made none of the networks, whose cards tell of them.
            if training.iteration < run.options.training.total_iter or not (root / USED_OPTIONS).exists():
                on_rank_0(lambda: atomic_write(root / USED_OPTIONS, lambda file: file.write(run.options.as_json())))
                for change in changes:
                    get_root_logger().info(change)
            # The last lines before the first iteration, where they are seen.
            for note in run.notes:
                get_root_logger().warning(note)
            loop(training)


def build(run: RunOptions, point: ResumePoint | None) -> Training:
    """Build data, model and judge, in the state of ``point``; writes nothing."""
    opt = run.as_dict() if point is None else point.options(run.as_dict())
    drop_unavailable(opt)
    stream = TrainStream(opt, origin=point.state.get("position") if point else None)
    refuse_turned(stream.dataset, opt["scale"])
    val_loaders = evaluation_loaders(opt, "val") if run.options.val else []
    refuse_small_images(opt, val_loaders)
    model = build_run_model(opt)
    refuse_other_patches(model, opt)
    # BasicSR's models have no saver, so a judge's state could not be resumed.
    judge = None
    if run.options.val is not None and hasattr(model, "saver"):
        losses = {name for name, loss in vars(model).items() if name.startswith("cri_") and loss}
        judge = Judge(run.options.val, losses == {"cri_pix"})
        measured = Measured(opt["val"].get("metrics") or {}, [loader.dataset for loader in val_loaders])
        # Before the state is restored, which includes the judge's.
        model.saver.others |= {"judge": judge, "measured": measured}
    logger, iteration = get_root_logger(), point.state["iter"] if point else 0
    if point is not None:
        restore(run, model, point.state)
        logger.info(f"Resuming training from epoch: {stream.epoch_of(iteration)}, iter: {iteration}.")
        for reason in resume_warnings(run.as_dict(), point.state, stream.position(iteration)):
            logger.warning(f"Resume is not bit-exact: {reason}.")
        if ended := point.nothing_left(run.options.training.total_iter):
            logger.warning(ended)
    if judge is not None:
        for name, metric in measured.changed():
            judge.forget(name, metric)
            if model.validator.best.get(name, {}).pop(metric, None):
                logger.warning(f"The best {metric} of {name} is forgotten: its images or settings have changed.")
    if iteration < run.options.training.total_iter:
        on_rank_0(lambda: require_room(run, model))
    return Training(run, model, stream, val_loaders, judge, iteration)


def refuse_other_patches(model: Any, opt: dict[str, Any]) -> None:
    """Refuse a patch that networks or losses do not take, a G that does not make ``scale`` of it, a D of several."""
    data, scale, net_g = opt["datasets"]["train"], opt["scale"], getattr(model, "net_g", None)
    gt_size, net_d = data.get("gt_size"), getattr(model, "net_d", None)
    if not gt_size or net_g is None:
        return
    # The steps of other packages may give their networks more than images; windows tell that a patch may not fit.
    is_usual = type(model).__module__.startswith(("basicsr.", "dp_basicsr."))
    is_usual &= data["type"] in (*DATASETS, "RealESRGANDataset")
    fitting, _ = input_size(model.get_bare_model(net_g)).fit(gt_size // scale, gt_size // scale)
    image = (1 if data.get("color") == "y" else 3,)
    parts: list[tuple[str, Any, int, Sequence[int]]] = []  # what is tried, on images of how many channels
    parts += [("network_g", net_g, scale, image)] if is_usual or fitting * scale != gt_size else []
    parts += [("network_d", net_d, 1, image)] if is_usual and net_d is not None else []
    terms = getattr(getattr(model, "cri_perceptual", None), "all_terms", {}) if is_usual else {}
    parts += [(f"perceptual_opt: {name}", term, 1, (3, 3)) for name, term in terms.items()]
    for key, net, factor, images in parts:
        trial = partial(_result_of, model.get_bare_model(net), images, model.device)
        result = trial(gt_size // factor)
        if isinstance(result, str):
            # The nearest that fits: nets with strides take multiples of them, others none but their own size.
            sizes = sorted(range(scale, 2 * gt_size, scale), key=lambda size: (abs(size - gt_size), -size))
            fits = (size for size in sizes if not isinstance(trial(size // factor), str))
            if (taken := next(fits, None)) is None:
                text = f"expected a forward that takes patches of some gt_size up to {2 * gt_size}, got {result}"
                raise UserError(f"{key}: {text}{defaults_of(opt[key]['type']) if key in opt else ''}")
            text = f"expected patches that {key} takes, such as {taken}, got {gt_size} ({result})"
            raise UserError(f"datasets: train: gt_size: {text}")
        if key.startswith("network_") and is_usual and not isinstance(result, Tensor):
            way = ": join them, torch.cat([part.flatten(1) for part in parts], 1)" if key == "network_d" else ""
            raise UserError(f"{key}: expected one tensor of its forward, got a {type(result).__name__}{way}")
        if key == "network_g" and is_usual and isinstance(result, Tensor) and result.shape[-1] != gt_size:
            times = result.shape[-1] / (gt_size // scale)
            text = f"expected a network that enlarges {scale} times, got one that enlarges {times:g} times"
            way = f"may not have this scale; SRVGGNetCompact has any (upscale: {scale})"
            raise UserError(f"network_g: {text}: {opt[key]['type']} {way}")


def _result_of(net: Any, images: Sequence[int], device: torch.device, side: int) -> Any:
    """Return what a module makes of gray ramps of so many channels each, or as text why it fails; it stays as it is."""
    modes = [(module, module.training) for module in net.modules()]
    try:
        with torch.no_grad():
            # Not in training, which would change the statistics of norms, nor by a call, which would compile it.
            ramp = torch.linspace(0, 1, side, device=device).expand(1, 1, side, side)
            return net.eval().forward(*(ramp.repeat(1, channels, 1, 1) for channels in images))
    # Each network fails in its own way.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        place = code_behind(error)[1]
        return f"{type(error).__name__}: {first_line(error)} ({place})"
    finally:
        for module, mode in modes:
            module.training = mode


def restore(run: RunOptions, model: Any, state: dict[str, Any]) -> None:
    """Restore a training state, or refuse that of another model (UserError); log what differs from the options."""
    network = model.opt["path"]["pretrain_network_g"]
    frozen, freezes = state.get("run", {}).get("freeze", []), model.opt["train"].get("freeze") or []
    if frozen != freezes:
        raise UserError(
            f"train: freeze: expected {frozen}, as in the state of iteration {state['iter']}, got {freezes}; to change "
            f"it, start a new run with path:pretrain_network_g={network}"
        )
    saved, ours = state.get("optimizers"), len(model.optimizers)
    if isinstance(saved, list) and len(saved) != ours:
        raise UserError(
            f"the state of iteration {state['iter']} has {len(saved)} optimizer(s), {type(model).__name__} has {ours}: "
            "it is of another training. To go on from its network, start another run without resume_state and "
            f"--auto_resume, with path:pretrain_network_g={network}"
        )
    use_options = run.options.path.resume_schedule == "options"
    try:
        changed = resume_training(model, state, run.options.training, use_options)
    # Another model's state fails in any way.
    except Exception as error:
        raise UserError(
            f"the state of iteration {state['iter']} does not fit these options ({first_line(error)}): resume with the "
            "options it was saved with (another scheduler: path:resume_schedule=options), or start a new run without "
            "--auto_resume"
        ) from error
    if changed is not None:
        get_root_logger().warning(changed)


def keep_one_history(run: RunOptions, model: Any, point: ResumePoint) -> None:
    """Set aside what does not lead to the resumed state: later checkpoints, and best networks other than its own."""
    root, saver = run.folders.root, getattr(model, "saver", None)
    best_files = saver.best_files if saver else {}
    if point.is_named:
        on_rank_0(lambda: set_aside_later(root, point.path, point.state["iter"], best_files))
    if saver and run.options.logs.keep_best:
        best = model.validator.best
        # All processes forget it, or their `best` would differ.
        for dataset, metric in on_rank_0(lambda: restore_best(root, point.path, best, best_files)):
            get_root_logger().warning(f"The best network of {dataset} by {metric} no longer exists and is forgotten.")
            del best[dataset][metric]


def make_folders(run: RunOptions, option_file: str, resuming: bool) -> None:
    """Make the experiment's folders, with the option file; a new run renames an earlier one of its name."""
    # As BasicSR's copy_opt_file, but UTF-8 under every locale, and read before the folder of the file may be renamed.
    command = readable(" ".join(sys.argv)).replace("\n", "\\n")
    head = f"# GENERATE TIME: {time.asctime()}\n# CMD:\n# {command}\n\n"
    folders, root = run.folders, str(run.folders.root)
    try:
        text = _HEAD.sub("", Path(option_file).read_text(encoding="utf-8"))
        if not resuming:
            await_archive_name(root)
            mkdir_and_rename(root)
        for folder in (folders.models, folders.training_states, folders.visualization):
            folder.mkdir(parents=True, exist_ok=True)
            # Of a process that was killed while it wrote.
            remove_partial_files(folder)
        # May be the option file itself, if a run is started from its experiment's copy.
        copy = folders.root / Path(option_file).name
        atomic_write(copy, lambda file: file.write((head + text).encode()))
        mark_experiment(root)
    except OSError as error:
        raise UserError(f"cannot make {root}: {error}") from error
