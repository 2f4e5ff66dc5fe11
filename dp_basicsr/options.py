"""Option files and command lines: read safely, overridden, completed into what BasicSR's classes expect."""

from __future__ import annotations

import argparse
import difflib
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.launch import agree_on, goes_on, init_distributed

import torch
import yaml
from basicsr.utils import set_random_seed
from basicsr.utils.dist_util import get_dist_info

Options = dict[str, Any]

REQUIRED = ("name", "model_type", "scale", "num_gpu", "datasets", "network_g")

# The keys that some code reads, by section ("" is the top).
KNOWN = {
    "": (
        *REQUIRED, "manual_seed", "network_d", "path", "train", "val", "logger", "dist_params",
        "find_unused_parameters",
    ),
    "path": (
        "pretrain_network_g", "pretrain_network_d", "param_key_g", "param_key_d", "strict_load_g", "strict_load_d",
        "resume_state", "ignore_resume_networks",
    ),
    "train": (
        "ema_decay", "optim_g", "optim_d", "scheduler", "total_iter", "warmup_iter", "pixel_opt", "perceptual_opt",
        "gan_opt", "ldl_opt", "net_d_iters", "net_d_init_iters", "channels_last", "amp", "compile", "grad_accumulation",
        "grad_clip",
    ),
    "val": ("val_freq", "save_img", "suffix", "pbar", "metrics"),
    "logger": ("print_freq", "save_checkpoint_freq", "use_tb_logger", "wandb"),
}  # fmt: skip

# What `--debug` does: a name that TensorBoard skips, and every phase of a run within its first few iterations.
DEBUG_FREQ = 8


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader (no object is ever constructed), with YAML 1.2's floats: ``1e-4`` is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def read_options(path: str | Path) -> Options:
    """Read an option file.

    Raises:
        UserError: No such file, no valid YAML (with line and column), or not a mapping with the required keys.
    """
    try:
        opt = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"option file {path}: {error.strerror}; the shipped ones are in options/") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"option file {path} is not valid YAML: {error}") from error
    if not isinstance(opt, dict):
        raise UserError(f"option file {path}: expected a mapping of options, got {type(opt).__name__}")
    missing = [key for key in REQUIRED if key not in opt]
    if missing:
        raise UserError(f"option file {path}: missing {', '.join(missing)}")
    return _unshared(opt)


def _unshared(value: Any) -> Any:
    """Copy without YAML's aliases, which are one object in several places: completing one would change the others."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def override(opt: Options, entries: Sequence[str]) -> None:
    """Set options from the command line, in place.

    Args:
        opt: Options.
        entries: ``a:b:c=value`` each; the value is read as YAML, so ``1e-4`` is a number and ``[1, 2]`` a list. The
            last key may be new, the path to it must exist.

    Raises:
        UserError: An entry that cannot be read or leads nowhere. ``opt`` is then to be thrown away.
    """
    for entry in entries:
        path, equals, text = entry.partition("=")
        *parents, last = [key.strip() for key in path.split(":")]
        if not equals or not last:
            raise UserError(f"--force_yml: expected key:key=value, for example train:ema_decay=0.999; got {entry!r}")
        section = opt
        for key in parents:
            if not isinstance(section.get(key), dict):
                there = ", ".join(str(name) for name in section)
                raise UserError(f"--force_yml {entry}: there is no section {key!r}; here are: {there}")
            section = section[key]
        try:
            section[last] = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as error:
            raise UserError(f"--force_yml {entry}: the value is not valid YAML: {error}") from error


def parse_command_line(description: str, argv: Sequence[str] | None) -> argparse.Namespace:
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

    Raises:
        UserError: See :func:`read_options`, :func:`override`, :func:`~dp_basicsr.launch.init_distributed`.
    """
    args = parse_command_line(description, argv)
    opt = read_options(args.opt)
    override(opt, args.force_yml)
    opt["dist"] = init_distributed(args.launcher, cpu=opt["num_gpu"] == 0, **(opt.get("dist_params") or {}))
    opt["rank"], opt["world_size"] = get_dist_info()
    refuse_misspelt(opt)
    opt["is_train"] = is_train
    opt["root_path"] = os.getcwd()
    _choose_device(opt)
    _seed(opt)
    _complete_datasets(opt)
    if not isinstance(opt["name"], str) or not opt["name"] or opt["name"] != os.path.basename(opt["name"]):
        raise UserError(f"name: expected the name of a folder, got {opt['name']!r}")
    if args.debug and not opt["name"].startswith("debug"):
        opt["name"] = f"debug_{opt['name']}"
    _complete_paths(opt)
    opt["auto_resume"] = is_train and goes_on(args.auto_resume, opt["path"]["experiments_root"])
    if is_train and "debug" in opt["name"]:
        opt["logger"] |= {"print_freq": 1, "save_checkpoint_freq": DEBUG_FREQ}
        if opt.get("val"):
            opt["val"]["val_freq"] = DEBUG_FREQ
    return opt, args.opt


def refuse_misspelt(opt: Options) -> None:
    """Refuse a key that is almost one that the program reads: ``percetual_opt`` would train without the loss.

    A key unlike all of them may be another plugin's, and passes; in ``path`` BasicSR would make a folder of it.

    Raises:
        UserError: With the right spelling.
    """
    for section, known in KNOWN.items():
        for key in (opt if not section else opt.get(section)) or {}:
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.8)
            if key not in known and (close or section == "path"):
                hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"
                raise UserError(f"options: {section}{':' if section else ''}{key} is not known; {hint}")


def _choose_device(opt: Options) -> None:
    """``num_gpu: auto`` takes what is there, 0 is the CPU."""
    there = torch.cuda.device_count()
    if opt["num_gpu"] == "auto":
        opt["num_gpu"] = there
    elif not isinstance(opt["num_gpu"], int) or not 0 <= opt["num_gpu"] <= there:
        raise UserError(
            f"num_gpu: expected auto or a number from 0 (CPU) to {there} (GPUs here), got {opt['num_gpu']!r}"
        )


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
