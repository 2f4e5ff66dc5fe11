"""Complete the options of a run: processes, seed, paths and the other entries that BasicSR expects."""

from __future__ import annotations

import argparse
import os
import random

from dp_basicsr.distributed.collectives import agree_on
from dp_basicsr.distributed.launch import init_distributed, should_resume
from dp_basicsr.options.checking import check_options
from dp_basicsr.options.reading import Options
from dp_basicsr.utils.option_schema import add_all_defaults

import torch
from basicsr.utils import set_random_seed
from basicsr.utils.dist_util import get_dist_info

# Options of `--debug`: a name that TensorBoard skips, and all phases of a run within a few iterations.
DEBUG_FREQ = 8


def complete_options(opt: Options, args: argparse.Namespace) -> Options:
    """Check options, join the process group if there is one, and add BasicSR's derived entries, in place.

    Args:
        opt: Options, as read and overridden.
        args: Result of ``parse_command_line``.

    Returns:
        ``opt`` with ``dist``, ``rank``, ``path`` and so on. Experiments, results and relative data paths are relative
        to the current folder. ``check`` is None, or with ``--check`` the list of missing files that a trial step can do
        without.

    Raises:
        UserError: See ``check_options`` and ``init_distributed``.
    """
    is_train = args.is_train
    only_check = is_train and args.check
    missing = check_options(opt, args.opt, args.force_yml, is_train, may_miss_data=only_check)
    add_all_defaults(opt)
    opt["dist"] = init_distributed(args.launcher, cpu=opt["num_gpu"] == 0, **(opt.get("dist_params") or {}))
    opt["rank"], opt["world_size"] = get_dist_info()
    opt["is_train"] = is_train
    opt["check"] = missing if only_check else None
    opt["root_path"] = os.getcwd()
    if opt["num_gpu"] == "auto":
        opt["num_gpu"] = torch.cuda.device_count()
    _seed(opt)
    _complete_datasets(opt)
    if args.debug and not opt["name"].startswith("debug"):
        opt["name"] = f"debug_{opt['name']}"
    _complete_paths(opt)
    opt["auto_resume"] = is_train and should_resume(args.auto_resume, opt["path"]["experiments_root"])
    if is_train and "debug" in opt["name"]:
        opt["logger"] |= {"print_freq": 1, "save_checkpoint_freq": DEBUG_FREQ}
        if opt.get("val"):
            opt["val"]["val_freq"] = DEBUG_FREQ
    return opt


def _seed(opt: Options) -> None:
    """Choose one seed for the run, the same on every process; then seed each process differently."""
    if opt.get("manual_seed") is None:
        opt["manual_seed"] = agree_on(random.randint(1, 10000))
    set_random_seed(opt["manual_seed"] + opt["rank"])


def _complete_datasets(opt: Options) -> None:
    """Set each set's phase (``val_1`` is ``val``, ``test_2`` is ``test``) and the model's scale."""
    for phase, dataset in opt["datasets"].items():
        dataset["phase"] = phase.split("_")[0]
        dataset["scale"] = opt["scale"]
        for key in ("dataroot_gt", "dataroot_lq", "meta_info_file"):
            if dataset.get(key) is not None:
                dataset[key] = os.path.expanduser(dataset[key])


def _complete_paths(opt: Options) -> None:
    """Add BasicSR's folders below experiments/<name>/ and results/<name>/."""
    path = opt.setdefault("path", None) or {}
    opt["path"] = path
    for key, value in path.items():
        if value is not None and ("resume_state" in key or "pretrain_network" in key):
            path[key] = os.path.expanduser(value)
    kind = "experiments" if opt["is_train"] else "results"
    root = os.path.join(opt["root_path"], kind, opt["name"])
    path |= {f"{kind}_root": root, "log": root, "visualization": os.path.join(root, "visualization")}
    if opt["is_train"]:
        path["models"] = os.path.join(root, "models")
        path["training_states"] = os.path.join(root, "training_states")
        path.setdefault("resume_state", None)
