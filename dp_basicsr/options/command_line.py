"""The command lines of train.py and test.py."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from dp_basicsr.errors import UserError
from dp_basicsr.options.reading import Options, read_options
from dp_basicsr.utils.arguments import Parser


def parse_command_line(description: str, argv: Sequence[str] | None, is_train: bool = True) -> argparse.Namespace:
    """Parse the command line of train.py or test.py: BasicSR's options, and with ``-`` or ``_``."""
    parser = Parser(description)
    parser.add_option_file()
    add = parser.add_argument
    add("--launcher", choices=("none", "pytorch", "slurm"), default="none",
        help="how the processes were started; torchrun is detected")  # fmt: skip
    add("--auto-resume", action="store_true", help="resume from the newest training state of this run")
    add("--debug", action="store_true", help="log, save and validate every few iterations")
    if is_train:
        what = "check options and data, try a step, estimate time and memory; write nothing"
        add("--check", action="store_true", help=what)
    add_import_argument(parser)
    # torch's old launcher passes it; the environment says the same, so it is not read.
    add("--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    add("--force-yml", nargs="+", action="extend", default=[], metavar="KEY:KEY=VALUE",
        help="override options; values are YAML")  # fmt: skip
    args = parser.parse_args(argv)
    args.is_train = is_train
    return args


def read_given_options(args: argparse.Namespace) -> Options:
    """Read the option file of a command line and apply its overrides."""
    return read_options(args.opt, args.force_yml)


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--import``, whose modules ``import_modules`` imports."""
    what = "models, networks, losses, datasets or metrics with BasicSR, or has optimizers"
    parser.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE",
                        help=f"import a module that registers {what}; repeatable")  # fmt: skip


def import_modules(names: Sequence[str]) -> None:
    """Import the modules of ``--import``: installed ones, or files in the current folder, also by their path."""
    # An installed command has its own folder in sys.path, not the current one.
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        path = os.path.relpath(name or os.curdir)
        is_file = name.endswith(".py") and os.path.isfile(path) and not path.startswith(os.pardir)
        try:
            # Loader workers import a dataset's module by its name.
            importlib.import_module(path[:-3].replace(os.sep, ".") if is_file else name)
        # Other packages may raise anything.
        except (Exception, SystemExit) as error:
            stack = list(traceback.extract_tb(error.__traceback__))
            expected = "an installed module or a file in the current folder"
            if isinstance(error, ModuleNotFoundError) and stack[-1].filename.endswith(".py"):
                expected = "what it imports to be installed"
            if isinstance(error, AssertionError) and "was already registered" in str(error):
                expected = "classes with names of their own (rename it)"
                stack = [frame for frame in stack if Path(frame.filename).name != "registry.py"]
            last = stack[-1]
            # A module that was not found has no line to show.
            where = "" if "importlib" in last.filename else f" ({last.filename}:{last.lineno})"
            got = f"{type(error).__name__}: {error}{where}"
            raise UserError(f"--import {name}: expected {expected}, got {got}") from error
        if (torch := sys.modules.get("torch")) and (kind := torch.get_default_dtype()) != torch.float32:
            torch.set_default_dtype(torch.float32)
            text = f"--import {name} set torch's default type to {kind}; reset to float32"
            logging.getLogger("basicsr").warning(text)
