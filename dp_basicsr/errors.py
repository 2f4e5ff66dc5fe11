"""What a user can do something about.

Every error whose cause lies outside the program (an option, a file, a folder, the machine) is a :class:`UserError` with
one readable message: what was expected, what came, how to mend it. Command lines run inside
:func:`exit_on_user_error`.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from types import MappingProxyType

# Modules that only some commands need -> the extra of setup.py that has them.
EXTRAS = MappingProxyType({"matplotlib": "plots", "jinja2": "report"})

# The exit code of a run that a signal stopped, or the end of another process: nothing is wrong with it, and the same
# command with --auto_resume goes on (EX_TEMPFAIL of sysexits.h).
EXIT_RETRY = 75


class UserError(ValueError):
    """A mistake in the input or the surroundings; its message is all that the user needs to see."""


def readable(text: str) -> str:
    """A text whose names of files may hold anything, as a terminal can show it."""
    return "".join(sign if sign.isprintable() or sign == "\n" else repr(sign)[1:-1] for sign in text)


@contextlib.contextmanager
def exit_on_user_error(interrupted: str = "interrupted") -> Iterator[None]:
    """Turn a :class:`UserError` into one line on stderr and exit code 2; every other exception keeps its traceback.

    A module of an extra that is not installed is the user's to mend as well, and so is what the system says of a path:
    a name that is too long, a file where a folder belongs. Ctrl-C gives exit code 130 and ``interrupted``.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be Unicode
    try:
        yield
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(error.name or "")
        if extra is None:
            raise
        print(f"error: {error.name} is not installed: pip install '.[{extra}]'", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        raise SystemExit(130) from None
    except (OSError, RuntimeError) as error:
        path = getattr(error, "filename", None)
        if path is None and not str(error).startswith("Symlink loop"):  # pathlib's, until Python 3.13
            raise
        said = f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error)
        print(f"error: {readable(said)}", file=sys.stderr)
        raise SystemExit(2) from None
    except UserError as error:
        # torchrun, srun: once a machine, not once a process; in a process group `launch.in_group` says it once in all.
        if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0":
            print(f"error: {readable(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
