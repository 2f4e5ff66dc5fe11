"""Command lines: the table of all commands, one spelling of their options, and how the user starts them."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parents[2]

NETWORKS = ROOT / "dp_basicsr/networks"  # the networks in the box

# The option files: package data of an installed wheel, or the checkout's.
SHIPPED = next((folder for folder in (ROOT / "dp_basicsr/option_files", ROOT / "options") if folder.is_dir()), Path())


class Command(NamedTuple):
    """A command."""

    target: str  # its ``main``, which takes the arguments: ``module`` of this package, or ``module:function``
    script: str  # name of the file that starts it in a checkout; empty if there is none
    help: str  # one line for the list of commands

    @property
    def script_path(self) -> str:
        """Return the path of the script from the root of the project."""
        return f"{'scripts' if self.target.startswith('commands.') else 'dp_basicsr'}/{self.script}.py"


# In the order of `dp-basicsr --help`.
COMMANDS: Mapping[str, Command] = {
    "train": Command("train", "train", "train a model from an option file"),
    "test": Command("test", "test", "test a model on the available sets"),
    "upscale": Command("inference", "inference", "upscale images"),
    "web": Command("webui", "webui", "upscale images on a web page"),
    "export": Command("commands.export", "export_model", "export a model as safetensors, .pth, ONNX or ncnn"),
    "options": Command("commands.options", "", "list the shipped option files, or copy some"),
    "data download": Command("commands.data:download", "download_datasets", "download DIV2K and the benchmarks"),
    "data networks": Command("commands.data:networks", "download_pretrained_models", "fetch VGG19 and ResNet-50"),
    "data extract": Command("commands.data:extract", "extract_subimages", "cut HR images into sub-images, with LR"),
    "data lr": Command("commands.data:lr", "make_lr", "create the LR images of a test set"),
    "data lmdb": Command("commands.data:lmdb", "create_lmdb", "pack images into an LMDB, or convert one"),
    "data check": Command("commands.data:check", "check_dataset", "find what would break a training"),
    "evaluate": Command("commands.evaluate", "evaluate", "measure images of any methods"),
    "report": Command("commands.report", "make_report", "show a run as one HTML file"),
    "crops": Command("commands.crops", "compare_crops", "show one crop of all methods, as in Figs. 5 to 9"),
    "features": Command("commands.features", "plot_features", "show features of VGG19 and ResNet-50, as in Fig. 3"),
    "study": Command("commands.study", "run_study", "reproduce a table of the paper"),
}

_DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212"  # web pages and word processors make them of hyphens
_HOME = re.compile(r"(?:^|(?<==))~(?=/)")

_program: list[str] = []  # how the running command was started, set by `started_as`


@contextlib.contextmanager
def started_as(*words: str) -> Iterator[None]:
    """Make ``Parser`` and ``advise`` speak of the command as the user typed it: ``dp-basicsr data lr``."""
    before, _program[:] = list(_program), words
    try:
        yield
    finally:
        _program[:] = before


def advise(command: str, arguments: str | Sequence[str] = "") -> str:
    """Return a command (a key of ``COMMANDS``) for a message, in the way in which the running program was started.

    Paths are given as words of a sequence, which are quoted.
    """
    # Windows' shell takes ' for a part of the name.
    join = subprocess.list2cmdline if sys.platform == "win32" else shlex.join
    arguments = arguments if isinstance(arguments, str) else join(arguments)
    started = Path(sys.argv[0]).resolve()
    if not _program and started.parent in (ROOT / "scripts", ROOT / "dp_basicsr") and COMMANDS[command].script:
        start = f"python {COMMANDS[command].script_path}"
    else:
        start = f"{_program[0] if _program else 'dp-basicsr'} {command}"
    return f"{start} {arguments}".rstrip()


def option_file(text: str) -> str:
    """Return an option file's path; a shipped one is found as ``train_esrgan_dp`` too."""
    # Unlike Path's, this raises nothing, whatever the text is.
    if os.path.exists(text):
        return text
    shipped = [SHIPPED / f"{text.removeprefix('options/')}{suffix}" for suffix in ("", ".yml")]
    return next((str(file) for file in shipped if os.path.isfile(file)), text)


def model_file(text: str) -> Path:
    """Return a model's path; a network in the box is found by its name, as commands and the page show it."""
    return NETWORKS / text if not os.path.exists(text) and text in os.listdir(NETWORKS) else Path(text)


