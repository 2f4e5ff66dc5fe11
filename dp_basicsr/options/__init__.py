"""Option files and command lines: read safely, overridden, checked whole, completed into what BasicSR expects.

Read in this order: ``reading.py`` (YAML), ``schema.py`` (our keys), ``signatures.py`` (the keys of registered classes),
``rules.py`` (values that do not go together), ``checking.py`` (all of it, and the message).
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Sequence

from dp_basicsr.distributed.collectives import agree_on
from dp_basicsr.distributed.launch import init_distributed, should_resume
from dp_basicsr.options.reading import Options, override, read_options

import torch
from basicsr.utils import set_random_seed
from basicsr.utils.dist_util import get_dist_info

__all__ = ["Options", "override", "parse_command_line", "parse_options", "read_options"]

# What `--debug` does: a name that TensorBoard skips, and every phase of a run within its first few iterations.
DEBUG_FREQ = 8


def parse_command_line(description: str, argv: Sequence[str] | None, is_train: bool = True) -> argparse.Namespace:
    """Parse the command line of train.py and test.py: BasicSR's options, and both spellings of ``--local_rank``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-opt", required=True, metavar="FILE", help="option file (options/*.yml)")
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm"),
        default="none",
        help="how the processes were started; torchrun is recognised by itself (default: %(default)s)",
    )
    parser.add_argument("--auto_resume", action="store_true", help="go on from the newest training state of this run")
    parser.add_argument("--debug", action="store_true", help="log, save and validate every few iterations")
    if is_train:
        parser.add_argument(
            "--check",
            action="store_true",
            help="check options and data, try a step, estimate time and memory, and write nothing",
        )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        "--force_yml",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY:KEY=VALUE",
        help="override options; values are YAML",
    )
    return parser.parse_args(argv)


def parse_options(description: str, argv: Sequence[str] | None, is_train: bool) -> tuple[Options, str]:
    """Read everything that a run is started with, and join the other processes if there are any.

    Returns:
        The options with BasicSR's derived entries (``dist``, ``rank``, ``path`` ...), and the option file's path.
        Experiments and results go below the current folder, where relative data paths are looked for as well.
        ``check`` is None, or with ``--check`` the list of what is missing, which a trial step can do without.

    Raises:
        UserError: See :func:`read_options`, :func:`override`, :func:`~dp_basicsr.options.checking.check_options`,
            :func:`~dp_basicsr.distributed.launch.init_distributed`.
    """
    from dp_basicsr.options.checking import check_options  # pydantic and BasicSR's registries: not for every import

    args = parse_command_line(description, argv, is_train)
    only_check = is_train and args.check
    opt = read_options(args.opt)
    override(opt, args.force_yml)
    missing = check_options(opt, args.opt, args.force_yml, is_train, may_miss_data=only_check)
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
    return opt, args.opt


def _seed(opt: Options) -> None:
    """One seed for the run, the same on every process; each process then has a random state of its own."""
    if opt.get("manual_seed") is None:
        opt["manual_seed"] = agree_on(random.randint(1, 10000))
    set_random_seed(opt["manual_seed"] + opt["rank"])


def _complete_datasets(opt: Options) -> None:
    """``val_1`` and ``test_2`` are sets of phase ``val`` and ``test``; all have the model's scale."""
    for key, dataset in opt["datasets"].items():
        dataset["phase"] = key.split("_")[0]
        dataset["scale"] = opt["scale"]
        for root in ("dataroot_gt", "dataroot_lq"):
            if dataset.get(root) is not None:
                dataset[root] = os.path.expanduser(dataset[root])


def _complete_paths(opt: Options) -> None:
    """BasicSR's folders: experiments/<name>/{models,training_states,visualization}, results/<name>/visualization."""
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
