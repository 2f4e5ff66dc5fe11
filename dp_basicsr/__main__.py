"""``dp-basicsr COMMAND`` and ``python -m dp_basicsr COMMAND``: every command of the project."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dp_basicsr import __version__
from dp_basicsr.errors import UserError, exit_on_user_error
from dp_basicsr.utils.arguments import COMMANDS, ROOT, started_as


def overview(program: str, group: str) -> str:
    """Return the list of all commands, or of those that begin with ``group``."""
    names = [name for name in COMMANDS if f"{name} ".startswith(group and f"{group} ")]
    lines = [f"  {name:16} {COMMANDS[name].help}" for name in names]
    head = f"usage: {program} {group or 'COMMAND'} ...\n\nDual Perceptual Loss for super-resolution: commands\n"
    more = f"\n  {program} COMMAND --help   arguments of a command\n  {program} --version"
    return "\n".join([head, *lines, more])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first one or two words name; return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    # torch.distributed.launch puts it before the command, and sets LOCAL_RANK too.
    if words and words[0].startswith(("--local-rank=", "--local_rank=")):
        del words[0]
    program = "python -m dp_basicsr" if Path(sys.argv[0]).name == "__main__.py" else "dp-basicsr"
    name = next((name for name in (" ".join(words[:2]), *words[:1]) if name in COMMANDS), None)
    # `!dp-basicsr` of a notebook inherits the kernel's backend, which may not be installed here; figures need none.
    if "ipykernel" not in sys.modules:
        os.environ.pop("MPLBACKEND", None)
    if name is not None:
        used = name.split()
        module, _, function = COMMANDS[name].target.partition(":")
        with started_as(program, *used):
            with exit_on_user_error():  # a module may need what is not installed
                if not ROOT.is_dir():
                    raise UserError(f"expected an installed package, got the archive {ROOT}: pip install or unpack it")
                command = getattr(importlib.import_module(f"dp_basicsr.{module}"), function or "main")
            return command(words[len(used) :]) or 0
    if words[:1] == ["--version"]:
        print(f"dp_basicsr {__version__}")
        return 0
    group = words[0] if words and any(key.startswith(f"{words[0]} ") for key in COMMANDS) else ""
    asked = [word for word in words[bool(group) :] if word not in ("-h", "--help")]
    with exit_on_user_error():
        print(overview(program, group), file=sys.stderr if asked else sys.stdout)
    if asked:
        given = " ".join(words[: 1 + bool(group)])
        near = difflib.get_close_matches(given, COMMANDS, 1)
        print(f"error: expected a command, got {given!r}" + (f"; {near[0]!r}?" if near else ""), file=sys.stderr)
    return 2 if asked else 0


if __name__ == "__main__":
    raise SystemExit(main())