def output_file(name: str) -> Callable[[str], Path]:
    """Return the type of an argument that is a file to write, which in a folder is ``name``."""
    return lambda text: Path(text, name if text.endswith("/") or os.path.isdir(text) else "")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Show defaults that say something, and keep the lines of examples."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, "", [], argparse.SUPPRESS) or "(default" in (action.help or ""):
            return action.help
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill, examples = super()._fill_text, ("  ", "dp-basicsr ", self._prog)
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(part if part.startswith(examples) else fill(part, width, indent) for part in paragraphs)


class _Store(argparse.Action):
    """Join the values of an option that is given twice, where argparse keeps only the last; one input stays one."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        before = getattr(namespace, self.dest)
        if before is not self.default and self.nargs == "+":
            values = [*before, *values]
        elif before not in (self.default, values) and self.dest in ("input", "opt"):
            raise argparse.ArgumentError(self, f"expected one, got {before} and {values}")
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """A command line whose long options may be written with ``-`` or ``_``.

    Args:
        description: Text of ``--help``; ``%(prog)s`` is the command; paragraphs that begin with it, ``dp-basicsr`` or
            two spaces keep their lines.
    """

    def __init__(self, description: str | None) -> None:
        module = getattr(sys.modules["__main__"], "__spec__", None)  # of `python -m`
        started = f"python -m {module.name}" if module else f"python {sys.argv[0]}"
        super().__init__(prog=" ".join(_program) or started, description=description, formatter_class=_Help)
        self.register("action", None, _Store)
        # OpenCV has lines for each tag of a TIFF that it does not know; what is wrong with a file the commands say.
        os.environ.setdefault("OPENCV_LOG_LEVEL", "FATAL")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse, after exchanging each spelling of a long option for the declared one."""
        home = os.path.expanduser("~").replace("\\", "/")
        # A shell leaves the ~ in --output=~/results and --result A=~/results as it is.
        words = [_HOME.sub(home, word) for word in (sys.argv[1:] if args is None else args)]
        options = {option.replace("_", "-"): option for option in self._option_string_actions}
        # What follows a bare -- is no option, even if it looks like one.
        for number, word in enumerate(words[: words.index("--")] if "--" in words else words):
            name, equals, value = word.partition("=")
            bare = name.lstrip(_DASHES)
            if not name.isascii() and bare != name:
                same = (f"{dashes}{bare}" for dashes in ("--", "-") if f"{dashes}{bare}".replace("_", "-") in options)
                name = next(same, name)
                words[number] = f"{name}{equals}{value}"
            if not name.startswith("--"):
                continue
            name = name.replace("_", "-")
            # argparse takes abbreviations too, so they must also work in both spellings.
            longer = [option for spelling, option in options.items() if spelling.startswith(name)]
            declared = options.get(name) or (longer[0] if len(longer) == 1 else None)
            if declared:
                words[number] = f"{declared}{equals}{value}"
        # torchrun starts a command several times; one that is not distributed would write the same files in each.
        rank = os.environ.get("RANK", "0") if "TORCHELASTIC_RUN_ID" in os.environ else "0"
        # A program of one's own that calls `main([...])` decides itself in which rank.
        if (args is None or _program) and "--launcher" not in options:
            if rank != "0":
                self.exit(0, f"rank {rank} of torchrun: {self.prog} works in rank 0 alone; unset RANK for all\n")
            # Tasks of srun and mpirun may come from a script that gives each other arguments.
            if "1" in map(os.environ.get, ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")):
                print(f"warning: {self.prog} does all its work in each task: srun or mpirun -n 1", file=sys.stderr)
        self._words = words
        parsed, rest = super().parse_known_args(words, namespace)
        if hasattr(parsed, "positional_opt"):
            files = [file for file in (parsed.positional_opt, parsed.opt) if file is not None]
            if not rest and (len(files) > 1 or (self._requires_opt and not files)):
                self.error(f"expected one option file, got {' and '.join(files) or 'none'}: -opt FILE")
            del parsed.positional_opt
            parsed.opt = files[0] if files else None
        return parsed, rest

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        # The path of an unset variable would be the current folder.
        if not arg_string and action.default != "":
            raise argparse.ArgumentError(action, "expected a value, got nothing, as of a variable that is not set")
        return super()._get_value(action, arg_string)  # type: ignore[misc]

    def error(self, message: str) -> NoReturn:
        """Exit with code 2, and say what to do about the files that a shell makes of a pattern."""
        words = message.removeprefix("unrecognized arguments: ").split()
        glued = [word for word in self._words if word.endswith(tuple(self._option_string_actions)) and word[0] != "-"]
        if message.startswith("unrecognized") and glued:
            message += f" (a blank is missing within {glued[0]})"
        elif message.startswith("unrecognized") and any(map(os.path.exists, words[:1])):
            message += " (one file or folder is taken here: give the folder of the files instead of a pattern)"
        elif message.startswith("unrecognized") and "--force-yml" in self._option_string_actions:
            message += " (keys of the option file: --force_yml train:optim_g:lr=1e-4)"
        elif message.endswith(" argument"):
            message += " (one that begins with - after an equals sign: --suffix=-x4)"
        super().error(message)

    def add_input(self, **settings: Any) -> None:
        """Add ``-i``, ``--input``."""
        self.add_argument("-i", "--input", **settings)

    def add_output(self, **settings: Any) -> None:
        """Add ``-o``, ``--output``, ``--out`` as ``output``."""
        self.add_argument("-o", "--output", "--out", dest="output", **settings)

    def add_model(self, **settings: Any) -> None:
        """Add ``-m``, ``--model-path`` as ``model_path``, which takes several files."""
        self.add_argument("-m", "--model-path", type=model_file, nargs="+", metavar="FILE", **settings)

    def add_option_file(self, required: bool = True) -> None:
        """Add the option file as ``opt``: as the only positional argument, or after ``-opt`` as in BasicSR."""
        self.add_argument("positional_opt", nargs="?", type=option_file, metavar="FILE",
                          help="option file, or the name of a shipped one")  # fmt: skip
        self.add_argument("-opt", "--opt", type=option_file, metavar="FILE", help="the same, as in BasicSR")
        self._requires_opt = required
