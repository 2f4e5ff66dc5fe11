"""Start a run: check its options, join its processes, and choose its seed, folders and name."""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path

from dp_basicsr.checks.checking import check_options
from dp_basicsr.distributed.collectives import agree_on
from dp_basicsr.distributed.launch import init_distributed, should_resume
from dp_basicsr.options import Options
from dp_basicsr.options.run import Folders, RunOptions
from dp_basicsr.options.schema import OptionFile, Val
from dp_basicsr.utils.pool import available_cpus

import torch
from basicsr.utils import set_random_seed
from basicsr.utils.dist_util import get_dist_info

DEBUG_FREQ = 8  # BasicSR's iterations between validations, and between checkpoints, of a debug run


def start_run(opt: Options, args: argparse.Namespace) -> RunOptions:
    """Check the options of a command line, join the process group if there is one, and seed this process.

    Experiments, results and relative data paths are relative to the current folder.
    """
    is_train, check = args.is_train, args.is_train and args.check
    # Before the process group: a mistake is reported at once, without waiting for the other processes.
    checked = check_options(opt, args.opt, args.force_yml, is_train, may_miss_data=check)
    options = checked.options
    # The images are what a test is for.
    if (val := options.val or Val()).save_img is None and not is_train:
        options = options.model_copy(update={"val": val.model_copy(update={"save_img": True})})
    # By its name too, as in BasicSR.
    if args.debug or "debug" in options.name:
        options = for_debugging(options, is_train)
    # The training ends some validations after its best network, which would be lost.
    if options.logger and options.val and options.val.patience:
        options = options.model_copy(update={"logger": options.logger.model_copy(update={"keep_best": True})})
    parallel = options.dist_params
    dist = init_distributed(args.launcher, parallel.port, parallel.backend, parallel.timeout, cpu=options.num_gpu == 0)
    rank, world_size = get_dist_info()
    # torch counts the CPUs of the machine, of whose time a container may have less.
    if "OMP_NUM_THREADS" not in os.environ and available_cpus() < torch.get_num_threads():
        torch.set_num_threads(available_cpus())
    seed = options.manual_seed
    # One for the run: processes that drew their own would shuffle the data differently.
    if seed is None:
        seed = agree_on(random.randint(1, 10000))
    # Processes differ in their random numbers, as in BasicSR, but not in the order of the data.
    set_random_seed(seed + rank)
    folders = Folders.under(Path.cwd() / ("experiments" if is_train else "results") / options.name)
    cpu_note = []
    if is_train and options.num_gpu == "auto" and not torch.cuda.is_available():
        why = "torch finds none" if torch.version.cuda else "this torch is built for CPUs"
        cpu_note = [f"num_gpu: auto: no GPU ({why}), so the CPU trains; num_gpu: 0 asks for that"]
    # OpenMP binds the process that loads it, from which the loader workers inherit the one CPU.
    is_bound = os.environ.get("OMP_PROC_BIND", "false").lower() not in ("", "false")
    if is_train and is_bound and available_cpus() == 1 != os.cpu_count():
        cpu_note.append("OMP_PROC_BIND keeps the training and its loader workers on one CPU: unset it")
    return RunOptions(
        options,
        is_train,
        num_gpu=torch.cuda.device_count() if options.num_gpu == "auto" else options.num_gpu,
        manual_seed=seed,
        folders=folders,
        dist=dist,
        rank=rank,
        world_size=world_size,
        auto_resume=is_train and should_resume(args.auto_resume, str(folders.root)),
        check=check,
        missing=checked.missing,
        notes=(*checked.notes, *cpu_note),
    )


def for_debugging(options: OptionFile, is_train: bool) -> OptionFile:
    """Return options with a name that TensorBoard skips; a training logs, saves and validates every few iterations."""
    name, logger, val = options.name, options.logger, options.val
    # So that a debug run never moves aside or resumes the run that it tries out.
    changed: dict[str, object] = {"name": name if "debug" in name else f"debug_{name}"}
    if is_train and logger is not None:
        changed["logger"] = logger.model_copy(update={"print_freq": 1, "save_checkpoint_freq": DEBUG_FREQ})
        if val is not None:
            changed["val"] = val.model_copy(update={"val_freq": DEBUG_FREQ})
    return options.model_copy(update=changed)
