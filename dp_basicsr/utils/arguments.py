"""Command lines: the table of all commands, one spelling of their options, and how the user starts them."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]


# The option files: package data of an installed wheel, or the checkout's.
SHIPPED = next((folder for folder in (ROOT / "dp_basicsr/option_files", ROOT / "options") if folder.is_dir()), Path())


class Command(NamedTuple):
    """A command.

    Attributes:
        target: ``module`` or ``module:function`` of its main, which takes the arguments.
        script: The file that starts it in a checkout, from the root of the project.
        help: One line for the list of commands.
    """

    target: str
    script: str
    help: str


# In the order of `dp-basicsr --help`.
COMMANDS = MappingProxyType(
    {
        "train": Command("dp_basicsr.train", "dp_basicsr/train.py", "train a model from an option file"),
        "test": Command("dp_basicsr.test", "dp_basicsr/test.py", "test a model on the available sets"),
        "upscale": Command("dp_basicsr.inference", "dp_basicsr/inference.py", "upscale images"),
    }
)

_program: list[str] = []  # how the running command was started, set by `started_as`


@contextlib.contextmanager
def started_as(*words: str) -> Iterator[None]:
    """Make ``Parser`` and ``advise`` speak of the command as the user typed it: ``dp-basicsr data lr``."""
    before, _program[:] = list(_program), words
    try:
        yield
    finally:
        _program[:] = before


def advise(command: str, arguments: str = "") -> str:
    """Return a command line for a message, in the way in which the running program was started.

    Args:
        command: A key of ``COMMANDS``.
        arguments: What follows.
    """
    started = Path(sys.argv[0]).resolve()
    if not _program and started.parent in (ROOT / "scripts", ROOT / "dp_basicsr"):
        start = f"python {COMMANDS[command].script}"
    else:
        start = f"{_program[0] if _program else 'dp-basicsr'} {command}"
    return f"{start} {arguments}".rstrip()


def option_file(text: str) -> str:
    """Return an option file's path; a shipped one is found as ``train_esrgan_dp`` too."""
    if os.path.exists(text):  # unlike Path's, it raises nothing
        return text
    shipped = [SHIPPED / f"{text.removeprefix('options/')}{suffix}" for suffix in ("", ".yml")]
    return next((str(file) for file in shipped if os.path.isfile(file)), text)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Show defaults that say something, and keep the lines of indented examples."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, "", []) or action.default == argparse.SUPPRESS:
            return action.help
        return super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(
            paragraph if paragraph.startswith("  ") else super(_Help, self)._fill_text(paragraph, width, indent)
            for paragraph in paragraphs
        )


class Parser(argparse.ArgumentParser):
    """A command line whose long options may be written with ``-`` or ``_``.

    Args:
        description: Text of ``--help``; paragraphs that begin with two spaces keep their lines, and ``%(prog)s`` is the
            command.
    """

    def __init__(self, description: str | None) -> None:
        super().__init__(prog=" ".join(_program) or None, description=description, formatter_class=_Help)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse, after exchanging each spelling of a long option for the declared one."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        parsed, rest = super().parse_known_args([*map(self._declared, words[:end]), *words[end:]], namespace)
        if hasattr(parsed, "positional_opt"):
            files = [file for file in (parsed.positional_opt, parsed.opt) if file is not None]
            if len(files) > 1 or (self._requires_opt and not files):
                self.error(f"expected one option file, got {' and '.join(files) or 'none'}: -opt FILE")
            del parsed.positional_opt
            parsed.opt = files[0] if files else None
        return parsed, rest

    def _declared(self, word: str) -> str:
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            return word
        options = {option.replace("_", "-"): option for option in self._option_string_actions}
        name = name.replace("_", "-")
        longer = [option for spelling, option in options.items() if spelling.startswith(name)]
        declared = options.get(name) or (longer[0] if len(longer) == 1 else None)
        return f"{declared}{equals}{value}" if declared else word

    def add_input(self, **settings: Any) -> None:
        """Add ``-i``, ``--input``."""
        self.add_argument("-i", "--input", **settings)

    def add_output(self, **settings: Any) -> None:
        """Add ``-o``, ``--output``, ``--out`` as ``output``."""
        self.add_argument("-o", "--output", "--out", dest="output", **settings)

    def add_model(self, **settings: Any) -> None:
        """Add ``-m``, ``--model-path`` as ``model_path``, which takes several files."""
        self.add_argument("-m", "--model-path", type=Path, nargs="+", metavar="FILE", **settings)

    def add_option_file(self, required: bool = True) -> None:
        """Add the option file as ``opt``: as the only positional argument, or after ``-opt`` as in BasicSR."""
        self.add_argument("positional_opt", nargs="?", type=option_file, metavar="FILE",
                          help="option file, or the name of a shipped one")  # fmt: skip
        self.add_argument("-opt", "--opt", type=option_file, metavar="FILE", help="the same, as in BasicSR")
        self._requires_opt = required
