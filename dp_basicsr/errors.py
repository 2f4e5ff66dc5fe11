"""Errors that the user can fix.

An error whose cause lies outside the program (an option, a file, a folder, the machine) is a :class:`UserError`. Its
message says what was expected, what was found and what to do. Command lines run inside :func:`exit_on_user_error`.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from types import MappingProxyType

# Modules that only some commands need -> the extra of setup.py that installs them.
EXTRAS = MappingProxyType({"matplotlib": "plots", "jinja2": "report"})

# Exit code of a run that a signal or the loss of another process stopped: the same command with --auto_resume continues
# it (EX_TEMPFAIL of sysexits.h).
EXIT_RETRY = 75


class UserError(ValueError):
    """A mistake in the input or the environment; its message is all that the user needs to see."""


class ProcessError(UserError):
    """A UserError that one of several processes may have alone, so that each prints its own."""


def readable(text: str) -> str:
    """Escape what a terminal cannot show: file names may contain anything."""
    return "".join(sign if sign.isprintable() or sign == "\n" else repr(sign)[1:-1] for sign in text)


def message_for_user(error: BaseException) -> str | None:
    """Return the message for a user who can fix the error, or None for any other error.

    The user can also install the module of an extra, and fix what the system says of a path: a name that is too long, a
    file in the place of a folder.
    """
    if isinstance(error, UserError):
        return readable(str(error))
    if isinstance(error, ModuleNotFoundError) and error.name is not None and error.name in EXTRAS:
        return f"{error.name} is not installed: pip install '.[{EXTRAS[error.name]}]'"
    if isinstance(error, OSError) and error.filename is not None:
        return readable(f"{error.filename}: {error.strerror}")
    if isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding() != "utf-8":
        name = ascii(error.object)[:200]
        return f"{name} cannot be a file name under this locale ({error.encoding}): set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # pathlib's, until Python 3.13
        return readable(str(error))
    return None


@contextlib.contextmanager
def exit_on_user_error(interrupted: str = "interrupted") -> Iterator[None]:
    """Print an error that the user can fix as one line on stderr and exit with code 2; others keep their traceback.

    Ctrl-C prints ``interrupted`` and exits with code 130.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may not be Unicode
    try:
        yield
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        message = message_for_user(error)
        if message is None:
            raise
        # Under torchrun and srun all processes of a machine have the same error before they form a group.
        local_rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
        if local_rank == "0" or isinstance(error, ProcessError):
            print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from None
